"""What a run leaves to read: a transcript, written as the messages come, and a summary, written at its end.

    <state_dir>/runs/<agent>/<time>-<run id>.jsonl    the transcript: a line a message, in an envelope of ours
    <state_dir>/runs/<agent>/<time>-<run id>.json     the summary

Only the caller can read them, and the agent never sees them: they are not in its sessions folder. A run that has a
transcript and no summary is either running, and then holds a lock on the transcript, or was cut off with us.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import logging
import os
import re
import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Final

import attrs
import orjson

from container_runner.config.limits import RecordLimits
from container_runner.errors import ConfigError
from container_runner.folders import open_file, open_folder, open_to_read
from container_runner.quantities import DAY
from container_runner.records.summary import Outcome, RunSummary, shortened

_log = logging.getLogger(__name__)

FOLDER: Final = "runs"
CLEANING_TIME: Final = 0.25
"""Seconds that removing old records may take at the start of a process; the next one goes on."""

RESERVE: Final = 16 * 1024
"""Bytes of disk that are set aside for the summary when a run starts, so that a full disk does not take it."""

_NAME = re.compile(r"(\d{8}T\d{6}\.\d{3}Z)-([0-9a-f]{32})")


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


@attrs.frozen(repr=False)
class Records:
    """The records of a state folder, for reading."""

    _state_dir: Path = attrs.field(converter=Path)
    """The state folder. It need not exist."""

    def agents(self) -> list[str]:
        """The names of the agents that have records."""
        return subfolders(self._state_dir, FOLDER)

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
            if not found and run_id.strip("0123456789abcdef"):
                allowed += ". Those of an agent are shown with --agent=NAME"
            raise ConfigError("run", run_id, f"{allowed} ({len(found)} begin with this)" if found else allowed)
        return found[0]

    def open(self, run: RunRecord) -> AbstractContextManager[int]:
        """The transcript, as a descriptor to read from.

        Raises:
            StateError: it is not there any more, or not to be read by us.
        """
        place = (FOLDER, run.agent, f"{run.name}.jsonl")
        return open_to_read(self._state_dir, *place, what=f"The transcript of run {run.run_id}")

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
                summary = _read_summary(folder, stem) or _unfinished(folder, agent, stem)
        except OSError:  # it was removed in between, or is not ours to read
            return None
        return RunRecord(agent=agent, name=stem, summary=summary)


def subfolders(state_dir: Path, *place: str) -> list[str]:
    """The names of the folders in a folder below the state folder, sorted; none if it is not there."""
    try:
        with open_folder(state_dir, *place) as folder, os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError:
        return []


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
    oldest_kept = stamp(dt.datetime.now(dt.UTC) - dt.timedelta(seconds=min(limits.max_age, 36500 * DAY)))
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
    _totals[state_dir] = total
    return removed


_totals: dict[Path, int] = {}
"""How many bytes the records of a state folder take, once this process has looked. What others add meanwhile they count
themselves, and each looks again when its own count is too much."""


def clean_once(state_dir: Path, limits: RecordLimits) -> None:
    """`clean`, if this process has not yet."""
    if state_dir not in _totals:
        _log_removed(clean(state_dir, limits))


def clean_after(state_dir: Path, limits: RecordLimits, size: int) -> None:
    """`clean`, if with *size* bytes more the records are too much."""
    _totals[state_dir] = _totals.get(state_dir, 0) + size
    if _totals[state_dir] > limits.max_total:
        _log_removed(clean(state_dir, limits))


def _log_removed(removed: int) -> None:
    if removed:
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


def lock(fd: int) -> None:
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
    except (ConfigError, ValueError):  # not whole, after a power failure
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
        start["prompt"] = shortened(start["prompt"])
        return attrs.evolve(RunSummary.from_dict(start), outcome=outcome)
    except (ConfigError, KeyError, TypeError, ValueError):
        stamp, run_id = stem.split("-")
        started = dt.datetime.strptime(stamp, "%Y%m%dT%H%M%S.%fZ").replace(tzinfo=dt.UTC)
        return RunSummary(run_id=run_id, agent=agent, outcome=outcome, started=started)


def stamp(moment: dt.datetime) -> str:
    """How the name of a run's files begins."""
    return f"{moment:%Y%m%dT%H%M%S}.{moment.microsecond // 1000:03}Z"
