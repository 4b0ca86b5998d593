"""SIGKILL of our process, alone and with its whole tree, in each phase of a run. Nothing stays."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import anyio
import pytest

from container_runner import Engine
from container_runner.box.environment import host_environment
from container_runner.engine.manager import Containers
from tests.faults.scene import Scene
from tests.integration.engines import BY_ROOT, write_program
from tests.integration.runs import on

pytestmark = [pytest.mark.faults, pytest.mark.timeout(180)]

TREE = pytest.mark.parametrize("tree", [False, True], ids=["alone", "tree"])
WHO = {False: "us alone", True: "our whole tree"}


def fault(tree: bool, phase: str) -> str:
    return f"SIGKILL of {WHO[tree]}, {phase}"


@TREE
def test_killed_while_the_container_starts(scene: Scene, tree: bool) -> None:
    delays = [0, 0.02, 0.05, 0.08, 0.12, 0.2, 0.4]
    since = 0.0
    for delay in delays:
        victim = scene.victim("sleep 1000")
        victim.wait_for_client("run")
        time.sleep(delay)
        since = victim.kill(tree=tree)
    saw = "nothing"
    if tree:
        # A client that is killed may leave a container that was never started. The next start removes it.
        time.sleep(5)
        began = time.monotonic()
        if prune(scene):
            saw, since = "what never ran went at the next start", began
    scene.settle(fault(tree, "`run` in flight"), saw, since=since, tries=len(delays))


@TREE
def test_killed_between_run_and_exec(scene: Scene, tree: bool) -> None:
    slow = scene.folder / "slow-exec"
    # A client that has not yet asked for its exec: it only waits for what comes on its stdin, or its end.
    write_program(slow, f'[ "$1" != exec ] || {{ cat >/dev/null; exit 1; }}\nexec {scene.engine.binary}')
    victim = scene.victim("sleep 1000", engine=str(slow), config={"ephemeral": False})
    victim.wait_for_client("exec")
    keep = scene.containers()
    since = victim.kill(tree=tree)
    scene.settle(fault(tree, "between `run` and `exec` (persistent)"), "nothing", since=since, keep=keep)
    for container in keep:
        scene.engine.remove(container)


@TREE
@pytest.mark.timeout(300)
def test_killed_while_a_start_takes_half_a_minute(scene: Scene, tree: bool) -> None:
    """Before the engine has it, and when it comes at last: its stdin ends behind the prompt, and with it the agent."""
    slow = scene.folder / "slow-run"
    write_program(slow, f'[ "$1" != run ] || sleep 30\nexec {scene.engine.binary}')
    victim = scene.victim("sleep 1000", engine=str(slow))
    victim.wait_for_client("run")
    time.sleep(1)
    since = victim.kill(tree=tree)
    if not tree:  # the client comes to it when we have long been dead
        time.sleep(32)
        since = time.monotonic()
    scene.settle(fault(tree, "a `run` that takes 30 s"), "nothing", since=since)


@TREE
def test_killed_while_the_prompt_is_written(scene: Scene, tree: bool) -> None:
    for delay in (0, 0.1, 0.2, 0.3):
        victim = scene.victim("sh : >begun", padding=40_000_000)
        victim.wait_for_client("run")
        time.sleep(delay)
        since = victim.kill(tree=tree)
        if tree:  # the client may have been in the middle of its start
            time.sleep(2)
            prune(scene)
        scene.settle(fault(tree, "prompt being written"), "nothing", since=since)
    assert not (scene.workspace / "begun").exists(), "an agent began with half a prompt"


@on(*BY_ROOT)
@TREE
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_killed_while_streaming(scene: Scene, tree: bool, backend: str) -> None:
    prompts = [
        "sh sleep 1001 & setsid sleep 1002 & setsid sh -c 'trap \"\" TERM; sleep 1003' & sleep 1004",
        "setsid-hold 1001\nignore-term",
        "flood 1000000000 100",
    ]
    victims = [scene.victim(prompt, backend=backend) for prompt in prompts]
    for victim in victims:
        victim.wait_for("system")
    time.sleep(0.3)
    since = max([victim.kill(tree=tree) for victim in victims])
    what = "streaming (children, TERM ignored, a flood)"
    scene.settle(fault(tree, what), "nothing", since=since, backend=backend, tries=len(victims))


@TREE
def test_killed_with_containers_that_wait_for_a_run(scene: Scene, tree: bool) -> None:
    victim = scene.victim("", pool=3)
    victim.wait_for("warm")
    assert len(scene.containers()) == 3
    since = victim.kill(tree=tree)
    scene.settle(fault(tree, "three containers ready in a pool"), "nothing", since=since)


@TREE
def test_killed_while_stopping(scene: Scene, tree: bool) -> None:
    for delay in (0, 0.5, 3.2):
        victim = scene.victim("ignore-term", then="break")
        victim.wait_for("stopping")
        time.sleep(delay)
        since = victim.kill(tree=tree)
        scene.settle(fault(tree, "stopping, TERM ignored"), "nothing", since=since)


@TREE
@pytest.mark.parametrize("phase", ["`run` in flight", "prompt being written", "stopping, TERM ignored"])
def test_killed_in_a_persistent_container(scene: Scene, tree: bool, phase: str) -> None:
    kept = {"ephemeral": False}
    if phase == "`run` in flight":
        victim = scene.victim("sleep 1000", config=kept)
        victim.wait_for_client("run")
        time.sleep(0.1)
    elif phase == "prompt being written":
        victim = scene.victim("sh : >begun", config=kept, padding=40_000_000)
        victim.wait_for_client("exec")
        time.sleep(0.2)
    else:
        victim = scene.victim("ignore-term", config=kept, then="break")
        victim.wait_for("stopping")
        time.sleep(0.5)
    since = victim.kill(tree=tree)
    time.sleep(1)  # the engine may still be making it
    keep = scene.containers()
    if not keep:  # then the next start removes what there is of it
        prune(scene)
    scene.settle(f"{fault(tree, phase)} (persistent)", "the container, at most", since=since, keep=keep)
    assert len(keep) <= 1
    assert not (scene.workspace / "begun").exists(), "an agent began with half a prompt"

    after = scene.victim("hello", config=kept)
    assert after.wait_for("done") == "done result"
    after.process.communicate()


def prune(scene: Scene) -> list[str]:
    """What a next start would remove."""

    async def main() -> list[str]:
        environ = host_environment()
        manager = Containers(await Engine.probe(scene.engine.binary, environ), Path(scene.state))
        return [info.name for info in await manager.prune() if scene.token in info.name]

    return anyio.run(main)


def test_we_are_stopped_for_a_while_and_go_on(scene: Scene) -> None:
    """As a machine that sleeps, or Ctrl-Z: nobody reads and nobody beats, and the agent is none the worse."""
    victim = scene.victim("sleep 2\nsh echo still here")
    victim.wait_for("system")
    os.kill(victim.pid, signal.SIGSTOP)
    time.sleep(25)
    os.kill(victim.pid, signal.SIGCONT)
    assert victim.wait_for("done") == "done result"
    victim.process.communicate()
    scene.settle("SIGSTOP of us for 25 s", "result", since=time.monotonic())
