"""A core file as bytes: headers and notes of an ELF core of x86-64 (core(5), Linux fs/binfmt_elf.c), from plain data.

The platform gathers what is needed and copies the memory; here is only what a debugger must find where.
"""

from __future__ import annotations

import struct

import msgspec

PAGE = 4096
_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_SHDR = struct.Struct("<IIQQQQIIQQ")
_NOTE = struct.Struct("<III")
_ET_CORE, _EM_X86_64, _PT_LOAD, _PT_NOTE = 4, 62, 1, 4
_PN_XNUM = 0xFFFF  # so many program headers and more are counted in section 0

NT_PRSTATUS, NT_PRFPREG, NT_PRPSINFO, NT_AUXV, NT_XSTATE = 1, 2, 3, 6, 0x202
NT_SIGINFO, NT_FILE = 0x53494749, 0x46494C45

#: struct elf_prstatus around its registers: si_signo, si_code, si_errno, pr_cursig, pending, blocked, ids, times.
_PRSTATUS = struct.Struct("<iiihxxQQiiii8q")
_PRPSINFO = struct.Struct("<bcbbxxxxQIIiiii16s80s")


class Thread(msgspec.Struct):
    """One thread: register sets as the host gives them (PTRACE_GETREGSET)."""

    tid: int
    registers: bytes  # NT_PRSTATUS's, 27 words
    floating: bytes = b""  # NT_PRFPREG
    extended: bytes = b""  # NT_X86_XSTATE
    blocked: int = 0
    pending: int = 0


class Mapping(msgspec.Struct):
    """One mapping, and how much of it from its start is in the file."""

    start: int
    end: int
    readable: bool
    writable: bool
    executable: bool
    dumped: int  # bytes
    file: bytes = b""  # its path, for NT_FILE
    offset: int = 0  # in the file, bytes


class Process(msgspec.Struct):
    """What a core says of a process. `threads` begins with the one that the signal hit."""

    siginfo: bytes
    threads: list[Thread]
    mappings: list[Mapping]
    pid: int
    ppid: int
    pgid: int
    sid: int
    uid: int
    gid: int
    name: bytes
    arguments: bytes
    auxv: bytes
    times: tuple[int, int, int, int] = (0, 0, 0, 0)  # user, system, of children the same; us


def layout(process: Process) -> tuple[bytes, list[tuple[int, int, int, bool]]]:
    """(the file's beginning, [(offset in the core, address, size, whether of a file) of each piece of memory])."""
    notes = _notes(process)
    count = len(process.mappings) + 1
    extended = count >= _PN_XNUM
    at = _EHDR.size + count * _PHDR.size
    headers = [_PHDR.pack(_PT_NOTE, 0, at, 0, 0, len(notes), 0, 4)]
    data = _rounded(at + len(notes) + (_SHDR.size if extended else 0))
    section = at + len(notes)
    pieces = []
    for mapping in process.mappings:
        flags = mapping.readable << 2 | mapping.writable << 1 | mapping.executable
        size = mapping.end - mapping.start
        headers.append(_PHDR.pack(_PT_LOAD, flags, data, mapping.start, 0, mapping.dumped, size, PAGE))
        if mapping.dumped:
            pieces.append((data, mapping.start, mapping.dumped, bool(mapping.file)))
            data += _rounded(mapping.dumped)
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    first = _EHDR.pack(
        ident, _ET_CORE, _EM_X86_64, 1, 0, _EHDR.size, section if extended else 0, 0, _EHDR.size, _PHDR.size,
        _PN_XNUM if extended else count, _SHDR.size if extended else 0, int(extended), 0,
    )  # fmt: skip
    last = _SHDR.pack(0, 0, 0, 0, 0, int(extended), 0, count, 0, 0) if extended else b""
    return first + b"".join(headers) + notes + last, pieces


def _rounded(size: int) -> int:
    return -(-size // PAGE) * PAGE


def _note(kind: int, data: bytes, owner: bytes = b"CORE") -> bytes:
    name = owner + b"\0"
    return (
        _NOTE.pack(len(name), len(data), kind) + name.ljust(-(-len(name) // 4) * 4, b"\0")
        + data.ljust(-(-len(data) // 4) * 4, b"\0")
    )  # fmt: skip


def _notes(process: Process) -> bytes:
    """The order is Linux's: what is of the process stands behind the first thread's registers."""
    found = []
    for index, thread in enumerate(process.threads):
        found.append(_note(NT_PRSTATUS, _prstatus(process, thread)))
        if index == 0:
            found += [
                _note(NT_PRPSINFO, _prpsinfo(process)),
                _note(NT_SIGINFO, process.siginfo[:128].ljust(128, b"\0")),
                _note(NT_AUXV, process.auxv),
                _note(NT_FILE, _files(process.mappings)),
            ]
        if thread.floating:
            found.append(_note(NT_PRFPREG, thread.floating))
        if thread.extended:
            found.append(_note(NT_XSTATE, thread.extended, b"LINUX"))
    return b"".join(found)


def _prstatus(process: Process, thread: Thread) -> bytes:
    signo, errno, code = struct.unpack_from("<iii", process.siginfo)
    times: list[int] = []
    for microseconds in process.times:
        times += divmod(microseconds, 1_000_000)
    head = _PRSTATUS.pack(
        signo, code, errno, signo, thread.pending, thread.blocked, thread.tid, process.ppid, process.pgid,
        process.sid, *times,
    )  # fmt: skip
    return head + thread.registers + struct.pack("<ixxxx", bool(thread.floating))


def _prpsinfo(process: Process) -> bytes:
    return _PRPSINFO.pack(
        0, b"R", 0, 0, 0, process.uid, process.gid, process.pid, process.ppid, process.pgid, process.sid,
        process.name[:15], process.arguments[:79],
    )  # fmt: skip


def _files(mappings: list[Mapping]) -> bytes:
    files = [mapping for mapping in mappings if mapping.file]
    table = b"".join(struct.pack("<QQQ", m.start, m.end, m.offset // PAGE) for m in files)
    return struct.pack("<QQ", len(files), PAGE) + table + b"".join(m.file + b"\0" for m in files)
