"""An interpreter of the classic BPF that seccomp takes (kernel/seccomp.c, seccomp_check_filter).

It takes less than the kernel does: an instruction that our programs have no use for, a load outside of struct
seccomp_data, a jump out of the program or a program that does not end in a return raise ValueError.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

DATA_SIZE = 64
_INSTRUCTION = struct.Struct("=HBBI")
_DATA = struct.Struct("=IIQ6Q")

LD_ABS, AND_K, RET_K = 0x20, 0x54, 0x06
JA, JEQ, JGT, JGE, JSET = 0x05, 0x15, 0x25, 0x35, 0x45


def seccomp_data(nr: int, arch: int, args: Sequence[int] = (), ip: int = 0) -> bytes:
    """struct seccomp_data. Numbers may be negative; they are cut to their fields."""
    full = [argument & 0xFFFF_FFFF_FFFF_FFFF for argument in (*args, *[0] * (6 - len(args)))]
    return _DATA.pack(nr & 0xFFFF_FFFF, arch, ip, *full)


class Machine:
    """One program. `steps` and `loaded` describe the last run."""

    def __init__(self, program: bytes) -> None:
        if len(program) % _INSTRUCTION.size or not program:
            raise ValueError("not a whole number of instructions")
        self.code = [
            _INSTRUCTION.unpack_from(program, at) for at in range(0, len(program), _INSTRUCTION.size)
        ]
        self.steps = 0
        #: Offsets in seccomp_data that were loaded, in order.
        self.loaded: list[int] = []
        self._check()

    def _check(self) -> None:
        last = len(self.code) - 1
        if len(self.code) > 4096:
            raise ValueError("too long")
        for at, (code, yes, no, k) in enumerate(self.code):
            if code == LD_ABS and (k % 4 or k + 4 > DATA_SIZE):
                raise ValueError(f"load of {k} at {at}")
            if code == JA and at + 1 + k > last:
                raise ValueError(f"jump out of the program at {at}")
            if code in (JEQ, JGT, JGE, JSET) and at + 1 + max(yes, no) > last:
                raise ValueError(f"jump out of the program at {at}")
            if code not in (LD_ABS, AND_K, JA, JEQ, JGT, JGE, JSET, RET_K):
                raise ValueError(f"instruction {code:#x} at {at}")
        if self.code[last][0] != RET_K:
            raise ValueError("does not end in a return")

    def run(self, data: bytes) -> int:
        """What the filter returns."""
        accumulator = at = 0
        self.steps = 0
        self.loaded = []
        while True:
            code, yes, no, k = self.code[at]
            at += 1
            self.steps += 1
            if code == RET_K:
                return int(k)
            if code == LD_ABS:
                self.loaded.append(k)
                accumulator = int.from_bytes(data[k : k + 4], "little")
            elif code == AND_K:
                accumulator &= k
            elif code == JA:
                at += k
            elif code == JEQ:
                at += yes if accumulator == k else no
            elif code == JGT:
                at += yes if accumulator > k else no
            elif code == JGE:
                at += yes if accumulator >= k else no
            else:
                at += yes if accumulator & k else no
