"""A shadow does not grow for ever: what is old in it becomes one pack, without what no run refers to any more.

What was written within a day stays as it is. So nothing is taken from who is at work: git renews the time of what it
finds there instead of writing it again.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from container_runner.errors import WorkspaceError
from container_runner.workspace.carry import FOLDER, Carry
from container_runner.workspace.git import git
from container_runner.workspace.modules import MODULE
from container_runner.workspace.shadow import kept_at

_log = logging.getLogger(__name__)

AGE: Final = 24 * 3600.0
"""Seconds for which nothing is touched."""

_HISTORIES: Final = ("head", "branch", MODULE)
"""How the names of refs begin that have commits on the user's own; the others have trees of ours."""


async def tidy_all(state_dir: Path) -> None:
    """Tidy the shadows in a state folder, but those of workspaces of which a run is at work, or not fetched."""
    for folder in _idle(state_dir):
        try:
            await tidy(folder)
        except WorkspaceError as error:
            _log.info("%s is not tidied: %s", folder, error)


def _idle(state_dir: Path) -> list[Path]:
    state_dir = state_dir.resolve()
    carries = (Carry.load(state_dir, run) for run in Carry.runs(state_dir))
    used = {kept_at(Path(carry.workspace), state_dir) for carry in carries if carry is not None}
    return [git.parent for git in (state_dir / FOLDER).glob("*/shadow.git") if git.parent not in used]


async def tidy(folder: Path) -> None:
    """Tidy one shadow, in the folder that is kept of a workspace.

    Raises:
        WorkspaceError: git failed, as it does if the user's repository is gone. Nothing was removed then.
    """
    shadow = folder / "shadow.git"
    packs, loose = list(_old(shadow, "pack/pack-*.pack")), list(_old(shadow, "[0-9a-f][0-9a-f]/*"))
    if len(packs) + bool(loose) < 2:
        return
    kept = await _wanted(shadow, folder / "index")
    held = {f"{file.parent.name}{file.name}" for file in loose}
    for pack in packs:
        said = await git("show-index", folder=shadow, stdin=pack.with_suffix(".idx").read_bytes())
        held |= {line.split()[1] for line in said.decode().splitlines()}
    asked = "".join(f"{oid}\n" for oid in sorted(held & kept)).encode()
    made = await git("pack-objects", "--quiet", str(shadow / "objects/pack/pack"), folder=shadow, stdin=asked)
    names = [f"pack-{name}.pack" for name in made.decode().split()]
    for file in [*loose, *(pack for pack in packs if pack.name not in names)]:
        with suppress(FileNotFoundError):
            if _is_old(file):
                for part in [file.with_suffix(".idx"), file] if file.suffix else [file]:
                    part.unlink()


async def _wanted(shadow: Path, index: Path) -> set[str]:
    """What the runs and the index refer to, but not the user's own history."""
    ours: list[str] = []
    theirs: list[str] = []
    for line in (await git("for-each-ref", "--format=%(objectname) %(refname)", folder=shadow)).decode().splitlines():
        oid, _, name = line.partition(" ")
        name = name.rpartition("/")[2]
        if name == "user":
            theirs.append(f"^{oid}")
        else:
            (theirs if name.startswith(_HISTORIES) else ours).append(oid)
    env = {"GIT_INDEX_FILE": str(index)}
    found: list[str] = []
    for tips, more in ((ours, ("--indexed-objects",)), (theirs, ())):
        if tips or more:
            words = ("rev-list", "--objects", "--no-object-names", *more, "--stdin")
            stdin = "".join(f"{tip}\n" for tip in tips).encode()
            found += (await git(*words, folder=shadow, stdin=stdin, env=env)).decode().split()
    return set(found)


def _old(shadow: Path, pattern: str) -> Iterator[Path]:
    return (file for file in (shadow / "objects").glob(pattern) if _is_old(file))


def _is_old(file: Path) -> bool:
    return os.lstat(file).st_mtime < time.time() - AGE
