"""`do --cpus N`: which of the host's CPUs a sandbox gets, and the files in which its programs find them.

The affinity alone decides where a program may run, but many programs size themselves by what the kernel shows:
sysconf(3) reads /sys/devices/system/cpu/online and possible, others count the paragraphs of /proc/cpuinfo. So
those are covered, once, when the sandbox is made. The numbers stay the host's: the only CPU of a sandbox may be
number 3. What counts up while it is read (/proc/stat) cannot be covered by a file: docs/limits.md.
"""

from __future__ import annotations

import os

from trapline.platform.mounts import Plan, make_read_only
from trapline.platform.setup_calls import MS_BIND, MS_REC, mount

_SYS = "/sys/devices/system/cpu"
_CPUINFO = "/proc/cpuinfo"
_LISTS = ("online", "possible", "present")


def application_cpus(count: int) -> list[int]:
    """The first `count` of the CPUs that trapline itself may use, ascending; empty when these are all there are."""
    chosen = sorted(os.sched_getaffinity(0))[:count]
    return [] if len(chosen) == os.cpu_count() else chosen


def show(plan: Plan, root: str) -> None:
    """Cover what shows CPUs in the new root's /proc and /sys. Called by pid 1, before it enters that root."""
    for cover in (_cpuinfo, _directory):
        try:
            cover(plan, root)
        except OSError as error:
            plan.notes.append(f"programs see all CPUs in {_CPUINFO} or {_SYS}: {error.strerror}")


def as_list(cpus: list[int]) -> str:
    """`0-2,5`, as the kernel prints a set (bitmap_print_to_pagebuf)."""
    parts: list[list[int]] = []
    for cpu in cpus:
        if parts and parts[-1][-1] == cpu - 1:
            parts[-1] = [parts[-1][0], cpu]
        else:
            parts.append([cpu])
    return ",".join(["-".join(map(str, part)) for part in parts])


def only(cpus: list[int], cpuinfo: str) -> str:
    """The paragraphs of /proc/cpuinfo about these CPUs."""
    kept = []
    for paragraph in cpuinfo.split("\n\n"):
        name, _, value = paragraph.partition("\n")[0].partition(":")
        if name.strip() == "processor" and int(value) in cpus:
            kept.append(paragraph + "\n\n")
    return "".join(kept)


def _cpuinfo(plan: Plan, root: str) -> None:
    with open(root + _CPUINFO) as file:
        text = file.read()
    _write(plan.stage + "/cpuinfo", only(plan.cpus, text))
    _cover(plan.stage + "/cpuinfo", root + _CPUINFO)


def _directory(plan: Plan, root: str) -> None:
    """A directory made anew: entries of sysfs cannot be hidden singly."""
    new = plan.stage + "/cpu"
    os.mkdir(new, 0o755)
    for entry in os.scandir(root + _SYS):
        target = f"{new}/{entry.name}"
        if entry.name in _LISTS:
            _write(target, as_list(plan.cpus) + "\n")
        elif entry.name == "offline":
            _write(target, "\n")
        elif entry.is_symlink():
            os.symlink(os.readlink(entry.path), target)
        elif entry.is_dir():
            number = entry.name[3:] if entry.name.startswith("cpu") else ""
            if not number.isdecimal() or int(number) in plan.cpus:
                os.mkdir(target)
                mount(entry.path, target, None, MS_BIND)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o444))
            mount(entry.path, target, None, MS_BIND)
    _cover(new, root + _SYS)


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
    os.chmod(path, 0o444)


def _cover(source: str, target: str) -> None:
    """Read-only, since root's guests could write to what is a file of the sandbox's own memory."""
    mount(source, target, None, MS_BIND | MS_REC)
    make_read_only(target)
