"""`trapline attach`: the caller's terminal in front of that of a sandbox."""

from __future__ import annotations

import os
import select
import signal
import sys
from base64 import b64decode
from typing import TYPE_CHECKING, Any

from trapline.sentry.cli.flags import Flag, VerbError
from trapline.sentry.cli.verb import Verb, find

if TYPE_CHECKING:
    from trapline.sentry.control.client import Client
    from trapline.sentry.control.records import Record

_CHUNK = 4096


def _keys(text: str) -> bytes:
    """`ctrl-p,ctrl-q` as what these keys send."""
    found = b""
    for key in text.split(",") if text else ():
        if key.startswith("ctrl-") and len(key) == 6 and (key[5].isalpha() or key[5] in "@[\\]^_"):
            found += bytes([ord(key[5].upper()) & 0x1F])
        elif len(key) == 1 and key.isascii():
            found += key.encode()
        else:
            raise ValueError("takes keys such as ctrl-p,ctrl-q")
    return found


def _attach(values: dict[str, Any], words: list[str]) -> int:
    from trapline.sentry.control.client import ControlError, Gone
    from trapline.sentry.control.records import RecordError

    record = find(values, words[0])
    try:
        with record.client() as client:
            answer = client.call("attach")
            handle = client.take_descriptor()
            os.set_blocking(handle, True)
            return _Attached(record, client, handle, values["detach_keys"], b64decode(answer["shown"])).run()
    except Gone:
        raise VerbError(f"sandbox {record.id} is not running") from None
    except (ControlError, RecordError) as error:
        raise VerbError(str(error)) from None


class _Attached:
    """Copies both ways until the sandbox hangs up, or its user leaves by the keys for that."""

    def __init__(self, record: Record, client: Client, handle: int, keys: bytes, shown: bytes) -> None:
        self.record = record
        self.client = client
        self.handle = handle
        self.keys = keys
        self.shown = shown
        self._typed = b""  # the keys for leaving, as far as they were typed

    def run(self) -> int:
        """0 after leaving, else the sandbox's exit status."""
        from trapline.platform import caller_terminal
        from trapline.platform.terminal_relay import make_raw

        read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        signal.signal(signal.SIGWINCH, lambda *_: None)
        for signo in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(signo, lambda number, _: sys.exit(128 + number))
        terminal = caller_terminal.find() if os.isatty(0) else None
        if terminal is not None:
            make_raw(0)
        left = False
        try:
            _write(1, self.shown)
            self._resize()
            left = self._copy(read)
        finally:
            if terminal is not None:
                terminal.restore()
            os.close(self.handle)
        if left:
            print(f"\nleft sandbox {self.record.id}: it goes on", file=sys.stderr)
            return 0
        from trapline.sentry.cli.lifecycle import exit_status

        return exit_status(self.record)

    def _copy(self, woken: int) -> bool:
        """Whether the user left."""
        sources = [0, self.handle, woken]
        while True:
            ready, _, _ = select.select(sources, [], [])
            if woken in ready:
                os.read(woken, 64)
                self._resize()
            if self.handle in ready:
                try:
                    data = os.read(self.handle, _CHUNK)
                except OSError:
                    data = b""
                if not data:
                    return False
                _write(1, data)
            if 0 in ready:
                data = os.read(0, _CHUNK)
                if not data:
                    sources.remove(0)
                elif self._type(data):
                    return True

    def _type(self, data: bytes) -> bool:
        """Pass on what was typed; whether it was the keys for leaving."""
        if not self.keys:
            _write(self.handle, data)
            return False
        for code in data:
            key = bytes([code])
            if self.keys[len(self._typed) :].startswith(key):
                self._typed += key
                if self._typed == self.keys:
                    return True
                continue
            held, self._typed = self._typed, b""
            if held and self.keys.startswith(key):
                self._typed = key
                _write(self.handle, held)
            else:
                _write(self.handle, held + key)
        return False

    def _resize(self) -> None:
        from trapline.sentry.control.client import ControlError

        try:
            columns, rows = os.get_terminal_size(0)
            self.client.call("resize", rows=rows, columns=columns)
        except (OSError, ControlError):
            pass  # no terminal of ours, or one without a size


def _write(fd: int, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:
            select.select([], [fd], [])
        except OSError:
            if fd == 1:
                raise
            return  # it hung up, which is found by reading


VERBS = (
    Verb(
        "attach",
        "[FLAGS] ID",
        "Bring the terminal of a detached sandbox to this one, with what it showed last. The exit status is the "
        "sandbox's, 0 after leaving it.",
        (
            Flag(
                "--detach-keys",
                "KEYS",
                "Leave with these keys. Default: ctrl-p,ctrl-q.",
                default=b"\x10\x11",
                parse=_keys,
            ),
        ),
        _attach,
        examples="  trapline run -d -t --id box bash && trapline attach box\n",
    ),
)
