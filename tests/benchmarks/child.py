"""Work whose memory and processor time are measured, in a process that does nothing else.

`python -m tests.benchmarks.child TASK ARGUMENTS` prints what it took as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Literal

import anyio

from container_runner import (
    Agent,
    CommandRuntime,
    ContainerConfig,
    ContainerRunner,
    ErrorMessage,
    ExecuteOptions,
    Message,
)
from container_runner.fleet.batch import run_batch
from container_runner.fleet.job import Job


async def stream(path: str) -> dict[str, float]:
    """Read a file through `cat`, as typed messages, with no container around it."""
    start = time.perf_counter()
    options = ExecuteOptions(prompt="x", agent=Agent(name="bench"))
    async for message in CommandRuntime(["cat", path]).execute(options):
        assert not isinstance(message, ErrorMessage), message
        message.type  # noqa: B018  reading it is the work
    return {"seconds": time.perf_counter() - start}


async def batch(engine: str, image: str, workspace: str, state: str, count: int) -> dict[str, float]:
    """That many ephemeral runs, twice as many at a time as there are processors."""
    runner = ContainerRunner(
        CommandRuntime(["echo", "hello"]), ContainerConfig(image=image, engine=engine, network="none"), state
    )

    def jobs() -> Iterator[Job]:
        for number in range(count):
            options = ExecuteOptions(prompt="go", agent=Agent(name="bench", workspace=Path(workspace)))
            yield Job(id=str(number), runner=runner, options=options)

    start = time.perf_counter()
    results = await run_batch(jobs(), at_once=2 * (os.cpu_count() or 2))
    assert all(result.succeeded for result in results)
    return {"seconds": time.perf_counter() - start}


async def one(
    engine: str, image: str, workspace: str, state: str, mode: Literal["rw", "carried"], command: list[str]
) -> dict[str, float]:
    """A run on a workspace that is mounted or carried."""
    box = ContainerConfig(image=image, engine=engine, network="none", workspace_mode=mode)
    options = ExecuteOptions(prompt="go", agent=Agent(name="bench", workspace=Path(workspace)))
    async for message in ContainerRunner(CommandRuntime(command), box, state).execute(options):
        assert not isinstance(message, ErrorMessage), message
    return {}


async def idle(
    engine: str, image: str, workspace: str, state: str, count: int, seconds: float, running: bool
) -> dict[str, float]:
    """Persistent agents: after a run each, or (*running*) in a run that says nothing more."""
    script = "echo ready; exec sleep 1000000" if running else "echo ready"
    box = ContainerConfig(image=image, engine=engine, network="none", ephemeral=False)
    runner = ContainerRunner(CommandRuntime(["sh", "-c", script]), box, state)

    async def begin(stack: AsyncExitStack, name: str) -> None:
        options = ExecuteOptions(prompt="go", agent=Agent(name=name, workspace=Path(workspace)))
        run: AsyncGenerator[Message, None] = runner.execute(options)
        await stack.enter_async_context(aclosing(run))
        async for message in run:
            assert not isinstance(message, ErrorMessage), message
            if running:
                break

    async with AsyncExitStack() as stack:
        async with anyio.create_task_group() as tasks:
            for number in range(count):
                tasks.start_soon(begin, stack, f"bench-{number}")
        await anyio.sleep(1)
        before, woken = os.times(), _woken()
        await anyio.sleep(seconds)
        after = os.times()
        resident = _status("VmRSS") / 1024
        return {
            "megabytes": resident,
            "own": sum(after[:2]) - sum(before[:2]),
            "clients": sum(after[2:4]) - sum(before[2:4]),
            "woken": _woken() - woken,
        }


def _woken() -> int:
    """How often our threads have waited for something, which is how often they were woken."""
    return sum(_status("voluntary_ctxt_switches", task) for task in Path("/proc/self/task").iterdir())


def _status(name: str, process: Path = Path("/proc/self")) -> int:
    for line in (process / "status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise KeyError(name)


def main() -> None:
    tasks: dict[str, Callable[..., Awaitable[dict[str, float]]]] = {
        "stream": stream,
        "batch": batch,
        "one": one,
        "idle": idle,
    }
    arguments = json.loads(sys.argv[2])

    async def work() -> dict[str, float]:
        return await tasks[sys.argv[1]](**arguments)

    before = os.times()
    measured = anyio.run(work)
    after = os.times()
    print(json.dumps({"cpu": sum(after[:2]) - sum(before[:2]), "peak": _status("VmHWM") / 1024, **measured}))


if __name__ == "__main__":
    main()
