"""Nodes that are played: what is a node's fault, what a job's, and what is run again."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

from container_runner.agents import ClaudeRuntime
from container_runner.config.container import ContainerConfig
from container_runner.errors import (
    ContainerRunnerError,
    EngineUnreachableError,
    ImageNotFoundError,
    MountError,
    NodeLostError,
    WorkspaceBusyError,
)
from container_runner.fleet.batch import Watch, run_batch
from container_runner.fleet.job import Job, JobResult
from container_runner.fleet.node import Ended, Node
from container_runner.fleet.results import ResultFile
from container_runner.options import Agent, ExecuteOptions
from container_runner.runner import ContainerRunner
from container_runner.stream.messages import ErrorMessage, Message, ResultMessage


@attrs.define
class PlayedNode:
    """A node on which each job does as the test says."""

    name: str
    play: Callable[[str], ContainerRunnerError | None]
    """How a job ends there, by its id; a NodeLostError is raised."""

    ran: list[str] = attrs.field(factory=list)
    at_work: int = 0

    async def run(
        self, job: Job, *, on_start: Callable[[], object], on_end: Ended
    ) -> AsyncGenerator[Sequence[Message]]:
        self.ran.append(job.id)
        self.at_work += 1
        try:
            on_start()
            await anyio.lowlevel.checkpoint()
            error = self.play(job.id)
            if isinstance(error, NodeLostError):
                raise error
            yield [ErrorMessage.from_error(error)] if error else [result()]
        finally:
            self.at_work -= 1


def result() -> ResultMessage:
    return ResultMessage(
        subtype="success", duration_ms=1, duration_api_ms=1, is_error=False, num_turns=1, session_id="s", result="fine",
        total_cost_usd=1.0,
    )  # fmt: skip


@attrs.frozen
class PlayedFleet:
    played: tuple[PlayedNode, ...]
    readied: list[list[str]] = attrs.field(factory=list)

    def described(self, job: Job) -> Job:
        return job

    @asynccontextmanager
    async def nodes(self, jobs: Sequence[Job]) -> AsyncIterator[Sequence[Node]]:
        self.readied.append([job.id for job in jobs])
        yield self.played
        assert not any(node.at_work for node in self.played)


def fine(_: str) -> None:
    return None


def lost(_: str) -> NodeLostError:
    return NodeLostError("The node b is lost: it died.", node="b")


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    return make(tmp_path, [str(number) for number in range(12)])


def make(folder: Path, ids: Sequence[str], image: str = "some/image", **options: Any) -> list[Job]:
    runner = ContainerRunner(ClaudeRuntime(), ContainerConfig(image=image, credentials="none"), folder / "state")
    options = {"prompt": "Do it.", "agent": Agent(name="a"), **options}
    return [Job(id=id_, runner=runner, options=ExecuteOptions(**options)) for id_ in ids]


def fleet(*plays: Callable[[str], ContainerRunnerError | None]) -> PlayedFleet:
    return PlayedFleet(tuple(PlayedNode(name, play) for name, play in zip("abcdef", plays, strict=False)))


async def test_all_nodes_work_and_a_result_says_which(jobs: list[Job]) -> None:
    on = fleet(fine, fine)

    done = await run_batch(jobs, on=on, at_once=2)

    assert [each.id for each in done] == [job.id for job in jobs]
    assert {each.id: each.node for each in done} == {id_: node.name for node in on.played for id_ in node.ran}
    assert all(node.ran for node in on.played)
    assert on.readied == [[job.id for job in jobs]]
    assert JobResult.parse(done[0].to_json()).node == done[0].node


async def test_the_jobs_of_a_node_that_is_lost_are_run_elsewhere_and_no_finished_one_again(
    jobs: list[Job], tmp_path: Path
) -> None:
    at_work = 0

    def dies_at_its_third(_: str) -> NodeLostError | None:
        nonlocal at_work
        at_work += 1
        return lost("") if at_work > 2 else None

    on = fleet(fine, dies_at_its_third)

    with ResultFile(tmp_path / "results") as results:
        done = await run_batch(jobs, on=on, at_once=2, results=results)

    assert all(each.succeeded for each in done)
    a, b = (node.ran for node in on.played)
    again = {each.id for each in done if each.attempts == 2}
    assert again == {*a} & {*b}
    assert 1 <= len(again) <= 2
    assert len(b) == 2 + len(again)
    assert len((tmp_path / "results").read_text().splitlines()) == len(jobs)
    assert all(each.node == "a" for each in done if each.id in again)


@pytest.mark.parametrize(
    "error", [EngineUnreachableError("No engine answers."), ImageNotFoundError("There is no image.")]
)
async def test_a_broken_node_does_not_eat_the_jobs(error: ContainerRunnerError, jobs: list[Job]) -> None:
    on = fleet(lambda _: error, fine)

    done = await run_batch(jobs, on=on, at_once=2)

    assert all(each.succeeded and each.node == "b" for each in done)
    assert len(on.played[0].ran) <= 2
    assert sum(each.attempts for each in done) == len(jobs) + len(on.played[0].ran)


async def test_a_node_that_mounts_nothing_is_given_up_but_not_for_one_bad_folder(jobs: list[Job]) -> None:
    on = fleet(lambda _: MountError("It does not mount."), fine)
    done = await run_batch(jobs, on=on, at_once=1)
    assert all(each.succeeded for each in done)
    assert len(on.played[0].ran) == 3

    on = fleet(*[lambda id_: MountError("It is not there.") if id_ == "3" else None] * 2)
    done = await run_batch(jobs, on=on, at_once=1)
    assert [(each.id, each.kind, each.attempts) for each in done if not each.succeeded] == [("3", "mount", 2)]


async def test_a_folder_that_is_busy_ends_its_own_job_and_no_other(jobs: list[Job]) -> None:
    on = fleet(lambda id_: WorkspaceBusyError("Another run is at work.") if id_ in "345" else None)

    done = await run_batch(jobs, on=on, at_once=1)

    assert len(done) == len(jobs)
    assert {(each.id, each.kind, each.was_run) for each in done if not each.succeeded} == {
        (id_, "workspace_busy", False) for id_ in "345"
    }


async def test_an_agents_own_failure_is_a_result(jobs: list[Job]) -> None:
    from container_runner.errors import AgentFailedError

    on = fleet(*[lambda _: AgentFailedError("It failed.", exit_code=1)] * 2)

    done = await run_batch(jobs, on=on)

    assert {(each.kind, each.attempts) for each in done} == {("agent_failed", 1)}


async def test_when_no_node_is_left_the_batch_ends_with_why(jobs: list[Job]) -> None:
    halted: list[str] = []
    on = fleet(lost, lost)

    done = await run_batch(jobs, on=on, at_once=1, watch=Watch(halted=halted.append))

    assert 1 <= len(done) <= 2
    assert {(each.kind, each.was_run) for each in done} == {("node_lost", False)}
    assert halted == ["The node b is lost: it died: no more jobs are started."]


@pytest.mark.parametrize(("attempts", "started"), [(1, 1), (2, 2), (3, 3)])
async def test_a_job_is_started_on_so_many_nodes_at_most(attempts: int, started: int, tmp_path: Path) -> None:
    on = fleet(lost, lost, lost, lost)

    (done,) = await run_batch(make(tmp_path, ["1"]), on=on, at_once=1, attempts=attempts)

    assert (done.attempts, done.kind) == (started, "node_lost")


async def test_jobs_of_another_box_go_on_where_one_has_no_image(jobs: list[Job], tmp_path: Path) -> None:
    others = make(tmp_path, ["x", "y", "z"], image="other/image")
    on = fleet(*[lambda id_: ImageNotFoundError("There is none.") if id_.isdigit() else None] * 2)

    done = await run_batch([*jobs, *others], on=on, at_once=1)

    assert [each.id for each in done if each.succeeded] == ["x", "y", "z"]
    assert sum(len(node.ran) for node in on.played) <= 3 + 4


async def test_what_is_spent_on_a_node_that_was_lost_counts(jobs: list[Job]) -> None:
    is_lost = anyio.Event()

    class LostAfterItsWork(PlayedNode):
        async def run(
            self, job: Job, *, on_start: Callable[[], object], on_end: Ended
        ) -> AsyncGenerator[Sequence[Message]]:
            on_start()
            yield [result()]
            is_lost.set()
            raise lost("")

    class Later(PlayedNode):
        async def run(
            self, job: Job, *, on_start: Callable[[], object], on_end: Ended
        ) -> AsyncGenerator[Sequence[Message]]:
            await is_lost.wait()
            async for some in super().run(job, on_start=on_start, on_end=on_end):
                yield some

    on = PlayedFleet((LostAfterItsWork("a", fine), Later("b", fine)))

    await run_batch(jobs, on=on, at_once=1, total_budget_usd=2.0)

    assert len(on.played[1].ran) == 1


async def test_a_batch_that_is_cancelled_leaves_nothing_at_work(jobs: list[Job]) -> None:
    on = fleet(fine, fine)
    with anyio.CancelScope() as scope:
        await run_batch(jobs, on=on, watch=Watch(ended=lambda *_: scope.cancel()))

    assert scope.cancelled_caught
    assert [node.at_work for node in on.played] == [0, 0]
    assert sum(len(node.ran) for node in on.played) < len(jobs)


async def test_what_is_finished_is_no_nodes_business(jobs: list[Job], tmp_path: Path) -> None:
    first, second = fleet(fine), fleet(fine)
    for on in (first, second):
        with ResultFile(tmp_path / "results") as results:
            await run_batch(jobs, on=on, results=results)

    assert (len(first.played[0].ran), second.played[0].ran) == (len(jobs), [])
