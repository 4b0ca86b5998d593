"""Which job runs next, and where: what has failed on one node, and may do better on another."""

from __future__ import annotations

import datetime as dt
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import anyio
import attrs

from container_runner.errors import (
    EngineArgumentError,
    EngineNotFoundError,
    EnginePermissionError,
    EngineUnreachableError,
    ImageNotFoundError,
    ImageUnsuitableError,
    MountError,
    NetworkNotFoundError,
    NodeLostError,
    PullFailedError,
    StateError,
    error_class,
)
from container_runner.fleet.job import Job
from container_runner.fleet.node import Node
from container_runner.records.summary import RunSummary
from container_runner.records.tally import Tally
from container_runner.runner import ContainerRunner
from container_runner.stream.messages import ErrorMessage
from container_runner.workspace.changes import Changes

_ENDS_ALL: Final = (EngineNotFoundError, EnginePermissionError, EngineUnreachableError, NodeLostError, StateError)
_ENDS_ITS_BOX: Final = (
    EngineArgumentError,
    ImageNotFoundError,
    ImageUnsuitableError,
    NetworkNotFoundError,
    PullFailedError,
)
"""Failures that every other job on the node would meet too, and that every job with the same box would meet there."""

_MOST_MOUNTS: Final = 3
"""Jobs, one after the other, whose folders a node could not mount: then it is not the jobs."""


@attrs.define(eq=False)
class Tried:
    """A job of a batch, and what came of it so far."""

    number: int
    job: Job
    tallies: list[Tally] = attrs.field(factory=list)
    """Of each try; the last may be of one that is at work."""

    ends: list[tuple[RunSummary, Changes | None]] = attrs.field(factory=list)
    nodes: list[Standing] = attrs.field(factory=list)
    """Where it was, the last one at the end."""

    started: dt.datetime = attrs.field(factory=lambda: dt.datetime.now(dt.UTC))
    began: float = attrs.field(factory=time.monotonic)
    """When it was first started, on two clocks."""


@attrs.define(eq=False)
class Standing:
    """How a node does."""

    node: Node
    met: dict[ContainerRunner | None, str] = attrs.field(factory=dict)
    """The failures that end the jobs of a runner there, by that, or all jobs, by None."""

    mounts: int = 0
    """How many jobs failed to mount since the last one that did not."""

    def hinders(self, job: Job) -> str | None:
        """Why the job should not be started there."""
        return self.met.get(None) or self.met.get(job.runner)

    def note(self, job: Job, error: ErrorMessage | None, *, alone: bool) -> bool:
        """Note how a job has ended there.

        Args:
            alone: whether there is no other node, where a folder that can not be mounted is the job's own trouble.

        Returns:
            Whether the failure is the node's, so that the job may do better elsewhere.
        """
        kind = error_class(error.kind) if error is not None else None
        if error is None or kind is None or not issubclass(kind, MountError):
            self.mounts = 0
        if error is None or kind is None:
            return False
        if issubclass(kind, _ENDS_ALL):
            self.met[None] = error.message
        elif issubclass(kind, _ENDS_ITS_BOX):
            self.met[job.runner] = error.message
        elif issubclass(kind, MountError) and not alone:
            self.mounts += 1
            if self.mounts >= _MOST_MOUNTS:
                self.met[None] = error.message
        else:
            return False
        return True


class Schedule:
    """The jobs that wait, in their order, but for those that were put back, which come first.

    Args:
        jobs: those that are to be run.
        nodes: where they may.
        attempts: on how many nodes a job may be started, each time because the last one has failed it.
        hindered: why no job should be started any more; None if nothing is in the way.
        halted: is told once for each reason why jobs are not started.
    """

    def __init__(
        self,
        jobs: Iterable[Job],
        nodes: Sequence[Node],
        *,
        attempts: int,
        hindered: Callable[[], str | None],
        halted: Callable[[str], object],
    ) -> None:
        self.nodes = [Standing(node) for node in nodes]
        self._attempts = attempts
        self._hindered, self._halted = hindered, halted
        self._waiting: dict[ContainerRunner, deque[Tried]] = {}
        for number, job in enumerate(jobs):
            self._waiting.setdefault(job.runner, deque()).append(Tried(number, job))
        self._again: list[Tried] = []
        self._at_work = 0
        self._changed = anyio.Event()
        self._told: set[str] = set()

    async def take(self, node: Standing) -> Tried | None:
        """The next job for a node, whose end is to be told by `end`; None if there will be none."""
        while True:
            self._drop()
            if None in node.met:
                return None
            if (tried := self._next(node)) is not None:
                if not tried.nodes:
                    tried.started, tried.began = dt.datetime.now(dt.UTC), time.monotonic()
                tried.nodes.append(node)
                self._at_work += 1
                return tried
            if not self._at_work:
                return None
            await self._changed.wait()

    def end(self, tried: Tried, error: ErrorMessage | None) -> bool:
        """Note how the last try at a job has ended; whether the job has. If not, another node takes it."""
        self._at_work -= 1
        node = tried.nodes[-1]
        is_over = True
        if node.note(tried.job, error, alone=len(self.nodes) == 1) and len(tried.nodes) < self._attempts:
            is_over = not any(self._may(each, tried) for each in self.nodes)
        if not is_over:
            self._again.append(tried)
        self._changed.set()
        self._changed = anyio.Event()
        return is_over

    def given_up(self) -> list[Tried]:
        """Jobs that were put back, and that no node could take afterwards, once nothing is at work."""
        return self._again

    def _next(self, node: Standing) -> Tried | None:
        for tried in self._again if self._hindered() is None else ():
            if self._may(node, tried):
                self._again.remove(tried)
                return tried
        queues = [queue for queue in self._waiting.values() if queue and not node.hinders(queue[0].job)]
        return min(queues, key=lambda queue: queue[0].number).popleft() if queues else None

    @staticmethod
    def _may(node: Standing, tried: Tried) -> bool:
        return node not in tried.nodes and node.hinders(tried.job) is None

    def _drop(self) -> None:
        """Let go of the jobs that no node may start any more, and tell why."""
        for queue in self._waiting.values():
            if not queue:
                continue
            reason = self._hindered()
            reasons = [node.hinders(queue[0].job) for node in self.nodes]
            if reason is None and all(reasons):
                reason = reasons[-1]
            if reason is not None:
                queue.clear()
                self._tell(reason)

    def _tell(self, reason: str) -> None:
        if reason not in self._told:
            self._told.add(reason)
            self._halted(f"{reason.rstrip('.')}: no more jobs are started.")
