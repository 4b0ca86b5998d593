r"""What was committed in a box, as a pack that is checked before the shadow takes it.

It is the second part of the way out, and the lesser one: where the box's `.git` is destroyed, or what comes of it is
refused, the files are taken over all the same.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

import attrs

from container_runner.errors import WorkspaceError
from container_runner.workspace.names import is_refused
from container_runner.workspace.quarantine import Quarantine
from container_runner.workspace.tar import BLOCK, Source, cut_off, garbled

LIMIT: Final = 1024**3
"""Bytes of a pack."""

_REASON: Final = 1000
"""The most letters of what git said that are told."""

COMMITS: Final = r"""
say() { printf '%-511.511s\n' "container-runner: $*"; }
commits() {
  unset GIT_WORK_TREE GIT_INDEX_FILE GIT_OBJECT_DIRECTORY GIT_ALTERNATE_OBJECT_DIRECTORIES GIT_NAMESPACE
  export GIT_DIR="$PWD/.git" GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1 GIT_OPTIONAL_LOCKS=0
  head=$(git rev-parse --quiet --verify 'HEAD^{commit}' 2>/dev/null) || head=none
  say "head $head $(git symbolic-ref --quiet HEAD 2>/dev/null)"
  code=0
  if [ "$head" != none ] && [ "$head" != "$1" ]; then
    not=
    ! git cat-file -e "$1^{commit}" 2>/dev/null || not=^$1
    printf '%s\n' "$head" $not | git pack-objects --revs --thin --delta-base-offset --stdout --quiet
    code=$?
  fi
  say "end $code"
}
"""
"""A function of a sh: `commits COMMIT` tells HEAD, and sends a pack of what it has more than COMMIT."""

_HEAD: Final = re.compile(
    rb"container-runner: head (none|[0-9a-f]{40}|[0-9a-f]{64})(?: (refs/heads/[^\x00-\x20~^:?*\[\\\x7f]+))?"
)
_END: Final = re.compile(rb"container-runner: end ([0-9]{1,3})")


@attrs.frozen(kw_only=True)
class Commits:
    """What became of HEAD in a box."""

    head: str | None
    """The commit, whose objects are in the quarantine; None if there is none, or it is not taken."""

    branch: str | None = None
    """The branch that HEAD was, as "refs/heads/main"."""

    refused: str | None = None
    """Why it is not taken."""

    gitlinks: tuple[bytes, ...] = ()
    """Where it names another repository, or another commit of one, than before."""


async def take_commits(source: Source, quarantine: Quarantine, user: str | None) -> Commits:
    """Read what `commits` has sent, to the end of *source*. What is taken is in *quarantine*, alone.

    Args:
        user: the commit that HEAD was before.

    Raises:
        WorkspaceError: it is cut off, or something else.
    """
    found = _HEAD.fullmatch((await source.exactly(BLOCK)).rstrip(b" \n"))
    if found is None:
        raise garbled()
    head = found[1].decode()
    branch = found[2].decode("utf-8", "replace") if found[2] else None
    pack = _Pack(source)
    if head in ("none", user):
        if await pack.drain() or pack.check() != 0:
            raise garbled()
        return Commits(head=None if head == "none" else head, branch=branch)
    refused = await _take_pack(pack, quarantine, head, user)
    await pack.drain()
    if (code := pack.check()) != 0:
        refused = f"git in the box failed with {code}"
    gitlinks: list[bytes] = []
    if refused is None:
        modes = await _modes(quarantine, head, user)
        gitlinks = [path for path, mode in modes.items() if mode == b"160000"]
        if any(mode == b"120000" and is_refused(path, link=True) for path, mode in modes.items()):
            refused = ".gitmodules is a link"  # older gits let it pass
    if refused is not None:
        return Commits(head=None, branch=branch, refused=refused)
    return Commits(head=head, branch=branch, gitlinks=tuple(gitlinks))


async def _modes(quarantine: Quarantine, head: str, user: str | None) -> dict[bytes, bytes]:
    """The paths at which a commit differs from another, or from nothing, with what it has there."""
    nothing = (await quarantine.git("hash-object", "-t", "tree", "--stdin")).decode().strip()
    raw = ("diff-tree", "-r", "-z", "--raw", "--no-renames", "--ignore-submodules=none")
    said = (await quarantine.git(*raw, f"{user}^{{tree}}" if user else nothing, f"{head}^{{tree}}")).split(b"\0")
    return {path: facts.split(b" ")[1] for facts, path in zip(said[::2], said[1::2], strict=False)}


async def _take_pack(pack: _Pack, quarantine: Quarantine, head: str, user: str | None) -> str | None:
    """Why the pack, or its commit, is not taken; None if it is."""
    checking = ("index-pack", "--stdin", "--fix-thin", "--strict", f"--max-input-size={LIMIT}")
    try:
        async with aclosing(pack.chunks()) as chunks:
            await quarantine.git(*checking, stdin=chunks)
        known = (f"^{user}",) if user else ()
        await quarantine.git("rev-list", "--objects", "--quiet", head, *known)
        await quarantine.git("cat-file", "-e", f"{head}^{{commit}}")
    except WorkspaceError as error:
        if error.exit_code is None:  # it was not git that refused it
            raise
        return error.stderr.strip()[-_REASON:] or error.message
    return None


class _Pack:
    """What comes before the last block of a stream; that block says whether it was all."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._last = b""

    async def chunks(self) -> AsyncGenerator[bytes]:
        while data := await self._source.some():
            held = self._last + data
            self._last = held[-BLOCK:]
            if len(held) > BLOCK:
                yield held[:-BLOCK]

    async def drain(self) -> int:
        """Read the rest; its length."""
        return sum([len(data) async for data in self.chunks()])

    def check(self) -> int:
        """The exit code that the last block tells. Raises WorkspaceError if it is not there."""
        found = _END.fullmatch(self._last.rstrip(b" \n"))
        if found is None:
            raise cut_off()
        return int(found[1])
