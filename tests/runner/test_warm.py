"""Sessions that are open before they are needed, with an engine that only pretends."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from container_runner import Agent, ClaudeRuntime, ContainerConfig, ContainerRunner
from container_runner.errors import ContainerRunnerError
from tests.faults.live_engine import SCRIPT


@pytest.fixture
def runner(tmp_path: Path) -> ContainerRunner:
    (tmp_path / "containers").mkdir()
    (fake := tmp_path / "docker").write_text(SCRIPT.replace("FOLDER", str(tmp_path / "containers")))
    fake.chmod(0o755)
    config = ContainerConfig(engine=str(fake), image="any", network="none", credentials="none")
    return ContainerRunner(ClaudeRuntime(), config, tmp_path / "state")


async def test_a_session_that_is_ready_is_taken_and_another_one_is_opened(
    runner: ContainerRunner, anyio_backend: str, tmp_path: Path
) -> None:
    async with runner.warm_sessions(Agent(name="tester")) as warm:
        for _ in range(2):
            with anyio.fail_after(20):
                while not len(warm):
                    await anyio.sleep(0.01)
                async with warm.take() as session:
                    assert (await session.turn("hello")).text == "ok"
            assert session.has_ended

    assert list((tmp_path / "containers").iterdir()) == []


async def test_what_its_user_raises_comes_out_as_it_is(
    runner: ContainerRunner, anyio_backend: str, tmp_path: Path
) -> None:
    async with runner.warm_sessions(Agent(name="tester")) as warm:
        with pytest.raises(ZeroDivisionError), anyio.fail_after(20):
            async with warm.take() as session:
                raise ZeroDivisionError
        assert session.has_ended

    assert list((tmp_path / "containers").iterdir()) == []


async def test_that_none_can_be_opened_is_told_to_who_wants_one(
    runner: ContainerRunner, anyio_backend: str, tmp_path: Path
) -> None:
    (tmp_path / "docker").write_text("#!/bin/sh\nexit 1\n")
    async with runner.warm_sessions(Agent(name="tester")) as warm:
        with pytest.raises(ContainerRunnerError), anyio.fail_after(20):
            async with warm.take():
                pytest.fail("it was opened")
