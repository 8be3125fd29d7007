"""The commands as data, and the pages and scripts made from that: docs/cli.md and shell completion."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from trapline.sentry.cli.flags import Flag
from trapline.sentry.cli.main import VERBS, global_flags, module_of


class Command:
    """One verb as it is declared."""

    __slots__ = ("examples", "flags", "name", "short", "summary", "usage")

    def __init__(self, name: str) -> None:
        module = module_of(name)
        self.name = name
        self.short = VERBS[name][1]
        declared = [verb for verb in getattr(module, "VERBS", ()) if verb.name == name]
        flags: Sequence[Flag]
        if declared:
            self.usage, self.summary, flags = declared[0].usage, declared[0].summary, declared[0].flags
            self.examples = declared[0].examples
        else:
            self.usage, self.summary, flags = module.USAGE, module.SUMMARY, module.FLAGS
            text: str = getattr(module, "MORE", getattr(module, "EXAMPLES", ""))
            self.examples = text.partition("examples:\n")[2]
        self.flags = [flag for flag in flags if not flag.hidden]


def commands() -> Iterator[Command]:
    """All verbs, in the order of the help."""
    return map(Command, VERBS)


_DOCUMENT = """# The command line

Made from the definitions in `sentry/cli/` by `make docs`: change it there.

`trapline VERB --help` prints the same. `--flag value` and `--flag=value` are the same; `--` ends the flags. A mistake
in a command line is one line on standard error that says what would be right, and exit status 2. What a verb cannot do
is one line, too, and exit status 128, as runsc has it (`do`: 125); texts that scripts look for are those of other
runtimes: `does not exist`, `already exists`, `is not running`.

"""
_GLOBAL = """## Before the verb

Callers of OCI runtimes put these before the verb; what belongs to a verb's own flag is handed to it.
`--systemd-cgroup`, `--cgroup-manager`, `--ignore-cgroups` and `--rootless` are taken and mean nothing here.

"""


def markdown() -> str:
    """The document docs/cli.md."""
    parts = [_DOCUMENT, "| verb | |\n|---|---|\n"]
    parts += [f"| [`{name}`](#{name}) | {text} |\n" for name, (_, text) in VERBS.items()]
    parts += ["\n", _GLOBAL, _table([flag for flag in global_flags() if not flag.hidden])]
    for command in commands():
        parts.append(f"\n## {command.name}\n\n    {command.usage}\n\n{command.summary}\n\n")
        if command.flags:
            parts.append(_table(command.flags))
        if command.examples:
            lines = command.examples.strip("\n").splitlines()
            parts.append("\nExamples:\n\n" + "".join([f"    {line.strip()}\n" for line in lines]))
    return "".join(parts)


def _table(flags: Sequence[Flag]) -> str:
    rows = ["| flag | |\n|---|---|\n"]
    for flag in flags:
        names = ", ".join([f"`{name}{flag.value_shown}`" for name in _names(flag)])
        text = flag.help + (" May be repeated." if flag.repeat else "")
        if isinstance(flag.default, str) and flag.default:
            text += f" Default: {flag.default}."
        rows.append(f"| {_cell(names)} | {_cell(text)} |\n")
    return "".join(rows)


def _names(flag: Flag) -> list[str]:
    return [name for name in (flag.short, flag.name) if name]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


#: Verbs whose first word is a sandbox's id.
WITH_ID = (
    "start", "exec", "attach", "kill", "pause", "resume", "checkpoint", "wait", "delete", "state", "ps", "events",
)  # fmt: skip
#: Verbs whose words are directories.
WITH_DIRECTORY = ("statefile",)
#: Verbs whose words are a command of the host's.
WITH_COMMAND = ("do", "run", "compare")
_DIRECTORIES = ("DIR",)
_FILES = ("FILE", "SOCKET", "SRC[:DST[:ro]]")


def _what(flag: Flag) -> str:
    """What its value is: words to choose from, or `@dir`, `@file`, `@any`; empty: it takes none."""
    if flag.choices:
        return " ".join(flag.choices)
    if not flag.metavar:
        return ""
    return "@dir" if flag.metavar in _DIRECTORIES else "@file" if flag.metavar in _FILES else "@any"


def bash() -> str:
    """A completion script for bash 4 and newer."""
    flags, values = [], []
    for command in commands():
        names = [name for flag in command.flags for name in _names(flag)] + ["--help"]
        flags.append(f"    {command.name}) echo '{' '.join(names)}' ;;\n")
        for flag in command.flags:
            if flag.metavar:
                pattern = " | ".join([f"{command.name}:{name}" for name in _names(flag)])
                values.append(f"    {pattern}) echo '{_what(flag)}' ;;\n")
    return (
        _BASH.replace("@VERBS@", " ".join([*VERBS, "help"]))
        .replace("@FLAGS@", "".join(flags).rstrip("\n"))
        .replace("@VALUES@", "".join(values).rstrip("\n"))
        .replace("@WITH_ID@", "|".join(WITH_ID))
        .replace("@WITH_DIRECTORY@", "|".join(WITH_DIRECTORY))
        .replace("@WITH_COMMAND@", "|".join(WITH_COMMAND))
    )


def zsh() -> str:
    """A completion script for zsh, for a file `_trapline` in its fpath or to be sourced after compinit."""
    verbs = "\n".join([f"    {_zsh_quoted(f'{name}:{text}')}" for name, (_, text) in VERBS.items()])
    cases = []
    for command in commands():
        if command.name == "completion":
            continue  # whose word is none of the directory's
        lines = [f"        {_zsh_quoted(line)}" for flag in command.flags for line in _zsh_flag(flag)]
        lines.append("        '--help[Print the help.]'")
        if command.name in WITH_ID:
            lines.append("        '1:id:_trapline_ids'")
        if command.name == "kill":
            lines.append("        '2:signal:(HUP INT QUIT KILL USR1 USR2 TERM CONT STOP TSTP)'")
        if command.name in WITH_DIRECTORY:
            lines.append("        '1:directory:_files -/'")
        if command.name in WITH_COMMAND:
            lines.append("        '*::command:_normal'")
        cases.append(f"    {command.name}) _arguments -S \\\n" + " \\\n".join(lines) + " ;;\n")
    return _ZSH.replace("@VERBS@", verbs).replace("@CASES@", "".join(cases).rstrip("\n"))


def _zsh_flag(flag: Flag) -> Iterator[str]:
    text = flag.help.replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]").replace(":", "\\:")
    what = _what(flag)
    ending = ""
    if what:
        action = {"@dir": "_files -/", "@file": "_files", "@any": " "}.get(what, f"({what})")
        ending = f":{flag.metavar.split('[')[0].lower().replace(':', '')}:{action}"
    for name in _names(flag):
        repeat = "*" if flag.repeat else ""
        equals = "=" if what and name.startswith("--") else ""
        yield f"{repeat}{name}{equals}[{text}]{ending}"


def _zsh_quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def fish() -> str:
    """A completion script for fish."""
    lines = ["complete -c trapline -f\n"]
    none = "not __fish_seen_subcommand_from " + " ".join(VERBS)
    for name, (_, text) in VERBS.items():
        lines.append(f"complete -c trapline -n {_fish(none)} -a {name} -d {_fish(text)}\n")
    for command in commands():
        seen = _fish(f"__fish_seen_subcommand_from {command.name}")
        for flag in command.flags:
            line = f"complete -c trapline -n {seen}"
            for name in _names(flag):
                line += f" -l {name[2:]}" if name.startswith("--") else f" -s {name[1:]}"
            what = _what(flag)
            if what in ("@dir", "@file"):
                line += " -rF"
            elif what:
                line += " -x" + (f" -a {_fish(what)}" if what != "@any" else "")
            lines.append(f"{line} -d {_fish(flag.help)}\n")
        if command.name in WITH_ID:
            lines.append(f"complete -c trapline -n {seen} -a '(trapline list --quiet 2>/dev/null)'\n")
        if command.name in WITH_DIRECTORY:
            lines.append(f"complete -c trapline -n {seen} -a '(__fish_complete_directories)'\n")
        if command.name in WITH_COMMAND:
            lines.append(f"complete -c trapline -n {seen} -a '(__fish_complete_subcommand)'\n")
    return "".join(lines)


def _fish(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SHELLS: dict[str, Any] = {"bash": bash, "zsh": zsh, "fish": fish}

_BASH = """# Completion for trapline: source it, or put it into ~/.local/share/bash-completion/completions/trapline

_trapline_flags() {
    case $1 in
@FLAGS@
    esac
}

# What the value of verb:flag is: words, or @dir, @file, @any; nothing for a flag that takes none.
_trapline_value() {
    case $1 in
@VALUES@
    esac
}

_trapline_words() { # candidates, also with other characters than letters
    local IFS=$'\\n'
    COMPREPLY=($(compgen -W "${1// /$'\\n'}" -- "$2"))
}

_trapline_path() {
    local IFS=$'\\n'
    compopt -o filenames 2>/dev/null
    COMPREPLY=($(compgen "$1" -- "$2"))
}

_trapline() {
    local cur=${COMP_WORDS[COMP_CWORD]} verb= position=1 seen=0 word value
    local -a words=("${COMP_WORDS[@]:0:COMP_CWORD}")
    COMPREPLY=()
    # bash cuts --flag=value at the equals sign
    [ "$cur" = = ] && cur=
    while [ $position -lt ${#words[@]} ]; do
        word=${words[position]}
        value=
        if [ -z "$verb" ]; then
            case $word in
                --root | --log | --log-format | --debug-log | --platform | --network) position=$((position + 1)) ;;
                -*) ;;
                *) verb=$word ;;
            esac
        elif [ "$word" = -- ]; then
            seen=99
            break
        elif [ "${word#-}" != "$word" ]; then
            value=$(_trapline_value "$verb:$word")
            [ "${words[position + 1]}" = = ] && position=$((position + 1))
            if [ -n "$value" ]; then
                position=$((position + 1))
                if [ $position -ge ${#words[@]} ]; then
                    case $value in
                        @dir) _trapline_path -d "$cur" ;;
                        @file) _trapline_path -f "$cur" ;;
                        @any) ;;
                        *) _trapline_words "$value" "$cur" ;;
                    esac
                    return
                fi
            fi
        else
            seen=$((seen + 1))
        fi
        position=$((position + 1))
    done
    if [ -z "$verb" ]; then
        _trapline_words "@VERBS@ --root --log --log-format --debug --debug-log --platform --network --version" "$cur"
    elif [ "${cur#-}" != "$cur" ] && [ $seen -eq 0 ]; then
        _trapline_words "$(_trapline_flags "$verb")" "$cur"
    else
        case $verb in
            @WITH_ID@)
                if [ $seen -eq 0 ]; then
                    _trapline_words "$(trapline list --quiet 2>/dev/null | tr '\\n' ' ')" "$cur"
                elif [ "${cur#-}" != "$cur" ] && [ "$verb" != exec ]; then
                    _trapline_words "$(_trapline_flags "$verb")" "$cur"
                elif [ "$verb" = kill ]; then
                    _trapline_words "HUP INT QUIT KILL USR1 USR2 TERM CONT STOP TSTP" "$cur"
                fi
                ;;
            @WITH_DIRECTORY@) _trapline_path -d "$cur" ;;
            @WITH_COMMAND@)
                if [ $seen -eq 0 ]; then _trapline_path -c "$cur"; else _trapline_path -f "$cur"; fi
                [ $seen -eq 99 ] && [ "${words[-1]}" = -- ] && _trapline_path -c "$cur"
                ;;
            help) _trapline_words "@VERBS@" "$cur" ;;
            completion) _trapline_words "bash zsh fish" "$cur" ;;
        esac
    fi
}

complete -F _trapline trapline
"""

_ZSH = """#compdef trapline
# Completion for trapline: a file _trapline in a directory of fpath, or sourced after compinit.

_trapline_ids() {
  local -a ids
  ids=(${(f)"$(trapline list --quiet 2>/dev/null)"})
  compadd -a ids
}

_trapline() {
  local -a verbs
  verbs=(
@VERBS@
  )
  while (( CURRENT > 2 )) && [[ $words[2] == -* ]]; do # global flags
    local -i taken=1
    case $words[2] in
      --root|--log|--log-format|--debug-log|--platform|--network) taken=2 ;;
    esac
    (( CURRENT - taken < 2 )) && { _files; return }
    words[2,taken+1]=()
    (( CURRENT -= taken ))
  done
  if (( CURRENT == 2 )); then
    _describe verb verbs
    return
  fi
  local verb=$words[2]
  shift words
  (( CURRENT-- ))
  case $verb in
@CASES@
    help) (( CURRENT == 2 )) && _describe verb verbs ;;
    completion) (( CURRENT == 2 )) && compadd bash zsh fish ;;
  esac
}

# As a file of fpath this is the function's body when it is first called.
if [[ $funcstack[1] == _trapline ]]; then
  _trapline "$@"
else
  compdef _trapline trapline
fi
"""
