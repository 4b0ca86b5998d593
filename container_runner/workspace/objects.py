"""Trees in the shadow: what differs, what is in them, and what two of them come to."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from typing import Final

from container_runner.errors import ConflictError
from container_runner.workspace.findings import LINK, Difference, Entry
from container_runner.workspace.names import ways
from container_runner.workspace.shadow import Shadow

BATCH: Final = 16 * 1024**2
"""Bytes of contents that are in our memory at a time, unless one file alone has more."""


WHO: Final = "container-runner <container-runner@localhost>"
"""Who makes the commits of the shadow, as `git fast-import` is told."""


def quoted(path: bytes) -> bytes:
    """A path as `git fast-import` takes it, whatever is in it."""
    return b'"%s"' % b"".join(b"\\%03o" % byte for byte in path)


async def listing(shadow: Shadow, tree: str, only: Callable[[bytes], bool] = bool) -> dict[bytes, Entry]:
    """All that a tree holds, by its path.

    Args:
        only: what is wanted, by the lines of `git ls-tree`: a mode, a kind, an id, a tab, a path.
    """
    found = {}
    for path, facts in (await lines(shadow, tree, only)).items():
        mode, _, oid = facts.split()
        found[path] = Entry(mode, oid)
    return found


async def lines(shadow: Shadow, tree: str, only: Callable[[bytes], bool] = bool) -> dict[bytes, bytes]:
    """The same as git writes it, which takes a third of the time: a mode, a kind and an id."""
    said = filter(only, (await shadow.git("ls-tree", "-r", "-z", tree)).split(b"\0"))
    return {path: facts for facts, _, path in (line.partition(b"\t") for line in said)}


def is_landmark(line: bytes) -> bool:
    """Whether `findings.find` has to know of this line of `listing`, though it did not change: a link, or a HEAD."""
    return line.startswith(LINK) or line[-4:].upper() == b"HEAD"


async def difference(shadow: Shadow, before: str, after: str) -> Difference:
    """The paths at which two trees differ."""
    words = iter((await shadow.git("diff-tree", "-r", "-z", "--no-renames", before, after)).split(b"\0")[:-1])
    found = {}
    for facts, path in zip(words, words, strict=True):
        old_mode, mode, old, new, _ = facts.removeprefix(b":").split()
        found[path] = (_entry(old_mode, old), _entry(mode, new))
    return found


async def contents(
    shadow: Shadow, oids: Collection[bytes], *, longest: int | None = None
) -> AsyncGenerator[dict[bytes, bytes]]:
    """The contents of blobs by their names, some at a time; without those that are longer than *longest*."""
    if not oids:
        return
    asked = b"".join(b"%s\n" % oid for oid in dict.fromkeys(oids))
    batch: list[bytes] = []
    size = 0
    for line in (await shadow.git("cat-file", "--batch-check", stdin=asked)).splitlines():
        oid, _, length = line.split()
        if longest is not None and int(length) > longest:
            continue
        if batch and size + int(length) > BATCH:
            yield await _read(shadow, batch)
            batch, size = [], 0
        batch.append(oid)
        size += int(length)
    if batch:
        yield await _read(shadow, batch)


async def without(shadow: Shadow, run: str, base: str, result: str, left_out: Collection[bytes]) -> str:
    """A commit on *base* with what *result* has, but as in *base* at and below the paths that are *left_out*.

    What would be in the way of such a path stays as it was too: the files of a folder that a link was to replace.
    """
    if not left_out:
        return result
    entries = {}
    for path, (_, after) in (await difference(shadow, base, result)).items():
        if any(part in left_out for part in ways(path)) or any(other.startswith(path + b"/") for other in left_out):
            continue
        entries[path] = after
    return await edited(shadow, run, base, entries)


async def edited(shadow: Shadow, run: str, base: str, entries: Mapping[bytes, Entry | None]) -> str:
    """A commit on *base* that has these *entries* instead, for *run*; None for what it has not."""
    lines = []
    for path, after in entries.items():
        name = quoted(path)
        lines.append(b"D %s\n" % name if after is None else b"M %s %s %s\n" % (after.mode, after.oid, name))
    lines.sort()  # deletions first: a file may come to stand where a folder was
    head = f"commit {_wanted(run)}\ncommitter {WHO} 0 +0000\ndata 0\n"
    stream = b"%sfrom %s\n%s\n" % (head.encode(), base.encode(), b"".join(lines))
    await shadow.git("fast-import", "--quiet", "--force", stdin=stream)
    commit = await shadow.ref(run, "wanted")
    await shadow.set_refs(run, {"wanted": None})
    return commit or base


async def merge(shadow: Shadow, base: str, wanted: str, now: str) -> str:
    """The tree that the workspace has to become, if it is the tree *now*, and the commit *wanted* is made of *base*.

    Raises:
        ConflictError: both sides changed the same.
    """
    if now == await tree_of(shadow, base):
        return await tree_of(shadow, wanted)
    sides = [await shadow.git("commit-tree", tree, "-p", base, "-m", "") for tree in (now, f"{wanted}^{{tree}}")]
    ours, theirs = (side.decode().strip() for side in sides)  # of git 2.38, which takes no base by its name
    words = ("merge-tree", "--write-tree", "--name-only", "--no-messages", "-z", ours, theirs)
    tree, *names = (await shadow.git(*words, ok=(0, 1))).split(b"\0")
    if paths := tuple(name for name in dict.fromkeys(names) if name):
        raise ConflictError("You and the agent have changed the same lines. Nothing was applied.", paths=paths)
    return tree.decode()


async def tree_of(shadow: Shadow, commit: str) -> str:
    """The tree of a commit."""
    return (await shadow.git("rev-parse", "--verify", f"{commit}^{{tree}}")).decode().strip()


async def _read(shadow: Shadow, oids: Sequence[bytes]) -> dict[bytes, bytes]:
    said = await shadow.git("cat-file", "--batch", stdin=b"".join(b"%s\n" % oid for oid in oids))
    found, at = {}, 0
    while at < len(said):
        end = said.index(b"\n", at)
        oid, _, length = said[at:end].split()
        found[oid] = said[end + 1 : end + 1 + int(length)]
        at = end + 2 + int(length)
    return found


def _entry(mode: bytes, oid: bytes) -> Entry | None:
    return None if mode == b"000000" else Entry(mode, oid)


def _wanted(run: str) -> str:
    return f"refs/container-runner/{run}/wanted"
