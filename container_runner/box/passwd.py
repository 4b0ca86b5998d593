"""The line in /etc/passwd of a user whom the image does not know, for engines that add none.

ssh, whoami and getpwuid want one. The names that an image has, and behind them ours, are kept in the state folder and
mounted read-only over the image's own file. Whose names they are is part of where they are:

    <state_dir>/passwd/<digest of engine, image's name, uid, gid and HOME>/<the image's id>

The newest in such a folder is what that image was when it was looked at last. That it is the same one still, is seen
when there is a container of it: see `container_runner.engine.names`.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

import attrs

from container_runner.box.user import User
from container_runner.config import paths
from container_runner.config.values import Mount
from container_runner.errors import StateError
from container_runner.quantities import DAY

FOLDER: Final = "passwd"

TARGET: Final = "/etc/passwd"

LIMIT: Final = 1024 * 1024
"""The longest file, in bytes, that is taken over."""

_ID: Final = re.compile("[0-9a-f]{64}")
_NONE: Final = "0" * 64
"""In the place of an image's id: it is not known any more what the name stands for."""

_HOME: Final = re.compile(r"/[^:\n]*")


@attrs.frozen
class Passwd:
    """What is known of the names in an image, for one user."""

    folder: Path
    user: User
    home: str

    image: str = ""
    """The id of the image that was looked at last; "" if none was, so that a container has to tell."""

    is_given: bool = False
    """Whether its names are there to be mounted, with the user's among them. False, though it was looked at: it has
    something else in that place than a file that can be taken over, and stays as it is."""

    @classmethod
    def known(cls, state: Path, *, engine: str, image: str, user: User, home: str) -> Self:
        """What the state folder holds.

        Args:
            engine: its address.
            image: the image's name.
            home: the user's HOME in the container.
        """
        home = home if _HOME.fullmatch(home) else paths.HOME
        key = hashlib.sha256("\0".join((engine, image, str(user), home)).encode("utf-8", "surrogateescape"))
        folder = state / FOLDER / key.hexdigest()[:32]
        if not (found := _files(folder)):
            return cls(folder, user, home)
        _, name, size = found[-1]
        return cls(folder, user, home, "" if name == _NONE else name, size > 0)

    @property
    def mount(self) -> Mount | None:
        """What is mounted in the container, if anything is."""
        return Mount(str(self.folder / self.image), TARGET, read_only=True) if self.is_given else None

    def forget(self) -> None:
        """Have the next container tell: the image's name stands for another one.

        Raises:
            StateError: the state folder can not be written.
        """
        self.keep(_NONE, None)

    def keep(self, image: str, content: bytes | None) -> None:
        """Keep what the image with this id has in its file; None if that can not be taken over.

        Raises:
            StateError: the state folder can not be written.
        """
        made = (None if content is None else with_line(content, self.user, self.home)) or b""
        file = self.folder / image
        try:
            self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            *others, newest = _files(self.folder) or [(0, "", 0)]
            for written, name, _ in others:
                if written < (time.time() - DAY) * 1e9:  # no start can be about to mount it
                    (self.folder / name).unlink(missing_ok=True)
            # One that is there may be mounted, and must stay the file that it is.
            if not os.path.lexists(file) or file.read_bytes() != made:
                with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".", delete=False) as new:
                    new.write(made)
                    os.fchmod(new.fileno(), 0o644)
                Path(new.name).replace(file)
            now = max(time.time_ns(), newest[0] + 1)
            os.utime(file, ns=(now, now))
        except OSError as error:
            raise StateError(f"{self.folder} can not be written: {error.strerror}.") from None


def _files(folder: Path) -> list[tuple[int, str, int]]:
    """The files in a folder of ours, the newest last: when each was written, its name, its size."""
    found = []
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            info = entry.stat(follow_symlinks=False)
            if _ID.fullmatch(entry.name) and stat.S_ISREG(info.st_mode):
                found.append((info.st_mtime_ns, entry.name, info.st_size))
    return sorted(found)


def with_line(content: bytes, user: User, home: str) -> bytes | None:
    """The text of a /etc/passwd with a line for *user* behind the others; None if it has one for that uid."""
    names = set[bytes]()
    for line in content.split(b"\n"):
        name, _, uid = (*line.lstrip().split(b":")[:3], b"", b"", b"")[:3]
        names.add(name)
        if uid.isdigit() and int(uid[:32]) == user.uid and name[:1] not in (b"", b"#", b"+", b"-"):
            return None
    wanted = ("root" if user.uid == 0 else "agent", f"agent-{user.uid}", f"agent-{user.uid}-{user.gid}")
    free = next((it for it in wanted if it.encode() not in names), "container-runner")
    between = b"" if not content or content.endswith(b"\n") else b"\n"
    return content + between + f"{free}:x:{user}:agent:{home}:/bin/sh\n".encode("utf-8", "surrogateescape")
