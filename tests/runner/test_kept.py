"""`ContainerManager`: kept containers without a runner."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import anyio
import pytest

from container_runner.agents import ClaudeRuntime
from container_runner.config.container import ContainerConfig
from container_runner.engine.manager import Containers
from container_runner.errors import ConfigError, ContainerGoneError
from container_runner.options import Agent, ExecuteOptions
from container_runner.runner import ContainerRunner
from container_runner.runner.kept import ContainerManager, KeptContainer
from container_runner.stream.messages import ErrorMessage, Message, OutputLine
from container_runner.testing import FakeEngine

AGENT = Agent(name="bot")
CONFIG = ContainerConfig(image="i")


@pytest.fixture
def manager(tmp_path: Path, fake_engine: FakeEngine) -> ContainerManager:
    fake_engine.messages(["said by nobody"], prompt="nobody's")  # from the first one on the engine answers
    return ContainerManager(str(tmp_path / "state"))


async def all_of(manager: ContainerManager, container: KeptContainer, command: Any, **more: Any) -> list[Message]:
    return [message async for message in manager.exec(container, command, **more)]


async def test_one_is_made_and_found_again(fake_engine: FakeEngine, manager: ContainerManager, tmp_path: Path) -> None:
    first = await manager.get_or_create(AGENT, CONFIG)
    await manager.release(first)

    second = await ContainerManager(tmp_path / "state").get_or_create(AGENT, CONFIG)
    other = await manager.get_or_create(AGENT, ContainerConfig(image="i", memory="1g"))

    assert (first.created, second.created, other.created) == (True, False, True)
    assert first.name == second.name != other.name
    assert fake_engine.kept.names == [first.name, other.name]


async def test_it_is_that_of_a_runner_with_the_same_runtime(
    fake_engine: FakeEngine, manager: ContainerManager, tmp_path: Path
) -> None:
    fake_engine.reply("Hello.", prompt="Hello")
    kept = ContainerConfig(image="i", ephemeral=False, credentials="none")
    runner = ContainerRunner(ClaudeRuntime(), kept, tmp_path / "state")
    await runner.run(ExecuteOptions(prompt="Hello", agent=AGENT))

    found = await manager.get_or_create(AGENT, kept, runtime=ClaudeRuntime())

    assert (found.created, found.name) == (False, fake_engine.kept.names[0])


async def test_a_command_runs_in_it_with_a_lease(fake_engine: FakeEngine, manager: ContainerManager) -> None:
    fake_engine.messages(["one", "two"], prompt="a prompt")
    container = await manager.get_or_create(AGENT, CONFIG)

    one, two = await all_of(manager, container, "tool --fast", stdin="a prompt")

    assert [one.text, two.text] == ["one", "two"]  # type: ignore[union-attr]  # they are lines
    assert fake_engine.agent_argv[:3] == ("docker", "exec", "--interactive")
    assert container.name in fake_engine.agent_argv
    assert fake_engine.agent_argv[-2:] == ("tool", "--fast")
    assert fake_engine.stdin == b"a prompt"
    assert fake_engine.kept.names == [container.name]


async def test_a_command_that_fails_is_told(fake_engine: FakeEngine, manager: ContainerManager) -> None:
    fake_engine.messages(["half"], exit_code=3, stderr="oh")
    container = await manager.get_or_create(AGENT, CONFIG)

    line, error = await all_of(manager, container, ["tool"])

    assert isinstance(line, OutputLine)
    assert isinstance(error, ErrorMessage)
    assert (error.kind, error.exit_code, error.stderr.strip()) == ("agent_failed", 3, "oh")


@pytest.mark.parametrize("how", ["break", "cancel", "timeout"])
async def test_a_command_is_stopped_by_its_lease(fake_engine: FakeEngine, manager: ContainerManager, how: str) -> None:
    fake_engine.messages(["begun"], hang=True)
    container = await manager.get_or_create(AGENT, CONFIG)

    timeout = 0.5 if how == "timeout" else None
    with anyio.move_on_after(0.5 if how == "cancel" else 60):
        async with contextlib.aclosing(manager.exec(container, ["tool"], timeout=timeout)) as messages:
            async for _ in messages:
                if how == "break":
                    break

    client = next(call for call in fake_engine.calls if call.argv == fake_engine.agent_argv)
    assert client.returncode == 0
    assert fake_engine.kept.names == [container.name]


async def test_what_has_ended_is_not_handed_out(fake_engine: FakeEngine, manager: ContainerManager) -> None:
    first = await manager.get_or_create(AGENT, CONFIG)
    await manager.release(first)
    fake_engine.kept.end(first.name)  # the manager has it in mind as one that was good a moment ago

    second = await manager.get_or_create(AGENT, CONFIG)

    assert (second.created, second.name == first.name) == (True, False)
    assert fake_engine.kept.names == [second.name]


async def test_a_command_in_one_that_has_ended_starts_no_other(
    fake_engine: FakeEngine, manager: ContainerManager
) -> None:
    fake_engine.messages(["never said"])
    container = await manager.get_or_create(AGENT, CONFIG)
    fake_engine.kept.end(container.name)

    (error,) = await all_of(manager, container, ["tool"])

    assert isinstance(error, ErrorMessage)
    assert error.kind == "container_gone"
    assert fake_engine.kept.names == [container.name]


async def test_what_is_in_use_is_not_cleaned_up_and_what_was_released_is(
    fake_engine: FakeEngine, manager: ContainerManager
) -> None:
    container = await manager.get_or_create(AGENT, CONFIG)

    assert await manager.clean_up("bot", 0) == []
    await manager.release(container)
    await manager.release(container)  # which changes nothing
    assert await manager.clean_up("bot", 0) == [container.name]
    assert fake_engine.kept.names == []


@pytest.mark.parametrize("by_name", [True, False])
async def test_one_is_stopped_in_use_or_not(fake_engine: FakeEngine, manager: ContainerManager, by_name: bool) -> None:
    container = await manager.get_or_create(AGENT, CONFIG)

    await manager.stop(container.name if by_name else container)

    assert fake_engine.kept.names == []
    with pytest.raises(ContainerGoneError):
        await manager.stop(container)


async def test_one_of_another_state_folder_is_not_stopped(
    fake_engine: FakeEngine, manager: ContainerManager, tmp_path: Path
) -> None:
    theirs = await ContainerManager(tmp_path / "other").get_or_create(AGENT, CONFIG)

    with pytest.raises(ContainerGoneError):
        await manager.stop(theirs.name)
    assert fake_engine.kept.names == [theirs.name]


async def test_one_that_can_not_be_looked_at_is_let_go(
    fake_engine: FakeEngine, manager: ContainerManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await manager.get_or_create(AGENT, CONFIG)
    await manager.release(first)

    async def cancelled(*_: object) -> Any:
        await anyio.sleep_forever()

    with monkeypatch.context() as patch, anyio.move_on_after(0.1):
        patch.setattr("container_runner.engine.engine.Engine.inspect", cancelled)
        await manager.get_or_create(AGENT, CONFIG)

    assert await manager.clean_up("bot", 0) == [first.name]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("bot", CONFIG), 'an Agent, as Agent(name="bot", workspace=".")'),
        ((AGENT, "my/claude"), 'a ContainerConfig, as ContainerConfig(image="my/claude")'),
    ],
)
async def test_wrong_arguments_are_told_what_to_write(
    manager: ContainerManager, given: tuple[Any, Any], told: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        await manager.get_or_create(*given)

    assert caught.value.allowed == told


def test_paths_may_be_text(fake_engine: FakeEngine) -> None:
    from container_runner.engine.engine import Engine

    assert Containers(Engine.guess("docker", {}), "~/x").state_dir == Path("~/x").expanduser().resolve()
