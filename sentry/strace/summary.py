"""The table of `-c`: calls, errors and time by name, in the form of strace(1)."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

SORTS = ("time", "time-total", "calls", "errors", "name", "max-time", "min-time", "avg-time", "nothing")


class Row(msgspec.Struct):
    """One call's figures; times in ns of wall clock, from entry to return."""

    name: str
    calls: int = 0
    errors: int = 0
    owned: int = 0  # answered by the sentry
    total: int = 0
    least: int = -1
    most: int = 0


def _total(row: Row) -> float:
    return row.total


class Summary:
    """Adds calls up."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}

    def add(self, name: str, spent: int, failed: bool, owned: bool) -> None:
        """One call has returned after `spent` ns."""
        row = self.rows.get(name)
        if row is None:
            row = self.rows[name] = Row(name)
        row.calls += 1
        row.errors += failed
        row.owned += owned
        row.total += spent
        row.most = max(row.most, spent)
        row.least = spent if row.least < 0 else min(row.least, spent)

    def sorted(self, by: str) -> list[Row]:
        """The rows in an order of SORTS: the largest first, names alphabetically."""
        rows = list(self.rows.values())
        if by == "nothing":
            return rows
        if by == "name":
            return sorted(rows, key=lambda row: row.name)
        keys: dict[str, Callable[[Row], float]] = {
            "calls": lambda row: row.calls,
            "errors": lambda row: row.errors,
            "max-time": lambda row: row.most,
            "min-time": lambda row: row.least,
            "avg-time": lambda row: row.total / row.calls,
        }
        key = keys.get(by, _total)
        return sorted(rows, key=lambda row: (-key(row), row.name))

    def text(self, by: str) -> str:
        """The table, and how many calls the sentry answered."""
        rows = self.sorted(by)
        rule = f"{'-' * 6} {'-' * 11} {'-' * 11} {'-' * 9} {'-' * 9} {'-' * 16}"
        whole = sum([row.total for row in rows])
        calls = sum([row.calls for row in rows])
        errors = sum([row.errors for row in rows])
        lines = [f"{'% time':>6} {'seconds':>11} {'usecs/call':>11} {'calls':>9} {'errors':>9} syscall", rule]
        for row in rows:
            lines.append(self._line(row.total, whole, row.calls, row.errors, row.name))
        lines += [rule, self._line(whole, whole, calls, errors, "total")]
        owned = sum([row.owned for row in rows])
        lines.append(f"{owned} of {calls} calls were answered by trapline itself")
        return "\n".join(lines) + "\n"

    @staticmethod
    def _line(total: int, whole: int, calls: int, errors: int, name: str) -> str:
        share = 100 * total / whole if whole else 0
        each = total // calls // 1000 if calls else 0
        return f"{share:6.2f} {total / 1e9:11.6f} {each:11d} {calls:9d} {errors or '':>9} {name}"

    def json(self, by: str) -> str:
        """The same as JSON: a list of rows, times in ns."""
        return msgspec.json.format(msgspec.json.encode(self.sorted(by)), indent=1).decode() + "\n"
