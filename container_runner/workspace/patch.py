r"""The way into an overlay whose box does not begin with the folder as it is: what differs, laid over it as data.

`sh -c PATCH sh FOLDER` reads three lines from stdin: a commit or "none"; the names that have to go; and their folders,
which go as well if nothing is left in them. Then comes an archive with what takes the place of what went, and a pack of
the commits that the repository below does not have. Last, HEAD is moved to the commit, and the index with it.

So what git ignores is there as in the folder, and only what differs travels.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing
from posixpath import dirname
from typing import Final

from container_runner.workspace import tar
from container_runner.workspace.git import check, open_git
from container_runner.workspace.objects import difference, listing
from container_runner.workspace.shadow import Shadow, Start
from container_runner.workspace.way_in import members

PACK: Final = ".container-runner-pack"
"""Where the pack lies for a moment. What is called so is never carried."""

PATCH: Final = rf"""
export LC_ALL=C GIT_DIR=.git GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1
unset TAR_OPTIONS GIT_WORK_TREE GIT_INDEX_FILE GIT_OBJECT_DIRECTORY GIT_ALTERNATE_OBJECT_DIRECTORIES
cd "$1" && IFS= read -r head && IFS= read -r gone && IFS= read -r folders || exit 71
printf '%b' "$gone" | xargs -0 rm -rf -- || exit 73
printf '%b' "$folders" | xargs -0 rmdir -p -- 2>/dev/null
tar -xof - >&2 || exit 72
if [ -e {PACK} ]; then
  ! command -v git >/dev/null || git index-pack --stdin <{PACK} >/dev/null || exit 74
  rm -f {PACK}
fi
command -v git >/dev/null || exit 0
[ "$head" != none ] || exit 0
git -c core.hooksPath=/dev/null update-ref HEAD "$head" &&
  git -c core.fsmonitor=false read-tree --reset "$head" || exit 75
git -c core.fsmonitor=false update-index -q --refresh >&2 || :
"""


async def is_other(shadow: Shadow, start: Start, below: str) -> bool:
    """Whether *start* is anything else than the folder is now, of which *below* is the tree."""
    head = start.head or start.user
    return bool(await difference(shadow, below, start.files)) or (head is not None and head != await shadow.user_head())


async def patch(shadow: Shadow, start: Start, below: str) -> AsyncGenerator[bytes]:
    """What PATCH reads, to make *start* of the folder, of which *below* is the tree.

    Raises:
        WorkspaceError: git failed, as it does with a damaged repository.
    """
    changed = await difference(shadow, below, start.files)
    folders = {folder for path in changed if (folder := dirname(path))}
    head = (start.head or start.user) if shadow.is_repository else None
    yield b"".join(b"%s\n" % line for line in ((head or "none").encode(), spelled(changed), spelled(folders)))
    with shadow.scratch() as stage:
        if head is not None and head != (there := await shadow.user_head()):
            words = ("pack-objects", "--quiet", "--revs", "--delta-base-offset", "--stdout")
            stdin = f"{head}\n^{there}\n" if there else f"{head}\n"
            with (stage / PACK).open("wb") as file:
                async with open_git(*words, folder=shadow.git_dir, stdin=stdin.encode()) as pipe:
                    async for chunk in pipe:
                        file.write(chunk)
                    await check(pipe, "pack-objects")
            async for chunk in tar.InThread(tar.write(os.fsencode(stage), [PACK.encode()])):
                yield chunk
    entries = {path: entry for path, entry in (await listing(shadow, start.files)).items() if path in changed}
    async with aclosing(tar.joined(members(shadow, entries))) as chunks:
        async for chunk in chunks:
            yield chunk
    yield tar.END


def spelled(names: Collection[bytes]) -> bytes:
    """Names, each ended by NUL, as one line that `printf %b` takes. Where a sh reads a line, it reads nothing more."""
    lines = (name.replace(b"\\", b"\\0134").replace(b"\n", b"\\0012") for name in sorted(names))
    return b"".join(b"%s\\0000" % line for line in lines)
