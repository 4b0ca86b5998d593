"""Where the jobs of a batch run: on this machine, or on the nodes of a fleet."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from pathlib import Path
from typing import Protocol

import attrs

from container_runner.fleet.job import Job
from container_runner.records.summary import RunSummary
from container_runner.runner.start import hold
from container_runner.stream.messages import Message
from container_runner.workspace.changes import Changes
from container_runner.workspace.shadow import Start

Ended = Callable[[RunSummary, Changes | None], None]
"""Is told how a run went, and what came out of a carried workspace, which is on this machine by then."""


class Node(Protocol):
    """A machine with an engine."""

    @property
    def name(self) -> str:
        """What people call it; "" is this machine."""

    def run(self, job: Job, *, on_start: Callable[[], object], on_end: Ended) -> AsyncGenerator[Sequence[Message]]:
        """Run a job once, and yield what its agent says as it comes.

        What fails is one last `ErrorMessage`. When the iteration ends or is cancelled, the agent has been stopped and
        its container removed.

        Raises:
            NodeLostError: there is no telling what became of it: the node does not answer any more.
        """


class Fleet(Protocol):
    """Some nodes."""

    def described(self, job: Job) -> Job:
        """A job as it can be planned on this machine, which need not have what the nodes have, such as their secrets.

        Nothing of it is run.
        """

    def nodes(self, jobs: Sequence[Job]) -> AbstractAsyncContextManager[Sequence[Node]]:
        """The nodes for these jobs, each made ready for them, for the length of a block. Nothing runs there after it.

        Raises:
            ConfigError: a job can not be carried out there, or the nodes differ in what must be the same.
            EngineError: there is no engine, or it does not answer.
        """


@attrs.frozen
class Here:
    """This machine, by itself."""

    name: str = ""
    _starts: dict[tuple[Path, str], Start] = attrs.field(factory=dict, init=False, repr=False)

    def described(self, job: Job) -> Job:
        """The job itself."""
        return job

    @asynccontextmanager
    async def nodes(self, jobs: Sequence[Job]) -> AsyncIterator[Sequence[Node]]:
        """This machine alone: its engines answer, and what the carried folders are now is held."""
        for runner in dict.fromkeys(job.runner for job in jobs):
            await runner.manager()  # once for all: an engine that does not answer fails them all
        self._starts.update(await held(jobs))
        yield [self]

    async def run(
        self, job: Job, *, on_start: Callable[[], object], on_end: Ended
    ) -> AsyncGenerator[Sequence[Message]]:
        """See `Node.run`."""
        place = place_of(job)
        start = None if place is None else self._starts.get(place)
        async with aclosing(job.runner.execute(job.options, on_start=on_start, on_end=on_end, start=start)) as messages:
            async for message in messages:
                yield (message,)


async def held(jobs: Sequence[Job]) -> dict[tuple[Path, str], Start]:
    """What the carried folders of these jobs are now, by `place_of`."""
    starts: dict[tuple[Path, str], Start] = {}
    for job in jobs:
        place = place_of(job)
        if place is not None and place not in starts and (start := await hold(job.runner.plan(job.options))):
            starts[place] = start
    return starts


def place_of(job: Job) -> tuple[Path, str] | None:
    """The folder on which a job works, and where its shadow is; None if the job begins with something else."""
    options = job.options
    if options.agent.workspace is None or options.resume is not None or options.from_run is not None:
        return None
    return job.runner.state_dir, os.path.realpath(options.agent.workspace)
