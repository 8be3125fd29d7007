"""Structures of the kernel's interface, described by their fields.

A field is `name:format`, with the format letters of the struct module, `{other}` for a structure inside, and
after a slash how the number is shown: `x` hexadecimal, `p` an address, `mode`, `dev`, `sig`, `lim`, `f=GROUP`
flags, `e=GROUP` one constant. Fields lie where C puts them on x86-64 (natural alignment). `-name` is skipped.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import cache

from trapline.sentry.strace.names import flags, hexadecimal, one
from trapline.sentry.strace.text import device, mode, pointer, signal_name

RLIM_INFINITY = (1 << 64) - 1

LAYOUTS = {
    "timespec": "tv_sec:q tv_nsec:q",
    "timeval": "tv_sec:q tv_usec:q",
    "timezone": "tz_minuteswest:i tz_dsttime:i",
    "itimerspec": "it_interval:{timespec} it_value:{timespec}",
    "itimerval": "it_interval:{timeval} it_value:{timeval}",
    "utimbuf": "actime:q modtime:q",
    "tms": "tms_utime:q tms_stime:q tms_cutime:q tms_cstime:q",
    "rlimit": "rlim_cur:Q/lim64 rlim_max:Q/lim64",
    "rlimit64": "rlim_cur:Q/lim64 rlim_max:Q/lim64",
    "rusage": "ru_utime:{timeval} ru_stime:{timeval} -maxrss:q -rest:q*13",
    "stat": "-dev:Q -ino:Q -nlink:Q st_mode:I/mode -uid:I -gid:I -pad:I st_rdev:Q/dev st_size:q -rest:q*11",
    "statfs": "f_type:q/e=fstype f_bsize:q f_blocks:Q f_bfree:Q f_bavail:Q f_files:Q f_ffree:Q "
    "f_fsid:{fsid} f_namelen:q f_frsize:q f_flags:q/f=statfsflags -spare:q*4",
    "fsid": "-a:I -b:I",
    "sysinfo": "uptime:q loads:Q*3 totalram:Q freeram:Q sharedram:Q bufferram:Q totalswap:Q freeswap:Q procs:H "
    "-pad:H totalhigh:Q freehigh:Q mem_unit:I -end:I",
    "stack": "ss_sp:Q/p ss_flags:i/f=ssflags ss_size:Q",
    "flock": "l_type:h/e=locktype l_whence:h/e=whence l_start:q l_len:q -pid:i",
    "flock_found": "l_type:h/e=locktype l_whence:h/e=whence l_start:q l_len:q l_pid:i",
    "winsize": "ws_row:H ws_col:H ws_xpixel:H ws_ypixel:H",
    "linger": "l_onoff:i l_linger:i",
    "ucred": "pid:i uid:I gid:I",
    "cap_header": "version:I/x pid:i",
    "timex": "modes:I/f=adjmodes offset:q freq:q maxerror:q esterror:q status:i/f=timexstatus constant:q "
    "precision:q tolerance:q time:{timeval} tick:q ppsfreq:q jitter:q shift:i stabil:q jitcnt:q calcnt:q errcnt:q "
    "stbcnt:q tai:i -rest:i*11",
    "open_how": "flags:Q/open mode:Q/octal resolve:Q/f=resolve",
    "sembuf": "sem_num:H sem_op:h sem_flg:h/f=ipcflags",
    "statx_timestamp": "tv_sec:q tv_nsec:I -pad:i",
}

#: What strace leaves out at the end, unless asked for all.
ABBREVIATED = {"stat", "rusage"}

Show = Callable[[int], str]
#: name ("" when it is skipped), offset, size, count, letter, inner layout, how it is shown
Field = tuple[str, int, int, int, str, str, Show]


def limit(value: int, infinity: str = "RLIM_INFINITY") -> str:
    """A resource limit: in units of 1024 where it is one."""
    if value == RLIM_INFINITY:
        return infinity
    return f"{value // 1024}*1024" if value > 1024 and value % 1024 == 0 else str(value)


def open_flags(value: int) -> str:
    """The flags of open(2): the access mode first, which is a number of two bits."""
    access = ("O_RDONLY", "O_WRONLY", "O_RDWR", "O_ACCMODE")[value & 3]
    rest = value & ~3
    return f"{access}|{flags('open', rest)}" if rest else access


def _show(how: str) -> Show:
    kind, _, name = how.partition("=")
    if kind == "f":
        return lambda value: flags(name, value & 0xFFFFFFFFFFFFFFFF)
    if kind == "e":
        return lambda value: one(name, value)
    shows: dict[str, Show] = {
        "": str, "x": hexadecimal, "p": pointer, "mode": mode, "dev": device, "sig": signal_name,
        "lim": limit, "lim64": lambda value: limit(value, "RLIM64_INFINITY"), "open": open_flags,
        "octal": lambda value: f"{value:#o}".replace("0o", "0") if value else "0",
    }  # fmt: skip
    return shows[kind]


@cache
def layout(name: str) -> tuple[tuple[Field, ...], int]:
    """The fields of a structure and its size. KeyError."""
    fields: list[Field] = []
    offset = 0
    widest = 1
    for text in LAYOUTS[name].split():
        label, _, kind = text.partition(":")
        kind, _, how = kind.partition("/")
        kind, _, count = kind.partition("*")
        inner = kind[1:-1] if kind.startswith("{") else ""
        if inner:
            inner_fields, size = layout(inner)
            align = max(field[2] if not field[5] else 8 for field in inner_fields)
        else:
            size = align = struct.calcsize(kind)
        offset = -(-offset // align) * align
        widest = max(widest, align)
        times = int(count or 1)
        fields.append(
            ("" if label.startswith("-") else label, offset, size, times, "" if inner else kind, inner, _show(how))
        )
        offset += size * times
    return tuple(fields), -(-offset // widest) * widest


def size_of(name: str) -> int:
    """The size of a structure, bytes."""
    return layout(name)[1]


def show(name: str, data: bytes, at: int = 0) -> str:
    """A structure in braces."""
    if name == "fsid":
        first, second = struct.unpack_from("<II", data, at)
        return f"{{val=[{hexadecimal(first)}, {hexadecimal(second)}]}}"
    parts = []
    values: dict[str, int] = {}
    for label, offset, _, count, letter, inner, how in layout(name)[0]:
        if not label:
            continue
        if inner:
            parts.append(f"{label}={show(inner, data, at + offset)}")
        elif count > 1:
            numbers = struct.unpack_from(f"<{count}{letter}", data, at + offset)
            parts.append(f"{label}=[{', '.join([how(number) for number in numbers])}]")
        else:
            (value,) = struct.unpack_from(f"<{letter}", data, at + offset)
            values[label] = value
            parts.append(f"{label}={how(value)}")
    if name == "stat":
        # A device has a number where a file has a size.
        is_device = values["st_mode"] & 0o170000 in (0o020000, 0o060000)
        parts = [part for part in parts if not part.startswith("st_size" if is_device else "st_rdev")]
    if name in ABBREVIATED:
        parts.append("...")
    return f"{{{', '.join(parts)}}}"
