"""Carries the workspace of one run into its box, and its work out of it; also of a run whose process has died."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import attrs
import orjson

from container_runner.box import guest
from container_runner.box.carried import Ways, helper_argv, inspect_volume_argv
from container_runner.box.environment import host_environment
from container_runner.box.plan import Plan
from container_runner.config import paths
from container_runner.engine.engine import Engine
from container_runner.engine.failures import classify
from container_runner.engine.locks import LockFile
from container_runner.engine.manager import (
    DEADLINE_LABEL,
    DEADLINE_SLACK,
    NAME_LABEL,
    RUN_LABEL,
    Containers,
    agent_labels,
)
from container_runner.engine.owner import Owner
from container_runner.errors import (
    ContainerRunnerError,
    EngineArgumentError,
    EngineError,
    MountError,
    StateError,
    WorkspaceError,
)
from container_runner.stream.process import Process, settle
from container_runner.workspace.carry import Carry, Phase
from container_runner.workspace.changes import Changes, Notes, write_notes
from container_runner.workspace.manifest import BYTES_LIMIT, Facts, Manifest
from container_runner.workspace.shadow import Shadow
from container_runner.workspace.tar import Source
from container_runner.workspace.way_in import send
from container_runner.workspace.way_out import OUT, receive

FETCH_TIMEOUT: Final = 900.0
"""Seconds that the work may take on its way out. What is not out then is fetched by the next start."""

_log = logging.getLogger(__name__)


class Carrier:
    """Carries the workspace of one run. Its methods are called in their order; `finish` comes last, whatever happened.

    Args:
        carry: how. What is written down of it follows it.
        may_be_empty: whether to believe that the agent has deleted every file.
    """

    def __init__(self, manager: Containers, carry: Carry, *, may_be_empty: bool = False) -> None:
        self._manager = manager
        self.carry = carry
        self._may_be_empty = may_be_empty
        self._ways = Ways.of(carry, manager.engine.binary, manager.engine.dialect)
        self._lock = run_lock(manager.state_dir, carry.run)
        self._shadow: Shadow | None = None
        self._before: Mapping[bytes, Facts] | None = None
        """What was in the box when the agent began; None for an overlay, below which it still is."""
        self.changes: Changes | None = None
        """What came out, once it is fetched."""

    async def start(self, plan: Plan) -> Process:
        """Write down what is about to be done, make where the work will be, and start the container, which waits.

        Raises:
            StateError: the state folder can not be written.
            EngineError: the volume can not be made, or the engine's client not be started.
        """
        manager = self._manager
        if not self._lock.try_acquire():
            raise StateError(f"Somebody fetches the work of run {self.carry.run} just now.")
        self.carry.save(manager.state_dir)
        self.carry.make_folders(manager.state_dir, (plan.user.uid, plan.user.gid))
        if self._ways.make:
            await manager.engine.run(self._ways.make)
        return await manager.engine.start(plan.waiting, gate=guest.ready_line(plan.run_id))

    async def bring(self, process: Process, timeout: float) -> bool:
        """Keep the folder as it is, and bring it in, while the container starts whose client is *process*.

        Returns:
            Whether the container is there. Then the agent may start.

        Raises:
            TimeoutError: the container was not there within *timeout* seconds.
            WorkspaceError: the folder can not be read, or does not arrive.
            EngineError: the engine failed.
        """

        async def ready() -> bool:
            is_there = await process.wait_for_gate(timeout)
            if is_there and self._ways.open:
                await self._manager.engine.run(self._ways.open)
            return is_there

        if not await together(ready, self._keep):
            return False
        if self._ways.bring:
            await self._send()
        self._write_down("run")
        process.is_kept = True
        return True

    async def fetch(self) -> None:
        """Fetch the work from its container, which still runs. What can not be had so, `finish` fetches."""
        try:
            with anyio.fail_after(FETCH_TIMEOUT):
                await self._fetch(self._ways.fetch)
        except (ContainerRunnerError, TimeoutError) as error:
            _log.info("the work of run %s is fetched another way: %s", self.carry.run, error)

    async def finish(self) -> WorkspaceError | None:
        """Fetch what is not fetched yet, and leave nothing behind. The run's container is gone.

        Returns:
            What went wrong. Then the work is where it was, and the next start tries again.
        """
        try:
            if self.carry.phase == "run":
                with anyio.fail_after(FETCH_TIMEOUT):
                    await self._fetch_by_helper()
            if self.carry.phase == "kept":
                self.let_go()
            else:
                await self.discard()
        except TimeoutError:
            failed: ContainerRunnerError = WorkspaceError(
                f"it took longer than {FETCH_TIMEOUT:g} seconds.", next_step=""
            )
        except ContainerRunnerError as error:
            failed = error
        else:
            return None
        self.let_go()
        step = f"Nothing is lost: `container-runner changes {self.carry.run[:12]}` tries again, as the next start does."
        if isinstance(failed, WorkspaceError):
            step = f"{step} {failed.next_step}".rstrip()
        message = f"The work of run {self.carry.run[:12]} is not fetched yet: {failed.message}"
        return WorkspaceError(message, next_step=step, stderr=failed.stderr)

    async def take_over(self) -> bool:
        """Look after what a run has left whose process is dead; False if it is not, or nothing is left.

        Raises:
            StateError: what is written down of it can not be read.
            EngineError: its container can not be removed.
        """
        if not self._lock.try_acquire():
            return False
        carry = Carry.load(self._manager.state_dir, self.carry.run)
        if carry is None:
            self._lock.release(remove=True)
            return False
        self.carry = carry
        await self._manager.remove(carry.container)
        return True

    def let_go(self) -> None:
        """Leave what is left to others."""
        self._lock.release()

    async def discard(self) -> None:
        """Remove all of it but what is in the shadow.

        Raises:
            EngineError: the volume can not be removed.
            StateError: a folder can not be removed.
        """
        if self.carry.volume:
            done = await self._manager.engine.run(self._ways.remove, check=False)
            if done.returncode != 0 and "no such volume" not in done.stderr.lower():
                raise classify(done, "volume")
        await anyio.to_thread.run_sync(self.carry.remove_folders, self._manager.state_dir)
        self.carry.forget(self._manager.state_dir)
        self._lock.release(remove=True)

    async def _keep(self) -> bool:
        """Keep the folder as it is now."""
        await (await self._open()).start(self.carry.run)
        return True

    async def _open(self) -> Shadow:
        if self._shadow is None:
            self._shadow = await Shadow.open(Path(self.carry.workspace), self._manager.state_dir)
        return self._shadow

    async def _send(self) -> None:
        """Send the files, and learn what is in the box then."""
        shadow = await self._open()
        before: dict[bytes, Facts] = {}
        async with (
            aclosing(send(shadow, history=self.carry.history, ignored=self.carry.ignored)) as files,
            self._manager.engine.pipe(self._ways.bring, files) as pipe,
        ):
            manifest = Manifest(Source(pipe, BYTES_LIMIT))
            async for records in manifest.records():
                before.update(records)
            async for _ in pipe:
                pass
            if await pipe.wait() != 0 or manifest.code != 0:
                raise WorkspaceError("The workspace did not arrive in the box.", stderr=pipe.stderr)
        self._before = before if all(before.values()) else None  # busybox's find tells no facts

    async def _fetch(self, command: Sequence[str]) -> None:
        """Fetch the work by a command that runs OUT on it."""
        shadow, run = await self._open(), self.carry.run
        async with self._manager.engine.pipe(command, None) as pipe:
            outcome = await receive(
                shadow,
                run,
                pipe,
                before=self._before,
                overlay=bool(self.carry.layers),
                may_be_empty=self._may_be_empty,
            )
        carry = self.carry
        notes = Notes(findings=outcome.findings, protected=carry.protected, unprotected=carry.unprotected)
        await write_notes(shadow, run, notes)
        self.changes = await Changes.load(shadow, run)
        self._write_down("fetched" if outcome.is_whole else "kept")

    async def _fetch_by_helper(self) -> None:
        """Fetch the work by a container of our own, over the same folders or volume."""
        manager, carry = self._manager, self.carry
        await self._look()
        name = f"container-runner-fetch-{carry.run[:12]}-{secrets.token_hex(3)}"
        labels = {
            **agent_labels(carry.agent, manager.state_dir, ephemeral=True),
            RUN_LABEL: carry.run,
            NAME_LABEL: name,
            DEADLINE_LABEL: str(int(time.time() + FETCH_TIMEOUT) + DEADLINE_SLACK),
            **Owner.current().to_labels(),
        }
        command = helper_argv(
            manager.engine.binary,
            manager.engine.dialect,
            name=name,
            image=carry.image,
            user=carry.user,
            labels=labels,
            carry=carry,
            script=OUT,
            arguments=[paths.WORKSPACE],
        )
        try:
            await self._fetch(command)
        except BaseException:
            await settle(partial(manager.remove, name))
            raise

    async def _look(self) -> None:
        """Make sure that the work is where it was. An engine makes a volume that is not there, and an empty one.

        Raises:
            WorkspaceError: it is not.
        """
        carry = self.carry
        if carry.volume:
            done = await self._manager.engine.run(
                inspect_volume_argv(self._manager.engine.binary, name=carry.volume), check=False
            )
            is_there = done.returncode == 0 and carry.nonce in _labels(done.stdout).values()
        else:
            is_there = all([await anyio.Path(layer.upper).is_dir() for layer in carry.layers])
        if not is_there:
            place = f"the volume {carry.volume}" if carry.volume else carry.layers[0].upper
            step = f"If somebody has moved it, put it back; else `container-runner discard {carry.run[:12]}`."
            raise WorkspaceError(f"{place} is not there any more.", next_step=step)

    def _write_down(self, phase: Phase) -> None:
        self.carry = attrs.evolve(self.carry, phase=phase)
        self.carry.save(self._manager.state_dir)


async def fetch_left(manager: Containers, *, run: str | None = None, may_be_empty: bool = False) -> list[Carrier]:
    """Fetch the work that runs of dead processes have left in the manager's state folder, and remove the rest of them.

    Args:
        run: only of this run.
        may_be_empty: whether to believe that the agent has deleted every file.

    Returns:
        The carriers whose work was fetched.

    Raises:
        WorkspaceError: that of *run* could not be; without one, it is logged.
    """
    done = []
    for name in [run] if run is not None else Carry.runs(manager.state_dir):
        try:
            carry = Carry.load(manager.state_dir, name)
            if carry is None or carry.engine != manager.engine.binary or carry.phase == "kept":
                continue
            carrier = Carrier(manager, carry, may_be_empty=may_be_empty)
            try:
                if await carrier.take_over():
                    if error := await carrier.finish():
                        raise error
                    done.append(carrier)
            finally:
                carrier.let_go()
        except ContainerRunnerError as error:
            if run is not None:
                raise
            _log.warning("%s", error)
    return done


async def fetch_unfetched(
    state_dir: Path, workspace: Path | None, run: str = "", *, may_be_empty: bool = False
) -> None:
    """Fetch the work that runs of dead processes have left, with the engines that they had.

    Args:
        workspace: only of runs on this folder; None: on any.
        run: only of runs whose ids begin so.
        may_be_empty: whether to believe that an agent has deleted every file.

    Raises:
        WorkspaceError: it could not be.
        EngineError: the engine does not answer.
    """
    for carry in unfetched(state_dir):
        if carry.run.startswith(run) and workspace in (None, Path(carry.workspace)):
            await fetch_left(await _manager(carry, state_dir), run=carry.run, may_be_empty=may_be_empty)


async def discard_left(state_dir: Path, run: str) -> None:
    """Remove what is left of a run, by its whole id, fetched or not; not what is in the shadow.

    Raises:
        EngineError: the engine does not answer, or keeps the volume.
        StateError: a folder can not be removed.
    """
    carry = Carry.load(state_dir, run)
    if carry is not None:
        carrier = Carrier(await _manager(carry, state_dir), carry)
        if await carrier.take_over():
            await carrier.discard()


async def _manager(carry: Carry, state_dir: Path) -> Containers:
    return Containers(await Engine.probe(carry.engine, host_environment()), state_dir)


def may_refuse_overlay(carry: Carry | None, error: EngineError) -> bool:
    """Whether an engine that could not start a container may not be able to lay an overlay over a folder."""
    if carry is None or carry.is_forced or not carry.layers:
        return False
    return type(error) in (EngineError, EngineArgumentError, MountError)


def _labels(said: bytes) -> Mapping[str, str]:
    """The labels in what `volume inspect` has said."""
    try:
        return dict(orjson.loads(said)[0]["Labels"] or {})
    except (orjson.JSONDecodeError, IndexError, KeyError, TypeError, ValueError):
        return {}


def unfetched(state_dir: Path) -> list[Carry]:
    """The runs whose work nobody has fetched, and nobody is about to: their processes are dead."""
    found = []
    for run in Carry.runs(state_dir):
        lock = run_lock(state_dir, run)
        with suppress(StateError):
            carry = Carry.load(state_dir, run)
            if carry is not None and carry.phase == "run" and lock.try_acquire():
                lock.release()
                found.append(carry)
    return found


def run_lock(state_dir: Path, run: str) -> LockFile:
    """The lock that is held by whoever looks after the work of a run."""
    return LockFile(state_dir / "locks" / f"carried.{run}.lock")


async def together(*functions: Callable[[], Awaitable[bool]]) -> bool:
    """Wait for all of these at once; tell whether all are true. The first that is not, or fails, ends the others.

    Raises:
        Exception: what one of them has raised, as it is.
    """
    failures: list[Exception] = []
    is_true = True

    async def one(function: Callable[[], Awaitable[bool]]) -> None:
        nonlocal is_true
        try:
            went_well = await function()
        except Exception as error:  # out of the task group, which would wrap it
            failures.append(error)
            went_well = False
        if not went_well:
            is_true = False
            tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        for function in functions:
            tasks.start_soon(one, function)
    if failures:
        raise failures[0]
    return is_true
