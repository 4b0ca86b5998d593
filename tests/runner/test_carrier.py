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

from container_runner import Agent, ClaudeRuntime, CommandRuntime, ContainerConfig, ContainerRunner, ExecuteOptions
from container_runner.errors import ConfigError, ConflictError, EngineError, WorkspaceError
from container_runner.records.summary import RunSummary
from container_runner.runner import carrier
from container_runner.runner.beside import together
from container_runner.runner.left import fetch_left, unfetched
from container_runner.workspace.carry import Carry
from container_runner.workspace.changes import Changes, Notes, write_notes
from container_runner.workspace.shadow import Shadow
from container_runner.workspace.target import Journal, Step
from tests import carried_engine
from tests.workspace.scene import commit, git, make_folder


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
    execs = [[call[-2:] for call in calls if call[0] == "exec"] for calls in (said, wanted)]
    assert sorted(execs[0]) == sorted(execs[1])  # the agent may write there while the files are on their way
    assert execs[0][-1] == execs[1][-1]
    assert [verb for verb in scene.verbs if verb not in ("--version", "ps")] == [
        "run",
        "exec",
        "exec",
        "exec",
        "volume rm",
    ]


async def test_what_was_committed_in_a_submodule_is_fetched_and_given_to_it(scene: Scene) -> None:
    """The outer repository names that commit, so without it its branch could not be checked out."""
    library = make_folder(scene.folder / "library", {"l": "1\n", "kept": "1\n"})
    git(scene.workspace, "init", "-q")
    git(scene.workspace, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(library), "a lib")
    commit(scene.workspace)
    theirs = git(scene.workspace / "a lib", "rev-parse", "HEAD").strip()
    who = "git -c user.name=a -c user.email=a@x commit -qam"

    summary = await scene.run(f"(cd 'a lib'; echo 2 >l; {who} within); {who} around; echo 3 >'a lib/l'")

    assert summary.outcome == "succeeded", summary.message
    changes = await Changes.open(scene.workspace, summary.run_id, scene.state)
    ((path, head),) = ((module.path, module.head) for module in changes.modules)
    assert (path, changes.findings, head != theirs) == (b"a lib", (), True)
    assert git(scene.workspace / "a lib", "rev-parse", "HEAD").strip() == theirs

    made = await changes.branch("fix")

    assert made.left_out == (b"a lib/l",)
    assert git(scene.workspace, "rev-parse", "fix:a lib").strip() == head
    assert git(scene.workspace / "a lib", "log", "--format=%s", "fix").splitlines() == ["within", "first"]
    git(scene.workspace, "checkout", "-q", "fix")
    git(scene.workspace, "submodule", "--quiet", "update", "--no-fetch")
    assert (scene.workspace / "a lib/l").read_text() == "2\n"
    assert scene.left == []

    git(scene.workspace / "a lib", "checkout", "-q", "-b", "other", theirs)
    with pytest.raises(ConflictError, match="checked out"):
        await changes.branch("other")
    assert git(scene.workspace, "branch", "--list", "other") == ""


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


async def test_what_fails_when_the_container_has_gone_is_fetched_by_another(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may go as soon as it has said all, and its work is in the shadow only after that."""
    tried: list[str] = []

    async def fails_once(shadow: Shadow, run: str, notes: Notes) -> None:
        tried.append(run)
        if len(tried) == 1:
            raise WorkspaceError("The disk is full.")
        await write_notes(shadow, run, notes)

    monkeypatch.setattr(carrier, "write_notes", fails_once)

    summary = await scene.run("cat a b >c; rm b")

    assert (summary.outcome, len(tried)) == ("succeeded", 2)
    assert await scene.result(summary) == {"a": "1\n", "c": "1\n2\n"}
    assert scene.verbs.count("run") == 2
    assert scene.left == []


@pytest.mark.parametrize(
    ("fault", "told"), [("stuck", "is cut off"), ("hangs", "Nothing came out of the box for 0.3 seconds")]
)
async def test_what_can_not_be_fetched_now_is_fetched_by_the_next_run(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, fault: str, told: str
) -> None:
    (scene.engine / fault).touch()
    with monkeypatch.context() as patched:
        if fault == "hangs":
            patched.setattr("container_runner.runner.carrier.PATIENCE", 0.3)
        first = await scene.run("echo x >c")

    assert first.kind == "workspace"
    assert first.message is not None
    assert "is not fetched yet" in first.message
    assert told in first.message
    assert first.changes is None
    assert [carry.run for carry in unfetched(scene.state)] == [first.run_id]

    (scene.engine / fault).unlink()
    second = await scene.run("echo y >d")

    assert (await scene.result(first)) == {"a": "1\n", "b": "2\n", "c": "x\n"}
    assert (await scene.result(second)) == {"a": "1\n", "b": "2\n", "d": "y\n"}
    assert unfetched(scene.state) == []
    assert scene.left == []


async def test_a_volume_that_can_not_be_removed_is_told_and_goes_with_the_next_run(scene: Scene) -> None:
    (scene.engine / "keeps").touch()
    first = await scene.run("echo x >c")

    assert first.kind == "cleanup"
    assert first.message is not None
    assert first.message.startswith(f"container-runner-{first.run_id} may be left.")
    assert (await scene.result(first)) == {"a": "1\n", "b": "2\n", "c": "x\n"}
    assert first.changes is not None
    assert unfetched(scene.state) == []

    (scene.engine / "keeps").unlink()
    await scene.run("exit 0")

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


async def test_a_volume_that_is_made_after_its_run_was_killed_goes_with_a_later_start(scene: Scene) -> None:
    """The engine goes on with what its client had asked for."""
    manager = await scene.runner().manager()
    carry = scene.runner().plan(scene.options("exit 0")).carry
    assert carry is not None
    record = scene.state / "carried" / f"{carry.run}.json"
    carry.save(scene.state)

    await fetch_left(manager)
    assert record.exists()
    (scene.engine / "volumes" / carry.volume).mkdir()
    await fetch_left(manager)

    assert scene.left == []

    carry.save(scene.state)
    os.utime(record, (0, 0))
    await fetch_left(manager)

    assert scene.left == []


async def test_a_run_begins_with_what_another_has_left_whatever_the_folder_is(scene: Scene) -> None:
    first = await scene.run("echo x >c; rm b")
    (scene.workspace / "a").write_text("the user's\n")

    second = await scene.run("cat a c >d; echo y >c", from_run=first.run_id[:10])

    assert await scene.result(second) == {"a": "1\n", "c": "y\n", "d": "1\nx\n"}
    changes = await Changes.open(scene.workspace, second.run_id, scene.state)
    assert [(file.path, file.status) for file in changes.files] == [(b"b", "deleted"), (b"c", "added"), (b"d", "added")]
    await changes.apply()
    found = {path.name: path.read_text() for path in scene.workspace.iterdir()}
    assert found == {"a": "the user's\n", "c": "y\n", "d": "1\nx\n"}
    assert scene.left == []


async def test_any_number_of_runs_begin_with_one_at_once(scene: Scene) -> None:
    first = await scene.run("echo x >c")
    done: list[RunSummary] = []

    async def fork(name: str) -> None:
        done.append(await scene.run(f"cat c >{name}", from_run=first.run_id))

    async with anyio.create_task_group() as tasks:
        for name in ("d", "e"):
            tasks.start_soon(fork, name)

    found = [await scene.result(summary) for summary in done]
    base = {"a": "1\n", "b": "2\n", "c": "x\n"}
    assert sorted(found, key=str) == [base | {"d": "x\n"}, base | {"e": "x\n"}]


async def test_a_run_that_was_killed_is_fetched_before_another_begins_with_it(
    scene: Scene, victim: subprocess.Popen[str]
) -> None:
    assert victim.stdout is not None
    victim.stdout.readline()
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    (carry,) = unfetched(scene.state)

    summary = await scene.run("cat c >d", from_run=carry.run)

    assert await scene.result(summary) == {"a": "1\n", "b": "2\n", "c": "x\n", "d": "x\n"}


async def test_what_a_killed_run_had_begun_with_is_what_it_is_fetched_with(scene: Scene) -> None:
    first = await scene.run("echo x >c; rm b")
    (scene.engine / "stuck").touch()
    second = await scene.run("echo y >d", from_run=first.run_id)
    assert second.changes is None
    (scene.engine / "stuck").unlink()

    await scene.run("exit 0")

    assert await scene.result(second) == {"a": "1\n", "c": "x\n", "d": "y\n"}


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ("ffff", "There is no run 'ffff' whose work is kept: from_run must be the id of a run"),
        ("other", "was on another folder, "),
        ("discarded", "Nothing came out of run "),
        ("", "2 runs begin with "),
    ],
)
async def test_a_run_that_left_nothing_here_is_none_to_begin_with(scene: Scene, named: str, told: str) -> None:
    other = scene.folder / "other"
    other.mkdir(mode=0o777)
    elsewhere = await Elsewhere(scene.folder).run("echo x >c")
    discarded = await scene.run("echo x >c")
    await (await Changes.open(scene.workspace, discarded.run_id, scene.state)).discard()
    shadow = await Shadow.open(scene.workspace, scene.state)
    for run in ("aaaa1", "aaaa2"):
        await shadow.start(run)
        await shadow.set_refs(run, {"result": await shadow.ref(run, "base")})
    names = {"other": elsewhere.run_id, "discarded": discarded.run_id, "": "aaaa"}

    with pytest.raises(ConfigError) as caught:
        await scene.run("exit 0", from_run=names.get(named, named))

    assert told in str(caught.value)
    assert scene.verbs.count("run") == 2


class Elsewhere(Scene):
    @property
    def workspace(self) -> Path:
        return self.folder / "other"


async def test_a_mounted_folder_begins_with_nothing_else(scene: Scene) -> None:
    with pytest.raises(ConfigError, match="workspace_mode"):
        await scene.run("exit 0", config={"workspace_mode": "rw"}, from_run="abc")


class Claude(Scene):
    """With an agent that has sessions."""

    def runner(self, **config: Any) -> ContainerRunner:
        program = carried_engine.write_claude(self.folder)
        return ContainerRunner(ClaudeRuntime(str(program)), super().runner(**config).config, self.state)


async def test_a_session_goes_on_from_its_own_work_until_that_is_applied_or_discarded(scene: Scene) -> None:
    claude = Claude(scene.folder)
    base = {"a": "1\n", "b": "2\n"}
    first = await claude.run("echo 1 >c")
    assert (first.session_id, first.outcome) == ("one", "succeeded")

    fork = await claude.run("cat c >d", resume="one", fork=True)
    assert (fork.session_id, await claude.result(fork)) == ("fork", base | {"c": "1\n", "d": "1\n"})
    assert await claude.result(await claude.run("exit 0", resume="one", from_run="folder")) == base
    third = await claude.run("cat d >e", resume="fork")
    assert await claude.result(third) == base | {"c": "1\n", "d": "1\n", "e": "1\n"}

    await (await Changes.open(scene.workspace, third.run_id, scene.state)).apply()
    (scene.workspace / "c").write_text("the user's\n")
    fourth = await claude.run("echo 2 >d", resume="fork")
    assert await claude.result(fourth) == base | {"c": "the user's\n", "d": "2\n", "e": "1\n"}

    await (await Changes.open(scene.workspace, fourth.run_id, scene.state)).discard()
    fifth = await claude.run("exit 0", resume="fork")
    assert await claude.result(fifth) == base | {"c": "the user's\n", "d": "1\n", "e": "1\n"}


async def test_a_run_on_the_same_folder_that_mounts_it_is_refused(scene: Scene, victim: subprocess.Popen[str]) -> None:
    assert victim.stdout is not None
    victim.stdout.readline()

    summary = await scene.run("exit 0", config={"workspace_mode": "rw"})

    assert summary.kind == "workspace_busy"
    assert summary.message == f"{scene.workspace} is being worked on by a run with workspace_mode = carried."
    assert (await scene.run("exit 0")).outcome == "succeeded"
    assert len(list(scene.state.glob("locks/workspace.*"))) == 1


async def test_a_pool_is_refused(scene: Scene) -> None:
    with pytest.raises(ConfigError, match="workspace_mode"):
        async with scene.runner().warm(scene.options("").agent, size=1):
            pass


async def test_a_folder_that_can_not_be_kept_ends_the_run_before_it_starts(scene: Scene) -> None:
    (scene.workspace / ".git").symlink_to("/nowhere")

    summary = await scene.run("exit 0")

    assert summary.kind == "workspace"
    assert scene.left == []


async def test_a_repository_that_borrows_objects_is_refused_unless_they_are_named(scene: Scene) -> None:
    objects = make_folder(scene.folder / "theirs", {"l": "1\n"}).resolve() / ".git/objects"
    shutil.rmtree(scene.workspace)
    git(scene.folder, "clone", "--quiet", "--shared", "theirs", "project")
    scene.workspace.chmod(0o777)

    refused = await scene.run("exit 0")
    taken = await scene.run("git log --format=%s >log", config={"volumes": [f"{objects}:{objects}:ro"]})

    assert refused.kind == "workspace"
    assert refused.message is not None
    assert refused.message.endswith(f"borrows the objects in {objects}.")
    assert (taken.outcome, taken.message) == ("succeeded", None)
    assert (await scene.result(taken))["log"] == "first\n"
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
