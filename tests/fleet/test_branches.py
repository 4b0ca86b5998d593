"""Jobs of carried workspaces: one state of the folder for all, and a branch for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import attrs
import pytest

from container_runner import Agent, CommandRuntime, ContainerConfig, ContainerRunner, ExecuteOptions
from container_runner.engine.locks import claim
from container_runner.errors import ConfigError
from container_runner.fleet import batch
from container_runner.fleet.batch import Watch, run_batch
from container_runner.fleet.job import Job, JobResult
from container_runner.workspace.changes import Changes
from tests import carried_engine
from tests.workspace.scene import FILES, git, make_folder


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = make_folder(tmp_path / "work", FILES)
    folder.chmod(0o777)
    return folder


@attrs.frozen
class Shop:
    folder: Path

    def job(self, id_: str, script: str, *, mode: Literal["rw", "carried"] = "carried", **fields: Any) -> Job:
        engine = self.folder / "engine"
        program = engine / "docker" if engine.exists() else carried_engine.write(engine)
        config = ContainerConfig(
            image="i",
            engine=str(program),
            workspace_mode=mode,
            carry="stream",
            credentials="none",
        )
        runner = ContainerRunner(CommandRuntime(["sh"]), config, self.folder / "state")
        workspace = fields.pop("workspace", self.folder / "work")
        own = {name: fields.pop(name) for name in ("branch",) if name in fields}
        options = ExecuteOptions(prompt=script, agent=Agent(name="bot", workspace=workspace), **fields)
        return Job(id=id_, runner=runner, options=options, **own)


@pytest.fixture
def shop(tmp_path: Path, work: Path) -> Shop:
    return Shop(tmp_path)


async def test_all_jobs_of_a_folder_begin_with_one_state_of_it(shop: Shop, work: Path) -> None:
    watch = Watch(ended=lambda *_: (work / "b").write_text("changed by the user\n"))
    jobs = [shop.job(name, f"cat b >{name}") for name in ("one", "two")]

    results = await run_batch(jobs, at_once=1, watch=watch)

    assert [(result.outcome, result.files, result.branch) for result in results] == [("succeeded", 1, None)] * 2
    for result in results:
        await (await Changes.open(work, result.run, shop.folder / "state")).apply()
    assert ((work / "one").read_text(), (work / "two").read_text()) == ("b\n", "b\n")
    assert (work / "b").read_text() == "changed by the user\n"


async def test_a_folder_in_which_a_run_of_the_other_sort_is_at_work_is_tried_again(
    shop: Shop, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "_FIRST_WAIT", 0.001)
    other = await claim(shop.folder / "state", str(work), carried=False)
    watch = Watch(said=lambda *_: other.release(remove=True))

    (result,) = await run_batch([shop.job("one", "echo 1 >one")], retries=1, watch=watch)

    assert (result.outcome, result.attempts, result.files) == ("succeeded", 2, 1)


async def test_each_job_ends_in_a_branch(shop: Shop, work: Path) -> None:
    jobs = [
        shop.job("one", "echo 1 >one", branch="agent/one"),
        shop.job("bad", "echo evil >.envrc; exit 3", branch="agent/bad"),
        shop.job("idle", "true", branch="agent/idle"),
    ]

    one, bad, idle = await run_batch(jobs)

    assert git(work, "branch", "--format=%(refname:short)").split() == ["agent/bad", "agent/one", "main"]
    assert git(work, "show", "agent/one:one") == "1\n"
    assert (one.branch, one.succeeded) == ("agent/one", True)
    assert (bad.branch, bad.kind, bad.findings) == ("agent/bad", "agent_failed", (("tool", ".envrc"),))
    assert (idle.branch, idle.succeeded) == (None, True)
    assert JobResult.parse(bad.to_json()) == bad


async def test_a_branch_that_somebody_made_meanwhile_is_a_failure_and_the_work_is_kept(shop: Shop, work: Path) -> None:
    watch = Watch(
        started=lambda _: git(work, "branch", "agent/one", git(work, "commit-tree", "HEAD^{tree}", "-m", "x").strip())
    )

    (result,) = await run_batch([shop.job("one", "echo 1 >one", branch="agent/one")], watch=watch)

    assert (result.outcome, result.kind, result.branch, result.was_run) == ("failed", "conflict", None, True)
    assert (await Changes.open(work, result.run, shop.folder / "state")).files


@pytest.mark.parametrize(
    ("branches", "fields", "told"),
    [
        (["a..b"], {}, "a name that git takes for a branch"),
        (["main"], {}, "main is there already"),
        (["main/x"], {}, "main is there already"),
        (["x", "x"], {}, "x is the branch of job 0"),
        (["x/y", "x"], {}, "x/y is the branch of job 0"),
        (["x"], {"mode": "rw"}, "workspace is carried"),
        (["x"], {"workspace": "plain"}, "in a repository"),
    ],
)
async def test_what_can_not_be_a_branch_is_refused_before_anything_is_started(
    shop: Shop, branches: list[str], fields: dict[str, Any], told: str
) -> None:
    (shop.folder / "plain").mkdir(mode=0o777)
    (shop.folder / "plain").chmod(0o777)
    if "workspace" in fields:
        fields = {**fields, "workspace": shop.folder / "plain"}
    jobs = [shop.job(str(number), "true", branch=branch, **fields) for number, branch in enumerate(branches)]

    with pytest.raises(ConfigError) as caught:
        await run_batch(jobs)

    assert told in str(caught.value)
    assert caught.value.source == f"job {len(branches) - 1}"
    calls = shop.folder / "engine/calls"
    assert not calls.exists() or "run" not in {call[0] for call in carried_engine.calls(shop.folder / "engine")}
