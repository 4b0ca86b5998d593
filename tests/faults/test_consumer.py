"""Whoever reads the messages stops: by a break, an exception, a cancellation at any moment, Ctrl-C, a full disk."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from container_runner.stream.messages import Message
from tests.faults.scene import Scene, last

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

BACKENDS = pytest.mark.parametrize("backend", ["asyncio", "trio"])
TOOLS_AT_WORK = "sh setsid sleep 1001 & sleep 1002"


class Stop(Exception):  # noqa: N818 - it is the consumer's own
    """What a consumer raises."""


def tasks() -> int:
    """The tasks of this event loop."""
    if asyncio_runs():
        return len(asyncio.all_tasks())
    import trio

    return trio.lowlevel.current_statistics().tasks_living


def asyncio_runs() -> bool:
    import sniffio

    return sniffio.current_async_library() == "asyncio"


@BACKENDS
@pytest.mark.parametrize("how", ["break", "raise", "cancel", "timeout"])
def test_a_consumer_that_stops(scene: Scene, backend: str, how: str) -> None:
    async def main() -> float:
        before = tasks()
        since = 0.0
        try:
            with anyio.CancelScope() as scope:
                async with contextlib.aclosing(scene.runner().execute(scene.options(TOOLS_AT_WORK))) as messages:
                    async for _ in messages:
                        since = time.monotonic()
                        if how == "timeout":
                            scope.deadline = anyio.current_time() + 2
                        if how == "break":
                            break
                        if how == "raise":
                            raise Stop
                        if how == "cancel":
                            scope.cancel()
        except Stop:
            pass
        assert since
        assert tasks() == before
        return since + 2 if how == "timeout" else since

    since = anyio.run(main, backend=backend)
    what = {"break": "breaks", "raise": "raises", "cancel": "is cancelled", "timeout": "has a timeout"}[how]
    scene.settle(f"the consumer {what}", "its own way", since=since, backend=backend)


@BACKENDS
def test_cancelled_after_each_delay(scene: Scene, backend: str) -> None:
    async def main(delay: float) -> str:
        before = tasks()
        with anyio.move_on_after(delay) as scope:
            messages = [message async for message in scene.runner().execute(scene.options("hello"))]
        assert tasks() == before
        return "cancelled" if scope.cancelled_caught else last(messages)

    every = 16 if backend == "asyncio" else 4
    steps = [1.5 * step / every for step in range(every)]
    for delay in steps:
        saw = anyio.run(main, delay, backend=backend)
        since = time.monotonic()
        scene.settle("cancelled 0 to 1.5 s after the start", saw, since=since, backend=backend)


@pytest.mark.parametrize("times", [1, 3])
def test_asyncios_own_cancel(scene: Scene, times: int) -> None:
    """`Task.cancel()` reaches into anyio's shields."""

    async def consume(begun: asyncio.Event) -> None:
        async with contextlib.aclosing(scene.runner().execute(scene.options(TOOLS_AT_WORK))) as messages:
            async for _ in messages:
                begun.set()

    async def main() -> float:
        begun = asyncio.Event()
        task = asyncio.create_task(consume(begun))
        await begun.wait()
        since = time.monotonic()
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0.1)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(asyncio.all_tasks()) == 1
        return since

    since = asyncio.run(main())
    what = "asyncio's Task.cancel()" + (f", {times} times" if times > 1 else "")
    scene.settle(what, "CancelledError", since=since, backend="asyncio")


@pytest.mark.parametrize("delay", [0.1, 0.3, 0.6])
def test_asyncios_own_cancel_while_it_starts(scene: Scene, delay: float) -> None:
    async def consume() -> None:
        async for _ in scene.runner().execute(scene.options("sleep 1000")):
            pass

    async def main() -> float:
        task = asyncio.create_task(consume())
        await asyncio.sleep(delay)
        since = time.monotonic()
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0.02)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(asyncio.all_tasks()) == 1
        return since

    since = asyncio.run(main())
    what = "asyncio's Task.cancel() 3 times at the start"
    scene.settle(what, "CancelledError", since=since, backend="asyncio")


@pytest.mark.parametrize("prompt", [TOOLS_AT_WORK, "ignore-term"], ids=["obedient", "stubborn"])
@pytest.mark.parametrize("signals", [1, 2])
def test_ctrl_c(scene: Scene, signals: int, prompt: str) -> None:
    command = Path(sys.executable).with_name("container-runner")
    flags = [f"{name}={value}" for name, value in {
        "--agent": scene.token,
        "--workspace": scene.workspace,
        "--state-dir": scene.state,
        "--engine": scene.engine.binary,
        "--image": scene.engine.images.tiny,
        "--network": "none",
        "--credentials": "none",
        "--extra-args": f"--env=FAULT_SCENE={scene.token}",
    }.items()]  # fmt: skip
    process = subprocess.Popen(
        [command, "run", prompt, "--json", *flags], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    with process:
        assert process.stdout is not None
        assert '"init"' in process.stdout.readline()
        time.sleep(0.4)  # until it ignores TERM
        since = time.monotonic()
        for _ in range(signals):
            process.send_signal(signal.SIGINT)
            time.sleep(0.2)
        exit_code = process.wait(30)
    what = ("Ctrl-C", "Ctrl-C twice")[signals - 1] + (", TERM ignored" if prompt == "ignore-term" else "")
    scene.settle(what, f"exit code {exit_code}", since=since, backend="asyncio")
    assert exit_code == 130


def test_a_full_disk_for_the_state_folder(scene: Scene) -> None:
    """The agent fills the folder that holds its sessions, our locks among them."""
    disk = scene.folder / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k,nr_inodes=48", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted: {mounted.stderr.decode()}")
    try:
        fill(disk)
        messages = run(scene, "hello", state=disk / "state")
        scene.settle("the state folder's disk is full", last(messages), since=time.monotonic())
        assert last(messages) == "state"

        for path in disk.glob("full*"):
            path.unlink()
        messages = run(scene, f"raw first\nsh head -c 9999999 /dev/zero >/container-runner/sessions/big\n{MANY}",
                       state=disk / "state", ephemeral=False)  # fmt: skip
        kept = scene.containers()
        scene.settle("the agent fills the sessions' disk", last(messages), since=time.monotonic(), keep=kept)
        assert last(messages) == "result"
        assert sum(getattr(message, "text", None) == "talk" for message in messages) == 50
    finally:
        for container in scene.containers():
            scene.engine.remove(container)
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


MANY = "talk\n" * 50


def fill(disk: Path) -> None:
    with contextlib.suppress(OSError):
        for number in range(64):
            (disk / f"full{number}").touch()


def run(scene: Scene, prompt: str, *, state: Path | None = None, **fields: Any) -> list[Message]:
    async def main() -> list[Message]:
        runner = scene.runner(**fields)
        runner.state_dir = state or runner.state_dir
        return [message async for message in runner.execute(scene.options(prompt))]

    return anyio.run(main, backend=scene.loop)
