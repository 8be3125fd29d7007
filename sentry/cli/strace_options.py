"""From the flags of `do --strace` to StraceOptions. Imported only when one of them is given."""

from __future__ import annotations

from typing import Any

from trapline.sentry.cli.flags import UsageError, did_you_mean, either
from trapline.sentry.cli.strace_flags import STRACE_FLAGS, STRACE_KEYS
from trapline.sentry.options import StraceOptions
from trapline.sentry.strace.call_filter import status_set, trace_set
from trapline.sentry.strace.summary import SORTS

QUALIFIERS = {"trace": "trace", "t": "trace", "status": "status"}


def options(values: dict[str, Any]) -> StraceOptions:
    """UsageError."""
    if not values["strace"]:
        names = {flag.name.lstrip("-").replace("-", "_"): flag.name for flag in STRACE_FLAGS}
        given = next(names[key] for key in STRACE_KEYS if values[key])
        raise UsageError(f"{given} belongs to --strace; flags of the command come after it")
    found = StraceOptions(output=values["o"], paths=bool(values["y"]), owned_only=bool(values["owned_only"]))
    for expression in values["e"]:
        _apply(found, expression)
    if values["c"] and values["C"]:
        raise UsageError("-c prints the table alone, -C also the lines: choose one")
    found.summary = "only" if values["c"] else "both" if values["C"] else ""
    if (values["S"] or values["format"]) and not found.summary:
        raise UsageError(f"{'-S' if values['S'] else '--format'} belongs to -c or -C")
    order = values["S"] or "time"
    if order not in SORTS:
        raise UsageError(f"-S takes {either(SORTS)}, not '{order}'{did_you_mean(order, SORTS)}")
    found.sort = order
    found.summary_format = values["format"] or "text"
    return found


def _apply(found: StraceOptions, expression: str) -> None:
    name, equals, text = expression.partition("=")
    if not equals or name.startswith(("/", "!", "%")):
        name, text = "trace", expression
    if name not in QUALIFIERS:
        raise UsageError(f"-e knows trace= and status=, not {name}={did_you_mean(name, list(QUALIFIERS))}")
    try:
        if QUALIFIERS[name] == "trace":
            trace_set(text)
            found.trace = text
        else:
            status_set(text)
            found.status = text
    except ValueError as error:
        raise UsageError(f"-e {expression}: {error}") from None
