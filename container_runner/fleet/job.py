"""One request of a batch, and how it ended."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeVar

import attrs
import orjson

from container_runner.config.converter import structured, unstructured
from container_runner.config.laws import is_line, law
from container_runner.errors import (
    CleanupError,
    ConfigError,
    ContainerGoneError,
    ContainerRunnerError,
    EngineError,
    ExecLostError,
    StateError,
    WorkspaceBusyError,
    error_class,
)
from container_runner.options import ExecuteOptions
from container_runner.records.summary import RunSummary
from container_runner.records.tally import Tally
from container_runner.runner import ContainerRunner
from container_runner.stream.messages import ErrorMessage

_TOLD_APART_BY: Final = ("prompt", "agent", "resume", "fork", "session_id", "append_system_prompt", "json_schema")
"""The fields of a request that make it another job. How long it may take, and what is shown of it, do not."""

_TOLD_APART_IF_SET: Final = ("from_run", "setup", "check")
"""More of them, which were not there when some files of results were written."""

STDERR_TAIL: Final = 4096
"""Characters of stderr that a result keeps."""

_NOT_RUN: Final = (ConfigError, EngineError, StateError, WorkspaceBusyError)
_RUN: Final = (CleanupError, ContainerGoneError, ExecLostError)
"""Failures before an agent starts, but for these, in which it did."""

_valid_id = law("one line of 1 to 200 characters", lambda value: is_line(value) and len(value) <= 200)


@attrs.frozen(kw_only=True)
class Job:
    """One request of a batch.

    Attributes:
        id: Its name in the batch: one line of at most 200 characters, used once.
        runner: What runs it. Jobs with the same box share one.
        options: What to do.
        branch: The branch that its work becomes when it has ended, succeeded or not. Its workspace must be carried
            then. None: no branch.
        source: Where it was asked for, as "jobs.jsonl:3". An error that refuses it names that, or else the id.

    Raises:
        ConfigError: the id is refused.
    """

    id: str = attrs.field(validator=_valid_id)
    runner: ContainerRunner = attrs.field(repr=False, eq=False)
    options: ExecuteOptions
    branch: str | None = None
    source: str | None = attrs.field(default=None, eq=False)

    @property
    def digest(self) -> str:
        """32 hexadecimal digits that change when the job asks for something else."""
        asked = attrs.asdict(self.options)
        if workspace := self.options.agent.workspace:
            asked["agent"]["workspace"] = str(Path(workspace).absolute())
        names = (*_TOLD_APART_BY, *(name for name in _TOLD_APART_IF_SET if asked[name] is not None))
        told = orjson.dumps({name: asked[name] for name in names}, option=orjson.OPT_SORT_KEYS)
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
        turns: How often the model answered, in all attempts; None if the agent does not say, as for the following.
        tokens: All tokens of all attempts, those read from a cache too.
        cost_usd: US dollars of all attempts, by the agent's own reckoning.
        started: When it was first started, in ISO 8601, UTC.
        duration: Seconds from its start to the end of its clean-up.
        result: The agent's last words; of an agent that gives no result message, the end of its output.
        structured_output: The answer in the shape that was asked for; None if none was.
        denied: What the gateway has refused in all attempts, as "host:port", each once.
        attempts: How often it was started.
        stderr: The end of what the agent, the setup, the check or the engine said on stderr, if the job failed.
        run: The id of its last run; "" if none was started.
        branch: The branch that has its work; None if none was asked for, or there is no work.
        files: How many files differ from what they were, in a carried workspace.
        findings: What is to be looked at in a carried workspace before it is used, or was left in the box: kinds and
            paths, the first 30.
        node: The node of the fleet that it ran on at last; "" is this machine.
    """

    id: str
    digest: str
    outcome: Literal["succeeded", "failed"]
    kind: str | None
    message: str | None
    exit_code: int | None
    session_id: str | None
    turns: int | None
    tokens: int | None
    cost_usd: float | None
    started: str
    duration: float
    result: str
    structured_output: Any = None
    denied: tuple[str, ...] = ()
    attempts: int = 1
    stderr: str = ""
    run: str = ""
    branch: str | None = None
    files: int = 0
    findings: tuple[tuple[str, str], ...] = ()
    node: str = ""

    @property
    def succeeded(self) -> bool:
        return self.outcome == "succeeded"

    @property
    def was_run(self) -> bool:
        """Whether an agent was at work. Otherwise the job is not finished, and another batch runs it."""
        failure = error_class(self.kind or "")
        return not issubclass(failure, _NOT_RUN) or issubclass(failure, _RUN)

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
    def of(
        cls,
        job: Job,
        tallies: Sequence[Tally],
        *,
        started: dt.datetime,
        duration: float,
        summary: RunSummary | None = None,
        branch: str | None = None,
        failed: ContainerRunnerError | None = None,
        node: str = "",
    ) -> Self:
        """What the attempts at a job amount to. How the last one ended counts, and then what *failed* after it."""
        tally, work = tallies[-1], summary and summary.changes
        error = tally.error or (None if failed is None else ErrorMessage.from_error(failed))
        return cls(
            id=job.id,
            digest=job.digest,
            outcome="succeeded" if error is None else "failed",
            kind=None if error is None else error.kind,
            message=None if error is None else error.message,
            exit_code=0 if error is None else error.exit_code,
            session_id=tally.session_id,
            turns=_sum(each.turns for each in tallies),
            tokens=_sum(each.tokens for each in tallies),
            cost_usd=_sum(each.cost_usd for each in tallies),
            started=started.isoformat(timespec="milliseconds"),
            duration=round(duration, 3),
            result=tally.text,
            structured_output=tally.result.structured_output if tally.result else None,
            denied=tuple(dict.fromkeys(name for each in tallies for name in each.denied)),
            attempts=len(tallies),
            stderr="" if error is None else error.stderr[-STDERR_TAIL:],
            run=summary.run_id if summary else "",
            branch=branch,
            files=work.files if work else 0,
            findings=work.findings if work else (),
            node=node,
        )


N = TypeVar("N", int, float)


def _sum(told: Iterable[N | None]) -> N | None:
    """The sum of what is known; None if nothing is."""
    known = [each for each in told if each is not None]
    return sum(known[1:], known[0]) if known else None
