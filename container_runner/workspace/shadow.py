"""The shadow of a workspace: a repository of ours that holds what the folder was, and what came out of the boxes.

It lies in the state folder, borrows the objects of the user's repository, and has no configuration but ours, so
bytes go in and come out as they are: no filter, line ending, hook or driver of anybody's counts. All that is compared,
merged and kept is kept here. The user's repository is only read, and a folder without git is no other case.

Refs of a run are `refs/container-runner/RUN/NAME`:

- base: a commit without parents, of the tree that the folder was when the run began, byte for byte.
- user: the commit that was HEAD then; none without git, or without commits.
- result: a commit on base, of the tree that came out.
- head: the commit that was HEAD in the box at the end, if it is another one than user.
- applied: a commit on result, of the tree of it that was written into the folder, if any was.

A run that began with what another had left has that one's base and user, and a result on that one's result (`lineage`).

**What the user throws away.** base must outlive the user's `git gc --prune=now`, and objects of it are only borrowed.
So `start` copies those into the shadow, in one pack: all of the first base, and of a later one what the last did not
have. (A ref in the user's repository would keep them too; but it would be a write there, and could not hold what is
in no commit of theirs.) base has no parents, so that nothing of the history is needed to compare and to merge.

**What is ignored.** The snapshot holds what `contents` tells: tracked files, and those that are not ignored. In a box
whose folder is an overlay the agent sees ignored files as well, and may change them. They are in no tree: what an agent
did to them is told by the way out, as findings, and stays in the box.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import time
from collections.abc import AsyncIterable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Final

import anyio.to_thread
import attrs
from platformdirs.unix import Unix

from container_runner.errors import StateError, WorkspaceError
from container_runner.folders import open_folder
from container_runner.workspace.git import ON_DISK, check_version, git, init_bare, setting, user_config
from container_runner.workspace.names import OURS
from container_runner.workspace.quarantine import Quarantine
from container_runner.workspace.repositories import lenders
from container_runner.workspace.repository import Repository, find_repository, read_some

REFS: Final = "refs/container-runner"

_ATTRIBUTES: Final = b"* -text -ident -filter -working-tree-encoding !diff !merge\n"
"""Raw bytes, and no file that an agent wrote decides how a difference looks."""

_IN_ONE_PACK: Final = setting("core.bigFileThreshold", "1")
"""Git writes what it calls big files into one pack as it reads them, and not into a file each. That is right for a
folder without git, of which nothing is there yet; what is there already is read fifteen times as fast without."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_KEPT: Final = f"{REFS}-kept/base"
"""The last base whose objects all lie in the shadow itself."""

_SCRATCH: Final = "scratch-"
_OLD: Final = 24 * 3600.0
"""Seconds after which nobody works in a scratch folder any more."""

_DEEPEST: Final = 32
"""How many folders deep repositories inside each other are looked into."""


@attrs.frozen(kw_only=True)
class Start:
    """What a box begins with that does not begin with the folder as it is now. The ids are those of commits."""

    files: str
    """Its tree is what lies in the box."""

    base: str
    """With its tree the work is compared: what the folder was at first."""

    user: str | None = None
    """HEAD at first; None without git, or without commits."""

    head: str | None = None
    """HEAD in the box, if that is another one."""


@attrs.frozen
class Contents:
    """What is carried of a folder. See `Shadow.contents`."""

    names: list[bytes]
    """The files and links, relative to it."""

    repositories: list[Repository]
    """The repositories in it, the folder's own first."""


def kept_at(workspace: Path, state_dir: Path) -> Path:
    """Where what is kept of a workspace lies, if there is anything. Both are real paths."""
    return state_dir / "carried" / hashlib.sha256(os.fsencode(workspace)).hexdigest()[:20]


class Shadow:
    """The shadow of one workspace. Make one with `Shadow.open`.

    Attributes:
        workspace: the folder's real path.
        folder: what we keep of it, `carried/DIGEST` in the state folder.
        git_dir: the shadow itself, in that folder.
        objects: the shadow's own objects.
        repository: the user's repository, or None.
    """

    def __init__(self, workspace: Path, state_dir: Path) -> None:
        self.workspace = workspace.resolve(strict=True)
        self._state_dir = state_dir.resolve()
        self.folder = kept_at(self.workspace, self._state_dir)
        self.git_dir = self.folder / "shadow.git"
        self.objects = self.git_dir / "objects"
        self.repository = find_repository(self.workspace)

    @classmethod
    async def open(cls, workspace: Path, state_dir: Path) -> Shadow:
        """The shadow of *workspace*, which is made if it is not there yet.

        Raises:
            GitNotFoundError: there is no git, or one that is too old.
            WorkspaceError: the workspace's `.git` leads to a repository that does not know of it, or git failed.
            StateError: the state folder can not be written.
            OSError: there is no such workspace.
        """
        self = cls(workspace, state_dir)
        try:
            with open_folder(self._state_dir, "carried", self.folder.name, "shadow.git", create=True):
                pass
            await check_version(self.folder)
            await self._make()
            self._sweep()
        except OSError as error:
            raise StateError(f"{self.folder} can not be written: {error.strerror}.") from error
        return self

    @property
    def is_repository(self) -> bool:
        """Whether the workspace is the working tree of a repository."""
        return self.repository is not None

    async def git(
        self,
        *words: str | bytes,
        stdin: bytes | AsyncIterable[bytes] = b"",
        ok: Collection[int] = (0,),
        env: Mapping[str, str] | None = None,
    ) -> bytes:
        """Run git in the shadow, without a working tree; its stdout. Raises WorkspaceError for a code not in *ok*."""
        return await git(*words, folder=self.git_dir, stdin=stdin, ok=ok, env=env)

    async def user_git(
        self, *words: str | bytes, stdin: bytes | AsyncIterable[bytes] = b"", ok: Collection[int] = (0,)
    ) -> bytes:
        """Run git in the user's repository, to read; its stdout. b"" for a folder without git."""
        if self.repository is None:
            return b""
        return await git(*words, folder=self.repository.folder, tree=self.workspace, stdin=stdin, ok=ok)

    # The folder as it is.

    async def contents(self) -> Contents:
        """What is carried: the files and links that are tracked, or not ignored.

        In submodules and other repositories inside the same; in a folder without git all. Never what is in a `.git`,
        the state folder, or a file of ours.
        """
        repositories: list[Repository] = []
        found = await self._found(repositories)
        return Contents(await anyio.to_thread.run_sync(self.carried, found), repositories)

    async def _found(self, repositories: list[Repository]) -> list[bytes]:
        """See `contents`; what can not be carried is not left out yet."""
        if self.repository is None:
            return await anyio.to_thread.run_sync(lambda: list(_walk(os.fsencode(self.workspace))))
        return await self._tracked(self.repository, repositories)

    def carried(self, names: Iterable[bytes]) -> list[bytes]:
        """Those of *names* that are files that can be read, or links, on a way without links, and not ours."""
        ours = [OURS]
        if self.workspace in self._state_dir.parents:
            ours.append(os.fsencode(self._state_dir.relative_to(self.workspace)) + b"/")
        starts = tuple(ours)
        top = os.fsencode(self.workspace)
        folders = {b"": True}

        def is_folder(at: bytes) -> bool:
            if at not in folders:
                info = _lstat(os.path.join(top, at))
                folders[at] = is_folder(at.rpartition(b"/")[0]) and info is not None and stat.S_ISDIR(info.st_mode)
            return folders[at]

        def is_carried(name: bytes) -> bool:
            if name.startswith(starts) or not is_folder(name.rpartition(b"/")[0]):
                return False
            path = b"%s/%s" % (top, name)
            info = _lstat(path)
            if info is None or not stat.S_ISREG(info.st_mode):
                return info is not None and stat.S_ISLNK(info.st_mode)
            return info.st_mode & 0o444 == 0o444 or os.access(path, os.R_OK)

        return [name for name in dict.fromkeys(names) if is_carried(name)]

    async def excludes(self, repository: Repository) -> bytes:
        """What is ignored in a repository beside its .gitignore files: by the user everywhere, then by its own file. It
        goes into a box, so the repository has no say in which files these are: it could name any of the user's."""
        everywhere = read_some(os.fsencode(await _excludes_file(repository, own=False)))
        return b"%s\n%s" % (everywhere, repository.read("info/exclude"))

    async def snapshot(self) -> str:
        """The id of the tree that the folder is now, byte for byte; its blobs are in the shadow, or borrowed.

        The index in which git remembers what it has read is ours and stays, so a second snapshot reads what changed.
        """
        index = self.folder / "index"
        with self.quarantine() as work:
            mine, env = work.folder / "index", work.env
            if index.exists():
                shutil.copy2(index, mine)  # with its time, by which git knows what it can not be sure of
            gone, names = await self._to_read(env if index.exists() else None)
            if gone:
                await self._in_tree("update-index", "-z", "--force-remove", "--stdin", stdin=_listed(gone), env=env)
            if names:
                adding = ("update-index", "-z", "--add", "--remove", "--replace", "--stdin")
                packed = {} if self.is_repository else _IN_ONE_PACK
                await self._in_tree(*adding, stdin=_listed(names), env={**env, **packed})
            tree = await self._in_tree("write-tree", env=env)
            work.release()
            mine.replace(index)
        return tree.decode().strip()

    async def _to_read(self, env: dict[str, str] | None) -> tuple[Collection[bytes], Collection[bytes]]:
        """What of the index of a snapshot is not carried any more, and what is to be read again; None for no index."""
        found = await self._found([])
        if env is None:
            return [], await anyio.to_thread.run_sync(self.carried, found)
        held = set((await self._in_tree("ls-files", "-z", env=env)).split(b"\0")[:-1])
        changed = set((await self._in_tree("diff-files", "-z", "--name-only", env=env)).split(b"\0")[:-1])
        suspects = [name for name in found if name not in held or name in changed]
        names = await anyio.to_thread.run_sync(self.carried, suspects)
        return held.difference(found) | changed.difference(names), names

    # The runs.

    async def start(self, run: str, start: Start | None = None) -> str:
        """Keep the folder as it is now, as the base of *run*, or that of what it begins with; the folder's tree."""
        tree = await self.snapshot()
        await self._keep(tree)
        before = tree if start is None else f"{start.base}^{{tree}}"
        words = ("commit-tree", before, "-m", f"The folder before run {run}")
        base = (await self.git(*words, env=ON_DISK)).decode().strip()
        user = await self.user_head() if start is None else start.user
        await self.set_refs(run, {"base": base, "user": user})
        return tree

    async def hold(self) -> Start:
        """The folder as it is now, for runs that shall all begin with just that."""
        tree = await self.snapshot()
        await self._keep(tree)
        commit = (await self.git("commit-tree", tree, "-m", "The folder before some runs")).decode().strip()
        return Start(files=commit, base=commit, user=await self.user_head())

    async def left_by(self, run: str) -> Start | None:
        """What *run* has left, for another to begin with; None if nothing came out of it."""
        refs = await self.refs(run)
        base, result = refs.get("base"), refs.get("result")
        if base is None or result is None:
            return None
        return Start(files=result, base=base, user=refs.get("user"), head=refs.get("head"))

    async def user_head(self) -> str | None:
        """The commit that is HEAD in the user's repository; None without git, or without commits."""
        said = await self.user_git("rev-parse", "--quiet", "--verify", "HEAD^{commit}", ok=(0, 1, 128))
        return said.decode().strip() or None

    async def ref(self, run: str, name: str) -> str | None:
        """The id that a ref of *run* has, or None."""
        said = await self.git("rev-parse", "--quiet", "--verify", _ref(run, name), ok=(0, 1))
        return said.decode().strip() or None

    async def refs(self, run: str) -> dict[str, str]:
        """The ids that the refs of *run* have, by their names."""
        said = await self.git("for-each-ref", "--format=%(refname:lstrip=3) %(objectname)", f"{REFS}/{_checked(run)}/")
        return dict(line.split(" ") for line in said.decode().splitlines())

    async def set_refs(self, run: str, values: Mapping[str, str | None]) -> None:
        """Let the refs of *run* have these ids, all or none; None removes one."""
        if not values:
            return
        lines = [
            f"delete {_ref(run, name)}\n" if value is None else f"update {_ref(run, name)} {value}\n"
            for name, value in values.items()
        ]
        await self.git("update-ref", "--stdin", stdin="".join(lines).encode(), env=ON_DISK)

    async def runs(self) -> list[str]:
        """The runs of which there is something here, by their names."""
        said = await self.git("for-each-ref", "--format=%(refname)", REFS)
        return list(dict.fromkeys(line.split("/")[2] for line in said.decode().splitlines()))

    async def discard(self, run: str) -> None:
        """Forget all that is kept of *run*."""
        said = await self.git("for-each-ref", "--format=delete %(refname)", f"{REFS}/{_checked(run)}/")
        await self.git("update-ref", "--stdin", stdin=said)

    # How it is done.

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder beside the shadow, which is removed afterwards; if we are killed, by a later `open`."""
        folder = Path(mkdtemp(prefix=_SCRATCH, dir=self.folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def quarantine(self) -> Iterator[Quarantine]:
        """A place for objects that may not be whole, which goes with them unless they are released."""
        with self.scratch() as folder:
            yield Quarantine(self.git_dir, folder)

    def _sweep(self) -> None:
        """Remove what killed processes have left."""
        crashed = (*self.git_dir.glob("fast_import_crash_*"), *self.objects.glob("*/tmp_*"))
        for left in (*self.folder.glob(f"{_SCRATCH}*"), *crashed):
            with suppress(OSError):
                if left.lstat().st_mtime < time.time() - _OLD:
                    if left.is_dir():
                        shutil.rmtree(left)
                    else:
                        left.unlink()

    async def _make(self) -> None:
        """Make the repository, and write down what it borrows; that may have moved since the last time."""
        sort = (await self.user_git("rev-parse", "--show-object-format")).decode().strip() or "sha1"
        if not (self.git_dir / "info/attributes").exists():  # written last: what was cut off is made again
            await init_bare(self.git_dir, sort)
        elif self.repository and (b"sha256" in (self.git_dir / "config").read_bytes()) is not (sort == "sha256"):
            step = f"Remove {self.folder}, and with it what is kept of earlier runs."
            raise WorkspaceError(f"The repository has other ids now ({sort}) than before.", next_step=step)
        files = {"info/attributes": _ATTRIBUTES}
        if self.repository is not None:
            borrowed = (self.repository.common, *lenders(self.repository.common))
            files["objects/info/alternates"] = b"".join(b"%s/objects\n" % os.fsencode(git) for git in borrowed)
            files["shallow"] = self.repository.read("shallow")
            files["info/exclude"] = await self.excludes(self.repository)
        for name, content in files.items():
            file = self.git_dir / name
            if not content:
                file.unlink(missing_ok=True)
            elif not file.exists() or file.read_bytes() != content:
                file.parent.mkdir(exist_ok=True)
                file.write_bytes(content)

    async def _in_tree(self, *words: str | bytes, env: dict[str, str], stdin: bytes = b"") -> bytes:
        return await git(*words, folder=self.git_dir, tree=self.workspace, env=env, stdin=stdin)

    async def _tracked(self, repository: Repository, repositories: list[Repository]) -> list[bytes]:
        """See `contents`; of one repository and those inside it, which are added to *repositories*."""
        repositories.append(repository)
        env = setting("core.excludesFile", str(await _excludes_file(repository)))
        words = ("ls-files", "-z", "-t", "--stage", "--others", "--exclude-standard")
        found: list[bytes] = []
        inside: list[bytes] = []
        for line in (await git(*words, folder=repository.folder, tree=repository.tree, env=env)).split(b"\0")[:-1]:
            if not line.startswith(b"? "):
                (inside if line.startswith(b"160000 ", 2) else found).append(line.partition(b"\t")[2])
            elif line.endswith(b"/"):  # a repository that this one does not know as a submodule
                inside.append(line[2:-1])
            else:
                found.append(line[2:])
        for name in inside if repository.at.count(b"/") < _DEEPEST else ():
            at = os.path.join(repository.at, name)
            tree = self.workspace / os.fsdecode(at)
            if not tree.is_dir() or tree.is_symlink():
                continue
            nested = find_repository(tree, at=at, around=self.repository)
            below = await self._tracked(nested, repositories) if nested else _walk(os.fsencode(tree))
            found += (b"%s/%s" % (name, path) for path in below)
        return found

    async def _keep(self, tree: str) -> None:
        """Copy what *tree* borrows into the shadow."""
        last = read_some(os.fsencode(self.git_dir / _KEPT)).decode().strip()
        if tree == last:
            return
        wanted = f"{tree}\n^{last}\n" if last else f"{tree}\n"
        words = ("pack-objects", "--quiet", "--revs", "--delta-base-offset")
        with self.quarantine() as work:
            await self.git(*words, str(work.folder / "pack/pack"), stdin=wanted.encode(), env=work.env)
            work.release()
        await self.git("update-ref", _KEPT, tree)


async def _excludes_file(repository: Repository, *, own: bool = True) -> Path:
    """The file with what the user ignores everywhere, or by what the repository itself says."""
    named = (await user_config("core.excludesfile", repository.folder, own=own)).get("core.excludesfile")
    return Path(named) if named else Path(Unix().user_config_dir) / "git/ignore"


def _lstat(path: bytes) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except OSError:
        return None


def _walk(top: bytes) -> Iterator[bytes]:
    """All files and links below a folder without git, but what is in folders called `.git`."""
    left = [b""]
    while left:
        at = left.pop()
        try:
            entries = list(os.scandir(os.path.join(top, at)))
        except OSError:
            continue
        for entry in entries:
            name = os.path.join(at, entry.name)
            if not entry.is_dir(follow_symlinks=False):
                yield name
            elif entry.name.lower() != b".git":
                left.append(name)


def _listed(names: Collection[bytes]) -> bytes:
    return b"".join(b"%s\0" % name for name in names)


def _checked(run: str) -> str:
    if not _NAME.fullmatch(run):
        raise WorkspaceError(f"{run!r} can not be the name of a run.", next_step="`container-runner ps` has them.")
    return run


def _ref(run: str, name: str) -> str:
    return f"{REFS}/{_checked(run)}/{_checked(name)}"
