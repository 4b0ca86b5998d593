"""A carried workspace on its way to a node of a fleet, and what came of it on the way home, as packs of git objects.

A node makes a folder of its own of what the workspace is, commits included, and carries that; so nothing of it is ever
seen by another run. The work comes back as objects for the shadow that this machine has of the workspace, where it is
what it would be if the run had been here: for `Changes`, for branches, and for `container-runner apply`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Final

import attrs
from platformdirs import PlatformDirs

from container_runner.errors import WorkspaceError
from container_runner.workspace.changes import NOTES, Changes, Notes, read_notes, write_notes
from container_runner.workspace.git import check, git, open_git
from container_runner.workspace.shadow import Shadow, Start

CACHE: Final = PlatformDirs("container-runner").user_cache_path / "fleet"
"""Where a node has such folders; not in its state folder, which no workspace may be in."""

CHUNK: Final = 4 * 1024**2
"""Bytes of a pack that travel at once."""

_OLD: Final = 7 * 86400.0
"""Seconds after which a folder that no batch has used is removed."""

_RAW: Final = b"* -text -ident -filter -working-tree-encoding\n"
"""Bytes go into the folder as they are, whatever its own .gitattributes say."""


@attrs.frozen(kw_only=True)
class Parcel:
    """What a folder is made of."""

    base: str
    """The commit whose tree it is."""

    tree: str
    user: str | None
    """The commit that is HEAD; None without git, or without commits."""

    is_repository: bool
    ids: str
    """How git names objects, as "sha1"."""

    shallow: bytes = b""
    """Where the history that travels ends."""

    @property
    def key(self) -> str:
        """Another one for another folder."""
        return f"{self.tree}-{self.user or self.is_repository}"


@attrs.frozen(kw_only=True)
class Luggage:
    """What came of a run, beside its objects."""

    run: str
    tree: str
    """What the folder was in the box at the end."""

    head: str | None
    notes: Notes


async def make_parcel(shadow: Shadow, start: Start) -> Parcel:
    """What a node needs to make the folder that *start* is."""
    tree = (await shadow.git("rev-parse", f"{start.base}^{{tree}}")).decode().strip()
    shallow = shadow.git_dir / "shallow"
    return Parcel(
        base=start.base,
        tree=tree,
        user=start.user,
        is_repository=shadow.is_repository,
        ids=(await shadow.git("rev-parse", "--show-object-format")).decode().strip(),
        shallow=shallow.read_bytes() if shallow.exists() else b"",
    )


async def pack(shadow: Shadow, wanted: str) -> AsyncGenerator[bytes]:
    """The objects that git's *wanted* lines name, in parts, none of which is empty.

    Raises:
        WorkspaceError: git failed.
    """
    words = ("pack-objects", "--revs", "--stdout", "--quiet", "--delta-base-offset")
    async with open_git(*words, folder=shadow.git_dir, stdin=wanted.encode()) as pipe:
        held = bytearray()
        async for chunk in pipe:
            held += chunk
            if len(held) >= CHUNK:
                yield bytes(held)
                held.clear()
        await check(pipe, words[0], (0,))
    if held:
        yield bytes(held)


def wanted_for(parcel: Parcel) -> str:
    """What `pack` is asked for to fill a parcel."""
    return f"{parcel.base}\n" + (f"{parcel.user}\n" if parcel.user else "")


def folder_of(parcel: Parcel, cache: Path) -> Path:
    """Where a node has the folder of a parcel, once it has it."""
    return cache / parcel.key


async def unpack(parcel: Parcel, cache: Path, chunks: AsyncIterable[bytes]) -> Path:
    """Make the folder of a parcel; older ones that no batch has used for a week go.

    Raises:
        WorkspaceError: what came is not what was sent.
    """
    _sweep(cache)
    folder, place = Path(mkdtemp(prefix="new-", dir=cache)), folder_of(parcel, cache)
    try:
        await _fill(folder, parcel, chunks)
        _move(folder, place)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return place


async def _fill(folder: Path, parcel: Parcel, chunks: AsyncIterable[bytes]) -> None:
    store = folder / ".git"
    await git("init", "--quiet", "--template=", f"--object-format={parcel.ids}", folder=store, tree=folder)
    if parcel.shallow:
        (store / "shallow").write_bytes(parcel.shallow)
    await git("index-pack", "--stdin", folder=store, stdin=chunks)
    (store / "info").mkdir(exist_ok=True)
    (store / "info/attributes").write_bytes(_RAW)
    await git("read-tree", parcel.base, folder=store, tree=folder)
    await git("checkout-index", "--all", "--force", folder=store, tree=folder)
    (store / "info/attributes").unlink()
    if not parcel.is_repository:
        shutil.rmtree(store)
        return
    if parcel.user:
        await git("update-ref", "HEAD", parcel.user, folder=store)
    await git("read-tree", parcel.user or "--empty", folder=store, tree=folder)
    # What is ignored and here all the same was tracked, and must be, or it would not be carried.
    ignored = await git("ls-files", "-z", "--others", "--ignored", "--exclude-standard", folder=store, tree=folder)
    await git("update-index", "-z", "--add", "--stdin", folder=store, tree=folder, stdin=ignored)


def _move(folder: Path, place: Path) -> None:
    folder.chmod(0o755)
    try:
        folder.rename(place)
    except OSError:
        if not place.is_dir():  # otherwise another node of this machine was first
            raise


def _sweep(cache: Path) -> None:
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    for each in cache.iterdir():
        with suppress(OSError):  # another node of this machine has moved it meanwhile
            if each.stat().st_mtime < time.time() - _OLD:
                shutil.rmtree(each, ignore_errors=True)


async def pack_up(shadow: Shadow, changes: Changes) -> tuple[Luggage, str]:
    """What came of a run on this node, and what `pack` is asked for to send its objects."""
    refs = await shadow.refs(changes.run)
    tree = (await shadow.git("rev-parse", f"{changes.result}^{{tree}}")).decode().strip()
    notes = await read_notes(shadow, refs.get(NOTES))
    known = [name for name in (f"{changes.base}^{{tree}}", refs.get("user")) if name is not None]
    wanted = [tree, *([changes.head] if changes.head else []), *(f"^{name}" for name in known)]
    return Luggage(run=changes.run, tree=tree, head=changes.head, notes=notes), "\n".join(wanted) + "\n"


async def take_home(shadow: Shadow, start: Start, luggage: Luggage, chunks: AsyncIterable[bytes]) -> Changes:
    """Take what came of a run on a node, which began with *start*, into the shadow of its workspace here.

    Raises:
        WorkspaceError: the objects are not whole, or not what they should be. Nothing has been taken over then.
    """
    run = luggage.run
    with shadow.quarantine() as quarantine:
        await quarantine.git("index-pack", "--stdin", "--strict", stdin=chunks)
        tips = [luggage.tree, *([luggage.head] if luggage.head else [])]
        known = [start.base, *([start.user] if start.user else [])]
        await quarantine.git("rev-list", "--objects", "--quiet", *tips, "--not", *known)
        made = await quarantine.git("commit-tree", luggage.tree, "-p", start.base, "-m", f"What run {run} left")
        quarantine.release()
    values = {"base": start.base, "user": start.user, "head": luggage.head, "result": made.decode().strip()}
    await shadow.set_refs(run, values)
    await write_notes(shadow, run, luggage.notes)
    return await Changes.load(shadow, run)


def not_the_same(folder: Path) -> WorkspaceError:
    """What to say where a folder did not become what it was."""
    return WorkspaceError(
        f"{folder} did not become what the workspace is.", next_step="Look whether the node's git has other settings."
    )
