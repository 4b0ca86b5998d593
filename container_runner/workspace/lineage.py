"""Which runs a run goes on from, and what of theirs is in the folder already.

A run that began with what another had left brings the work of both. If the first was applied meanwhile, the second must
not conflict with it, and must not bring back what the user has changed since.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from container_runner.workspace.findings import Entry
from container_runner.workspace.objects import difference, edited, listing
from container_runner.workspace.shadow import REFS, Shadow

APPLIED: Final = "applied"
"""The ref of a run with what of its result was applied last: a commit on that."""


async def standing(shadow: Shadow, run: str, base: str, result: str, now: str) -> str:
    """The commit that *result* is to be compared with, if the folder is the tree *now*.

    It is *base*, but for what the folder has of this run already, and of those that it goes on from. Of each file that
    they changed:

    - It is in the folder as one of them left it, and so it is in the commit: the user has not touched it since.
    - It is as in *base*: nothing of theirs was applied, or it was taken back.
    - It is another: then the user has changed it, since an apply if there was one, or a later run that was applied.
    """
    *runs, _ = await _history(shadow, [result])  # the newest first; the last is the folder
    applied = await _applied(shadow)
    known = await _history(shadow, list(applied))
    if len(runs) == 1 and result not in known:
        return base
    changed: dict[bytes, set[Entry | None]] = {}
    for commit in runs:
        for path, (_, after) in (await difference(shadow, base, commit)).items():
            changed.setdefault(path, set()).add(after)
    before, there = await listing(shadow, base), await listing(shadow, now)
    last = next((commit for commit in runs if commit in known), None)
    taken = None if last is None else await listing(shadow, applied.get(last, last))
    entries: dict[bytes, Entry | None] = {}
    for path, lefts in changed.items():
        entry = there.get(path)
        if entry == before.get(path):
            continue
        if entry in lefts:
            entries[path] = entry
        elif taken is not None:
            entries[path] = taken.get(path)
    return await edited(shadow, run, base, entries) if entries else base


async def note_applied(shadow: Shadow, run: str, result: str, taken: str) -> None:
    """Note that of *result* the tree of the commit *taken* was applied."""
    commit = await shadow.git("commit-tree", f"{taken}^{{tree}}", "-p", result, "-m", f"What was applied of run {run}")
    await shadow.set_refs(run, {APPLIED: commit.decode().strip()})


async def is_applied(shadow: Shadow, result: str) -> bool:
    """Whether *result* was applied, or that of a run that goes on from it."""
    return result in await _history(shadow, list(await _applied(shadow)))


async def _applied(shadow: Shadow) -> dict[str, str]:
    """What was applied, by the result that it was of."""
    said = await shadow.git("for-each-ref", "--format=%(parent) %(objectname)", f"{REFS}/*/{APPLIED}")
    return dict(line.split() for line in said.decode().splitlines())


async def _history(shadow: Shadow, commits: Sequence[str]) -> list[str]:
    """These commits, and those that they are on."""
    if not commits:
        return []
    return (await shadow.git("rev-list", "--first-parent", *commits)).decode().split()
