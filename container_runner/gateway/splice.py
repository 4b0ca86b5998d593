"""Bytes both ways, unread."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from typing import Final

import anyio
import anyio.abc

from container_runner.gateway.frames import Channel, Gone

CHUNK: Final = 64 * 1024

LOST: Final = (Gone, anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError, ssl.SSLError)
"""How the loss of a connection is told."""


async def splice(channel: Channel, stream: anyio.abc.ByteStream, from_box: bytes, to_box: bytes) -> None:
    """Carry bytes both ways until both sides have ended."""

    async def outward() -> None:
        data = from_box
        while data or (data := await channel.receive()):
            await stream.send(data)
            data = b""
        await stream.send_eof()

    async def inward() -> None:
        if to_box:
            await channel.send(to_box)
        try:
            while True:
                await channel.send(await stream.receive(CHUNK))
        except anyio.EndOfStream:
            await channel.send_end()

    failure: list[BaseException] = []

    async def one(way: Callable[[], Awaitable[None]], scope: anyio.CancelScope) -> None:
        try:
            await way()
        except (*LOST, NotImplementedError) as error:  # TLS has no half-close
            if not isinstance(error, NotImplementedError):
                failure.append(error)
                scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one, outward, tasks.cancel_scope)
        tasks.start_soon(one, inward, tasks.cancel_scope)
    if failure:
        raise Gone(str(failure[0])[:200])
