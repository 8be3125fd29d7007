"""The control server's protocol: framing and messages, without a socket."""

from __future__ import annotations

import json
import os
import socket

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trapline.sentry.control import client, rpc
from trapline.sentry.control.rpc import Framer, RpcError


@given(st.lists(st.binary(max_size=40).filter(lambda b: b"\n" not in b)), st.lists(st.integers(1, 30)))
def test_lines_are_found_however_the_bytes_are_cut(lines: list[bytes], cuts: list[int]) -> None:
    stream = b"".join([line + b"\n" for line in lines])
    framer = Framer()
    found: list[bytes | None] = []
    position = 0
    for cut in [*cuts, len(stream)]:
        found += framer.feed(stream[position : position + cut])
        position += cut
    assert found == [line for line in lines if line.strip()]
    assert framer.held == 0


@given(st.integers(rpc.MAX_LINE - 2, rpc.MAX_LINE + 2), st.integers(1000, 300_000))
def test_a_long_line_is_told_once_and_never_kept(length: int, chunk: int) -> None:
    stream = b"x" * length + b"\n{}\n"
    framer = Framer()
    found: list[bytes | None] = []
    for position in range(0, len(stream), chunk):
        found += framer.feed(stream[position : position + chunk])
        assert framer.held <= rpc.MAX_LINE
    assert found == [b"x" * length if length <= rpc.MAX_LINE else None, b"{}"]


@given(st.binary(max_size=300))
def test_garbage_is_an_error_of_the_protocol(data: bytes) -> None:
    try:
        rpc.decode(data)
    except RpcError as error:
        assert error.code in (rpc.PARSE_ERROR, rpc.INVALID_REQUEST)
        assert "\n" not in error.message


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
)


@given(st.dictionaries(st.sampled_from(["jsonrpc", "id", "method", "params", "x"]), json_values))
def test_any_object_is_a_request_or_an_error(value: dict[str, object]) -> None:
    try:
        request = rpc.decode(json.dumps(value).encode())
    except RpcError:
        return
    assert request.jsonrpc == "2.0"


@pytest.mark.parametrize(
    ("line", "code", "text"),
    [
        (b"{", rpc.PARSE_ERROR, "no JSON"),
        (b"\xff\xfe", rpc.PARSE_ERROR, "no JSON"),
        (b'[{"jsonrpc":"2.0","id":1,"method":"state"}]', rpc.INVALID_REQUEST, "batches are not served"),
        (b"7", rpc.INVALID_REQUEST, "no request"),
        (b'{"jsonrpc":"1.0","method":"state"}', rpc.INVALID_REQUEST, '"jsonrpc" must be "2.0"'),
        (b'{"jsonrpc":"2.0","method":7}', rpc.INVALID_REQUEST, "no request"),
        (b'{"jsonrpc":"2.0","method":"state","id":1.5}', rpc.INVALID_REQUEST, "no request"),
        (b"[" * 100_000, rpc.INVALID_REQUEST, "batches are not served"),
        (b'{"params":' * 50_000, rpc.PARSE_ERROR, ""),
    ],
)
def test_what_is_no_request(line: bytes, code: int, text: str) -> None:
    with pytest.raises(RpcError) as caught:
        rpc.decode(line)
    assert caught.value.code in (code, rpc.INVALID_REQUEST)
    assert text in caught.value.message


def test_an_answer_is_wanted_where_there_is_an_id_even_null() -> None:
    assert not rpc.decode(b'{"jsonrpc":"2.0","method":"x"}').wants_answer
    assert rpc.decode(b'{"jsonrpc":"2.0","method":"x","id":null}').wants_answer
    assert rpc.decode(b'{"jsonrpc":"2.0","method":"x","id":"a"}').id == "a"


def test_parameters_are_by_name_and_of_their_types() -> None:
    class Wanted(msgspec.Struct):
        pid: int

    assert rpc.decode_params(msgspec.Raw(b'{"pid":3,"later":1}'), Wanted).pid == 3
    for wrong in (b"[3]", b"{}", b'{"pid":"3"}', b"null", b'{"pid":' + b"[" * 100_000 + b"}"):
        with pytest.raises(RpcError) as caught:
            rpc.decode_params(msgspec.Raw(wrong), Wanted)
        assert caught.value.code == rpc.INVALID_PARAMS


def test_answers_are_one_line_each() -> None:
    assert json.loads(rpc.result(1, {"a": "x\ny"})) == {"jsonrpc": "2.0", "id": 1, "result": {"a": "x\ny"}}
    line = rpc.failure(None, RpcError(rpc.REFUSED, "no\nway"))
    assert line.count(b"\n") == 1
    assert json.loads(line)["error"] == {"code": rpc.REFUSED, "message": "no\nway"}


class Names(msgspec.Struct):
    names: list[str]


@given(st.lists(st.binary(max_size=12).filter(lambda name: b"\n" not in name) | st.just("\U0010ffff".encode())))
def test_names_of_files_are_bytes(names: list[bytes]) -> None:
    """What is not UTF-8 comes and goes with escapes, by the client's form and by any other of JSON."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        asking = object.__new__(client.Client)
        asking._socket, asking._number, asking._held, asking._fds = ours, 0, b"", []
        asking._post("x", {"names": [os.fsdecode(name) for name in names]}, ())
        line = theirs.recv(1 << 16)
        params = rpc.decode(line).params
        other = json.dumps(json.loads(bytes(params)), ensure_ascii=False).encode()
        for form in (params, msgspec.Raw(other)):
            assert [os.fsencode(name) for name in rpc.decode_params(form, Names).names] == names
        answers = (
            rpc.result(1, Names([os.fsdecode(name) for name in names])),
            rpc.notice("x", {"names": [os.fsdecode(name) for name in names]}),
        )
        for answer, key in zip(answers, ("result", "params"), strict=True):
            theirs.sendall(answer)
            assert [os.fsencode(name) for name in asking._receive()[key]["names"]] == names
        theirs.sendall(rpc.failure(1, RpcError(rpc.REFUSED, os.fsdecode(b"".join(names)))))
        assert os.fsencode(asking._receive()["error"]["message"]) == b"".join(names)


def test_an_escape_that_there_is_not() -> None:
    with pytest.raises(RpcError, match="escape"):
        rpc.decode_params(msgspec.Raw('{"names":["\U0010ffffx"]}'.encode()), Names)


def test_the_client_speaks_the_same_version() -> None:
    # It repeats what it needs, not to import msgspec.
    assert (client.VERSION, client.NO_SUCH_PROCESS) == (rpc.VERSION, rpc.NO_SUCH_PROCESS)
