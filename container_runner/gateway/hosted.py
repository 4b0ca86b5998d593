"""MCP servers of this machine, for one run: what they are asked, and programs of them that end with it.

A program is started when the box first asks for it, and speaks with nobody but us: each message of the box's gets an id
of ours, and what the server would ask of the box (to sample a model, to name its roots) is refused. The `mcp` library
has a client for such programs, but none that ends them if we are killed, and it brings an HTTP client and a web server.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final

import anyio
import attrs

from container_runner.errors import CommandNotFoundError
from container_runner.gateway.mcp import MOST_BYTES
from container_runner.gateway.offered import Hosted
from container_runner.gateway.veil import Veil
from container_runner.session import jsonrpc
from container_runner.stream.decode import fits, load
from container_runner.stream.process import Process

CALL_TIMEOUT: Final = 600.0
"""Seconds that a server may take to answer."""

MOST_REQUESTS: Final = 64
"""How many requests of one server may be open at a time."""

MOST_UNREAD: Final = 8 * MOST_BYTES
"""How many bytes may wait for a server to read them."""

LINE_LIMIT: Final = 16 * 1024**2
"""The longest answer of a server in bytes."""

END_GRACE: Final = 1.0
"""Seconds that a server has to end when its input has ended, and again when it was told to."""

WATCH_GRACE: Final = 2.0
"""The same, for him who does it when we can not."""

_log = logging.getLogger(__name__)

LEASED: Final = f"""\
import os, select, signal, sys, time
if os.fork():
    if os.wait()[1]:
        sys.exit(1)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.execvp(sys.argv[1], sys.argv[1:])
if os.fork():
    os._exit(0)
nothing = os.open(os.devnull, os.O_RDWR)
os.dup2(nothing, 1)
os.dup2(nothing, 2)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
end = select.poll()
end.register(0, 0)
end.poll()
for number in (signal.SIGTERM, signal.SIGKILL):
    time.sleep({WATCH_GRACE})
    os.killpg(0, number)
"""
"""Becomes the server, and leaves somebody behind in its process group who ends that when the input has ended: with
nobody left who could write there, because we were killed, say. A server need not look at its input."""


def check_programs(servers: Iterable[Hosted]) -> None:
    """See that the programs are there.

    Raises:
        CommandNotFoundError: one is not.
    """
    for server in servers:
        if server.argv and shutil.which(server.argv[0], path=server.env.get("PATH")) is None:
            message = f"The MCP server {server.name} can not be started: there is no program {server.argv[0]!r} here."
            raise CommandNotFoundError(message, next_step="Name one of this machine in host_mcp_servers.")


@attrs.define(eq=False)
class _Asked:
    """A request that has no answer yet."""

    id: jsonrpc.Id
    """What the box calls it."""
    done: anyio.Event = attrs.field(factory=anyio.Event)
    answer: dict[str, Any] | None = None


@attrs.define(eq=False)
class HostedServer:
    """A server whose program is ours to start. See `mcp.McpServer`."""

    _hosted: Hosted
    _start_soon: Callable[[Callable[[], Coroutine[Any, Any, None]]], None]
    """Starts a task that lives as long as the gateway."""

    memory: int = 0
    _process: Process | None = None
    _begun: anyio.Event | None = None
    """Is made where it is waited for: we may be made on another event loop."""
    _asked: dict[int, _Asked] = attrs.field(factory=dict)
    _last: int = 0
    _welcome: dict[str, Any] | None = None
    """What it has answered to the first `initialize`: it is one session, however many clients the box has."""
    _is_initialized: bool = False

    @property
    def name(self) -> str:
        return self._hosted.name

    @property
    def token(self) -> str:
        return self._hosted.token

    @property
    def is_busy(self) -> bool:
        """Whether the box waits for it."""
        return bool(self._asked)

    async def answer(self, message: dict[str, Any]) -> dict[str, Any] | None:
        """See `McpServer`."""
        if self._begun is None:
            self._begun = anyio.Event()
            self._start_soon(partial(self._serve, self._begun))
        await self._begun.wait()
        method, name = message.get("method"), message.get("id")
        if not isinstance(method, str):  # an answer; nothing was asked
            return None
        if "id" not in message:
            self._notify(method, message)
            return None
        if method == "initialize":
            if self._welcome is not None:
                return {**self._welcome, "id": name}
            params = message.get("params")
            message["params"] = {**(params if isinstance(params, dict) else {}), "capabilities": {}}
        said = await self._ask(message)
        if method == "initialize" and "result" in said:
            self._welcome = said
        return said

    def _notify(self, method: str, message: dict[str, Any]) -> None:
        if method == "notifications/initialized":
            if self._is_initialized:
                return
            self._is_initialized = True
        params = message.get("params")
        if method == "notifications/cancelled" and isinstance(params, dict):
            for number, asked in self._asked.items():
                if asked.id == params.get("requestId"):
                    self._give({"jsonrpc": "2.0", "method": method, "params": {**params, "requestId": number}})
            return
        self._give(message)

    async def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        asked = _Asked(message.get("id"))
        if len(self._asked) >= MOST_REQUESTS:
            return jsonrpc.refused(asked.id, jsonrpc.INTERNAL_ERROR, "too many requests are open")
        self._last += 1
        number = self._last
        if not self._give({**message, "id": number}):
            return jsonrpc.refused(asked.id, jsonrpc.INTERNAL_ERROR, "the server has ended, or reads nothing")
        message.clear()  # an answer may take long
        self._asked[number] = asked
        try:
            with anyio.move_on_after(CALL_TIMEOUT):
                await asked.done.wait()
        finally:
            del self._asked[number]
            if not asked.done.is_set():
                why = {"requestId": number, "reason": "nobody waits for it"}
                self._give({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": why})
        if asked.answer is None:
            reason = "the server has ended" if asked.done.is_set() else "the server took too long"
            return jsonrpc.refused(asked.id, jsonrpc.INTERNAL_ERROR, reason)
        return {**asked.answer, "id": asked.id}

    def _give(self, message: Mapping[str, Any]) -> bool:
        process = self._process
        if process is None or not process.takes_more or process.unsent > MOST_UNREAD:
            return False
        process.give(jsonrpc.line(message))
        return True

    async def _serve(self, begun: anyio.Event) -> None:
        """Have the program until this is cancelled, or it ends, and tell when it has been started."""
        hosted = self._hosted
        argv = [sys.executable, "-ISc", LEASED, *hosted.argv]
        try:
            # Not in the folder of whoever started us: that is often the workspace, and programs obey what lies there.
            process = await Process.start(argv, env=hosted.env, cwd="/", hold_stdin=True, line_limit=LINE_LIMIT)
        except OSError as error:
            _log.warning("the MCP server %s can not be started: %s", hosted.name, error.strerror)
            begun.set()
            return
        self._process = process
        begun.set()
        veil = Veil(hosted.hidden)
        try:
            while lines := await process.read():
                for line in lines:
                    if isinstance(line, bytes):
                        self._take(veil.hide(line))
            with anyio.move_on_after(END_GRACE):
                code = await process.wait()
                _log.warning("the MCP server %s has ended with exit code %s", hosted.name, code)
        finally:
            self._process = None
            for asked in self._asked.values():
                asked.done.set()
            await _end(process)

    def _take(self, line: bytes) -> None:
        """What the server has said."""
        said = load(line) if fits(line) else None
        if not isinstance(said, dict):
            return
        name = said.get("id")
        if "method" in said:
            if "id" in said and jsonrpc.is_id(name):
                is_ping = said["method"] == "ping"
                refusal = jsonrpc.refused(name, jsonrpc.METHOD_NOT_FOUND, "nobody answers that here")
                self._give(jsonrpc.answered(name, {}) if is_ping else refusal)
        elif isinstance(name, int) and (asked := self._asked.get(name)) is not None and {"result", "error"} & {*said}:
            asked.answer = said
            asked.done.set()


async def _end(process: Process) -> None:
    """End a server, and whatever it has started in its process group."""
    process.close_stdin()
    with anyio.CancelScope(shield=True):
        for number in (signal.SIGTERM, signal.SIGKILL):
            with anyio.move_on_after(END_GRACE):
                await process.wait()
            if process.returncode is not None:
                break
            _signal(process, number)
        # The group is there as long as he who has waited for the end of the input, which is longer than all this.
        _signal(process, signal.SIGKILL)
        with anyio.move_on_after(END_GRACE):
            await process.wait()
    process.close()


def _signal(process: Process, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
