"""A core as bytes, read back by another reader of ELF files."""

from __future__ import annotations

import io
import struct

from elftools.elf.elffile import ELFFile

from trapline.sentry.kernel import core_elf
from trapline.sentry.kernel.core_elf import PAGE, Mapping, Process, Thread

SIGINFO = struct.pack("<iii", 11, 0, 1).ljust(128, b"\0")


def process(mappings: list[Mapping]) -> Process:
    threads = [Thread(7, bytes(range(216)), b"f" * 512, b"x" * 832, blocked=0x200), Thread(8, bytes(216))]
    return Process(SIGINFO, threads, mappings, 7, 1, 7, 5, 1000, 1001, b"a long program's name", b"prog -x", b"A" * 32,
                   (1_500_000, 20_000, 0, 0))  # fmt: skip


def mapping(number: int, pages: int, dumped: int, file: bytes = b"") -> Mapping:
    return Mapping(number << 20, (number << 20) + pages * PAGE, True, False, True, dumped * PAGE, file, PAGE)


def test_what_it_says() -> None:
    mappings = [mapping(1, 4, 4, b"/bin/prog"), mapping(2, 9, 0), mapping(3, 2, 1)]
    head, pieces = core_elf.layout(process(mappings))
    elf = ELFFile(io.BytesIO(head.ljust(1 << 16, b"\0")))
    assert elf["e_type"] == "ET_CORE" and elf["e_machine"] == "EM_X86_64"
    notes, *loads = elf.iter_segments()
    assert [(s["p_vaddr"], s["p_memsz"], s["p_filesz"], s["p_flags"]) for s in loads] == [
        (1 << 20, 4 * PAGE, 4 * PAGE, 5), (2 << 20, 9 * PAGE, 0, 5), (3 << 20, 2 * PAGE, PAGE, 5)
    ]  # fmt: skip
    assert [(loads[0]["p_offset"], 1 << 20, 4 * PAGE, True), (loads[2]["p_offset"], 3 << 20, PAGE, False)] == pieces
    assert all(s["p_offset"] % PAGE == 0 for s in loads) and pieces[0][0] >= len(head)

    found = [(n["n_name"], n["n_type"]) for n in notes.iter_notes()]
    assert found == [
        ("CORE", "NT_PRSTATUS"), ("CORE", "NT_PRPSINFO"), ("CORE", "NT_SIGINFO"), ("CORE", "NT_AUXV"),
        ("CORE", "NT_FILE"), ("CORE", "NT_FPREGSET"), ("LINUX", 0x202), ("CORE", "NT_PRSTATUS"),
    ]  # fmt: skip
    by_kind = {n["n_type"]: n for n in notes.iter_notes()}
    info = by_kind["NT_PRPSINFO"]["n_desc"]
    assert (info["pr_pid"], info["pr_uid"], info["pr_gid"]) == (7, 1000, 1001)
    assert info["pr_fname"] == b"a long program'\0" and info["pr_psargs"].rstrip(b"\0") == b"prog -x"
    (entry,) = by_kind["NT_FILE"]["n_desc"]["Elf_Nt_File_Entry"]
    assert (entry["vm_start"], entry["vm_end"], entry["page_offset"]) == (1 << 20, (1 << 20) + 4 * PAGE, 1)
    assert by_kind["NT_FILE"]["n_desc"]["filename"] == [b"/bin/prog"]
    first = next(n["n_descdata"] for n in notes.iter_notes() if n["n_type"] == "NT_PRSTATUS")
    assert len(first) == 336 and first[112:328] == bytes(range(216))
    assert struct.unpack_from("<iiih", first) == (11, 1, 0, 11), "si_signo, si_code, si_errno, pr_cursig"
    assert struct.unpack_from("<Q4i2q", first, 24) == (0x200, 7, 1, 7, 5, 1, 500_000)


def test_more_mappings_than_the_header_can_count() -> None:
    many = [Mapping(n * PAGE, (n + 1) * PAGE, True, True, False, 0) for n in range(1, 70_000)]
    head, pieces = core_elf.layout(process(many))
    elf = ELFFile(io.BytesIO(head))
    assert elf.header["e_phnum"] == 0xFFFF and elf.num_segments() == 70_000 and pieces == []
