"""Our vDSO image and parameter page in guests: the memfd, and the plan of what happens at an exec.

The memfd holds, a page each: the parameter page; the image with the host's facts filled in; the image as
built, which makes real calls only. Guests get a read-only open of it, and it is sealed, so that no mapping
of theirs can be made writable (memfd_create(2), F_SEAL_FUTURE_WRITE).

At PTRACE_EVENT_EXEC the engine

1. finds the host's [vdso] by `find_sysinfo_ehdr` (none: nothing to do, the guest makes real calls),
2. writes `plan.poke_bytes` at `plan.poke_address` through /proc/PID/mem, opened anew (exec changed the mm),
3. sets `plan.registers`, continues, answers the carrier call by SECCOMP_IOCTL_NOTIF_ADDFD with
   SECCOMP_ADDFD_FLAG_SEND and `descriptor` (not with a plan made for a descriptor in the guest),
4. waits for the stop of the last call (a stop-class one) or for the SIGTRAP of the int3 after it,
5. reads rbx and r12 for `setup_failure`; if it failed, `AT_IGNORE` written to the auxv entry makes the guest
   make real calls; then puts the old registers back, with rax 0 and orig_rax -1.

After success r12 is where the host's [vdso] now is, as a rule `plan.host_base`. Where the host's clocksource
can not be read in user space, calls come *from there* (their instruction pointer is in [host_base, host_base
+ `host.size`)): a clock_gettime from there asks for the host's time in the sandbox's time namespace, to which
our image then applies the page. Otherwise the page would be applied twice.

How the guest's side works is told in `vdso/trapline_vdso.c`.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from itertools import islice, pairwise

import msgspec

PAGE = 4096
INFO = 0x140  # of the info block in the image
_INFO_HEAD = struct.Struct("<8s8I")
_HOST_WORDS = INFO + _INFO_HEAD.size
_MAPPINGS = _HOST_WORDS + 4 * 8
HOST_FUNCTIONS = ("__vdso_clock_gettime", "__vdso_gettimeofday", "__vdso_time", "__vdso_getcpu")
MAX_MAPPINGS = 4

AT_NULL, AT_IGNORE, AT_SYSINFO_EHDR = 0, 1, 33  # getauxval(3)
GETPID = 39  # the last call when the engine wants none of its own
U64 = (1 << 64) - 1

_MFD_CLOEXEC, _MFD_ALLOW_SEALING, _MFD_EXEC = 1, 2, 0x10
_F_ADD_SEALS = 1033
_SEALS = 0x1 | 0x2 | 0x4 | 0x10  # SEAL, SHRINK, GROW, FUTURE_WRITE (Linux 5.1)
_PROT_READ_EXEC = 5
_MAP_PRIVATE, _MAP_FIXED_NOREPLACE = 2, 0x100000
_MMAP = 9

STATUS_DONE, STATUS_LOADER, STATUS_UNTOUCHED, STATUS_PARTIAL = 0, 1, 2, 3

Read = Callable[[int, int], bytes]


class HostVdso(msgspec.Struct, frozen=True):
    """The host's vDSO, the same in every process of this kernel (only its address differs)."""

    size: int  # of [vdso], bytes
    # All that must move, ascending: offset from the base of [vdso], and length.
    mappings: tuple[tuple[int, int], ...]
    symbols: dict[str, int]  # offsets from the base
    spare: int  # offset of bytes that nothing needs while a guest runs
    spare_size: int

    @property
    def total(self) -> int:
        """Bytes of all mappings."""
        return sum(length for _, length in self.mappings)


class ExecPlan(msgspec.Struct, frozen=True):
    """What the engine does to one process at its exec. Register names as in struct user_regs_struct."""

    poke_address: int
    poke_bytes: bytes  # a multiple of 8 bytes, at an address that is one too
    registers: dict[str, int]
    image_base: int  # ours, and still what AT_SYSINFO_EHDR says
    page_address: int
    host_base: int  # where the host's [vdso] goes, unless that range is taken
    trampoline: int  # `syscall; int3`, once set-up is done


def elf_tables(image: bytes) -> tuple[int, dict[int, int]]:
    """(bias of virtual addresses, dynamic entries) of a vDSO in memory. ValueError if it is not one."""
    if image[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a 64-bit ELF image")
    (table,) = struct.unpack_from("<Q", image, 32)
    size, count = struct.unpack_from("<HH", image, 54)
    bias, dynamic = 0, -1
    for at in range(table, table + size * count, size):
        kind, _, offset, address = struct.unpack_from("<IIQQ", image, at)
        if kind == 1:  # PT_LOAD
            bias = offset - address
        elif kind == 2:  # PT_DYNAMIC
            dynamic = offset
    if dynamic < 0:
        raise ValueError("no dynamic segment")
    tags: dict[int, int] = {}
    for at in range(dynamic, len(image) - 15, 16):
        tag, value = struct.unpack_from("<QQ", image, at)
        if tag == 0:
            break
        tags[tag] = value
    return bias, tags


def elf_symbols(image: bytes) -> tuple[int, dict[str, int], int]:
    """(offset of the symbol table, defined functions by name, the table's end). ValueError if malformed."""
    bias, tags = elf_tables(image)
    try:
        symbols, strings = tags[6] + bias, tags[5] + bias  # DT_SYMTAB, DT_STRTAB
        if 4 in tags:  # DT_HASH: its chain is as long as the symbol table
            (count,) = struct.unpack_from("<I", image, tags[4] + bias + 4)
        else:  # only DT_GNU_HASH: the linker puts the strings behind the symbols
            count = (strings - symbols) // 24
        found: dict[str, int] = {}
        for at in range(symbols, symbols + 24 * count, 24):
            name, info, _, section, value = struct.unpack_from("<IBBHQ", image, at)
            if section and info & 15 == 2:  # STT_FUNC
                start = strings + name
                found[image[start : image.index(b"\0", start)].decode()] = value + bias
    except (KeyError, struct.error) as error:
        raise ValueError(f"malformed vDSO: {error!r}") from None
    return symbols, found, symbols + 24 * count


def parse_host_vdso(maps: str, read: Read) -> HostVdso:
    """From /proc/self/maps and this process's memory. OSError(ENOSYS) when the host has no usable vDSO."""
    special: list[tuple[int, int]] = []
    base = end = 0
    for line in maps.splitlines():
        if line.endswith(("[vdso]", "[vvar]", "[vvar_vclock]")):
            low, high = (int(text, 16) for text in line.split(None, 1)[0].split("-"))
            special.append((low, high))
            if line.endswith("[vdso]"):
                base, end = low, high
    if not base:
        raise OSError(errno.ENOSYS, "the host has no vDSO")
    gaps = any(here[1] != after[0] for here, after in pairwise(special))
    if gaps or special[-1][0] != base or special[0][0] == base or len(special) > MAX_MAPPINGS:
        # Where the data pages lie elsewhere we do not know what would have to move together.
        raise OSError(errno.ENOSYS, "the host's vDSO has an unknown layout")
    image = read(base, end - base)
    table, symbols, table_end = elf_symbols(image)
    # The loader goes where no code and no data is: the padding behind the file, else the symbol table, which
    # only a program that looked for the moved image by its name in /proc/self/maps would miss.
    used = (len(image.rstrip(b"\0")) + 64) & -16
    spare, size = (used, len(image) - used) if len(image) - used >= 128 else (table + 7 & -8, 0)
    return HostVdso(
        size=end - base,
        mappings=tuple((low - base, high - low) for low, high in special),
        symbols=symbols,
        spare=spare,
        spare_size=size or table_end - spare,
    )


def host_vdso() -> HostVdso:
    """The host's vDSO, as this process has it. OSError(ENOSYS) when there is none that can be used."""
    with open("/proc/self/maps") as file:
        maps = file.read()
    memory = os.open("/proc/self/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return parse_host_vdso(maps, lambda address, size: os.pread(memory, size, address))
    finally:
        os.close(memory)


def image_path() -> str:
    """Where the built image is: beside `platform/`, in a checkout and in a wheel alike."""
    here = os.path.dirname(os.path.abspath(__file__))
    return os.path.join(os.path.dirname(here), "vdso", "trapline-vdso.so")


class VdsoImage:
    """One sandbox's image and parameter page.

    `descriptor` is the read-only one to hand to guests. A new instance's page is all zero: not ready.
    """

    def __init__(self, path: str | None = None, host: HostVdso | None = None, saved: bytes = b"") -> None:
        """`saved`: what `saved` gave in another sandbox, for guests that are restored with it in place of the file.

        FileNotFoundError: not built (`python vdso/build.py`). OSError(ENOSYS): no usable host vDSO.

        ValueError: the file is no image of this version.
        """
        self.host = host or host_vdso()
        if saved:
            built = bytearray(saved[PAGE : 2 * PAGE])
        else:
            with open(path or image_path(), "rb") as file:
                built = bytearray(file.read(PAGE).ljust(PAGE, b"\0"))
        magic, version, size, trampoline, with_call, with_fd, loader_end, setup, _ = _INFO_HEAD.unpack_from(
            built, INFO
        )
        if (magic, version, size) != (b"TRAPVDSO", 1, PAGE):
            raise ValueError(f"{path or image_path()} is not a vDSO image of this version")
        # Section headers lie behind what is mapped: whoever reads the image in memory must not look for them.
        built[40:48] = bytes(8)
        built[60:64] = bytes(4)
        self._trampoline: int = INFO + trampoline
        self._loader = bytes(built[INFO + with_call : INFO + loader_end])
        self._with_descriptor: int = with_fd - with_call
        if len(self._loader) > self.host.spare_size:
            raise OSError(errno.ENOSYS, "no room in the host's vDSO")
        self._total = total = self.host.total
        self._registers: dict[str, int] = {
            "orig_rax": U64,
            "rbx": STATUS_LOADER,
            "rbp": _MMAP,
            # The first copy, and above it the range that the host's mappings move to, directly below the
            # lowest of them; from the base.
            "rdi": self.host.mappings[0][0] - total - PAGE,
            "rsi": total + PAGE,
            "rdx": _PROT_READ_EXEC,
            "r10": _MAP_PRIVATE | _MAP_FIXED_NOREPLACE,
            "r9": PAGE,
            "r12": setup + INFO,
            "r14": _MAP_PRIVATE,
        }
        ours = self._with_host_facts(built)
        self.descriptor, self._page = _make_memfd(bytes(built), ours)

    def _with_host_facts(self, built: bytearray) -> bytes:
        ours = bytearray(built)
        host = self.host
        for index, name in enumerate(HOST_FUNCTIONS):
            if name in host.symbols:
                distance = host.symbols[name] - host.total - INFO
                struct.pack_into("<q", ours, _HOST_WORDS + 8 * index, distance)
        # Both copies run the set-up code, which reads the mappings.
        for image in (ours, built):
            struct.pack_into("<Q", image, _MAPPINGS, len(host.mappings))
            for index, (offset, length) in enumerate(host.mappings):
                struct.pack_into("<qQ", image, _MAPPINGS + 8 + 16 * index, offset, length)
        return bytes(ours)

    def saved(self) -> tuple[bytes, list[tuple[int, int]]]:
        """For an image: both copies, and where the host's mappings were (offset from the base of [vdso], length)."""
        return os.pread(self.descriptor, 2 * PAGE, PAGE), list(self.host.mappings)

    def write_page(self, offset: int, data: bytes) -> None:
        """Store into the parameter page, at once visible to all guests. See `ParameterPage`."""
        self._page[offset : offset + len(data)] = data

    def read_page(self, size: int = PAGE) -> bytes:
        return self._page[:size]

    def trampoline(self, base: int) -> int:
        """Address of `syscall; int3` in a process whose image is at `base`.

        The int3 unblocks SIGTRAP, and resets it when it is ignored: where the guest has it so, step over the
        call by PTRACE_SYSCALL instead.
        """
        return base + self._trampoline

    def exec_plan(
        self, base: int, carrier: int | None = None, descriptor: int | None = None, last_call: int = GETPID
    ) -> ExecPlan:
        """The plan for a process whose host [vdso] is at `base`.

        Either `carrier`: number of a notify-class call whose result is the descriptor. Or `descriptor`: its
        number in the guest, which closes it. `last_call` is made before the int3: with a stop-class call the
        stop is PTRACE_EVENT_SECCOMP, and the int3, whose SIGTRAP touches the guest's mask and disposition of
        SIGTRAP, is never reached.
        """
        given = carrier if descriptor is None else descriptor
        if given is None or None not in (carrier, descriptor):
            raise ValueError("exactly one of carrier and descriptor")
        poke = base + self.host.spare
        registers = self._registers.copy()
        registers["rip"] = poke if descriptor is None else poke + self._with_descriptor
        registers["rdi"] += base
        registers["r8"] = given
        registers["r13"] = base
        registers["r15"] = last_call
        return ExecPlan(
            poke, self._loader, registers, base, base - PAGE, base - self._total, base + self._trampoline
        )

    def close(self) -> None:
        """Guests keep their mappings."""
        if self.descriptor >= 0:
            self._page.close()
            os.close(self.descriptor)
            self.descriptor = -1


def _make_memfd(built: bytes, ours: bytes) -> tuple[int, mmap.mmap]:
    """(read-only descriptor, writable parameter page)."""
    flags = _MFD_CLOEXEC | _MFD_ALLOW_SEALING
    try:  # said explicitly since Linux 6.3, which logs a warning otherwise
        writable = os.memfd_create("trapline-vdso", flags | _MFD_EXEC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        writable = os.memfd_create("trapline-vdso", flags)
    try:
        os.pwrite(writable, bytes(PAGE) + ours + built, 0)
        page = mmap.mmap(writable, PAGE)
        fcntl.fcntl(writable, _F_ADD_SEALS, _SEALS)
        readonly = os.open(f"/proc/self/fd/{writable}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(writable)
    return readonly, page


def setup_failure(rbx: int, r12: int) -> str | None:
    """Why set-up failed, from the registers at the stop after the last call; None when it did not.

    Then AT_SYSINFO_EHDR must be hidden, since it may lead nowhere: see `find_sysinfo_ehdr`.
    """
    if rbx == STATUS_DONE:
        return None
    number = -(r12 - (1 << 64)) if r12 >> 63 else 0
    reason = os.strerror(number) if number else f"{r12:#x}"
    what = {STATUS_LOADER: "mapping the image", STATUS_UNTOUCHED: "moving the host's vDSO"}
    return f"{what.get(rbx, 'mapping over the old vDSO')}: {reason}"


def _words(address: int, read: Read) -> Iterator[int]:
    """The words from an address on. A page at a time: only whole pages are sure to be there."""
    while True:
        data = read(address, PAGE - address % PAGE)
        yield from struct.unpack(f"<{len(data) // 8}Q", data)
        if not data:
            return
        address += len(data)


def find_sysinfo_ehdr(stack_pointer: int, read: Read) -> tuple[int, int] | None:
    """(address of the auxv entry, base of the host's [vdso]) on a 64-bit process's initial stack; or None.

    `read(address, size)` returns bytes; it is asked for ranges within one page only, as many as it takes to
    get past arguments and environment. None also when the stack is not one that execve(2) made. Writing
    `AT_IGNORE` (8 bytes) at the entry's address hides the vDSO from the guest.
    """
    # As a rule all of it lies in one page, and this runs at every exec with cold caches: the short way first.
    data = read(stack_pointer, PAGE - stack_pointer % PAGE)
    words = struct.unpack(f"<{len(data) // 8}Q", data)
    try:
        place = words.index(0, words[0] + 2) + 1
        if words[place] == AT_SYSINFO_EHDR and not words[words[0] + 1]:  # x86-64 kernels put it first
            return (stack_pointer + 8 * place, words[place + 1]) if words[place + 1] else None
    except (IndexError, ValueError, OverflowError):
        pass
    return _find_slowly(stack_pointer, read)


def _find_slowly(stack_pointer: int, read: Read) -> tuple[int, int] | None:
    words = _words(stack_pointer, read)
    argc = next(words, U64)
    if argc > 1 << 20:  # ARG_MAX allows fewer
        return None
    at = stack_pointer + 8 * (argc + 2)
    if argc < 256:
        next(islice(words, argc, argc), None)
        if next(words, 1):
            return None
    else:
        words = _words(at, read)
    for word in words:  # environment
        at += 8
        if not word:
            break
    while (key := next(words, AT_NULL)) != AT_NULL:
        value = next(words, 0)
        if key == AT_SYSINFO_EHDR:
            return (at, value) if value else None
        at += 16
    return None
