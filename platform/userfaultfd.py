"""userfaultfd(2): pages that are missing in a process are asked for here, and put there from here.

Every thread may use it; the host is called without the interpreter's lock. Sources: include/uapi/linux/userfaultfd.h,
ioctl_userfaultfd(2), Documentation/admin-guide/mm/userfaultfd.rst, mm/userfaultfd.c.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator

from trapline.platform.guest_memory import PAGE

SYS_USERFAULTFD = 323
FLAGS = os.O_CLOEXEC | os.O_NONBLOCK
#: On a descriptor of /dev/userfaultfd: makes one, with FLAGS for its argument.
USERFAULTFD_IOC_NEW = 0xAA00
_API, _REGISTER, _COPY, _ZEROPAGE, _WAKE, _POISON = (
    0xC018AA3F, 0xC020AA00, 0xC028AA03, 0xC020AA04, 0x8010AA02, 0xC020AA08,
)  # fmt: skip
_VERSION = 0xAA
_EVENT_FORK, _EVENT_REMAP, _EVENT_REMOVE, _EVENT_UNMAP = 1 << 1, 1 << 2, 1 << 3, 1 << 6
_EVENTS = _EVENT_FORK | _EVENT_REMAP | _EVENT_REMOVE | _EVENT_UNMAP
_FEATURE_POISON = 1 << 14
_MODE_MISSING = 1
PAGEFAULT, FORK, REMAP, REMOVE, UNMAP = 0x12, 0x13, 0x14, 0x15, 0x16
_MESSAGE = struct.Struct("<B7xQQQ")
_AT_ONCE = 64 * _MESSAGE.size
_ioctl = ctypes.CDLL(None, use_errno=True).ioctl
_U64 = (1 << 64) - 1

#: What happened: PAGEFAULT, and three words that mean what the kind says.
Message = tuple[int, int, int, int]


class Ended(Exception):
    """The address space is no more."""


class Userfaultfd:
    """One address space's, by a descriptor that it owns. Call nothing of it from two threads at once."""

    __slots__ = ("_argument", "_at", "fd", "poison")

    def __init__(self, fd: int, poison: bool = False) -> None:
        """`poison`: it is offered, as `begin` says; known of what a fork has made."""
        self.fd = fd
        self.poison = poison
        self._argument = ctypes.create_string_buffer(40)
        self._at = ctypes.c_void_p(ctypes.addressof(self._argument))

    def close(self) -> None:
        """Nothing is missing from here on: whoever waits, and whatever is touched later, finds zeros. Twice is once."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _call(self, request: int, *words: int) -> int:
        """0, or the error's number; what the host has written is in `_argument`."""
        struct.pack_into(f"<{len(words)}Q", self._argument, 0, *[word & _U64 for word in words])
        if _ioctl(self.fd, ctypes.c_ulong(request), self._at) == 0:
            return 0
        return ctypes.get_errno()

    def _word(self, index: int) -> int:
        return int(struct.unpack_from("<q", self._argument, index * 8)[0])

    # -- set-up
    def begin(self) -> None:
        """Ask for all events, and for what makes an access fail. OSError: EPERM without CAP_SYS_PTRACE, which those of
        forks need; EINVAL for a host older than 4.11."""
        # A host that knows nothing of the last one (before 6.6) refuses, and may be asked again.
        self.poison = not self._call(_API, _VERSION, _EVENTS | _FEATURE_POISON, 0)
        if not self.poison:
            number = self._call(_API, _VERSION, _EVENTS, 0)
            if number:
                raise OSError(number, os.strerror(number))

    def register(self, start: int, size: int) -> None:
        """Ask about pages that are missing in a range of whole mappings. OSError."""
        number = self._call(_REGISTER, start, size, _MODE_MISSING, 0)
        if number:
            raise OSError(number, os.strerror(number))

    # -- pages
    def copy(self, to: int, source: int, size: int) -> tuple[int, int]:
        """Put pages there from an address of ours; how many bytes it became and, where not all, the error's number.

        EAGAIN: a change of the address space is in progress, of which `messages` tells. EEXIST: the next page is there
        already. ENOENT: what follows is not one mapping that was registered. Ended.
        """
        return self._filled(self._call(_COPY, to, source, size, 0, 0), 4, size)

    def zero(self, to: int, size: int) -> tuple[int, int]:
        """The same with zeros."""
        return self._filled(self._call(_ZEROPAGE, to, size, 0, 0), 3, size)

    def fail(self, to: int, size: int) -> tuple[int, int]:
        """The same: whoever touches these pages gets SIGBUS. Only with `poison`."""
        return self._filled(self._call(_POISON, to, size, 0, 0), 3, size)

    def _filled(self, number: int, index: int, size: int) -> tuple[int, int]:
        if not number:
            return size, 0
        if number == errno.ESRCH:
            raise Ended
        done = self._word(index)
        # After a part of it the error is EAGAIN, whatever stopped it: the next call tells what it was.
        return (done, 0) if done > 0 else (0, number)

    def wake(self, start: int, size: int) -> None:
        """Have those who wait in a range look again."""
        self._call(_WAKE, start & -PAGE, size)

    # -- messages
    def messages(self) -> Iterator[Message]:
        """What has happened since. To read of a change lets it go on, so take them before pages are put anywhere.

        (PAGEFAULT, flags, address, 0), (FORK, descriptor of the child's, 0, 0), (REMAP, from, to, size),
        (REMOVE, from, up to, 0): zeros from now on, (UNMAP, from, up to, 0). OSError.
        """
        while True:
            try:
                data = os.read(self.fd, _AT_ONCE)
            except BlockingIOError:
                return
            yield from _MESSAGE.iter_unpack(data)
            if len(data) < _AT_ONCE:
                return
