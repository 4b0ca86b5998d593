"""The work of a run as a branch of the user's repository: the commits of the box, and one of what was not committed.

The shadow has bytes as they lie in the folder. A repository may hold others: git turns line endings, and runs filters,
such as those of LFS, and it holds a submodule as one entry. So the last commit is made on the tree of the one before,
and takes from the shadow what the run has changed: files that git keeps as they are, and those whose line endings it
turns. Where only a filter could say what git would keep, what the agent has committed stays, and the path is told.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import attrs

from container_runner.errors import ConfigError, ConflictError, WorkspaceError
from container_runner.workspace.findings import GITLINK, LINK, Entry
from container_runner.workspace.git import git
from container_runner.workspace.modules import MODULE, Module, submodules
from container_runner.workspace.objects import contents, listing, tree_of
from container_runner.workspace.repository import Repository
from container_runner.workspace.shadow import REFS, Shadow

TIP: Final = "branch"
"""The ref of a run with the commit that its branches have."""

_ATTRIBUTES: Final = ("text", "eol", "filter", "ident", "working-tree-encoding")


@attrs.frozen(kw_only=True)
class Branched:
    """A branch that has the work of a run."""

    name: str
    commit: str
    left_out: tuple[bytes, ...] = ()
    """Paths whose changes are not in it: they are in submodules or repositories in the workspace, or have a filter. An
    apply takes them."""


async def make(
    shadow: Shadow, run: str, base: str, result: str, head: str | None, name: str, modules: Sequence[Module] = ()
) -> Branched:
    """See `Changes.branch`."""
    if shadow.repository is None:
        message = f"{shadow.workspace} is no repository, so there can be no branch."
        raise WorkspaceError(message, next_step="Take the work with `container-runner apply`.")
    await check_name(shadow, name)
    ref = f"refs/heads/{name}"
    commit, left_out = await _tip(shadow, run, base, result, head)
    inside = {repository.at: repository for repository in (await submodules(shadow) if modules else ())}
    given = [  # those inside come first: an entry of the one around names them
        (inside[module.path], f"{MODULE}{number}", module.head)
        for number, module in enumerate(modules)
        if module.path in inside
    ]
    todo = []
    for repository, source, tip in (*given, (shadow.repository, TIP, commit)):
        said = await git("rev-parse", "--quiet", "--verify", ref, folder=repository.folder, ok=(0, 1))
        if (there := said.decode().strip()) != tip:
            await _refuse_others(shadow, repository, name, there, tip)
            todo.append((repository, source))
    for repository, source in todo:
        await _fetch(shadow, repository, f"{REFS}/{run}/{source}", name)
    return Branched(name=name, commit=commit, left_out=left_out)


async def check_name(shadow: Shadow, name: str) -> None:
    """Raise ConfigError if *name* can not be the name of a branch."""
    ref = f"refs/heads/{name}"
    usual = b"" if "\0" in name else await shadow.git("check-ref-format", "--normalize", ref, ok=(0, 1))
    if name.startswith("-") or usual != os.fsencode(f"{ref}\n"):
        raise ConfigError("NAME", name, "a name that git takes for a branch, as agent/fix-1")


async def _refuse_others(shadow: Shadow, repository: Repository, name: str, there: str, commit: str) -> None:
    """Refuse a branch that is checked out, or has what the new one has not."""
    listed = await git("worktree", "list", "--porcelain", folder=repository.folder)
    trees = listed.decode("utf-8", "replace").splitlines()
    if f"branch refs/heads/{name}" in trees:
        raise ConflictError(f"The branch {name} is checked out.", next_step="Name another one, or use `apply`.")
    if there and await _lacks(shadow, commit, there):
        raise ConflictError(f"The branch {name} has other commits already.", next_step="Name another one.")


async def _lacks(shadow: Shadow, commit: str, other: str) -> bool:
    """Whether *other* is not in the history of *commit*."""
    return bool(await shadow.git("rev-list", "--max-count=1", other, f"^{commit}", "--"))


async def _tip(shadow: Shadow, run: str, base: str, result: str, head: str | None) -> tuple[str, tuple[bytes, ...]]:
    """The commit that the branch shall have, and the paths whose changes it has not."""
    user = await shadow.ref(run, "user")
    parent = head or user
    before, after = await listing(shadow, base), await listing(shadow, result)
    held = await listing(shadow, parent) if parent else {}
    first = await listing(shadow, user) if user else {}
    changed = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    nested = _Nested(shadow.workspace, held)
    cooked = await _cooked(shadow, changed)
    lines: list[bytes] = []
    turned: dict[bytes, Entry] = {}
    left_out: list[bytes] = []
    for path in changed:
        entry = after.get(path)
        if nested.has(path):
            left_out.append(path)
        elif entry is None:
            if path in held:
                lines.append(b"D %s\n" % _quoted(path))
        elif cooked.get(path) == "filter" and entry.mode != LINK:
            if held.get(path) == first.get(path):  # the agent has not committed it
                left_out.append(path)
        elif cooked.get(path) and entry.mode != LINK:
            turned[path] = entry
        elif held.get(path) != entry:
            lines.append(b"M %s %s %s\n" % (entry.mode, entry.oid, _quoted(path)))
    async for some in contents(shadow, {entry.oid for entry in turned.values()}):
        for path, entry in turned.items():
            if entry.oid in some:
                content = some[entry.oid]
                if cooked[path] == "text" or b"\0" not in content[:8000]:
                    content = content.replace(b"\r\n", b"\n")
                lines.append(b"M %s inline %s\ndata %d\n%s\n" % (entry.mode, _quoted(path), len(content), content))
    if not lines and parent:
        await shadow.set_refs(run, {TIP: parent})
        return parent, tuple(left_out)
    # Of the run's own time, so that the same work is the same commit, however often it is asked for.
    when = (await shadow.git("show", "--no-patch", "--format=%ct", result)).decode().strip()
    what = f"What run {run} had not committed\n" if head and head != user else f"The work of run {run}\n"
    start = f"reset refs/container-runner/{run}/{TIP}\n\ncommit refs/container-runner/{run}/{TIP}\n"
    who = f"committer container-runner <container-runner@localhost> {when} +0000\ndata {len(what)}\n{what}"
    origin = f"from {parent}\n" if parent else ""
    stream = (start + who + origin).encode() + b"".join(sorted(lines)) + b"\n"
    await shadow.git("fast-import", "--quiet", "--force", stdin=stream)
    made = await shadow.ref(run, TIP)
    assert made is not None  # noqa: S101  it was just made
    if parent and await tree_of(shadow, made) == await tree_of(shadow, parent):  # but for line endings, it had all
        await shadow.set_refs(run, {TIP: parent})
        made = parent
    return made, tuple(left_out)


async def _cooked(shadow: Shadow, paths: Collection[bytes]) -> Mapping[bytes, str]:
    """The paths that git would not keep as they are: by a "filter", or with line endings turned, for sure or if "auto".

    It is asked for the attributes that the user's folder has now, of which none runs anything.
    """
    if not paths:
        return {}
    turns = await shadow.user_git("config", "--local", "--includes", "--get", "core.autocrlf", ok=(0, 1))
    found = dict.fromkeys(paths, "auto") if turns.strip().lower() in (b"true", b"input", b"yes", b"on", b"1") else {}
    words = await shadow.user_git(
        "check-attr", "-z", "--stdin", *_ATTRIBUTES, stdin=b"".join(b"%s\0" % p for p in paths)
    )
    rest = iter(words.split(b"\0")[:-1])
    for path, name, value in zip(rest, rest, rest, strict=True):
        if value == b"unspecified" or found.get(path) == "filter":
            continue
        if name in (b"filter", b"ident", b"working-tree-encoding"):
            if value != b"unset":
                found[path] = "filter"
        elif value == b"unset":
            found.pop(path, None)
        elif found.get(path) != "text":
            found[path] = "auto" if value == b"auto" else "text"
    return found


async def _fetch(shadow: Shadow, repository: Repository, source: str, name: str) -> None:
    """Let a repository of the user's take what a ref of the shadow's has.

    None of its hooks run, and nothing but the branch is written.
    """
    began = time.time() - 1
    await git(
        *("-c", "protocol.file.allow=always", "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--atomic"),
        *("--no-recurse-submodules", "--no-auto-maintenance", "--no-prune", "--no-show-forced-updates"),
        *("--", str(shadow.git_dir), f"{source}:refs/heads/{name}"),
        folder=repository.folder,
        tree=repository.tree,
    )
    if os.geteuid() == 0:
        _give_to_owner(repository.common, began)


def _give_to_owner(common: Path, began: float) -> None:
    """Let what root has just made in a repository belong to whose it is."""
    owner = common.stat()
    for top in (common / "objects", common / "refs"):
        for folder, _, files in os.walk(top):
            for path in (folder, *(os.path.join(folder, file) for file in files)):
                there = os.lstat(path)
                if there.st_uid == 0 and there.st_ctime >= began:
                    os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


class _Nested:
    """Which paths are in repositories of their own, inside the workspace."""

    def __init__(self, workspace: Path, held: Mapping[bytes, Entry]) -> None:
        self._workspace = os.fsencode(workspace)
        self._known = {path: entry.mode == GITLINK for path, entry in held.items() if entry.mode == GITLINK}

    def has(self, path: bytes) -> bool:
        return any(self._is_repository(folder) for folder in _folders(path)) or self._known.get(path, False)

    def _is_repository(self, folder: bytes) -> bool:
        if folder not in self._known:
            self._known[folder] = os.path.lexists(os.path.join(self._workspace, folder, b".git"))
        return self._known[folder]


def _folders(path: bytes) -> Iterator[bytes]:
    while b"/" in path:
        path = path.rpartition(b"/")[0]
        yield path


def _quoted(path: bytes) -> bytes:
    """A path as fast-import takes any."""
    return b'"%s"' % b"".join(b"\\%03o" % byte for byte in path)
