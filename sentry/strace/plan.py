"""How a call is printed: from a row of the table and its annotations to a list of decoders."""

from __future__ import annotations

from collections.abc import Callable

from trapline.sentry.strace import kinds
from trapline.sentry.strace.call import Call
from trapline.sentry.strace.names import words
from trapline.sentry.syscalls.registry import converter
from trapline.sentry.syscalls.table import by_number
from trapline.sentry.syscalls.table_arguments import ARGUMENTS
from trapline.sentry.syscalls.table_types import Parameter, Syscall

#: Parameters that are descriptors, and those that may be AT_FDCWD.
DESCRIPTORS = words(
    "fd fildes oldfd newfd in_fd out_fd fd_in fd_out epfd ufd fdin fdout pidfd fs_fd ruleset_fd fanotify_fd",
    "kernel_fd mqdes",
)
DIRECTORIES = words("dfd olddfd newdfd from_dfd to_dfd mountdirfd")
PATHS = words(
    "filename pathname path oldname newname new_root put_old from_pathname to_pathname special specialfile",
    "dev_name dir_name library",
)
_HEXADECIMAL = frozenset({"unsigned long", "u64", "__u64"})
_COUNTS = words("vlen len size count maxnode nr_segs liovcnt riovcnt nr_pages bytecount pos_l")
_BY_TYPE = {
    "clockid_t": "clock", "umode_t": "octal", "uid_t": "id", "gid_t": "id", "qid_t": "id",
    "struct sockaddr *": "pointer", "key_t": "key",
}  # fmt: skip


class Step:
    """One argument: its place, its decoder, when it is known, and what is added once the call has returned."""

    __slots__ = ("at", "late", "output", "show", "suffix")

    def __init__(
        self, at: int, show: kinds.Kind, output: bool, suffix: kinds.Kind | None, late: kinds.Late | None
    ) -> None:
        self.at = at
        self.late = late
        self.show = show
        self.output = output
        self.suffix = suffix

    def text(self, call: Call) -> str | None:
        """The argument. Whatever a guest's memory holds, its trace must not end its run: then it is a number."""
        try:
            return self.show(call, call.args[self.at])
        except Exception:
            return f"{call.raw[self.at]:#x}"


class Plan:
    """One row's printing."""

    __slots__ = ("convert", "name", "result", "split", "steps")

    def __init__(self, row: Syscall) -> None:
        self.name = row.name
        self.convert = converter(row)
        parameters = row.parameters()
        places = {parameter.name: at for at, parameter in enumerate(parameters)}
        notes = dict(word.split("=", 1) for word in ARGUMENTS.get(row.name, "").split())
        result = notes.pop("return", "")
        order = notes.pop("order", "")
        #: How the result is shown: the text after `= `; None for a decimal number.
        self.result: Callable[[Call], str] | None = kinds.result(result, places) if result else None
        steps = [self._step(at, p, notes.pop(p.name, ""), places) for at, p in enumerate(parameters)]
        if notes:
            raise KeyError(f"{row.name} has no parameters {', '.join(notes)}")
        if order:
            steps = [steps[places[name]] for name in order.split(",")]
        self.steps = [step for step in steps if step is not None]
        outputs = [n for n, step in enumerate(self.steps) if step.output or step.suffix]
        #: The first step that is not, or not wholly, known at the entry.
        self.split = outputs[0] if outputs else len(self.steps)

    @staticmethod
    def _step(at: int, parameter: Parameter, kind: str, places: dict[str, int]) -> Step | None:
        if kind == "-":
            return None
        output = kind.startswith(">")
        name = kind[1:] if output else kind
        if not name:
            name, output = _default(parameter)
        return Step(at, kinds.kind(name, places, output), output, kinds.suffix(name), kinds.is_late(name))

    def at_entry(self, call: Call) -> str:
        """The name and the arguments that are known when the call begins, without the closing parenthesis."""
        shown = []
        split = self.split
        while split < len(self.steps):
            step = self.steps[split]
            if step.suffix is not None or (step.output and (step.late is None or step.late(call))):
                break
            split += 1
        call.split = split
        for step in self.steps[:split]:
            text = step.text(call)
            if text is not None:
                shown.append(text)
        if split == len(self.steps):
            return f"{self.name}({', '.join(shown)}"
        step = self.steps[split]
        if step.suffix is not None:
            return f"{self.name}({', '.join([*shown, step.text(call) or ''])}"
        return f"{self.name}({', '.join(shown)}{', ' if shown else ''}"

    def at_exit(self, call: Call) -> str:
        """The other arguments, once `call.result` is known."""
        rest = self.steps[call.split :]
        if not rest:
            return ""
        head = ""
        if rest[0].suffix is not None:
            head = rest[0].suffix(call, call.args[rest[0].at]) or ""
            rest = rest[1:]
            head += ", " if rest else ""
        shown = [step.text(call) for step in rest]
        return head + ", ".join([text for text in shown if text is not None])


def _default(parameter: Parameter) -> tuple[str, bool]:
    """(kind, whether it is an output) by type and name."""
    kind, name = parameter.type, parameter.name
    if kind in ("int", "unsigned int", "mqd_t"):
        if name in DESCRIPTORS:
            return "fd", False
        if name in DIRECTORIES:
            return "directory", False
    if kind in _BY_TYPE:
        return _BY_TYPE[kind], False
    if kind == "const char *":
        return ("path" if name in PATHS or name.endswith("name") else "string"), False
    if parameter.pointer:
        parts = kind.removesuffix("*").split()
        if "struct" in parts and parts[-1] in kinds.structures():
            return parts[-1], parts[0] != "const"
        return "pointer", False
    if kind in _HEXADECIMAL and name not in _COUNTS:
        return "hex", False
    return "decimal", False


_plans: dict[int, Plan] = {}


def plan_of(row: Syscall) -> Plan:
    """The plan of a row, made when it is first needed."""
    plan = _plans.get(row.nr)
    if plan is None:
        plan = Plan(row)
        if by_number(row.nr) is not None:  # a guest can make up numbers without end
            _plans[row.nr] = plan
    return plan
