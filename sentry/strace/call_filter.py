"""Which calls are printed: `-e trace=SET` and `-e status=SET` of strace(1)."""

from __future__ import annotations

import re

from trapline.sentry.strace import call_sets
from trapline.sentry.syscalls.table import TABLE, by_name

STATUSES = ("successful", "failed", "unfinished", "unavailable", "detached")


def trace_set(text: str) -> frozenset[int] | None:
    """The numbers of the calls that `[!]value,value...` names; None for all. ValueError with what is wrong.

    A value is the name of a call, `%set`, `/regular expression`, `all` or `none`; with `?` before it, it may
    match nothing.
    """
    negated = text.startswith("!")
    found: set[int] = set()
    values = text[1:] if negated else text
    every = {row.nr for row in TABLE}
    for value in _values(values):
        found |= every if value == "all" else _numbers(value)
    if negated:
        found = every - found
    return None if found == every else frozenset(found)


def _values(text: str) -> list[str]:
    # A regular expression may hold commas, so that it takes the rest.
    before, slash, expression = text.partition("/") if text.startswith("/") else text.partition(",/")
    if slash:
        return [*([value for value in before.split(",")] if before else []), f"/{expression}"]
    return text.split(",")


def _numbers(value: str) -> set[int]:
    lenient = value.startswith("?")
    value = value.removeprefix("?")
    if value == "none":
        return set()
    if value.startswith("/"):
        try:
            expression = re.compile(value[1:])
        except re.error as error:
            raise ValueError(f"'{value}' is no regular expression: {error}") from None
        found = {row.nr for row in TABLE if expression.search(row.name)}
    elif value.startswith("%"):
        if value[1:] not in call_sets.NAMES and not lenient:
            raise ValueError(f"there is no set of calls {value}{_near(value, ['%' + n for n in call_sets.NAMES])}")
        found = _rows(call_sets.members(value[1:])) if value[1:] in call_sets.NAMES else set()
    else:
        row = by_name(value.removesuffix("@64"))
        found = {row.nr} if row is not None else set()
    if not found and not lenient:
        hint = _near(value, [row.name for row in TABLE])
        raise ValueError(f"there is no system call {value}{hint}" if value else "an empty name stands in the list")
    return found


def _near(word: str, known: list[str]) -> str:
    from difflib import get_close_matches  # only ever needed for a mistake

    near = get_close_matches(word, known, 1, 0.6)
    return f": did you mean {near[0]}?" if near else ""


def _rows(names: frozenset[str]) -> set[int]:
    return {row.nr for row in TABLE if row.name in names}


def status_set(text: str) -> frozenset[str] | None:
    """The statuses that `[!]value,...` names; None for all. ValueError."""
    negated = text.startswith("!")
    found: set[str] = set()
    for value in text.removeprefix("!").split(","):
        if value == "all":
            found.update(STATUSES)
        elif value in STATUSES:
            found.add(value)
        elif value != "none":
            raise ValueError(f"there is no status {value}{_near(value, list(STATUSES))}: {', '.join(STATUSES)}")
    if negated:
        found = set(STATUSES) - found
    return None if found == set(STATUSES) else frozenset(found)
