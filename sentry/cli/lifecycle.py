"""Verbs that change what a sandbox does as a whole: start, pause, resume, kill, wait, delete."""

from __future__ import annotations

import os
import signal
import sys

from trapline.sentry.cli.flags import Flag, UsageError, VerbError
from trapline.sentry.cli.verb import Verb, ask, find, number, print_json

TYPE_CHECKING = False  # not imported: typing costs half as much as Python's own start
if TYPE_CHECKING:
    from typing import Any

    from trapline.sentry.control.records import Record

_BRIEF = 1.0  # seconds for one that is ending by itself
_PATIENCE = 10.0  # seconds for a sandbox that was killed to be gone, before its sentry is killed


def signal_number(text: str) -> int:
    """`9`, `KILL` or `SIGKILL`. UsageError."""
    if text.isdecimal():
        if 1 <= int(text) <= 64:
            return int(text)
    else:
        bare = text.upper().removeprefix("SIG")
        if bare == "RTMIN" or bare == "RTMAX":
            return 34 if bare == "RTMIN" else 64
        sign, offset = bare[5:6], bare[6:]
        if bare[:5] in ("RTMIN", "RTMAX") and sign in ("+", "-") and offset.isdecimal():
            value = (34 if bare[:5] == "RTMIN" else 64) + int(sign + offset)
            if 34 <= value <= 64:
                return value
        found = getattr(signal, f"SIG{bare}", None)
        if isinstance(found, signal.Signals):
            return int(found)
    raise UsageError(f"there is no signal {text}: a number from 1 to 64, or a name such as TERM or RTMIN+1")


def _simple(method: str) -> Any:
    def action(values: dict[str, Any], words: list[str]) -> int:
        ask(find(values, words[0]), method)
        return 0

    return action


def _pause(values: dict[str, Any], words: list[str]) -> int:
    ask(find(values, words[0]), "pause", freeze_clocks=bool(values["freeze_clocks"]))
    return 0


def _kill(values: dict[str, Any], words: list[str]) -> int:
    signo = signal_number(words[1] if len(words) > 1 else "TERM")
    if sum(1 for name in ("all", "pid", "pgid") if values[name]) > 1:
        raise UsageError("--all, --pid and --pgid exclude one another")
    record = find(values, words[0])
    if values["all"] and not record.is_live():
        return 0  # as other runtimes have it: all of none
    ask(record, "kill", signal=signo, pid=values["pid"], pgid=values["pgid"], all=bool(values["all"]))
    return 0


def _wait(values: dict[str, Any], words: list[str]) -> int:
    if sum(1 for name in ("checkpoint", "restore", "pid") if values[name] is not None) > 1:
        raise UsageError("--checkpoint, --restore and --pid exclude one another")
    if values["checkpoint"] is not None:
        return _wait_checkpoint(values, words)
    if len(words) > 1:
        raise UsageError(f"'{words[1]}' is too much: waits for one sandbox")
    record = find(values, words[0])
    if values["restore"]:
        print_json({"id": record.id, "checkpoints": ask(record, "wait_restore")["count"]})
        return 0
    print_json({"id": record.id, "exitStatus": exit_status(record, values["pid"])})
    return 0


def _checkpoint_number(text: str) -> int:
    if not text.isdecimal() or int(text) >= 1 << 32:
        raise ValueError("takes the number of a checkpoint")
    return int(text)


def _wait_checkpoint(values: dict[str, Any], words: list[str]) -> int:
    """`--checkpoint=N ID`, `--checkpoint N ID`, or without a number the next attempt."""
    number, rest = values["checkpoint"], list(words)
    if number is True and len(rest) > 1:
        # A sandbox's id may be a number, too: of two the first is the checkpoint's.
        place = next((i for i, word in enumerate(rest) if word.isdecimal()), None)
        if place is None:
            raise UsageError(f"--checkpoint takes the number of a checkpoint, not '{rest[0]}': --checkpoint N ID")
        number = _checkpoint_number(rest.pop(place))
    if len(rest) > 1:
        raise UsageError(f"'{rest[1]}' is too much: --checkpoint N ID")
    record = find(values, rest[0])
    count = ask(record, "wait_checkpoint", number=None if number is True else number)["count"]
    print_json({"id": record.id, "checkpoints": count})
    return 0


def exit_status(record: Record, pid: int | None = None) -> int:
    """Wait for the end of a process, or of the sandbox; as a shell gives it. VerbError."""
    from trapline.sentry.control import records
    from trapline.sentry.control.client import ControlError, Gone

    try:
        with record.client() as client:
            return int(client.call("wait", pid=pid)["status"])
    except (Gone, records.RecordError):
        if pid is not None:
            raise VerbError(f"process {pid} does not exist: sandbox {record.id} is not running") from None
    except ControlError as error:
        raise VerbError(str(error)) from None
    # It has ended, and writes that down; or was killed in between.
    await_end(record, None)
    try:
        status = int(records.find(os.path.dirname(record.directory), record.id).info.get("exit_status", -1))
    except records.RecordError:
        raise VerbError(f"sandbox {record.id} has ended, and is written down no more") from None
    if status < 0:
        raise VerbError(f"the sentry of sandbox {record.id} was killed: there is no exit status")
    return status


def await_end(record: Record, seconds: float | None) -> bool:
    """Wait for the end of a sentry; whether it came. Its lock may be free before its process is gone."""
    import select

    try:
        handle = os.pidfd_open(record.pid)
    except OSError:
        return True
    try:
        if not record.is_live():
            return True  # and the pid may be another's by now
        poller = select.poll()
        poller.register(handle, select.POLLIN)
        return bool(poller.poll(None if seconds is None else int(seconds * 1000)))
    finally:
        os.close(handle)


def _delete(values: dict[str, Any], words: list[str]) -> int:
    from trapline.sentry.control.records import NoSuchSandbox, RecordError, check_id
    from trapline.sentry.control.records import find as find_record

    failed = 0
    for name in words:
        try:
            check_id(name)
            record = find_record(values["state_dir"], name)
            delete(record, bool(values["force"]))
        except NoSuchSandbox as error:
            if not values["force"]:
                failed = _say(words, error)
        except (RecordError, VerbError) as error:
            failed = _say(words, error)
    return failed


def _say(words: list[str], error: Exception) -> int:
    if len(words) == 1:
        raise VerbError(str(error))
    print(f"trapline delete: {error}", file=sys.stderr)
    return 128


def delete(record: Record, force: bool) -> None:
    """Remove a stopped or created sandbox, with `force` any. VerbError, RecordError."""
    from trapline.platform import state_dir

    if not record.named:
        raise VerbError(f"sandbox {record.id} belongs to a `do`, and goes with it")
    status = "running" if force and record.is_live() else record.status()
    if status not in ("stopped", "created") and not force:
        raise VerbError(f"cannot delete sandbox {record.id} that is {status}: stop it first, or use --force")
    if status != "stopped":
        _end(record)
    elif record.is_live() and not await_end(record, _PATIENCE):  # after a checkpoint its memory is freed yet
        raise VerbError(f"cannot delete sandbox {record.id}: its processes are not gone after {_PATIENCE:g} s")
    if not state_dir.remove_stopped(record.directory):
        raise VerbError(f"cannot delete sandbox {record.id}: it is being used")


def _end(record: Record) -> None:
    """Kill all in it, and its sentry if that does not end it."""
    try:
        ask(record, "kill", signal=int(signal.SIGKILL), all=True)
    except VerbError:
        patience = _BRIEF  # it ends already, or does not serve yet
    else:
        patience = _PATIENCE
    if await_end(record, patience):
        return
    try:
        handle = os.pidfd_open(record.pid)
    except OSError:
        return
    try:
        if record.is_live():  # by now the descriptor cannot mean another process
            signal.pidfd_send_signal(handle, signal.SIGKILL)
    except OSError as error:
        raise VerbError(f"cannot end sandbox {record.id}: {error.strerror}") from None
    finally:
        os.close(handle)
    if not await_end(record, _PATIENCE):
        raise VerbError(f"cannot end sandbox {record.id}: its sentry {record.pid} does not die")


_PID = Flag("--pid", "PID", "A process of the sandbox in place of the first.", parse=number)

VERBS = (
    Verb(
        "start",
        "ID",
        "Let the first program of a created sandbox execute. A sandbox of `run` needs none.",
        (),
        _simple("start"),
        examples="  trapline create --bundle . box && trapline start box\n",
    ),
    Verb(
        "pause",
        "ID",
        "Stop every task of a sandbox at a clean point. None of them notices, but for the time that passes.",
        (Flag("--freeze-clocks", help="Let MONOTONIC and BOOTTIME, and timers on them, stand still meanwhile."),),
        _pause,
        examples="  trapline pause box\n",
    ),
    Verb("resume", "ID", "Let a paused sandbox go on.", (), _simple("resume"), examples="  trapline resume box\n"),
    Verb(
        "kill",
        "[FLAGS] ID [SIGNAL]",
        "Send a signal, by name or number, to the first process of a sandbox: TERM where none is given.",
        (
            Flag("--all", help="To every process of the sandbox. No error where it has stopped.", short="-a"),
            _PID,
            Flag("--pgid", "PGID", "A process group of the sandbox.", parse=number),
        ),
        _kill,
        examples="  trapline kill box\n  trapline kill --pid 7 box USR1\n  trapline kill --all box KILL\n",
        words=(1, 2),
    ),
    Verb(
        "wait",
        "[FLAGS] ID",
        "Wait for the end of a sandbox, or of a process that `exec` started, and print its exit status as JSON (128 "
        "+ N for signal N). Or wait for one of its checkpoints, and print how many there are: an attempt that fails is "
        "an error. See docs/checkpoint-waiting.md.",
        (
            Flag("--pid", "PID", "A process that `exec --detach` started, by its id in the sandbox.", parse=number),
            Flag(
                "--checkpoint",
                help="Until there have been N checkpoints, those before a restore included; without N until the next "
                "attempt is over. N may also be the next word.",
                optional="N",
                parse=_checkpoint_number,
            ),
            Flag("--restore", help="Until all of the checkpoint is there that it was restored from."),
        ),
        _wait,
        examples="  trapline wait box\n  trapline wait --checkpoint 3 box\n  trapline wait --restore box\n",
        words=(1, 2),
    ),
    Verb(
        "delete",
        "[FLAGS] ID...",
        "Remove a sandbox that has stopped, or was created and not started, and what is written down of it.",
        (Flag("--force", help="Kill it first if it runs; no error where there is none.", short="-f"),),
        _delete,
        examples="  trapline delete box\n  trapline delete --force box\n",
        words=(1, 1 << 16),
    ),
)
