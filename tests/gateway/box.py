"""A forwarder on this machine in the place of one in a box, with the real server behind it."""

from __future__ import annotations

import secrets
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

import anyio
import attrs
import pytest

from container_runner.gateway.forwarder import MOST_CHANNELS
from container_runner.gateway.frames import Channel, Mux
from container_runner.gateway.policy import Policy
from container_runner.gateway.server import Connection, Server
from container_runner.stream.process import Process, settle

INTERPRETERS = {
    "perl": ("perl", "-e", "forward.pl", "--"),
    "python": (sys.executable, "-ISc", "forward.python"),
    "node": ("node", "-e", "forward.js", "--"),
}


def forwarder(name: str, port: int, run: str) -> list[str]:
    """The command of a forwarder, in one of the three languages.

    Skips the test where there is no such interpreter.
    """
    program, flag, script, *end = INTERPRETERS[name]
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    text = (files("container_runner.gateway") / "forwarders" / script).read_text()
    return [program, flag, text, *end, run, str(port), str(MOST_CHANNELS)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@attrs.define
class Box:
    """What stands for the inside of a box: its port, and what has been told of its connections."""

    port: int
    process: Process
    told: list[Connection] = attrs.field(factory=list)

    async def connect(self) -> anyio.abc.SocketStream:
        return await anyio.connect_tcp("127.0.0.1", self.port)

    async def ask(self, text: str) -> bytes:
        """Say something and read all that is answered."""
        async with await self.connect() as stream:
            await stream.send(text.encode("latin-1"))
            return await read_all(stream)

    async def last(self) -> Connection:
        """What is told of the last connection, once it has ended."""
        with anyio.fail_after(10):
            while not self.told:
                await anyio.sleep(0.01)
        return self.told.pop()


async def read_all(stream: anyio.abc.ByteReceiveStream) -> bytes:
    said = b""
    try:
        while True:
            said += await stream.receive()
    except anyio.EndOfStream:
        return said


@asynccontextmanager
async def box(
    name: str,
    policy: Policy | None = None,
    serve: Callable[[Channel], Coroutine[Any, Any, None]] | None = None,
    **more: Any,
) -> AsyncIterator[Box]:
    """A forwarder, with a server behind it, or with *serve* in its place."""
    port, run = free_port(), secrets.token_hex(4)
    gate = f"container-runner: forwarding {run}".encode()
    process = await Process.start(forwarder(name, port, run), hold_stdin=True, gate=gate, chunks=True)
    inside = Box(port, process)
    server = Server(policy or Policy(()), port, on_end=inside.told.append, **more)
    try:
        assert await process.wait_for_gate(20), process.stderr
        async with anyio.create_task_group() as tasks:

            def accept(channel: Channel) -> None:
                tasks.start_soon(server.serve if serve is None else serve, channel)

            tasks.start_soon(Mux(process).run, accept)
            yield inside
            tasks.cancel_scope.cancel()
    finally:
        await settle(server.close)
        process.close_stdin()
        await settle(lambda: process.terminate(2))
        process.close()
