"""Persistent containers: they stay, whatever happens to a run in them, and hold nothing of a run that has ended."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

from container_runner import CommandRuntime, Engine
from container_runner.box import guest, script
from container_runner.box.argv import LABEL
from container_runner.box.environment import host_environment
from container_runner.engine.manager import Containers
from container_runner.engine.owner import Owner
from container_runner.stream.messages import Message
from tests.faults.scene import Scene, last
from tests.faults.test_inside import run_for
from tests.integration.engines import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(180)]

KEEP: dict[str, Any] = {"config": {"ephemeral": False}}


def sleepers(scene: Scene) -> set[int]:
    return {pid for pid, line in scene.agents().items() if "sleep 100" in line}


@pytest.mark.parametrize("tree", [False, True], ids=["alone", "tree"])
def test_sigkill_leaves_the_container_without_a_process_of_the_dead_run(scene: Scene, tree: bool) -> None:
    """Another run in it goes on untouched."""
    other = scene.victim("sh echo alive >alive; sleep 8; echo unharmed", **KEEP)
    other.wait_for("system")
    keep = scene.containers()
    victim = scene.victim("setsid-hold 1001\nsh trap '' TERM; setsid sleep 1002 & sleep 1003; sleep 1004", **KEEP)
    victim.wait_for("assistant")
    wait_until(lambda: len(sleepers(scene)) >= 3, seconds=10)
    mine = sleepers(scene)
    assert len(mine) >= 3
    since = victim.kill(tree=tree)
    who = "our whole tree" if tree else "us alone"

    def dead() -> list[str]:
        return [line for pid, line in scene.agents().items() if pid in mine]

    while dead() and time.monotonic() < since + 15:
        time.sleep(0.05)
    seconds = time.monotonic() - since
    assert not dead()
    assert other.wait_for("done") == "done result", "the other run was harmed"
    other.process.communicate()
    scene.settle(
        f"SIGKILL of {who}, persistent container, another run in it",
        "nothing; the other run: result",
        since=time.monotonic() - seconds,
        keep=keep,
    )


def test_cancelling_one_run_leaves_another_in_the_same_container_untouched(scene: Scene) -> None:
    async def main() -> tuple[list[Message], float]:
        runner = scene.runner(ephemeral=False)
        ended: list[list[Message]] = []
        since = 0.0

        async def whole() -> None:
            options = scene.options("sh until [ -e go ]; do sleep 0.1; done; echo unharmed")
            ended.append([message async for message in runner.execute(options)])

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(whole)
            await anyio.sleep(1)
            options = scene.options("sh trap '' TERM; setsid sleep 1001 & sleep 1002; sleep 1003")
            async with contextlib.aclosing(runner.execute(options)) as messages:
                async for _ in messages:
                    await anyio.sleep(0.3)
                    since = time.monotonic()
                    break
            took = time.monotonic() - since
            assert not ended
            (scene.workspace / "go").touch()
        return ended[0], took

    messages, took = anyio.run(main, backend=scene.loop)
    keep = scene.containers()
    scene.settle(
        "one of two runs in a persistent container is cancelled",
        f"the other: {last(messages)}",
        since=time.monotonic() - took,
        keep=keep,
    )
    assert len(keep) == 1
    assert last(messages) == "result"
    assert "unharmed" in str(messages)


HIDDEN = {
    "with another run's mark": "CONTAINER_RUNNER_RUN=00000000000000000000000000000000 setsid sleep 4242 &",
    "without a mark": "env -i setsid sleep 4242 &",
    "and says in our name that all is well": (
        'env -i setsid sleep 4242 & sleep 0.5; echo "container-runner: ended $CONTAINER_RUNNER_RUN 0" >&2; '
        "kill -9 $PPID"
    ),
    "a hundred times a second": "env -i setsid sh -c 'while :; do env -i setsid sleep 4242 & sleep 0.01; done' &",
}


@pytest.mark.parametrize("how", HIDDEN)
def test_an_agent_hides_a_process(scene: Scene, how: str) -> None:
    """It is found all the same, and what somebody else has started in the container is left alone."""
    word = CommandRuntime(["echo", "hello"])
    run_for(scene, None, ephemeral=False, runtime=word)
    (container,) = scene.containers()
    scene.engine.run("exec", "--detach", container, "sh", "-c", "sleep 5555")
    scene.spare()
    runtime = CommandRuntime(["sh", "-c", f"{HIDDEN[how]} echo hidden; sleep 0.5"])
    messages, since = run_for(scene, None, ephemeral=False, runtime=runtime)

    def hidden() -> list[str]:
        told = scene.engine.run("exec", container, "ps", "-o", "args").stdout
        return [line for line in told.splitlines() if "4242" in line]

    keep = scene.containers()
    what = f"the agent hides a process {how} (persistent)"
    scene.settle(what, last(messages), since=since, keep=keep, also=hidden if keep else list)
    if "kill -9" in HIDDEN[how]:  # a run whose end nobody saw spoils its container
        assert keep == []
        return
    assert keep == [container]
    assert "sleep 5555" in scene.engine.run("exec", container, "ps", "-o", "args").stdout
    after, _ = run_for(scene, None, ephemeral=False, runtime=word)
    assert last(after) == "output"
    assert scene.containers() == [container]


def forks(scene: Scene) -> str:
    """A command that forks and ends all the time. The name makes it this scene's: other tests run beside it."""
    return f"sh -c 'f() {{ f & }}; f' {scene.token}"


def forked(scene: Scene) -> list[str]:
    """What of it is alive, looked for so often that it can not hide between two of its lives."""
    wanted = f"sh\0-c\0f() {{ f & }}; f\0{scene.token}\0".encode()
    found: set[str] = set()
    for _ in range(200):
        for entry in os.scandir("/proc"):
            with contextlib.suppress(OSError):
                if entry.name.isdecimal() and Path(entry, "cmdline").read_bytes() == wanted:
                    found.add(f"process {entry.name}, which forks and ends")
    return sorted(found)


def test_an_agent_leaves_a_process_that_is_a_new_one_all_the_time(scene: Scene) -> None:
    """It is caught between two of its lives; if it is too fast for that, the container goes."""
    runtime = CommandRuntime(["sh", "-c", f"env -i setsid {forks(scene)} & echo left; sleep 0.5"])
    messages, since = run_for(scene, None, ephemeral=False, runtime=runtime)
    keep = scene.containers()

    what = "the agent leaves a process that forks and ends all the time (persistent)"
    scene.settle(what, last(messages), since=since, keep=keep, also=lambda: forked(scene))


@pytest.mark.parametrize("where", ["", "in another session"])
def test_an_agent_leaves_such_a_process_beside_another_run(scene: Scene, where: str) -> None:
    """Then it can be told by its run's mark alone, and nobody comes later to look for it.

    On a machine that is too busy to catch it in the sweep's four seconds the container goes, and the other run with it.
    """
    started = f"{'setsid ' if where else ''}{forks(scene)}"
    runtime = CommandRuntime(["sh", "-c", f"{started} & echo left; sleep 0.5"])

    async def main() -> tuple[list[Message], list[str], float]:
        ended: list[list[Message]] = []

        async def whole() -> None:
            waits = CommandRuntime(["sh", "-c", "until [ -e go ]; do sleep 0.1; done; echo unharmed"])
            runner = scene.runner(waits, ephemeral=False)
            ended.append([message async for message in runner.execute(scene.options(""))])

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(whole)
            await anyio.sleep(1)
            runner = scene.runner(runtime, ephemeral=False)
            messages = [message async for message in runner.execute(scene.options(""))]
            since = time.monotonic()
            left = await anyio.to_thread.run_sync(forked, scene)
            while left and time.monotonic() < since + 30:  # what is to catch it has a busy machine, too
                await anyio.sleep(0.5)
                left = await anyio.to_thread.run_sync(forked, scene)
            assert not ended or not scene.containers()
            (scene.workspace / "go").touch()
        assert last(ended[0]) == "output" or not scene.containers()
        return messages, left, since

    messages, left, since = anyio.run(main, backend=scene.loop)
    where = f" {where}" if where else ""
    what = f"the agent leaves such a process{where}, and another run is in the container (persistent)"
    scene.settle(what, last(messages), since=since, keep=scene.containers(), also=lambda: left)


FILL = "sh head -c 100000000 /dev/zero >/container-runner/run/full"


def test_an_agent_fills_what_is_ours(scene: Scene) -> None:
    """There is no room for the next prompt then, so the next run gets another container."""
    run_for(scene, None, FILL, ephemeral=False)
    (before,) = scene.containers()
    messages, since = run_for(scene, None, "hello " * 10_000, ephemeral=False)
    (after,) = scene.containers()
    scene.settle("the agent fills the place of the prompts (persistent)", last(messages), since=since, keep=[after])
    assert last(messages) == "result"
    assert after != before


def test_a_paused_container_is_left_to_the_run_in_it(scene: Scene) -> None:
    async def main() -> list[Message]:
        runner = scene.runner(ephemeral=False)
        messages: list[Message] = []
        async with contextlib.aclosing(runner.execute(scene.options("sleep 1\nstill here"))) as stream:
            async for message in stream:
                messages.append(message)
                if len(messages) == 1:
                    (container,) = scene.containers()
                    scene.engine.run("pause", container)
                    other = [message async for message in scene.runner(ephemeral=False).execute(scene.options("hello"))]
                    assert last(other) == "result"
                    scene.engine.run("unpause", container)
        return messages

    messages = anyio.run(main, backend=scene.loop)
    keep = scene.containers()
    scene.settle(
        "a container is paused, and another run begins (persistent)",
        f"the first: {last(messages)}",
        since=time.monotonic(),
        keep=keep,
    )
    assert last(messages) == "result"
    assert len(keep) == 2


RACES = 25


@pytest.mark.timeout(300)
def test_two_processes_race_for_one_container(scene: Scene) -> None:
    """Both get the same one, each time."""
    racers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.faults.racer", scene.engine.binary, scene.engine.images.tiny,
             scene.token, str(scene.state)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    races = RACES
    try:
        for number in range(races):
            for racer in racers:
                assert racer.stdin is not None
                print(f"{scene.token}-{number}", file=racer.stdin, flush=True)
            names = {racer.stdout.readline().strip() for racer in racers if racer.stdout is not None}
            assert len(names) == 1, names
            (name,) = names
            assert name.startswith("container-runner-"), name
            # No more than this one exists, and then it goes.
            found = scene.engine.run(
                "ps", "--all", "--quiet", f"--filter=label=container-runner.agent={scene.token}-{number}"
            ).stdout.split()
            assert len(found) == 1, found
            scene.engine.remove(name)
    finally:
        for racer in racers:
            racer.communicate()
        for lock in scene.state.glob("locks/container.*"):
            lock.unlink()  # the containers were removed behind our back
    scene.settle(f"two processes race for one persistent container, {races} times", "the same container",
                 since=time.monotonic())  # fmt: skip


def test_prune_removes_what_has_no_living_owner_and_nothing_else(scene: Scene) -> None:
    me = Owner.current()
    with subprocess.Popen(["sleep", "0"]) as ended:
        pass
    owners = {
        "live": me,
        "dead": attrs.evolve(me, pid=ended.pid),
        "reused-pid": attrs.evolve(me, started=me.started - 1000),
        "before-the-boot": attrs.evolve(me, boot="another"),
        "beside": attrs.evolve(me, pid_namespace="1", pid=ended.pid),
        "elsewhere": attrs.evolve(me, host="0" * 16),
    }
    ours = {f"{LABEL}run": "1", f"{LABEL}agent": scene.token, f"{LABEL}kind": "ephemeral"}
    for word, owner in owners.items():
        # What runs can not be from before the boot.
        start(scene, word, {**ours, **owner.to_labels()}, verb="create" if word == "before-the-boot" else "run")
    start(scene, "foreign", {"other.run": "1", f"{LABEL}agent": scene.token, **owners["dead"].to_labels()})
    start(scene, "kept", {**ours, f"{LABEL}kind": "persistent", **owners["dead"].to_labels()})
    start(scene, "of-an-image", {**ours, **owners["dead"].to_labels(), f"{LABEL}name": "the-first"})
    overdue = {f"{LABEL}deadline": str(int(time.time()) - 5)}
    start(scene, "overdue", {**ours, **owners["elsewhere"].to_labels(), **overdue})

    async def main() -> set[str]:
        manager = Containers(await Engine.probe(scene.engine.binary, host_environment()), Path(scene.state))
        return {info.name.removeprefix(f"{scene.token}-") for info in await manager.prune() if scene.token in info.name}

    began = time.monotonic()
    pruned = anyio.run(main)
    assert pruned == {"dead", "reused-pid", "before-the-boot", "overdue"}
    left = {scene.engine.run("inspect", "--format={{.Name}}", name).stdout.strip() for name in scene.containers()}
    assert {name.lstrip("/").removeprefix(f"{scene.token}-") for name in left} == {
        "live", "elsewhere", "beside", "foreign", "of-an-image", "kept",
    }  # fmt: skip
    for name in scene.containers():
        scene.engine.remove(name)
    scene.settle("prune beside live owners and foreign containers", "only the dead ones' go", since=began)


def test_the_next_start_removes_what_a_dead_owner_has_left(scene: Scene) -> None:
    dead = attrs.evolve(Owner.current(), pid=2**22 - 1, started=1)
    start(scene, "dead", {f"{LABEL}run": "1", f"{LABEL}agent": scene.token, f"{LABEL}kind": "ephemeral",
                          **dead.to_labels()})  # fmt: skip
    since = time.monotonic()
    messages, _ = run_for(scene, None, "hello")
    scene.settle("a dead owner's container, at the next start", last(messages), since=since)
    assert last(messages) == "result"


@pytest.mark.parametrize("mode", ["ephemeral", "persistent"])
def test_a_container_ends_when_its_time_is_over(scene: Scene, mode: str) -> None:
    """Whoever holds its lease, and whether anybody of us lives. A persistent one stays, stopped, for its next run."""

    async def main() -> float:
        runner = scene.runner(ephemeral=mode == "ephemeral")
        engine = (await runner.manager()).engine
        plan = runner.plan(scene.options("sleep 1000"))
        plan.prepare()
        run = list(plan.run)
        at = run.index(script.GUEST if mode == "ephemeral" else script.KEEPER) + (1 if mode == "ephemeral" else 2)
        assert run[at] == str(plan.time_limit)
        run[at] = "1"
        if mode == "persistent":
            await engine.create(run, may_pull=False)
            return time.monotonic()
        client = await engine.start(run, plan.stdin(), gate=guest.started_line(plan.token))
        try:
            assert await client.wait_for_gate(20)
            since = time.monotonic()
            with anyio.fail_after(20):
                while await client.read():
                    pass
                await client.wait()
        finally:
            await client.terminate()
            client.close()
        return since

    since = anyio.run(main, backend=scene.loop)
    if mode == "persistent":
        (container,) = scene.containers()
        wait_until(lambda: '"exited"' in scene._state(container), seconds=15)
        assert '"exited"' in scene._state(container)
        scene.engine.remove(container)
    scene.settle(f"the container's time limit, 1 s ({mode})", "nothing", since=since)


def start(scene: Scene, word: str, labels: dict[str, str], *, verb: str = "run") -> None:
    name = f"{scene.token}-{word}"
    flags = [f"--label={key}={value}" for key, value in {f"{LABEL}name": name, **labels}.items()]
    detach = ["--detach"] if verb == "run" else []
    scene.engine.run(verb, *detach, f"--name={name}", "--network=none", *flags, "--",
                     scene.engine.images.tiny, "sleep", "1000")  # fmt: skip
