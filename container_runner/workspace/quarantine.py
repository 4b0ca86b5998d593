"""Objects that are kept apart from the shadow's until they are known to be whole, as those that came out of a box.

Where git fails in the middle, as on a full disk, what it had begun to write goes with them: it would stay for ever.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterable, Collection
from pathlib import Path

from container_runner.workspace.git import ON_DISK, git


class Quarantine:
    """A folder of objects beside the shadow's own; git in it reads both, and writes here. See `Shadow.quarantine`.

    Args:
        git_dir: the shadow's.
        folder: an empty one.
    """

    def __init__(self, git_dir: Path, folder: Path) -> None:
        self.folder = folder
        self._git_dir = git_dir
        self._objects = git_dir / "objects"
        (folder / "pack").mkdir()

    async def git(
        self, *words: str | bytes, stdin: bytes | AsyncIterable[bytes] = b"", ok: Collection[int] = (0,)
    ) -> bytes:
        """Run git in the shadow, with these objects and an index of its own; its stdout.

        Raises:
            WorkspaceError: its exit code is none of *ok*.
        """
        return await git(*words, folder=self._git_dir, stdin=stdin, ok=ok, env=self.env)

    async def fast_import(self, stream: AsyncIterable[bytes]) -> dict[bytes, bytes]:
        """Run `git fast-import` on a stream; the ids by their marks. The refs that it makes go with the quarantine."""
        place, marks = self.folder / "import", self.folder / "marks"
        for name in ("objects", "refs"):
            (place / name).mkdir(parents=True)
        for name in ("HEAD", "config"):
            shutil.copy(self._git_dir / name, place)
        words = ("fast-import", "--quiet", "--done", f"--export-marks={marks}")
        await git(*words, folder=place, stdin=stream, env={**self.env, **ON_DISK})
        return dict(line.split(b" ") for line in marks.read_bytes().splitlines())

    @property
    def env(self) -> dict[str, str]:
        """The variables for a git that reads both, and writes here."""
        return {
            "GIT_OBJECT_DIRECTORY": str(self.folder),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(self._objects),
            "GIT_INDEX_FILE": str(self.folder / "index"),
        }

    def release(self) -> None:
        """Move the objects into the shadow. What names a pack, its index, comes last."""
        (self._objects / "pack").mkdir(exist_ok=True)
        files = [file for file in self.folder.glob("pack/pack-*") if file.is_file()]
        for file in sorted(files, key=lambda file: file.suffix == ".idx"):
            file.replace(self._objects / "pack" / file.name)
        for file in self.folder.glob("[0-9a-f][0-9a-f]/*"):
            place = self._objects / file.parent.name
            place.mkdir(exist_ok=True)
            file.replace(place / file.name)
