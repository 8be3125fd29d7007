"""Whether the programs of an image can go on with this host's CPU.

A program asks once, at its start, which instructions there are (CPUID, AT_HWCAP) and uses them ever after: the C
library has chosen its memcpy(3) long ago. So what the host of the save had, the host of the restore must have; more
does no harm. Of all that Linux lists, only what changes what a program may execute counts: it is named here, as Linux
names it (arch/x86/include/asm/cpufeatures.h).
"""

from __future__ import annotations

from collections.abc import Collection

from trapline.sentry.state import manifest

_TEXT = """
    fpu tsc cx8 sep cmov clflush mmx fxsr sse sse2 syscall mmxext rdtscp lm 3dnowext 3dnow pni pclmulqdq ssse3 fma cx16
    sse4_1 sse4_2 movbe popcnt aes xsave avx f16c rdrand lahf_lm abm sse4a misalignsse 3dnowprefetch xop fma4 tbm
    fsgsbase bmi1 hle avx2 bmi2 erms rtm mpx rdseed adx clflushopt clwb sha_ni xsaveopt xsavec xgetbv1 clzero rdpru
    wbnoinvd umip pku ospke waitpkg gfni vaes vpclmulqdq rdpid cldemote movdiri movdir64b enqcmd fsrm serialize
    tsxldtrk sha512 sm3 sm4 cmpccxadd fzrm fsrs fsrc user_shstk lkgs la57
"""
_NAMES = frozenset(_TEXT.split())
_FAMILIES = ("avx512", "avx_", "avx10", "amx_")


def needed(flags: Collection[str]) -> list[str]:
    """Those of a host's features that programs may depend on, sorted."""
    return sorted({flag for flag in flags if flag in _NAMES or flag.startswith(_FAMILIES)})


def missing(flags: Collection[str], here: Collection[str] | None = None) -> list[str]:
    """Those that programs may depend on and this host has not. `here`: its features; None to ask it."""
    there = set(manifest.cpu_flags() if here is None else here)
    return [flag for flag in needed(flags) if flag not in there]


def problem(flags: Collection[str], here: Collection[str] | None = None) -> str:
    """The same as one line; "" for none."""
    lacking = missing(flags, here)
    if not lacking:
        return ""
    what = "feature" if len(lacking) == 1 else "features"
    return f"this host's CPU lacks the {what} {', '.join(lacking)}, which the programs of the image may be using"
