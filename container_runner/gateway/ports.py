"""Ports of a box without a network, open on the host: each connection goes to the box's own 127.0.0.1."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack

import anyio
import anyio.abc

from container_runner.config.values import PortBinding
from container_runner.errors import PortError
from container_runner.gateway.frames import Gone, Mux
from container_runner.gateway.server import Connection
from container_runner.gateway.splice import LOST, splice
from container_runner.gateway.upstream import reset

_log = logging.getLogger(__name__)

Listener = anyio.abc.Listener[anyio.abc.SocketStream]
Listening = list[tuple[PortBinding, Listener]]


async def listen(ports: Iterable[PortBinding], stack: AsyncExitStack) -> Listening:
    """Listen on the host's side of each, until *stack* ends.

    Raises:
        PortError: it can not be listened there.
    """
    found: Listening = []
    for port in ports:
        try:
            listener = await anyio.create_tcp_listener(
                local_host=port.host_ip, local_port=port.host_port, reuse_port=False
            )
        except OSError as error:
            where = f"{port.host_ip}:{port.host_port}"
            raise PortError(f"The port {where} of this machine can not be opened: {error.strerror}.") from None
        stack.push_async_callback(listener.aclose)
        found.append((port, listener))
    return found


async def serve(port: PortBinding, listener: Listener, mux: Mux, on_end: Callable[[Connection], None]) -> None:
    """Carry each connection of the host's to the box, until this is cancelled."""

    async def carry(stream: anyio.abc.SocketStream) -> None:
        try:
            await _carry(stream, mux, port.container_port, on_end)
        except Exception as error:  # no connection may end the others
            _log.warning("a connection to a port of the box could not be carried", exc_info=error)

    await listener.serve(carry)


async def _carry(stream: anyio.abc.SocketStream, mux: Mux, port: int, on_end: Callable[[Connection], None]) -> None:
    """One connection, to its end."""
    began, politely = time.monotonic(), False
    told = Connection(kind="port", verdict="failed", host="127.0.0.1", port=port, reason="nobody listens there")
    async with stream:
        try:
            channel = mux.open(port)
        except Gone as gone:
            reset(stream)
            told.reason = str(gone)
            on_end(told)
            return
        try:
            with channel.scope:
                await splice(channel, stream, b"", b"")
                politely = True
        except LOST as error:
            told.reason = str(error)[:200] or "the connection was lost"
        finally:
            if politely or channel.received:
                told.verdict, told.reason = "allowed", "" if politely else "the connection was lost"
            told.sent, told.received = channel.received, channel.sent
            told.seconds = round(time.monotonic() - began, 4)
            on_end(told)
            if not politely:
                reset(stream)
            await channel.close(politely=politely)
