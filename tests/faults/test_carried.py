"""Faults while a workspace is carried: nothing of the work is lost, nothing is applied by half, and nothing is left."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from container_runner.records.summary import RunSummary
from container_runner.runner import carrier
from container_runner.runner.left import fetch_unfetched
from container_runner.workspace.carry import LAYERS, Carry
from container_runner.workspace.changes import Changes
from container_runner.workspace.shadow import Shadow
from tests.faults.scene import Scene, Victim, _command, descendants
from tests.integration.fixtures import skipped_if_unavailable
from tests.integration.runs import on

pytestmark = [pytest.mark.faults, pytest.mark.timeout(180)]

LINE = b"0123456789abcdef\n"
SIZE = 12_000_000
WORK = f"sh yes 0123456789abcdef | head -c {SIZE} >large; rm gone; echo x >new"
"""Enough to be caught on its way out."""

IN, ASKED, OUT = b"tar -xof", b"xargs", b"fast-import"
"""What is in a command that runs while the workspace is brought in, while the box is asked for the work, and while that
is fetched."""


@pytest.fixture
def carried(scene: Scene) -> Scene:
    """A scene with files to work on."""
    for name, content in {"gone": b"1\n", "kept": b"2\n", "much": os.urandom(SIZE // 2)}.items():
        (scene.workspace / name).write_bytes(content)
    for path in (scene.workspace, *scene.workspace.iterdir()):
        os.chown(path, *scene.engine.owner)
    return scene


def box(way: str) -> dict[str, Any]:
    return {"workspace_mode": "carried", "carry": way}


def wait_for(pid: int, word: bytes) -> dict[int, bytes]:
    """Wait until processes below this one have it in their commands, and return them."""
    end = time.monotonic() + 60
    while not (found := {child: command for child in descendants(pid) if word in (command := _command(child))}):
        assert time.monotonic() < end, f"no {word!r} came"
        time.sleep(0.002)
    return found


def digest(data: bytes) -> str:
    """What stands for a content: what differs in megabytes is nothing to be shown."""
    return hashlib.sha256(data).hexdigest()


def files(folder: Path) -> dict[str, str]:
    return {path.name: digest(path.read_bytes()) for path in folder.iterdir() if path.is_file()}


def is_left(scene: Scene) -> Callable[[], list[str]]:
    """What is left of a carried run but its work."""

    def look() -> list[str]:
        volumes = scene.engine.run("volume", "ls", "--quiet", "--filter=name=container-runner-").stdout.split()
        layers = [str(path) for path in (scene.state / LAYERS).glob("*")]
        return volumes + layers + Carry.runs(scene.state) + list(map(str, scene.workspace.glob(".container-runner-*")))

    return look


def fetch(scene: Scene, state: Path | None = None) -> None:
    anyio.run(fetch_unfetched, state or scene.state, scene.workspace.resolve(), backend=scene.loop)


def contents(scene: Scene, run: str, state: Path | None = None) -> dict[str, bytes]:
    """The files that came out of a run; none if nothing did."""

    async def read() -> dict[str, bytes]:
        shadow = await Shadow.open(scene.workspace, state or scene.state)
        tree = await shadow.ref(run, "result")
        names = (await shadow.git("ls-tree", "-r", "--name-only", tree)).decode().split() if tree else []
        return {name: await shadow.git("cat-file", "blob", f"{tree}:{name}") for name in names}

    return anyio.run(read)


def result(scene: Scene, run: str, state: Path | None = None) -> dict[str, str]:
    return {name: digest(content) for name, content in contents(scene, run, state).items()}


def wanted(scene: Scene) -> dict[str, str]:
    much = (scene.workspace / "much").read_bytes()
    given = {"kept": b"2\n", "new": b"x\n", "much": much, "large": (LINE * (SIZE // len(LINE) + 1))[:SIZE]}
    return {name: digest(content) for name, content in given.items()}


@pytest.mark.parametrize("way", ["overlay", "stream"])
def test_killed_in_one_phase_after_the_other(carried: Scene, way: str) -> None:
    """Each run begins with what the last one has left, and the last one's work is there then, exactly."""
    before, work = files(carried.workspace), wanted(carried)

    def killed(victim: Victim, phase: str) -> str:
        since = victim.kill(tree=True)
        carried.settle(f"SIGKILL of us and the engine's client while {phase} ({way})", "nothing", since=since)
        (run,) = Carry.runs(carried.state)  # of the one before nothing is left
        assert result(carried, run) == {}
        return run

    runs = []
    if way == "stream":
        victim = carried.victim(WORK, config=box(way))
        wait_for(victim.pid, IN)
        runs.append(killed(victim, "a carried workspace is brought in"))
    victim = carried.victim(f"{WORK}\nsleep 100", config=box(way))
    victim.wait_for("user")
    runs.append(killed(victim, "the agent works in a carried workspace"))
    victim = carried.victim(WORK, config=box(way))
    while runs[-1] in Carry.runs(carried.state):  # for which git imports something too
        time.sleep(0.002)
    wait_for(victim.pid, OUT)
    runs.append(killed(victim, "the work is fetched"))
    fetch(carried)

    assert is_left(carried)() == []
    *nothing, first, second = (result(carried, run) for run in runs)
    assert (nothing, first, second) == ([{}] if way == "stream" else [], work, work)
    assert files(carried.workspace) == before
    if way == "overlay":
        killed_while_the_work_is_applied(carried, runs[-1])


def killed_while_the_work_is_applied(scene: Scene, run: str) -> None:
    """The folder is as it was, or all is in it."""
    before, work = files(scene.workspace), result(scene, run)
    words = ["apply", run, f"--workspace={scene.workspace}", f"--state-dir={scene.state}"]
    with subprocess.Popen([sys.executable, "-m", "container_runner", *words], stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not [*scene.workspace.glob(".container-runner-*")]:
            time.sleep(0.001)
        process.kill()
    changes = anyio.run(Changes.open, scene.workspace, run, scene.state)
    assert files(scene.workspace) in (before, work)

    async def apply() -> None:
        await changes.apply()

    anyio.run(apply)
    assert files(scene.workspace) == work
    assert is_left(scene)() == []


def test_the_machine_restarts(carried: Scene) -> None:
    """Two runs are at work then. Nothing has come out of them, and nobody is left but what is on the disk."""
    before, work = files(carried.workspace), wanted(carried)
    victims = [carried.victim(f"{WORK}\nsleep 100", config=box(way)) for way in ("overlay", "stream")]
    for victim in victims:
        victim.wait_for("user")
    runs = Carry.runs(carried.state)
    for victim in victims:
        victim.kill(tree=True)
    with skipped_if_unavailable():
        carried.restart_machine()
    since = time.monotonic()

    fetch(carried)

    carried.settle("the machine restarts while agents work in carried workspaces", "nothing", since=since)
    assert is_left(carried)() == []
    assert [result(carried, run) for run in runs] == [work, work]
    assert files(carried.workspace) == before


@pytest.mark.parametrize(("phase", "word"), [("workspace is brought in", IN), ("work is fetched", OUT)])
def test_the_container_is_killed_on_the_way(carried: Scene, phase: str, word: bytes) -> None:
    before = files(carried.workspace)
    victim = carried.victim(WORK, config=box("stream"))
    clients = wait_for(victim.pid, word)
    for client in clients:  # a busy machine may take longer to kill it than to carry everything
        os.kill(client, signal.SIGSTOP)
    since = time.monotonic()
    # podman's own process there waits for the client before it tells of the end, and podman not as long for that.
    carried.engine.run("kill", "--signal=KILL", carried.containers()[0], check=False)
    (run,) = Carry.runs(carried.state)
    for client in clients:
        os.kill(client, signal.SIGCONT)

    saw = victim.wait_for("done")
    victim.kill(tree=True)
    carried.settle(f"the container is killed while the {phase}", saw, since=since, also=is_left(carried))
    assert result(carried, run) == ({} if word is IN else wanted(carried))
    assert files(carried.workspace) == before


@pytest.mark.parametrize(("phase", "word"), [("brought in", IN), ("worked on", b""), ("fetched", OUT)])
def test_cancelled_on_the_way(carried: Scene, phase: str, word: bytes) -> None:
    before = files(carried.workspace)
    ended: list[RunSummary] = []
    since = 0.0

    async def main() -> None:
        async with anyio.create_task_group() as tasks:

            def cancel() -> None:
                nonlocal since
                since = time.monotonic()
                tasks.cancel_scope.cancel()

            async def watch() -> None:
                while not any(word in _command(child) for child in descendants(os.getpid())):
                    await anyio.sleep(0.002)
                cancel()

            if word:
                tasks.start_soon(watch)
            runner = carried.runner(**box("stream"))
            options = carried.options(WORK if word else f"{WORK}\nhere\nsleep 100", grace=1)
            messages = runner.execute(options, on_end=lambda summary, _: ended.append(summary))
            async with contextlib.aclosing(messages):
                async for message in messages:
                    if not word and getattr(message, "text", "") == "here":
                        cancel()
            tasks.cancel_scope.cancel()

    anyio.run(main, backend=carried.loop)

    (summary,) = ended
    fault = f"cancelled while a carried workspace is {phase}"
    carried.settle(fault, summary.outcome, since=since, also=is_left(carried))
    assert result(carried, summary.run_id) == ({} if word is IN else wanted(carried))
    assert files(carried.workspace) == before


@pytest.mark.parametrize(
    ("phase", "way"),
    [("brought in", "stream"), ("worked on", "overlay"), ("fetched", "stream")],
)
def test_a_clock_runs_out(carried: Scene, monkeypatch: pytest.MonkeyPatch, phase: str, way: str) -> None:
    """On both ways the engine's client is stopped: nothing comes any more, nor an end. The agent falls silent."""
    monkeypatch.setattr(carrier, "PATIENCE", 2.0)
    before = files(carried.workspace)
    clock = {"timeout": 5.0} if phase == "brought in" else {}
    options = carried.options(f"{WORK}\nhere\nsleep {100 if phase == 'worked on' else 0}", grace=1, **clock)
    ended: list[RunSummary] = []
    since = 0.0

    async def main() -> None:
        nonlocal since
        async with anyio.create_task_group() as tasks:

            async def stop() -> None:
                nonlocal since
                word = IN if phase == "brought in" else ASKED
                while not (clients := [pid for pid in descendants(os.getpid()) if word in _command(pid)]):
                    await anyio.sleep(0.002)
                for pid in clients:
                    os.kill(pid, signal.SIGSTOP)
                since = time.monotonic()
                monkeypatch.undo()  # what comes after has all its time

            if phase != "worked on":
                tasks.start_soon(stop)
            runner = carried.runner(**box(way))
            messages = runner.execute(options, on_end=lambda summary, _: ended.append(summary))
            async with contextlib.aclosing(messages):
                async for message in messages:
                    if phase == "worked on" and getattr(message, "text", "") == "here":
                        object.__setattr__(options, "idle_timeout", 1.0)  # from now on, however long the work took
                        since = time.monotonic()
            tasks.cancel_scope.cancel()

    anyio.run(main, backend=carried.loop)

    (summary,) = ended
    saw = summary.kind or summary.outcome
    fault = f"a clock runs out while a carried workspace is {phase} ({way})"
    carried.settle(fault, saw, since=since, also=is_left(carried))
    assert saw == {"brought in": "total_timeout", "worked on": "idle_timeout", "fetched": "succeeded"}[phase]
    assert result(carried, summary.run_id) == ({} if phase == "brought in" else wanted(carried))
    assert files(carried.workspace) == before


@on("docker")
def test_the_disk_is_full(scene: Scene) -> None:
    """What does not fit stays where it was, and comes when there is room."""
    disk = scene.folder / "disk"
    disk.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(disk)]
    mounted = subprocess.run(words, capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted: {mounted.stderr.decode()}")
    try:
        state = disk / "state"
        brought_in(scene, state)
        runs = {way: worked_on(scene, state, way) for way in ("stream", "overlay")}
        assert [*(state / "carried").glob("*/scratch-*")] == []

        subprocess.run(["mount", "-o", "remount,size=128m", str(disk)], check=True)
        fetch(scene, state)

        found = contents(scene, runs["stream"], state)
        assert digest(found["large"]) == digest(found["copy"])
        assert (set(found), len(found["large"])) == ({"small", "large", "copy"}, SIZE)
        found = contents(scene, runs["overlay"], state)
        assert set(found) >= {"small", "large"}
        assert (found["small"], 0 < len(found["large"]) < SIZE) == (b"x\n", True)
        assert Carry.runs(state) == []
        end = time.monotonic() + 30
        while is_left(scene)() and time.monotonic() < end:
            fetch(scene, state)  # a volume that docker still held for its last container goes with the next start
        assert is_left(scene)() == []
        assert [*(state / LAYERS).glob("*")] == []
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def brought_in(scene: Scene, state: Path) -> None:
    """The folder does not fit."""
    large = scene.workspace / "large"
    large.write_bytes(os.urandom(SIZE))
    victim = scene.victim("hello", config=box("stream"), state=str(state))
    saw = victim.wait_for("done")
    since = victim.kill(tree=True)
    scene.settle("the disk is full while the workspace is brought in", saw, since=since, also=is_left(scene))
    assert saw == "done workspace"
    assert Carry.runs(state) == []
    large.unlink()


def worked_on(scene: Scene, state: Path, way: str) -> str:
    """The work does not fit: over an overlay already where the agent writes it. The run's id."""
    known = Carry.runs(state)
    prompt = f"sh echo x >small; head -c {SIZE} /dev/urandom >large; cp large copy; true"
    victim = scene.victim(prompt, config=box(way), state=str(state))
    saw = victim.wait_for("done")
    since = victim.kill(tree=True)
    phase = "fetched" if way == "stream" else "done, and fetched"
    scene.settle(f"the disk is full while the work is {phase} ({way})", saw, since=since)
    assert saw == "done workspace"
    (run,) = {*Carry.runs(state)}.difference(known)
    assert result(scene, run, state) == {}
    return run
