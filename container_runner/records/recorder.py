"""Writes the record of one run, as its messages come.

Nothing here may fail a run. Where a record can not be written, because the disk is full or the folder belongs to
somebody else, a warning is logged, the run goes on, and the summary, if it still can be written, says so.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Self

import attrs
import orjson

from container_runner.box.plan import Plan
from container_runner.config.converter import shown_time
from container_runner.config.limits import RecordLimits
from container_runner.errors import ContainerRunnerError, SessionNotFoundError
from container_runner.folders import open_folder
from container_runner.gateway.scrubber import Scrubber
from container_runner.options import ExecuteOptions
from container_runner.records.records import FOLDER, RESERVE, RunRecord, clean_after, clean_once, lock, stamp
from container_runner.records.summary import Outcome, RunSummary, Work, shortened
from container_runner.records.tally import with_turns
from container_runner.records.tracing import RunTrace
from container_runner.stream.lines import OversizedLine
from container_runner.stream.messages import AgentMessage, ErrorMessage, Message, ResultMessage
from container_runner.workspace.changes import Changes

_log = logging.getLogger(__name__)

_SESSION_WITHIN = 100
"""Messages within which the session's id is looked for."""


class Recorder:
    """Writes one run's record, traces it, and logs its beginning and end. Make one with `Recorder.start`."""

    def __init__(
        self, plan: Plan, options: ExecuteOptions, limits: RecordLimits | None, as_read: bool, plain: Collection[str]
    ) -> None:
        self._plan = plan
        self._as_read = as_read
        self._limits = limits
        self.scrubber = Scrubber(plan.hidden, plain)
        """Takes out of texts what is secret in this run."""
        self._started = dt.datetime.now(dt.UTC)
        self._clock = time.monotonic()
        self._name = f"{stamp(self._started)}-{plan.run_id}"
        self._fd: int | None = None
        self._size = 0
        self._head_of: tuple[int, str] | None = None
        self._last_head = b""
        self._lost: str | None = None
        self._seen = 0
        self._session: str | None = None
        self._model: str | None = options.agent.model
        self._result: ResultMessage | None = None
        self._summary = RunSummary(
            run_id=plan.run_id,
            agent=plan.agent,
            outcome="running",
            started=self._started,
            prompt=shortened(self.scrubber.text(options.prompt)),
            workspace=None if options.agent.workspace is None else str(Path(options.agent.workspace).absolute()),
            image=plan.image,
            engine=plan.run[0],
            endpoint=plan.endpoint or None,
            container=plan.container,
            model=options.agent.model,
            session_id=options.session_id or (None if options.fork else options.resume),
        )
        self.trace = RunTrace(plan)
        """The spans of the run."""
        self.kept: RunRecord | None = None
        """What there is to read of the run, once it has ended and its summary was written."""

    @classmethod
    def start(
        cls,
        plan: Plan,
        options: ExecuteOptions,
        limits: RecordLimits | None,
        *,
        as_read: bool = True,
        plain: Collection[str] = (),
    ) -> Self:
        """Begin the record of a run.

        Args:
            limits: None writes nothing; the trace and the log are there all the same.
            as_read: whether a message of the agent is its line, decoded and no more; then the line is written as
                it is. A runtime that makes other messages of its lines has those written.
            plain: the variables of `plan.values` that are configured openly, see `Scrubber`.
        """
        self = cls(plan, options, limits, as_read, plain)
        _log.info(
            "run %s of agent %s started", plan.run_id, plan.agent,
            extra={**self._ids, "image": plan.image, "engine": plan.run[0]},
        )  # fmt: skip
        if limits is not None:
            try:
                clean_once(plan.state_dir, limits)
                self._open()
            except OSError as error:
                self._give_up(error.strerror or "it can not be opened")
            self.note("start", **{**self._summary.to_dict(), "prompt": options.prompt})
        return self

    def record(self, lines: Sequence[bytes | OversizedLine], messages: Sequence[Message]) -> None:
        """Write messages as they come, and the lines that they were made of, one for each."""
        kinds = {type(message) for message in messages}
        if ResultMessage in kinds:
            results = [message for message in messages if isinstance(message, ResultMessage)]
            for result in results if self._plan.feed else results[-1:]:
                self._result = with_turns(self._result, result) if self._plan.feed else result
        if self._session is None and self._seen < _SESSION_WITHIN:
            self._look_for_session(messages)
        if self._fd is None:
            return
        head = self._head("agent")
        if self._as_read and all(issubclass(kind, AgentMessage) for kind in kinds):
            batch = b"\n".join(lines)  # type: ignore[arg-type]  # an OversizedLine is no AgentMessage
            if _is_utf8(batch) and not self.scrubber.may_hold(batch):
                between = b"}\n" + head
                self._write(b"".join((head, between.join(lines), b"}\n")))  # type: ignore[arg-type]  # as above
                return
        written: list[bytes] = []
        for line, message in zip(lines, messages, strict=True):
            written += (head, self._as_it_is(line, message) or self.scrubber.dump(message.to_dict()), b"}\n")
        self._write(b"".join(written))

    def _as_it_is(self, line: bytes | OversizedLine, message: Message) -> bytes | None:
        """The line, if it may be written as it is."""
        if not self._as_read or isinstance(line, OversizedLine) or not isinstance(message, AgentMessage):
            return None
        return line if _is_utf8(line) and not self.scrubber.may_hold(line) else None

    def note(self, type: str, /, **facts: Any) -> None:  # noqa: A002  it is what the message says
        """Write a message of our own."""
        if self._fd is not None:
            said = self.scrubber.dump({"type": type, **facts})
            self._write(b"".join((self._head("runner"), said, b"}\n")))

    def prompted(self, prompt: str) -> None:
        """A live agent was told this."""
        if not self._summary.prompt:
            self._summary = attrs.evolve(self._summary, prompt=shortened(self.scrubber.text(prompt)))
        self.note("prompt", prompt=prompt)

    def in_container(self, name: str, endpoint: str = "") -> None:
        """The agent is started in the container of this name, by the engine at this address."""
        self._summary = attrs.evolve(self._summary, container=name, endpoint=endpoint or None)
        self.trace.begin_exec()
        _log.debug("run %s is in container %s", self._plan.run_id, name, extra={**self._ids, "container": name})

    def cut(self) -> None:
        """What the agent said while it was stopped was too much."""
        self._give_up("what the agent said while it was being stopped was too much")

    def stopped(self, rung: str | None) -> None:
        """The agent was stopped, by this rung of the ladder; None if it left by itself meanwhile."""
        how = "stopped by itself" if rung is None else f"was stopped by {rung}"
        _log.info("run %s %s", self._plan.run_id, how, extra={**self._ids, "rung": rung})

    def finish(
        self, error: BaseException | None, *, stop: str | None = None, changes: Changes | None = None
    ) -> RunSummary:
        """End the record.

        Args:
            error: what ended the run; None if nothing went wrong.
            stop: the rung of the stop ladder that was needed.
            changes: what came out of a carried workspace.
        """
        summary = attrs.evolve(self._ended(error), changes=None if changes is None else self._shown(Work.of(changes)))
        if isinstance(error, ContainerRunnerError):
            self.note("error", **ErrorMessage.from_error(error, stop=stop).to_dict())
        summary = attrs.evolve(summary, complete=self._lost is None)
        if self._fd is not None:
            try:
                self._write_summary(summary)
                self.kept = RunRecord(agent=summary.agent, name=self._name, summary=summary)
            except OSError as problem:
                self._give_up(problem.strerror or "the summary can not be written")
                summary = attrs.evolve(summary, complete=False)
            finally:
                os.close(self._fd)  # and with it the lock
                self._fd = None
            if self._limits is not None:
                clean_after(self._plan.state_dir, self._limits, self._size)
        _log.info(
            "run %s of agent %s ended: %s", summary.run_id, summary.agent, summary.kind or summary.outcome,
            extra={name: getattr(summary, name) for name in (
                "run_id", "agent", "outcome", "kind", "exit_code", "duration", "turns", "cost_usd", "session_id",
            )},
        )  # fmt: skip
        self.trace.end(summary)
        return summary

    @property
    def _ids(self) -> dict[str, str]:
        return {"run_id": self._plan.run_id, "agent": self._plan.agent}

    def _ended(self, error: BaseException | None) -> RunSummary:
        result = self._result
        outcome: Outcome = "succeeded" if error is None else "failed"
        kind, message, exit_code = None, None, 0 if error is None else None
        if isinstance(error, ContainerRunnerError):
            kind, message, exit_code = error.kind, self.scrubber.text(error.message), error.exit_code
        elif isinstance(error, Exception):
            kind, message = "error", type(error).__name__
        elif error is not None:  # GeneratorExit, a cancellation, KeyboardInterrupt: somebody wanted it to end
            outcome = "stopped"
        if result is not None and result.session_id:
            self._session = shortened(self.scrubber.text(result.session_id))
        usage = None if result is None or result.usage is None or not result.usage.total else result.usage
        return attrs.evolve(
            self._summary,
            outcome=outcome,
            kind=kind,
            message=message,
            exit_code=exit_code,
            ended=dt.datetime.now(dt.UTC),
            duration=round(time.monotonic() - self._clock, 3),
            turns=None if result is None else result.num_turns,
            tokens=usage,
            cost_usd=None if result is None else result.total_cost_usd,
            # One that is not there to go on with is none, though it was named.
            session_id=None if kind == SessionNotFoundError.kind else self._session or self._summary.session_id,
            model=self._model,
        )

    def _shown(self, work: Work) -> Work:
        """*work* without secrets, and short enough for a summary."""
        told = ((kind, shortened(self.scrubber.text(path))) for kind, path in work.findings)
        return attrs.evolve(work, findings=tuple(told))

    def _look_for_session(self, messages: Sequence[Message]) -> None:
        for message in messages[: _SESSION_WITHIN - self._seen]:
            if isinstance(message, AgentMessage) and message.session_id:
                self._session = shortened(self.scrubber.text(message.session_id))
                model = message.raw.get("model")
                self._model = shortened(self.scrubber.text(model)) if isinstance(model, str) else self._model
                break
        self._seen += len(messages)

    def _head(self, source: Literal["agent", "runner"]) -> bytes:
        """The envelope up to the message. Batches come close upon each other, so it is kept for a millisecond."""
        now = time.time_ns() // 1_000_000
        if self._head_of != (now, source):
            self._head_of = now, source
            moment = shown_time(dt.datetime.fromtimestamp(now / 1000, dt.UTC))
            # The names are made of characters that JSON takes as they are.
            names = f'"run":"{self._plan.run_id}","agent":"{self._plan.agent}","from":"{source}"'
            self._last_head = f'{{"time":"{moment}",{names},"message":'.encode()
        return self._last_head

    def _open(self) -> None:
        with open_folder(self._plan.state_dir, FOLDER, self._plan.agent, create=True) as folder:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            self._fd = os.open(f"{self._name}.jsonl", flags, 0o600, dir_fd=folder)
            lock(self._fd)
            reserve = os.open(f".{self._name}.json", flags, 0o600, dir_fd=folder)
            if hasattr(os, "posix_fallocate"):  # which macOS lacks
                with suppress(OSError):
                    os.posix_fallocate(reserve, 0, RESERVE)
            os.close(reserve)

    def _write(self, data: bytes) -> None:
        if self._fd is None or self._lost is not None or self._limits is None:
            return
        limit = min(self._limits.max_run, max(0, self._limits.max_total - RESERVE))  # its summary counts too
        if self._size + len(data) > limit:
            self._give_up(f"it has reached its limit of {limit:.0f} bytes")
            return
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._fd, self._size)  # what was written of the batch ends in the middle of a line
            self._give_up(error.strerror or "it can not be written")
        else:
            self._size += len(data)

    def _give_up(self, reason: str) -> None:
        self._lost = reason
        _log.warning("the record of run %s is incomplete: %s", self._plan.run_id, reason, extra=self._ids)

    def _write_summary(self, summary: RunSummary) -> None:
        data = orjson.dumps(summary.to_dict(), option=orjson.OPT_INDENT_2) + b"\n"
        with open_folder(self._plan.state_dir, FOLDER, self._plan.agent) as folder:
            fd = os.open(
                f".{self._name}.json", os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder
            )
            try:
                os.pwrite(fd, data, 0)
                os.ftruncate(fd, len(data))
            finally:
                os.close(fd)
            os.rename(f".{self._name}.json", f"{self._name}.json", src_dir_fd=folder, dst_dir_fd=folder)


def _is_utf8(data: bytes) -> bool:
    """Whether lines that were read leniently are text to everybody."""
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
