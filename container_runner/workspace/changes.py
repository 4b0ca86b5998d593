"""What a run has done to a carried workspace, and what can be done with that: look, apply, keep as a branch, forget."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Literal, Self

import attrs

from container_runner.config.converter import structured, unstructured
from container_runner.errors import WorkspaceError
from container_runner.workspace import apply, branch
from container_runner.workspace.findings import LONGEST, NOT_TAKEN, Difference, Entry, Finding, find, wanted
from container_runner.workspace.git import ON_DISK
from container_runner.workspace.lineage import note_applied, standing
from container_runner.workspace.modules import Module
from container_runner.workspace.objects import contents, difference, is_landmark, listing, merge, without
from container_runner.workspace.shadow import Shadow

MOST_COMMITS: Final = 1000
"""The most commits that are listed, the newest."""

NOTES: Final = "notes"
"""The ref of a run with what is known of it beside its trees."""

ALL: Final = "all"
"""Stands for every finding."""


@attrs.frozen(kw_only=True)
class Commit:
    """A commit that was made in the box."""

    sha: str
    subject: str
    """The first line of its message, written by an agent."""


@attrs.frozen(kw_only=True)
class ChangedFile:
    """A file that is not what it was."""

    path: bytes
    """Relative to the workspace, as the file system spells it. Made by an agent: show it quoted."""

    status: Literal["added", "modified", "deleted"]
    added: int | None = None
    """Lines; None for a file that has none, such as a picture."""

    removed: int | None = None


@attrs.frozen(kw_only=True)
class Applied:
    """What an apply has done."""

    paths: tuple[bytes, ...]
    """What it changed in the folder, by name. None if the folder had all of it."""

    left_out: tuple[Finding, ...]
    """What it did not take, because nobody named it."""


@attrs.frozen(kw_only=True)
class Notes:
    """What is known of a run beside its trees."""

    findings: tuple[Finding, ...] = ()
    """What the way out told: sockets, special files, and what was not taken."""

    modules: tuple[Module, ...] = ()
    """The submodules in which something was committed."""

    ignored: int = 0
    """How many new files were left in the box because .gitignore names them."""

    protected: tuple[str, ...] = ()
    """The operator's own names that count as findings."""

    unprotected: tuple[str, ...] = ()
    """Names that the operator leaves to the agent."""


@attrs.frozen(kw_only=True)
class Changes:
    """What a run has done to its workspace, which has nothing of it yet. Get one with `Changes.open`."""

    run: str
    base: str
    """The commit, in the shadow, of what the folder was before."""

    result: str
    """The commit of what it was in the box at the end."""

    head: str | None = None
    """The commit that was HEAD in the box at the end; None if nothing was committed."""

    commits: tuple[Commit, ...] = ()
    """Those that were made in the box, oldest first."""

    modules: tuple[Module, ...] = ()
    """The submodules in which something was committed."""

    files: tuple[ChangedFile, ...] = ()
    """What differs between base and result, by path."""

    findings: tuple[Finding, ...] = ()
    """What programs on the host would obey or trust, which `apply` leaves out; and what was left in the box: those
    whose kind is in `findings.NOT_TAKEN`."""

    ignored: int = 0
    """How many new files were left in the box because .gitignore names them."""

    shadow: Shadow | None = attrs.field(default=None, eq=False, repr=False)
    """Where the files are; None for one that was made of `to_dict`, which can only be looked at."""

    @classmethod
    async def open(cls, workspace: Path, run: str, state_dir: Path) -> Self:
        """The changes of *run*, which worked on *workspace* and whose runner had this state folder.

        Raises:
            WorkspaceError: nothing came out of this run, or the workspace can not be read.
            GitNotFoundError: there is no git, or one that is too old.
            StateError: the state folder can not be written.
        """
        apply.recover(workspace, state_dir)
        return await cls.load(await Shadow.open(workspace, state_dir), run)

    @classmethod
    async def load(cls, shadow: Shadow, run: str) -> Self:
        """The changes of *run*.

        Raises:
            WorkspaceError: nothing came out of this run.
        """
        refs = await shadow.refs(run)
        base, result, head = refs.get("base"), refs.get("result"), refs.get("head")
        if base is None or result is None:
            raise WorkspaceError(
                f"Nothing is kept of run {run}.", next_step="`container-runner logs --list` has the runs."
            )
        notes = await read_notes(shadow, refs.get(NOTES))
        changed = await difference(shadow, base, result)
        return cls(
            run=run,
            base=base,
            result=result,
            head=head,
            commits=await _commits(shadow, head, refs.get("user")) if head is not None else (),
            modules=notes.modules,
            files=await _files(shadow, base, result, changed),
            findings=(*await _found(shadow, result, changed, notes), *notes.findings),
            ignored=notes.ignored,
            shadow=shadow,
        )

    async def diff(self, *, stat: bool = False) -> str:
        """The difference from base to result, as git shows it, for reading: bytes that are not UTF-8 are replaced.

        Args:
            stat: files with their numbers of lines instead.
        """
        words = ("--stat=120", "--summary") if stat else ("--patch",)
        said = await self._shadow.git("diff", *words, "--no-ext-diff", "--no-textconv", "-M", self.base, self.result)
        return said.decode("utf-8", "replace")

    async def apply(self, include: Iterable[str | bytes] = ()) -> Applied:
        """Write the changes into the folder: all, or none if something prevents it.

        What you have changed meanwhile stays, and is merged. Your index is not touched.

        Args:
            include: paths of findings that are applied as well, or folders that hold some; "all" for every one.

        Raises:
            ConflictError: you and the agent changed the same, or something is in the way.
            WorkspaceError: it can not be written.
            StateError: another process applies to the folder for too long.
        """
        shadow = self._shadow
        named = [os.fsencode(name) for name in include]
        taken = (finding for finding in self.findings if finding.kind not in NOT_TAKEN)
        left_out = tuple(finding for finding in taken if not is_included(finding.path, named))
        async with apply.locked(shadow):
            now = await shadow.snapshot()
            base = await standing(shadow, self.run, self.base, self.result, now)
            commit = await without(shadow, self.run, base, self.result, {finding.path for finding in left_out})
            paths = await self._write(now, await merge(shadow, base, commit, now))
            await note_applied(shadow, self.run, self.result, commit)
        return Applied(paths=paths, left_out=left_out)

    async def branch(self, name: str) -> branch.Branched:
        """Make a branch of the user's repository with the commits of the box, and what was not committed in one more.

        A submodule in which something was committed gets a branch of the same name.
        Nothing of the repository is run, and nothing but the branch is changed in it. One that is there already is
        moved forward, and never back or aside.

        Raises:
            WorkspaceError: there is no repository.
            ConfigError: *name* can not be the name of a branch.
            ConflictError: the branch has other commits, or is checked out.
        """
        return await branch.make(self._shadow, self.run, self.base, self.result, self.head, name, self.modules)

    async def discard(self) -> None:
        """Forget what came out of this run. What was applied, or is in a branch, stays."""
        await self._shadow.discard(self.run)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values. What is not UTF-8 in a path is written as \\xNN."""
        return {name: unstructured(getattr(self, name)) for name in _FIELDS}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The changes that `to_dict` wrote.

        Raises:
            ConfigError: it did not write this.
        """
        return structured(cls, {name: values[name] for name in _FIELDS if name in values})

    @property
    def _shadow(self) -> Shadow:
        if self.shadow is None:
            raise WorkspaceError(f"Only what is to be told of run {self.run} is here.", next_step="Use Changes.open.")
        return self.shadow

    async def _write(self, now: str, tree: str) -> tuple[bytes, ...]:
        shadow = self._shadow
        before = (await shadow.git("commit-tree", now, "-m", f"The folder before run {self.run} was applied")).decode()
        await shadow.set_refs(self.run, {"before": before.strip()})  # so that nothing of it can be lost
        return await apply.write(shadow, self.run, now, tree)


_FIELDS: Final = tuple(field.name for field in attrs.fields(Changes) if field.name != "shadow")


async def write_notes(shadow: Shadow, run: str, notes: Notes) -> None:
    """Keep *notes* of a run, until it is discarded."""
    import orjson

    said = orjson.dumps(unstructured(notes))
    oid = await shadow.git("hash-object", "-w", "--stdin", stdin=said, env=ON_DISK)
    await shadow.set_refs(run, {NOTES: oid.decode().strip()})


async def read_notes(shadow: Shadow, oid: str | None) -> Notes:
    """The notes of a run, by their id; empty if there are none."""
    import orjson

    return Notes() if oid is None else structured(Notes, orjson.loads(await shadow.git("cat-file", "blob", oid)))


async def _found(shadow: Shadow, result: str, changed: Difference, notes: Notes) -> tuple[Finding, ...]:
    around = await listing(shadow, result, is_landmark)
    seen: dict[bytes, bytes] = {}
    async for some in contents(shadow, wanted(changed, around), longest=LONGEST):
        seen |= some
    return find(changed, around, seen, protected=notes.protected, unprotected=notes.unprotected)


async def _files(shadow: Shadow, base: str, result: str, changed: Difference) -> tuple[ChangedFile, ...]:
    words = ("diff-tree", "-r", "-z", "--no-renames", "--numstat", "--no-ext-diff", "--no-textconv")
    said = (await shadow.git(*words, base, result)).split(b"\0")[:-1] if changed else []
    lines = {path: (added, removed) for added, removed, path in (line.split(b"\t", 2) for line in said)}
    return tuple(
        ChangedFile(path=path, status=_status(*changed[path]), added=_number(added), removed=_number(removed))
        for path in sorted(changed)
        for added, removed in (lines.get(path, (b"-", b"-")),)
    )


def _status(before: Entry | None, after: Entry | None) -> Literal["added", "modified", "deleted"]:
    if before is None:
        return "added"
    return "deleted" if after is None else "modified"


def _number(lines: bytes) -> int | None:
    return None if lines == b"-" else int(lines)


async def _commits(shadow: Shadow, head: str, user: str | None) -> tuple[Commit, ...]:
    words = ("rev-list", "--no-commit-header", "--format=%H%x00%s%x00", f"--max-count={MOST_COMMITS}", "--reverse")
    said = await shadow.git(*words, head, *(["--not", user] if user else []))
    parts = said.decode("utf-8", "replace").split("\0")[:-1]
    return tuple(Commit(sha=sha.strip(), subject=subject) for sha, subject in zip(parts[::2], parts[1::2], strict=True))


def is_included(path: bytes, named: Collection[bytes]) -> bool:
    """Whether one of these names is the path, a folder that it is in, or stands for all."""
    within = (name.rstrip(b"/") for name in named)
    return any(name == ALL.encode() or path == name or path.startswith(name + b"/") for name in within)
