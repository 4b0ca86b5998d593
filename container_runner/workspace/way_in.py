r"""The way into a box on another machine, or behind an engine without overlays: one stream of tar.

It holds the files of the folder as they lie on the disk, and for each repository in it a `.git` that is made for the
box: the objects that HEAD and the index reach in one pack, the index itself, the branch, and what `git status` needs
to say the same as outside. Nothing of the user's `.git` that git would run or obey is in it, and no other branch.
`sh -c IN sh FOLDER` unpacks it, once it may write there, and then tells the manifest of what it has made, with which
the way out begins.

What a filter has made of a file (of git-lfs, say) is carried as it lies there. The box has no such filter, so the
index takes these files for unchanged: `git add --all` in there commits what was committed before, and what the agent
makes of them comes out with the other files.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Final, Literal

from container_runner.workspace import tar
from container_runner.workspace.findings import LINK, Entry
from container_runner.workspace.git import check, git, open_git, user_config
from container_runner.workspace.manifest import LIST
from container_runner.workspace.objects import difference, listing
from container_runner.workspace.repository import Repository, read_some
from container_runner.workspace.shadow import Shadow, Start

IN: Final = rf"""{LIST}
export LC_ALL=C
unset TAR_OPTIONS GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE
cd "$1" || exit 71
tries=0
until [ -w . ] || [ "$tries" -eq 500 ]; do
  tries=$((tries + 1))
  sleep 0.02 2>/dev/null || sleep 1
done
tar -xof - >&2 || exit 72
if command -v git >/dev/null; then
  find . -name .git -type d -prune -exec sh -c '
    cd "$1/.." && GIT_DIR=.git GIT_CONFIG_GLOBAL=/dev/null git update-index -q --refresh
  ' sh {{}} \; >&2 &
fi
list
wait
"""

INCLUDE: Final = ".worktreeinclude"
"""The file in which a project names ignored files that its worktrees need. It counts as HEAD has it: an agent can write
the file itself, and would open what its next run is not to see."""

_STATES: Final = ("MERGE_HEAD", "CHERRY_PICK_HEAD", "REVERT_HEAD")
_FILES: Final = ("MERGE_MODE", "MERGE_MSG", "info/sparse-checkout")
_COPIED: Final = {
    "core.autocrlf": r"true|false|input",
    "core.eol": r"lf|crlf|native",
    "core.filemode": r"true|false",
    "core.sparsecheckout": r"true|false",
    "core.sparsecheckoutcone": r"true|false",
    r"submodule\..*\.url": r".*",
}
"""The settings of the user's that a repository in the box has as well, and what they may be."""

_NO_FILTER: Final = (b"unspecified", b"unset", b"set", b"")
_STAT: Final = re.compile(
    rb"([^\0]+)\0  ctime: (\d+):(\d+)\n  mtime: (\d+):(\d+)\n  dev: .*\n  uid: .*\n  size: (\d+)\tflags: .*\n"
)
"""What `ls-files --debug` tells of a file as git last saw it."""

_PASSWORD: Final = re.compile(r"(?<=://)[^/@]*@")


async def send(
    shadow: Shadow,
    *,
    history: int | Literal["all"] = "all",
    ignored: Sequence[str] = (),
    start: Start | None = None,
    below: str = "",
) -> AsyncGenerator[bytes]:
    """The folder of *shadow* as a stream of tar, for IN.

    Args:
        history: how many of the commits before HEAD go along; "all" for all of its history.
        ignored: patterns, as in a .gitignore, of ignored files that go along.
        start: send this, its files and its HEAD, instead of what the folder is now.
        below: the tree that the folder is now, beside *start*.

    Raises:
        WorkspaceError: git failed, as it does with a damaged repository.
    """
    contents = await shadow.contents()
    sent = {} if start is None else await listing(shadow, start.files)
    changed = {} if start is None else await difference(shadow, below, start.files)
    with shadow.scratch() as stage:
        for number, repository in enumerate(contents.repositories):
            if start is not None and repository.at and not any(path.startswith(repository.at + b"/") for path in sent):
                continue  # it was removed
            place = stage / str(number)
            is_own = start is not None and repository is shadow.repository
            head = start.head or start.user if start is not None and is_own else None
            await _Copy(shadow, repository, place, head, changed).make(history)
            under = os.path.join(repository.at, b".git", b"")
            yield b"".join(tar.member(under + name, kind=b"5", mode=0o755) for name in (b"", b"objects/", b"refs/"))
            names = [os.fsencode(file.relative_to(place)) for file in place.rglob("*") if file.is_file()]
            async for chunk in tar.InThread(tar.write(os.fsencode(place), names, under=under)):
                yield chunk
            shutil.rmtree(place)
    names = await _chosen(shadow, [*contents.names, *sent], ignored)
    if start is None:
        names = [*contents.names, *names]
    else:
        async with aclosing(tar.joined(members(shadow, sent))) as chunks:
            async for chunk in chunks:
                yield chunk
    async for chunk in tar.InThread(tar.write(os.fsencode(shadow.workspace), names)):
        yield chunk
    yield tar.END


class Prepared:
    """A stream whose first chunk, in front of which git does its work, is there before anybody reads. Close it."""

    def __init__(self, chunks: AsyncGenerator[bytes]) -> None:
        self._chunks = chunks
        self._first = b""

    async def prepare(self) -> None:
        """Make the first chunk."""
        self._first = await anext(self._chunks)

    def __aiter__(self) -> Prepared:
        return self

    async def __anext__(self) -> bytes:
        first, self._first = self._first, b""
        return first or await anext(self._chunks)

    async def aclose(self) -> None:
        """Make no more of it."""
        await self._chunks.aclose()


async def _chosen(shadow: Shadow, names: Sequence[bytes], ignored: Sequence[str]) -> list[bytes]:
    """The ignored files that go along."""
    include = await shadow.user_git("cat-file", "blob", f"HEAD:{INCLUDE}", ok=(0, 128))
    if not include and not ignored:
        return []
    patterns = [*include.decode("utf-8", "surrogateescape").splitlines(), *ignored]
    words = [f"--exclude={pattern}" for pattern in patterns if pattern and not pattern.startswith("#")]
    if not words:
        return []
    found = (await shadow.user_git("ls-files", "-z", "--others", "--ignored", *words)).split(b"\0")[:-1]
    return shadow.carried(set(found).difference(names))


async def members(shadow: Shadow, entries: Mapping[bytes, Entry]) -> AsyncGenerator[bytes]:
    """Files and links of the shadow's, as members of an archive."""
    stdin = b"".join(b"%s\n" % entry.oid for entry in entries.values())
    async with open_git("cat-file", "--batch", "--buffer", folder=shadow.git_dir, stdin=stdin) as pipe:
        source = tar.Source(pipe, sys.maxsize)
        for name, entry in entries.items():
            size = int((await source.line()).rpartition(b" ")[2])
            if entry.mode == LINK:
                yield tar.member(name, kind=b"2", mode=0o777, link=await source.exactly(size))
            else:
                yield tar.member(
                    name, size=size, mode=0o755 if entry.mode == b"100755" else 0o644, mtime=int(time.time())
                )
                left = size
                while left:
                    data = await source.some(left)
                    if not data:
                        raise tar.cut_off()
                    left -= len(data)
                    yield data
                yield tar.padding(size)
            await source.skip(1)
        await check(pipe, "cat-file")


class _Copy:
    """The `.git` of one repository for the box, in a folder of ours.

    Args:
        head: a commit of the shadow's that HEAD is in the box; None for the repository's own.
        changed: the paths at which the box has something else than the folder, if *head* is given.
    """

    def __init__(
        self,
        shadow: Shadow,
        repository: Repository,
        place: Path,
        head: str | None = None,
        changed: Collection[bytes] = (),
    ) -> None:
        self._shadow = shadow
        self._head = head
        self._changed = changed
        self._repository = repository
        self._place = place
        self._objects_in = repository.folder if head is None else shadow.git_dir

    async def make(self, history: int | Literal["all"]) -> None:
        """Make it."""
        for name in ("objects/pack", "refs/heads", "info"):
            (self._place / name).mkdir(parents=True)
        branch = (await self._ask("symbolic-ref", "--quiet", "HEAD", ok=(0, 1, 128))).strip()
        head = (await self._ask("rev-parse", "--quiet", "--verify", "HEAD^{commit}", ok=(0, 1, 128))).strip().decode()
        head = self._head or head
        self._write("HEAD", b"ref: %s\n" % branch if branch else head.encode() + b"\n")
        if branch and head:
            self._write(os.fsdecode(branch), head.encode() + b"\n")
        tips = [head] if head else []
        for name in _STATES:
            tips += self._copy(name).decode("ascii", "replace").split()
        for name in _FILES:
            self._copy(name)
        self._write("info/exclude", await self._shadow.excludes(self._repository))
        self._write("config", await self._config())
        await self._index()
        await self._objects(tips, await self._cut(head, history) if head and history != "all" else [])

    async def _objects(self, tips: Sequence[str], cut: Sequence[str]) -> None:
        """What *tips* and the index reach, of a history that ends at *cut*."""
        shallow = {*self._repository.read("shallow").decode().split(), *cut}
        self._write("shallow", "".join(f"{commit}\n" for commit in sorted(shallow)).encode())
        wanted = [*(f"--shallow {commit}" for commit in cut), *tips]
        words = ("pack-objects", "--quiet", "--revs", "--indexed-objects", "--delta-base-offset")
        missing = ("--missing=allow-any",) if b"partialclone" in self._repository.read("config").lower() else ()
        stdin = "".join(f"{line}\n" for line in wanted).encode()
        place, env = str(self._place / "objects/pack/pack"), {"GIT_INDEX_FILE": str(self._place / "index")}
        await git(*words, *missing, place, folder=self._objects_in, env=env, stdin=stdin)

    async def _cut(self, head: str, history: int) -> list[str]:
        """The commits whose parents stay behind, if *history* commits before *head* go along."""
        lines = await git("rev-list", "--parents", f"--max-count={history + 1}", head, folder=self._objects_in)
        parents = {commit: before for commit, *before in (line.decode().split() for line in lines.splitlines())}
        return [commit for commit, before in parents.items() if not parents.keys() >= set(before)]

    async def _config(self) -> bytes:
        """What a repository must say of itself, and the user's settings by which `git status` says the same."""
        sort = (await self._ask("rev-parse", "--show-object-format")).strip().decode()
        lines = ["[core]", "bare = false", f"repositoryformatversion = {0 if sort == 'sha1' else 1}"]
        if sort != "sha1":
            lines += ["[extensions]", f"objectFormat = {sort}"]
        for key, value in (await user_config("|".join(_COPIED), self._repository.folder)).items():
            section, *middle, name = key.split(".")
            allowed = next(values for keys, values in _COPIED.items() if re.fullmatch(keys, key))
            if re.fullmatch(allowed, value) and "\n" not in key:
                lines.append(f"[{section} {_quoted('.'.join(middle))}]" if middle else f"[{section}]")
                lines.append(f"{name} = {_quoted(_PASSWORD.sub('', value))}")
                lines += ["active = true"] if middle else []
        return "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")

    async def _index(self) -> None:
        """The index, in which what a filter has made of a file counts as unchanged, if it is."""
        index = self._repository.folder / "index"
        env = {"GIT_INDEX_FILE": str(self._place / "index")}
        if self._head is not None:
            await git("read-tree", self._head, folder=self._objects_in, env=env)
        elif index.is_symlink() or not index.is_file():  # a link may lead to another repository's
            return
        else:
            for file in (index, *self._repository.folder.glob("sharedindex.*")):
                if not file.is_symlink():
                    shutil.copy2(file, self._place / file.name)
        names = await self._filtered()
        if self._head is not None and names:
            staged = (await self._ask("ls-files", "-z", "--stage")).split(b"\0")
            here = (await git("ls-files", "-z", "--stage", folder=self._objects_in, env=env)).split(b"\0")
            same = {line.partition(b"\t")[2] for line in {*staged}.intersection(here)}.difference(self._changed)
            names = b"".join(b"%s\0" % name for name in names.split(b"\0") if name in same)
        if names:
            words = ("update-index", "-z", "--assume-unchanged", "--stdin")
            tree = self._repository.tree
            await git(*words, folder=self._objects_in, tree=tree, env=env, stdin=names)

    async def _filtered(self) -> bytes:
        """The files that a filter has made, and that are as it made them, each ended by NUL."""
        names = await self._ask("ls-files", "-z")
        attributes = [name for name in names.split(b"\0") if os.path.basename(name) == b".gitattributes"]
        tree = os.fsencode(self._repository.tree)
        says = [self._repository.read("info/attributes"), *(read_some(os.path.join(tree, name)) for name in attributes)]
        if not any(b"filter" in said for said in says):
            return b""
        said = (await self._ask("check-attr", "-z", "--stdin", "filter", stdin=names)).split(b"\0")
        made = {name for name, value in zip(said[::3], said[2::3], strict=False) if value not in _NO_FILTER}
        debug = await self._ask("ls-files", "-z", "--debug")
        kept = []
        for name, *numbers in _STAT.findall(debug):
            if name in made:
                with suppress(OSError):
                    info = os.lstat(os.path.join(tree, name))
                    times = (*divmod(info.st_ctime_ns, 10**9), *divmod(info.st_mtime_ns, 10**9))
                    if [*times, info.st_size] == [int(number) for number in numbers]:
                        kept.append(b"%s\0" % name)
        return b"".join(kept)

    async def _ask(self, *words: str, stdin: bytes = b"", ok: tuple[int, ...] = (0,)) -> bytes:
        return await git(*words, folder=self._repository.folder, tree=self._repository.tree, stdin=stdin, ok=ok)

    def _copy(self, name: str) -> bytes:
        content = self._repository.read(name, shared=False)
        self._write(name, content)
        return content

    def _write(self, name: str, content: bytes) -> None:
        if content:
            file = self._place / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
