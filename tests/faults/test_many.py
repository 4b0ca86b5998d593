"""Many runs, one after another and at once: nothing piles up, and each gets its own messages."""

from __future__ import annotations

import time

import anyio
import pytest

from container_runner import Agent, CommandRuntime, ContainerRunner, ErrorMessage, ExecuteOptions
from container_runner.stream.messages import Message
from tests.faults.scene import Scene, last, resources
from tests.faults.test_consumer import tasks
from tests.integration.runs import lines_of, on, said

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

IN_A_ROW = 40
AT_ONCE = 40
IN_FLIGHT = 4
"""How many of the runs in a row are under way at a time, so that they do not take all day."""


def test_runs_at_once_get_each_its_own_messages(scene: Scene) -> None:
    seen: dict[int, list[Message]] = {}

    async def one(number: int) -> None:
        # Each is an agent of its own, in one scene.
        agent = Agent(name=f"{scene.token}-{number}", workspace=scene.workspace)
        options = ExecuteOptions(prompt=f"I am number {number}\nsh echo {number}", agent=agent)
        seen[number] = [message async for message in runner.execute(options)]

    async def main() -> None:
        async with anyio.create_task_group() as group:
            for number in range(AT_ONCE):
                group.start_soon(one, number)

    runner = scene.runner()
    anyio.run(main, backend=scene.loop)
    kinds = sorted({last(messages) for messages in seen.values()})
    scene.settle(f"{AT_ONCE} runs at once", " / ".join(kinds), since=time.monotonic())
    assert kinds == ["result"]
    for number, messages in seen.items():
        assert said(messages) == [f"I am number {number}"]


FLOOD = 'yes "a line of some forty bytes, and more" | head -c 1000000; exit 3'


@on("docker", "podman")
def test_agents_that_end_at_once_lose_no_byte_and_no_code_and_nothing_grows(scene: Scene) -> None:
    """Half of them say nothing and end with 0, half say 1 MB and end with 3.

    Each in its turn in one of a few lanes; the counts are taken when all lanes are empty.
    """
    told: list[tuple[int | None, int]] = []
    runners = [scene.runner(CommandRuntime(["sh", "-c", say]), pull="never") for say in (FLOOD, "exit 0")]

    async def lane(runner: ContainerRunner, number: int) -> None:
        for _ in range(number):
            messages = [message async for message in runner.execute(scene.options(""))]
            said = sum(len(line) + 1 for line in lines_of(messages))
            error = messages[-1] if messages else None
            told.append((error.exit_code if isinstance(error, ErrorMessage) else 0, said))

    async def batch(number: int) -> dict[str, int]:
        async with anyio.create_task_group() as group:
            for lane_number in range(IN_FLIGHT):
                group.start_soon(lane, runners[lane_number % 2], number // IN_FLIGHT)
        await anyio.sleep(0.2)
        return {**resources(), "tasks": tasks()}

    async def main() -> tuple[dict[str, int], dict[str, int]]:
        return await batch(2 * IN_FLIGHT), await batch(IN_A_ROW)

    before, after = anyio.run(main, backend=scene.loop)
    scene.settle(f"{IN_A_ROW} agents that end at once, half of them after 1 MB", "all of it", since=time.monotonic())
    # The cut in the middle of the last line gets a newline from us.
    assert {(code, size // 100) for code, size in told} == {(0, 0), (3, 10000)}
    assert after == before
