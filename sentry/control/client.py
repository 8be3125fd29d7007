"""A client of the control server: blocking, for the verbs.

It is what `trapline state` costs beyond Python's own start, so it imports little: neither trio, nor msgspec.
"""

from __future__ import annotations

import json
import os
import socket

TYPE_CHECKING = False  # not imported: typing costs half as much as Python's own start
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

VERSION = 1  # rpc.VERSION
SOCKET = "control.sock"  # in the sandbox's state directory
NO_SUCH_PROCESS = -32001  # rpc.NO_SUCH_PROCESS
_CHUNK = 1 << 16
_MARK = "\U0010ffff".encode()  # names.MARK
_ROOM_FDS = 8


class ControlError(Exception):
    """What the server answered in place of a result, or why there is no answer. One line without a full stop."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code  # 0: not the server's


class Gone(ControlError):
    """Nobody serves the sandbox (any more)."""


class Client:
    """One connection. Usable as a context; closing it ends what the server still does for it."""

    def __init__(self, directory: str, timeout: float | None = None) -> None:
        """`directory`: the sandbox's in the state directory. `timeout`: seconds to wait for anything; None: for ever.
        Gone, ControlError."""
        self._number = 0
        self._held = b""
        self._fds: list[int] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(timeout)
        try:
            self._connect(directory)
            # Not waited for: its answer comes before the first call's.
            self._greeting = self._post("hello", {"version": VERSION}, ())
        except BaseException:
            self._socket.close()
            raise

    def _connect(self, directory: str) -> None:
        # By a descriptor of the directory, since the path of a socket is 107 bytes at most (unix(7)).
        try:
            handle = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise Gone(f"{directory}: {error.strerror}") from None
        try:
            self._socket.connect(f"/proc/self/fd/{handle}/{SOCKET}")
        except (FileNotFoundError, ConnectionRefusedError):
            raise Gone("it is not served") from None
        except OSError as error:
            raise ControlError(f"its control socket: {error.strerror}") from None
        finally:
            os.close(handle)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._socket.close()
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    def fileno(self) -> int:
        """For select and poll."""
        return self._socket.fileno()

    def call(self, method: str, fds: tuple[int, ...] = (), **params: Any) -> Any:
        """The result of one call. ControlError with the server's words."""
        return self.finish(self.begin(method, fds, **params))

    def begin(self, method: str, fds: tuple[int, ...] = (), **params: Any) -> int:
        """Ask, and do not wait; the number to give to `finish`. One call at a time. ControlError."""
        if fds:
            params["fds"] = len(fds)
        if self._greeting:
            greeting, self._greeting = self._greeting, 0
            number = self._post(method, params, fds)
            self.finish(greeting)
            return number
        return self._post(method, params, fds)

    def finish(self, number: int, told: Callable[[str, dict[str, Any]], None] | None = None) -> Any:
        """Wait for the answer. ControlError. `told` gets what the server says meanwhile: a notification's name and its
        parameters."""
        while True:
            answer = self._receive()
            if "method" in answer:
                if told is not None:
                    told(answer["method"], answer.get("params", {}))
                continue
            if "error" in answer:
                error = answer["error"]
                raise ControlError(error.get("message", "an error without a text"), error.get("code", 0))
            if answer.get("id") == number:
                return answer.get("result")

    def take_descriptor(self) -> int:
        """One that came with an answer; it is the caller's then. ControlError when none did."""
        if not self._fds:
            raise ControlError("the answer came without its descriptor")
        return self._fds.pop(0)

    def _post(self, method: str, params: dict[str, Any], fds: tuple[int, ...]) -> int:
        self._number += 1
        message = {"jsonrpc": "2.0", "id": self._number, "method": method, "params": params}
        text = json.dumps(message, separators=(",", ":"))
        if "\\ud" in text:
            # A name that is not UTF-8, or a character beyond the first 65536, as most are not.
            from trapline.sentry.state.names import escaped_text, walk

            text = json.dumps(walk(message, escaped_text), separators=(",", ":"))
        line = text.encode() + b"\n"
        try:
            if fds:
                sent = socket.send_fds(self._socket, [line], list(fds))
                self._socket.sendall(line[sent:])
            else:
                self._socket.sendall(line)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it hung up, and what it said before is read next
        except TimeoutError:
            raise ControlError("it does not answer") from None
        except OSError as error:
            raise ControlError(f"its control socket: {error.strerror}") from None
        return self._number

    def _receive(self) -> dict[str, Any]:
        pieces = [self._held]
        while b"\n" not in pieces[-1]:
            try:
                data, fds, _, _ = socket.recv_fds(self._socket, _CHUNK, _ROOM_FDS, socket.MSG_CMSG_CLOEXEC)
            except TimeoutError:
                raise ControlError("it does not answer") from None
            except OSError as error:
                raise Gone(f"it hung up: {error.strerror}") from None
            self._fds += fds
            if not data:
                raise Gone("it hung up")
            pieces.append(data)
        line, _, self._held = b"".join(pieces).partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if _MARK in line:
            from trapline.sentry.state.names import unescaped_text, walk

            answer = walk(answer, unescaped_text)
        return answer
