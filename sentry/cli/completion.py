"""`trapline completion`: scripts that complete command lines, made from the flags' definitions."""

from __future__ import annotations

import sys

from trapline.sentry.cli.flags import Flag, UsageError, did_you_mean, either, help_text, parse

SHELL_NAMES = ("bash", "zsh", "fish")
USAGE = f"trapline completion {'|'.join(SHELL_NAMES)}"
SUMMARY = "Print a script that completes trapline's command lines in a shell: verbs, flags, ids of sandboxes, files."
FLAGS: tuple[Flag, ...] = ()
MORE = """
examples:
  source <(trapline completion bash)
  trapline completion zsh > ~/.zfunc/_trapline
  trapline completion fish > ~/.config/fish/completions/trapline.fish
"""


def run(words: list[str]) -> int:
    """Run the verb; the exit status. UsageError."""
    values, rest = parse(FLAGS, words)
    if values["help"]:
        sys.stdout.write(help_text(USAGE, SUMMARY, FLAGS, MORE))
        return 0
    if len(rest) != 1:
        raise UsageError(f"takes the name of a shell: {either(SHELL_NAMES)}")
    if rest[0] not in SHELL_NAMES:
        raise UsageError(f"knows {either(SHELL_NAMES)}, not '{rest[0]}'{did_you_mean(rest[0], SHELL_NAMES)}")
    from trapline.sentry.cli import reference

    sys.stdout.write(reference.SHELLS[rest[0]]())
    return 0
