"""JSON-RPC 2.0, one message a line: what a line is, and lines of our own.

Each side counts its requests for itself, so an id tells nothing by itself: a request or a notification has a `method`,
an answer has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeAlias, TypeGuard

import attrs
import orjson

from container_runner.stream.blocks import as_text
from container_runner.stream.decode import fits, load, unmix

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603
AUTHENTICATION_REQUIRED: Final = -32000
CANCELLED: Final = -32800

Id: TypeAlias = str | int | None

_START: Final = b'{"jsonrpc"'


@attrs.frozen
class Call:
    """A request, which wants an answer, or a notification, which wants none."""

    method: str
    params: dict[str, Any]
    """{} if there are none, or they are no object."""

    id: Id
    is_request: bool
    raw: dict[str, Any] = attrs.field(repr=False)


@attrs.frozen
class Answer:
    """The answer to a request of ours."""

    id: Id
    result: dict[str, Any]
    """{} if it is no object."""

    error: Failure | None


@attrs.frozen
class Failure:
    """Why a request was not carried out."""

    code: int
    message: str
    """In the other side's words, with what it says in `data`."""

    @property
    def status(self) -> int | None:
        """The HTTP status of the API's answer, where an agent hands it on as the code."""
        return self.code if 400 <= self.code < 600 else None


def read(line: bytes) -> list[Call | Answer | bytes]:
    """What is on a line: mostly one message. What is no message is given back as it is; a blank line is nothing.

    Never raises. Programs write words and escape sequences in front of an agent's line, and those are cut off.
    """
    # One level less than a line may have: what a message is made of may stand one deeper in there.
    raw = load(line) if fits(b'{"":%b}' % line) else None
    if isinstance(raw, dict) and (found := _message(raw)) is not None:
        return [found]
    if not isinstance(raw, dict):
        start = line.find(_START, 1)
        parts = [line[:start], line[start:]] if start > 0 else unmix(line, ())
        if len(parts) > 1 or (parts and parts[0] != line):
            return [found for part in parts for found in read(part)]
    return [line] if line.strip() else []


def _message(raw: dict[str, Any]) -> Call | Answer | None:
    name = raw.get("id")
    if not is_id(name):
        return None
    method, params = raw.get("method"), raw.get("params")
    if isinstance(method, str):
        return Call(method, params if isinstance(params, dict) else {}, name, "id" in raw, raw)
    if "result" not in raw and "error" not in raw:
        return None
    result, error = raw.get("result"), raw.get("error")
    return Answer(name, result if isinstance(result, dict) else {}, None if error is None else _failure(error))


def _failure(error: object) -> Failure:
    if not isinstance(error, dict):
        return Failure(0, as_text(error) or "it gave no reason")
    code, message, data = error.get("code"), as_text(error.get("message")), error.get("data")
    details = as_text(data) or (as_text(data.get("details")) if isinstance(data, dict) else "")
    if isinstance(data, dict) and not details:
        details = as_text(data.get("message"))
    known = code if isinstance(code, int) and not isinstance(code, bool) else 0
    told = f"{message}: {details}" if message and details and details not in message else details or message
    return Failure(known, told or "it gave no reason")


def is_id(value: object) -> TypeGuard[Id]:
    """Whether a message may have it as its id."""
    return isinstance(value, str | int | None) and not isinstance(value, bool)


def request(name: int, method: str, params: Mapping[str, Any]) -> bytes:
    """A request of ours."""
    return line({"jsonrpc": "2.0", "id": name, "method": method, "params": params})


def notification(method: str, params: Mapping[str, Any]) -> bytes:
    """Something that wants no answer."""
    return line({"jsonrpc": "2.0", "method": method, "params": params})


def answer(name: Id, result: Mapping[str, Any]) -> bytes:
    """The answer to a request of the other side."""
    return line(answered(name, result))


def refusal(name: Id, code: int, message: str) -> bytes:
    """That a request of the other side is not carried out."""
    return line(refused(name, code, message))


def answered(name: object, result: Mapping[str, Any]) -> dict[str, Any]:
    """What `answer` has on its line."""
    return {"jsonrpc": "2.0", "id": name, "result": result}


def refused(name: object, code: int, message: str) -> dict[str, Any]:
    """What `refusal` has on its line."""
    return {"jsonrpc": "2.0", "id": name, "error": {"code": code, "message": message}}


def line(message: Mapping[str, Any]) -> bytes:
    """A message as a line."""
    return orjson.dumps(message) + b"\n"
