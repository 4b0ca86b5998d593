"""Objects that came out of a box, kept apart until they are known to be whole."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path

from container_runner.workspace.shadow import Shadow


class Quarantine:
    """A folder of objects beside the shadow's own; git in it reads both, and writes here. Leaving it removes it."""

    def __init__(self, shadow: Shadow, folder: Path) -> None:
        self.shadow = shadow
        self.folder = folder

    @classmethod
    @asynccontextmanager
    async def open(cls, shadow: Shadow) -> AsyncIterator[Quarantine]:
        with shadow.scratch() as folder:
            (folder / "pack").mkdir()
            yield cls(shadow, folder)

    async def git(
        self, *words: str | bytes, stdin: bytes | AsyncIterable[bytes] = b"", ok: Collection[int] = (0,)
    ) -> bytes:
        """Run git in the shadow, with these objects and an index of its own; its stdout.

        Raises:
            WorkspaceError: its exit code is none of *ok*.
        """
        env = {
            "GIT_OBJECT_DIRECTORY": str(self.folder),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(self.shadow.objects),
            "GIT_INDEX_FILE": str(self.folder / "index"),
        }
        return await self.shadow.git(*words, stdin=stdin, ok=ok, env=env)

    def release(self) -> None:
        """Move the objects into the shadow. What names a pack, its index, comes last."""
        (self.shadow.objects / "pack").mkdir(exist_ok=True)
        files = [file for file in self.folder.glob("pack/pack-*") if file.is_file()]
        for file in sorted(files, key=lambda file: file.suffix == ".idx"):
            file.replace(self.shadow.objects / "pack" / file.name)
        for file in self.folder.glob("[0-9a-f][0-9a-f]/*"):
            place = self.shadow.objects / file.parent.name
            place.mkdir(exist_ok=True)
            file.replace(place / file.name)
