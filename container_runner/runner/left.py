"""What carried runs have left whose processes are dead: their work is fetched, or thrown away."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

from container_runner.box.environment import host_environment
from container_runner.engine.engine import Engine
from container_runner.engine.manager import Containers
from container_runner.errors import ContainerRunnerError, StateError, WorkspaceError
from container_runner.runner.carrier import Carrier, run_lock
from container_runner.workspace.carry import Carry

_log = logging.getLogger(__name__)


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
            if carry.endpoint != manager.engine.endpoint:
                place = carry.endpoint or "its usual address"
                if run is None:
                    continue
                step = f"Set DOCKER_HOST or CONTAINER_HOST as it was for that run, and type it again: {place}"
                raise WorkspaceError(f"The work of run {run[:12]} is with another engine.", next_step=step)
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
