"""The gateway of a run, with its forwarder on this machine in the place of a box."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import anyio
import attrs
import psutil
import pytest

from container_runner.config.servers import HostServer
from container_runner.config.values import PortBinding
from container_runner.errors import EngineBusyError, EngineError, ImageUnsuitableError
from container_runner.gateway import gateway as gateways
from container_runner.gateway.forwarder import forwarder
from container_runner.gateway.frames import Channel
from container_runner.gateway.gateway import RESTART_DELAY, Gateway
from container_runner.gateway.offered import plan_hosted
from container_runner.gateway.plan import GatewayPlan
from container_runner.gateway.server import Server
from tests.gateway.box import free_port, read_all

RUN = "0123456789abcdef"


def plan(port: int, *allow_hosts: str) -> GatewayPlan:
    return GatewayPlan(run=RUN, port=port, allow_hosts=allow_hosts, allow_addresses=(), env={})


async def ask(port: int, host: str = "evil.test") -> bytes:
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        await stream.send(f"GET http://{host}/ HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        return await read_all(stream)


def forwarders() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if RUN in child.cmdline()]


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "gateway" in thread.name]


async def test_it_serves_until_it_is_stopped_and_leaves_nothing() -> None:
    gateway = Gateway(plan(port := free_port()))
    await gateway.start(forwarder(RUN, port), os.environ)
    try:
        assert len(forwarders()) == 1
        assert b"403 Forbidden: evil.test:80" in await ask(port)
        with anyio.fail_after(10):
            while not (told := gateway.taken()):
                await anyio.sleep(0.01)
        assert [(one.host, one.verdict) for one in told] == [("evil.test", "denied")]
        assert gateway.taken() == []
    finally:
        await gateway.stop()

    assert forwarders() == []
    assert threads() == []
    await gateway.stop()  # once more does nothing


async def test_a_forwarder_that_was_killed_is_started_again() -> None:
    gateway = Gateway(plan(port := free_port()))
    await gateway.start(forwarder(RUN, port), os.environ)
    try:
        (first,) = forwarders()
        os.kill(first.pid, signal.SIGKILL)
        with anyio.fail_after(20):
            while first in forwarders() or not forwarders():
                await anyio.sleep(0.05)
            while True:
                try:
                    assert b"403" in await ask(port)
                    break
                except OSError:
                    await anyio.sleep(0.05)
    finally:
        await gateway.stop()

    assert forwarders() == []


async def is_open(port: int) -> bool:
    try:
        await (await anyio.connect_tcp("127.0.0.1", port)).aclose()
    except OSError:
        return False
    return True


async def test_a_forwarder_that_dies_again_and_again_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And then nothing of the run is open any more."""
    monkeypatch.setattr(gateways, "MOST_STARTS", 3)
    monkeypatch.setattr(gateways, "RESTART_DELAY", 0.01)
    started = tmp_path / "started"
    dies = ["sh", "-c", 'echo >>"$1"; echo "container-runner: forwarding $0" >&2', RUN, str(started)]
    gateway = Gateway(attrs.evolve(plan(1), ports=(PortBinding(80, published := free_port()),)))
    await gateway.start(dies, os.environ)
    try:
        with anyio.fail_after(40):
            while await is_open(published):
                await anyio.sleep(0.05)
    finally:
        await gateway.stop()

    assert started.read_text() == "\n" * 3


async def test_one_that_was_started_ahead_lets_through_what_its_run_may() -> None:
    async with await anyio.create_tcp_listener(local_host="127.0.0.2") as listener, anyio.create_task_group() as tasks:

        async def serve(stream: anyio.abc.SocketStream) -> None:
            async with stream:
                await stream.receive()
                await stream.send(b"HTTP/1.1 204 No Content\r\n\r\n")

        tasks.start_soon(listener.serve, serve)
        where = f"127.0.0.2:{listener.extra(anyio.abc.SocketAttribute.local_port)}"
        gateway = Gateway(plan(port := free_port()))
        await gateway.start(forwarder(RUN, port), os.environ)
        try:
            assert b" 403 " in await ask(port, where)
            gateway.become(
                GatewayPlan(run="another", port=port, allow_hosts=(where,), allow_addresses=("127.0.0.0/8",), env={})
            )
            assert b" 204 " in await ask(port, where)
        finally:
            await gateway.stop()
        tasks.cancel_scope.cancel()


async def test_its_program_is_started_for_the_run_that_it_was_not_made_for() -> None:
    """On the gateway's own event loop, whatever the caller's is."""
    answers = 'import sys; sys.stdin.readline(); print(\'{"id": 1, "result": 2}\', flush=True); sys.stdin.read()'
    gateway = Gateway(plan(port := free_port()))
    await gateway.start(forwarder(RUN, port), os.environ)
    hosted, _ = plan_hosted({"files": HostServer(command=sys.executable, args=["-c", answers])}, os.environ, "word")
    gateway.become(attrs.evolve(plan(port), hosted=hosted))
    said = '{"id": "a", "method": "any"}'
    head = f"POST /mcp/files HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer word\r\nContent-Length: {len(said)}\r\n\r\n"
    try:
        with anyio.fail_after(60):
            async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                await stream.send((head + said).encode())
                assert (await read_all(stream)).endswith(b'{"id":"a","result":2}')
    finally:
        await gateway.stop()


FLOOD = """\
import os, struct, sys, time
print("container-runner: forwarding", sys.argv[1], file=sys.stderr, flush=True)
while not os.path.exists(sys.argv[2]):
    time.sleep(0.05)
for number in range(1, 20):
    for kind in (1, 4):
        sys.stdout.buffer.write(struct.pack("!BBHI", kind, 0, 0, number))
        sys.stdout.buffer.flush()
sys.stdin.read()
"""
"""Opens connections and resets them."""


async def test_connections_that_were_reset_and_do_not_end_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[int] = []
    is_over = threading.Event()

    async def serve(_: Server, channel: Channel) -> None:
        served.append(channel.number)
        with anyio.CancelScope(shield=True):
            while not is_over.is_set():
                await anyio.sleep(0.01)

    monkeypatch.setattr("container_runner.gateway.gateway.MOST_AT_WORK", 3)
    monkeypatch.setattr("container_runner.stream.process.CHUNK", 8)  # the reset comes by itself
    monkeypatch.setattr(Server, "serve", serve)
    gateway = Gateway(plan(1))
    gateway.expect_end()  # no other one comes
    try:
        await gateway.start([sys.executable, "-c", FLOOD, RUN, str(tmp_path / "now")], os.environ)
        (tmp_path / "now").touch()
        with anyio.fail_after(30):
            while not (told := gateway.taken()):
                await anyio.sleep(0.01)
    finally:
        is_over.set()
        await gateway.stop()

    assert [one.reason for one in told] == ["the forwarder was ended: more connections than can be ended"]
    assert served == [1, 2, 3]


async def test_no_forwarder_is_started_for_a_run_that_has_ended() -> None:
    gateway = Gateway(plan(port := free_port()))
    await gateway.start(forwarder(RUN, port), os.environ)
    try:
        gateway.expect_end()
        (first,) = forwarders()
        os.kill(first.pid, signal.SIGKILL)
        await anyio.sleep(2 * RESTART_DELAY)
        assert forwarders() == []
    finally:
        await gateway.stop()


async def test_it_serves_while_the_caller_does_something_else() -> None:
    gateway = Gateway(plan(port := free_port()))
    await gateway.start(forwarder(RUN, port), os.environ)
    script = (
        "import socket, sys; s = socket.create_connection(('127.0.0.1', int(sys.argv[1]))); "
        "s.sendall(b'GET http://evil.test/ HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n'); print(s.recv(99))"
    )
    try:
        command = [sys.executable, "-c", script, str(port)]
        done = subprocess.run(command, capture_output=True, timeout=30, check=True)  # noqa: ASYNC221  on purpose
    finally:
        await gateway.stop()

    assert b"403 Forbidden" in done.stdout


async def test_an_image_without_an_interpreter_is_told(tmp_path: Path) -> None:
    (tmp_path / "sh").symlink_to("/bin/sh")
    gateway = Gateway(plan(port := free_port()))
    with pytest.raises(ImageUnsuitableError, match="neither perl, python3 nor node"):
        await gateway.start(["/bin/sh", *forwarder(RUN, port)[1:]], {"PATH": str(tmp_path)})
    await gateway.stop()

    assert threads() == []


async def test_a_port_that_is_taken_is_told() -> None:
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        gateway = Gateway(plan(port))
        with pytest.raises(EngineBusyError, match=f"The port {port} of the container"):
            await gateway.start(forwarder(RUN, port), os.environ)
        await gateway.stop()


async def test_an_engine_that_fails_is_told() -> None:
    gateway = Gateway(plan(1))
    with pytest.raises(EngineError, match="could not be started") as error:
        await gateway.start(["sh", "-c", "echo no such container >&2; exit 1"], os.environ)
    await gateway.stop()

    assert "no such container" in error.value.stderr


@pytest.mark.parametrize("seconds", [0, 0.01, 0.05, 0.2])
async def test_a_start_that_is_cancelled_leaves_nothing(seconds: float) -> None:
    gateway = Gateway(plan(port := free_port()))
    with anyio.move_on_after(seconds):
        await gateway.start(forwarder(RUN, port), os.environ)
    with anyio.CancelScope(shield=True):
        await gateway.stop()

    assert forwarders() == []
    assert threads() == []
