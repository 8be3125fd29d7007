"""The control server's protocol, without a socket: bytes in, requests out; results in, bytes out.

JSON-RPC 2.0 (jsonrpc.org/specification), one message a line. Parameters are always by name. A connection begins with
`hello`, which settles the version. A call that carries descriptors says how many in its parameter `fds`; they come
with the bytes of its line (SCM_RIGHTS, unix(7)), as do those that an answer carries. Names of files are bytes to Linux:
those that are not UTF-8 come and go with escapes (docs/control.md; names.py).
"""

from __future__ import annotations

from typing import Any

import msgspec

from trapline.sentry.state import names

VERSION = 1
SERVER = "trapline"
MAX_LINE = 1 << 20  # bytes, without the newline
MAX_FDS = 8  # with one call

# The specification's.
PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, INVALID_PARAMS, INTERNAL_ERROR = -32700, -32600, -32601, -32602, -32603
# Ours, in the range that it leaves to servers.
REFUSED, NO_SUCH_PROCESS, WRONG_VERSION, NOT_ALLOWED, TOO_MUCH = -32000, -32001, -32002, -32003, -32004


class RpcError(Exception):
    """An error as it is answered: its code, and one line of text."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Request(msgspec.Struct):
    """One call. `id` is what the answer repeats; UNSET: none is wanted (a notification)."""

    jsonrpc: str
    method: str
    params: msgspec.Raw = msgspec.Raw(b"{}")
    id: int | str | msgspec.UnsetType | None = msgspec.UNSET

    @property
    def wants_answer(self) -> bool:
        return self.id is not msgspec.UNSET


class Framer:
    """Lines out of a stream of bytes. Holds MAX_LINE bytes at most, whatever comes."""

    __slots__ = ("_held", "_skipping")

    def __init__(self) -> None:
        self._held = bytearray()
        self._skipping = False  # the rest of a line that was too long

    def feed(self, data: bytes) -> list[bytes | None]:
        """The lines that these bytes complete, without their ends; None for one that was too long, once. Empty lines
        are left out."""
        lines: list[bytes | None] = []
        start = 0
        while True:
            end = data.find(b"\n", start)
            piece = data[start:] if end < 0 else data[start:end]
            if not self._skipping:
                if len(self._held) + len(piece) > MAX_LINE:
                    self._held.clear()
                    self._skipping = True
                    lines.append(None)
                else:
                    self._held += piece
            if end < 0:
                return lines
            if not self._skipping and self._held.strip():
                lines.append(bytes(self._held))
            self._held.clear()
            self._skipping = False
            start = end + 1

    @property
    def held(self) -> int:
        """Bytes of the line that is not complete."""
        return len(self._held)


_request = msgspec.json.Decoder(Request)
_encoder = msgspec.json.Encoder()
#: Of escapes, as UTF-8 and as JSON in ASCII.
_MARK = names.MARK.encode()
_ASCII_MARK = b"\\udbff\\udfff"


def decode(line: bytes) -> Request:
    """One line as a request. RpcError for anything else."""
    try:
        found = _request.decode(line)
    except (msgspec.ValidationError, RecursionError) as error:
        if line.lstrip()[:1] == b"[":
            raise RpcError(INVALID_REQUEST, "batches are not served: one call a line") from None
        raise RpcError(INVALID_REQUEST, f"no request: {_one_line(error)}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RpcError(PARSE_ERROR, f"no JSON: {_one_line(error)}") from None
    if found.jsonrpc != "2.0":
        raise RpcError(INVALID_REQUEST, 'no request: "jsonrpc" must be "2.0"')
    return found


def decode_params(params: msgspec.Raw, kind: type[Any]) -> Any:
    """Parameters as a struct of this type. RpcError."""
    try:
        data = bytes(params)
        if _MARK in data or _ASCII_MARK in data.lower():
            return msgspec.convert(names.walk(msgspec.json.decode(data), names.unescaped_text), kind)
        return msgspec.json.decode(params, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise RpcError(INVALID_PARAMS, f"wrong parameters: {_one_line(error)}") from None


def result(identifier: Any, value: Any) -> bytes:
    """The line that answers a call."""
    return _line({"jsonrpc": "2.0", "id": identifier, "result": value})


def notice(method: str, params: Any) -> bytes:
    """The line of a notification: of a call that has no answer (the specification, section 4.1)."""
    return _line({"jsonrpc": "2.0", "method": method, "params": params})


def failure(identifier: Any, error: RpcError) -> bytes:
    """The line that answers a call that failed; the id is None where it is not known."""
    body = {"code": error.code, "message": error.message}
    return _line({"jsonrpc": "2.0", "id": identifier, "error": body})


def _line(message: dict[str, Any]) -> bytes:
    try:
        line = _encoder.encode(message)
    except UnicodeEncodeError:
        line = b""
    if not line or _MARK in line:
        line = _encoder.encode(names.walk(msgspec.to_builtins(message), names.escaped_text))
    return line + b"\n"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
