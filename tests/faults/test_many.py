"""Many runs, one after another and at once: nothing piles up, and each gets its own messages."""

from __future__ import annotations

import time

import anyio
import pytest

from container_runner import Agent, ExecuteOptions
from container_runner.stream.messages import Message
from tests.faults.scene import Scene, last, resources
from tests.faults.test_consumer import tasks
from tests.integration.runs import said

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

IN_A_ROW = 200
AT_ONCE = 100
IN_FLIGHT = 4
"""How many of the runs in a row are under way at a time, so that 200 do not take all day."""


def test_runs_in_a_row_leave_nothing_and_nothing_grows(scene: Scene) -> None:
    """Each in its turn in one of a few lanes; the counts are taken when all lanes are empty."""

    async def some(number: int) -> None:
        for _ in range(number):
            messages = [message async for message in runner.execute(scene.options("hello"))]
            assert last(messages) == "result"

    async def batch(number: int) -> dict[str, int]:
        async with anyio.create_task_group() as group:
            for _ in range(IN_FLIGHT):
                group.start_soon(some, number // IN_FLIGHT)
        await anyio.sleep(0.2)
        return {**resources(), "tasks": tasks()}

    async def main() -> tuple[dict[str, int], dict[str, int]]:
        return await batch(2 * IN_FLIGHT), await batch(IN_A_ROW)

    runner = scene.runner()
    before, after = anyio.run(main, backend=scene.loop)
    scene.settle(f"{IN_A_ROW} runs in a row", "result", since=time.monotonic())
    assert after == before


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
