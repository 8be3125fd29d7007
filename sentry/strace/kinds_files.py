"""Arguments of calls on files, memory and terminals."""

from __future__ import annotations

import struct

from trapline.sentry.strace.call import MAX_ARRAY, Call
from trapline.sentry.strace.kinds import array, bytes_at, decoder, late, of_result, string_at, structure
from trapline.sentry.strace.names import flags, group, hexadecimal, one
from trapline.sentry.strace.structs import open_flags, show, size_of
from trapline.sentry.strace.text import LIMIT, mode, octal, pointer

O_CREAT, O_TMPFILE = 0o100, 0o20000000
MREMAP_FIXED = 2
_MAP_TYPE = 0xF
_TERMIOS_C = {"ospeed": {0: "B0", 11: "B2400", 12: "B4800", 13: "B9600", 14: "B19200", 15: "B38400",
                         0x1001: "B57600", 0x1002: "B115200", 0x1003: "B230400"}}  # fmt: skip


@decoder("open")
def _open(call: Call, value: int) -> str:
    return open_flags(value & 0xFFFFFFFF)


@decoder("creation")
def _creation(call: Call, value: int, how: int) -> str | None:
    return octal(value) if how & (O_CREAT | O_TMPFILE) else None


@decoder("access")
def _access(call: Call, value: int) -> str:
    return flags("access", value) if value else "F_OK"


@decoder("statx_flags")
def _statx_flags(call: Call, value: int) -> str:
    sync = "" if value & 0x6000 else "AT_STATX_SYNC_AS_STAT"
    return "|".join([text for text in (sync, flags("at", value) if value else "") if text])


@decoder("statx")
def _statx(call: Call, value: int) -> str:
    data = call.read(value, 256) if value else None
    if data is None:
        return pointer(value)
    mask, _, attributes = struct.unpack_from("<IIQ", data)
    (file_mode,) = struct.unpack_from("<H", data, 28)
    (size,) = struct.unpack_from("<Q", data, 40)
    return (
        f"{{stx_mask={flags('statxmask', mask)}, stx_attributes={flags('statxattr', attributes)}, "
        f"stx_mode={mode(file_mode)}, stx_size={size}, ...}}"
    )


@decoder("open_how")
def _open_how(call: Call, value: int) -> str:
    data = call.read(value, size_of("open_how")) if value else None
    if data is None:
        return pointer(value)
    how, file_mode, resolve = struct.unpack("<QQQ", data)
    extra = f", mode={octal(file_mode)}" if how & (O_CREAT | O_TMPFILE) or file_mode else ""
    return f"{{flags={open_flags(how)}{extra}, resolve={flags('resolve', resolve)}}}"


def _pair(call: Call, value: int, name: str) -> str:
    return array(call, value, 2, size_of(name), lambda data: _time(name, data))


def _time(name: str, data: bytes) -> str:
    if name == "timespec":
        special = {(1 << 30) - 1: "UTIME_NOW", (1 << 30) - 2: "UTIME_OMIT"}.get(struct.unpack("<qq", data)[1])
        if special:
            return special
    return show(name, data)


@decoder("timespecs")
def _timespecs(call: Call, value: int) -> str:
    return _pair(call, value, "timespec")


@decoder("timevals")
def _timevals(call: Call, value: int) -> str:
    return _pair(call, value, "timeval")


# -- vectors


def vector(call: Call, address: int, count: int, available: int | None) -> str:
    """struct iovec: with the bytes, of which `available` are filled (None: all)."""
    if not address:
        return "NULL"
    data = call.read(address, min(count, MAX_ARRAY) * 16) if 0 < count <= 1024 else None
    if data is None:
        return "[]" if count == 0 else pointer(address)
    shown = []
    left = available
    for at in range(0, len(data), 16):
        base, size = struct.unpack_from("<QQ", data, at)
        filled = size if left is None else min(size, left)
        if left is not None:
            left -= filled
        shown.append(f"{{iov_base={bytes_at(call, base, filled)}, iov_len={size}}}")
    if count > MAX_ARRAY:
        shown.append("...")
    return f"[{', '.join(shown)}]"


@decoder("vector")
def _vector(call: Call, value: int, count: int) -> str:
    reads = call.row.name.endswith(("readv", "readv2"))
    return vector(call, value, count, call.result if reads else None)


@decoder("vector_addresses")
def _vector_addresses(call: Call, value: int, count: int) -> str:
    def element(data: bytes) -> str:
        base, size = struct.unpack("<QQ", data)
        return f"{{iov_base={pointer(base)}, iov_len={size}}}"

    return array(call, value, count, 16, element)


# -- directories


def _entries(call: Call, address: int, name_length: int) -> str:
    data = call.read(address, call.result) if call.result else b""
    if data is None:
        return pointer(address)
    at = count = 0
    while at + name_length + 2 <= len(data):
        (length,) = struct.unpack_from("<H", data, at + name_length)
        if not length:
            break
        at += length
        count += 1
    return f"{pointer(address)} /* {count} entries */"


@decoder("entries")
def _dents(call: Call, value: int, size: int) -> str:
    return _entries(call, value, 16)


@decoder("entries64")
def _dents64(call: Call, value: int, size: int) -> str:
    return _entries(call, value, 16)


# -- fcntl and ioctl

F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC, F_ADD_SEALS, F_GET_SEALS = 0, 1, 2, 3, 4, 1030, 1033, 1034
_LOCKS = frozenset({5, 6, 7, 36, 37, 38})
_GETLK = frozenset({5, 36})
_NO_ARGUMENT = frozenset({1, 3, 9, 11, 1025, 1032, 1034})
F_SETSIG = 10


@late("fcntl_argument")
def _fcntl_late(call: Call) -> bool:
    return call.args[1] in _GETLK


@decoder("fcntl_argument", even_failed=True)
def _fcntl_argument(call: Call, value: int, command: int) -> str | None:
    if command in _NO_ARGUMENT:
        return None
    if command == F_SETFD:
        return flags("fdflags", value)
    if command == F_SETFL:
        return open_flags(value & 0xFFFFFFFF)
    if command == F_ADD_SEALS:
        return flags("seals", value)
    if command in _LOCKS:
        if command in _GETLK:
            return pointer(value) if call.failed else structure(call, value, "flock_found")
        return structure(call, value, "flock")
    if command in (F_DUPFD, F_DUPFD_CLOEXEC, 8, 1026, 1031, 1024):
        return str(value & 0xFFFFFFFF)
    if command == F_SETSIG:
        from trapline.sentry.strace.text import signal_name

        return signal_name(value) if value else "0"
    return hexadecimal(value)


@of_result("fcntl_result")
def _fcntl_result(call: Call, command: int) -> str:
    if command == F_GETFD and call.result:
        return f"{call.result:#x} (flags {flags('fdflags', call.result)})"
    if command == F_GETFL:
        return f"{hexadecimal(call.result)} (flags {open_flags(call.result)})"
    if command == F_GET_SEALS and call.result:
        return f"{call.result:#x} (seals {flags('seals', call.result)})"
    if command in (F_DUPFD, F_DUPFD_CLOEXEC):
        return call.descriptor(call.result)
    return str(call.result)


@decoder("ioctl")
def _ioctl(call: Call, value: int) -> str:
    names = dict(group("ioctl"))
    if value in names:
        return names[value]
    directions = ("_IOC_NONE", "_IOC_WRITE", "_IOC_READ", "_IOC_READ|_IOC_WRITE")
    size = value >> 16 & 0x3FFF
    return (
        f"_IOC({directions[value >> 30 & 3]}, {hexadecimal(value >> 8 & 0xFF)}, {hexadecimal(value & 0xFF)}, "
        f"{hexadecimal(size)})"
    )


_INT_OUT = frozenset({0x540F, 0x541B, 0x5429, 0x80045430, 0x5424, 0x5411, 0x80045432, 0x80045440})
_INT_IN = frozenset({0x5410, 0x5421, 0x5452, 0x40045431, 0x5423, 0x5420})
_TERMIOS = frozenset({0x5401, 0x5402, 0x5403, 0x5404, 0x802C542A, 0x402C542B, 0x402C542C, 0x402C542D})
_TERMIOS_OUT = frozenset({0x5401, 0x802C542A})
TIOCGWINSZ, TIOCSWINSZ, TIOCSTI = 0x5413, 0x5414, 0x5412
_CHOICES = {0x540B: "tcflsh", 0x540A: "tcxonc"}


@late("ioctl_argument")
def _ioctl_late(call: Call) -> bool:
    return call.args[1] in _INT_OUT or call.args[1] in _TERMIOS_OUT or call.args[1] == TIOCGWINSZ


@decoder("ioctl_argument", even_failed=True)
def _ioctl_argument(call: Call, value: int, command: int) -> str | None:
    if command in _TERMIOS:
        return pointer(value) if call.failed and command in _TERMIOS_OUT else _termios(call, value)
    if command == TIOCSWINSZ or (command == TIOCGWINSZ and not call.failed):
        return structure(call, value, "winsize")
    if command in _INT_IN or (command in _INT_OUT and not call.failed):
        number = call.number(value, "<i") if value else None
        return f"[{number}]" if number is not None else pointer(value)
    if command in _CHOICES:
        return one(_CHOICES[command], value)
    if command == TIOCSTI:
        return bytes_at(call, value, 1)
    if command in (0x540E, 0x5409, 0x5425):
        return str(value)
    if command in (0x5450, 0x5451, 0x5422, 0x5427, 0x5428, 0x540C, 0x540D):
        return None
    return hexadecimal(value) if value else "0"


def _termios(call: Call, address: int) -> str:
    data = call.read(address, 36) if address else None
    if data is None:
        return pointer(address)
    _, output, control, local = struct.unpack_from("<4I", data)
    speeds = _TERMIOS_C["ospeed"]
    speed = speeds.get(control & 0o10017, f"{control & 0o10017:#x}")
    words = [("opost", output & 1), ("isig", local & 1), ("icanon", local & 2), ("echo", local & 8)]
    return f"{{{speed} {' '.join([name if on else '-' + name for name, on in words])} ...}}"


# -- memory


@decoder("map_flags")
def _map_flags(call: Call, value: int) -> str:
    kind = one("maptype", value & _MAP_TYPE)
    rest = value & ~_MAP_TYPE
    return f"{kind}|{flags('mapflags', rest)}" if rest else kind


@decoder("mremap_address")
def _mremap_address(call: Call, value: int, how: int) -> str | None:
    return pointer(value) if how & MREMAP_FIXED else None


@decoder("ipc_flags")
def _ipc_flags(call: Call, value: int) -> str:
    rest = value & ~0o777
    return f"{flags('ipcflags', rest)}|{octal(value & 0o777)}" if rest else octal(value & 0o777)


@decoder("sembufs")
def _sembufs(call: Call, value: int, count: int) -> str:
    return array(call, value, count, size_of("sembuf"), lambda data: show("sembuf", data))


@decoder("argv")
def _argv(call: Call, value: int) -> str:
    """execve's arguments, up to 32 of them."""
    if not value:
        return "NULL"
    shown: list[str] = []
    for at in range(LIMIT + 1):
        address = call.number(value + 8 * at, "<Q")
        if address is None:
            return pointer(value) if not at else f"[{', '.join([*shown, '...'])}]"
        if not address:
            return f"[{', '.join(shown)}]"
        if at < LIMIT:
            shown.append(string_at(call, address))
    return f"[{', '.join([*shown, '...'])}]"


@decoder("envp")
def _envp(call: Call, value: int) -> str:
    if not value:
        return "NULL"
    count = 0
    while True:
        data = call.read(value + 8 * count, 8)
        if data is None:
            return f"{pointer(value)} /* {count} vars, unterminated */" if count else pointer(value)
        if data == bytes(8):
            return f"{pointer(value)} /* {count} var{'' if count == 1 else 's'} */"
        count += 1


