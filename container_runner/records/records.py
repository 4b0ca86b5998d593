"""What a run leaves to read: a transcript, written as the messages come, and a summary, written at its end.

    <state_dir>/runs/<agent>/<time>-<run id>.jsonl    the transcript: a line a message, in an envelope of ours
    <state_dir>/runs/<agent>/<time>-<run id>.json     the summary

Only the caller can read them, and the agent never sees them: they are not in its sessions folder. A run that has a
transcript and no summary is either running, and then holds a lock on the transcript, or was cut off with us.

Nothing here may fail a run. Where a record can not be written, because the disk is full or the folder belongs to
somebody else, a warning is logged, the run goes on, and the summary, if it still can be written, says so.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import json
import logging
import os
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Literal, Self, get_args

import attrs
import orjson

from container_runner.box.plan import Plan
from container_runner.config.container import RecordLimits
from container_runner.config.values import DAY
from container_runner.errors import ConfigError, ContainerRunnerError
from container_runner.folders import open_file, open_folder, open_to_read
from container_runner.options import ExecuteOptions
from container_runner.records.tracing import RunTrace
from container_runner.stream.lines import OversizedLine
from container_runner.stream.messages import AgentMessage, ErrorMessage, Message, ResultMessage, Usage

_log = logging.getLogger(__name__)

Outcome = Literal["success", "failed", "stopped", "running", "interrupted"]
"""How a run ended: "stopped" by its consumer, "interrupted" with the process that ran it; or that it has not ended."""

FOLDER: Final = "runs"
CLEANING_TIME: Final = 0.25
"""Seconds that removing old records may take at the start of a process; the next one goes on."""

RESERVE: Final = 16 * 1024
"""Bytes of disk that are set aside for the summary when a run starts, so that a full disk does not take it."""

_SESSION_WITHIN = 100
"""Messages within which the session's id is looked for."""

_NAME = re.compile(r"(\d{8}T\d{6}\.\d{3}Z)-([0-9a-f]{32})")
_PROTOCOL_WORD = re.compile(r"[A-Za-z_]{1,40}")
_PRINTABLE_ESCAPE = re.compile(rb"\\u00[2-7]")
_SAFE_RUN = re.compile(r"[A-Za-z0-9_.-]+")


@attrs.frozen(kw_only=True)
class RunSummary:
    """What there is to know of a run without reading its transcript. What is not known is None."""

    run_id: str
    agent: str
    outcome: Outcome
    started: dt.datetime

    ended: dt.datetime | None = None
    duration: float | None = None
    """Seconds from the request to the end, the container's removal included."""

    kind: str | None = None
    """What went wrong, as `ErrorMessage.kind`; None if nothing did."""

    message: str | None = None
    """The same as a sentence."""

    exit_code: int | None = None
    """The agent's exit code."""

    turns: int | None = None
    tokens: Usage | None = None
    cost_usd: float | None = None
    """US dollars, by the agent's own reckoning."""

    session_id: str | None = None
    """The session to resume."""

    model: str | None = None
    prompt: str | None = None
    """The first 200 characters of the prompt."""

    workspace: str | None = None
    """The folder on the host."""

    image: str | None = None
    engine: str | None = None
    """The engine's program."""

    container: str | None = None
    """The container's name."""

    complete: bool = True
    """Whether the transcript holds every message."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        values = attrs.asdict(self)
        values["started"] = _shown_time(self.started)
        values["ended"] = None if self.ended is None else _shown_time(self.ended)
        if self.tokens is not None:
            values["tokens"] = {**self.tokens, "total": self.tokens.total}
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The summary that `to_dict` wrote.

        Raises:
            ValueError: it did not write this.
        """
        known = {name: values[name] for name in attrs.fields_dict(cls) if name in values}
        try:
            known["started"] = parse_time(known["started"])
            if known.get("ended") is not None:
                known["ended"] = parse_time(known["ended"])
            if known.get("tokens") is not None:
                known["tokens"] = Usage(**{name: int(known["tokens"].get(name, 0)) for name in Usage()})
            self = cls(**known)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(str(error)) from None
        _check(self)
        return self


@attrs.frozen(kw_only=True)
class RunRecord:
    """The record of one run, found in the state folder."""

    agent: str
    name: str
    """The files' name, without ".json" or ".jsonl"."""

    summary: RunSummary

    @property
    def run_id(self) -> str:
        return self.summary.run_id


class Recorder:
    """Writes one run's record, traces it, and logs its beginning and end. Make one with `Recorder.start`."""

    def __init__(
        self, plan: Plan, options: ExecuteOptions, limits: RecordLimits | None, as_read: bool, plain: Collection[str]
    ) -> None:
        self._plan = plan
        self._as_read = as_read
        self._limits = limits
        self._scrubber = Scrubber(plan.values, plain)
        self._started = _now()
        self._clock = time.monotonic()
        self._name = f"{_stamp(self._started)}-{plan.run_id}"
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
            prompt=_short(self._scrubber.text(options.prompt)),
            workspace=None if options.agent.workspace is None else str(Path(options.agent.workspace).absolute()),
            image=plan.image,
            engine=plan.run[0],
            container=plan.container,
            model=options.agent.model,
            session_id=options.session_id or (None if options.fork else options.resume),
        )
        self.trace = RunTrace(plan)
        """The spans of the run."""

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
            plain: the variables of `plan.values` that are configured openly, and so are no secrets by their kind. Only
                values of 8 characters and more are replaced in the record, where a secret's needs 4.
        """
        self = cls(plan, options, limits, as_read, plain)
        _log.info(
            "run %s of agent %s started", plan.run_id, plan.agent,
            extra={**self._ids, "image": plan.image, "engine": plan.run[0]},
        )  # fmt: skip
        if limits is not None:
            try:
                _clean_once(plan.state_dir, limits)
                self._open()
            except OSError as error:
                self._give_up(error.strerror or "it can not be opened")
            self.note("start", **{**self._summary.to_dict(), "prompt": options.prompt})
        return self

    def record(self, lines: Sequence[bytes | OversizedLine], messages: Sequence[Message]) -> None:
        """Write messages as they come, and the lines that they were made of, one for each."""
        kinds = {type(message) for message in messages}
        if ResultMessage in kinds:
            self._result = next(m for m in reversed(messages) if isinstance(m, ResultMessage))
        if self._session is None and self._seen < _SESSION_WITHIN:
            self._look_for_session(messages)
        if self._fd is None:
            return
        head = self._head("agent")
        if self._as_read and all(issubclass(kind, AgentMessage) for kind in kinds):
            batch = b"\n".join(lines)  # type: ignore[arg-type]  # an OversizedLine is no AgentMessage
            if _is_utf8(batch) and not self._scrubber.may_hold(batch):
                between = b"}\n" + head
                self._write(b"".join((head, between.join(lines), b"}\n")))  # type: ignore[arg-type]  # as above
                return
        written: list[bytes] = []
        for line, message in zip(lines, messages, strict=True):
            written += (head, self._as_it_is(line, message) or self._scrubber.dump(message.to_dict()), b"}\n")
        self._write(b"".join(written))

    def _as_it_is(self, line: bytes | OversizedLine, message: Message) -> bytes | None:
        """The line, if it may be written as it is."""
        if not self._as_read or isinstance(line, OversizedLine) or not isinstance(message, AgentMessage):
            return None
        return line if _is_utf8(line) and not self._scrubber.may_hold(line) else None

    def note(self, type: str, /, **facts: Any) -> None:  # noqa: A002  it is what the message says
        """Write a message of our own."""
        if self._fd is not None:
            said = self._scrubber.dump({"type": type, **facts})
            self._write(b"".join((self._head("runner"), said, b"}\n")))

    def in_container(self, name: str) -> None:
        """The agent is started in the container of this name."""
        self._summary = attrs.evolve(self._summary, container=name)
        self.trace.begin_exec()
        _log.debug("run %s is in container %s", self._plan.run_id, name, extra={**self._ids, "container": name})

    def cut(self) -> None:
        """What the agent said while it was stopped was too much."""
        self._give_up("what the agent said while it was being stopped was too much")

    def stopped(self, rung: str | None) -> None:
        """The agent was stopped, by this rung of the ladder."""
        _log.info("run %s was stopped by %s", self._plan.run_id, rung, extra={**self._ids, "rung": rung})

    def finish(self, error: BaseException | None, *, stop: str | None = None) -> RunSummary:
        """End the record.

        Args:
            error: what ended the run; None if nothing went wrong.
            stop: the rung of the stop ladder that was needed.
        """
        summary = self._ended(error)
        if isinstance(error, ContainerRunnerError):
            self.note("error", **ErrorMessage.from_error(error, stop=stop).to_dict())
        if self._fd is not None:
            summary = attrs.evolve(summary, complete=self._lost is None)
            try:
                self._write_summary(summary)
            except OSError as problem:
                self._give_up(problem.strerror or "the summary can not be written")
            finally:
                os.close(self._fd)  # and with it the lock
                self._fd = None
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
        outcome: Outcome = "success" if error is None else "failed"
        kind, message, exit_code = None, None, 0 if error is None else None
        if isinstance(error, ContainerRunnerError):
            kind, message, exit_code = error.kind, self._scrubber.text(error.message), error.exit_code
        elif isinstance(error, Exception):
            kind, message = "error", type(error).__name__
        elif error is not None:  # GeneratorExit, a cancellation, KeyboardInterrupt: somebody wanted it to end
            outcome = "stopped"
        if result is not None and result.session_id:
            self._session = _short(self._scrubber.text(result.session_id))
        usage = None if result is None or not result.usage.total else result.usage
        return attrs.evolve(
            self._summary,
            outcome=outcome,
            kind=kind,
            message=message,
            exit_code=exit_code,
            ended=_now(),
            duration=round(time.monotonic() - self._clock, 3),
            turns=None if result is None else result.num_turns,
            tokens=usage,
            cost_usd=None if result is None else result.total_cost_usd,
            session_id=self._session or self._summary.session_id,
            model=self._model,
        )

    def _look_for_session(self, messages: Sequence[Message]) -> None:
        for message in messages[: _SESSION_WITHIN - self._seen]:
            if isinstance(message, AgentMessage) and message.session_id:
                self._session = _short(self._scrubber.text(message.session_id))
                model = message.raw.get("model")
                self._model = _short(self._scrubber.text(model)) if isinstance(model, str) else self._model
                break
        self._seen += len(messages)

    def _head(self, source: Literal["agent", "runner"]) -> bytes:
        """The envelope up to the message. Batches come close upon each other, so it is kept for a millisecond."""
        now = time.time_ns() // 1_000_000
        if self._head_of != (now, source):
            self._head_of = now, source
            moment = _shown_time(dt.datetime.fromtimestamp(now / 1000, dt.UTC))
            # The names are made of characters that JSON takes as they are.
            names = f'"run":"{self._plan.run_id}","agent":"{self._plan.agent}","from":"{source}"'
            self._last_head = f'{{"time":"{moment}",{names},"message":'.encode()
        return self._last_head

    def _open(self) -> None:
        with open_folder(self._plan.state_dir, FOLDER, self._plan.agent, create=True) as folder:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            self._fd = os.open(f"{self._name}.jsonl", flags, 0o600, dir_fd=folder)
            _lock(self._fd)
            reserve = os.open(f".{self._name}.json", flags, 0o600, dir_fd=folder)
            if hasattr(os, "posix_fallocate"):  # which macOS lacks
                with suppress(OSError):
                    os.posix_fallocate(reserve, 0, RESERVE)
            os.close(reserve)

    def _write(self, data: bytes) -> None:
        if self._fd is None or self._lost is not None or self._limits is None:
            return
        if self._size + len(data) > self._limits.max_run:
            self._give_up(f"it has reached its limit of {self._limits.max_run} bytes")
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


class Scrubber:
    """Replaces the values of variables by their names, in whatever way JSON spells them.

    A value is found as it is; escaped, as JSON in JSON has it, once or twice; and, if it has several lines, in each of
    them that is long enough.

    Args:
        values: the variables.
        plain: those of them that are no secrets by their kind; their values need 8 characters, others 4.
    """

    def __init__(self, values: Mapping[str, str], plain: Collection[str] = ()) -> None:
        self._names: dict[str, str] = {}
        anchors: set[bytes] = set()
        for name, value in values.items():
            least = 8 if name in plain else 4
            parts = [value, *(line for line in value.splitlines() if len(line) >= 16 and line != value)]
            for part in parts:
                text = part.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
                if len(text) >= least:
                    anchors |= _anchors(text)
                    for form in _forms(text):
                        self._names.setdefault(form, f"[{name}]")
        self._anchors = tuple(anchors)
        forms = sorted(self._names, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, forms))) if forms else None

    def may_hold(self, data: bytes) -> bool:
        """Whether JSON could hold a value. False is certain."""
        if self._pattern is None:
            return False
        if any(anchor in data for anchor in self._anchors):
            return True
        # Nobody needs to escape a printable character, but one who does could spell any value with it. The first
        # test is the fastest that there is, and settles most batches.
        return b"\\" in data and rb"\u00" in data and _PRINTABLE_ESCAPE.search(data) is not None

    def text(self, text: str) -> str:
        """*text* without the values."""
        return text if self._pattern is None else self._pattern.sub(self._name, text)

    def dump(self, value: Any) -> bytes:
        """A value as JSON, without the values in its strings."""
        try:
            return orjson.dumps(self._walk(value) if self._pattern is not None else value)
        except (TypeError, ValueError, RecursionError):  # of a runtime's own making
            return orjson.dumps({"type": "output", "text": self.text(ascii(value))})

    def _name(self, match: re.Match[str]) -> str:
        return self._names[match[0]]

    def _walk(self, value: Any) -> Any:
        match value:
            case str():
                return self.text(value)
            case dict():
                return {self._key(key): self._walk_item(key, item) for key, item in value.items()}
            case list() | tuple():
                return [self._walk(item) for item in value]
            case int() | float() if not isinstance(value, bool):
                shown = repr(value)
                return self.text(shown) if len(shown) >= 8 and self.text(shown) != shown else value
            case _:
                return value

    def _key(self, key: Any) -> Any:
        # The protocol's own words stay what they are, even where a variable has such a value.
        return key if not isinstance(key, str) or _PROTOCOL_WORD.fullmatch(key) else self.text(key)

    def _walk_item(self, key: Any, item: Any) -> Any:
        if key in ("type", "subtype", "role") and isinstance(item, str) and _PROTOCOL_WORD.fullmatch(item):
            return item
        return self._walk(item)


class Records:
    """The records of a state folder, for reading.

    Args:
        state_dir: the state folder. It need not exist.
    """

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir

    def agents(self) -> list[str]:
        """The names of the agents that have records."""
        try:
            with open_folder(self._state_dir, FOLDER) as folder, os.scandir(folder) as entries:
                return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        except OSError:
            return []

    def runs(self, agent: str | None = None) -> list[RunRecord]:
        """The runs of an agent, or of all, oldest first."""
        found = [self._run(name, stem) for name in ([agent] if agent else self.agents()) for stem in self._stems(name)]
        return sorted((run for run in found if run is not None), key=lambda run: (run.summary.started, run.name))

    def find(self, run_id: str, agent: str | None = None) -> RunRecord:
        """The run whose id begins with *run_id*.

        Raises:
            ConfigError: there is none, or more than one.
        """
        found = [run for run in self.runs(agent) if run_id and run.run_id.startswith(run_id)]
        if len(found) != 1:
            allowed = (
                "the id of a run, or as many of its first digits as tell it from the others; `logs --list` has them"
            )
            raise ConfigError("run", run_id, f"{allowed} ({len(found)} begin with this)" if found else allowed)
        return found[0]

    @contextmanager
    def open(self, run: RunRecord) -> Iterator[int]:
        """The transcript, as a descriptor to read from.

        Raises:
            StateError: it is not there any more, or not to be read by us.
        """
        place = (FOLDER, run.agent, f"{run.name}.jsonl")
        with open_to_read(self._state_dir, *place, what=f"The transcript of run {run.run_id}") as fd:
            yield fd

    def is_running(self, run: RunRecord) -> bool:
        """Whether somebody still writes the transcript."""
        try:
            with open_folder(self._state_dir, FOLDER, run.agent) as folder:
                return _is_locked(folder, f"{run.name}.jsonl")
        except OSError:
            return False

    def _stems(self, agent: str) -> list[str]:
        try:
            with open_folder(self._state_dir, FOLDER, agent) as folder, os.scandir(folder) as entries:
                names = {os.path.splitext(entry.name) for entry in entries}  # noqa: PTH122  no path: a name
        except OSError:
            return []
        return sorted({stem for stem, suffix in names if suffix in (".json", ".jsonl") and _NAME.fullmatch(stem)})

    def _run(self, agent: str, stem: str) -> RunRecord | None:
        try:
            with open_folder(self._state_dir, FOLDER, agent) as folder:
                summary = _read_summary(folder, stem)
                if summary is None:
                    summary = _unfinished(folder, agent, stem)
        except OSError:  # it was removed in between, or is not ours to read
            return None
        return RunRecord(agent=agent, name=stem, summary=summary)


def clean(state_dir: Path, limits: RecordLimits, *, seconds: float = CLEANING_TIME) -> int:
    """Remove the records that are too old or too much, oldest first, and none of a run that goes on.

    Args:
        seconds: how long it may take. What is left then stays for the next time.

    Returns:
        How many runs were removed.
    """
    until = time.monotonic() + seconds
    removed = 0
    kept: list[tuple[str, str, int]] = []
    records = Records(state_dir)
    oldest_kept = _stamp(_now() - dt.timedelta(seconds=min(limits.max_age, 36500 * DAY)))
    for agent in records.agents():
        try:
            with open_folder(state_dir, FOLDER, agent) as folder, os.scandir(folder) as entries:
                sizes: dict[str, int] = {}
                for entry in entries:
                    stem = entry.name.removeprefix(".").removesuffix("l").removesuffix(".json")
                    if _NAME.fullmatch(stem):
                        sizes[stem] = sizes.get(stem, 0) + entry.stat(follow_symlinks=False).st_size
                    if time.monotonic() > until:
                        break
                kept += [(stem, agent, size) for stem, size in sizes.items()]
        except OSError as error:
            _log.debug("looking for old records of %s: %s", agent, error.strerror)
    kept.sort()
    total = sum(size for _, _, size in kept)
    for stem, agent, size in kept:
        if time.monotonic() > until or (stem >= oldest_kept and total <= limits.max_total):
            break
        try:
            with open_folder(state_dir, FOLDER, agent) as folder:
                if _remove(folder, stem):
                    removed += 1
                    total -= size
        except OSError as error:
            _log.debug("removing the record %s: %s", stem, error.strerror)
    return removed


_cleaned: set[Path] = set()


def _clean_once(state_dir: Path, limits: RecordLimits) -> None:
    if state_dir not in _cleaned:
        _cleaned.add(state_dir)
        if removed := clean(state_dir, limits):
            _log.info("removed the records of %d runs", removed, extra={"removed": removed})


def _remove(folder: int, stem: str) -> bool:
    with suppress(FileNotFoundError):
        if _is_locked(folder, f"{stem}.jsonl"):
            return False
    # The transcript goes last: without it there would be a run that we no longer find.
    for name in (f".{stem}.json", f"{stem}.json", f"{stem}.jsonl"):
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)
    return True


def _lock(fd: int) -> None:
    """Lock a transcript that is being written. Who looks whether one is has it locked for a moment, too."""
    for _ in range(100):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.001)
        except OSError:  # a file system without locks
            return
        else:
            return


def _is_locked(folder: int, name: str) -> bool:
    fd = open_file(folder, name)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(fd)
    return False


def _read_summary(folder: int, stem: str) -> RunSummary | None:
    try:
        fd = open_file(folder, f"{stem}.json")
    except FileNotFoundError:
        return None
    try:
        values = orjson.loads(os.read(fd, 2 * RESERVE))
        return RunSummary.from_dict(values) if isinstance(values, dict) else None
    except ValueError:  # not whole, after a power failure
        return None
    finally:
        os.close(fd)


def _unfinished(folder: int, agent: str, stem: str) -> RunSummary:
    """The summary of a run that has none: what the beginning of its transcript tells."""
    outcome: Outcome = "running" if _is_locked(folder, f"{stem}.jsonl") else "interrupted"
    fd = open_file(folder, f"{stem}.jsonl")
    try:
        line, newline, _ = os.read(fd, 1024**2).partition(b"\n")
    finally:
        os.close(fd)
    try:
        start = orjson.loads(line)["message"] if newline else {}
        start["prompt"] = _short(start["prompt"])
        return attrs.evolve(RunSummary.from_dict(start), outcome=outcome)
    except (KeyError, TypeError, ValueError):
        stamp, run_id = stem.split("-")
        started = dt.datetime.strptime(stamp, "%Y%m%dT%H%M%S.%fZ").replace(tzinfo=dt.UTC)
        return RunSummary(run_id=run_id, agent=agent, outcome=outcome, started=started)


def _forms(value: str) -> Iterator[str]:
    """The ways in which a decoded string can spell a value: as it is, or as JSON in JSON."""
    yield value
    for ascii_only in (False, True):
        escaped = value
        for _ in range(2):
            escaped = json.dumps(escaped, ensure_ascii=ascii_only)[1:-1]
            yield escaped


def _anchors(value: str) -> set[bytes]:
    """Bytes of which JSON that holds the value has at least one, however it is escaped."""
    longest = max(_SAFE_RUN.findall(value), key=len, default="")
    if len(longest) >= min(4, len(value)):
        return {longest.encode()}
    return {rb"\u", *(form.encode() for form in _forms(value))}


def _is_utf8(data: bytes) -> bool:
    """Whether lines that were read leniently are text to everybody."""
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def parse_time(text: str) -> dt.datetime:
    """A moment as JSON has it. One that does not say its zone is in UTC.

    Raises:
        ValueError: it is none.
        TypeError: it is no text.
    """
    moment = dt.datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)


def _check(summary: RunSummary) -> None:
    """Raise ValueError if a value of a summary that was read is of another type than ours."""
    for name, kind in (
        *dict.fromkeys(("run_id", "agent"), str).items(),
        *dict.fromkeys(("kind", "message", "session_id", "model", "prompt", "workspace", "image"), str | None).items(),
        *dict.fromkeys(("duration", "exit_code", "turns", "cost_usd"), float | int | None).items(),
    ):
        if not isinstance(getattr(summary, name), kind):
            msg = f"{name} is not what it should be"
            raise ValueError(msg)  # noqa: TRY004  to the caller it is a file that can not be read
    if summary.outcome not in get_args(Outcome):
        msg = "no such outcome"
        raise ValueError(msg)


def _short(text: str) -> str:
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= 200 else f"{text[:199]}…"


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def _stamp(moment: dt.datetime) -> str:
    return f"{moment:%Y%m%dT%H%M%S}.{moment.microsecond // 1000:03}Z"


def _shown_time(moment: dt.datetime) -> str:
    return moment.astimezone(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
