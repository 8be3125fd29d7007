"""Becomes an ordinary user and runs trapline's command line: argv is the user, what to do first, arguments.

Everything is imported before, since the interpreter may lie where that user may not go.
"""

import ctypes
import os
import pkgutil
import sys
from importlib import import_module

import trapline.platform
from trapline.sentry.cli import do, doctor, main
from trapline.sentry.syscalls import handlers

NEWUSER = 0x10000000


def load_all() -> None:
    for name in handlers.FAMILIES:
        import_module(f"trapline.sentry.syscalls.{name}")
    import_module("trapline.sentry.syscalls.sys_tty")  # which is loaded when it is first needed
    for module in pkgutil.iter_modules(trapline.platform.__path__):
        import_module(f"trapline.platform.{module.name}")
    assert do and doctor


def no_more_user_namespaces() -> None:
    """In a user namespace of our own none can be made below: the limit is each namespace's."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(reader, 1)
        for name in ("uid_map", "gid_map"):
            with open(f"/proc/{os.getppid()}/{name}", "w") as file:
                file.write("0 0 65535")
        os._exit(0)
    if ctypes.CDLL(None, use_errno=True).unshare(NEWUSER):
        sys.exit(77)
    os.write(writer, b"x")
    os.waitpid(child, 0)
    with open("/proc/sys/user/max_user_namespaces", "w") as file:
        file.write("0")


def become(user: int) -> None:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # dumpable, as after an exec by that user


if __name__ == "__main__":
    load_all()
    if sys.argv[2] == "no-user-namespaces":
        no_more_user_namespaces()
    if os.geteuid() == 0:
        become(int(sys.argv[1]))
    for name in ("XDG_RUNTIME_DIR", "HOME"):
        os.environ.pop(name, None)
    sys.exit(main.main(sys.argv[3:]))
