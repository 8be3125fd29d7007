"""clone3's structure where no guest can change it: in the parameter page of our vDSO.

The sentry has checked the structure and changed its flags (CLONE_VFORK and CLONE_UNTRACED are the sentry's), so the
host must read just that. In the guest's own memory another thread could write to it in between, and no place there is
known to be free: below the stack pointer may be another object of the program's (goroutine stacks are that small).
Every program has the page, read-only, and only the sentry writes it.

A place is one task's from here until the host has made the new task or refused to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.platform.tracee import Tracee
from trapline.platform.vdso_image import PAGE

if TYPE_CHECKING:
    from trapline.platform.engine import Engine
    from trapline.sentry.syscalls.sys_process import Clone

CLONE3 = 435
SIZE = 88  # struct clone_args with its cgroup (CLONE_ARGS_SIZE_VER2)
#: The upper half of the page; the parameters lie at its beginning (sentry/time/parameter_page.py).
PLACES = range(PAGE // 2, PAGE - SIZE + 1, SIZE)


def place(e: Engine, t: Tracee, request: Clone) -> None:
    """Have the call that a task stands at the entry of read the request's structure. The registers are loaded.

    Without a vDSO of ours, or while all places are taken, the call is left as the guest made it: the host reads the
    guest's structure and does what it says, CLONE_VFORK's wait too.
    """
    assert t.task is not None
    image = e.kernel.group(t.task).vdso
    taken = e.structures.values()
    at = next((p for p in PLACES if p not in taken), 0)
    if e.vdso is None or not image or not at:
        request.hold = False
        return
    e.structures[t.host] = at
    e.vdso.image.write_page(at, request.structure)
    regs = e.regs.r
    regs.orig_rax, regs.rdi, regs.rsi = CLONE3, image - PAGE + at, SIZE
    e.regs.store(t.host)
