"""The flag parser of the command line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trapline.sentry.cli.flags import WIDTH, Flag, UsageError, did_you_mean, either, help_text, parse, parse_mixed

SHORT = Flag("--user", "UID", "Who.", short="-u")


def number(text: str) -> int:
    if not text.isdecimal():
        raise ValueError("takes a number")
    return int(text)


FLAGS = (
    Flag("--name", "NAME", "A name."),
    Flag("--count", "N", "How many.", parse=number, default=3),
    Flag("--item", "ITEM", "One of several.", repeat=True),
    Flag("--mode", help="How.", choices=("slow", "fast"), default="slow"),
    Flag("--dry-run", help="Only say what would be done."),
    Flag("--secret", "X", "For tests.", hidden=True),
)


def test_defaults() -> None:
    values, rest = parse(FLAGS, [])
    assert rest == []
    assert values == {
        "name": None, "count": 3, "item": [], "mode": "slow", "dry_run": None, "secret": None, "help": False,
    }  # fmt: skip


def test_both_ways_of_giving_a_value() -> None:
    values, rest = parse(FLAGS, ["--name", "a", "--count=4", "--dry-run", "--item", "x", "--item=y=z", "cmd"])
    assert (values["name"], values["count"], values["dry_run"]) == ("a", 4, True)
    assert values["item"] == ["x", "y=z"]
    assert rest == ["cmd"]


@pytest.mark.parametrize(
    ("words", "rest"),
    [
        (["id", "--name", "b", "TERM", "-u", "5"], ["id", "TERM"]),
        (["-u", "5", "--name=b", "id"], ["id"]),
        (["--name", "b", "-u", "5", "--", "id", "--dry-run"], ["id", "--dry-run"]),
        (["-", "-u", "5", "--name", "b"], ["-"]),
    ],
)
def test_flags_may_follow_where_there_is_no_command(words: list[str], rest: list[str]) -> None:
    values, found = parse_mixed((*FLAGS, SHORT), words)
    assert (values["name"], values["user"], values["dry_run"], found) == ("b", "5", None, rest)


def test_mistakes_among_mixed_words() -> None:
    for words, says in ((["id", "--nam", "b"], "did you mean --name?"), (["id", "-u"], "-u needs a value")):
        with pytest.raises(UsageError, match=says.replace("?", r"\?")):
            parse_mixed((*FLAGS, SHORT), words)
    assert parse_mixed(FLAGS, ["id", "--help"])[0]["help"]


def test_defaults_of_repeated_flags_are_not_shared() -> None:
    parse(FLAGS, ["--item", "x"])
    assert parse(FLAGS, [])[0]["item"] == []


@pytest.mark.parametrize(
    ("words", "rest"),
    [
        (["ls", "--name", "b"], ["ls", "--name", "b"]),
        (["--", "--name", "b"], ["--name", "b"]),
        (["-", "x"], ["-", "x"]),
        (["--name", "--", "--", "--", "x"], ["--", "x"]),
        ([""], [""]),
    ],
)
def test_where_the_command_begins(words: list[str], rest: list[str]) -> None:
    assert parse(FLAGS, words)[1] == rest


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--nmae", "x"], "there is no flag --nmae: did you mean --name?"),
        (["--nmae=x"], "there is no flag --nmae: did you mean --name?"),
        (["-z"], "there is no flag -z: see --help"),
        (["--name"], "--name needs a value: --name NAME"),
        (["--dry-run=yes"], "--dry-run takes no value"),
        (["--count", "many"], "--count takes a number, not 'many'"),
        (["--mode", "fats"], "--mode takes slow or fast, not 'fats': did you mean fast?"),
    ],
)
def test_mistakes_say_what_would_be_right(words: list[str], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(FLAGS, words)
    assert str(caught.value) == says


def test_hidden_flags_work_but_are_not_shown() -> None:
    assert parse(FLAGS, ["--secret", "1"])[0]["secret"] == "1"
    assert "--secret" not in help_text("x", "y", FLAGS)
    with pytest.raises(UsageError, match="see --help"):
        parse(FLAGS, ["--secrt", "1"])


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_stops(word: str) -> None:
    values, rest = parse(FLAGS, ["--name", "a", word, "--nonsense"])
    assert values["help"] is True
    assert rest == []


def test_help_fits_and_names_every_flag() -> None:
    text = help_text("trapline verb", "What it does. " * 20, FLAGS, "\nexamples:\n  x\n")
    assert all(len(line) <= WIDTH for line in text.splitlines())
    for flag in FLAGS:
        assert (flag.name in text) != flag.hidden
    assert "slow|fast" in text
    assert "Default: slow." in text
    assert text.startswith("usage: trapline verb\n") and text.endswith("examples:\n  x\n")


@given(st.lists(st.text(max_size=8), max_size=8))
def test_the_command_is_never_touched(command: list[str]) -> None:
    assert parse(FLAGS, ["--name", "n", "--", *command])[1] == command


@given(
    st.lists(st.sampled_from(["--name", "--count", "--mode", "--dry-run", "--", "=", "a", "--item=1", "-"]))
)
def test_any_words_parse_or_are_a_usage_error(words: list[str]) -> None:
    try:
        values, rest = parse(FLAGS, words)
    except UsageError as error:
        assert "\n" not in str(error)
    else:
        assert rest == words[len(words) - len(rest) :]
        assert set(values) == {"name", "count", "item", "mode", "dry_run", "secret", "help"}


def test_words() -> None:
    assert either(["a"]) == "a"
    assert either(["a", "b"]) == "a or b"
    assert either(["a", "b", "c"]) == "a, b or c"
    assert did_you_mean("stats", ["--stats"]) == ": did you mean --stats?"
    assert did_you_mean("zzz", ["--stats"]) == ""


def test_a_value_that_may_be_left_out() -> None:
    flags = (Flag("--number", help="A number, or any.", optional="N", parse=number), Flag("--name", "NAME", "A name."))
    assert parse(flags, [])[0]["number"] is None
    assert parse(flags, ["--number", "7"]) == ({"number": True, "name": None, "help": False}, ["7"])
    assert parse(flags, ["--number=7", "x"]) == ({"number": 7, "name": None, "help": False}, ["x"])
    with pytest.raises(UsageError, match=r"^--number takes a number, not 'x'$"):
        parse(flags, ["--number=x"])
    assert parse_mixed(flags, ["a", "--number", "--name", "b", "c"])[0]["name"] == "b"
    assert "  --number[=N]  " in help_text("x", "y", flags)
