"""The caller's functions, called from inside of a box by MCP."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import anyio
import anyio.lowlevel
import attrs
import pytest

from container_runner.gateway import functions, mcp
from container_runner.gateway.forwarder import forwarder
from container_runner.gateway.gateway import Gateway
from container_runner.gateway.plan import GatewayPlan
from container_runner.gateway.server import Connection
from container_runner.session.asks import ToolAnswer
from container_runner.session.mcp import Called
from container_runner.session.tools import Tool, Toolbox, ToolError, tool
from container_runner.stream.decode import cost
from tests.gateway.box import free_port, read_all

RUN = "0123456789abcdef"
TOKEN = "the token of this run"
PATH = "/mcp/container_runner"


@attrs.define
class Inside:
    """A program in the box."""

    port: int
    gateway: Gateway

    def request(self, message: Any, *, token: str | None = TOKEN, method: str = "POST", path: str = PATH) -> bytes:
        body = message if isinstance(message, bytes) else json.dumps(message).encode()
        key = "" if token is None else f"Authorization: Bearer {token}\r\n"
        return f"{method} {path} HTTP/1.1\r\nHost: a\r\n{key}Content-Length: {len(body)}\r\n\r\n".encode() + body

    async def post(self, message: Any, **more: Any) -> tuple[int, Any]:
        """The status and the body of the answer."""
        with anyio.fail_after(60):
            async with await anyio.connect_tcp("127.0.0.1", self.port) as stream:
                await stream.send(self.request(message, **more))
                head, _, body = (await read_all(stream)).partition(b"\r\n\r\n")
        status = int(head.split(b" ")[1])
        return status, json.loads(body) if b"application/json" in head else body.decode()

    async def call(self, name: str, **given: Any) -> dict[str, Any]:
        params = {"name": name, "arguments": given}
        status, said = await self.post({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": params})
        assert (status, said["id"]) == (200, 7)
        return dict(said["result"])

    async def told(self) -> Connection:
        with anyio.fail_after(60):
            while not (told := self.gateway.taken()):
                await anyio.sleep(0.01)
        return told[-1]


@asynccontextmanager
async def box(*tools: Tool, timeout: float = 60.0) -> AsyncIterator[Inside]:
    port = free_port()
    toolbox = Toolbox(tools, timeout, TOKEN)
    gateway = Gateway(
        GatewayPlan(run=RUN, port=port, allow_hosts=(), allow_addresses=(), env={}, toolbox=toolbox),
    )
    try:
        await gateway.start(forwarder(RUN, port), os.environ)
        yield Inside(port, gateway)
    finally:
        await gateway.stop()


@tool
async def add(x: int, y: int = 1) -> int:
    """Add two numbers."""
    return x + y


async def test_a_client_is_welcomed_told_the_tools_and_answered() -> None:
    async with box(add) as inside:
        params = {"protocolVersion": "2025-03-26"}
        begun = await inside.post({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params})
        noted = await inside.post({"jsonrpc": "2.0", "method": "notifications/initialized"})
        status, listed = await inside.post({"jsonrpc": "2.0", "id": "a", "method": "tools/list"})
        unknown = await inside.post({"jsonrpc": "2.0", "id": 2, "method": "prompts/list"})
        called = await inside.call("add", x=2, y=3)
        refused = await inside.call("add", x="two")
        told = await inside.told()

    assert begun[1]["result"]["protocolVersion"] == "2025-03-26"
    assert noted == (202, "")
    assert (status, listed["id"], [one["name"] for one in listed["result"]["tools"]]) == (200, "a", ["add"])
    assert unknown[1]["error"]["code"] == -32601
    assert called == {"content": [{"type": "text", "text": "5"}], "isError": False}
    assert refused["isError"] is True
    # Those that are answered alike are told as one, so the last that is told is the notification.
    assert (told.kind, told.verdict, told.path, told.status) == ("mcp", "allowed", PATH, 202)


async def test_a_function_runs_in_the_callers_event_loop_and_context() -> None:
    seen: list[str] = []
    who = ContextVar("who", default="nobody")
    who.set("the caller")

    @tool
    async def look() -> None:
        await anyio.lowlevel.checkpoint()
        seen.extend((threading.current_thread().name, who.get()))

    async with box(look) as inside:
        assert (await inside.call("look"))["isError"] is False

    assert seen == [threading.current_thread().name, "the caller"]


@pytest.mark.parametrize(
    ("message", "more", "status"),
    [
        ({}, {"token": None}, 401),
        ({}, {"token": "of another run"}, 401),
        ({}, {"path": "/mcp/other"}, 404),
        ({}, {"method": "GET"}, 405),
        ({}, {"method": "DELETE"}, 405),
        (b"[" * (1024**2 + 1), {}, 413),
    ],
)
async def test_what_is_no_message_of_this_run_calls_nothing(message: Any, more: dict[str, Any], status: int) -> None:
    async with box(add) as inside:
        said, _ = await inside.post(message, **more)
        told = await inside.told()

    assert said == status
    assert (told.verdict == "denied") == (status != 405)  # by GET each client asks whether there is a stream


@pytest.mark.parametrize(
    ("body", "code"),
    [(b"{", -32700), (b"[" * 99_999 + b"]" * 99_999, -32700), (b"[]", -32600), (b"1", -32600)]
    + [(b'{"id":%b,"method":"ping"}' % name, -32600) for name in (b"[1]", b"{}", b"1.5")],
)
async def test_what_is_no_json_rpc_is_said_to_be_none(body: bytes, code: int) -> None:
    async with box(add) as inside:
        status, said = await inside.post(body)

    assert (status, said["error"]["code"]) == (200, code)


async def test_what_a_function_raises_is_the_tools_error_and_no_more() -> None:
    @tool
    async def fail() -> None:
        raise ValueError("of /home/me/secret")

    @tool
    async def explain() -> None:
        raise ToolError("there is no such row")

    @tool
    def leave() -> None:
        raise SystemExit(3)

    async with box(fail, explain, leave) as inside:
        said = [(await inside.call(name))["content"][0]["text"] for name in ("fail", "explain", "leave", "nothing")]

    assert said == [
        "The tool has failed (ValueError).",
        "there is no such row",
        "The tool has failed (SystemExit).",
        "There is no tool 'nothing'.",
    ]


async def test_a_call_has_a_deadline() -> None:
    @tool
    async def sleep() -> None:
        await anyio.sleep_forever()

    async with box(sleep, timeout=0.1) as inside:
        said = await inside.call("sleep")

    assert said["isError"] is True
    assert said["content"][0]["text"] == "The tool took too long."


@attrs.define
class Waiting:
    """A function that waits, and tells whether it was cancelled."""

    begun: anyio.Event = attrs.field(factory=anyio.Event)
    ended: anyio.Event = attrs.field(factory=anyio.Event)

    @property
    def tool(self) -> Tool:
        @tool
        async def wait() -> None:
            self.begun.set()
            try:
                await anyio.sleep_forever()
            finally:
                self.ended.set()

        return wait


async def test_a_client_that_hangs_up_ends_its_call() -> None:
    waiting = Waiting()
    async with box(waiting.tool) as inside:
        params = {"name": "wait", "arguments": {}}
        with anyio.fail_after(60):
            async with await anyio.connect_tcp("127.0.0.1", inside.port) as stream:
                await stream.send(inside.request({"id": 1, "method": "tools/call", "params": params}))
                await waiting.begun.wait()
            await waiting.ended.wait()


async def test_calls_that_are_open_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = Waiting()
    message = {"id": 1, "method": "tools/call", "params": {"name": "wait", "arguments": {}}, "more": [0] * 100}
    monkeypatch.setattr(mcp, "MOST_MEMORY", cost(json.dumps(message).encode()) + 1)
    async with box(waiting.tool) as inside:
        with anyio.fail_after(60):
            async with await anyio.connect_tcp("127.0.0.1", inside.port) as stream:
                await stream.send(inside.request(message))
                await waiting.begun.wait()
                status, said = await inside.post(message)
            await waiting.ended.wait()
        again, _ = await inside.post({"id": 2, "method": "ping"})

    assert (status, "too many calls are open" in said, again) == (503, True, 200)


async def test_a_message_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp, "BODY_TIMEOUT", 0.1)
    async with box(add) as inside:
        with anyio.fail_after(20):
            async with await anyio.connect_tcp("127.0.0.1", inside.port) as stream:
                await stream.send(inside.request({"id": 1, "method": "ping"})[:-1])
                said = await read_all(stream)

    assert said.startswith(b"HTTP/1.1 408 ")
    assert b"no whole message came in 0.1 seconds" in said


async def test_calls_that_are_open_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = Waiting()
    monkeypatch.setattr(functions, "MOST_OPEN", 1)
    async with box(waiting.tool, add) as inside:
        with anyio.fail_after(60):
            async with await anyio.connect_tcp("127.0.0.1", inside.port) as stream:
                params = {"name": "wait", "arguments": {}}
                await stream.send(inside.request({"id": 1, "method": "tools/call", "params": params}))
                await waiting.begun.wait()
                refused = await inside.call("add", x=1)
            await waiting.ended.wait()
            while (after := await inside.call("add", x=1))["isError"]:  # who was cancelled has yet to be counted out
                await anyio.sleep(0.01)

    assert refused == {"content": [{"type": "text", "text": "Too many calls are open."}], "isError": True}
    assert after["content"][0]["text"] == "2"


async def test_an_answer_that_finds_no_room_does_not_say_that_nothing_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[int] = []

    @tool
    async def write(times: int) -> str:
        """Do something, and tell much of it."""
        called.append(times)
        return "x" * times

    params = {"name": "write", "arguments": {"times": 1000}}
    message = {"jsonrpc": "2.0", "id": "a", "method": "tools/call", "params": params}
    monkeypatch.setattr(mcp, "MOST_MEMORY", cost(json.dumps(message).encode()))
    async with box(write) as inside:
        status, said = await inside.post(message)
        again, _ = await inside.post({"id": 2, "method": "ping"})

    assert (status, said["id"], said["error"]["message"], again) == (200, "a", mcp.NO_ROOM, 200)
    assert called == [1000]


async def test_of_a_message_only_what_the_function_needs_is_kept() -> None:
    kept: list[dict[str, Any]] = []
    message = {"id": 1, "method": "tools/call", "params": {"name": "any", "arguments": {"a": 1}}, "more": [0]}

    async def call(called: Called) -> ToolAnswer:
        kept.append(dict(message))
        assert called.input == {"a": 1}
        return ToolAnswer(content=("done",))

    answer = await mcp.ToolServer((), call, TOKEN).answer(message)

    assert (kept, answer and answer["id"]) == ([{}], 1)


async def test_the_end_of_the_run_ends_its_calls() -> None:
    waiting = Waiting()
    async with box(waiting.tool) as inside:
        params = {"name": "wait", "arguments": {}}
        stream = await anyio.connect_tcp("127.0.0.1", inside.port)
        await stream.send(inside.request({"id": 1, "method": "tools/call", "params": params}))
        with anyio.fail_after(60):
            await waiting.begun.wait()
        assert not waiting.ended.is_set()
        assert inside.gateway.is_owed
    assert not inside.gateway.is_owed
    ended_in_time = waiting.ended.is_set()
    await stream.aclose()

    assert ended_in_time
