"""The file that a batch keeps its results in, and how several become one."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

import attrs

from container_runner.errors import ConfigError, StateError
from container_runner.fleet.job import Job, JobResult

_ITS_CONTENT: Final = "a file with results of a batch, or none"


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
            results, cut_off = _parse(self.path, file.read())
        for result in results:
            self._take(result)
        if cut_off:
            os.ftruncate(self._fd, os.fstat(self._fd).st_size - cut_off)

    def _state_error(self, what: str) -> StateError:
        return StateError(f"The results file {self.path} {what}.", next_step="Name another one with --results.")


def _parse(path: Path, data: bytes) -> tuple[list[JobResult], int]:
    """The results in a file, and how many bytes at its end are of one that a crash cut off.

    Raises:
        ConfigError: it holds something else.
    """
    *lines, last = data.split(b"\n")
    results = []
    for number, line in enumerate(lines, 1):
        try:
            results.append(JobResult.parse(line))
        except ValueError:
            raise ConfigError("results", f"{path}:{number}", _ITS_CONTENT) from None
    if last and not last.startswith(b'{"id":') and not b'{"id":'.startswith(last):
        raise ConfigError("results", str(path), _ITS_CONTENT)
    return results, len(last)


@attrs.frozen
class Merged:
    """The results of several files as one.

    Attributes:
        results: Every line of every file: what a job cost in each try counts. The last line of a job is the one that
            counts for it, as in any results file.
        twice: The ids of jobs that several files have a result of.
    """

    results: list[JobResult]
    twice: list[str]


def merge(files: Iterable[Path]) -> Merged:
    """The results of several shards as those of one batch.

    Of a job that several files have, the first one that succeeded counts, else the first whose agent was at work.

    Raises:
        ConfigError: a file holds something else, or results of other jobs: one id asks for two different things.
        StateError: a file can not be read, or a batch has it open.
    """
    lines: list[JobResult] = []
    counts: dict[str, tuple[JobResult, Path]] = {}
    twice: dict[str, None] = {}
    for path in files:
        results = _read(path)
        lines += results
        for result in {result.id: result for result in results}.values():  # the last of each job
            if (known := counts.get(result.id)) is None:
                counts[result.id] = result, path
                continue
            _check_same(known, result, path)
            twice[result.id] = None
            if (result.succeeded, result.was_run) > (known[0].succeeded, known[0].was_run):
                counts[result.id] = result, path
    last = [result for result, _ in counts.values()]
    these = {id(result) for result in last}
    return Merged([*(result for result in lines if id(result) not in these), *last], [*twice])


def _check_same(known: tuple[JobResult, Path], result: JobResult, path: Path) -> None:
    before, first = known
    if before.digest != result.digest:
        told = f"job {result.id!r} asks for something else in {path} than in {first}"
        raise ConfigError("FILE", str(path), f"a file of the same batch as {first}", told=told)


def _read(path: Path) -> list[JobResult]:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return _parse(path, file.read())[0]
    except BlockingIOError:
        told = f"The results file {path} is in use by another batch."
        raise StateError(told, next_step="Merge when that has ended.") from None
    except OSError as error:
        told = f"The results file {path} can not be read: {error.strerror}."
        raise StateError(told, next_step="Name the results files of the shards.") from None
