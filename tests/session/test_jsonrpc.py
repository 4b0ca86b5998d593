"""JSON-RPC over lines: what is told apart, and what no line can break."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container_runner.session import jsonrpc
from container_runner.session.jsonrpc import Answer, Call, Failure


def line(**value: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", **value}).encode()


def only(data: bytes) -> Any:
    (found,) = jsonrpc.read(data)
    return found


def test_a_request_is_told_from_an_answer_of_the_same_id_by_its_method() -> None:
    request = only(line(id=1, method="session/request_permission", params={"a": 1}))
    answer = only(line(id=1, result={"stopReason": "end_turn"}))

    assert (request.method, request.params, request.id, request.is_request) == (
        "session/request_permission", {"a": 1}, 1, True,
    )  # fmt: skip
    assert answer == Answer(1, {"stopReason": "end_turn"}, None)


def test_a_notification_has_no_id_and_a_request_may_have_null() -> None:
    assert only(line(method="session/update")).is_request is False
    assert only(line(method="x", id=None)).is_request is True


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (
            {"code": -32603, "message": "Internal error", "data": {"details": "401 no"}},
            -32603,
            "Internal error: 401 no",
        ),
        ({"code": -32000, "message": "Authentication required"}, -32000, "Authentication required"),
        ({"code": -1, "message": "no", "data": "why"}, -1, "no: why"),
        ({"code": "x", "message": 7}, 0, "it gave no reason"),
        ("broken", 0, "broken"),
        (True, 0, "it gave no reason"),
    ],
)
def test_an_error_has_the_other_sides_words(error: object, code: int, message: str) -> None:
    assert only(line(id=3, error=error)).error == Failure(code, message)


def test_a_code_that_is_an_http_status_is_one() -> None:
    assert Failure(401, "").status == 401
    assert Failure(-32603, "").status is None


@pytest.mark.parametrize(
    "data",
    [
        b"hello",
        b"[1]",
        b"{}",
        b'{"id": 1}',
        b'{"id": {}, "method": "x"}',
        b'{"id": true, "result": {}}',
        b'{"id": 1.5, "result": {}}',
        b'{"jsonrpc": "2.0", "method": 3, "id": 1}',
        b'{"method": "x", "params": ' + b"[" * 300 + b"]" * 300 + b"}",
    ],
)
def test_what_is_no_message_is_given_back(data: bytes) -> None:
    assert jsonrpc.read(data) == [data]


def test_a_blank_line_is_nothing() -> None:
    assert jsonrpc.read(b"") == jsonrpc.read(b"  \r") == []


@pytest.mark.parametrize("noise", [b"Loaded config. ", b"\x1b[2K\x1b[0m", b"\xef\xbb\xbf"])
def test_what_another_program_wrote_in_front_of_a_line_is_cut_off(noise: bytes) -> None:
    *before, found = jsonrpc.read(noise + b'{"jsonrpc":"2.0","id":2,"result":{}}')

    assert found == Answer(2, {}, None)
    assert before in ([], [noise])


@given(st.binary(max_size=200) | st.text().map(str.encode))
def test_no_line_is_an_exception(data: bytes) -> None:
    for found in jsonrpc.read(data):
        assert isinstance(found, bytes | Call | Answer)


def test_what_we_write_is_one_line() -> None:
    for data in (
        jsonrpc.request(1, "a\nb", {"c": "d\ne"}),
        jsonrpc.notification("a", {}),
        jsonrpc.answer("x", {}),
        jsonrpc.refusal(None, jsonrpc.METHOD_NOT_FOUND, "no"),
    ):
        assert data.endswith(b"\n")
        assert data.count(b"\n") == 1
        assert json.loads(data)["jsonrpc"] == "2.0"
