"""The files of a box, while they are taken over: which of them have changed, and what of those is taken."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator, Collection, Iterable, Iterator
from contextlib import aclosing
from pathlib import Path
from posixpath import basename, dirname
from typing import Final

from container_runner.errors import WorkspaceError
from container_runner.stream.pipe import Pipe
from container_runner.workspace import ignored
from container_runner.workspace.findings import LINK, Finding
from container_runner.workspace.ignored import Rules
from container_runner.workspace.manifest import BYTES_LIMIT, Facts, Manifest, shows
from container_runner.workspace.names import is_odd, is_refused, twins, ways
from container_runner.workspace.objects import WHO, difference, lines, quoted
from container_runner.workspace.quarantine import Quarantine
from container_runner.workspace.shadow import Shadow
from container_runner.workspace.tar import BLOCK, TOO_MUCH, ZEROS, Member, Source, cut_off, garbled, read_member
from container_runner.workspace.upper import Upper, is_kept_below

FILE_LIMIT: Final = 100 * 1024**2
TOTAL_LIMIT: Final = 1024**3
FINDINGS_LIMIT: Final = 10_000
_CHUNK: Final = 256 * 1024

_NO_FILES: Final = {b"p": "FIFO", b"s": "socket", b"c": "device", b"b": "device", b"D": "door"}
_END: Final = b"container-runner: end "


class Work:
    """The files of a box, while they are taken over: call `look`, then `take`.

    Args:
        pipe: who tells of them, as OUT does.
        before: see `way_out.receive`; so is *overlay*.
    """

    def __init__(
        self,
        shadow: Shadow,
        base: str,
        pipe: Pipe | Upper,
        before: dict[bytes, Facts],
        *,
        overlay: bool,
    ) -> None:
        self._shadow = shadow
        self._base = base
        self._pipe = pipe
        self._upper = pipe if isinstance(pipe, Upper) else None
        self.source = Source(pipe, BYTES_LIMIT + 2 * TOTAL_LIMIT)
        self._before = before
        self._overlay = overlay
        self._in_base: dict[bytes, bytes] = {}
        self._edited: list[bytes] = []
        self._new: list[bytes] = []
        self._gone: list[bytes] = []
        self._has_facts = False
        self._laid: Collection[bytes] = ()
        self._had: dict[bytes, bool] = {}
        self._rules: dict[bytes, str] = {}
        self._first_rules: dict[bytes, str] | None = None
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

    async def begin_with(self, base: str, below: str | None) -> None:
        """Note what the box began with that is not as in the run's *base*, or in the tree *below* an overlay."""
        self._first_rules = await ignored.files_in(self._shadow, base)
        if below is not None:
            self._laid = (await difference(self._shadow, below, self._base)).keys()

    async def look(self, *, may_be_empty: bool) -> None:
        """Read the manifest, and sort its names into those that are edited, new, and gone."""
        self._in_base = await lines(self._shadow, self._base)
        for path, facts in self._in_base.items():
            if path.endswith(ignored.NAME) and basename(path) == ignored.NAME and not facts.startswith(LINK):
                self._rules[path] = facts.split()[2].decode()
        left = set(self._in_base)
        unreadable: list[bytes] = []
        is_empty = True
        manifest = Manifest(self.source)
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
        for path in left:
            if path.startswith(tuple(unreadable)):
                continue
            if manifest.code != 0 and not unreadable:
                self.find("not seen", path)
            elif self._is_gone(path):
                self._gone.append(path)
        is_empty = is_empty and (self._upper is None or len(self._gone) == len(self._in_base))
        if is_empty and self._in_base and not may_be_empty:
            step = "If the agent was to delete them all, add --empty to `container-runner changes`."
            raise WorkspaceError("The box has no file any more: that is not believed.", next_step=step)
        for path in self._whiteouts() if self._shadow.is_repository else ():
            self.find("ignored file deleted", path)
        for path in self._before:
            if path not in self._in_base and basename(path) != b".git":
                self.find("ignored file deleted", path)

    def _is_gone(self, path: bytes) -> bool:
        if path in self._laid:
            return True  # where it lay, nothing of it shows through
        if self._upper is not None:
            return self._upper.hides(path)
        return not self._overlay or self._on_host(path)  # else it is the user who has deleted it

    def _whiteouts(self) -> Iterator[bytes]:
        """What was deleted over an overlay, and is not in the base."""
        if self._upper is None:
            return
        known = {way for path in (*self._gone, *self._laid) for way in ways(path)}
        for path in self._upper.whiteouts():
            if path not in known and basename(path) != b".git" and is_kept_below(Path(os.fsdecode(self._path(path)))):
                yield path

    def _see_git(self, path: bytes) -> None:
        was_there = self._before.pop(path, None) is not None or (self._overlay and self._on_host(path))
        if path != b".git" and not was_there:
            self.find("nested repository", dirname(path))

    def _is_unchanged(self, path: bytes, facts: Facts) -> bool:
        if self._upper is not None:
            return False
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

    async def take(self, quarantine: Quarantine, message: str, *, then: bytes) -> str:
        """Fetch what is edited and new into the quarantine; the commit with it on the base.

        Args:
            then: what OUT is asked for with the last of these files, so that it gets that ready while they are taken.
                Its answer is left in `source`.
        """
        async with aclosing(self._stream(message, then)) as stream:
            ids = await quarantine.fast_import(stream)
        entries = {path: b"%s blob %s" % (mode, ids[b":%d" % mark]) for path, (mode, mark) in self._taken.items()}
        self._taken = {path: taken for path, taken in self._taken.items() if entries[path] != self._in_base.get(path)}
        self._tell()
        return ids[b":%d" % self._marks].decode()

    async def _stream(self, message: str, then: bytes) -> AsyncGenerator[bytes]:
        """What `git fast-import` is told: the blobs, and then a commit of them."""
        async with aclosing(self._blobs(then)) as blobs:
            async for data in blobs:
                yield data
        self._marks += 1
        head = f"commit refs/heads/result\nmark :{self._marks}\ncommitter {WHO} {int(time.time())} +0000\n"
        yield f"{head}data {len(message)}\n{message}\nfrom {self._base}\n".encode()
        # Deletions first: a file may stand where a folder was.
        yield b"".join(b"D %s\n" % quoted(path) for path in self._gone)
        yield b"".join(b"M %s :%d %s\n" % (mode, mark, quoted(path)) for path, (mode, mark) in self._taken.items())
        yield b"done\n"

    async def _blobs(self, then: bytes) -> AsyncGenerator[bytes]:
        """A blob for each file that is taken."""
        if self._first_rules is not None:  # what they name stays, whatever an earlier agent has made of them
            async with Rules.open(self._shadow, self._first_rules) as rules:
                await self._leave_ignored(rules)
        async with Rules.open(self._shadow, self._rules) as rules:
            await self._leave_ignored(rules)
            first = [path for path in (*self._edited, *self._new) if basename(path) == ignored.NAME]
            async with aclosing(self._fetch(first, rules)) as blobs:
                async for data in blobs:
                    yield data
            if first and self._shadow.is_repository:
                await self._leave_ignored(rules)  # by the agent's rules too, which can only leave more in the box
            rest = [path for path in (*self._edited, *self._new) if basename(path) != ignored.NAME]
            async with aclosing(self._fetch(rest, rules, then)) as blobs:
                async for data in blobs:
                    yield data

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

    async def _fetch(self, names: Collection[bytes], rules: Rules, then: bytes = b"") -> AsyncGenerator[bytes]:
        """The blobs of some files, in chunks."""
        names = self._that_fit(names)
        asked = b"".join(b"./%s\0" % name for name in names)
        # Not a line behind the names: where `head` reads more than it should, that would be lost.
        line = b"%d %s\n%s" % (len(asked), then, asked)
        if then and not isinstance(self._pipe, Upper):
            self._pipe.send(line, last=True)
        elif names:
            self._pipe.send(line)
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
                    await self.source.skip(member.size + -member.size % BLOCK)
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
                    content = await self.source.exactly(length)
                    rules.add(path, content)
                    held.append(content)
                else:
                    left = length
                    while left:
                        data = await self.source.some(left)
                        if not data:
                            raise cut_off()
                        left -= len(data)
                        held.append(data)
                        size += len(data)
                        if size >= _CHUNK:
                            yield b"".join(held)
                            held, size = [], 0
                await self.source.skip(-member.size % BLOCK)
                held.append(b"\n")
                size += BLOCK
        yield b"".join(held)

    async def _members(self, names: Collection[bytes]) -> AsyncGenerator[tuple[bytes, Member]]:
        """Read the files that were asked for, as they come: in the order of *names*, or not at all."""
        expected = iter(names)
        missing: list[bytes] = []
        while True:
            block = await self.source.exactly(BLOCK)
            if block == ZEROS:  # the end of an archive; another may follow
                continue
            if block.startswith(_END):
                break
            member = await read_member(block, self.source)
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
        gone = set(self._gone)
        for path in twins(new, (path for path in self._in_base if path not in gone)):
            self.find("differs in case only", path)


def _size(facts: Facts) -> int:
    words = facts.split(b" ")
    return int(words[2]) if len(words) == 6 and words[2].isdigit() else 0
