"""The host's git, run in the one way that obeys nobody's configuration but ours.

A repository that is worked on by an agent can tell git to run programs: hooks, filters, fsmonitor, drivers, transports.
So no git of ours looks for a repository. It is told one, reads no file of the system's or the user's, and what a
repository's own configuration could start is switched off on the command line, which stands above it.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import AsyncIterable, AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import anyio

from container_runner.errors import GitNotFoundError, WorkspaceError
from container_runner.stream.pipe import Pipe, open_pipe

OLDEST: Final = (2, 38)
"""The first version with `merge-tree --write-tree`."""

_SETTINGS: Final = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.untrackedCache=false",
    "core.attributesFile=/dev/null",
    "core.autocrlf=false",
    "core.fileMode=true",
    "core.symlinks=true",
    "core.protectHFS=true",
    "core.protectNTFS=true",
    "core.quotePath=false",
    "core.logAllRefUpdates=false",
    "core.alternateRefsCommand=true",
    "core.compression=1",
    "commit.gpgSign=false",
    "diff.external=",
    "diff.ignoreSubmodules=all",
    "diff.renames=true",
    "merge.renames=true",
    "pack.window=0",  # a pack is for one run: looking for deltas takes longer than what they save
    "pack.writeReverseIndex=false",  # `tidy` would have to remove it with its pack
    "fastimport.unpackLimit=1",
    "gc.auto=0",
    "maintenance.auto=false",
    "protocol.allow=never",
    "submodule.recurse=false",
)

_new_enough: Final = set[str]()
"""The programs of which this process knows it."""

_WHO: Final = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "container-runner"), ("EMAIL", "container-runner@localhost"))
}


async def git(
    *words: str | bytes,
    folder: Path,
    tree: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes | AsyncIterable[bytes] = b"",
    ok: Collection[int] = (0,),
) -> bytes:
    """Run one command of git to its end, and return its stdout.

    Args:
        folder: the repository, which is GIT_DIR.
        tree: the working tree, in which it then runs; None for none.
        env: more of git's variables, such as GIT_INDEX_FILE.
        ok: the exit codes that are no failure.

    Raises:
        WorkspaceError: it exited with another code.
        GitNotFoundError: there is no git.
    """
    async with open_git(*words, folder=folder, tree=tree, env=env, stdin=stdin) as pipe:
        said = b"".join([chunk async for chunk in pipe])
        await check(pipe, words[0], ok)
    return said


async def init_bare(folder: Path, ids: str) -> None:
    """Make a repository, maybe while others make the same one: git fails where it finds the lock of another.

    Args:
        ids: how it names objects, as "sha1".

    Raises:
        WorkspaceError: it failed again and again.
    """
    for wait in (0.1, 0.3, 1.0, None):
        try:
            await git("init", "--quiet", "--bare", "--template=", f"--object-format={ids}", folder=folder)
        except WorkspaceError:
            if wait is None:
                raise
            await anyio.sleep(wait)
        else:
            return


@asynccontextmanager
async def open_git(
    *words: str | bytes,
    folder: Path,
    tree: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes | AsyncIterable[bytes] = b"",
) -> AsyncIterator[Pipe]:
    """As `git`, for what does not fit into memory: read the pipe, then call `check`. Who leaves the block ends it."""
    program = find_git()
    settings = [word for setting in _SETTINGS for word in ("-c", setting)]
    variables = {
        "PATH": f"{Path(program).parent}{os.pathsep}{os.defpath}",
        "HOME": "/nonexistent",
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_DIR": str(folder),
        **({"GIT_WORK_TREE": str(tree)} if tree else {}),
        **_WHO,
        **(env or {}),
    }
    argv = [program, *settings, *map(os.fsdecode, words)]
    async with AsyncExitStack() as stack:
        try:
            started = open_pipe(argv, env=variables, cwd=tree or folder, stdin=stdin)
            pipe = await stack.enter_async_context(started)
        except OSError as error:
            raise WorkspaceError(f"git can not be started: {error.strerror}.") from error
        yield pipe


async def check(pipe: Pipe, word: str | bytes, ok: Collection[int] = (0,)) -> None:
    """Wait for the end of a git whose output was read.

    Raises:
        WorkspaceError: its exit code is none of *ok*.
    """
    code = await pipe.wait()
    if code not in ok:
        raise WorkspaceError(f"`git {os.fsdecode(word)}` failed.", exit_code=code, stderr=pipe.stderr)


def setting(key: str, value: str) -> dict[str, str]:
    """The variables that give git one more setting."""
    return {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": key, "GIT_CONFIG_VALUE_0": value}


ON_DISK: Final = setting("core.fsync", "committed,loose-object,reference")
"""What git writes is on the disk before it says so, refs and loose objects included: what held the work is removed
then, and a machine that loses its power forgets what was written last."""


async def user_config(keys: str, folder: Path | None = None, *, own: bool = True) -> dict[str, str]:
    """The user's own settings whose names match a pattern, as they count in the repository *folder*, if there is one.

    Nothing is run by this. Names are in lower case, but for what stands between the first and the last dot.

    Args:
        own: whether what the repository itself says counts too, which an agent may have written.
    """
    where = (f"--git-dir={folder}",) if folder else ()
    argv = [find_git(), *where, "config", *(() if folder else ("--global",)), "-z", "--type=path", "--show-scope"]
    async with open_pipe([*argv, "--get-regexp", f"^({keys})$"]) as pipe:
        said = b"".join([chunk async for chunk in pipe])
        await check(pipe, "config", (0, 1))
    words = iter(said.decode("utf-8", "surrogateescape").split("\0")[:-1])
    settings = [(scope, *entry.partition("\n")) for scope, entry in zip(words, words, strict=True)]
    return {key: value for scope, key, _, value in settings if own or scope not in ("local", "worktree")}


def find_git() -> str:
    """The path of git. Raises GitNotFoundError if there is none."""
    program = shutil.which("git")
    if program is None:
        raise GitNotFoundError("git was not found.")
    return program


async def check_version(folder: Path) -> None:
    """Raise GitNotFoundError unless there is a git that is new enough.

    Args:
        folder: any folder that exists.
    """
    if find_git() in _new_enough:
        return
    said = await git("version", folder=folder)
    found = re.search(rb"(\d+)\.(\d+)", said)
    if found is None or (int(found[1]), int(found[2])) < OLDEST:
        raise GitNotFoundError(f"git is too old: {said.decode('utf-8', 'replace').strip()}.")
    _new_enough.add(find_git())
