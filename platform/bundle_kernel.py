"""What an OCI bundle asks of a sandbox's namespaces: a network that somebody made, and values below /proc/sys.

Runs in pid 1 of the sandbox, in its namespaces, while /proc is still the host's: what lies in a namespace shows there
as the reader's own. Sources: setns(2), ip-netns(8), proc_sys(5).
"""

from __future__ import annotations

import os

from trapline.platform import setup_calls as calls
from trapline.sentry.options import DoOptions


def prepare(options: DoOptions) -> None:
    """OSError that names what failed."""
    if options.network_path:
        _join(options.network_path)
    for name, value in options.sysctl.items():
        path = "/proc/sys/" + name.replace(".", "/")
        file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(file, value.encode())
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from None
        finally:
            os.close(file)


def _join(path: str) -> None:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        calls.setns(file, calls.CLONE_NEWNET)
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), path) from None
    finally:
        os.close(file)
