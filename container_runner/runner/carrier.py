"""Carries the workspace of one run into its box, and its work out of it; also of a run whose process has died."""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import attrs
import orjson

from container_runner.box import guest
from container_runner.box.carried import Ways, helper_argv, inspect_volume_argv
from container_runner.box.plan import Plan
from container_runner.engine.engine import RUN_TIMEOUT
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
    CleanupError,
    ContainerRunnerError,
    EngineArgumentError,
    EngineError,
    EngineTimeoutError,
    MountError,
    StateError,
    WorkspaceError,
)
from container_runner.runner.beside import together
from container_runner.runner.diagnosis import left_over
from container_runner.stream.pipe import Pipe
from container_runner.stream.process import Process, settle
from container_runner.workspace.carry import Carry, Phase
from container_runner.workspace.changes import Changes, Notes, write_notes
from container_runner.workspace.manifest import BYTES_LIMIT, Facts, Manifest
from container_runner.workspace.modules import explained, may_have_submodules, take_modules
from container_runner.workspace.patch import is_other, patch
from container_runner.workspace.repository import Repository, check_objects
from container_runner.workspace.shadow import Shadow
from container_runner.workspace.tar import Source
from container_runner.workspace.upper import UnclearError, Upper, marks_of, touches_git
from container_runner.workspace.way_in import Prepared, send
from container_runner.workspace.way_out import COMMITS_ALONE, OUT, Outcome, receive

FETCH_TIMEOUT: Final = 900.0
"""Seconds that the work may take on its way out. What is not out then is fetched by the next start."""

PATIENCE: Final = 120.0
"""Seconds of them in which a box may say nothing: it hangs, or its engine does."""

BRING_TIMEOUT: Final = 1800.0
"""Seconds that the workspace may take on its way in."""

REMOVE_TIMEOUT: Final = 300.0
"""Seconds that an engine may take to remove a volume: one with 50,000 files takes a minute on a busy disk."""

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
        self._is_taken_over = False
        self._shadow: Shadow | None = None
        self._files: Prepared | None = None
        """What is brought in."""
        self._before: Mapping[bytes, Facts] | None = None
        """What was in the box when the agent began; nothing for an overlay, below which it still is."""
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
        try:
            with _typed():
                if not await together(partial(process.wait_for_gate, timeout), self._keep):
                    return False
                if self._files is not None:
                    with anyio.fail_after(BRING_TIMEOUT):
                        await together(self._let_write, partial(self._bring, self._files))
        finally:
            if self._files is not None:
                await settle(self._files.aclose)
        self._write_down("run")
        return True

    async def fetch(self, release: Callable[[], None]) -> None:
        """Fetch the work, from its container if need be. What can not be had so, `finish` fetches.

        Args:
            release: is called as soon as the container may go: what comes after is done while it does.
        """
        if not self._needs_box:
            release()
        try:
            with _typed(), anyio.fail_after(FETCH_TIMEOUT):
                await self._fetch(self._ways.fetch, release)
        except (ContainerRunnerError, TimeoutError) as error:
            _log.info("the work of run %s is fetched another way: %s", self.carry.run, error)

    async def finish(self) -> WorkspaceError | CleanupError | None:
        """Fetch what is not fetched yet, and leave nothing behind. The run's container is gone.

        Returns:
            What went wrong. Then the work is where it was, or what held it is left, and the next start tries again.
        """
        try:
            if self.carry.phase == "run":
                with _typed(), anyio.fail_after(FETCH_TIMEOUT):
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
        if self.carry.phase != "run":
            volumes = filter(None, [self.carry.volume])
            return left_over(self.carry.volume or f"The folder of run {self.carry.run[:12]}", failed, *volumes)
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
        self.carry, self._is_taken_over = carry, True
        await self._manager.remove(carry.container)
        return True

    def let_go(self) -> None:
        """Leave what is left to others."""
        self._lock.release()

    async def discard(self) -> None:
        """Remove all of it but what is in the shadow.

        An engine whose client was killed may still be about to make the volume. So what is written down of it stays
        until that can not be any more, for a later start to look again.

        Raises:
            EngineError: the volume can not be removed.
            StateError: a folder can not be removed.
        """
        if self.carry.volume:
            done = await self._manager.engine.run(self._ways.remove, check=False, timeout=REMOVE_TIMEOUT)
            if done.returncode != 0 and "no such volume" not in done.stderr.lower():
                raise classify(done, "volume")
            is_starting = self.carry.phase == "in" and self.carry.is_younger(self._manager.state_dir, RUN_TIMEOUT)
            if done.returncode != 0 and self._is_taken_over and is_starting:
                self.let_go()
                return
        await anyio.to_thread.run_sync(self.carry.remove_folders, self._manager.state_dir)
        self.carry.forget(self._manager.state_dir)
        self._lock.release(remove=True)

    async def _keep(self) -> bool:
        """Keep the folder as it is now, and prepare what has to be brought in, if anything has."""
        shadow, start = await self._open(), self.carry.start
        if shadow.repository is not None:
            check_objects(shadow.repository, self.carry.lent)
        below = await shadow.start(self.carry.run, start)
        carry = self.carry = attrs.evolve(self.carry, below=below)
        if start is not None and not await is_other(shadow, start, below):
            start = None
        if carry.volume:
            files = send(shadow, history=carry.history, ignored=carry.ignored, start=start, below=below)
        elif start is not None:
            files = patch(shadow, start, below)
        else:
            return True
        self._files = Prepared(files)
        await self._files.prepare()
        return True

    async def _open(self) -> Shadow:
        if self._shadow is None:
            self._shadow = await Shadow.open(Path(self.carry.workspace), self._manager.state_dir)
        return self._shadow

    async def _let_write(self) -> bool:
        """Let the agent write to a volume that is root's; IN waits for it."""
        if self._ways.open:
            done = await self._manager.engine.run(self._ways.open, check=False)
            if done.returncode != 0:
                raise _not_arrived(done.stderr)
        return True

    async def _bring(self, files: Prepared) -> bool:
        """Have the box begin with what it is to begin with, and learn what is in it then, if it had nothing before."""
        before: dict[bytes, Facts] = {}
        code = 0
        async with self._manager.engine.pipe(self._ways.bring, files) as pipe:
            if self.carry.volume:
                manifest = Manifest(Source(pipe, BYTES_LIMIT))
                async for records in manifest.records():
                    before.update(records)
                code = manifest.code
            async for _ in pipe:
                pass
            if await pipe.wait() != 0 or code != 0:
                raise _not_arrived(pipe.stderr)
        self._before = before
        return True

    @property
    def _needs_box(self) -> bool:
        """Whether the container must be there for the work to be fetched: something may have been committed in it, or
        what it has written can not be read here."""
        return not self._ways.commits or any(map(touches_git, self._repositories))

    async def _fetch(self, command: Sequence[str], release: Callable[[], None] | None = None) -> None:
        """Fetch the work; what we can not read here by a command that runs OUT on it."""
        shadow, run = await self._open(), self.carry.run
        on_end = None if may_have_submodules(shadow) else release
        outcome = await self._read_upper(shadow, command, on_end) if self._ways.commits else None
        if outcome is None:
            async with self._box(command) as pipe:
                outcome = await receive(
                    shadow,
                    run,
                    pipe,
                    before=self._before,
                    overlay=bool(self.carry.layers),
                    start=self.carry.start,
                    below=self.carry.below,
                    may_be_empty=self._may_be_empty,
                    on_end=on_end,
                )
        carry, head = self.carry, None if outcome.commits is None else outcome.commits.head
        modules, refused = await take_modules(shadow, run, partial(self._module, command))
        findings = [it for it in outcome.findings if not await explained(shadow, head, modules, it)]
        notes = Notes(
            findings=(*findings, *refused),
            modules=modules,
            ignored=outcome.ignored,
            protected=carry.protected,
            unprotected=carry.unprotected,
        )
        await write_notes(shadow, run, notes)
        self.changes = await Changes.load(shadow, run)
        self._write_down("fetched" if outcome.is_whole else "kept")

    async def _read_upper(
        self, shadow: Shadow, command: Sequence[str], on_end: Callable[[], None] | None
    ) -> Outcome | None:
        """Read what an overlay has written, and have the box tell of commits; None if it must tell of all."""
        marks = marks_of(is_rootless=self._manager.engine.dialect.keep_id) or ""
        carry = self.carry
        take = partial(
            receive,
            shadow,
            carry.run,
            overlay=True,
            start=carry.start,
            below=carry.below,
            may_be_empty=self._may_be_empty,
            on_end=on_end,
        )
        try:
            with Upper.open(self.carry.layers[0].upper, marks) as upper:
                if not (shadow.is_repository and self._needs_box):
                    return await take(upper)
                async with self._box([*command, COMMITS_ALONE]) as pipe:
                    return await take(upper, commits=pipe)
        except (UnclearError, OSError) as error:
            _log.info("the box is asked for the work of run %s: %s", self.carry.run, error)
            return None

    def _module(self, command: Sequence[str], module: Repository) -> AbstractAsyncContextManager[Pipe] | None:
        """A box that is asked for the commits of a submodule; None if there can be none."""
        for layer in self.carry.layers if self._ways.commits else ():
            below = module.folder.is_relative_to(layer.lower)
            if below and not touches_git(f"{layer.upper}/{module.folder.relative_to(layer.lower)}"):
                return None
        return self._box([*command[:-1], f"{command[-1]}/{os.fsdecode(module.at)}", COMMITS_ALONE])

    @property
    def _repositories(self) -> list[str]:
        """What an overlay has written in the workspace's repository, wherever that is."""
        top, *elsewhere = self.carry.layers
        return [f"{top.upper}/.git", *(layer.upper for layer in elsewhere)]

    @asynccontextmanager
    async def _box(self, command: Sequence[str]) -> AsyncIterator[Pipe]:
        """A box that is asked for work. Raises EngineTimeoutError if it says nothing for `PATIENCE` seconds."""
        try:
            async with self._manager.engine.pipe(command, None, patience=PATIENCE) as pipe:
                yield pipe
        except TimeoutError:
            raise EngineTimeoutError(f"Nothing came out of the box for {PATIENCE:g} seconds.") from None

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
            arguments=[carry.target],
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


def _not_arrived(stderr: str) -> WorkspaceError:
    return WorkspaceError("The workspace did not arrive in the box.", stderr=stderr)


@contextmanager
def _typed() -> Iterator[None]:
    """Make an error of ours of what the disk refuses, as one that is full does."""
    try:
        yield
    except TimeoutError:
        raise
    except OSError as error:
        raise StateError(f"{error.filename or 'The state folder'} can not be used: {error.strerror}.") from error


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


def run_lock(state_dir: Path, run: str) -> LockFile:
    """The lock that is held by whoever looks after the work of a run."""
    return LockFile(state_dir / "locks" / f"carried.{run}.lock")
