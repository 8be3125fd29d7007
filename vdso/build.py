"""Build `trapline-vdso.so` with gcc, if its sources are newer. Run as `python vdso/build.py [--force]`.

Nothing else is needed: the build takes about 0.1 s, and an up-to-date image costs a few stat(2) calls.
"""

from __future__ import annotations

import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCES = ("trapline_vdso.c", "vdso.lds", "build.py")
OUTPUT = os.path.join(HERE, "trapline-vdso.so")

FLAGS = [
    *("-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror"),
    *("-fPIC", "-shared", "-nostdlib", "-ffreestanding", "-fvisibility=hidden"),
    # General registers only: the caller's vector registers are not ours to spend. No stack protector, since
    # the code runs with any thread pointer; no CET notes, which would make the one segment larger.
    *("-mgeneral-regs-only", "-fno-stack-protector", "-fcf-protection=none"),
    # Both hash tables: old musl and Go know only the older one. One segment: see vdso.lds.
    *("-Wl,-T,vdso.lds", "-Wl,-soname=linux-vdso.so.1", "-Wl,--hash-style=both", "-Wl,--build-id=none"),
    *("-Wl,-z,max-page-size=4096", "-Wl,-z,noexecstack", "-Wl,--no-undefined", "-s"),
]


def is_current() -> bool:
    """Whether the image exists and is newer than its sources."""
    try:
        built = os.stat(OUTPUT).st_mtime_ns
        return all(os.stat(os.path.join(HERE, name)).st_mtime_ns <= built for name in SOURCES)
    except FileNotFoundError:
        return False


def build(force: bool = False) -> str:
    """Build if needed; the image's path. subprocess.CalledProcessError, or FileNotFoundError without gcc."""
    if force or not is_current():
        # Renamed into place, so that two builds at once, or a reader in between, see a whole file.
        temporary = f"{OUTPUT}.{os.getpid()}"
        compiler = os.environ.get("CC", "gcc")
        try:
            subprocess.run([compiler, *FLAGS, "-o", temporary, "trapline_vdso.c"], cwd=HERE, check=True)
            os.rename(temporary, OUTPUT)
        finally:
            if os.path.exists(temporary):
                os.unlink(temporary)
    return OUTPUT


if __name__ == "__main__":
    print(build(force="--force" in sys.argv[1:]))
