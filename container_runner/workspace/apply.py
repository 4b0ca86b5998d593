"""The work of a run, written into the user's folder: all of it or nothing, and nothing besides."""

from __future__ import annotations

import fcntl
import os
from collections.abc import AsyncIterator, Collection, Iterable, Iterator
from contextlib import aclosing, asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from typing import Final

import anyio

from container_runner.errors import ConflictError, StateError, WorkspaceError
from container_runner.workspace.names import folded
from container_runner.workspace.objects import contents, difference
from container_runner.workspace.shadow import Shadow, kept_at
from container_runner.workspace.target import JOURNAL, Journal, Target, was_changed

LOCK: Final = "apply.lock"
LOCK_TIMEOUT: Final = 120.0
"""Seconds that another apply to the same folder is waited for."""


async def write(shadow: Shadow, run: str, now: str, tree: str) -> tuple[bytes, ...]:
    """Make the workspace, which is *now*, what *tree* says, and return the paths that changed. Hold `locked`.

    Raises:
        ConflictError: something is in the way, or the folder changes meanwhile; nothing was changed.
        WorkspaceError: it can not be written; nothing was changed.
    """
    todo = await difference(shadow, now, tree)
    if not todo:
        return ()
    try:
        with writing(shadow, run) as target:
            if target.folds_names():
                listed = (await shadow.git("ls-tree", "-r", "-z", "--name-only", tree)).split(b"\0")[:-1]
                refuse_twins(listed, todo)
            new = {path: (number, after) for number, (path, (_, after)) in enumerate(todo.items()) if after is not None}
            async with aclosing(contents(shadow, {entry.oid for _, entry in new.values()})) as batches:
                async for some in batches:
                    for path, (number, entry) in new.items():
                        if entry.oid in some:
                            target.make(path, number, entry.mode, some[entry.oid])
            steps = target.plan(todo)
            # What was changed before the plan shows here. What is changed after it, shows when it is taken.
            if await shadow.snapshot() != now:
                raise was_changed()
            target.carry_out(steps)  # it waits for nothing, so nobody can cancel it in the middle
    except OSError as error:
        journal = Journal.read(shadow.folder)
        if journal is not None and journal.steps:
            raise _half_way(shadow.workspace, journal, error) from error
        message = f"The work can not be written: {error.strerror}. The folder is as it was."
        raise WorkspaceError(message, next_step="Make it possible to write there, and try again.") from error
    return tuple(todo)


@asynccontextmanager
async def locked(shadow: Shadow) -> AsyncIterator[None]:
    """The folder for ourselves, after what an apply that was killed has left in it was undone.

    Raises:
        StateError: another process has it for too long.
    """
    fd = _open_lock(shadow.folder)
    try:
        with anyio.move_on_after(LOCK_TIMEOUT) as waiting:
            while not _try_lock(fd):
                await anyio.sleep(0.05)
        if waiting.cancelled_caught:
            raise StateError(
                f"Another process applies to {shadow.workspace} for too long.", next_step="Try again later."
            )
        _recover(shadow.workspace, shadow.folder)
        yield
    finally:
        os.close(fd)


def recover(workspace: Path, state_dir: Path) -> str | None:
    """Undo an apply whose process was killed, and return the run that it was of; None if there was none.

    Call it before the folder is read. It does not wait: while an apply goes on, there is nothing to undo.

    Raises:
        WorkspaceError: it can not be undone, because the folder can not be written.
        StateError: what was written down of it can not be read.
    """
    workspace = workspace.resolve()
    folder = kept_at(workspace, state_dir.resolve())
    if not (folder / JOURNAL).exists():
        return None
    fd = _open_lock(folder)
    try:
        return _recover(workspace, folder) if _try_lock(fd) else None
    finally:
        os.close(fd)


def refuse_twins(listed: Iterable[bytes], changed: Collection[bytes]) -> None:
    """Refuse paths that the file system takes for one another.

    Args:
        listed: all paths that there shall be.
        changed: those that change.
    """
    same: dict[bytes, list[bytes]] = {}
    for path in listed:
        same.setdefault(folded(path), []).append(path)
    twins = tuple(path for paths in same.values() if len(paths) > 1 and {*paths} & {*changed} for path in paths)
    if twins:
        message = "This file system takes these names for the same. Nothing was applied."
        raise ConflictError(message, paths=twins, next_step="Let the agent rename them, or take them as a branch.")


def _open_lock(folder: Path) -> int:
    return os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _recover(workspace: Path, folder: Path) -> str | None:
    journal = Journal.read(folder)
    if journal is None:
        return None
    try:
        with closing(Target(workspace, folder, journal)) as target:
            with suppress(FileNotFoundError):
                target.resume()
            target.undo(journal.steps)
            target.end()
    except OSError as error:
        raise _half_way(workspace, journal, error) from error
    return journal.run if journal.steps else None


def _half_way(workspace: Path, journal: Journal, error: OSError) -> WorkspaceError:
    message = f"An apply to {workspace} was cut off, and can not be undone: {error.strerror}."
    step = f"Make it possible to write there, and type the command again. The old files are in {journal.stage}."
    return WorkspaceError(message, next_step=step)


@contextmanager
def writing(shadow: Shadow, run: str) -> Iterator[Target]:
    """The folder with ours in it, which is gone at the end, however that comes."""
    journal = Journal(run=run)
    with closing(Target(shadow.workspace, shadow.folder, journal)) as target:
        journal.write(shadow.folder)
        try:
            target.begin()
            yield target
        finally:
            target.end()
