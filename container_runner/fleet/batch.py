"""Many requests, some at a time, with results that outlive a crash.

    results = ResultFile(Path("results.jsonl"))
    with results:
        done = await run_batch(jobs, at_once=4, results=results)

A job's result is written when the job ends, as one line of JSON. Run the same batch again, and what is in the file
is not done again, unless its agent never started.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Final, Self

import anyio
import attrs

from container_runner.errors import (
    ConfigError,
    ContainerRunnerError,
    EngineArgumentError,
    EngineBusyError,
    EngineNotFoundError,
    EnginePermissionError,
    EngineTimeoutError,
    EngineUnreachableError,
    ExecLostError,
    ImageNotFoundError,
    ImageUnsuitableError,
    NetworkNotFoundError,
    PullFailedError,
    StateError,
    error_class,
)
from container_runner.fleet.job import Job, JobResult
from container_runner.records.tally import Tally
from container_runner.stream.messages import ErrorMessage, Message

_ITS_CONTENT: Final = "a file with results of a batch, or none"

_ENDS_ALL: Final = (EngineNotFoundError, EnginePermissionError, EngineUnreachableError, StateError)
_ENDS_ITS_BOX: Final = (
    EngineArgumentError,
    ImageNotFoundError,
    ImageUnsuitableError,
    NetworkNotFoundError,
    PullFailedError,
)
"""Failures that every other job would meet too, and that every job with the same box would meet."""

_TRANSIENT: Final = (EngineBusyError, EngineTimeoutError, EngineUnreachableError, ExecLostError)
_TRANSIENT_STATUS: Final = (429, 500, 502, 503, 504, 529)
"""Failures that another try may not meet; of the API's, by their HTTP status."""

_FIRST_WAIT: Final = 2.0
_LONGEST_WAIT: Final = 120.0
"""Seconds before the first and before a late retry; each wait is twice the one before."""


class ResultFile:
    """A file of results, one line of JSON a job, that is only ever added to.

    While it is open nobody else can open it. A last line that a crash cut off is taken away. If a job was run again,
    its last line counts. A new file that no result came into is taken away.

    Raises:
        StateError: the file can not be opened, or another batch has it open.
        ConfigError: the file holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1
        self._is_new = False
        self._found: dict[str, JobResult] = {}
        self.cost_usd = 0.0
        """What all its lines cost together, in US dollars."""

    def __enter__(self) -> Self:
        self._is_new = not os.path.lexists(self.path)
        try:
            # O_NOFOLLOW: it may lie where an agent can write, and a symlink would lead our lines elsewhere.
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            self._fd = os.open(self.path, flags, 0o600)
        except OSError as error:
            raise self._state_error(f"can not be opened: {error.strerror}") from None
        try:
            self._read()
        except BaseException:
            os.close(self._fd)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._is_new and not os.fstat(self._fd).st_size:
                with suppress(OSError):  # it has gone already
                    if os.path.samestat(os.fstat(self._fd), os.lstat(self.path)):
                        self.path.unlink()
        finally:
            os.close(self._fd)

    def add(self, result: JobResult) -> None:
        """Write one more result, and see it on the disk.

        Raises:
            StateError: it can not be written.
        """
        line = memoryview(result.to_json() + b"\n")
        try:
            while line:
                line = line[os.write(self._fd, line) :]
            os.fsync(self._fd)
        except OSError as error:
            raise self._state_error(f"can not be written: {error.strerror}") from None
        self._take(result)

    def result_of(self, job: Job) -> JobResult | None:
        """The result of just this job: its id and its digest are in the file. None if there is none."""
        found = self._found.get(job.id)
        return found if found is not None and found.digest == job.digest else None

    def _take(self, result: JobResult) -> None:
        self._found[result.id] = result
        self.cost_usd += result.cost_usd or 0

    def _read(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise self._state_error("is in use by another batch") from None
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            raise self._state_error("is no file")
        with open(self._fd, "rb", closefd=False) as file:
            *lines, last = file.read().split(b"\n")
        for number, line in enumerate(lines, 1):
            try:
                result = JobResult.parse(line)
            except ValueError:
                raise ConfigError("results", f"{self.path}:{number}", _ITS_CONTENT) from None
            self._take(result)
        if last:
            if not last.startswith(b'{"id":') and not b'{"id":'.startswith(last):
                raise ConfigError("results", str(self.path), _ITS_CONTENT)
            os.ftruncate(self._fd, os.fstat(self._fd).st_size - len(last))

    def _state_error(self, what: str) -> StateError:
        return StateError(f"The results file {self.path} {what}.", next_step="Name another one with --results.")


def _nothing(*_: object) -> None:
    pass


@attrs.frozen(kw_only=True)
class Watch:
    """What is called while a batch runs. It must not raise, and not take long."""

    started: Callable[[Job], object] = _nothing
    said: Callable[[Job, Message], object] = _nothing
    """Each message of each job."""

    ended: Callable[[Job, JobResult], object] = _nothing
    """After the result was written."""

    halted: Callable[[str], object] = _nothing
    """Once, if jobs are left that are not started: why, in a sentence."""


async def run_batch(
    jobs: Iterable[Job],
    *,
    at_once: int = 2,
    results: ResultFile | None = None,
    retry_failed: bool = False,
    retries: int = 0,
    total_budget_usd: float | None = None,
    watch: Watch | None = None,
) -> list[JobResult]:
    """Run jobs, *at_once* at a time. One that fails does not stop the others.

    No more are started once a failure has come that they would all meet: the engine is not there, or, for the jobs
    with the same box, its image is not. When it is cancelled, all agents are stopped and their containers removed;
    jobs that had not ended have no result.

    Args:
        results: where each result is written as its job ends; jobs that it has are not run again, but for those whose
            agent never started.
        retry_failed: run those again that it has as failed.
        retries: how often a job is started again, from its beginning, after a failure that may pass: an engine that is
            busy, not there or lost hold of the agent, or an API that has too much to do. Waits 2 seconds before the
            first time, then twice as long each time, up to 2 minutes.
        total_budget_usd: US dollars for all jobs together, what *results* already has counts too. When they are spent
            no more jobs are started; those at work go on, see `ExecuteOptions.max_budget_usd`.
        watch: is told what happens.

    Returns:
        The results in the order of the jobs, those from the file too. A job that was not started has none.

    Raises:
        ConfigError: two jobs have one id, or a job can not be carried out; nothing has been started.
        EngineError: there is no engine, or it does not answer.
        StateError: a result can not be written. The other agents are stopped.
    """
    jobs, watch = list(jobs), watch or Watch()
    if not 1 <= at_once <= 1000:
        raise ConfigError("jobs", at_once, "a number of jobs at a time from 1 to 1000")
    if not 0 <= retries <= 100:
        raise ConfigError("retries", retries, "a number from 0 to 100")
    if total_budget_usd is not None and not 0 < total_budget_usd < float("inf"):
        raise ConfigError("total_budget_usd", total_budget_usd, "a number of US dollars above 0")
    done = finished(jobs, results, retry_failed=retry_failed)
    todo = [job for job in jobs if job.id not in done]
    for job in todo:
        try:
            job.runner.plan(job.options)
        except ConfigError as error:
            raise error.with_source(job.source or f"job {job.id}") from None
    for runner in {id(job.runner): job.runner for job in todo}.values():
        await runner.manager()  # once for all: an engine that does not answer fails them all
    failure: ContainerRunnerError | None = None
    queue = iter(todo)
    course = _Course(retries, total_budget_usd, watch, spent=0.0 if results is None else results.cost_usd)

    async def work() -> None:
        nonlocal failure
        for job in queue:
            if course.hinders(job):
                continue
            result = await course.run(job)
            if results is not None:
                try:
                    results.add(result)
                except StateError as error:  # out of the task group, which would wrap it
                    failure = error
                    tasks.cancel_scope.cancel()
                    return
            done[job.id] = result
            watch.ended(job, result)

    async with anyio.create_task_group() as tasks:
        for _ in range(min(at_once, len(todo))):
            tasks.start_soon(work)
    if failure is not None:
        raise failure
    return [done[job.id] for job in jobs if job.id in done]


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
    """How a batch goes: what it has cost, and what the jobs to come would fail of."""

    retries: int
    budget: float | None
    watch: Watch
    spent: float
    _met: dict[int | None, str] = attrs.field(factory=dict)
    """The failures that end the jobs of a runner, by its id(), or all jobs, by None."""

    _told: set[str] = attrs.field(factory=set)

    def hinders(self, job: Job) -> bool:
        """Whether the job should not be started. Why is told once."""
        reason = self._met.get(None) or self._met.get(id(job.runner))
        if reason is None and self._is_spent:
            reason = f"${self.spent:.2f} of ${self.budget:g} are spent"
        if reason is not None and reason not in self._told:
            self._told.add(reason)
            self.watch.halted(f"{reason.rstrip('.')}: no more jobs are started.")
        return reason is not None

    async def run(self, job: Job) -> JobResult:
        """Do a job, as often as it takes."""
        from tenacity import AsyncRetrying, retry_if_result, stop_after_attempt, wait_exponential, wait_random

        self.watch.started(job)
        started, began = dt.datetime.now(dt.UTC), time.monotonic()
        tallies: list[Tally] = []
        attempts = AsyncRetrying(
            retry=retry_if_result(lambda tally: self._may_pass(job, tally)),
            stop=stop_after_attempt(self.retries + 1),
            wait=wait_exponential(_FIRST_WAIT, max=_LONGEST_WAIT) + wait_random(0, _FIRST_WAIT / 2),
            sleep=anyio.sleep,
            retry_error_callback=lambda _: None,  # what came of it is in the tallies
        )
        await attempts(self._attempt, job, tallies)
        error = tallies[-1].error
        if error is not None:
            kind = error_class(error.kind)
            if issubclass(kind, _ENDS_ALL):
                self._met[None] = error.message
            elif issubclass(kind, _ENDS_ITS_BOX):
                self._met[id(job.runner)] = error.message
        return JobResult.of(job, tallies, started=started, duration=time.monotonic() - began)

    async def _attempt(self, job: Job, tallies: list[Tally]) -> Tally:
        tallies.append(tally := Tally())
        try:
            async with aclosing(job.runner.execute(job.options)) as messages:
                async for message in messages:
                    tally.add(message)
                    self.watch.said(job, message)
        except ContainerRunnerError as error:  # its workspace has gone meanwhile
            tally.add(ErrorMessage.from_error(error))
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
