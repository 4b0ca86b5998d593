"""What runs on a node of a Ray cluster: an actor that has the node's engine, and runs jobs on it."""

from __future__ import annotations

import asyncio
import os
import platform
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Sequence
from contextlib import aclosing, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Final, Self

import attrs

from container_runner import __version__
from container_runner.box import argv
from container_runner.box.environment import ENGINE_VARIABLE, host_environment
from container_runner.config.container import ContainerConfig
from container_runner.errors import ContainerRunnerError
from container_runner.fleet.travel import (
    CACHE,
    CHUNK,
    Luggage,
    Parcel,
    folder_of,
    make_parcel,
    not_the_same,
    pack,
    pack_up,
    unpack,
)
from container_runner.options import ExecuteOptions
from container_runner.records.summary import RunSummary
from container_runner.runner import ContainerRunner
from container_runner.runner.start import hold
from container_runner.stream.messages import ErrorMessage, Message
from container_runner.workspace.changes import Changes
from container_runner.workspace.shadow import Shadow

PYTHON: Final = ".".join(platform.python_version_tuple()[:2])
"""This process's version, as "3.12"."""

_MOST: Final = 256
"""Messages that travel at once."""

_LOOK: Final = 0.2
"""Seconds between two looks at whether the raylet is there, and the driver."""


@attrs.frozen
class Spec:
    """What a runner is made of."""

    runtime: Any
    config: ContainerConfig
    state_dir: Path
    records: Any

    @classmethod
    def of(cls, runner: ContainerRunner) -> Self:
        """What *runner* is made of."""
        return cls(runner.runtime, runner.config, runner.state_dir, runner.records)

    def make(self) -> ContainerRunner:
        """The runner, with the engine of the node that this is on."""
        engine = host_environment().get(ENGINE_VARIABLE)
        config = attrs.evolve(self.config, engine=engine) if engine else self.config
        return ContainerRunner(self.runtime, config, self.state_dir, records=self.records)


@attrs.frozen(kw_only=True)
class Report:
    """What a node says of itself."""

    host: str
    version: str
    python: str
    engine: str
    """As "docker 28.2.2"."""

    images: dict[str, str | None]
    """The ids of the images that the jobs need; None for one that is not there."""

    unset: tuple[str, ...]
    """The secrets that the node's environment lacks."""

    folders: dict[str, tuple[int, int] | None]
    """By which those that all nodes share are known to be the same; None for one that is not there."""

    cpus: int
    error: str | None = None
    """Why no run works there."""

    @property
    def is_alike(self) -> bool:
        """Whether it has the versions that this process has."""
        return (self.version, self.python) == (__version__, PYTHON)

    def lacking(self, configs: Collection[ContainerConfig]) -> set[str]:
        """The images of these that are not there, and that none of them may fetch."""
        fetched = {config.image for config in configs if config.pull != "never"}
        return {config.image for config in configs if self.images.get(config.image) is None} - fetched


@attrs.frozen
class Said:
    """What a run has to tell."""

    messages: Sequence[Message] = ()
    is_started: bool = False
    summary: RunSummary | None = None
    luggage: Luggage | None = None


class NodeRunner:
    """Runs jobs on its node. Ray makes it there, as an actor; it ends with the driver, and with the node's raylet.

    Args:
        specs: the runners.
        patience: seconds without a `beat` after which it ends, once it has heard the first.
    """

    def __init__(self, specs: Sequence[Spec], patience: float) -> None:
        self._patience = patience
        self._heard: float | None = None
        self._runners = [spec.make() for spec in specs]
        self._works: dict[str, tuple[str, Shadow]] = {}
        self._incoming: dict[str, IO[bytes]] = {}
        threading.Thread(target=self._end_with, args=(os.getppid(),), daemon=True).start()

    async def beat(self) -> None:
        """Hear that the driver is there."""
        self._heard = time.monotonic()

    def _end_with(self, raylet: int) -> None:
        """End this process when its raylet, which is its parent, has ended, or when nothing is heard of the driver:
        Ray calls us dead then, or will, and our jobs run elsewhere. The leases of our agents end with us.
        """
        while os.getppid() == raylet and (self._heard is None or time.monotonic() - self._heard < self._patience):
            time.sleep(_LOOK)
        os._exit(1)

    async def ready(self, folders: Sequence[str]) -> Report:
        """Ask the engines, and look for what the jobs need."""
        engines: dict[str, None] = {}
        images: dict[str, str | None] = {}
        error = None
        for runner in self._runners:
            try:
                engine = (await runner.manager()).engine
            except ContainerRunnerError as failure:
                error = str(failure)
                continue
            engines[f"{engine.dialect.name} {engine.version}"] = None
            image = runner.config.image
            if image not in images:
                done = await engine.run(argv.image_argv(engine.binary, image), check=False)
                images[image] = done.text.strip().removeprefix("sha256:") if done.returncode == 0 else None
        secrets = {name for runner in self._runners for name in runner.config.secrets}
        return Report(
            host=platform.node(),
            version=__version__,
            python=PYTHON,
            engine=", ".join(engines),
            images=images,
            unset=tuple(sorted(secrets - {*host_environment()})),
            folders={folder: _identity(folder) for folder in folders},
            cpus=os.cpu_count() or 1,
            error=error,
        )

    async def has(self, parcel: Parcel) -> bool:
        """Whether the folder of a parcel is here already. What came of a pack that broke off is forgotten."""
        if (left := self._incoming.pop(parcel.key, None)) is not None:
            left.close()
        folder = folder_of(parcel, CACHE)
        with suppress(OSError):
            os.utime(folder)
            return True
        return False

    async def receive(self, parcel: Parcel, chunk: bytes) -> None:
        """Take one more part of a parcel's pack; after the last one, which is empty, make the folder."""
        if parcel.key not in self._incoming:
            self._incoming[parcel.key] = TemporaryFile()  # noqa: SIM115  it is open until the last part has come
        file = self._incoming[parcel.key]
        if chunk:
            file.write(chunk)
            return
        del self._incoming[parcel.key]
        with file:
            file.seek(0)
            await unpack(parcel, CACHE, _parts(file))

    async def run(self, key: int, options: ExecuteOptions, parcel: Parcel | None) -> AsyncGenerator[Said]:
        """Run a job, and yield what it has to tell: lists of messages, and at last its summary."""
        runner = self._runners[key]
        started = asyncio.Event()
        ends: list[tuple[RunSummary, Changes | None]] = []
        try:
            start, shadow = None, None
            if parcel is not None:
                folder = folder_of(parcel, CACHE)
                options = attrs.evolve(options, agent=attrs.evolve(options.agent, workspace=folder))
                start = await hold(runner.plan(options))
                shadow = await Shadow.open(folder, runner.state_dir)
                if start is None or (await make_parcel(shadow, start)).tree != parcel.tree:
                    raise not_the_same(folder)
            messages = runner.execute(
                options,
                on_start=started.set,
                on_end=lambda summary, changes: ends.append((summary, changes)),
                start=start,
            )
            async with aclosing(messages), aclosing(gathered(messages, started)) as lists:
                async for some in lists:
                    yield Said(some, is_started=started.is_set())
            luggage = None
            if ends and ends[0][1] is not None and shadow is not None:
                luggage, wanted = await pack_up(shadow, ends[0][1])
                self._works[luggage.run] = wanted, shadow
            yield Said(is_started=started.is_set(), summary=ends[0][0] if ends else None, luggage=luggage)
        except ContainerRunnerError as error:  # as a message, for not every error survives the way
            yield Said([ErrorMessage.from_error(error)])

    async def work(self, run: str) -> AsyncGenerator[bytes]:
        """The objects of what came of a run."""
        wanted, shadow = self._works.pop(run)
        async for chunk in pack(shadow, wanted):
            yield chunk


async def gathered(
    messages: AsyncGenerator[Message], started: asyncio.Event, most: int = _MOST
) -> AsyncGenerator[list[Message]]:
    """What is there at a time as one list, without waiting for more; an empty one when the agent has started."""
    coming: asyncio.Future[Any] | None = None
    beginning: asyncio.Future[Any] | None = asyncio.ensure_future(started.wait())
    some: list[Message] = []
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(messages))
            both = {future for future in (coming, beginning) if future is not None}
            await asyncio.wait(both, timeout=0 if some else None, return_when=asyncio.FIRST_COMPLETED)
            if coming.done():
                try:
                    some.append(coming.result())
                except StopAsyncIteration:
                    break
                finally:
                    coming = None
                if len(some) < most:
                    continue
            if beginning is not None and beginning.done():
                beginning = None
            yield some
            some = []
        if some:
            yield some
    finally:
        for future in (coming, beginning):
            if future is not None:
                future.cancel()
                with suppress(asyncio.CancelledError, StopAsyncIteration):
                    await future


async def _parts(file: IO[bytes]) -> AsyncIterator[bytes]:
    while part := file.read(CHUNK):
        yield part


def _identity(folder: str) -> tuple[int, int] | None:
    try:
        info = Path(folder).stat()
    except OSError:
        return None
    return info.st_ino, info.st_mtime_ns
