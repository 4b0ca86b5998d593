"""Many requests, some at a time, with results that outlive a crash.

    results = ResultFile(Path("results.jsonl"))
    with results:
        done = await run_batch(jobs, at_once=4, results=results)

A job's result is written when the job ends, as one line of JSON. Run the same batch again, and what is in the file
is not done again, unless its agent never started.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from contextlib import aclosing
from functools import partial
from typing import Final

import anyio
import attrs

from container_runner.errors import (
    AgentError,
    ConfigError,
    ContainerRunnerError,
    EngineBusyError,
    EngineTimeoutError,
    EngineUnreachableError,
    ExecLostError,
    StateError,
    WorkspaceBusyError,
    error_class,
)
from container_runner.fleet.branches import check_branches, make_branch
from container_runner.fleet.job import Job, JobResult
from container_runner.fleet.node import Fleet, Here, Node
from container_runner.fleet.results import ResultFile
from container_runner.fleet.schedule import Schedule, Standing, Tried
from container_runner.records.tally import Tally
from container_runner.stream.messages import ErrorMessage, Message

_TRANSIENT: Final = (EngineBusyError, EngineTimeoutError, EngineUnreachableError, ExecLostError, WorkspaceBusyError)
_TRANSIENT_STATUS: Final = (429, 500, 502, 503, 504, 529)
"""Failures that another try may not meet; of the API's, by their HTTP status."""

_FIRST_WAIT: Final = 2.0
_LONGEST_WAIT: Final = 120.0
"""Seconds before the first and before a late retry; each wait is twice the one before."""

_log = logging.getLogger(__name__)


def _nothing(*_: object) -> None:
    pass


@attrs.frozen(kw_only=True)
class Watch:
    """What is called while a batch runs. It must not raise, and not take long."""

    started: Callable[[Job], object] = _nothing
    at_work: Callable[[Job], object] = _nothing
    """Its agent has started, which may be long before it says something."""

    said: Callable[[Job, Message], object] = _nothing
    """Each message of each job."""

    ended: Callable[[Job, JobResult], object] = _nothing
    """After the result was written."""

    halted: Callable[[str], object] = _nothing
    """Once, if jobs are left that are not started: why, in a sentence."""


async def run_batch(
    jobs: Iterable[Job],
    *,
    on: Fleet | None = None,
    at_once: int = 2,
    results: ResultFile | None = None,
    retry_failed: bool = False,
    retries: int = 0,
    attempts: int = 3,
    total_budget_usd: float | None = None,
    watch: Watch | None = None,
) -> list[JobResult]:
    """Run jobs, *at_once* at a time. One that fails does not stop the others.

    No more are started once a failure has come that they would all meet: the engine is not there, or, for the jobs
    with the same box, its image is not. When it is cancelled, all agents are stopped and their containers removed;
    jobs that had not ended have no result.

    A carried workspace begins, for all jobs of a folder, with what that is when the batch begins; but for jobs that go
    on from a run or a session.

    On a fleet a job is run at least once: if its node is lost, or fails it by what is the node's own fault, another
    node runs it from its beginning. The first result counts. A node that is lost, or that would fail every job, gets
    no more of them; when none is left, no more jobs are started.

    Args:
        on: where they run. None: on this machine.
        at_once: how many run at a time; on a fleet, on each of its nodes.
        results: where each result is written as its job ends; jobs that it has are not run again, but for those whose
            agent never started.
        retry_failed: run those again that it has as failed.
        retries: how often a job is started again, from its beginning, after a failure that may pass: an engine that is
            busy, not there or lost hold of the agent, an API that has too much to do, or a folder in which a run of
            the other sort is at work. Waits 2 seconds before the first time, then twice as long each time, up to 2
            minutes.
        attempts: on how many nodes of a fleet a job is started at most. 1: never a second time.
        total_budget_usd: US dollars for all jobs together, what *results* already has counts too. When they are spent
            no more jobs are started; those at work go on, see `ExecuteOptions.max_budget_usd`.
        watch: is told what happens.

    Returns:
        The results in the order of the jobs, those from the file too. A job that was not started has none.

    Raises:
        ConfigError: two jobs have one id or branch, or a job can not be carried out; nothing has been started.
        EngineError: there is no engine, or it does not answer.
        StateError: a result can not be written. The other agents are stopped.
    """
    jobs, watch = list(jobs), watch or Watch()
    for job in jobs:
        if not isinstance(job, Job):
            raise ConfigError("jobs", job, 'each a Job, as Job(id="1", runner=runner, options=options)')
    if not 1 <= at_once <= 1000:
        raise ConfigError("jobs", at_once, "a number of jobs at a time from 1 to 1000")
    if not 0 <= retries <= 100:
        raise ConfigError("retries", retries, "a number from 0 to 100")
    if not 1 <= attempts <= 100:
        raise ConfigError("attempts", attempts, "a number from 1 to 100")
    if total_budget_usd is not None and not 0 < total_budget_usd < float("inf"):
        raise ConfigError("total_budget_usd", total_budget_usd, "a number of US dollars above 0")
    done = finished(jobs, results, retry_failed=retry_failed)
    todo = [job for job in jobs if job.id not in done]
    on = on or Here()
    described = [on.described(job) for job in todo]
    for job in described:
        try:
            job.runner.plan(job.options)
        except ConfigError as error:
            raise error.called(error.field, source=job.source or f"job {job.id}") from None
    await check_branches(described)
    async with on.nodes(todo) as nodes:
        course = _Course(retries, total_budget_usd, watch, spent=0.0 if results is None else results.cost_usd)
        schedule = Schedule(todo, nodes, attempts=attempts, hindered=course.hinders, halted=watch.halted)
        await _run_all(course, schedule, min(at_once, len(todo)), results, done)
    return [done[job.id] for job in jobs if job.id in done]


async def _run_all(
    course: _Course, schedule: Schedule, at_once: int, results: ResultFile | None, done: dict[str, JobResult]
) -> None:
    """Run what *schedule* gives, and put the results into *done*."""
    failure: ContainerRunnerError | None = None

    async def end(tried: Tried) -> None:
        nonlocal failure
        result = await course.end(tried)
        try:
            if results is not None:
                results.add(result)
        except StateError as error:  # out of the task group, which would wrap it
            failure = error
            tasks.cancel_scope.cancel()
            return
        done[tried.job.id] = result
        course.watch.ended(tried.job, result)

    async def work(node: Standing) -> None:
        while (tried := await schedule.take(node)) is not None:
            await course.run(tried, node.node)
            if schedule.end(tried, tried.tallies[-1].error):
                await end(tried)

    async with anyio.create_task_group() as tasks:
        for node in schedule.nodes:
            for _ in range(at_once):
                tasks.start_soon(work, node)
    async with anyio.create_task_group() as tasks:
        for tried in schedule.given_up() if failure is None else ():
            await end(tried)
    if failure is not None:
        raise failure


def finished(jobs: Iterable[Job], results: ResultFile | None, *, retry_failed: bool = False) -> dict[str, JobResult]:
    """The results of those jobs that `run_batch` would not run, by the jobs' ids.

    Raises:
        ConfigError: two jobs have the same id.
    """
    done: dict[str, JobResult] = {}
    seen: set[str] = set()
    for job in jobs:
        if job.id in seen:
            allowed = "an id that no other job has"
            raise ConfigError("id", job.id, allowed, source=job.source, told=f"id {job.id!r} is another job's already")
        seen.add(job.id)
        result = results and results.result_of(job)
        if result and result.was_run and (result.succeeded or not retry_failed):
            done[job.id] = result
    return done


@attrs.define
class _Course:
    """How a batch goes, and what it has cost."""

    retries: int
    budget: float | None
    watch: Watch
    spent: float

    def hinders(self) -> str | None:
        """Why no job should be started any more."""
        return f"${self.spent:.2f} of ${self.budget:g} are spent" if self._is_spent else None

    async def run(self, tried: Tried, node: Node) -> None:
        """Do a job on a node, as often as it takes."""
        from tenacity import AsyncRetrying, retry_if_result, stop_after_attempt, wait_exponential, wait_random

        self.watch.started(tried.job)
        attempts = AsyncRetrying(
            retry=retry_if_result(lambda tally: self._may_pass(tried.job, tally)),
            stop=stop_after_attempt(self.retries + 1),
            wait=wait_exponential(_FIRST_WAIT, max=_LONGEST_WAIT) + wait_random(0, _FIRST_WAIT / 2),
            sleep=anyio.sleep,
            retry_error_callback=lambda _: None,  # what came of it is in the tallies
        )
        await attempts(self._attempt, tried, node)

    async def end(self, tried: Tried) -> JobResult:
        """The result of a job that has ended."""
        summary, changes = tried.ends[-1] if tried.ends else (None, None)
        branch: str | None = None
        failed: ContainerRunnerError | None = None
        try:
            branch = await make_branch(tried.job, changes)
        except ContainerRunnerError as error:
            failed = error
        return JobResult.of(
            tried.job,
            tried.tallies,
            started=tried.started,
            duration=time.monotonic() - tried.began,
            summary=summary,
            branch=branch,
            failed=failed,
            node=tried.nodes[-1].node.name,
        )

    async def _attempt(self, tried: Tried, node: Node) -> Tally:
        job = tried.job
        tried.tallies.append(tally := Tally())
        is_watched = False
        try:
            messages = node.run(
                job,
                on_start=partial(self.watch.at_work, job),
                on_end=lambda summary, changes: tried.ends.append((summary, changes)),
            )
            async with aclosing(messages):
                async for some in messages:
                    for message in some:
                        tally.add(message)
                        is_watched = True
                        self.watch.said(job, message)
                        is_watched = False
        except ContainerRunnerError as error:  # its node is lost, or its workspace has gone meanwhile
            tally.add(ErrorMessage.from_error(error))
        except Exception as error:  # ours, or one that its agent has brought about: the other jobs go on
            if is_watched:
                raise  # it is the caller's, and ends the batch
            _log.exception("job %s has failed", job.id)
            failed = AgentError(f"The job has failed: {error!r}.", next_step="Report it: the log has more.")
            tally.add(ErrorMessage.from_error(failed))
        self.spent += tally.cost_usd or 0
        return tally

    def _may_pass(self, job: Job, tally: Tally) -> bool:
        if tally.error is None or self._is_spent or (job.options.session_id and tally.session_id):
            return False  # a session's id can be given once
        is_busy = tally.result is not None and tally.result.api_error_status in _TRANSIENT_STATUS
        return is_busy or issubclass(error_class(tally.error.kind), _TRANSIENT)

    @property
    def _is_spent(self) -> bool:
        return self.budget is not None and self.spent >= self.budget
