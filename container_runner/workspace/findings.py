"""What came out of a box and should be looked at by a person before the host sees it, or was not taken over.

The names that programs on the host obey are in `container_runner.config.protected`. What makes a finding without a name
of its own is here: a link that leads out of the workspace, a repository or a reference to one, what is installed, and a
package.json whose scripts run by themselves.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from typing import Final

import attrs

from container_runner.config.protected import GIT, INSTALLED, OBEYED_BY, PLACES
from container_runner.workspace.names import folded

LINK: Final = b"120000"
GITLINK: Final = b"160000"
FOLLOWED: Final = 40
"""The most links on a way that are followed; the kernel's own limit."""

LONGEST: Final = 256 * 1024
"""The most bytes of a content that are looked into."""

MEANINGS: Final[Mapping[str, str]] = {
    **OBEYED_BY,
    "protected": "you asked to be told of it",
    "link": "it leads out of the workspace",
    "gitlink": "git looks for another repository there",
    "repository": "git takes the folder for a repository, and obeys its configuration",
    "installed": "its programs are run, and nobody reads them",
    "scripts": "a package manager runs its scripts when it installs",
    "setuid": "it was setuid or setgid, and is not any more",
    "control characters": "its name may act on a terminal",
    "differs in case only": "some file systems take it for another file",
}
"""What is to be said of a path whose change has been taken over, by the kind of finding."""

NOT_TAKEN: Final[Mapping[str, str]] = {
    "commits refused": "git refuses what was committed, whose files are taken",
    "device": "it is a device",
    "door": "it is a door",
    "FIFO": "it is a FIFO",
    "socket": "it is a socket",
    "no file": "it is no file",
    "hard link": "it is another name of a file that did not change",
    "ignored file changed": "git ignores it, and it has changed",
    "ignored file deleted": "git ignores it, and it was deleted",
    "nested repository": "of the repository in it, the files alone",
    "not seen": "the folder could not be read to its end",
    "refused name": "no file may have this name",
    "too large": "it is too large",
    "too large with the others": "all together is too large",
    "unreadable": "it can not be read",
}
"""Why a path was left in the box, by the kind of finding."""

IGNORED: Final = frozenset(["ignored file changed", "ignored file deleted"])
"""Of these nothing is missing from the work: what git ignores is not carried out."""

_LIFECYCLE: Final = frozenset(
    [
        *("preinstall", "install", "postinstall", "prepublish", "preprepare", "prepare", "postprepare"),
        *("dependencies", "pnpm:devPreinstall"),
    ]
)
"""The scripts of a package.json that run when somebody installs what the project needs."""

_ORDERS: Final = ("gitHooks", "husky", "lint-staged", "packageManager", "pre-commit", "simple-git-hooks")
"""What else in a package.json other programs obey by themselves."""


@attrs.frozen
class Finding:
    """One path that came out of a box, and what is to be said of it."""

    kind: str
    """What it is, in a few words that do not change: "hard link", "too large"."""

    path: bytes
    """Relative to the workspace, as the file system spells it. Made by an agent: show it quoted."""


@attrs.frozen
class Entry:
    """What a tree holds at a path."""

    mode: bytes
    """As git writes it: b"100644", b"100755", b"120000" for a link, b"160000" for another repository."""

    oid: bytes
    """The name of its content."""


Tree = Mapping[bytes, Entry]
"""Paths with what is there."""

Difference = Mapping[bytes, tuple[Entry | None, Entry | None]]
"""Paths with what is there before and after; None for nothing."""

Contents = Mapping[bytes, bytes]
"""Contents by their names, of the entries that `wanted` asks for; without those longer than `LONGEST`."""


_KINDS: Final[Mapping[bytes, str]] = {
    folded(place.name.encode()): place.kind for place in PLACES if "*" not in place.name
}
_AT_TOP: Final = frozenset(folded(place.name.encode()) for place in PLACES if place.only_top)
_SUFFIXES: Final = {place.name[1:].encode(): place.kind for place in PLACES if place.name.startswith("*")}
_INSTALLED: Final = frozenset(name.encode() for name in INSTALLED)
_REPOSITORY: Final = frozenset(name.encode() for name in GIT)


def wanted(changed: Difference, around: Tree) -> set[bytes]:
    """The names of the contents that `find` has to see: where links lead, and each changed package.json."""
    packages = (entry for path, both in changed.items() if _is_package(path) for entry in both)
    links = (entry for entry in around.values() if entry.mode == LINK)
    return {entry.oid for entry in (*packages, *links) if entry is not None}


def find(
    changed: Difference,
    around: Tree,
    contents: Contents,
    *,
    protected: Iterable[str] = (),
    unprotected: Iterable[str] = (),
) -> tuple[Finding, ...]:
    """What the host would obey or trust, and what was not so before, by path. A deletion counts.

    Args:
        changed: what a run has changed.
        around: of the tree that it has left, at least all links, and all that is called HEAD.
        contents: those that `wanted` asks for.
        protected: more paths that count: a name anywhere, and one with a "/" from the top.
        unprotected: names of the table that the operator leaves to the agent.
    """
    links = {path: contents.get(entry.oid, b"/") for path, entry in around.items() if entry.mode == LINK}
    places = _Places(protected, unprotected, links)
    heads = {path.rpartition(b"/")[0] for path in around if path.rpartition(b"/")[2].upper() == b"HEAD"}
    found: dict[Finding, None] = {}
    for path, (before, after) in sorted(changed.items()):
        folder = _installed(path)
        if folder is not None:
            found[Finding("installed", folder)] = None
        elif (kind := places.kind(path)) is not None:
            found[Finding(kind, path)] = None
        elif _is_of_repository(path, heads):
            found[Finding("repository", path)] = None
        elif after is not None and after.mode == GITLINK:
            found[Finding("gitlink", path)] = None
        elif after is not None and after.mode == LINK and leads_out(path, links):
            found[Finding("link", path)] = None
        elif _is_package(path) and _orders(before, contents) != _orders(after, contents):
            found[Finding("scripts", path)] = None
    return tuple(found)


def leads_out(path: bytes, links: Mapping[bytes, bytes]) -> bool:
    """Whether the link at *path* leads out of the workspace, or into a repository; also by way of other *links*.

    Args:
        links: where each link of the workspace leads.
    """
    at: list[bytes] = []
    followed, left = 0, path.split(b"/")
    while left:
        part = left.pop(0)
        if part in (b"", b"."):
            continue
        if part == b"..":
            if not at:
                return True
            at.pop()
            continue
        at.append(part)
        if folded(part) == b".git":
            return True
        target = links.get(b"/".join(at))
        if target is not None:
            followed += 1
            if target.startswith(b"/") or followed > FOLLOWED:
                return True
            at.pop()
            left = target.split(b"/") + left
    return False


class _Places:
    """The table, with what one run adds to it."""

    def __init__(self, protected: Iterable[str], unprotected: Iterable[str], links: Mapping[bytes, bytes]) -> None:
        left_out = {folded(name.encode()) for name in unprotected}
        self._kinds = {name: kind for name, kind in _KINDS.items() if name not in left_out}
        self._at_top = set(_AT_TOP)
        for name in protected:
            place = folded(name.strip("/").encode("utf-8", "surrogateescape"))
            self._kinds[place] = "protected"
            if b"/" in place:
                self._at_top.add(place)
        self._depth = max(name.count(b"/") for name in self._kinds) + 1
        # What a link in such a place leads to is obeyed as if it stood there: hooks often are links to scripts.
        for path, target in links.items():
            if (kind := self.kind(path)) is not None:
                at = folded(_beside(path, target))
                self._kinds[at] = kind
                self._at_top.add(at)
                self._depth = max(self._depth, at.count(b"/") + 1)

    def kind(self, path: bytes) -> str | None:
        """Who obeys what is at *path*, or in a folder above it; None if nobody does by itself."""
        parts = folded(path).split(b"/")
        for start in range(len(parts)):
            for end in range(start + 1, min(len(parts), start + self._depth) + 1):
                name = b"/".join(parts[start:end])
                if (kind := self._kinds.get(name)) is not None and (start == 0 or name not in self._at_top):
                    return kind
        for suffix, kind in _SUFFIXES.items():
            if parts[-1].endswith(suffix):
                return kind
        return None


def _beside(path: bytes, target: bytes) -> bytes:
    """Where a link at *path* leads, as a path of the workspace; what leads out of it is no place in it."""
    at: list[bytes] = []
    for part in [*path.split(b"/")[:-1], *target.split(b"/")]:
        if part == b"..":
            at = at[:-1]
        elif part not in (b"", b"."):
            at.append(part)
    return b"/".join(at)


def _installed(path: bytes) -> bytes | None:
    """The folder of installed programs that *path* is in."""
    parts = path.split(b"/")
    for number, part in enumerate(parts[:-1]):
        if folded(part) in _INSTALLED:
            return b"/".join(parts[: number + 1])
    return None


def _is_of_repository(path: bytes, heads: Collection[bytes]) -> bool:
    """Whether *path* makes its folder a repository, or says what git does in one. Without a HEAD there is none."""
    parts = path.split(b"/")
    if parts[-1].upper() == b"HEAD":
        return True
    return any(folded(part) in _REPOSITORY and b"/".join(parts[:number]) in heads for number, part in enumerate(parts))


def _is_package(path: bytes) -> bool:
    return folded(path.rpartition(b"/")[2]) == b"package.json"


def _orders(entry: Entry | None, contents: Contents) -> object:
    """What a package.json makes other programs do by themselves. One that can not be read may do anything."""
    if entry is None:
        return {}
    try:
        package = json.loads(contents[entry.oid])
        scripts = package.get("scripts", {})
        orders = {name: scripts[name] for name in _LIFECYCLE if name in scripts}
        return orders | {name: package[name] for name in _ORDERS if name in package}
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        return entry.oid
