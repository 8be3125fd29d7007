"""Check the built vDSO image with pyelftools. Run as `python vdso/check.py [IMAGE]`; exits 1 on faults.

What must hold: what the C libraries and Go look for is there and versioned (vdso(7), Go's
runtime/vdso_linux.go, musl's src/internal/vdso.c, glibc's elf/setup-vdso.h), nothing needs relocation,
nothing is writable, and the image is no larger than the host's [vdso] mapping that it takes the place of.
"""

from __future__ import annotations

import os
import struct
import sys
from typing import Any

from elftools.elf.dynamic import DynamicSegment
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerDefSection, GNUVerSymSection
from elftools.elf.sections import SymbolTableSection

HERE = os.path.dirname(os.path.abspath(__file__))
IMAGE_SIZE = 4096
PREFIXED = ("clock_gettime", "gettimeofday", "time", "clock_getres", "getcpu")
SYMBOLS = {f"__vdso_{name}": "STB_GLOBAL" for name in PREFIXED}
SYMBOLS |= {name: "STB_WEAK" for name in PREFIXED}
SYMBOLS["__kernel_rt_sigreturn"] = "STB_GLOBAL"
NEEDED_TAGS = {"DT_SONAME", "DT_HASH", "DT_GNU_HASH", "DT_SYMTAB", "DT_STRTAB", "DT_VERSYM", "DT_VERDEF"}
FORBIDDEN_TAGS = {"DT_NEEDED", "DT_REL", "DT_RELA", "DT_JMPREL", "DT_TEXTREL", "DT_INIT", "DT_FINI"}
PF_X, PF_W, PF_R = 1, 2, 4


def host_vdso_size() -> int:
    """Size of this process's own [vdso] mapping, bytes; 0 without one."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            if line.endswith("[vdso]\n"):
                low, high = line.split(None, 1)[0].split("-")
                return int(high, 16) - int(low, 16)
    return 0


def check_segments(elf: Any) -> list[str]:
    faults: list[str] = []
    loads = [s for s in elf.iter_segments() if s["p_type"] == "PT_LOAD"]
    if len(loads) != 1:
        faults.append(f"{len(loads)} PT_LOAD segments instead of one")
    for segment in elf.iter_segments():
        if segment["p_flags"] & PF_W:
            faults.append(f"writable segment {segment['p_type']}")
    for load in loads:
        if (load["p_offset"], load["p_vaddr"]) != (0, 0):
            faults.append("PT_LOAD does not start at file offset 0, address 0")
        if load["p_flags"] != PF_R | PF_X:
            faults.append("PT_LOAD is not r-x")
        if not 0 < load["p_filesz"] == load["p_memsz"] <= IMAGE_SIZE:
            faults.append(f"PT_LOAD of {load['p_filesz']} bytes, {load['p_memsz']} in memory")
    host = host_vdso_size()
    if host and host < IMAGE_SIZE:
        faults.append(f"the host's [vdso] is only {host} bytes large")
    return faults


def check_dynamic(elf: Any) -> list[str]:
    faults: list[str] = []
    segments = [s for s in elf.iter_segments() if isinstance(s, DynamicSegment)]
    if len(segments) != 1:
        return [f"{len(segments)} PT_DYNAMIC segments instead of one"]
    tags: dict[str, Any] = {tag.entry.d_tag: tag for tag in segments[0].iter_tags()}
    faults += [f"no {name}" for name in sorted(NEEDED_TAGS - tags.keys())]
    faults += [f"has {name}" for name in sorted(FORBIDDEN_TAGS & tags.keys())]
    if "DT_SONAME" in tags and tags["DT_SONAME"].soname != "linux-vdso.so.1":
        faults.append(f"soname {tags['DT_SONAME'].soname}")
    return faults


def check_symbols(elf: Any) -> list[str]:
    faults: list[str] = []
    table = elf.get_section_by_name(".dynsym")
    versions = elf.get_section_by_name(".gnu.version")
    definitions = elf.get_section_by_name(".gnu.version_d")
    if not isinstance(table, SymbolTableSection):
        return ["no .dynsym"]
    if not isinstance(versions, GNUVerSymSection) or not isinstance(definitions, GNUVerDefSection):
        return ["no symbol versions"]
    names: dict[int, str] = {}
    base: set[int] = set()
    for definition, auxiliary in definitions.iter_versions():
        names[definition["vd_ndx"]] = next(iter(auxiliary)).name
        if definition["vd_flags"] & 1:
            base.add(definition["vd_ndx"])
    found: dict[str, Any] = {}
    for index, symbol in enumerate(table.iter_symbols()):
        if not symbol.name or symbol["st_info"]["type"] == "STT_OBJECT":
            continue  # the null symbol, and the version's own
        found[symbol.name] = symbol
        version = versions.get_symbol(index)["ndx"]
        if not isinstance(version, int) or names.get(version) != "LINUX_2.6" or version in base:
            faults.append(f"{symbol.name} is not of version LINUX_2.6")
        if symbol["st_shndx"] == "SHN_UNDEF":
            faults.append(f"{symbol.name} is undefined")
    faults += [f"no symbol {name}" for name in sorted(SYMBOLS.keys() - found.keys())]
    faults += [f"unexpected symbol {name}" for name in sorted(found.keys() - SYMBOLS.keys())]
    for name, symbol in found.items():
        if symbol["st_info"]["type"] != "STT_FUNC" or symbol["st_info"]["bind"] != SYMBOLS.get(name):
            faults.append(f"{name} is {symbol['st_info']['type']} {symbol['st_info']['bind']}")
    return faults


def check_sections(elf: Any) -> list[str]:
    faults: list[str] = []
    for section in elf.iter_sections():
        if section["sh_type"] in ("SHT_REL", "SHT_RELA", "SHT_NOBITS"):
            faults.append(f"section {section.name} of type {section['sh_type']}")
    if elf.get_section_by_name(".eh_frame_hdr") is None:
        faults.append("no .eh_frame_hdr: a profiler could not unwind")
    return faults


def check_info(data: bytes) -> list[str]:
    """The block that platform/vdso_image.py reads: its place and the bytes it points to."""
    if data[0x140:0x148] != b"TRAPVDSO":
        return ["no info block at 0x140"]
    version, size, trampoline, with_call, with_fd, end, setup = struct.unpack_from("<7I", data, 0x148)
    faults: list[str] = []
    if (version, size) != (1, IMAGE_SIZE):
        faults.append(f"info block version {version}, image size {size}")
    if data[0x140 + trampoline : 0x140 + trampoline + 3] != b"\x0f\x05\xcc":
        faults.append("the trampoline is not `syscall; int3`")
    if not with_call < with_fd < end <= setup < IMAGE_SIZE or end - with_call > 64:
        faults.append("loader and set-up are not where the info block says")
    return faults


def check(path: str) -> list[str]:
    """All faults of an image, in words; empty when it is good."""
    with open(path, "rb") as file:
        data = file.read()
        elf: Any = ELFFile(file)
        header = (elf["e_type"], elf["e_machine"], elf.elfclass)
        faults = [] if header == ("ET_DYN", "EM_X86_64", 64) else [f"not an x86-64 shared object: {header}"]
        faults += check_segments(elf) + check_dynamic(elf) + check_symbols(elf) + check_sections(elf)
    return faults + check_info(data)


if __name__ == "__main__":
    target = sys.argv[1] if len(sys.argv) > 1 else os.path.join(HERE, "trapline-vdso.so")
    found_faults = check(target)
    for fault in found_faults:
        print(f"{target}: {fault}", file=sys.stderr)
    if not found_faults:
        print(f"{target}: good")
    sys.exit(1 if found_faults else 0)
