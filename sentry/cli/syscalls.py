"""`trapline syscalls`: the table of calls for people, for programs and for the documentation."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from trapline.sentry.cli.flags import Flag, help_text, parse_mixed
from trapline.sentry.syscalls.table import FAMILIES, TABLE, by_name, by_number, family_of
from trapline.sentry.syscalls.table_types import Class, Condition, Op, Support, Syscall

USAGE = "trapline syscalls [FLAGS] [NAME...]"
SUMMARY = (
    "List the calls of x86-64 Linux and who serves them: the sentry or the host. With names or numbers: only these "
    "calls."
)
MORE = """
examples:
  trapline syscalls --owned
  trapline syscalls --format json futex 230
"""
FLAGS = (
    Flag("--format", help="A table to read, JSON, or docs/syscalls.md.", choices=("table", "json", "markdown"),
         default="table"),
    Flag("--owned", help="Only calls that the sentry decides."),
)  # fmt: skip
_HEAD = ("NR", "NAME", "CLASS", "SUPPORT", "NOTE")
_PROFILE = "control"

_DOCUMENT = """# System calls

Every call of x86-64 Linux up to kernel 6.18, and who serves it in the profile `control`. Made from the table
in `sentry/syscalls/` by `trapline syscalls --format markdown`: change it there.

| class | who serves the call |
|---|---|
| `native` | the host kernel, with no trap |
| `notify` | the sentry, in Python, from the arguments and guest memory |
| `stop` | the sentry, at a ptrace stop, since it needs registers |
| `wrap` | the sentry before and after; the host executes it in between |
| `refuse` | nobody: always the errno that is named |
| `none` | nobody: ENOSYS, as in Linux today; logged once |

Support is `full` (decided by the sentry), `partial` (something is missing or not yet the sentry's: see the
note), `lent` (the host kernel's own), `refused` (an error on purpose) or `none`. A class with `else` depends
on the arguments. Calls through int 0x80 and the x32 ABI, and numbers that are not listed, are ENOSYS.
"""


def _errno_name(number: int) -> str:
    import errno

    return errno.errorcode.get(number, str(number))


def class_text(row: Syscall) -> str:
    """The class in words: `notify`, `wrap else native`, `refuse EPERM`."""
    text = row.class_in(_PROFILE).name.lower()
    if row.class_in(_PROFILE) is Class.REFUSE:
        text += " " + _errno_name(row.errno)
    if row.conditions_in(_PROFILE):
        others = [*[case.kind for case in row.cases_in(_PROFILE)], row.otherwise]
        text += "".join([" else " + kind.name.lower() for kind in others])
    return text


def _condition(row: Syscall, condition: Condition) -> dict[str, object]:
    op = "any bits" if condition.op is Op.ANY_BITS else "equal"
    return {
        "arg": condition.arg,
        "name": row.parameters()[condition.arg].name,
        "op": op,
        "mask": condition.mask,
        "value": condition.value,
    }


def as_object(row: Syscall) -> dict[str, object]:
    """One row as it is printed in JSON."""
    result: dict[str, object] = {
        "nr": row.nr,
        "name": row.name,
        "family": family_of(row),
        "class": row.class_in(_PROFILE).name.lower(),
        "support": row.support.name.lower(),
        "owned": row.owned(_PROFILE),
        "parameters": [{"type": p.type, "name": p.name} for p in row.parameters()],
        "note": row.note,
    }
    if row.conditions_in(_PROFILE):
        result["when"] = [_condition(row, condition) for condition in row.conditions_in(_PROFILE)]
        if row.cases_in(_PROFILE):
            result["cases"] = [
                {"class": case.kind.name.lower(), "when": [_condition(row, condition) for condition in case.when]}
                for case in row.cases_in(_PROFILE)
            ]
        result["otherwise"] = row.otherwise.name.lower()
    if row.refuse_when:
        result["refuse_when"] = [_condition(row, condition) for condition in row.refuse_when]
    if row.errno:
        result["errno"] = _errno_name(row.errno)
    return result


def table(rows: Sequence[Syscall]) -> str:
    """Aligned columns, one line a call."""
    lines = [_HEAD]
    lines += [(str(row.nr), row.name, class_text(row), row.support.name.lower(), row.note) for row in rows]
    widths = [max([len(line[column]) for line in lines]) for column in range(len(_HEAD))]
    text = []
    for line in lines:
        cells = [line[0].rjust(widths[0])] + [c.ljust(w) for c, w in zip(line[1:], widths[1:], strict=True)]
        text.append("  ".join(cells).rstrip() + "\n")
    return "".join(text)


def json(rows: Sequence[Syscall]) -> str:
    """A list of objects, one line each."""
    import json as library

    if not rows:
        return "[]\n"
    return "[\n" + ",\n".join([library.dumps(as_object(row)) for row in rows]) + "\n]\n"


def _counts(rows: Sequence[Syscall]) -> str:
    counts = {support: len([row for row in rows if row.support is support]) for support in Support}
    parts = [f"{count} {support.name.lower()}" for support, count in counts.items() if count]
    return f"{len(rows)} calls: {', '.join(parts)}."


def markdown(rows: Sequence[Syscall]) -> str:
    """The document docs/syscalls.md: a section for each family."""
    chosen = {row.nr for row in rows}
    parts = [_DOCUMENT, f"\n{_counts(rows)}\n"]
    for family, members in FAMILIES.items():
        members = tuple([row for row in members if row.nr in chosen])
        if not members:
            continue
        parts.append(f"\n## {family.capitalize() if family != 'ipc' else 'IPC'}\n\n{_counts(members)}\n\n")
        parts.append("| nr | call | class | support | note |\n|---:|---|---|---|---|\n")
        for row in members:
            signature = f"`{row.name}({row.signature})`"
            cells = (str(row.nr), signature, class_text(row), row.support.name.lower(), row.note)
            parts.append("| " + " | ".join([cell.replace("|", "\\|") for cell in cells]) + " |\n")
    return "".join(parts)


FORMATS: dict[str, Callable[[Sequence[Syscall]], str]] = {"table": table, "json": json, "markdown": markdown}


def select(names: Sequence[str], owned: bool) -> list[Syscall]:
    """The rows asked for, in the order of numbers. A name may be a number. KeyError for an unknown one."""
    if names:
        wanted = set()
        for name in names:
            row = by_number(int(name)) if name.isdecimal() else by_name(name)
            if row is None:
                raise KeyError(name)
            wanted.add(row.nr)
        rows = [row for row in TABLE if row.nr in wanted]
    else:
        rows = list(TABLE)
    return [row for row in rows if row.owned(_PROFILE)] if owned else rows


def run(words: list[str]) -> int:
    """Run the verb; the exit status: 2 for a call that does not exist. UsageError."""
    values, names = parse_mixed(FLAGS, words)
    if values["help"]:
        sys.stdout.write(help_text(USAGE, SUMMARY, FLAGS, MORE))
        return 0
    try:
        rows = select(names, bool(values["owned"]))
    except KeyError as error:
        import difflib

        name = error.args[0]
        close = difflib.get_close_matches(name, [row.name for row in TABLE], 3)
        hint = f" (do you mean {', '.join(close)}?)" if close else ""
        print(f"trapline syscalls: no call named {name}{hint}", file=sys.stderr)
        return 2
    sys.stdout.write(FORMATS[values["format"]](rows))
    return 0
