"""Many requests, some at a time, with results that outlive a crash.

    results = ResultFile(Path("results.jsonl"))
    with results:
        done = await run_batch(jobs, at_once=4, results=results)

A job's result is written when the job ends, as one line of JSON. Run the same batch again, and what is in the file
is not done again.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterable
from contextlib import aclosing
from pathlib import Path
from typing import Final, Literal, Self

import anyio
import attrs
import orjson

from container_runner.config.converter import structured, unstructured
from container_runner.config.laws import is_line, law
from container_runner.errors import ConfigError, ContainerRunnerError, StateError
from container_runner.options import ExecuteOptions
from container_runner.records.tally import Tally
from container_runner.runner import ContainerRunner
from container_runner.stream.messages import ErrorMessage, Message

_ITS_CONTENT: Final = "a file with results of a batch, or none"

_TOLD_APART_BY: Final = ("prompt", "agent", "resume", "fork", "session_id", "append_system_prompt")
"""The fields of a request that make it another job. How long it may take, and what is shown of it, do not."""

_valid_id = law("one line of 1 to 200 characters", lambda value: is_line(value) and len(value) <= 200)


@attrs.frozen(kw_only=True)
class Job:
    """One request of a batch.

    Attributes:
        id: Its name in the batch: one line of at most 200 characters, used once.
        runner: What runs it. Jobs with the same box share one.
        options: What to do.

    Raises:
        ConfigError: the id is refused.
    """

    id: str = attrs.field(validator=_valid_id)
    runner: ContainerRunner = attrs.field(repr=False, eq=False)
    options: ExecuteOptions

    @property
    def digest(self) -> str:
        """32 hexadecimal digits that change when the job asks for something else."""
        asked = attrs.asdict(self.options)
        if workspace := self.options.agent.workspace:
            asked["agent"]["workspace"] = str(Path(workspace).absolute())
        told = orjson.dumps({name: asked[name] for name in _TOLD_APART_BY}, option=orjson.OPT_SORT_KEYS)
        return hashlib.sha256(told).hexdigest()[:32]


@attrs.frozen(kw_only=True)
class JobResult:
    """How a job ended. One line of a results file has these fields.

    Attributes:
        id: The job's id.
        digest: The job's digest.
        kind: Why it failed, as `ErrorMessage.kind`; None if it succeeded.
        message: The same in a sentence.
        exit_code: The agent's exit code; None if it has none.
        session_id: The session to resume; None if the agent named none.
        turns: How often the model answered.
        tokens: All tokens, those read from a cache too.
        cost_usd: US dollars, by the agent's own reckoning; None if it does not say.
        started: When it was started, in ISO 8601, UTC.
        duration: Seconds from its start to the end of its clean-up.
        result: The agent's last words; of an agent that gives no result message, the end of its output.
    """

    id: str
    digest: str
    outcome: Literal["succeeded", "failed"]
    kind: str | None
    message: str | None
    exit_code: int | None
    session_id: str | None
    turns: int
    tokens: int
    cost_usd: float | None
    started: str
    duration: float
    result: str

    @property
    def succeeded(self) -> bool:
        return self.outcome == "succeeded"

    def to_json(self) -> bytes:
        """The result as one line of JSON, without a newline."""
        return orjson.dumps(unstructured(self))

    @classmethod
    def parse(cls, line: bytes) -> Self:
        """The result on a line of a results file. Fields that we do not know are left out.

        Raises:
            ValueError: it is none.
        """
        try:
            return structured(cls, orjson.loads(line), strangers=True)
        except ConfigError as error:
            message = f"it is no result: {error}"
            raise ValueError(message) from None

    @classmethod
    def of(cls, job: Job, tally: Tally, *, started: dt.datetime, duration: float) -> Self:
        """What a run that has ended amounts to."""
        error = tally.error
        return cls(
            id=job.id,
            digest=job.digest,
            outcome="succeeded" if error is None else "failed",
            kind=None if error is None else error.kind,
            message=None if error is None else error.message,
            exit_code=0 if error is None else error.exit_code,
            session_id=tally.session_id,
            turns=tally.turns,
            tokens=tally.tokens,
            cost_usd=tally.cost_usd,
            started=started.isoformat(timespec="milliseconds"),
            duration=round(duration, 3),
            result=tally.text,
        )


class ResultFile:
    """A file of results, one line of JSON a job, that is only ever added to.

    While it is open nobody else can open it. A last line that a crash cut off is taken away. If a job was run again,
    its last line counts.

    Raises:
        StateError: the file can not be opened, or another batch has it open.
        ConfigError: the file holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1
        self._found: dict[str, JobResult] = {}

    def __enter__(self) -> Self:
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
        self._found[result.id] = result

    def result_of(self, job: Job) -> JobResult | None:
        """The result of just this job: its id and its digest are in the file. None if there is none."""
        found = self._found.get(job.id)
        return found if found is not None and found.digest == job.digest else None

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
            self._found[result.id] = result
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


async def run_batch(
    jobs: Iterable[Job],
    *,
    at_once: int = 2,
    results: ResultFile | None = None,
    retry_failed: bool = False,
    watch: Watch | None = None,
) -> list[JobResult]:
    """Run jobs, *at_once* at a time. One that fails does not stop the others.

    When it is cancelled, all agents are stopped and their containers removed; jobs that had not ended have no result.

    Args:
        results: where each result is written as its job ends; jobs that it has are not run again.
        retry_failed: run those again that it has as failed.
        watch: is told what happens.

    Returns:
        The results in the order of the jobs, those from the file too.

    Raises:
        ConfigError: two jobs have one id, or a job can not be carried out; nothing has been started.
        EngineError: there is no engine, or it does not answer.
        StateError: a result can not be written. The other agents are stopped.
    """
    jobs, watch = list(jobs), watch or Watch()
    if not 1 <= at_once <= 1000:
        raise ConfigError("jobs", at_once, "a number of jobs at a time from 1 to 1000")
    done = finished(jobs, results, retry_failed=retry_failed)
    todo = [job for job in jobs if job.id not in done]
    for job in todo:
        try:
            job.runner.plan(job.options)
        except ConfigError as error:
            raise error.with_source(f"job {job.id}") from None
    for runner in {id(job.runner): job.runner for job in todo}.values():
        await runner.manager()  # once for all: an engine that does not answer fails them all
    failure: ContainerRunnerError | None = None
    queue = iter(todo)

    async def work() -> None:
        nonlocal failure
        for job in queue:
            result = await _run(job, watch)
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
    return [done[job.id] for job in jobs]


def finished(jobs: Iterable[Job], results: ResultFile | None, *, retry_failed: bool = False) -> dict[str, JobResult]:
    """The results of those jobs that `run_batch` would not run, by the jobs' ids.

    Raises:
        ConfigError: two jobs have the same id.
    """
    done: dict[str, JobResult] = {}
    seen: set[str] = set()
    for job in jobs:
        if job.id in seen:
            raise ConfigError("id", job.id, "an id that no other job has")
        seen.add(job.id)
        result = results and results.result_of(job)
        if result and (result.succeeded or not retry_failed):
            done[job.id] = result
    return done


async def _run(job: Job, watch: Watch) -> JobResult:
    watch.started(job)
    tally = Tally()
    started, began = dt.datetime.now(dt.UTC), time.monotonic()
    try:
        async with aclosing(job.runner.execute(job.options)) as messages:
            async for message in messages:
                tally.add(message)
                watch.said(job, message)
    except ContainerRunnerError as error:  # its workspace has gone meanwhile
        tally.add(ErrorMessage.from_error(error))
    return JobResult.of(job, tally, started=started, duration=time.monotonic() - began)
