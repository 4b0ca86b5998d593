"""A folder that is written into by names: files go out, others come in, and all of it can be undone.

New files are made in a folder of ours in the workspace, `.container-runner-RUN`; then old ones are renamed into it, and
new ones out of it. No file is written through: a name is given another file, so that a hard link elsewhere keeps what
it had, and each folder on the way to a name is opened without following links.

**If we are killed.** Before the first name changes, a journal says all that will be done, with the numbers of the
files, and `Target.undo` undoes it from that. It may be killed as well: what is done already shows in the folder. The
journal lies in the state folder and not in the workspace, for an agent that has the folder mounted could write one
there, and have us rename for it.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Literal

import attrs

from container_runner.errors import ConflictError, StateError
from container_runner.workspace.findings import LINK, Difference

JOURNAL: Final = "apply.json"

_NO_LINKS: Final = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""What a file system says that has no hard links, or none of links."""

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_NOT_THERE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""What says that a path is not there: nothing is, or a file or a link stands for a folder on the way."""


@attrs.frozen(kw_only=True)
class Step:
    """One name that changes."""

    deed: Literal["take", "rmdir", "mkdir", "put"]
    """"take": the file goes into our folder, as oN. "put": nN comes from there."""

    path: bytes
    number: int = 0
    """The N."""

    is_needed: bool = True
    """Whether a folder that is not empty, and so can not be removed, is in the way."""

    facts: tuple[int, ...] = ()
    """See `_facts`: of the file that is taken or put. The mode and the owner of a folder that is removed."""


@attrs.frozen(kw_only=True)
class Journal:
    """What is going on in a workspace."""

    run: str
    steps: tuple[Step, ...] = ()
    """What is being done. None while all names are as they were, or as they shall be: then only our folder is left."""

    @property
    def stage(self) -> str:
        """The name of our folder."""
        return f".container-runner-{self.run}"

    def write(self, folder: Path) -> None:
        """Put it down, for good."""
        steps = [[step.deed, os.fsdecode(step.path), step.number, step.is_needed, step.facts] for step in self.steps]
        data = json.dumps({"run": self.run, "steps": steps}).encode()
        new = folder / f"{JOURNAL}.new"
        with new.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.replace(folder / JOURNAL)

    @classmethod
    def read(cls, folder: Path) -> Journal | None:
        """The one in *folder*, if there is one.

        Raises:
            StateError: it can not be read.
        """
        file = folder / JOURNAL
        try:
            said: dict[str, Any] = json.loads(file.read_bytes())
            steps = tuple(
                Step(deed=deed, path=os.fsencode(path), number=number, is_needed=is_needed, facts=tuple(facts))
                for deed, path, number, is_needed, facts in said["steps"]
            )
            return cls(run=said["run"], steps=steps)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            step = (
                "An apply was cut off. Look for its old files in .container-runner-* in the workspace, then remove it."
            )
            raise StateError(f"{file} can not be read.", next_step=step) from error


def was_changed(*paths: bytes) -> ConflictError:
    """The error for what somebody else changes just now."""
    message = "The folder was changed while the work was applied. All is as you have it."
    return ConflictError(message, paths=paths, next_step="Try again.")


def _in_the_way(path: bytes) -> ConflictError:
    message = "Something that is not looked at, because git ignores it, is in the way. Nothing was applied."
    return ConflictError(message, paths=(path,), next_step="Move it away, and try again.")


class Target:
    """A workspace that is written into, by names in folders that are open.

    Args:
        workspace: its real path.
        folder: where its journal lies.
        journal: what is going on.
    """

    def __init__(self, workspace: Path, folder: Path, journal: Journal) -> None:
        self._folder = folder
        self._journal = journal
        self._top = os.open(workspace, _FOLDER)
        self._stage = -1
        self._made: dict[bytes, tuple[int, ...]] = {}
        self._is_whole = not journal.steps
        """Whether all names are as they were, or as they shall be."""

    def begin(self) -> None:
        """Make our folder."""
        os.mkdir(self._journal.stage, 0o700, dir_fd=self._top)
        try:
            self.resume()
        except BaseException:
            os.rmdir(self._journal.stage, dir_fd=self._top)
            raise

    def resume(self) -> None:
        """Open our folder. Raises FileNotFoundError if it is not there."""
        self._stage = os.open(self._journal.stage, _FOLDER, dir_fd=self._top)

    def end(self) -> None:
        """Remove our folder, and the journal. They stay where something could not be undone."""
        if not self._is_whole:
            return
        if self._stage >= 0:
            for name in os.listdir(self._stage):
                os.unlink(name, dir_fd=self._stage)
            os.rmdir(self._journal.stage, dir_fd=self._top)
        os.unlink(self._folder / JOURNAL)

    def close(self) -> None:
        """Close the folders. What is left in ours is for `recover`."""
        for fd in {self._top, self._stage} - {-1}:
            os.close(fd)
        self._top = self._stage = -1

    def folds_names(self) -> bool:
        """Whether the file system takes two ways to write a name for the same."""
        os.close(os.open("\u00e9A", _CREATE, 0o600, dir_fd=self._stage))
        try:
            return any(self._exists(name) for name in ("\u00e9a", "e\u0301A"))
        finally:
            os.unlink("\u00e9A", dir_fd=self._stage)

    def make(self, path: bytes, number: int, mode: bytes, content: bytes) -> None:
        """Make the new file of *path*, beside it. It belongs to who had the old one, or has the folder."""
        name = f"n{number}"
        old = self._lstat(path)
        owner = self._owner(path) if old is None else old
        if mode == LINK:
            os.symlink(content, os.fsencode(name), dir_fd=self._stage)
            if os.geteuid() == 0:
                os.chown(name, owner.st_uid, owner.st_gid, dir_fd=self._stage, follow_symlinks=False)
        else:
            fd = os.open(name, _CREATE, 0o777 if mode == b"100755" else 0o666, dir_fd=self._stage)
            with open(fd, "wb") as file:
                file.write(content)
                if os.geteuid() == 0:
                    os.fchown(fd, owner.st_uid, owner.st_gid)
                if old is not None and stat.S_ISREG(old.st_mode):  # who may read it stays as it was
                    rights = stat.S_IMODE(old.st_mode) & 0o777
                    rights = rights | (rights & 0o444) >> 2 if mode == b"100755" else rights & ~0o111
                    os.fchmod(fd, rights)
        self._made[path] = _facts(os.stat(name, dir_fd=self._stage, follow_symlinks=False))

    def plan(self, todo: Difference) -> tuple[Step, ...]:
        """What has to be done, in its order: files away, folders away, folders made, files there.

        Raises:
            ConflictError: what is there is not what was said, or something is in the way.
        """
        takes, puts, folders, way = {}, [], set[bytes](), set[bytes]()
        for number, (path, (before, _)) in enumerate(todo.items()):
            if before is not None:
                there = self._lstat(path)
                if there is None or stat.S_ISDIR(there.st_mode):
                    raise was_changed(path)
                takes[path] = Step(deed="take", path=path, number=number, facts=_facts(there))
        for number, (path, (_, after)) in enumerate(todo.items()):
            if after is not None:
                puts.append(Step(deed="put", path=path, number=number, facts=self._made[path]))
                way |= {*_folders(path)}
        for folder in sorted(way):
            there = self._lstat(folder)
            if there is None or folder in takes:
                folders.add(folder)
            elif not stat.S_ISDIR(there.st_mode):
                raise _in_the_way(folder)
        empty = {folder: False for path in takes for folder in _folders(path) if folder not in way}
        for step in puts:
            there = self._lstat(step.path)
            if there is not None and stat.S_ISDIR(there.st_mode):
                empty[step.path] = True
            elif there is not None and step.path not in takes:
                raise _in_the_way(step.path)
        removed = []
        for folder in sorted(empty, key=lambda folder: -folder.count(b"/")):
            there = self._lstat(folder)
            if there is not None:
                facts = (stat.S_IMODE(there.st_mode), there.st_uid, there.st_gid)
                removed.append(Step(deed="rmdir", path=folder, is_needed=empty[folder], facts=facts))
        made = [Step(deed="mkdir", path=folder) for folder in sorted(folders)]
        return (*takes.values(), *removed, *made, *puts)

    def carry_out(self, steps: tuple[Step, ...]) -> None:
        """Do all *steps*, or undo those that were done.

        Raises:
            ConflictError: a file is not what it was when the steps were planned.
            OSError: one of them failed.
        """
        attrs.evolve(self._journal, steps=steps).write(self._folder)
        self._is_whole = False
        try:
            for step in steps:
                with self._open(step.path) as (folder, name):
                    self._do(step, folder, name)
        except BaseException:
            self.undo(steps)
            raise
        self._settle()

    def undo(self, steps: tuple[Step, ...]) -> None:
        """Undo what was done of *steps*. A file that somebody has changed since then stays as it is.

        Without our folder nothing is: old files would be missing. Another apply then finishes what this one began.
        """
        for step in reversed(steps if self._stage >= 0 else ()):
            try:
                with self._open(step.path) as (folder, name):
                    self._undo(step, folder, name)
            except OSError as error:
                if error.errno not in _NOT_THERE:
                    raise
        self._settle()

    def _settle(self) -> None:
        attrs.evolve(self._journal, steps=()).write(self._folder)
        self._is_whole = True

    def _do(self, step: Step, folder: int, name: bytes) -> None:
        match step.deed:
            case "take":
                old = f"o{step.number}"
                os.rename(name, old, src_dir_fd=folder, dst_dir_fd=self._stage)
                if _facts(os.stat(old, dir_fd=self._stage, follow_symlinks=False)) != step.facts:
                    raise was_changed(step.path)
            case "put":
                self._put(step, folder, name)
            case "mkdir":
                try:
                    os.mkdir(name, dir_fd=folder)
                except FileExistsError:  # somebody has just made it as well; if it is no folder, the next step fails
                    return
                if os.geteuid() == 0:
                    owner = os.fstat(folder)
                    os.chown(name, owner.st_uid, owner.st_gid, dir_fd=folder, follow_symlinks=False)
            case "rmdir":
                try:
                    os.rmdir(name, dir_fd=folder)
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise
                    if step.is_needed:
                        raise _in_the_way(step.path) from None

    def _put(self, step: Step, folder: int, name: bytes) -> None:
        """Give a new file its name. A link, and not a rename, which would replace what somebody has just made there."""
        new = f"n{step.number}"
        try:
            os.link(new, name, src_dir_fd=self._stage, dst_dir_fd=folder, follow_symlinks=False)
            os.unlink(new, dir_fd=self._stage)
        except FileExistsError:
            raise was_changed(step.path) from None
        except (NotImplementedError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_LINKS:
                raise
            if _lstat(name, folder) is not None:
                raise was_changed(step.path) from None
            os.rename(new, name, src_dir_fd=self._stage, dst_dir_fd=folder)

    def _undo(self, step: Step, folder: int, name: bytes) -> None:
        match step.deed:
            case "take":
                if _lstat(name, folder) is None:
                    os.rename(f"o{step.number}", name, src_dir_fd=self._stage, dst_dir_fd=folder)
            case "put":
                there = _lstat(name, folder)
                if there is not None and _facts(there) == step.facts:
                    os.unlink(name, dir_fd=folder)
            case "mkdir":
                with suppress(OSError):  # not empty: somebody has put something there
                    os.rmdir(name, dir_fd=folder)
            case "rmdir":
                mode, uid, gid = step.facts
                with suppress(FileExistsError):  # it was not removed, or a former try has made it
                    os.mkdir(name, 0o700, dir_fd=folder)
                fd = os.open(name, _FOLDER, dir_fd=folder)
                try:
                    if os.geteuid() == 0:
                        os.fchown(fd, uid, gid)
                    os.fchmod(fd, mode)
                finally:
                    os.close(fd)

    @contextmanager
    def _open(self, path: bytes) -> Iterator[tuple[int, bytes]]:
        """The folder that *path* is in, opened without following a link, and its name there."""
        *folders, name = path.split(b"/")
        fd = os.dup(self._top)
        try:
            for folder in folders:
                inner = os.open(folder, _FOLDER, dir_fd=fd)
                os.close(fd)
                fd = inner
            yield fd, name
        finally:
            os.close(fd)

    def _lstat(self, path: bytes) -> os.stat_result | None:
        """What is at *path*; None for nothing, also if a link or a file stands for a folder on the way."""
        try:
            with self._open(path) as (folder, name):
                return _lstat(name, folder)
        except OSError as error:
            if error.errno in _NOT_THERE:
                return None
            raise

    def _owner(self, path: bytes) -> os.stat_result:
        """The innermost folder of *path* that is there."""
        folders = (self._lstat(folder) for folder in _folders(path))
        return next(
            (found for found in folders if found is not None and stat.S_ISDIR(found.st_mode)), os.fstat(self._top)
        )

    def _exists(self, name: str) -> bool:
        return _lstat(os.fsencode(name), self._stage) is not None


def _folders(path: bytes) -> list[bytes]:
    """The folders that *path* is in, innermost first."""
    parts = path.split(b"/")
    return [b"/".join(parts[:end]) for end in range(len(parts) - 1, 0, -1)]


def _lstat(name: bytes, folder: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _facts(found: os.stat_result) -> tuple[int, ...]:
    """What tells a file from another, and from itself after a change."""
    return (found.st_ino, found.st_mode, found.st_size, found.st_mtime_ns)
