"""Faults from outside of the run: its client, its container, the engine's daemon, podman's conmon."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from container_runner import Engine
from container_runner.engine import manager as manager_module
from container_runner.runner import lookout
from container_runner.runner import run as run_module
from container_runner.stream import process as process_module
from container_runner.stream import stream as stream_module
from container_runner.stream.messages import Message
from tests.faults.scene import TABLE, Scene, last
from tests.integration.engines import OWN, RealEngine
from tests.integration.runs import on

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

PROMPT = "setsid-sleep 1001\nsh sleep 1002"


def struck(
    scene: Scene, strike: Callable[[str], object], *, backend: str = "", prompt: str = PROMPT, **fields: Any
) -> tuple[list[Message], float]:
    """The messages of a run whose container is given to *strike* after the first one, and when that was."""
    since = 0.0

    async def main() -> list[Message]:
        nonlocal since
        messages: list[Message] = []
        async with contextlib.aclosing(scene.runner(**fields).execute(scene.options(prompt))) as stream:
            async for message in stream:
                messages.append(message)
                if len(messages) == 1:
                    (container,) = scene.containers()
                    await anyio.sleep(0.3)
                    since = time.monotonic()
                    strike(container)
        return messages

    messages = anyio.run(main, backend=backend or scene.loop)
    return messages, since


@on(*OWN)
@pytest.mark.parametrize(
    ("what", "verb"),
    [
        ("the container is killed", ["kill"]),
        ("the container is stopped", ["stop", "--time=1"]),
        ("the container is removed", ["rm", "--force"]),
    ],
)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_container_is_ended(scene: Scene, what: str, verb: list[str], backend: str) -> None:
    messages, since = struck(scene, lambda name: scene.engine.run(*verb, name, check=False), backend=backend)
    scene.settle(what, last(messages), since=since, backend=backend)
    # PID 1 gets TERM first from `stop`, and from podman's `rm`, and hands it on to the agent.
    gentle = verb[0] == "stop" or (verb[0] == "rm" and scene.engine.name != "docker")
    assert last(messages).split()[0] == ("agent_killed" if gentle else "container_gone")


def test_the_container_is_paused(scene: Scene) -> None:
    """Nothing in it can act then, not even our watchdog; the container goes."""
    timeout = 12  # to find the container and to pause it takes a busy engine some seconds

    async def main() -> tuple[list[Message], float]:
        messages: list[Message] = []
        since = 0.0
        options = scene.options(PROMPT, timeout=timeout, grace=1)
        async with contextlib.aclosing(scene.runner().execute(options)) as stream:
            async for message in stream:
                messages.append(message)
                if len(messages) == 1:
                    (container,) = scene.containers()
                    scene.engine.run("pause", container)
                    since = time.monotonic()
        return messages, since

    messages, since = anyio.run(main, backend=scene.loop)
    scene.settle("the container is paused, then a timeout", last(messages), since=since + timeout)
    assert last(messages) == "total_timeout (container)"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["TERM", "KILL"])
def test_the_client_is_killed(scene: Scene, number: signal.Signals) -> None:
    def strike(_: str) -> None:
        (pid,) = scene.clients("run")
        os.kill(pid, number)

    messages, since = struck(scene, strike)
    scene.settle(f"the engine's client gets {number.name}", last(messages), since=since)
    # docker and podman hand TERM on to the container.
    assert last(messages).split()[0] == ("exec_lost" if number is signal.SIGKILL else "agent_killed")


@on("podman")
@pytest.mark.parametrize("whose", ["exec", "container", "kept container"])
def test_conmon_is_killed(scene: Scene, whose: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """podman's client may hang when a conmon is gone; we look after it when the agent has been silent.

    An ephemeral container's conmon holds its lease, and a kept one's its own; what a run has in it goes on.
    """
    monkeypatch.setattr(stream_module, "CHECK_INTERVAL", 1.0)
    monkeypatch.setattr(lookout, "LOOK_INTERVAL", 1.0)
    kept = whose != "container"

    def strike(_: str) -> None:
        found = scene.processes().items()
        monitors = {pid: "--exec-attach" in line for pid, line in found if "conmon" in line.split()[0]}
        (pid,) = [pid for pid in monitors if monitors[pid] == (whose == "exec")]
        os.kill(pid, signal.SIGKILL)

    messages, since = struck(scene, strike, prompt="setsid-sleep 1001\nsh sleep 3", ephemeral=not kept)
    keep = scene.containers() if kept else []
    scene.settle(f"SIGKILL of the {whose}'s conmon", last(messages), since=since, keep=keep)
    assert last(messages).split()[0] in ("exec_lost", "container_gone", "agent_killed", *(["result"] if kept else []))


def test_the_daemon_is_killed(private_docker: Callable[[], RealEngine]) -> None:
    engine = private_docker()
    with Scene.on(engine, TABLE) as scene:
        assert engine.daemon is not None
        messages, since = struck(scene, lambda _: os.kill(engine.daemon_pid, signal.SIGKILL))
        saw = last(messages)
        engine.restart_daemon()
        pruned_at = time.monotonic()
        follow_up, _ = struck(scene, lambda _: None, prompt="hello")
        assert last(follow_up) == "result"
        scene.settle("SIGKILL of the daemon, then a restart", saw, since=min(pruned_at, time.monotonic()))
        assert saw.split()[0] in ("engine_unreachable", "cleanup", "container_gone")
        assert since


def test_the_daemon_is_killed_and_stays_away(private_docker: Callable[[], RealEngine]) -> None:
    """docker's client ends with 125, behind "started": the daemon is lost, and the agent is not told."""
    engine = private_docker()
    with Scene.on(engine, TABLE) as scene:
        messages, since = struck(scene, lambda _: os.kill(engine.daemon_pid, signal.SIGKILL))
        saw, took = last(messages), time.monotonic() - since
        assert saw.split()[0] == "engine_unreachable"
        assert took < 90
        engine.restart_daemon()  # which ends what it finds
        scene.settle("SIGKILL of the daemon, which comes back when the run has ended", saw, since=time.monotonic())


def test_the_daemon_is_killed_and_comes_back_while_we_run(private_docker: Callable[[], RealEngine]) -> None:
    engine = private_docker()
    with Scene.on(engine, TABLE) as scene:

        def strike(_: str) -> None:
            os.kill(engine.daemon_pid, signal.SIGKILL)
            engine.restart_daemon()

        messages, since = struck(scene, strike)
        scene.settle("SIGKILL of the daemon, restarted at once", last(messages), since=since)
        assert last(messages).split()[0] in ("engine_unreachable", "container_gone")


def test_the_daemon_is_stopped(private_docker: Callable[[], RealEngine], monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that does not answer hangs each of its clients; each has a time limit."""
    defaults = Engine.run.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "timeout", 2.0)
    for module in (manager_module, run_module):
        monkeypatch.setattr(module, "CLEANUP_TIMEOUT", 10.0)
    monkeypatch.setattr(process_module, "TERM_GRACE", 1.0)
    engine = private_docker()
    with Scene.on(engine, TABLE) as scene:

        async def main() -> list[Message]:
            messages: list[Message] = []
            async with contextlib.aclosing(scene.runner().execute(scene.options(PROMPT, timeout=2, grace=1))) as stream:
                async for message in stream:
                    messages.append(message)
                    if len(messages) == 1:
                        os.kill(engine.daemon_pid, signal.SIGSTOP)
            return messages

        began = time.monotonic()
        try:
            messages = anyio.run(main, backend=scene.loop)
        finally:
            took = time.monotonic() - began
            os.kill(engine.daemon_pid, signal.SIGCONT)
        scene.settle("SIGSTOP of the daemon, then a timeout; CONT later", last(messages), since=time.monotonic())
        assert last(messages).startswith("total_timeout")
        assert took < 30
