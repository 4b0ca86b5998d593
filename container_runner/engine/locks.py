"""Locks between processes, as files in the state folder. The kernel lets go of them when their holder dies."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import anyio

from container_runner.errors import StateError
from container_runner.folders import open_folder

POLL: Final = 0.05
"""Seconds between two tries for a lock that another process holds."""

LOCK_TIMEOUT: Final = 180.0
"""Seconds until a lock that others hold is given up. It is longer than anything takes that is done under one: making a
container whose image is there, or removing one."""


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


async def claim(state_dir: Path, workspace: str, *, carried: bool) -> LockFile:
    """Keep runs that write to *workspace* apart from those that carry it, for which it must stand still and be safe.

    Any number of the one sort may be at work at a time. The caller releases what it gets.

    Raises:
        StateError: a run of the other sort is at work there.
    """
    digest = hashlib.sha256(workspace.encode("utf-8", "surrogateescape")).hexdigest()[:20]
    mine, other = (
        LockFile(state_dir / "locks" / f"workspace.{digest}.{sort}.lock")
        for sort in (("carried", "rw") if carried else ("rw", "carried"))
    )
    await mine.acquire(shared=True)  # before the look, so that of two that come at once one sees the other
    if other.try_acquire():
        other.release(remove=True)
        return mine
    mine.release()
    there, here = ("rw", "carried") if carried else ("carried", "rw")
    raise StateError(
        f"{workspace} is being worked on by a run with workspace_mode = {there}.",
        next_step=f"Wait for its end (`container-runner ps`), or type --workspace-mode={there} instead of {here}.",
    )
