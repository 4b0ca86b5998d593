"""Which files of a mounted workspace a run has changed.

Two looks at the folder are compared, before and after. `git status` would know more, but it obeys the repository's
own configuration, which may name programs to run, and which the agent can write.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Generator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Final

from container_runner.workspace.changes import ChangedFile

MOST_FILES: Final = 50_000
MOST_SECONDS: Final = 2.0
MOST_DEPTH: Final = 50
"""The bounds of one look. A folder beyond them is not compared: half a look would tell of changes that are none."""

UNSEEN: Final = frozenset(
    [
        ".git",
        ".hg",
        ".svn",
        "node_modules",
        ".venv",
        "__pycache__",
        ".tox",
        ".nox",
        ".mypy_cache",
        ".pytest_cache",
        ".ruff_cache",
        ".hypothesis",
    ]
)
"""Folders that are not looked into, wherever they are: what changes there by itself tells a person little."""

Snapshot = Mapping[str, tuple[int, ...]]
"""The files of a folder, by their path in it, with what changes when a file does."""


def changed(before: Snapshot | None, after: Snapshot | None) -> tuple[ChangedFile, ...] | None:
    """What differs between two looks, by path; None if it can not be told."""
    if before is None or after is None:
        return None
    found: list[ChangedFile] = []
    for path in sorted(before.keys() | after.keys()):
        if path not in before or path not in after:
            found.append(ChangedFile(path=os.fsencode(path), status="added" if path in after else "deleted"))
        elif before[path] != after[path]:
            found.append(ChangedFile(path=os.fsencode(path), status="modified"))
    return tuple(found)


def snapshot(folder: str | Path) -> Snapshot | None:
    """The files in *folder*; symlinks are not followed. None if it has too many, or can not be read."""
    ends_at = time.monotonic() + MOST_SECONDS
    found: dict[str, tuple[int, ...]] = {}
    try:
        with closing(_files(os.open(Path(folder).expanduser(), os.O_RDONLY | os.O_DIRECTORY), "", 0)) as files:
            for path, facts in files:
                found[path] = facts
                if len(found) > MOST_FILES or time.monotonic() > ends_at:
                    return None
    except OSError:
        return None
    return found


def _files(fd: int, prefix: str, depth: int) -> Generator[tuple[str, tuple[int, ...]], None, None]:
    """Every file below the open folder *fd*, which is closed at the end."""
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                try:
                    facts = entry.stat(follow_symlinks=False)
                except OSError:
                    continue  # it has gone meanwhile
                if not stat.S_ISDIR(facts.st_mode):
                    yield prefix + entry.name, (facts.st_mode, facts.st_size, facts.st_ctime_ns, facts.st_ino)
                elif entry.name not in UNSEEN and depth < MOST_DEPTH:
                    try:
                        # Opened from its parent and without following: nobody can put a symlink in its place.
                        child = os.open(entry.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
                    except OSError:
                        continue  # it is gone, or not for us
                    yield from _files(child, f"{prefix}{entry.name}/", depth + 1)
    finally:
        os.close(fd)
