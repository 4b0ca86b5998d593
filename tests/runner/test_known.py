"""What runners know together of an engine that only pretends."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

from container_runner import Agent, ClaudeRuntime, ContainerConfig, ContainerRunner, ExecuteOptions, tool
from container_runner.engine import tunnel as tunnel_module
from container_runner.engine.engine import Engine
from container_runner.errors import ConfigError
from tests.faults.live_engine import SCRIPT


@pytest.fixture
def runner(tmp_path: Path) -> ContainerRunner:
    (tmp_path / "containers").mkdir()
    counted = SCRIPT.replace("FOLDER", f"{tmp_path}/containers").replace(
        "\ncase $1 in\n", f'\necho "$*" >>{tmp_path}/calls\ncase $1 in\n'
    )
    (fake := tmp_path / "docker").write_text(counted)
    fake.chmod(0o755)
    config = ContainerConfig(engine=str(fake), image="any", network="none", credentials="none")
    return ContainerRunner(ClaudeRuntime(), config, tmp_path / "state")


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines()


def options() -> ExecuteOptions:
    return ExecuteOptions(prompt="", agent=Agent(name="tester"), grace=1)


async def test_sessions_and_pumps_of_a_runner_ask_the_engine_once(
    runner: ContainerRunner, anyio_backend: str, tmp_path: Path
) -> None:
    with anyio.fail_after(60):
        for _ in range(2):
            async with runner.open_session(options()) as session:
                assert (await session.turn("hello")).text == "ok"
            pump = runner.pump(options())
            await pump.start()
            pump.send(b'{"type":"user"}\n')
            pump.end_input()
            await pump.read()
            await pump.aclose()

    assert calls(tmp_path).count("--version") == 1
    assert len([call for call in calls(tmp_path) if call.startswith("run ")]) == 4
    assert runner._known.has_pruned


async def test_those_that_begin_together_make_one_connection(
    runner: ContainerRunner, anyio_backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    class Played:
        host = "unix:///f/s"
        is_open = True

        @classmethod
        async def open(cls, address: str, environ: Mapping[str, str]) -> Played:
            await anyio.sleep(0.01)
            made.append(played := cls())
            return played

    async def probe(*_: object) -> Engine:
        engine = Engine.guess(runner.config.engine, {})
        return attrs.evolve(engine, endpoint="ssh://far")

    monkeypatch.setattr(tunnel_module, "Tunnel", Played)
    monkeypatch.setattr(Engine, "probe", probe)
    others = [runner.evolved(runtime=ClaudeRuntime()) for _ in range(2)]
    async with anyio.create_task_group() as tasks:
        for one in (runner, *others):
            tasks.start_soon(one.manager)

    (first,) = made
    manager = await runner.manager()
    assert manager.engine.tunnel is first
    assert manager is await others[0].manager()
    manager.engine = attrs.evolve(manager.engine, sees_files=False)
    made[0].is_open = False
    another = await runner.manager()
    assert manager.engine.tunnel is first  # a run that is under way still holds it
    assert another.engine.tunnel is made[1]
    assert not another.engine.sees_files


def test_what_a_runner_is_made_of_stays_as_it_is(runner: ContainerRunner) -> None:
    def find(name: str) -> str:
        """Find it."""
        return name

    given = ContainerRunner(
        runner.runtime, runner.config, runner.state_dir, tools=[tool(find)], tool_timeout=5, records=False
    )
    other = given.evolved(config=attrs.evolve(runner.config, memory="1g"))

    assert (other.tools, other.tool_timeout, other.records) == (given.tools, 5, None)
    assert (other.config.memory, given.config.memory) != (given.config.memory, other.config.memory)
    assert other._known is given._known
    assert given.evolved(tools=()).tools == ()
    assert given.evolved(config=attrs.evolve(runner.config, engine="podman"))._known is not given._known
    wrong: Any = "no runtime"
    with pytest.raises(ConfigError):
        given.evolved(runtime=wrong)


def test_an_agent_under_a_pump_has_no_functions_that_it_never_hears_of(
    runner: ContainerRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(name: str) -> str:
        """Find it."""
        return name

    plans = []
    plan = ContainerRunner.plan

    def planned(self: ContainerRunner, *args: Any, **more: Any) -> Any:
        plans.append(plan(self, *args, **more))
        return plans[-1]

    monkeypatch.setattr(ContainerRunner, "plan", planned)
    runner.evolved(tools=[tool(find)]).pump(options())

    assert [made.gateway for made in plans] == [None]
