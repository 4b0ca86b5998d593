"""Ports of a box, opened on this machine, through real forwarders on this machine."""

from __future__ import annotations

import hashlib
import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import anyio.abc
import pytest

from container_runner.config.values import PortBinding
from container_runner.errors import PortError
from container_runner.gateway.forwarder import MOST_CHANNELS, forwarder
from container_runner.gateway.frames import Channel, Gone, Mux
from container_runner.gateway.gateway import Gateway
from container_runner.gateway.plan import GatewayPlan
from container_runner.gateway.ports import listen, serve
from container_runner.gateway.server import Connection
from container_runner.stream.process import Process
from tests.gateway.box import INTERPRETERS, free_port, read_all
from tests.gateway.box import forwarder as named_forwarder

RUN = "0123456789abcdef"
each_forwarder = pytest.mark.parametrize("name", INTERPRETERS)


class Published:
    """A port of this machine that leads to one in the box, and what connects to the box's *own*."""

    def __init__(self, port: int, own: int, mux: Mux) -> None:
        self.port = port
        self.own = own
        self.mux = mux
        self.accepted: list[Channel] = []
        self.told: list[Connection] = []

    async def connect(self) -> anyio.abc.SocketStream:
        return await anyio.connect_tcp("127.0.0.1", self.port)


@asynccontextmanager
async def published(name: str, inside: int) -> AsyncIterator[Published]:
    """A forwarder in a box in which somebody may listen on the port *inside*."""
    gate = f"container-runner: forwarding {RUN}".encode()
    own = free_port()
    process = await Process.start(named_forwarder(name, own, RUN), hold_stdin=True, gate=gate, chunks=True)
    found = Published(free_port(), own, Mux(process))
    try:
        assert await process.wait_for_gate(20), process.stderr
        async with AsyncExitStack() as stack, anyio.create_task_group() as tasks:
            ((port, listener),) = await listen([PortBinding(inside, found.port)], stack)
            tasks.start_soon(found.mux.run, found.accepted.append)
            tasks.start_soon(serve, port, listener, found.mux, found.told.append)
            yield found
            tasks.cancel_scope.cancel()
    finally:
        process.close_stdin()
        with anyio.CancelScope(shield=True):
            await process.terminate(2)
        process.close()


@asynccontextmanager
async def echo() -> AsyncIterator[int]:
    """A service that says back what it hears, and its end."""

    async def one(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            try:
                while True:
                    await stream.send(await stream.receive())
            except anyio.EndOfStream:
                await stream.send_eof()
            except (anyio.BrokenResourceError, OSError):
                pass

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, one)
        yield listener.extra(anyio.abc.SocketAttribute.local_port)
        tasks.cancel_scope.cancel()


@each_forwarder
async def test_what_is_said_on_this_side_is_heard_in_the_box_and_the_other_way_round(name: str) -> None:
    said = os.urandom(1_500_000)  # more than there is credit for
    async with echo() as inside, published(name, inside) as box:
        heard = bytearray()
        async with await box.connect() as stream, anyio.create_task_group() as tasks:

            async def send() -> None:
                await stream.send(said)
                await stream.send_eof()

            tasks.start_soon(send)
            with anyio.fail_after(60):
                heard += await read_all(stream)
        with anyio.fail_after(60):
            while not box.told:
                await anyio.sleep(0.01)

    assert hashlib.sha256(heard).digest() == hashlib.sha256(said).digest()
    (told,) = box.told
    assert (told.kind, told.verdict, told.port, told.reason) == ("port", "allowed", inside, "")
    assert (told.sent, told.received) == (len(said), len(said))


@each_forwarder
async def test_a_port_on_which_nobody_listens_hangs_up_and_the_next_one_is_served(name: str) -> None:
    async with published(name, free_port()) as box:
        for _ in range(3):
            async with await box.connect() as stream:
                with anyio.fail_after(60), pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                    await stream.receive()
        assert {(told.verdict, told.reason) for told in box.told} == {("failed", "nobody listens there")}


@each_forwarder
async def test_a_reset_on_this_side_is_one_in_the_box(name: str) -> None:
    ends: list[BaseException] = []
    ended = anyio.Event()

    async def one(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            try:
                await stream.send(b"hello")
                await stream.receive()
            except (anyio.BrokenResourceError, anyio.EndOfStream) as error:
                ends.append(error)
            ended.set()

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, one)
        async with published(name, listener.extra(anyio.abc.SocketAttribute.local_port)) as box:
            stream = await box.connect()
            with anyio.fail_after(60):
                assert await stream.receive() == b"hello"
                raw = stream.extra(anyio.abc.SocketAttribute.raw_socket)
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                await stream.aclose()
                await ended.wait()
        tasks.cancel_scope.cancel()

    assert isinstance(ends[0], anyio.BrokenResourceError)


@each_forwarder
async def test_the_box_has_all_of_its_own_connections_beside_those_of_the_host(name: str) -> None:
    async with echo() as inside, published(name, inside) as box:
        ours = [box.mux.open(inside) for _ in range(100)]
        with pytest.raises(Gone, match="too many"):
            box.mux.open(inside)
        theirs = [await anyio.connect_tcp("127.0.0.1", box.own) for _ in range(MOST_CHANNELS)]
        for channel in ours:
            await channel.send(b"x")
        with anyio.fail_after(60):
            for stream in theirs:
                await stream.send(b"y")
            while len(box.accepted) < len(theirs):
                await anyio.sleep(0.01)
            assert [await channel.receive() for channel in box.accepted] == [b"y"] * len(theirs)
            assert [await channel.receive() for channel in ours] == [b"x"] * len(ours)
            for channel in ours:
                await channel.close(politely=False)
            again = box.mux.open(inside)
            await again.send(b"again")
            assert await again.receive() == b"again"
            await again.close(politely=False)
            for stream in theirs:
                await stream.aclose()


async def test_a_run_opens_its_ports_and_closes_them() -> None:
    async with echo() as inside:
        at = free_port()
        plan = GatewayPlan(
            run=RUN,
            port=(own := free_port()),
            allow_hosts=(),
            allow_addresses=(),
            ports=(PortBinding(inside, at),),
            env={},
        )
        gateway = Gateway(plan)
        await gateway.start(forwarder(RUN, own), os.environ)
        try:
            async with await anyio.connect_tcp("127.0.0.1", at) as stream:
                await stream.send(b"hello")
                with anyio.fail_after(60):
                    assert await stream.receive() == b"hello"
        finally:
            await gateway.stop()

        with pytest.raises(OSError, match="connection"):
            await anyio.connect_tcp("127.0.0.1", at)


async def test_a_port_that_is_taken_on_this_side_ends_the_start() -> None:
    async with echo() as taken:
        plan = GatewayPlan(
            run=RUN,
            port=(own := free_port()),
            allow_hosts=(),
            allow_addresses=(),
            ports=(PortBinding(80, taken),),
            env={},
        )
        gateway = Gateway(plan)
        with pytest.raises(PortError, match=f":{taken} of this machine can not be opened: Address already in use"):
            await gateway.start(forwarder(RUN, own), os.environ)
        await gateway.stop()


async def test_an_address_that_is_not_this_machines_is_told() -> None:
    async with AsyncExitStack() as stack:
        with pytest.raises(PortError, match=r"192\.0\.2\.1:.* can not be opened"):
            await listen([PortBinding(80, free_port(), "192.0.2.1")], stack)
