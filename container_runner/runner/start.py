"""What a carried workspace begins with: the folder as it is, or what an earlier run has left."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from container_runner.box.plan import Plan
from container_runner.engine.manager import Containers
from container_runner.errors import ConfigError
from container_runner.options import FOLDER, ExecuteOptions
from container_runner.records.records import Records
from container_runner.runner.left import fetch_left
from container_runner.workspace.apply import recover
from container_runner.workspace.carry import Carry
from container_runner.workspace.lineage import is_applied
from container_runner.workspace.shadow import Shadow, Start


async def hold(plan: Plan) -> Start | None:
    """The workspace of *plan* as it is now, for runs that shall all begin with just that; None if it is not carried.

    Raises:
        WorkspaceError: the folder can not be read.
        StateError: the state folder can not be written.
    """
    if plan.carry is None:
        return None
    workspace = Path(plan.carry.workspace)
    recover(workspace, plan.state_dir)
    return await (await Shadow.open(workspace, plan.state_dir)).hold()


async def earlier(options: ExecuteOptions, plan: Plan, manager: Containers) -> str | None:
    """The run with whose work *options* begin, which *plan* is for; None if they begin with the folder.

    Raises:
        ConfigError: as `find_start`.
    """
    if plan.carry is None or not _asks(options):
        return None
    await fetch_left(manager)
    return await _find(options, await Shadow.open(Path(plan.carry.workspace), plan.state_dir), plan.state_dir)


async def find_start(options: ExecuteOptions, carry: Carry, state_dir: Path) -> Start | None:
    """What an earlier run has left, with which *options* begin; None if they begin with the folder.

    Raises:
        ConfigError: the run that they name is not known, was on another folder, or nothing came out of it.
        WorkspaceError: the folder can not be read.
    """
    if not _asks(options):
        return None
    shadow = await Shadow.open(Path(carry.workspace), state_dir)
    run = await _find(options, shadow, state_dir)
    return None if run is None else await shadow.left_by(run)


def _asks(options: ExecuteOptions) -> bool:
    """Whether they may begin with anything but the folder."""
    return options.from_run != FOLDER and not (options.from_run is None and options.resume is None)


async def _find(options: ExecuteOptions, shadow: Shadow, state_dir: Path) -> str | None:
    """The run with whose work *options* begin."""
    if options.from_run is not None:
        return await _named(options.from_run, shadow, state_dir)
    run = await _last_of(options.resume or "", options.agent.name, shadow, state_dir)
    if run is None or (left := await shadow.left_by(run)) is None:
        return None
    return None if not await _has_work(shadow, left) or await is_applied(shadow, left.files) else run


async def _named(given: str, shadow: Shadow, state_dir: Path) -> str:
    """The run that is meant by its id or the beginning of it."""
    kept = [run for run in await shadow.runs() if run.startswith(given)]
    found = [run for run in kept if await shadow.left_by(run) is not None]
    if len(found) == 1:
        return found[0]
    allowed = "the id of a run whose work is kept, or as many of its first digits as tell it from the others"
    known = "`container-runner changes --list` has those of a folder"
    told = f"{len(found)} runs begin with {given!r}" if found else f"There is no run {given!r} whose work is kept"
    if not found:
        with suppress(ConfigError):
            summary = Records(state_dir).find(given).summary
            told = f"Nothing came out of run {given!r}, or it was discarded"
            if summary.workspace is not None and not shadow.workspace.samefile(summary.workspace):
                told = f"Run {given!r} was on another folder, {summary.workspace}"
            elif summary.outcome == "running":
                told = f"Run {given!r} is still at work"
    raise ConfigError("from_run", given, f"{allowed}; {known}", told=f"{told}: from_run must be {allowed}; {known}")


async def _last_of(session: str, agent: str, shadow: Shadow, state_dir: Path) -> str | None:
    """The last carried run of a session on this folder; None if there is none, or its work was discarded."""
    kept = set(await shadow.runs())
    for record in reversed(Records(state_dir).runs(agent)):
        if record.summary.session_id != session:
            continue
        if record.run_id in kept and await shadow.left_by(record.run_id) is not None:
            return record.run_id
        if record.summary.changes is not None:
            return None
    return None


async def _has_work(shadow: Shadow, start: Start) -> bool:
    """Whether an agent has changed or committed anything."""
    if start.head is not None:
        return True
    said = await shadow.git("rev-parse", f"{start.files}^{{tree}}", f"{start.base}^{{tree}}")
    return len(set(said.split())) > 1
