"""Locks between processes, as files in the state folder. The kernel lets go of them when their holder dies."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import anyio

from container_runner.box.sources import contains
from container_runner.errors import StateError, WorkspaceBusyError
from container_runner.folders import open_folder, read_regular

POLL: Final = 0.05
"""Seconds between two tries for a lock that another process holds."""

LOCK_TIMEOUT: Final = 180.0
"""Seconds until a lock that others hold is given up. It is longer than anything takes that is done under one: making a
container whose image is there, or removing one."""

PATIENCE: Final = 30.0
"""Seconds in which other runs find out that the engine does not see the folder that they mean to write to."""


class LockFile:
    """An advisory lock on one file: held by one (`exclusive`), or by several at once (`shared`)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    def try_acquire(self, *, shared: bool = False) -> bool:
        """Take the lock if it is free, without waiting.

        Raises:
            StateError: the file can not be made.
        """
        while True:
            try:
                self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
                with open_folder(self.path.parent.parent, self.path.parent.name) as folder:
                    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
                    fd = os.open(self.path.name, flags, 0o600, dir_fd=folder)
            except OSError as error:
                raise StateError(f"The lock {self.path} can not be made: {error.strerror}.") from None
            try:
                fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                if os.fstat(fd).st_nlink:
                    self._fd, fd = fd, -1
                    return True
            except BlockingIOError:
                return False
            finally:
                if fd >= 0:
                    os.close(fd)
            # Its last holder removed the file between our two calls: lock the new one.

    def try_upgrade(self) -> bool:
        """Have a shared lock for oneself alone, if nobody else holds it. If somebody does, it may be lost.

        Of several holders that all try before they let go, the last one gets it.
        """
        if self._fd is None:
            return False
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    async def acquire(self, *, shared: bool = False, timeout: float = LOCK_TIMEOUT) -> None:
        """Take the lock, waiting for it.

        Raises:
            StateError: the file can not be made, or others held the lock for *timeout* seconds.
        """
        with anyio.move_on_after(timeout):
            while not self.try_acquire(shared=shared):
                await anyio.sleep(POLL)
            return
        raise StateError(
            f"The lock {self.path} was held for {timeout:g} seconds by another process.",
            next_step="Find that process (`lslocks` shows it) and end it if it hangs, or try again later.",
        )

    def mark(self) -> None:
        """Leave word, for whoever takes the lock later, that what it stands for should not be used any more."""
        if self._fd is not None:
            os.ftruncate(self._fd, 1)  # a hole, which has room on a full disk

    @property
    def is_marked(self) -> bool:
        """Whether somebody has left that word. Only known while we hold the lock."""
        return self._fd is not None and os.fstat(self._fd).st_size > 0

    def write(self, text: str) -> None:
        """Say something to those who do not get the lock. Raises StateError, and lets go, if it can not be written."""
        if self._fd is None:
            return
        try:
            os.pwrite(self._fd, os.fsencode(text), 0)
        except OSError as error:
            self.release(remove=True)
            raise StateError(f"The lock {self.path} can not be written: {error.strerror}.") from None

    def keep_across_exec(self) -> None:
        """Let the program that this process becomes, by `os.exec`, go on holding the lock."""
        if self._fd is not None:
            os.set_inheritable(self._fd, True)

    def release(self, *, remove: bool = False) -> None:
        """Let go of the lock if we hold it, and *remove* its file with it."""
        if self._fd is not None:
            if remove:
                with (
                    suppress(FileNotFoundError, NotADirectoryError),
                    open_folder(self.path.parent.parent, self.path.parent.name) as folder,
                ):
                    os.unlink(self.path.name, dir_fd=folder)
            os.close(self._fd)
            self._fd = None

    @asynccontextmanager
    async def held(self, timeout: float = LOCK_TIMEOUT) -> AsyncIterator[None]:
        """The lock, for the length of a block. See `acquire`."""
        await self.acquire(timeout=timeout)
        try:
            yield
        finally:
            self.release()


async def claim(state_dir: Path, workspace: str, *, carried: bool, patient: bool = False) -> LockFile:
    """Keep runs that write to *workspace* apart from those that carry it, for which it must stand still and be safe.

    A folder that it lies in counts as well, and one that lies in it. Any number of runs of the one sort may be at work
    at a time. The caller releases what it gets, and removes it.

    Args:
        workspace: its real path.
        patient: whether to wait `PATIENCE` seconds for those of the other sort.

    Raises:
        WorkspaceBusyError: a run of the other sort is at work there.
        StateError: the lock can not be made.
    """
    ends_at = anyio.current_time() + (PATIENCE if patient else 0)
    while True:
        try:
            return await _claim(state_dir, workspace, carried=carried)
        except WorkspaceBusyError:
            if anyio.current_time() >= ends_at:
                raise
        await anyio.sleep(0.1)


async def _claim(state_dir: Path, workspace: str, *, carried: bool) -> LockFile:
    here, there = ("carried", "rw") if carried else ("rw", "carried")
    folder = state_dir / "locks"
    mine = LockFile(folder / f"workspace.{secrets.token_hex(8)}.{here}.lock")
    await mine.acquire()
    mine.write(workspace)  # before the look, so that of two that come at once one sees the other
    for path in folder.glob(f"workspace.*.{there}.lock"):
        other = _holder(path)
        if other is not None and (contains(other, Path(workspace)) or contains(Path(workspace), other)):
            mine.release(remove=True)
            step = f"Wait for its end (`container-runner ps`), or type --workspace-mode={there} instead of {here}."
            told = f"{other} is being worked on by a run with workspace_mode = {there}."
            raise WorkspaceBusyError(told, next_step=step)
    return mine


def _holder(path: Path) -> Path | None:
    """What is written in a lock that somebody holds; None for one whose holder is dead, which goes."""
    lock = LockFile(path)
    try:
        if lock.try_acquire(shared=True):  # by several at once, and none takes another's look for a run
            lock.release(remove=lock.try_upgrade())
            return None
        said = read_regular(path)
        return Path(os.fsdecode(said)) if said else None  # one that has not said it yet looks after us
    except FileNotFoundError:
        return None
