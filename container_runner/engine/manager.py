"""Containers and their lives: made, found again, cleaned up.

Ours are found by exact labels, never by their names. Two kinds of locks in the state folder keep processes out of
each other's way: one for an agent, held while its containers are looked for, made or removed; and one for each
persistent container, shared by all who run something in it, so that clean-up can tell whether anybody does.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

import anyio
import attrs

from container_runner.box.argv import LABEL
from container_runner.box.plan import Plan
from container_runner.box.script import REFUSED
from container_runner.config import paths
from container_runner.engine.conmon import end_forgotten, monitored
from container_runner.engine.engine import PULL_TIMEOUT, ContainerInfo, Engine, start_limiter
from container_runner.engine.locks import LOCK_TIMEOUT, LockFile
from container_runner.engine.owner import Owner
from container_runner.errors import ContainerGoneError, EngineError, ImageUnsuitableError, StateError
from container_runner.folders import expanded
from container_runner.stream.process import TERM_GRACE, Process, settle

RUN_LABEL: Final = f"{LABEL}run"
"""The id of the run that a container was made for. All of ours carry it."""

NAME_LABEL: Final = f"{LABEL}name"
"""The container's own name. Labels outlive a container in an image made of it by `commit`; a stranger's container of
that image has another name."""

AGENT_LABEL: Final = f"{LABEL}agent"
STATE_LABEL: Final = f"{LABEL}state"
"""A digest of the state folder's path: agents of the same name in two folders are two agents."""

CONFIG_LABEL: Final = f"{LABEL}config"
"""A digest of how the container was made. Another configuration means another container."""

DEADLINE_LABEL: Final = f"{LABEL}deadline"
"""When the container's time limit ends, in seconds since the epoch. It settles what owners elsewhere can not."""

DEADLINE_SLACK: Final = 600
"""Seconds beyond its time limit after which a container of an owner on another machine is nobody's."""

PLACE_LABEL: Final = f"{LABEL}place"
"""Where the workspace is in the container, if that is not /workspace."""

KIND_LABEL: Final = f"{LABEL}kind"
""""ephemeral" or "persistent"."""

LOCK_PATIENCE: Final = 5.0
"""Seconds that clean-up waits for others who are at an agent's containers. They clean up after themselves."""

DAEMON_LOST: Final = 125
"""The exit code of docker's client when its daemon goes away; what runs in the container is not told."""

CLEANUP_TIMEOUT: Final = 60.0
"""Seconds that clean-up may take in all, whatever is cancelled meanwhile."""

_log = logging.getLogger(__name__)
logging.getLogger("container_runner").addHandler(logging.NullHandler())  # silent, unless the program says otherwise


@attrs.frozen(kw_only=True)
class Container:
    """A kept container that a run may use."""

    name: str

    created: bool
    """Whether it was made for this run; otherwise it was found."""

    time_limit: int = attrs.field(repr=False, eq=False)
    """How long it lives at most, in seconds."""

    ends_at: float = attrs.field(repr=False, eq=False)
    """When that is over, in seconds since the epoch."""

    lock: LockFile | None = attrs.field(default=None, repr=False, eq=False)
    """Held while the run uses it."""

    def let_go(self) -> None:
        """Hold it no longer. It takes no await."""
        if self.lock is not None:
            self.lock.release()

    @property
    def is_fresh(self) -> bool:
        """Whether a run that begins now has half of the time limit at least."""
        return time.time() < self.ends_at - self.time_limit / 2


class Containers:
    """The containers of one engine and one state folder.

    Args:
        engine: see `Engine.probe`.
        state_dir: the state folder, with the locks.
    """

    def __init__(self, engine: Engine, state_dir: str | os.PathLike[str]) -> None:
        self.engine = engine
        self.state_dir = expanded(state_dir, "state_dir").resolve()
        self._known: dict[str, Container] = {}
        """The persistent containers that were good a moment ago, by `Plan.digest`."""

    async def get_or_create(self, plan: Plan) -> Container:
        """A kept container for *plan*: the agent's own if it still runs as configured, or a new one.

        The caller gives it back with `release`.

        Raises:
            EngineError: it could not be made. Nothing is left of it.
        """
        if (known := self._known.get(plan.digest)) and known.is_fresh:
            # Whoever would remove it needs this lock for itself alone. If it has gone already, its exec will say so,
            # and the next attempt will look for it.
            lock = self._use_lock(known.name)
            if lock.try_acquire(shared=True):
                if not lock.is_marked:
                    return attrs.evolve(known, created=False, lock=lock)
                lock.release()
        # Whoever holds it may be fetching the image.
        async with self._agent_lock(plan.agent).held(PULL_TIMEOUT if plan.may_pull else LOCK_TIMEOUT):
            for info in await self.containers(plan.reuse_labels):
                found = Container(name=info.name, created=False, time_limit=plan.time_limit, ends_at=_ends_at(info))
                if info.is_running and found.is_fresh and plan.is_made_of(info.image):
                    lock = self._use_lock(info.name)
                    await lock.acquire(shared=True)
                    if not lock.is_marked:
                        return attrs.evolve(found, lock=lock)
                    lock.release()
                # A run may be in it: somebody has paused it, or what is wrong with it does not hinder that run.
                await self._remove_if_idle(info.name)
            lock = self._use_lock(plan.container)
            await lock.acquire(shared=True)
            try:
                async with start_limiter():
                    await self._create(plan)
            except BaseException:
                lock.release(remove=True)
                raise
            return Container(
                name=plan.container, created=True, time_limit=plan.time_limit, ends_at=plan.ends_at, lock=lock
            )

    async def runs(self, container: Container) -> bool:
        """Whether a container that was handed out runs."""
        infos = await self.engine.inspect([container.name])
        return bool(infos) and infos[0].is_running

    async def use(self, name: str, plan: Plan) -> Container:
        """The kept container of this name for one more run, which gives it back with `release`.

        Raises:
            ContainerGoneError: it does not run, or no run should use it any more.
        """
        lock = self._use_lock(name)
        await lock.acquire(shared=True)
        try:
            infos = await self.engine.inspect([name])
            if lock.is_marked or not infos or not infos[0].is_running or not self._is_here(infos[0]):
                raise ContainerGoneError(f"The container {name} does not run any more.")
        except BaseException:
            lock.release()
            raise
        return Container(name=name, created=False, time_limit=plan.time_limit, ends_at=_ends_at(infos[0]), lock=lock)

    async def release(self, container: Container, plan: Plan, *, is_spoiled: bool = False) -> None:
        """Give a kept container back; it waits for its next run.

        Args:
            plan: the plan of the run that used it.
            is_spoiled: whether no other run should use it: it is removed when nobody does any more, by us or by the
                next run that looks for it.

        Raises:
            EngineError: it could not be removed.
        """
        lock = container.lock
        assert lock is not None  # noqa: S101  `get_or_create` gave it
        if is_spoiled:
            lock.mark()
        self._known.pop(plan.digest, None)
        if not lock.is_marked:
            self._known[plan.digest] = attrs.evolve(container, lock=None)
            lock.release()
            return
        has_gone = False
        try:
            if lock.try_upgrade():
                await self.engine.remove(container.name)
                has_gone = True
        finally:
            lock.release(remove=has_gone)  # or every later run of this agent would wait for it

    async def containers(self, labels: dict[str, str] | None = None) -> list[ContainerInfo]:
        """Our containers with *labels*, oldest first; of all state folders, unless the labels name one."""
        found = await self.engine.inspect(await self.engine.find({RUN_LABEL: "", **(labels or {})}))
        # The engines' filters have bugs; what is removed depends on these labels, so look again.
        wanted = (labels or {}).items()
        return sorted(
            (info for info in found if _is_ours(info) and wanted <= info.labels.items()),
            key=lambda info: info.created,
        )

    def is_in_use(self, name: str) -> bool:
        """Whether a run, of any process with this state folder, uses a persistent container just now."""
        lock = self._use_lock(name)
        if not lock.path.exists():
            return False
        if lock.try_acquire():
            lock.release()
            return False
        return True

    async def clean_up(self, agent: str, max_containers: int) -> list[str]:
        """Remove *agent*'s persistent containers beyond *max_containers*, oldest first, and none that is in use.

        Returns:
            The names of those that were removed.

        Raises:
            EngineError: the engine does not answer, or one of them could not be removed.
            StateError: another process was at them for longer than `LOCK_PATIENCE`.
        """
        async with self._agent_lock(agent).held(LOCK_PATIENCE):
            kept = await self.containers(agent_labels(agent, self.state_dir, ephemeral=False))
            removed: list[str] = []
            for info in kept:
                if len(kept) - len(removed) <= max_containers:
                    break
                if await self._remove_if_idle(info.name):
                    removed.append(info.name)
            return removed

    async def stop(self, name: str) -> None:
        """End and remove a container of ours and of this state folder, in use or not.

        Raises:
            ContainerGoneError: there is none with this name.
        """
        infos = await self.engine.inspect([name])
        if not infos or not self._is_here(infos[0]):
            raise ContainerGoneError(f"There is no container of ours named {name!r}.")
        await self.remove(name)

    async def remove(self, name: str) -> None:
        """End and remove a container, whatever state it is in.

        Raises:
            EngineError: it is still there.
        """
        known = await self.engine.inspect([name]) if self.engine.dialect.name == "podman" else []
        # Before the removal, after which nobody knows the id any more, should we be killed in between.
        for info in known:
            if info.status not in ("running", "paused"):
                end_forgotten(info.id)
        await self.engine.remove(name)
        self._use_lock(name).path.unlink(missing_ok=True)

    async def explained(self, error: EngineError, plan: Plan) -> EngineError:
        """Why a container ends at once, again and again, if that can be told; else the *error* that says so.

        The image of a kept one may be for another CPU: what the kernel says of that goes with the container.
        """
        if plan.ephemeral or not isinstance(error, ContainerGoneError):
            return error
        try:
            theirs, own = await self.engine.architectures(plan.image)
        except EngineError:
            return error
        if theirs == own:
            return error
        message = f"The image {plan.image} is for another CPU, {theirs}, and this machine is {own}."
        step = "Build or pull it for this machine, as with `docker pull --platform`."
        return ImageUnsuitableError(message, next_step=step)

    async def end_client(self, process: Process, name: str, *, kept: bool = False, lost: bool = False) -> bool:
        """End an attached client by its stdin, and see that an ephemeral container has gone with it.

        A client in the middle of a start is not cut off: its container finds its stdin ended, and leaves.

        Args:
            lost: whether an agent was at work whose end nobody has told.

        Returns:
            Whether it has ended in order. Then the engine has removed an ephemeral container before.

        Raises:
            EngineError: the container is still there.
        """
        process.close_stdin()
        if process.returncode is None:
            with anyio.move_on_after(TERM_GRACE):
                while await process.read():
                    pass
                await process.wait()
        exit_code = process.returncode
        await process.terminate()
        process.close()
        is_in_order = exit_code is not None and 0 <= exit_code != DAEMON_LOST and (kept or not lost)
        if not is_in_order and not kept:
            await self.remove(name)
        return is_in_order and (exit_code in (0, *REFUSED) or not kept)

    async def prune(self, *, dry_run: bool = False) -> list[ContainerInfo]:
        """Remove what nobody needs: containers of runs whose owner is dead, and persistent ones that have ended.

        A persistent container that runs stays, whoever made it: its next run will find it. An owner on another
        machine counts as alive until the container's time limit has passed.

        Returns:
            What was removed, or would be if *dry_run*.
        """
        pruned: list[ContainerInfo] = []
        locks = [*self.state_dir.glob("locks/container.*.lock")]
        infos = await self.containers()
        for info in infos:
            if _is_needed(info):
                continue
            if not dry_run:
                try:
                    await self.remove(info.name)
                except EngineError as error:
                    _log.warning("%s could not be removed: %s", info.name, error.message)
                    continue
            pruned.append(info)
        if not dry_run:
            _remove_locks(locks, {info.name for info in infos})
            await self._end_forgotten()
        return pruned

    def _is_here(self, info: ContainerInfo) -> bool:
        """Whether it is ours, and of this state folder."""
        return _is_ours(info) and info.labels.get(STATE_LABEL) == state_digest(self.state_dir)

    async def _end_forgotten(self) -> None:
        """End the processes of containers of ours that podman does not know any more."""
        if not self.engine.graph_root:
            return
        found = monitored(self.engine.graph_root)
        known = {info.id for info in await self.engine.inspect(found)}
        for container_id in found:
            if container_id not in known:
                end_forgotten(container_id)

    async def _create(self, plan: Plan) -> None:
        try:
            await self.engine.create(plan.run, may_pull=plan.may_pull)
        except BaseException:
            # However it failed, there may be a container.
            await settle(lambda: self._remove_quietly(plan.container))
            raise

    async def _remove_quietly(self, name: str) -> None:
        try:
            with anyio.move_on_after(CLEANUP_TIMEOUT):
                await self.remove(name)
        except EngineError as error:
            _log.debug("%s: %s", name, error.message)

    async def _remove_if_idle(self, name: str) -> bool:
        lock = self._use_lock(name)
        if not lock.try_acquire():
            return False
        try:
            await self.remove(name)
        finally:
            lock.release(remove=True)
        return True

    def _agent_lock(self, agent: str) -> LockFile:
        return LockFile(self.state_dir / "locks" / f"agent.{agent}.lock")

    def _use_lock(self, container: str) -> LockFile:
        return LockFile(self.state_dir / "locks" / f"container.{container}.lock")


def _remove_locks(locks: Iterable[Path], containers: Collection[str]) -> None:
    """Remove the locks, listed before the *containers* were, of containers that somebody else has removed.

    One that is being made has its lock held. A mark is kept: the container may be another engine's.
    """
    for path in locks:
        lock = LockFile(path)
        if path.name.removeprefix("container.").removesuffix(".lock") in containers:
            continue
        with suppress(StateError):
            if lock.try_acquire():
                lock.release(remove=not lock.is_marked)


def _is_ours(info: ContainerInfo) -> bool:
    return RUN_LABEL in info.labels and info.labels.get(NAME_LABEL) == info.name


def _is_needed(info: ContainerInfo) -> bool:
    owner = Owner.from_labels(info.labels)
    state = "unknown" if owner is None else owner.state
    runs = info.has_processes
    if info.labels.get(KIND_LABEL) == "persistent" and info.status not in ("created", "initialized"):
        return runs  # whoever made it; one that was not started yet is its owner's, as an ephemeral one is
    if runs and owner is not None and not owner.is_of_this_boot:
        # No container runs on when its machine starts anew: this one is another machine's, of the same name and id.
        state = "unknown"
    if state == "unknown":
        return time.time() <= _ends_at(info) + DEADLINE_SLACK
    return state == "alive"


def place_labels(place: str) -> dict[str, str]:
    """What tells where the workspace is in a container, if that is not where it usually is."""
    return {} if place == paths.WORKSPACE else {PLACE_LABEL: place}


def agent_labels(agent: str, state_dir: Path, *, ephemeral: bool) -> dict[str, str]:
    """The labels of an agent's containers of one kind."""
    kind = "ephemeral" if ephemeral else "persistent"
    return {AGENT_LABEL: agent, STATE_LABEL: state_digest(state_dir), KIND_LABEL: kind}


def state_digest(state_dir: Path) -> str:
    """What `STATE_LABEL` says for a state folder.

    It is of the path alone, as the engine's mounts are: of two programs that speak to one engine and name the same
    path, from two containers say, the engine gives the same folder to both.
    """
    return hashlib.sha256(str(state_dir.resolve()).encode()).hexdigest()[:16]


def _ends_at(info: ContainerInfo) -> float:
    """When a container's time limit is over."""
    deadline = info.labels.get(DEADLINE_LABEL, "")
    return int(deadline) - DEADLINE_SLACK if deadline.isdecimal() else math.inf
