"""Which files that came out of a box are ignored, by rules that are held against names alone."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from container_runner.workspace.findings import LINK
from container_runner.workspace.git import git
from container_runner.workspace.objects import listing
from container_runner.workspace.shadow import Shadow

SIZE_LIMIT: Final = 64 * 1024
FILES_LIMIT: Final = 1000
NAME: Final = b".gitignore"


async def files_in(shadow: Shadow, tree: str) -> dict[bytes, str]:
    """The .gitignore files of a tree of the shadow's, with their ids."""
    found = await listing(shadow, tree, lambda line: line.endswith(NAME))
    files = ((path, entry) for path, entry in found.items() if os.path.basename(path) == NAME and entry.mode != LINK)
    return {path: entry.oid.decode() for path, entry in files}


class Rules:
    """The .gitignore files of a tree, alone in a folder of ours, beside the excludes that the shadow knows."""

    def __init__(self, shadow: Shadow, folder: Path) -> None:
        self._shadow = shadow
        self._folder = folder
        self._count = 0

    @classmethod
    @asynccontextmanager
    async def open(cls, shadow: Shadow, blobs: Mapping[bytes, str]) -> AsyncIterator[Rules]:
        """The rules of some .gitignore files of the shadow's, by their ids."""
        with shadow.scratch() as folder:
            self = cls(shadow, folder)
            for path, blob in blobs.items():
                self.add(path, await shadow.git("cat-file", "blob", blob))
            yield self

    def add(self, path: bytes, content: bytes) -> None:
        """Let a .gitignore say this. *path* must be one that `is_refused` lets through."""
        self._count += 1
        if self._count > FILES_LIMIT or len(content) > SIZE_LIMIT:
            return
        file = os.path.join(os.fsencode(self._folder), path)
        with suppress(OSError):  # where one is a folder in which another lies
            os.makedirs(os.path.dirname(file), exist_ok=True)
            with open(file, "wb") as opened:
                opened.write(content)

    async def ignored(self, names: Collection[bytes]) -> set[bytes]:
        """Those of *names* that are ignored."""
        if not names:
            return set()
        words = ("check-ignore", "--no-index", "-z", "--stdin")
        stdin = b"".join(b"./%s\0" % name for name in names)  # one may begin with a colon, which would say something
        said = await git(*words, folder=self._shadow.git_dir, tree=self._folder, stdin=stdin, ok=(0, 1))
        return {name[2:] for name in said.split(b"\0")[:-1]}
