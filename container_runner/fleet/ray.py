"""A fleet on a Ray cluster: an actor on each node, which has that node's engine.

    await run_batch(jobs, on=RayFleet("auto"), at_once=8, results=results)

Ray is the extra `ray` of this package. It needs asyncio, and this process must be in the cluster's network: it joins
the cluster, and does not use Ray Client.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import anyio
import attrs

from container_runner import __version__
from container_runner.errors import (
    ConfigError,
    EngineUnreachableError,
    ImageNotFoundError,
    NodeLostError,
)
from container_runner.fleet.heartbeat import Heartbeat
from container_runner.fleet.job import Job
from container_runner.fleet.node import Ended, Node, held, place_of
from container_runner.fleet.ray_head import greet
from container_runner.fleet.ray_node import PYTHON, NodeRunner, Report, Spec
from container_runner.fleet.travel import Luggage, Parcel, make_parcel, pack, take_home, wanted_for
from container_runner.runner import ContainerRunner
from container_runner.stream import beat
from container_runner.stream.messages import Message
from container_runner.workspace.changes import Changes
from container_runner.workspace.shadow import Shadow, Start

_log = logging.getLogger(__name__)

_AHEAD: Final = 4
"""How many lists of messages wait for us on their way; then the node reads no more, and the agent has to wait."""

_MOST: Final = 1200
"""Calls of an actor at a time."""

_CONNECT: Final = 10.0
"""Seconds that the head of a cluster may take to answer."""

_READY: Final = 120.0
"""Seconds that a node may take to get ready."""

_END: Final = 60.0
"""Seconds that a node may take to end a run that was cancelled, beside the agent's grace."""

_FENCE: Final = 10.0
"""Seconds after the end of a node's actor, beside the agent's grace, in which the leases have ended its agents."""


@attrs.frozen(kw_only=True)
class _Folder:
    """A carried workspace of this machine."""

    shadow: Shadow
    start: Start
    parcel: Parcel


@attrs.frozen
class RayFleet:
    """The nodes of a Ray cluster.

    A carried workspace travels to each node that needs it, and its work comes back as if the run had been here. One
    that is mounted must be the same folder on all nodes. Secrets, logins and the engine are the node's own.

    Attributes:
        address: "auto", the cluster that this machine is in, or "HOST:PORT". Another is a ConfigError, as is ray://.
    """

    address: str = attrs.field(default="auto")
    _described: dict[ContainerRunner, ContainerRunner] = attrs.field(factory=dict, init=False, repr=False, eq=False)

    @address.validator
    def _check(self, _: object, address: str) -> None:
        if address.startswith("ray://"):
            allowed = "auto or HOST:PORT, from a machine in the cluster's network"
            told = f"ray:// is Ray Client, which can not stream what an actor says: give {allowed}"
            raise ConfigError("on", address, allowed, told=told)
        host, _colon, port = address.rpartition(":")
        if address != "auto" and not (host and port.isdecimal()):
            raise ConfigError("on", address, "auto, or HOST:PORT of a Ray cluster's head")

    def described(self, job: Job) -> Job:
        """The job without secrets, login and engine, which are the nodes'."""
        known = self._described.get(job.runner)
        if known is None:
            config = attrs.evolve(job.runner.config, secrets=(), credentials="none", engine="auto")
            known = self._described[job.runner] = job.runner.evolved(config=config)
        return attrs.evolve(job, runner=known)

    @asynccontextmanager
    async def nodes(self, jobs: Sequence[Job]) -> AsyncIterator[Sequence[Node]]:
        """See `Fleet.nodes`."""
        _check_loop()
        for job in jobs:
            _check_job(job)
        described = [self.described(job) for job in jobs]
        folders = await _folders(described)
        shared = sorted({str(job.options.agent.workspace) for job in described if _is_shared(job)})
        keys = {runner: key for key, runner in enumerate(dict.fromkeys(job.runner for job in jobs))}
        specs = [Spec.of(runner) for runner in keys]
        async with _actors(self.address, specs) as actors:
            reports = await _reports(actors, shared)
            check(reports, specs, shared)
            heartbeat = Heartbeat(actors)
            try:
                yield [RayNode(name, actors[name], keys, folders, heartbeat) for name in reports]
            finally:
                heartbeat.stop()

    async def examine(self, job: Job) -> dict[str, Report | str]:
        """What each node says of itself, by its name, or why it says nothing; for a job like this one.

        Raises:
            ConfigError: there is no ray here, or no asyncio.
            EngineUnreachableError: there is no such cluster.
        """
        _check_loop()
        async with _actors(self.address, [Spec.of(job.runner)]) as actors:
            return await _asked(actors, [])


class RayNode:
    """One node, by its actor. See `Node`."""

    def __init__(
        self,
        name: str,
        actor: Any,
        keys: dict[ContainerRunner, int],
        folders: dict[tuple[Path, str], _Folder],
        heartbeat: Heartbeat,
    ) -> None:
        self.name = name
        self._heartbeat = heartbeat
        self._actor = actor
        self._keys = keys
        self._folders = folders
        self._bringing: dict[str, anyio.Lock] = {}

    async def run(
        self, job: Job, *, on_start: Callable[[], object], on_end: Ended
    ) -> AsyncGenerator[Sequence[Message]]:
        """See `Node.run`."""
        place = place_of(job)
        folder = None if place is None else self._folders.get(place)
        key = self._keys[job.runner]
        options = attrs.evolve(job.options, agent=attrs.evolve(job.options.agent, workspace=None)) if folder else None
        try:
            if folder is not None:
                await self._bring(folder)
            call = self._actor.run.options(num_returns="streaming", _generator_backpressure_num_objects=_AHEAD)
            stream = call.remote(key, options or job.options, folder and folder.parcel)
            is_started = False
            async with aclosing(_all(stream, job.options.grace)) as all_said:
                async for said in all_said:
                    if said.is_started and not is_started:
                        is_started = True
                        on_start()
                    if said.messages:
                        yield said.messages
                    if said.summary is not None:
                        on_end(said.summary, await self._take_home(folder, said.luggage))
        except _lost() as error:
            if folder is None and job.options.agent.workspace is not None:
                await anyio.sleep(self._heartbeat.give_up(self.name) + _FENCE + (job.options.grace or 0))
            raise NodeLostError(f"The node {self.name} is lost: {_reason(error)}.", node=self.name) from None

    async def _bring(self, folder: _Folder) -> None:
        """Make sure that the node has a folder; once for all jobs that need it."""
        async with self._bringing.setdefault(folder.parcel.key, anyio.Lock()):
            if await self._actor.has.remote(folder.parcel):
                return
            async with aclosing(pack(folder.shadow, wanted_for(folder.parcel))) as chunks:
                async for chunk in chunks:
                    await self._actor.receive.remote(folder.parcel, chunk)
            await self._actor.receive.remote(folder.parcel, b"")

    async def _take_home(self, folder: _Folder | None, luggage: Luggage | None) -> Changes | None:
        if folder is None or luggage is None:
            return None
        call = self._actor.work.options(num_returns="streaming", _generator_backpressure_num_objects=_AHEAD)
        async with aclosing(_all(call.remote(luggage.run), None)) as chunks:
            return await take_home(folder.shadow, folder.start, luggage, chunks)


def check(reports: dict[str, Report], specs: Sequence[Spec], shared: Iterable[str]) -> None:
    """Hold what the nodes say of themselves against each other.

    Raises:
        ConfigError: they differ in what must be the same.
        ImageNotFoundError: an image is not everywhere.
    """
    others = [name for name, report in reports.items() if not report.is_alike]
    if others:
        allowed = f"nodes with container_runner {__version__} and Python {PYTHON}, as here"
        raise ConfigError("on", ", ".join(others), allowed)
    configs = [spec.config for spec in specs]
    for image in sorted({config.image for config in configs}):
        ids = {name: report.images.get(image) for name, report in reports.items()}
        lacking = [name for name, report in reports.items() if image in report.lacking(configs)]
        if lacking:
            told = f"The image {image} is not on {len(lacking)} of {len(ids)} nodes: {', '.join(lacking)}."
            raise ImageNotFoundError(told)
        if len({known for known in ids.values() if known is not None}) > 1:
            _log.warning("The image %s is not the same on all nodes: %s", image, ids)
    for folder in shared:
        found = Counter(report.folders.get(folder) for report in reports.values())
        if None in found or len(found) > 1:
            allowed = "a folder that all nodes share, at the same path, or --carried"
            raise ConfigError("workspace", folder, allowed)
    unset = {name: report.unset for name, report in reports.items() if report.unset}
    if unset:
        allowed = "variables that are set where `ray start` runs"
        raise ConfigError("secrets", None, allowed, told=f"These nodes have no such variables: {_listed(unset)}")


def _listed(unset: dict[str, tuple[str, ...]]) -> str:
    return "; ".join(f"{name} lacks {', '.join(names)}" for name, names in unset.items())


def _check_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        allowed = "a fleet of another kind on trio, for Ray works with asyncio alone"
        raise ConfigError("on", "ray", allowed) from None


def _check_job(job: Job) -> None:
    options = job.options
    if job.runner.tools:
        names = [tool.name for tool in job.runner.tools]
        told = "functions of this program can not be called from other machines: run these jobs without a fleet"
        raise ConfigError("tools", names, "left out on a fleet", source=job.source or f"job {job.id}", told=told)
    for name in ("resume", "from_run"):
        if getattr(options, name) is not None:
            allowed = "nothing on a fleet, whose nodes have their own sessions and work"
            raise ConfigError(name, getattr(options, name), allowed, source=job.source or f"job {job.id}")


def _is_shared(job: Job) -> bool:
    return job.options.agent.workspace is not None and job.runner.plan(job.options).carry is None


async def _folders(jobs: Sequence[Job]) -> dict[tuple[Path, str], _Folder]:
    """The carried workspaces of these jobs, by `place_of`."""
    folders = {}
    for (state_dir, workspace), start in (await held(jobs)).items():
        shadow = await Shadow.open(Path(workspace), state_dir)
        parcel = await make_parcel(shadow, start)
        folders[state_dir, workspace] = _Folder(shadow=shadow, start=start, parcel=parcel)
    return folders


@asynccontextmanager
async def _actors(address: str, specs: Sequence[Spec]) -> AsyncIterator[dict[str, Any]]:
    """An actor on each node, by the node's name. None is there any more behind the block."""
    ray = _ray()
    is_ours = not ray.is_initialized()
    if is_ours:
        await _join(ray, address)
    actors: dict[str, Any] = {}
    try:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        made = ray.remote(NodeRunner)
        for name, node in _named([node for node in ray.nodes() if node["Alive"]]).items():
            actors[name] = made.options(
                num_cpus=0,
                max_concurrency=_MOST,
                max_restarts=0,
                max_task_retries=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            ).remote(specs, beat.PATIENCE)
        yield actors
    finally:
        for actor in actors.values():
            with suppress(Exception):  # it is dead already
                ray.kill(actor)
        if is_ours:
            ray.shutdown()
            _let_print(ray, True)


async def _join(ray: Any, address: str) -> None:
    """Make this process a driver of the cluster."""
    on_term = signal.getsignal(signal.SIGTERM)
    host, _, port = address.rpartition(":")
    try:
        if host:  # Ray itself would try for minutes, in which nothing else goes on here
            with anyio.fail_after(_CONNECT):
                await greet(host.strip("[]"), int(port))
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
        _let_print(ray, False)
    except (OSError, RuntimeError, ValueError) as error:
        told = f"No Ray cluster answers at {address}."
        silence = f"Nothing came from there in {_CONNECT:g} seconds."
        next_step = (
            "Start one with `ray start --head`, or give its head as HOST:PORT: PORT is 6379, or what "
            "`ray start --head --port` was given, and not 10001, which is Ray Client's."
        )
        raise EngineUnreachableError(told, next_step=next_step, stderr=str(error) or silence) from None
    finally:
        # Ray takes the signal for itself, and exits in the middle of anything.
        if on_term is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_term)


def _let_print(ray: Any, may: bool) -> None:
    """Ray tells about nodes that have died on stdout, which is not ours and may be JSON; nothing else stops it."""
    ray._private.worker._worker_logs_enabled = may  # noqa: SLF001  Ray's debugger does the same


def _named(nodes: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Nodes by their hosts' names; where two have the same, by the beginnings of their ids too."""
    hosts = Counter(node["NodeManagerHostname"] for node in nodes)
    return {
        f"{host}-{node['NodeID'][:6]}" if hosts[host := node["NodeManagerHostname"]] > 1 else host: node
        for node in nodes
    }


async def _reports(actors: dict[str, Any], shared: Sequence[str]) -> dict[str, Report]:
    """What the nodes say of themselves that can run jobs; why the others can not is logged.

    Raises:
        EngineError: none can.
    """
    found: dict[str, Report] = {}
    reason = "the cluster has no node"
    for name, report in (await _asked(actors, shared)).items():
        if isinstance(report, Report) and report.error is None:
            found[name] = report
            continue
        reason = report if isinstance(report, str) else report.error or ""
        _log.warning("The node %s runs no jobs: %s", name, reason)
    if not found:
        next_step = "Look at each node with `container-runner doctor --on=ray`."
        raise EngineUnreachableError(f"No node of the fleet can run jobs: {reason}", next_step=next_step)
    return found


async def _asked(actors: dict[str, Any], shared: Sequence[str]) -> dict[str, Report | str]:
    answers: dict[str, Report | str] = {}

    async def ask(name: str) -> None:
        answers[name] = f"it was not ready after {_READY:.0f} seconds"
        with anyio.move_on_after(_READY):
            try:
                answers[name] = await actors[name].ready.remote(shared)
            except _lost() as error:
                answers[name] = _reason(error)

    async with anyio.create_task_group() as tasks:
        for name in actors:
            tasks.start_soon(ask, name)
    return {name: answers[name] for name in actors}


async def _all(stream: Any, grace: float | None) -> AsyncGenerator[Any]:
    """What comes of a streaming call. Whoever leaves before its end cancels it, and waits until it has ended there."""
    is_over = False
    try:
        async for each in stream:
            yield await each
        is_over = True
    finally:
        if not is_over:
            _ray().cancel(stream)
            with anyio.move_on_after(_END + (grace or 0), shield=True), suppress(Exception):
                await stream.completed()


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        allowed = "a Ray cluster, which needs `pip install agent-container-runner[ray]`"
        raise ConfigError("on", "ray", allowed) from None
    return ray


def _lost() -> tuple[type[Exception], ...]:
    """What Ray raises when a node, or our actor there, does not answer any more."""
    known = _ray().exceptions
    return (
        known.RayActorError,
        known.NodeDiedError,
        known.ObjectLostError,
        known.RaySystemError,
        known.WorkerCrashedError,
        known.TaskCancelledError,
        known.OutOfMemoryError,
    )


def _reason(error: Exception) -> str:
    """The first line of what Ray says."""
    return f"{type(error).__name__}, {str(error).strip().splitlines()[0]}" if str(error).strip() else repr(error)
