"""Guest memory by process_vm_readv(2) and process_vm_writev(2) only.

They honour the guest's page protections: /proc/PID/mem writes through read-only pages, so a guest's bad
pointer would be written to instead of giving EFAULT.
"""

from __future__ import annotations

import ctypes
import errno
import struct

from trapline.sentry.protocol import Gone

PAGE = 4096
_libc = ctypes.CDLL(None, use_errno=True)


_readv, _writev = _libc.process_vm_readv, _libc.process_vm_writev
_readv.restype = _writev.restype = ctypes.c_ssize_t

# One thread runs the kernel, so one pair of vectors and one buffer serve all. On the path of every call, so
# packed at once and filled through a view: attribute by attribute costs as much as the system call. For the same
# reason no argument types: objects of the right ones, made once, save another 0.8 us.
_vectors = ctypes.create_string_buffer(32)
_local_at = ctypes.c_void_p(ctypes.addressof(_vectors))
_remote_at = ctypes.c_void_p(ctypes.addressof(_vectors) + 16)
_ONE, _ZERO = ctypes.c_ulong(1), ctypes.c_ulong(0)
_pack = struct.Struct("<QQQQ").pack_into
_buffer = ctypes.create_string_buffer(PAGE)
_buffer_at = ctypes.addressof(_buffer)
_view = memoryview(_buffer).cast("B")
_string_at = ctypes.string_at


class GuestMemory:
    """The memory of one host task."""

    __slots__ = ("host",)

    def __init__(self, host: int) -> None:
        self.host = host

    def read(self, address: int, size: int) -> bytes:
        """Exactly `size` bytes. OSError(EFAULT); Gone."""
        if size <= 0:
            return b""
        if size <= PAGE:
            at, keep = _buffer_at, None
        else:
            keep = ctypes.create_string_buffer(size)
            at = ctypes.addressof(keep)
        _pack(_vectors, 0, at, size, address, size)
        done = _readv(self.host, _local_at, _ONE, _remote_at, _ONE, _ZERO)
        if done != size:
            self._failed(done, address)
        return _string_at(at, size) if keep is not None else bytes(_view[:size])

    def write(self, address: int, data: bytes) -> None:
        """All of `data`. OSError(EFAULT); Gone."""
        size = len(data)
        if not size:
            return
        if size <= PAGE:
            _view[:size] = data
            _pack(_vectors, 0, _buffer_at, size, address, size)
        else:
            keep = ctypes.create_string_buffer(data, size)
            _pack(_vectors, 0, ctypes.addressof(keep), size, address, size)
        done = _writev(self.host, _local_at, _ONE, _remote_at, _ONE, _ZERO)
        if done != size:
            self._failed(done, address)

    def read_string(self, address: int, limit: int = 4096) -> bytes:
        """Up to a NUL byte, which is left out. OSError(EFAULT), OSError(ENAMETOOLONG); Gone."""
        found = bytearray()
        while len(found) < limit:
            size = min(PAGE - (address & (PAGE - 1)), limit - len(found))
            part = self.read(address, size)
            end = part.find(b"\0")
            if end >= 0:
                return bytes(found + part[:end])
            found += part
            address += size
        raise OSError(errno.ENAMETOOLONG, "string")

    def _failed(self, done: int, address: int) -> None:
        number = ctypes.get_errno() if done < 0 else errno.EFAULT
        if number == errno.ESRCH:
            raise Gone(self.host)
        raise OSError(errno.EFAULT, f"guest address {address:#x}")
