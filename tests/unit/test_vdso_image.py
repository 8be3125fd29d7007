"""The vDSO image: its ELF form, the host's facts filled in, the plan of an exec, the initial stack."""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trapline.platform import vdso_image as vi
from trapline.sentry.time.parameter_page import PageValues, ParameterPage, encode

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc builds the image")


@pytest.fixture(scope="module")
def path() -> str:
    subprocess.run([sys.executable, ROOT / "vdso" / "build.py"], check=True, stdout=subprocess.DEVNULL)
    return str(ROOT / "vdso" / "trapline-vdso.so")


@pytest.fixture
def image(path: str) -> vi.VdsoImage:
    return vi.VdsoImage(path)


def run_check(target: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "vdso" / "check.py"), target]
    return subprocess.run(command, capture_output=True, text=True)


def test_check_accepts_the_image_and_nothing_else(path: str, tmp_path: Path) -> None:
    assert run_check(path).stderr == ""
    broken = tmp_path / "broken.so"
    data = bytearray(Path(path).read_bytes())
    data[64 + 4] |= 2  # PF_W on the first program header
    data[0x140] ^= 1
    broken.write_bytes(data)
    result = run_check(str(broken))
    assert result.returncode == 1
    assert "writable segment" in result.stderr and "info block" in result.stderr


def test_reader_agrees_with_the_loader(image: vi.VdsoImage) -> None:
    """Our ELF reader finds the host's functions where ctypes finds them."""
    vdso = ctypes.CDLL("linux-vdso.so.1")
    address = ctypes.cast(vdso["__vdso_clock_gettime"], ctypes.c_void_p).value
    maps = Path("/proc/self/maps").read_text()
    base = next(int(line.split("-")[0], 16) for line in maps.splitlines() if line.endswith("[vdso]"))
    assert address == base + image.host.symbols["__vdso_clock_gettime"]


def test_host_layout(image: vi.VdsoImage) -> None:
    host = image.host
    assert host.mappings[-1] == (0, host.size)
    assert sum(length for _, length in host.mappings) == host.total == host.size - host.mappings[0][0]
    assert set(vi.HOST_FUNCTIONS) <= host.symbols.keys()
    # The loader must not lie over code.
    assert all(not host.spare <= start < host.spare + 64 for start in host.symbols.values())
    assert host.spare % 8 == 0 and host.spare + host.spare_size <= host.size


def test_memfd_holds_page_image_and_image_as_built(image: vi.VdsoImage, path: str) -> None:
    page, ours, built = (os.pread(image.descriptor, vi.PAGE, vi.PAGE * i) for i in range(3))
    assert page == bytes(vi.PAGE)
    assert ours[:16] == b"\x7fELF\x02\x01\x01" + bytes(9)
    words = struct.unpack_from("<4q", ours, vi.INFO + 40)
    for name, word in zip(vi.HOST_FUNCTIONS, words, strict=True):
        # From the info block to the host's function, once its mappings lie directly below where they were.
        assert vi.INFO + word == image.host.symbols[name] - image.host.total
    # As built the words lead to calls within the image.
    assert all(0 < word < vi.PAGE for word in struct.unpack_from("<4q", built, vi.INFO + 40))
    assert struct.unpack_from("<Q", built, 40) == (0,)  # section headers are not mapped
    changed = [at for at in range(vi.PAGE) if ours[at] != built[at]]
    assert vi.INFO + 40 <= min(changed) <= max(changed) < vi.INFO + 72
    assert built[:40] == Path(path).read_bytes()[:40]


def test_guest_can_not_write(image: vi.VdsoImage) -> None:
    with pytest.raises(OSError):
        os.pwrite(image.descriptor, b"x", 0)
    with pytest.raises(PermissionError):
        mmap.mmap(image.descriptor, vi.PAGE)
    again = os.open(f"/proc/self/fd/{image.descriptor}", os.O_RDWR)
    try:
        with pytest.raises(PermissionError):
            os.pwrite(again, b"x", 0)
        with pytest.raises(PermissionError):
            mmap.mmap(again, vi.PAGE)
        with pytest.raises(PermissionError):
            os.ftruncate(again, 0)
    finally:
        os.close(again)


def test_page_is_written_through(image: vi.VdsoImage) -> None:
    with mmap.mmap(image.descriptor, vi.PAGE, prot=mmap.PROT_READ) as guest:
        page = ParameterPage(image.write_page)
        page.publish(PageValues(rate_num=1, rate_den=2))
        assert guest[:320] == image.read_page(320) == encode(PageValues(rate_num=1, rate_den=2), 2)
        image.close()
        image.close()
        assert guest[0] == 2


def test_exec_plan(image: vi.VdsoImage) -> None:
    base = 0x7F00_0000_0000
    plan = image.exec_plan(base, carrier=111, last_call=15)
    with_fd = image.exec_plan(base, descriptor=7)
    assert plan.poke_address == base + image.host.spare == plan.registers["rip"]
    assert plan.poke_address % 8 == 0 and len(plan.poke_bytes) % 8 == 0
    assert plan.poke_bytes[3:5] == b"\x0f\x05"
    assert with_fd.registers["rip"] > plan.registers["rip"]
    assert (plan.registers["r8"], plan.registers["r15"]) == (111, 15)
    assert (with_fd.registers["r8"], with_fd.registers["r15"]) == (7, vi.GETPID)
    assert plan.image_base == base and plan.page_address == base - vi.PAGE
    assert plan.host_base == base - image.host.total
    assert plan.trampoline == image.trampoline(base)
    at = plan.trampoline - base
    assert os.pread(image.descriptor, 3, vi.PAGE + at) == b"\x0f\x05\xcc"
    # First copy, then the range for the host's mappings, which ends where they begin.
    assert plan.registers["rdi"] + plan.registers["rsi"] == base + image.host.mappings[0][0]
    for arguments in ({}, {"carrier": 1, "descriptor": 1}):
        with pytest.raises(ValueError, match="exactly one"):
            image.exec_plan(base, **arguments)


def test_setup_failure() -> None:
    assert vi.setup_failure(vi.STATUS_DONE, 0x7F00_0000_0000) is None
    assert "Bad file descriptor" in str(vi.setup_failure(vi.STATUS_LOADER, (1 << 64) - 9))
    assert "moving" in str(vi.setup_failure(vi.STATUS_UNTOUCHED, (1 << 64) - 1))


def test_no_or_strange_host_vdso() -> None:
    line = "7fff00000000-7fff00002000 r-xp 00000000 00:00 0 [vdso]\n"
    for maps in ("", line, "7ffe00000000-7ffe00004000 r--p 00000000 00:00 0 [vvar]\n" + line):
        with pytest.raises(OSError, match="vDSO"):
            vi.parse_host_vdso(maps, lambda address, size: b"")
    with pytest.raises(ValueError, match="ELF"):
        vi.elf_symbols(bytes(4096))


def test_wrong_image_version(path: str, tmp_path: Path) -> None:
    data = bytearray(Path(path).read_bytes())
    data[0x148] = 99
    wrong = tmp_path / "wrong.so"
    wrong.write_bytes(data)
    with pytest.raises(ValueError, match="version"):
        vi.VdsoImage(str(wrong))


class Stack:
    """An initial stack that ends soon behind the auxiliary vector, and refuses to read across a page."""

    def __init__(self, top: int, argc: int, envc: int, auxv: list[tuple[int, int]]) -> None:
        words = [argc, *range(1, argc + 1), 0, *range(1, envc + 1), 0]
        self.entries = len(words) * 8
        for pair in [*auxv, (0, 0)]:
            words += pair
        data = struct.pack(f"<{len(words)}Q", *words)
        self.pointer = top - len(data) & ~15
        self.data = data.ljust(top - self.pointer, b"\0")
        self.end = top

    def read(self, address: int, size: int) -> bytes:
        assert size > 0 and address // vi.PAGE == (address + size - 1) // vi.PAGE
        if not self.pointer <= address < self.end:
            raise OSError(14, "EFAULT")
        return self.data[address - self.pointer : address - self.pointer + size]


@given(st.integers(0, 3000), st.integers(0, 3000), st.integers(0, 512), st.integers(0, 24))
def test_find_on_any_stack(argc: int, envc: int, gap: int, before: int) -> None:
    auxv = [(6, 4096)] * before + [(vi.AT_SYSINFO_EHDR, 0x7FFF_1234_5000), (16, 5)]
    stack = Stack(0x7FFC_0000_0000 + 8 * gap, argc, envc, auxv)
    found = vi.find_sysinfo_ehdr(stack.pointer, stack.read)
    assert found == (stack.pointer + stack.entries + 16 * before, 0x7FFF_1234_5000)


def test_find_without_vdso() -> None:
    stack = Stack(0x7FFC_0000_0000, 1, 1, [(6, 4096)])
    assert vi.find_sysinfo_ehdr(stack.pointer, stack.read) is None
    hidden = Stack(0x7FFC_0000_0000, 1, 1, [(vi.AT_IGNORE, 4096), (vi.AT_SYSINFO_EHDR, 0)])
    assert vi.find_sysinfo_ehdr(hidden.pointer, hidden.read) is None
    assert vi.find_sysinfo_ehdr(0x1000, lambda address, size: b"\xff" * size) is None  # not a stack
    assert vi.find_sysinfo_ehdr(0x1000, lambda address, size: b"") is None
