"""A carried workspace, from the folder into a box and back into its shadow, on an engine that is played.

The scripts in the box, git and the volume are real. tests/integration/test_carried.py does the same with real engines.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

from container_runner import Agent, CommandRuntime, ContainerConfig, ContainerRunner, ExecuteOptions
from container_runner.errors import ConfigError, EngineError, WorkspaceError
from container_runner.records.summary import RunSummary
from container_runner.runner.carrier import fetch_left, together, unfetched
from container_runner.workspace.carry import Carry
from container_runner.workspace.shadow import Shadow
from container_runner.workspace.target import Journal, Step
from tests import carried_engine


@attrs.frozen
class Scene:
    folder: Path

    @property
    def engine(self) -> Path:
        return self.folder / "engine"

    @property
    def workspace(self) -> Path:
        return self.folder / "project"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def runner(self, **config: Any) -> ContainerRunner:
        fields = {"carry": "stream", "workspace_mode": "carried", "credentials": "none", **config}
        box = ContainerConfig(image="i", engine=str(self.engine / "docker"), **fields)
        return ContainerRunner(CommandRuntime(["sh"]), box, self.state)

    def options(self, prompt: str, **fields: Any) -> ExecuteOptions:
        return ExecuteOptions(prompt=prompt, agent=Agent(name="bot", workspace=self.workspace), **fields)

    async def run(self, prompt: str, *, config: dict[str, Any] | None = None, **fields: Any) -> RunSummary:
        """A run from start to end, as its summary."""
        ended: list[RunSummary] = []
        messages = self.runner(**config or {}).execute(
            self.options(prompt, **fields), on_end=lambda summary, _: ended.append(summary)
        )
        async with aclosing(messages):
            async for _ in messages:
                pass
        (summary,) = ended
        return summary

    async def result(self, summary_or_run: RunSummary | str) -> dict[str, str]:
        """What came out of a run, by path."""
        run = summary_or_run if isinstance(summary_or_run, str) else summary_or_run.run_id
        shadow = await Shadow.open(self.workspace, self.state)
        result = await shadow.ref(run, "result")
        assert result is not None
        names = (await shadow.git("ls-tree", "-r", "--name-only", result)).decode().splitlines()
        return {name: (await shadow.git("cat-file", "blob", f"{result}:{name}")).decode() for name in names}

    @property
    def verbs(self) -> list[str]:
        return [" ".join(call[:2]) if call[0] == "volume" else call[0] for call in carried_engine.calls(self.engine)]

    @property
    def left(self) -> list[str]:
        """What is left of a run that has ended: volumes, and what is written down."""
        volumes = [path.name for path in (self.engine / "volumes").iterdir()]
        return volumes + Carry.runs(self.state)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    scene = Scene(tmp_path)
    scene.workspace.mkdir()
    scene.workspace.chmod(0o777)
    carried_engine.write(scene.engine)
    (scene.workspace / "a").write_text("1\n")
    (scene.workspace / "b").write_text("2\n")
    return scene


async def test_what_an_agent_has_done_comes_out_and_the_folder_is_as_it_was(scene: Scene) -> None:
    summary = await scene.run("cat a b >c; rm b; echo more >>a")

    assert (summary.outcome, summary.message) == ("succeeded", None)
    assert await scene.result(summary) == {"a": "1\nmore\n", "c": "1\n2\n"}
    assert {path.name: path.read_text() for path in scene.workspace.iterdir()} == {"a": "1\n", "b": "2\n"}
    work = summary.changes
    assert work is not None
    assert (work.files, work.findings, work.head) == (3, (), None)
    assert scene.left == []


async def test_an_apply_that_was_killed_is_undone_before_the_folder_is_read(scene: Scene) -> None:
    folder = (await Shadow.open(scene.workspace, scene.state)).folder
    journal = Journal(run="x", steps=(Step(deed="take", path=b"a", number=0),))
    stage = scene.workspace / journal.stage
    stage.mkdir()
    (scene.workspace / "a").rename(stage / "o0")
    journal.write(folder)

    summary = await scene.run("true")

    assert await scene.result(summary) == {"a": "1\n", "b": "2\n"}
    assert sorted(path.name for path in scene.workspace.iterdir()) == ["a", "b"]


async def test_the_commands_are_those_of_the_plan(scene: Scene) -> None:
    summary = await scene.run("exit 0")

    said = [call for call in carried_engine.calls(scene.engine) if call[0] not in ("--version", "ps")]
    plan = scene.runner().plan(scene.options("exit 0"), run_id=summary.run_id)
    wanted = [list(command[1:]) for command in plan.commands]
    assert [call[:2] for call in said] == [call[:2] for call in wanted]
    assert [call[-2:] for call in said if call[0] == "exec"] == [call[-2:] for call in wanted if call[0] == "exec"]
    assert [verb for verb in scene.verbs if verb not in ("--version", "ps")] == [
        "volume create",
        "run",
        "exec",
        "exec",
        "exec",
        "volume rm",
    ]


async def test_a_run_whose_agent_fails_is_fetched_as_well(scene: Scene) -> None:
    summary = await scene.run("echo x >c; exit 3")

    assert (summary.outcome, summary.exit_code) == ("failed", 3)
    assert (await scene.result(summary))["c"] == "x\n"
    assert scene.left == []


async def test_a_run_that_took_too_long_is_fetched_by_a_container_of_our_own(scene: Scene) -> None:
    summary = await scene.run("echo x >c; sleep 60", timeout=5.0, grace=0)

    assert summary.kind == "total_timeout"
    assert (await scene.result(summary))["c"] == "x\n"
    assert scene.verbs.count("run") == 2
    assert scene.left == []


async def test_a_run_that_is_cancelled_is_fetched_too(scene: Scene) -> None:
    ended: list[RunSummary] = []

    async with anyio.create_task_group() as tasks:

        async def work() -> None:
            options = scene.options("echo x >c; echo here; sleep 60", grace=0)
            async with aclosing(
                scene.runner().execute(options, on_end=lambda summary, _: ended.append(summary))
            ) as messages:
                async for _ in messages:
                    tasks.cancel_scope.cancel()

        tasks.start_soon(work)

    (summary,) = ended
    assert summary.outcome == "stopped"
    assert (await scene.result(summary))["c"] == "x\n"
    assert scene.left == []


@pytest.mark.parametrize("cut", [1, 20, 2000])
async def test_a_container_that_is_killed_in_the_middle_of_the_way_out(scene: Scene, cut: int) -> None:
    (scene.engine / "cut").write_text(f"{cut}")

    summary = await scene.run("cat a b >c; rm b")

    assert await scene.result(summary) == {"a": "1\n", "c": "1\n2\n"}
    assert not (scene.engine / "cut").exists()
    assert scene.left == []


async def test_what_can_not_be_fetched_now_is_fetched_by_the_next_run(scene: Scene) -> None:
    (scene.engine / "stuck").touch()
    first = await scene.run("echo x >c")

    assert first.kind == "workspace"
    assert first.message is not None
    assert "is not fetched yet" in first.message
    assert first.changes is None
    assert [carry.run for carry in unfetched(scene.state)] == [first.run_id]

    (scene.engine / "stuck").unlink()
    second = await scene.run("echo y >d")

    assert (await scene.result(first)) == {"a": "1\n", "b": "2\n", "c": "x\n"}
    assert (await scene.result(second)) == {"a": "1\n", "b": "2\n", "d": "y\n"}
    assert unfetched(scene.state) == []
    assert scene.left == []


async def test_an_empty_volume_in_place_of_a_lost_one_is_not_believed(scene: Scene) -> None:
    (scene.engine / "stuck").touch()
    summary = await scene.run("echo x >c")
    (scene.engine / "stuck").unlink()
    (volume,) = scene.engine.glob("volumes/container-runner-*[!n]")
    shutil.rmtree(volume)
    volume.with_name(f"{volume.name}.json").unlink()
    volume.mkdir()

    manager = await scene.runner().manager()
    with pytest.raises(WorkspaceError, match="is not there any more"):
        await fetch_left(manager, run=summary.run_id)

    assert [carry.run for carry in unfetched(scene.state)] == [summary.run_id]


async def test_that_all_was_deleted_is_believed_when_somebody_says_so(scene: Scene) -> None:
    summary = await scene.run("rm a b")

    assert summary.kind == "workspace"
    manager = await scene.runner().manager()
    with pytest.raises(WorkspaceError) as caught:
        await fetch_left(manager, run=summary.run_id)
    assert "--empty" in caught.value.next_step
    assert [carry.run for carry in unfetched(scene.state)] == [summary.run_id]
    await fetch_left(manager, run=summary.run_id, may_be_empty=True)
    assert await scene.result(summary) == {}
    assert scene.left == []


KILLED = """
import anyio, os, sys
from container_runner import *
from contextlib import aclosing
async def main(engine, workspace, state, prompt):
    config = ContainerConfig(image="i", engine=engine, carry="stream", workspace_mode="carried", credentials="none")
    runner = ContainerRunner(CommandRuntime(["sh"]), config, state)
    options = ExecuteOptions(prompt=prompt, agent=Agent(name="bot", workspace=workspace), grace=0)
    async with aclosing(runner.execute(options)) as messages:
        async for message in messages:
            print(type(message).__name__, flush=True)
anyio.run(main, *sys.argv[1:])
"""


@pytest.fixture
def victim(scene: Scene) -> Iterator[subprocess.Popen[str]]:
    """Another process that runs an agent, which has written a file when it says something."""
    words = [str(scene.engine / "docker"), str(scene.workspace), str(scene.state), "echo x >c; echo here; sleep 60"]
    with subprocess.Popen([sys.executable, "-c", KILLED, *words], stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


async def test_a_run_whose_process_is_killed_is_fetched_by_the_next(
    scene: Scene, victim: subprocess.Popen[str]
) -> None:
    assert victim.stdout is not None
    assert victim.stdout.readline() == "OutputLine\n"
    assert unfetched(scene.state) == []  # it is at work
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    (carry,) = unfetched(scene.state)

    await scene.run("exit 0")

    assert await scene.result(carry.run) == {"a": "1\n", "b": "2\n", "c": "x\n"}
    assert scene.left == []


async def test_a_run_on_the_same_folder_that_mounts_it_is_refused(scene: Scene, victim: subprocess.Popen[str]) -> None:
    assert victim.stdout is not None
    victim.stdout.readline()

    summary = await scene.run("exit 0", config={"workspace_mode": "rw"})

    assert summary.kind == "state"
    assert summary.message == f"{scene.workspace} is being worked on by a run with workspace_mode = carried."
    assert (await scene.run("exit 0")).outcome == "succeeded"


async def test_a_pool_is_refused(scene: Scene) -> None:
    with pytest.raises(ConfigError, match="workspace_mode"):
        async with scene.runner().warm(scene.options("").agent, size=1):
            pass


async def test_a_folder_that_can_not_be_kept_ends_the_run_before_it_starts(scene: Scene) -> None:
    (scene.workspace / ".git").symlink_to("/nowhere")

    summary = await scene.run("exit 0")

    assert summary.kind == "workspace"
    assert scene.left == []


async def test_of_things_at_once_the_first_failure_is_raised_as_it_is() -> None:
    async def fails() -> bool:
        raise EngineError("no")

    async def waits() -> bool:
        await anyio.sleep_forever()
        return True

    async def says_no() -> bool:
        return False

    async def says_yes() -> bool:
        return True

    with anyio.fail_after(5):
        with pytest.raises(EngineError, match="no"):
            await together(waits, fails)
        assert not await together(waits, says_no)
        assert await together(says_yes, says_yes)
