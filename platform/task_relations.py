"""Which processes share what clone(2) lets them share, by kcmp(2)."""

from __future__ import annotations

import ctypes
import os
from functools import cmp_to_key

_KCMP = 312
KCMP_VM, KCMP_FS = 1, 3
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def sharing(hosts: list[int], kind: int) -> dict[int, int]:
    """By host id: a number that those have in common who share it, counted from 1. OSError.

    The host's order of what it compares is total, so they can be sorted.
    """

    def compare(one: int, other: int) -> int:
        return (0, -1, 1)[_compare(one, other, kind)]

    found: dict[int, int] = {}
    number, last = 0, 0
    for host in sorted(hosts, key=cmp_to_key(compare)):
        if not last or compare(last, host):
            number += 1
        found[host] = number
        last = host
    return found


def _compare(one: int, other: int, kind: int) -> int:
    result = int(_libc.syscall(_KCMP, one, other, kind, 0, 0))
    if result not in (0, 1, 2):
        number = ctypes.get_errno()
        raise OSError(number, f"kcmp: {os.strerror(number)}")
    return result
