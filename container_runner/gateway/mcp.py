"""MCP servers of the host, as the box finds them at /mcp/NAME: streamable HTTP, as far as tools need it.

Each message is one POST and has one answer in JSON. There are no streams and no sessions, which a server may leave out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Final, Protocol

import anyio
import attrs
import h11
import orjson

from container_runner.gateway.frames import Channel, Gone
from container_runner.gateway.refused import Refused
from container_runner.session import jsonrpc, mcp
from container_runner.session.asks import ToolAnswer
from container_runner.session.tools import Tool
from container_runner.stream.decode import cost, fits

MOST_BYTES: Final = 1024**2
"""How long a message of the box's may be. Each of its connections may hold one in memory."""

MOST_MEMORY: Final = 128 * 1024**2
"""How much memory the messages of a box that are being answered may take, as `cost` has it. A call is open for as long
as its function runs."""

NO_ROOM: Final = "it may have been done, but there is no room for its answer: too many calls are open"

BODY_TIMEOUT: Final = 30.0
"""Seconds that a message may take to come."""


class McpServer(Protocol):
    """An MCP server, as it is asked."""

    memory: int
    """What the messages take that are being answered, as `cost` has it. `serve` counts."""

    @property
    def token(self) -> str:
        """What the box has to show."""
        ...

    async def answer(self, message: dict[str, Any]) -> dict[str, Any] | None:
        """The answer to a message; None if it wants none."""
        ...


@attrs.define(eq=False)
class ToolServer:
    """The caller's functions."""

    _tools: Sequence[Tool]
    _call: Callable[[mcp.Called], Awaitable[ToolAnswer]]
    token: str = attrs.field(repr=False)
    memory: int = 0

    async def answer(self, message: dict[str, Any]) -> dict[str, Any] | None:
        """See `McpServer`."""
        if "id" not in message:  # a notification; a call is withdrawn by hanging up
            return None
        match mcp.respond(message, self._tools):
            case mcp.Called() as called:
                name = message["id"]
                message.clear()  # a call may take long, and needs no more of it
                return mcp.answered(name, await self._call(called))
            case said:
                return said


async def serve(
    server: McpServer,
    method: str,
    channel: Channel,
    http: h11.Connection,
    next_event: Callable[[], Awaitable[Any]],
) -> int:
    """Answer one request, whose head was read.

    Args:
        next_event: gives what the client says after it.

    Returns:
        The answer's status.

    Raises:
        Refused: it is too long, or does not come, or too many others are open.
        Gone: the client has hung up. Whatever was done for it was cancelled.
    """
    answer: dict[str, Any] | None = None
    if method == "POST":
        body, has_left = await _body(next_event), False
        if server.memory + (price := cost(body)) > MOST_MEMORY:
            raise Refused(503, "too many calls are open")
        with _counted(server, price):
            async with anyio.create_task_group() as tasks:

                async def wait_for_end() -> None:
                    nonlocal has_left
                    with contextlib.suppress(Gone):
                        while await channel.receive():
                            pass
                    has_left = True
                    tasks.cancel_scope.cancel()

                tasks.start_soon(wait_for_end)
                answer = await _answer(server, body)
                tasks.cancel_scope.cancel()
        if has_left and answer is None:
            raise Gone
    status = 405 if method != "POST" else 202 if answer is None else 200  # 405 says that there is no stream to GET
    said = b"" if answer is None else orjson.dumps(answer)
    if answer is not None and server.memory + len(said) > MOST_MEMORY:
        # What was asked may have been done: it is no 503.
        said = orjson.dumps(jsonrpc.refused(answer.get("id"), jsonrpc.INTERNAL_ERROR, NO_ROOM))
    answer = None
    with _counted(server, len(said)):  # it is in memory until the client has read it
        head = [(b"content-type", b"application/json")] if said else []
        head += [(b"content-length", b"%d" % len(said)), (b"connection", b"close")]
        data = (http.send(h11.Response(status_code=status, headers=head)) or b"") + said
        said = b""
        await channel.send(data)
    return status


@contextlib.contextmanager
def _counted(server: McpServer, price: int) -> Iterator[None]:
    """Count what a message takes."""
    server.memory += price
    try:
        yield
    finally:
        server.memory -= price


async def _body(next_event: Callable[[], Awaitable[Any]]) -> bytes:
    body = bytearray()
    with anyio.move_on_after(BODY_TIMEOUT):
        while isinstance(event := await next_event(), h11.Data):
            body += event.data
            if len(body) > MOST_BYTES:
                raise Refused(413, f"a message may be {MOST_BYTES} bytes long")
        if isinstance(event, h11.EndOfMessage):
            return bytes(body)
        raise Gone
    raise Refused(408, f"no whole message came in {BODY_TIMEOUT:g} seconds")


async def _answer(server: McpServer, body: bytes) -> dict[str, Any] | None:
    """What is answered to the body of a POST; None if it wants no answer."""
    try:
        message = orjson.loads(body) if fits(body) else []
    except orjson.JSONDecodeError:
        return jsonrpc.refused(None, jsonrpc.PARSE_ERROR, "that is no JSON")
    if not isinstance(message, dict) or not jsonrpc.is_id(message.get("id")):
        told = "one message a request, whose id is a text or a number"
        return jsonrpc.refused(None, jsonrpc.INVALID_REQUEST, told)
    return await server.answer(message)
