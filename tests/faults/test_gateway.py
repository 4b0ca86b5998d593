"""A run with a gateway: however it ends, so do the forwarder in its box, our thread, and what that serves."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator

import anyio
import pytest

from container_runner import CommandRuntime, ContainerConfig, ContainerRunner, tool
from container_runner.stream.messages import Message, OutputLine
from tests.benchmarks.gateway import service
from tests.faults.scene import VARIABLE, Scene, last
from tests.faults.test_claude import AT_WORK, PROGRAM, config, stopped
from tests.gateway.box import free_port
from tests.integration.engines import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.claude, pytest.mark.timeout(600)]


def forwarders(scene: Scene) -> list[str]:
    """The forwarders of the scene's runs, and the clients that carry their words."""
    return [line for line in scene.processes().values() if "forwarding" in line]


@pytest.mark.parametrize("ephemeral", [True, False], ids=["ephemeral", "persistent"])
@pytest.mark.parametrize("how", ["cancel", "SIGKILL of us alone"])
def test_a_forwarder_ends_with_its_run(
    scene: Scene, claude_image: str, ephemeral: bool, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "any")
    fields = {**config(claude_image, ephemeral=ephemeral), "network": "gateway"}
    if how == "cancel":
        _, since = anyio.run(stopped, scene, fields, None, backend=scene.loop)
        keep = [] if ephemeral else scene.containers()
    else:
        victim = scene.victim(AT_WORK, program=PROGRAM, config=fields)
        victim.wait_for("assistant")
        time.sleep(1)  # the tool's process starts
        keep = [] if ephemeral else scene.containers()
        assert forwarders(scene)
        since = victim.kill(tree=False)
    kind = "ephemeral" if ephemeral else "persistent"
    fault = f"real claude with a tool at work and a gateway, {how} ({kind})"
    saw = "cancelled" if how == "cancel" else "nothing"
    scene.settle(fault, saw, since=since, keep=keep, also=lambda: forwarders(scene))
    assert [thread.name for thread in threading.enumerate() if "gateway" in thread.name] == []


TRANSFER = """\
import os, socket, time
def transfer():
    host, port = os.environ["HTTP_PROXY"].removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as sock:
        sock.sendall(b"CONNECT %b HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n1000000000000\\n" % os.environ["SERVICE"].encode())
        received = 0
        while len(part := sock.recv(1 << 16)):
            received += len(part)
            if received > 1 << 20:
                yield
for word in ("in a transfer", "at the end"):
    while True:
        try:
            for _ in transfer():
                if word:
                    print(word, flush=True)
                if word == "at the end":
                    raise SystemExit
                word = ""
        except OSError:
            pass
        if not word:
            break
        time.sleep(0.1)
"""
"""Is sent something without end, is sent it again when that was cut off, and leaves in the middle."""


@contextlib.contextmanager
def transferring(image: str) -> Iterator[dict[str, object]]:
    """The fields of a box that is sent something."""
    with service(host="127.0.0.2") as port:
        where = f"127.0.0.2:{port}"
        allowed = {"allow_hosts": [where], "allow_addresses": ["127.0.0.2"], "env": {"SERVICE": where}}
        yield {"image": image, "network": "gateway", **allowed}


def test_the_client_of_a_forwarder_is_killed(scene: Scene, claude_image: str) -> None:
    """In a transfer another one comes in its place; before, the agent does not start."""
    since: list[float] = []

    def kill() -> None:
        for pid in scene.clients("exec"):
            os.kill(pid, signal.SIGKILL)
            since.append(time.monotonic())

    async def killed(fields: dict[str, object], early: bool) -> list[Message]:
        made = ContainerRunner(
            CommandRuntime(["python3", "-c", TRANSFER]), ContainerConfig(**scene.fields(**fields)), scene.state
        )
        messages: list[Message] = []
        async with anyio.create_task_group() as tasks:

            async def watch() -> None:
                while not since:
                    await anyio.sleep(0.001)
                    kill()

            if early:
                tasks.start_soon(watch)
            async with contextlib.aclosing(made.execute(scene.options("go"))) as run:
                async for message in run:
                    messages.append(message)
                    if isinstance(message, OutputLine):
                        kill()
            tasks.cancel_scope.cancel()
        return messages

    def ran(*, early: bool) -> list[Message]:
        since.clear()
        with transferring(claude_image) as fields:
            return anyio.run(killed, fields, early, backend=scene.loop)

    messages = ran(early=True)
    while last(messages) != "engine":  # a busy machine sees it too late
        messages = ran(early=True)
    scene.settle("the client of a forwarder SIGKILLed before that is ready", last(messages), since=since[0])
    messages = ran(early=False)
    fault = "the client of a forwarder SIGKILLed in a transfer, and the next one's at the end"
    scene.settle(fault, last(messages), since=since[-1])
    assert [message.text for message in messages if isinstance(message, OutputLine)] == ["in a transfer", "at the end"]


@pytest.mark.parametrize("phase", ["before its forwarder is ready", "in a transfer"])
def test_a_forwarder_ends_with_us_in_each_phase(scene: Scene, claude_image: str, phase: str) -> None:
    with transferring(claude_image) as fields:
        victim = scene.victim("go", command=["python3", "-c", TRANSFER], config=fields)
        if phase == "in a transfer":
            victim.wait_for("output")
        else:
            victim.wait_for_client("exec")
        since = victim.kill(tree=False)
    fault = f"a run with a gateway, SIGKILL of us alone {phase}"
    scene.settle(fault, "nothing", since=since, also=lambda: forwarders(scene))


IN_BOX = """\
import json, os, socket, time
def call(url):
    port = int(url.split(":")[2].split("/")[0])
    said = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "hang", "arguments": {}}})
    sock = socket.create_connection(("127.0.0.1", port))
    head = "POST %s HTTP/1.1\\r\\nHost: x\\r\\nAuthorization: Bearer %s\\r\\nContent-Length: %d\\r\\n\\r\\n"
    sock.sendall((head % (url, os.environ["AGENT_TOOLS_TOKEN"], len(said)) + said).encode())
    return sock
calls = [call(os.environ["AGENT_TOOLS_URL"]), call(os.environ["AGENT_MCP_URL"] + "/hosted")]
with socket.create_server(("127.0.0.1", 8000)) as server:
    print("at work", flush=True)
    sock = server.accept()[0]
    sock.sendall(sock.recv(1))
    time.sleep(1000)
"""

HOSTED = """\
import subprocess, sys, time
subprocess.Popen(["sleep", "1000"])
sys.stdin.readline()
time.sleep(1000)  # it does not mind that its input has ended
"""


@pytest.mark.parametrize("how", ["cancel", "SIGKILL of us alone"])
def test_functions_servers_and_ports_end_with_their_run(scene: Scene, claude_image: str, how: str) -> None:
    """Each of them is at work: a function that never returns, a server that answers nothing, a connection inward."""
    port, command = free_port(), ["python3", "-c", IN_BOX]
    server = {"command": sys.executable, "args": ["-c", HOSTED], "env": {VARIABLE: scene.token}}
    fields = {"image": claude_image, "ports": [f"{port}:8000"], "host_mcp_servers": {"hosted": server}}
    ended: list[str] = []

    def connect() -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", port), timeout=60)
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
        wait_until(lambda: any(HOSTED.split()[-1] in line for line in scene.processes().values()), seconds=60)
        return sock

    @tool
    async def hang() -> None:
        """Never return."""
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("hang")

    async def cancelled() -> tuple[socket.socket, float]:
        """Cancel it once all of them are at work, and tell when."""
        made = ContainerConfig(**scene.fields(**fields))
        runner = ContainerRunner(CommandRuntime(command), made, scene.state, tools=[hang])
        found: list[tuple[socket.socket, float]] = []
        with anyio.CancelScope() as scope:
            async with contextlib.aclosing(runner.execute(scene.options("go"))) as messages:
                async for message in messages:
                    if isinstance(message, OutputLine):
                        found.append((await anyio.to_thread.run_sync(connect), time.monotonic()))
                        scope.cancel()
        return found[0]

    if how == "cancel":
        held, since = anyio.run(cancelled, backend=scene.loop)
    else:
        victim = scene.victim("go", command=command, config=fields)
        victim.wait_for("output")
        held = connect()
        assert forwarders(scene)
        since = victim.kill(tree=False)

    def left() -> list[str]:
        found = forwarders(scene)
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            found.append("the port is open")
        return found

    with held:
        held.settimeout(60)
        with contextlib.suppress(ConnectionResetError):
            assert held.recv(1) == b""
    scene.settle(f"a function, an MCP server and a port at work, {how}", "its own way", since=since, also=left)
    assert ended == (["hang"] if how == "cancel" else [])
    assert [thread.name for thread in threading.enumerate() if "gateway" in thread.name] == []
