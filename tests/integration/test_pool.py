"""Containers that are ready before they are needed: each for one run, and none left at the end."""

from __future__ import annotations

import os
from typing import Any

import anyio
import pytest

from container_runner import Agent, ConfigError, ContainerRunner
from container_runner.engine.pool import Pool
from container_runner.stream.messages import Message
from tests.integration.engines import OWN
from tests.integration.runs import ON_DOCKER, ON_OWN_ROOTFUL, Box, error_of, messages_of, on, result_of, tool_output

pytestmark = on(*OWN)  # what is ours, whatever the engine's age


def agent(box: Box) -> Agent:
    return Agent(name="tester", workspace=box.workspace)


async def full(pool: Pool, size: int = 2) -> None:
    """Wait until the pool is full."""
    with anyio.fail_after(30):
        while len(pool) < size:
            await anyio.sleep(0.02)


async def run(runner: ContainerRunner, box: Box, prompt: str, **fields: Any) -> list[Message]:
    async with messages_of(runner, box.options(prompt, **fields)) as messages:
        return [message async for message in messages]


async def test_each_container_serves_one_run_and_another_takes_its_place(box: Box, anyio_backend: str) -> None:
    runner = box.runner(pool=2)
    async with runner.warm(agent(box)) as pool:
        await full(pool)
        ready = {*box.containers()}
        assert len(ready) == 2

        messages = await run(runner, box, "sh echo mine >/tmp/note; cat /tmp/note")
        assert tool_output(messages) == "mine"
        result_of(messages)
        await full(pool)

        assert len(ready & {*box.containers()}) == 1
        assert len(box.containers()) == 2
        assert "No such file" in tool_output(await run(runner, box, "sh cat /tmp/note"))
    assert box.containers() == []


@ON_OWN_ROOTFUL
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_more_runs_than_ready_containers_all_succeed(box: Box) -> None:
    runner = box.runner(pool=1)
    ended: list[list[Message]] = []

    async def one() -> None:
        ended.append(await run(runner, box, "hello"))

    async with runner.warm(agent(box)) as pool:
        await full(pool, 1)
        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(one)
    for messages in ended:
        result_of(messages)
    assert len(ended) == 4
    assert box.containers() == []


@ON_OWN_ROOTFUL
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_nothing_of_a_run_is_in_a_container_that_waits(box: Box) -> None:
    runner = box.runner(pool=1, env={"TOKEN": "s3cret-value"})
    async with runner.warm(agent(box)) as pool:
        await full(pool, 1)
        (container,) = box.containers()
        assert "s3cret-value" not in box.engine.run("inspect", container).stdout

        messages = await run(runner, box, 'sh test "$TOKEN" = s3cret-value && echo it is there')
        assert tool_output(messages) == "it is there"


@ON_OWN_ROOTFUL
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_run_with_another_workspace_takes_none(box: Box) -> None:
    """The same agent's name makes no difference."""
    other = box.new_folder("other")
    runner = box.runner(pool=1)
    async with runner.warm(agent(box)) as pool:
        await full(pool, 1)
        (waiting,) = box.containers()

        result_of(await run(runner, box, "edit made here", workspace=other))

        assert (other / "made").exists()
        assert not (box.workspace / "made").exists()
        assert waiting in box.containers()


@ON_OWN_ROOTFUL
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_container_that_has_ended_is_replaced(box: Box) -> None:
    runner = box.runner(pool=1)
    async with runner.warm(agent(box)) as pool:
        await full(pool, 1)
        (ended,) = box.containers()
        box.engine.run("kill", ended)
        await anyio.sleep(0.3)

        result_of(await run(runner, box, "hello"))
        await full(pool, 1)
        assert ended not in box.containers()
    assert box.containers() == []


@ON_OWN_ROOTFUL
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_what_protected_the_workspace_was_replaced(box: Box) -> None:
    """A container whose mount of a file has ended is not used."""
    settings = box.workspace / ".envrc"
    settings.write_text("ours")
    os.chown(settings, *box.engine.owner)
    runner = box.runner(pool=1)
    async with runner.warm(agent(box)) as pool:
        await full(pool, 1)
        (old,) = box.containers()
        fresh = box.workspace / "fresh"
        fresh.write_text("ours")
        os.chown(fresh, *box.engine.owner)
        fresh.rename(settings)

        messages = await run(runner, box, "sh echo theirs >.envrc")

        assert error_of(messages) is None
        assert settings.read_text() == "ours"
        with anyio.fail_after(30):
            while old in box.containers():
                await anyio.sleep(0.05)
        await full(pool, 1)


@ON_OWN_ROOTFUL
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("after", [0.0, 0.1, 0.3, 1.0])
async def test_nothing_is_left_when_the_block_is_cancelled(box: Box, after: float) -> None:
    runner = box.runner(pool=3)
    with anyio.move_on_after(after):
        async with runner.warm(agent(box)):
            await anyio.sleep_forever()
    assert box.containers() == []


@ON_DOCKER
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_what_no_run_could_do_no_pool_can(box: Box) -> None:
    for runner, size, wanted in (
        (box.runner(), None, "pool"),
        (box.runner(ephemeral=False, pool=2), None, "pool"),
        (box.runner(), -1, "pool"),
    ):
        with pytest.raises(ConfigError) as caught:
            async with runner.warm(agent(box), size=size):
                pass
        assert caught.value.field == wanted
    with pytest.raises(ConfigError, match="workspace"):
        async with box.runner(pool=1).warm(Agent(name="tester", workspace=box.folder / "missing")):
            pass
    runner = box.runner(pool=1)
    async with runner.warm(agent(box)):
        with pytest.raises(ConfigError, match="one pool"):
            async with runner.warm(agent(box)):
                pass


@ON_DOCKER
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_an_error_in_the_block_comes_out_as_it_is(box: Box) -> None:
    with pytest.raises(ZeroDivisionError):
        async with box.runner(pool=1).warm(agent(box)):
            raise ZeroDivisionError
    assert box.containers() == []
