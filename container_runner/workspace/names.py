"""Names of files that came out of a box: which of them are refused, and which are told."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from typing import Final

_DOT_GIT: Final = re.compile(rb"(\.git|git~[0-9]+)([ .]*|[ .]*:.*)", re.IGNORECASE | re.DOTALL)
"""What some file system takes for `.git`: NTFS forgets dots and spaces at the end, and has streams and short names."""

_MODULES: Final = re.compile(rb"(\.gitmodules|gitmod~[0-9]+)([ .]*|[ .]*:.*)", re.IGNORECASE | re.DOTALL)

_UNSEEN: Final = re.compile("[\u200c-\u200f\u202a-\u202e\u206a-\u206f\ufeff]")
"""What HFS+ leaves out when it compares names."""

_CONTROL: Final = re.compile(rb"[\x00-\x1f\x7f]")

OURS: Final = b".container-runner-"
"""How the names of what we put into a workspace ourselves begin."""


def is_refused(path: bytes, *, link: bool = False) -> bool:
    """Whether no file may have this path: it is none, leaves the folder, or is git's or ours on some file system.

    Args:
        link: whether it is a link: git trusts a `.gitmodules` that is none.
    """
    if len(path) > 4000 or path.startswith(OURS):
        return True
    for name in path.replace(b"\\", b"/").split(b"/"):
        seen = name
        if not name.isascii():
            seen = _UNSEEN.sub("", name.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")
        if seen in (b"", b".", b"..") or len(name) > 255 or _DOT_GIT.fullmatch(seen):
            return True
        if link and _MODULES.fullmatch(seen):
            return True
    return False


def is_odd(path: bytes) -> bool:
    """Whether a terminal, or a program that reads lines, may take the path for something else."""
    return _CONTROL.search(path) is not None


def folded(path: bytes) -> bytes:
    """The same for all the paths that are one file where neither case nor Unicode's normal forms count."""
    if path.isascii():
        return path.lower()
    text = _UNSEEN.sub("", path.decode("utf-8", "surrogateescape"))
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold()).encode(
        "utf-8", "surrogateescape"
    )


def twins(new: Collection[bytes], known: Iterable[bytes]) -> Iterator[bytes]:
    """Those of the *new* paths that are one with another, or with a *known* one, where case or Unicode's form does not
    count; on the way to it counts as well."""
    wanted = {folded(way) for path in new for way in ways(path)}
    seen: dict[bytes, bytes] = {}
    folders: set[bytes] = set()
    for path in known if wanted else ():
        folder = path
        while folder and folder not in folders:
            folders.add(folder)
            if (name := folded(folder)) in wanted:
                seen.setdefault(name, folder)
            folder = folder.rpartition(b"/")[0]
    for path in new:
        if any(seen.setdefault(folded(way), way) != way for way in ways(path)):
            yield path


def ways(path: bytes) -> Iterator[bytes]:
    """A path, and each folder on the way to it."""
    while path:
        yield path
        path = path.rpartition(b"/")[0]
