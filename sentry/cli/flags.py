"""The command line's flags: declared as data, read in one pass, printed as help.

Hand-written because argparse alone costs more at start than everything that `do` has to read.
`--flag=value` and `--flag value` are the same; `--` ends the flags; so does the first word that is none,
which begins the rest.
"""

from __future__ import annotations

TYPE_CHECKING = False  # not imported: typing costs half as much as Python's own start
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any


WIDTH = 96  # columns of help
HELP = ("--help", "-h")


class UsageError(Exception):
    """A command line that makes no sense. Its text is one line that says what would be right."""


class VerbError(Exception):
    """What a verb cannot do. Its text is one line; `status` is the exit status then: runsc's for what fails."""

    def __init__(self, text: str, status: int = 128) -> None:
        super().__init__(text)
        self.status = status


class Flag:
    """One flag. Without a metavar it takes no value and yields True.

    `parse` turns the text into the value and raises ValueError with what would be right. `short`: another name.
    `optional`: the metavar of a value that may be left out, and yields True then; it is given as `--flag=value` only.
    """

    __slots__ = ("choices", "default", "help", "hidden", "metavar", "name", "optional", "parse", "repeat", "short")

    def __init__(
        self,
        name: str,
        metavar: str = "",
        help: str = "",
        *,
        choices: Sequence[str] = (),
        default: Any = None,
        parse: Callable[[str], Any] | None = None,
        repeat: bool = False,
        hidden: bool = False,
        short: str = "",
        optional: str = "",
    ) -> None:
        self.name = name  # with its dashes
        self.short = short
        self.metavar = "|".join(choices) if choices else metavar
        self.help = help
        self.choices = choices
        self.default = [] if repeat and default is None else default
        self.parse = parse
        self.repeat = repeat  # yields a list
        self.hidden = hidden  # for tests: not in the help
        self.optional = optional

    @property
    def value_shown(self) -> str:
        """Its value, as it is shown behind its name."""
        return f" {self.metavar}" if self.metavar else f"[={self.optional}]" if self.optional else ""

    def value(self, text: str) -> Any:
        """The value of what was given. UsageError."""
        if self.choices and text not in self.choices:
            hint = did_you_mean(text, self.choices)
            raise UsageError(f"{self.name} takes {either(self.choices)}, not '{text}'{hint}")
        if self.parse is None:
            return text
        try:
            return self.parse(text)
        except ValueError as error:
            raise UsageError(f"{self.name} {error}, not '{text}'") from None


def either(words: Sequence[str]) -> str:
    """'a', 'a or b', 'a, b or c'."""
    return ", ".join(words[:-1]) + " or " + words[-1] if len(words) > 1 else words[0]


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """': did you mean X?' for the nearest known word, or nothing."""
    from difflib import get_close_matches  # only ever needed for a mistake

    near = get_close_matches(word, list(known), 1, 0.6)
    return f": did you mean {near[0]}?" if near else ""


def parse(flags: Sequence[Flag], words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """({name without dashes, '-' as '_': value}, the rest). UsageError.

    `--help` and `-h` need not be declared and yield help=True, whereupon the rest is not looked at.
    """
    known = {name: flag for flag in flags for name in (flag.name, flag.short) if name}
    values: dict[str, Any] = {_key(f.name): list(f.default) if f.repeat else f.default for f in flags}
    values["help"] = False
    pieces, rest = walk(flags, words)
    for piece in pieces:
        if piece[0] in HELP:
            values["help"] = True
            return values, []
        name, equals, text = piece[0].partition("=")
        flag = known.get(name)
        if flag is None:
            visible = [f.name for f in flags if not f.hidden] + ["--help"]
            hint = did_you_mean(name, visible) or ": see --help"
            raise UsageError(f"there is no flag {name}{hint}")
        key = _key(flag.name)
        if not flag.metavar:
            if equals and not flag.optional:
                raise UsageError(f"{name} takes no value")
            values[key] = flag.value(text) if equals else True
            continue
        if not equals:
            if len(piece) < 2:
                raise UsageError(f"{name} needs a value: {name} {flag.metavar}")
            text = piece[1]
        if flag.repeat:
            values[key].append(flag.value(text))
        else:
            values[key] = flag.value(text)
    return values, rest


def parse_mixed(flags: Sequence[Flag], words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """As `parse`, for verbs that take no command: flags may stand behind and between the other words, too."""
    flat: list[str] = []
    others: list[str] = []
    rest = list(words)
    while rest:
        if rest[0] == "--":
            others += rest[1:]
            break
        if not rest[0].startswith("-") or rest[0] == "-":
            others.append(rest.pop(0))
            continue
        pieces, _ = walk(flags, rest)
        flat += pieces[0]
        del rest[: len(pieces[0])]
    return parse(flags, flat)[0], others


def walk(flags: Sequence[Flag], words: Sequence[str]) -> tuple[list[Sequence[str]], list[str]]:
    """(each flag's words, the rest): a flag and its value, `flag=value`, or a flag alone, known or not.

    Finds no mistakes: a flag that lacks its value stands alone.
    """
    with_value = {name for flag in flags if flag.metavar for name in (flag.name, flag.short)}
    pieces: list[Sequence[str]] = []
    position = 0
    while position < len(words):
        word = words[position]
        if word == "--":
            position += 1
            break
        if not word.startswith("-") or word == "-":
            break
        width = 2 if word in with_value else 1
        pieces.append(words[position : position + width])
        position += width
    return pieces, list(words[position:])


def _key(name: str) -> str:
    return name.lstrip("-").replace("-", "_")


def help_text(usage: str, summary: str, flags: Sequence[Flag], more: str = "") -> str:
    """A verb's help. `more` follows the flags as it is."""
    lines = [f"usage: {usage}", "", *_wrapped(summary, 0)]
    shown = [f for f in flags if not f.hidden]
    rows = [(f"{f.short + ', ' if f.short else ''}{f.name}{f.value_shown}", _with_default(f)) for f in shown]
    rows.append(("--help", "Print this."))
    left = min(34, max(len(row[0]) for row in rows)) + 4
    lines += ["", "flags:"]
    for head, text in rows:
        body = _wrapped(text, left)
        if len(head) + 4 > left:
            lines.append("  " + head)
        else:
            body[0] = "  " + head.ljust(left - 2) + body[0][left:]
        lines += body
    if more:
        lines += ["", more.strip("\n")]
    return "\n".join(lines) + "\n"


def _with_default(flag: Flag) -> str:
    text = flag.help
    if flag.repeat:
        text += " May be repeated."
    if isinstance(flag.default, str) and flag.default:
        text += f" Default: {flag.default}."
    return text


def _wrapped(text: str, indent: int) -> list[str]:
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split():
            if line and indent + len(line) + 1 + len(word) > WIDTH:
                lines.append(" " * indent + line)
                line = word
            else:
                line = f"{line} {word}" if line else word
        lines.append(" " * indent + line if line else "")
    return lines
