"""Containers that are kept for the next run: found again, replaced, cleaned up, and never shared by mistake."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest

from container_runner import Agent, ContainerManager, ErrorMessage, Message, OutputLine
from container_runner.engine.manager import Containers
from container_runner.errors import ContainerGoneError
from tests.integration.engines import RealEngine
from tests.integration.runs import ON_OWN_ROOTFUL, ON_ROOTFUL, Box, error_of, messages_of, result_of, said, tool_output


@pytest.fixture
def box(engine: RealEngine, workspace: Path) -> Iterator[Box]:
    box = Box.make(engine, workspace)
    yield box
    for container in box.containers():
        engine.remove(container)


async def manager_of(box: Box) -> Containers:
    return await box.runner().manager()


def keep(box: Box, prompt: str = "hello", **fields: Any) -> str:
    """Run in a container that is kept, and return the id of the newest."""
    before = {*box.containers()}
    messages = box.run(prompt, **{"ephemeral": False, **fields})
    result_of(messages)
    after = box.containers()
    return next((container for container in after if container not in before), after[0])


def test_a_second_runner_finds_the_container_and_what_the_first_left_in_it(box: Box) -> None:
    first = keep(box, "edit /tmp/note left here")
    second = box.run("sh cat /tmp/note", ephemeral=False)

    assert tool_output(second) == "left here"
    assert box.containers() == [first]


def test_a_second_process_finds_the_container(box: Box) -> None:
    first = keep(box, "edit /tmp/note left here")

    with box.cli("run", "sh cat /tmp/note", "--no-ephemeral", "--agent=tester") as process:
        stdout, stderr = process.communicate(timeout=60)

    assert process.returncode == 0, stderr
    assert "left here" in stdout
    assert box.containers() == [first]


@ON_ROOTFUL
def test_each_run_has_variables_of_its_own(box: Box) -> None:
    keep(box, env={"COLOUR": "green"})

    messages = box.run("env COLOUR", ephemeral=False, env={"SIZE": "9"})

    assert said(messages) == ["COLOUR is not set"]
    assert len(box.containers()) == 1


@ON_ROOTFUL
@pytest.mark.parametrize(
    "fields", [{"memory": "300m"}, {"image": "container-runner-test/tiny:latest"}, {"read_only": False}]
)
def test_another_configuration_is_another_container(box: Box, fields: dict[str, Any]) -> None:
    first = keep(box)

    second = keep(box, **fields)

    assert {*box.containers()} == {first, second}
    assert first != second


@ON_ROOTFUL
def test_agents_have_containers_of_their_own(box: Box) -> None:
    keep(box, "edit /tmp/note mine", agent="one")

    messages = box.run("sh cat /tmp/note", ephemeral=False, agent="two")

    assert "No such file" in tool_output(messages)
    assert len(box.containers()) == 2


@ON_OWN_ROOTFUL
@pytest.mark.parametrize("verb", ["stop", "kill", "pause"])
def test_a_container_that_does_not_run_is_replaced(box: Box, verb: str) -> None:
    first = keep(box)
    box.engine.run(verb, first)

    second = keep(box)

    assert box.containers() == [second]
    assert first != second


@ON_OWN_ROOTFUL
async def test_runs_that_begin_together_share_one_container(box: Box, anyio_backend: str) -> None:
    ended: list[str] = []

    async def one(number: int) -> None:
        options = box.options(f"sleep 0.5\nnumber {number}")
        async with messages_of(box.runner(ephemeral=False), options) as messages:
            ended.extend(said([message async for message in messages]))

    async with anyio.create_task_group() as tasks:
        for number in range(3):
            tasks.start_soon(one, number)

    assert sorted(ended) == ["number 0", "number 1", "number 2"]
    assert len(box.containers()) == 1


@ON_OWN_ROOTFUL
def test_beyond_max_containers_the_oldest_are_removed(box: Box) -> None:
    kept = [keep(box, labels={"number": str(number)}, max_containers=2) for number in range(3)]

    assert {*box.containers()} == {*kept[1:]}


@ON_OWN_ROOTFUL
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_container_in_use_is_never_cleaned_up(box: Box) -> None:
    async with box.at_work("sleep 60", ephemeral=False) as used:
        for number in range(2):
            runner = box.runner(ephemeral=False, labels={"number": str(number)}, max_containers=1)
            async with messages_of(runner, box.options("hello")) as messages:
                result_of([message async for message in messages])

        assert box.containers() == [used]


@ON_OWN_ROOTFUL
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_leaving_one_run_does_not_touch_another_in_the_same_container(box: Box) -> None:
    runner = box.runner(ephemeral=False)

    async with messages_of(runner, box.options("sleep 2\nstill here")) as stays:
        await anext(stays)
        async with messages_of(runner, box.options("setsid-sleep 1000\nsleep 1000")) as leaves:
            await anext(leaves)
        rest = [message async for message in stays]

    assert said(rest) == ["still here"]
    assert error_of(rest) is None


@pytest.mark.parametrize("prompt", ["setsid-sleep 4242\nsleep 4242", "setsid-sleep 4242\nignore-term"])
def test_an_agent_that_was_stopped_leaves_no_process(box: Box, prompt: str) -> None:
    error = error_of(box.run(prompt, ephemeral=False, timeout=3, grace=1))

    (container,) = box.containers()
    processes = box.engine.run("exec", container, "ps", "-o", "args").stdout
    assert error is not None
    assert error.kind == "total_timeout"
    assert "4242" not in processes
    assert "scripted-agent" not in processes
    assert "bin/claude" not in processes


TOOL = """\
sh setsid sh -c 'trap "sleep 0.5; rm lock; exit" TERM; : >lock; while :; do sleep 0.1; done' >/dev/null 2>&1 &
sh until [ -e lock ]; do sleep 0.1; done
sleep 1000"""
"""A tool with a lock, in a session of its own, as a git may be."""


@ON_OWN_ROOTFUL
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("shared", [False, True], ids=["alone", "beside another run"])
async def test_what_a_run_has_started_may_clear_up_when_it_is_stopped(box: Box, shared: bool) -> None:
    runner = box.runner(ephemeral=False)

    async with AsyncExitStack() as stack:
        if shared:
            other = await stack.enter_async_context(messages_of(runner, box.options("sleep 1000")))
            await anext(other)
        async with messages_of(runner, box.options(TOOL, grace=8)) as messages:
            async for _ in messages:
                if (box.workspace / "lock").exists():
                    break

        assert not (box.workspace / "lock").exists()


@ON_OWN_ROOTFUL
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_stop_removes_a_container_of_ours_and_no_other(box: Box) -> None:
    runner = box.runner(ephemeral=False)
    async with messages_of(runner, box.options("hello")) as messages:
        result_of([message async for message in messages])
    manager = await runner.manager()
    other = box.engine.run("create", "--name=container-runner-lookalike", box.engine.images.tiny, "true").stdout.strip()
    try:
        (info,) = [info for info in await manager.containers() if info.id in box.containers()]

        await manager.stop(info.name)
        with pytest.raises(ContainerGoneError, match="lookalike"):
            await manager.stop("container-runner-lookalike")
        with pytest.raises(ContainerGoneError):
            await manager.stop(info.name)

        assert box.containers() == []
        assert box.engine.run("inspect", other).returncode == 0
    finally:
        box.engine.remove(other)


@ON_OWN_ROOTFUL
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_prune_keeps_what_runs_and_removes_what_has_ended(box: Box) -> None:
    for number in range(2):
        runner = box.runner(ephemeral=False, labels={"number": str(number)})
        async with messages_of(runner, box.options("hello")) as messages:
            result_of([message async for message in messages])
    ended, kept = box.containers()
    box.engine.run("kill", ended)
    manager = await manager_of(box)

    seen = {info.id for info in await manager.prune(dry_run=True)}
    assert seen & {ended, kept} == {ended}
    assert {*box.containers()} == {ended, kept}

    assert ended in {info.id for info in await manager.prune()}
    assert box.containers() == [kept]


@ON_OWN_ROOTFUL
def test_a_manager_without_a_runner(box: Box) -> None:
    """Finds and makes containers, and runs commands in them that end with their reader."""

    async def texts(messages: AsyncIterator[Message]) -> list[str]:
        return [message.text if isinstance(message, OutputLine) else repr(message) async for message in messages]

    async def main() -> None:
        manager = ContainerManager(str(box.state), engine=box.engine.binary)
        agent = Agent(name="tester", workspace=box.workspace)
        container = await manager.get_or_create(agent, box.config())
        assert container.created

        assert await texts(manager.exec(container, ["sh", "-c", "cat; pwd; echo new >made"], stdin="in\n")) == [
            "in",
            "/workspace",
        ]
        assert (box.workspace / "made").read_text() == "new\n"
        (error,) = [message async for message in manager.exec(container, ["sh", "-c", "exit 7"])]
        assert isinstance(error, ErrorMessage)
        assert error.exit_code == 7
        async with contextlib.aclosing(manager.exec(container, ["sh", "-c", "echo on; sleep 1000"])) as messages:
            async for _ in messages:
                break
        running = await texts(manager.exec(container, ["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"]))
        assert "sleep 1000" not in "".join(running)

        again = await manager.get_or_create(agent, box.config())
        assert (again.name, again.created) == (container.name, False)
        await manager.release(again)
        await manager.release(container)
        box.engine.remove(container.name)  # behind the manager's back
        other = await manager.get_or_create(agent, box.config())
        assert other.created
        await manager.stop(other.name)
        assert box.containers() == []

    anyio.run(main)


@ON_OWN_ROOTFUL
def test_a_live_agent_gets_an_input_that_ended_during_its_setup(box: Box) -> None:
    async def main() -> None:
        runner = box.runner(ephemeral=False)
        pump = runner.pump(box.options("", setup="sleep 3"), argv=["sh", "-c", "cat; echo over"])
        with anyio.fail_after(60):
            await pump.start()
            pump.send(b"first\n")
            pump.end_input()
            lines = [line async for line in pump]

        assert lines == [b"first", b"over"]
        assert (pump.error, pump.exit_code) == (None, 0)

    anyio.run(main)
    (container,) = box.containers()
    box.engine.remove(container)
