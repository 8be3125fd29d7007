"""`trapline restore`: a sandbox that goes on from a checkpoint."""

from __future__ import annotations

import os
import sys
from typing import Any

from trapline.sentry.cli import do
from trapline.sentry.cli.flags import Flag, UsageError, VerbError
from trapline.sentry.cli.strace_flags import STRACE_FLAGS
from trapline.sentry.cli.verb import Verb, path
from trapline.sentry.options import RestoreOptions

_TAKEN = (
    "--log", "--log-format", "--debug", "--core-dir", "--stats", "--stats-json", "--watchdog", "--checkpoint-dir",
    "--save-hook", "--restore-hook", "--hook-timeout", "--without",
)  # fmt: skip


def _image(text: str) -> str:
    found = path(text)
    if not os.path.isdir(found):
        raise ValueError("takes a directory that `trapline checkpoint` made")
    return found


def _from_do() -> tuple[Flag, ...]:
    """The flags that concern the sentry, and not what the sandbox is: that is in the image."""
    found = [flag for flag in do.FLAGS if flag.name in _TAKEN or flag in STRACE_FLAGS]
    return (Flag("--platform", help="As for do. Default: the one that it had.", choices=("seccomp", "ptrace")), *found)


def restore_options(values: dict[str, Any], words: list[str]) -> RestoreOptions:
    """UsageError, VerbError."""
    if values["image_path"] is None:
        raise UsageError("there is no --image-path DIR, which says where the checkpoint is")
    if words and values["id"]:
        raise UsageError(f"two ids, {values['id']} and {words[0]}: give one")
    name = values["id"] or (words[0] if words else "")
    if name:
        from trapline.sentry.control import records

        try:
            records.check_id(name)
        except records.RecordError as error:
            raise VerbError(str(error)) from None
    elif values["id"] is not None:
        raise UsageError("--id takes a name, not ''")
    elif values["detach"]:
        raise UsageError("--detach needs --id ID, by which the sandbox is found then")
    return RestoreOptions(
        image_path=values["image_path"],
        id=name,
        background=bool(values["background"]),
        clock_continue=bool(values["clock_continue"]),
        detach=bool(values["detach"]),
        pid_file=values["pid_file"],
        progress=sys.stderr.isatty(),
        platform=values["platform"],
        state_dir=values["state_dir"],
        log=values["log"],
        log_format=values["log_format"],
        debug=bool(values["debug"]),
        stats=bool(values["stats"]),
        stats_json=values["stats_json"],
        core_dir=values["core_dir"],
        watchdog=values["watchdog"],
        strace=do.strace(values),
        without=do.without(values["without"]),
        **do.hooks(values),
    )


def _restore(values: dict[str, Any], words: list[str]) -> int:
    options = restore_options(values, words)
    from trapline.platform import restore, state_dir
    from trapline.platform.first_processes import SetupError

    try:
        return restore.restore_sandbox(options)
    except (state_dir.StateDirError, SetupError) as error:
        raise VerbError(str(error)) from None


_OWN = (
    Flag("--image-path", "DIR", "The checkpoint.", parse=_image),
    Flag("--id", "ID", "A name for it. It may also follow the flags. Default: none, as with do."),
    Flag("--detach", help="Return as soon as it goes on.", short="-d"),
    Flag("--background", help="Let it go on at once, and load its memory meanwhile."),
    Flag("--clock-continue", help="Let its clocks go on where they stood, as if no time had passed since."),
    Flag("--pid-file", "FILE", "Write the sentry's id on the host, which ends with the program's status.", parse=path),
)

VERBS = (
    Verb(
        "restore",
        "[FLAGS] --image-path DIR [--id ID]",
        "Make a sandbox from a checkpoint. It goes on where it was, with the same ids, on files of its own as they "
        "were: two from one checkpoint have nothing to do with one another. What was shared with the host is as it is "
        "now. "
        "The exit status is the first program's, 128 if it cannot be restored, 2 for a mistake in the flags.",
        (*_OWN, *_from_do()),
        _restore,
        examples="  trapline restore --image-path ./one\n"
        "  trapline restore --image-path ./one --background --id again -d\n",
        words=(0, 1),
    ),
)
