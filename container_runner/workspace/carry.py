"""How the workspace of one run is carried, and what is written down of it for as long as its work is not fetched.

    <state_dir>/carried/<run>.json    how: written before its container starts, removed when nothing is left
    <state_dir>/layers/<run>/         what an overlay has written

So whoever comes after us, should we be killed, finds where the work is, and that nobody has it yet.
"""

from __future__ import annotations

import os
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal, Self

import attrs
import orjson

from container_runner.config import paths
from container_runner.config.converter import structured, unstructured
from container_runner.config.laws import is_history, law
from container_runner.errors import ConfigError, StateError
from container_runner.folders import open_file, open_folder
from container_runner.workspace.shadow import Start

FOLDER: Final = "carried"
LAYERS: Final = "layers"

_LARGEST: Final = 64 * 1024


Phase = Literal["in", "run", "fetched", "kept"]
"""On its way in; from when on the agent may have started; when all its work is in the shadow; and when all is that we
take, and what is too large is still where it was."""


@attrs.frozen(kw_only=True)
class Layer:
    """A folder of this machine that is only read, and what the box writes, which lies over it."""

    lower: str
    """The folder, as a real path."""

    target: str
    """Where the two together are in the box."""

    folder: str
    """Ours, in which the other two lie."""

    @property
    def upper(self) -> str:
        """What was written."""
        return f"{self.folder}/upper"

    @property
    def work(self) -> str:
        """The kernel's own, beside it."""
        return f"{self.folder}/work"


@attrs.frozen(kw_only=True)
class Carry:
    """How the workspace of one run is carried, and where its work is."""

    run: str
    """The run's id, by which its work is known."""

    agent: str
    workspace: str
    """The folder on this machine, as a real path."""

    how: Literal["overlay", "stream"]

    target: str = paths.WORKSPACE
    """Where it is in the box."""

    layers: tuple[Layer, ...] = ()
    """For an overlay: the workspace, and the repository if that is elsewhere."""

    volume: str = ""
    """For a stream: the volume's name."""

    nonce: str = attrs.field(default="", repr=False)
    """What a label of that volume says. The engines make a volume that is not there, silently and empty."""

    history: int | Literal["all"] = attrs.field(default="all", validator=law("a number, or all", is_history))
    """How many commits a stream takes along."""

    ignored: tuple[str, ...] = ()
    """Patterns of ignored files that a stream takes along."""

    lent: tuple[str, ...] = ()
    """The folders from which the repository may borrow objects, for the operator has named them as volumes."""

    start: Start | None = None
    """What the box begins with; None: the folder as it is."""

    below: str | None = None
    """The tree that the folder was when it was brought in; known from then on."""

    protected: tuple[str, ...] = ()
    unprotected: tuple[str, ...] = ()
    """What the operator says of the names that count as findings."""

    engine: str = ""
    """The engine's program."""

    endpoint: str = ""
    """Its address, if it is not the usual one of this machine."""

    image: str = ""
    container: str = ""
    user: str = ""
    """Who the agent is, as "UID:GID"."""

    phase: Phase = "in"

    is_forced: bool = True
    """Whether no other way may be tried if the engine can not do this one."""

    def save(self, state_dir: Path) -> None:
        """Write it down, all of it or nothing.

        Raises:
            StateError: the state folder can not be written.
        """
        name = f"{self.run}.json"
        try:
            with open_folder(state_dir, FOLDER, create=True) as folder:
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
                fd = os.open(f".{name}", flags, 0o600, dir_fd=folder)
                try:
                    os.write(fd, orjson.dumps(unstructured(self), option=orjson.OPT_INDENT_2))
                    os.fsync(fd)
                finally:
                    os.close(fd)
                os.rename(f".{name}", name, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError as error:
            raise StateError(f"{state_dir / FOLDER / name} can not be written: {error.strerror}.") from None

    def is_younger(self, state_dir: Path, seconds: float) -> bool:
        """Whether it was written down less than *seconds* ago."""
        with suppress(OSError), open_folder(state_dir, FOLDER) as folder:
            info = os.stat(f"{self.run}.json", dir_fd=folder, follow_symlinks=False)
            return abs(time.time() - info.st_mtime) < seconds
        return False

    def forget(self, state_dir: Path) -> None:
        """Remove what was written down: nothing of it is left anywhere but in the shadow."""
        with suppress(OSError), open_folder(state_dir, FOLDER) as folder:
            os.unlink(f"{self.run}.json", dir_fd=folder)

    @classmethod
    def load(cls, state_dir: Path, run: str) -> Self | None:
        """What is written down of a run; None if nothing is.

        Raises:
            StateError: it can not be read.
        """
        name = f"{run}.json"
        try:
            with open_folder(state_dir, FOLDER) as folder:
                fd = open_file(folder, name)
            try:
                values: Any = orjson.loads(os.read(fd, _LARGEST))
            finally:
                os.close(fd)
            return structured(cls, values, name)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, ConfigError) as error:
            step = "Look at it; if you can do without the work of that run, remove the file."
            reason = getattr(error, "strerror", None) or "it is not what we wrote"
            raise StateError(f"{state_dir / FOLDER / name} can not be read: {reason}.", next_step=step) from None

    @classmethod
    def runs(cls, state_dir: Path) -> list[str]:
        """The ids of the runs of which something is written down."""
        try:
            with open_folder(state_dir, FOLDER) as folder:
                names = _names(folder)
        except OSError:
            return []
        return sorted(name.removesuffix(".json") for name in names if name.endswith(".json") and name[0] != ".")

    def make_folders(self, state_dir: Path, owner: tuple[int, int]) -> None:
        """Make the folders of its layers.

        What is written belongs to whoever owns the folder below it, as far as we may give it away. Around it stands a
        folder that only the agent's user can enter: in there may be programs that run as somebody else.

        Raises:
            StateError: they can not be made.
        """
        try:
            for layer in self.layers:
                lower = os.stat(layer.lower)
                top = state_dir / LAYERS
                top.mkdir(mode=0o711, parents=True, exist_ok=True)
                own = (lower.st_uid, lower.st_gid) if os.getuid() == 0 else owner
                for path, mode, (uid, gid) in (
                    (top / self.run, 0o700, owner),
                    (Path(layer.folder), 0o700, owner),
                    (Path(layer.work), 0o700, own),
                    (Path(layer.upper), stat.S_IMODE(lower.st_mode), own),
                ):
                    path.mkdir(exist_ok=True)
                    path.chmod(mode)
                    if os.getuid() == 0:
                        os.chown(path, uid, gid, follow_symlinks=False)
        except OSError as error:
            raise StateError(f"{error.filename} can not be made: {error.strerror}.") from None

    def remove_folders(self, state_dir: Path) -> None:
        """Remove the folders of its layers, whatever an agent has made of them.

        Raises:
            StateError: something of them is left.
        """
        if not self.layers:
            return
        try:
            with open_folder(state_dir, LAYERS) as folder:
                _remove(folder, [name for name in _names(folder) if name.partition(".")[0] == self.run])
        except FileNotFoundError:
            pass
        except OSError as error:
            place = state_dir / LAYERS / self.run
            raise StateError(f"{place} can not be removed: {error.strerror}.", next_step=f"rm -rf {place}*") from None


def _names(folder: int) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries]


def _remove(top: int, names: list[str]) -> None:
    """Remove the folders *names* of the open folder *top*, and all in them. Nothing in them runs any more.

    An agent may have made folders deeper than we can go, so each comes up here before it is looked into.
    """
    left, count = list(names), 0
    while left:
        name = left.pop()
        with suppress(OSError):  # the rest says it
            os.chmod(name, 0o700, dir_fd=top)
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
        try:
            with os.scandir(fd) as entries:
                found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
            for entry, is_folder in found:
                if not is_folder:
                    os.unlink(entry, dir_fd=fd)
                    continue
                with suppress(OSError):  # it is not empty; an empty one may be root's, as the kernel's own is
                    os.rmdir(entry, dir_fd=fd)
                    continue
                os.chmod(entry, 0o700, dir_fd=fd)
                count += 1
                up = f"{name.partition('.')[0]}.{count}-{os.urandom(4).hex()}"
                os.rename(entry, up, src_dir_fd=fd, dst_dir_fd=top)
                left.append(up)
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=top)
