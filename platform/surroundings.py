"""What guests with the rights for it may change of the sandbox's namespaces, and a checkpoint does not hold: mounts,
and the network's devices and addresses. It is compared with what there was at the beginning.

Sources: proc_pid_mountinfo(5), proc_pid_net(5).
"""

from __future__ import annotations

import itertools

from trapline.sentry.state.names import printable


class Surroundings:
    """Of one sandbox, whose guests do not run yet."""

    def __init__(self, init: int, own_network: bool) -> None:
        """`init`: the host id of its pid 1."""
        self._init = init
        self._own_network = own_network
        self._known = True
        self._mounts: list[str] = []
        self._network: list[str] = []
        try:
            self._mounts = self._read("mountinfo")
            self._network = self._facts()
        except OSError:
            self._known = False  # it has ended already, and will not be saved

    def _read(self, name: str) -> list[str]:
        with open(f"/proc/{self._init}/{name}", encoding="utf-8", errors="surrogateescape") as file:
            return file.read().splitlines()

    def _facts(self) -> list[str]:
        if not self._own_network:
            return []
        found = ["the network device " + line.split(":")[0].strip() for line in self._read("net/dev")[2:]]
        lines = self._read("net/fib_trie")
        words = [a.split()[-1] for a, b in itertools.pairwise(lines) if b.endswith("/32 host LOCAL")]
        try:
            six = [line.split()[0] for line in self._read("net/if_inet6")]
        except FileNotFoundError:
            six = []  # a kernel without it
        return found + [f"the network address {word}" for word in dict.fromkeys(words + six)]

    def changes(self) -> list[str]:
        """What is otherwise now, one line for each. OSError."""
        if not self._known:
            return []
        now, said = self._read("mountinfo"), []
        points: dict[str, set[str]] = {}
        for word, lines in (("before", self._mounts), ("now", now)):
            for line in lines:
                points.setdefault(_point(line), set()).add(f"{word} {line}")
        for point, found in points.items():
            before = {line.partition(" ")[2] for line in found if line.startswith("before ")}
            after = {line.partition(" ")[2] for line in found if line.startswith("now ")}
            if before != after:
                what = "changed" if before and after else "unmounted" if before else "mounted"
                said.append(f"a program {what} {printable(point)}, which is not part of an image")
        facts = self._facts()
        said += [f"a program made {fact}, which is not part of an image" for fact in facts if fact not in self._network]
        gone = [fact for fact in self._network if fact not in facts]
        said += [f"a program removed {fact}, which is not part of an image" for fact in gone]
        return said


def _point(line: str) -> str:
    """Where a line of mountinfo says that something is mounted."""
    return line.split(" ", 5)[4].replace("\\040", " ")
