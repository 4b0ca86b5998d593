r"""The way out of a box: the work, as data, into the shadow.

One process in the box, `sh -c OUT sh FOLDER`, answers what it is asked on its stdin:

1. It tells the manifest of the folder (`manifest`).
2. Asked `SIZE` and that many bytes of names, each ended by NUL, it sends these files as tar, and a block
   `container-runner: end CODE` with tar's exit code. So only what changed travels, and of that only what is wanted.
3. Asked `0 COMMIT`, it sends a block `container-runner: head ID REF` and a pack of the commits that HEAD has more than
   COMMIT, and ends (`commits`). For this alone a git is needed in there.

Everything that comes may have been made by an agent that is up to no good, the programs' output included. So what comes
is only ever data: names are checked before anything is done with them, a file is what was asked for or nothing, no
working tree is written, and refs are set when the stream has come to its end, in the order that was asked for.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Collection, Iterable, Iterator, Mapping
from contextlib import aclosing
from posixpath import basename, dirname
from typing import Final

import attrs

from container_runner.errors import WorkspaceError
from container_runner.stream.pipe import Pipe
from container_runner.workspace import ignored
from container_runner.workspace.commits import COMMITS, Commits, take_commits
from container_runner.workspace.findings import Finding
from container_runner.workspace.ignored import Rules
from container_runner.workspace.manifest import BYTES_LIMIT, LIST, Facts, Manifest, shows
from container_runner.workspace.names import folded, is_odd, is_refused
from container_runner.workspace.quarantine import Quarantine
from container_runner.workspace.shadow import Shadow
from container_runner.workspace.tar import BLOCK, TOO_MUCH, ZEROS, Member, Source, cut_off, garbled, read_member

FILE_LIMIT: Final = 100 * 1024**2
TOTAL_LIMIT: Final = 1024**3
FINDINGS_LIMIT: Final = 10_000
_CHUNK: Final = 256 * 1024

OUT: Final = rf"""{LIST}{COMMITS}
export LC_ALL=C
unset TAR_OPTIONS
cd "$1" || exit 71
list
while read -r size commit && [ "$size" -gt 0 ]; do
  head -c "$size" | xargs -0 tar --no-recursion -cf -
  say "end $?"
done
[ -z "$commit" ] || commits "$commit"
"""

_NO_FILES: Final = {b"p": "FIFO", b"s": "socket", b"c": "device", b"b": "device", b"D": "door"}
_END: Final = b"container-runner: end "


@attrs.frozen(kw_only=True)
class Outcome:
    """What came out of a box."""

    result: str
    """The commit in the shadow with the tree that came out, on the run's base."""

    commits: Commits | None = None
    """What became of HEAD; None for a folder without git."""

    findings: tuple[Finding, ...] = ()
    """What should be looked at, or was not taken; `FINDINGS_LIMIT` at most."""

    ignored: int = 0
    """How many new files were left in the box because .gitignore names them."""

    is_whole: bool = True
    """Whether all that is not ignored was taken. If not, the box has what nobody else has."""


async def receive(
    shadow: Shadow,
    run: str,
    pipe: Pipe,
    *,
    before: Mapping[bytes, Facts] | None = None,
    overlay: bool = False,
    may_be_empty: bool = False,
) -> Outcome:
    """Take the work of *run* over from a box, and set its refs result and head.

    Args:
        pipe: OUT, running in the box, with a stdin that is held (`open_pipe(..., stdin=None)`).
        before: the manifest of the folder before the agent began, made in the same box; None if there is none.
        overlay: the box's folder is an overlay above the workspace, so that what is not changed shows through.
        may_be_empty: whether to believe that all files were deleted. An empty volume in place of a lost one says so.

    Raises:
        WorkspaceError: the stream was cut off, is not what was asked for, is too long, or has no file left. Nothing
            has been taken over then.
    """
    base = await shadow.ref(run, "base")
    if base is None:
        raise WorkspaceError(f"Nothing is known of run {run}.", next_step="`container-runner ps` has the runs.")
    async with Quarantine.open(shadow) as quarantine, Quarantine.open(shadow) as packs:
        source = Source(pipe, BYTES_LIMIT + 2 * TOTAL_LIMIT)
        work = _Work(shadow, base, pipe, source, dict(before or {}), overlay=overlay)
        await work.look(may_be_empty=may_be_empty)
        tree = await work.take(quarantine)
        message = f"What run {run} left"
        result = (await quarantine.git("commit-tree", tree, "-p", base, "-m", message)).decode().strip()
        user = await shadow.ref(run, "user")
        commits = None
        if shadow.is_repository:
            pipe.send(b"0 %s\n" % (user or "none").encode(), last=True)
            commits = await take_commits(source, packs, user)
            for path in commits.gitlinks:
                work.find("gitlink", path)
            if commits.refused is not None:
                work.find("commits refused", b".git")
        else:
            pipe.send(b"0\n", last=True)
        if await source.some():
            raise garbled()
        if await pipe.wait() != 0:
            raise cut_off()
        quarantine.release()
        if commits and commits.head:
            packs.release()
    head = commits.head if commits else None
    await shadow.set_ref(run, "head", head if head != user else None)
    await shadow.set_ref(run, "result", result)
    return Outcome(
        result=result,
        commits=commits,
        findings=tuple(work.findings),
        ignored=work.ignored,
        is_whole=work.is_whole,
    )


class _Work:
    """The files of a box, while they are taken over."""

    def __init__(
        self, shadow: Shadow, base: str, pipe: Pipe, source: Source, before: dict[bytes, Facts], *, overlay: bool
    ) -> None:
        self._shadow = shadow
        self._base = base
        self._pipe = pipe
        self._source = source
        self._before = before
        self._overlay = overlay
        self._in_base: dict[bytes, bytes] = {}
        self._edited: list[bytes] = []
        self._new: list[bytes] = []
        self._gone: list[bytes] = []
        self._has_facts = False
        self._had: dict[bytes, bool] = {}
        self._rules: dict[bytes, str] = {}
        self._sizes: dict[bytes, int] = {}
        self._taken: dict[bytes, tuple[bytes, int]] = {}
        self._setuid: set[bytes] = set()
        self._left = TOTAL_LIMIT
        self._marks = 0
        self.findings: list[Finding] = []
        self.ignored = 0
        self.is_whole = True

    def find(self, kind: str, path: bytes, *, lost: bool = False) -> None:
        """Tell of a path; *lost* if it was not taken and should have been."""
        self.is_whole = self.is_whole and not lost
        if len(self.findings) < FINDINGS_LIMIT:
            self.findings.append(Finding(kind, path))

    # What is there.

    async def look(self, *, may_be_empty: bool) -> None:
        """Read the manifest, and sort its names into those that are edited, new, and gone."""
        for line in (await self._shadow.git("ls-tree", "-r", "-z", self._base)).split(b"\0")[:-1]:
            head, _, path = line.partition(b"\t")
            mode, _, blob = head.split(b" ")
            self._in_base[path] = b"%s %s" % (mode, blob)
            if basename(path) == ignored.NAME and mode != b"120000":
                self._rules[path] = blob.decode()
        left = set(self._in_base)
        unreadable: list[bytes] = []
        is_empty = True
        manifest = Manifest(self._source)
        async for records in manifest.records():
            for path, facts in records:
                kind = facts[:1]
                if basename(path) == b".git":
                    self._see_git(path)
                elif kind == b"d":
                    unreadable.append(path + b"/")
                    self.find("unreadable", path, lost=True)
                else:
                    is_empty = False
                    left.discard(path)
                    if not self._is_unchanged(path, facts):
                        self._see(path, kind, facts)
        if is_empty and self._in_base and not may_be_empty:
            step = "If the agent was to delete them all, add --empty to `container-runner changes`."
            raise WorkspaceError("The box has no file any more: that is not believed.", next_step=step)
        for path in left:
            if path.startswith(tuple(unreadable)):
                continue
            if manifest.code != 0 and not unreadable:
                self.find("not seen", path)
            elif not self._overlay or self._on_host(path):  # else it is the user who has deleted it
                self._gone.append(path)
        for path in self._before:
            if path not in self._in_base and basename(path) != b".git":
                self.find("ignored file deleted", path)

    def _see_git(self, path: bytes) -> None:
        was_there = self._before.pop(path, None) is not None or (self._overlay and self._on_host(path))
        if path != b".git" and not was_there:
            self.find("nested repository", dirname(path))

    def _is_unchanged(self, path: bytes, facts: Facts) -> bool:
        if self._overlay and facts:
            return shows(facts, self._path(path))
        if self._overlay and path not in self._in_base and self._on_host(path):
            self._had[path] = False  # for all we know
        was = self._before.pop(path, None)
        if was is not None and path not in self._in_base:
            self._had[path] = was != facts
        return was == facts != b""

    def _see(self, path: bytes, kind: bytes, facts: Facts) -> None:
        """Sort a file that is new, or may have changed."""
        self._has_facts = bool(facts)
        is_new = path not in self._in_base
        if is_refused(path, link=kind == b"l"):
            self.find("refused name", path)
        elif kind in _NO_FILES:
            self.find(_NO_FILES[kind], path)
        elif kind == b"f" and _size(facts) > FILE_LIMIT:
            self.find("too large", path, lost=True)
        else:
            (self._new if is_new else self._edited).append(path)
            self._sizes[path] = _size(facts)

    def _on_host(self, path: bytes) -> bool:
        return os.path.lexists(self._path(path))

    def _path(self, path: bytes) -> bytes:
        return b"%s/%s" % (os.fsencode(self._shadow.workspace), path)

    # What is taken.

    async def take(self, quarantine: Quarantine) -> str:
        """Fetch what is edited and new into the quarantine; the tree that it makes of the base."""
        marks = quarantine.folder / "marks"
        words = ("fast-import", "--quiet", "--done", f"--export-marks={marks}")
        async with aclosing(self._blobs()) as blobs:
            await quarantine.git(*words, stdin=blobs)
        ids = dict(line.split(b" ") for line in marks.read_bytes().splitlines())
        await quarantine.git("read-tree", self._base)
        null = b"0" * len(self._base)
        lines = [b"0 %s\t%s\0" % (null, path) for path in self._gone]
        entries = {path: b"%s %s" % (mode, ids[b":%d" % mark]) for path, (mode, mark) in self._taken.items()}
        self._taken = {path: taken for path, taken in self._taken.items() if entries[path] != self._in_base.get(path)}
        lines += (b"%s\t%s\0" % (entries[path], path) for path in self._taken)
        await quarantine.git("update-index", "-z", "--replace", "--index-info", stdin=b"".join(lines))
        self._tell()
        return (await quarantine.git("write-tree")).decode().strip()

    async def _blobs(self) -> AsyncGenerator[bytes]:
        """What `git fast-import` is told: a blob for each file that is taken."""
        async with Rules.open(self._shadow, self._rules) as rules:
            await self._leave_ignored(rules)
            first = [path for path in (*self._edited, *self._new) if basename(path) == ignored.NAME]
            async with aclosing(self._fetch(first, rules)) as blobs:
                async for data in blobs:
                    yield data
            if first and self._shadow.is_repository:
                await self._leave_ignored(rules)  # by the agent's rules too, which can only leave more in the box
            rest = [path for path in (*self._edited, *self._new) if basename(path) != ignored.NAME]
            async with aclosing(self._fetch(rest, rules)) as blobs:
                async for data in blobs:
                    yield data
        yield b"done\n"

    async def _leave_ignored(self, rules: Rules) -> None:
        """Take the names that are ignored from those that are new."""
        if not self._shadow.is_repository:
            return
        found = await rules.ignored(self._new)
        self._new = [path for path in self._new if path not in found]
        for path in found:
            had = self._overlay and self._on_host(path)
            if self._had.get(path, had):
                self.find("ignored file changed", path)
            elif path not in self._had:
                self.ignored += 1

    async def _fetch(self, names: Collection[bytes], rules: Rules) -> AsyncGenerator[bytes]:
        """The blobs of some files, in chunks."""
        names = self._that_fit(names)
        if not names:
            return
        held: list[bytes] = []
        size = 0
        async with aclosing(self._members(names)) as members:
            async for path, member in members:
                is_link = member.kind == "link"
                is_taken = not is_refused(path, link=True) if is_link else member.kind == "file"
                if not is_taken or member.size > FILE_LIMIT:
                    self._see_other(path, member)
                    await self._source.skip(member.size + -member.size % BLOCK)
                    continue
                mode = b"120000" if is_link else b"100755" if member.mode & 0o100 else b"100644"
                self._marks += 1
                self._taken[path] = (mode, self._marks)
                self._remember(path, member)
                length = len(member.link) if is_link else member.size
                held.append(b"blob\nmark :%d\ndata %d\n" % (self._marks, length))
                if is_link:
                    held.append(member.link)
                elif basename(path) == ignored.NAME and length <= ignored.SIZE_LIMIT:
                    content = await self._source.exactly(length)
                    rules.add(path, content)
                    held.append(content)
                else:
                    left = length
                    while left:
                        data = await self._source.some(left)
                        if not data:
                            raise cut_off()
                        left -= len(data)
                        held.append(data)
                        size += len(data)
                        if size >= _CHUNK:
                            yield b"".join(held)
                            held, size = [], 0
                await self._source.skip(-member.size % BLOCK)
                held.append(b"\n")
                size += BLOCK
        yield b"".join(held)

    async def _members(self, names: Collection[bytes]) -> AsyncGenerator[tuple[bytes, Member]]:
        """Ask for files, and read them as they come: in the order of *names*, or not at all."""
        asked = b"".join(b"./%s\0" % name for name in names)
        self._pipe.send(b"%d\n%s" % (len(asked), asked))
        expected = iter(names)
        missing: list[bytes] = []
        while True:
            block = await self._source.exactly(BLOCK)
            if block == ZEROS:  # the end of an archive; another may follow
                continue
            if block.startswith(_END):
                break
            member = await read_member(block, self._source)
            name = member.name.removeprefix(b"./")
            for candidate in expected:
                if candidate == name:
                    break
                missing.append(candidate)
            else:
                raise garbled()
            if member.size > TOTAL_LIMIT:
                raise WorkspaceError("The box sends more than is taken.", next_step=TOO_MUCH, path=name)
            yield name, member
        missing += expected
        went_well = block[len(_END) :].strip() == b"0"
        if missing and went_well and self._has_facts:
            raise garbled()
        for path in missing:  # a socket, where find does not tell what is one
            self.find("no file" if went_well else "unreadable", path, lost=not went_well)

    def _that_fit(self, names: Iterable[bytes]) -> list[bytes]:
        """Those of *names* that are not too large, all together."""
        found = []
        for path in names:
            if self._sizes[path] > self._left:
                self.find("too large with the others", path, lost=True)
            else:
                self._left -= self._sizes[path]
                found.append(path)
        return found

    def _see_other(self, path: bytes, member: Member) -> None:
        """What is taken of a member that is not read: of another name of a file that came, the same; else nothing."""
        other = self._taken.get(member.link.removeprefix(b"./"))
        if member.kind == "link":
            self.find("refused name", path)
        elif member.kind == "file":
            self.find("too large", path, lost=True)
        elif member.kind == "other":
            self.find("no file", path)
        elif other is None:
            self.find("hard link", path, lost=True)
        else:
            self._taken[path] = other
            self._remember(path, member)

    def _remember(self, path: bytes, member: Member) -> None:
        if member.kind != "link" and member.mode & 0o6000:
            self._setuid.add(path)

    def _tell(self) -> None:
        """Tell of what differs from the base, should be looked at, and is not to be seen in the trees alone."""
        new = [path for path in self._taken if path not in self._in_base]
        for path in self._setuid & self._taken.keys():
            self.find("setuid", path)
        for path in filter(is_odd, new):
            self.find("control characters", path)
        self._tell_twins(new)

    def _tell_twins(self, names: Collection[bytes]) -> None:
        """Tell of new names that are one with another where case, or the form of Unicode, does not count."""
        if not names:
            return
        seen: dict[bytes, bytes] = {}
        gone = set(self._gone)
        for path in (*(path for path in self._in_base if path not in gone), *names):
            for part in _ways(path):
                if seen.setdefault(folded(part), part) != part:
                    self.find("differs in case only", path)
                    break


def _ways(path: bytes) -> Iterator[bytes]:
    """A path, and each folder on the way to it."""
    while path:
        yield path
        path = dirname(path)


def _size(facts: Facts) -> int:
    words = facts.split(b" ")
    return int(words[2]) if len(words) == 6 and words[2].isdigit() else 0
