"""What an image may ask for its programs: no more than a new sandbox with the same options would give them.

Options are taken from the image as from a bundle (limits.md): volumes, network, capabilities. But what else its records
say of rights is only what somebody wrote there, and the seed could give all that it has.
"""

from __future__ import annotations

import os

from trapline.platform.capabilities import BY_NAME, CONTAINER_DEFAULT, names_of
from trapline.sentry.options import DoOptions
from trapline.sentry.state.image_bounds import Bad
from trapline.sentry.state.records import Image, ThreadRecord


def check_options(options: DoOptions) -> None:
    """Those that `run` refuses in a bundle. Bad."""
    if options.sysctl:
        from trapline.sentry.control.oci import in_namespaces

        for name in options.sysctl:
            if not in_namespaces(name, options.network == "none"):
                raise Bad(f"options: sysctl {name} is the host's: a sandbox has none of its own")
    for name in options.capabilities or ():
        if name not in BY_NAME:
            raise Bad(f"options: there is no capability {name}")
    for device in options.devices:
        if device.kind not in ("c", "b", "u", "p") or not device.path.startswith("/"):
            raise Bad(f"options: the device {device.path!r} of the type {device.kind!r} cannot be")
    rate, per = options.clock_rate
    if not (0 < rate < 1 << 32 and 0 < per < 1 << 32):
        raise Bad(f"options: clocks cannot run at {rate}/{per}")


def limit(image: Image, options: DoOptions) -> list[str]:
    """Take from all tasks what their sandbox does not give; what that was, a line for each."""
    names = options.capabilities
    allowed = CONTAINER_DEFAULT if names is None else sum(1 << BY_NAME[name] for name in set(names))
    # An ordinary user's have all in the bounding set, which gives nothing.
    bounding = allowed if os.geteuid() == 0 else (1 << 64) - 1
    notes = []
    for process in image.processes:
        for thread in process.threads:
            if lost := _limit(thread, allowed, bounding):
                notes.append(f"thread {thread.tid} is without {', '.join(lost)}, which its sandbox does not give")
            thread.no_new_privileges |= options.no_new_privileges
    return notes


def _limit(thread: ThreadRecord, allowed: int, bounding: int) -> list[str]:
    inheritable, permitted, effective, bound, ambient = thread.capabilities
    had = inheritable | permitted | effective | ambient
    thread.capabilities = (
        inheritable & allowed, permitted & allowed, effective & allowed, bound & bounding, ambient & allowed,
    )  # fmt: skip
    return names_of(had & ~allowed)
