"""What was committed in the submodules of a box: each is asked for it as the repository around them is.

The shadow borrows the objects of the user's submodules as well (`Shadow.open`), so a thin pack is checked against them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Final

import attrs

from container_runner.stream.pipe import Pipe
from container_runner.workspace.commits import LIMIT, take_commits
from container_runner.workspace.findings import Finding
from container_runner.workspace.git import git
from container_runner.workspace.manifest import BYTES_LIMIT
from container_runner.workspace.repositories import lenders
from container_runner.workspace.repository import Repository
from container_runner.workspace.shadow import Shadow
from container_runner.workspace.tar import Source, cut_off

MODULE: Final = "module-"
"""How the refs of a run begin that have the heads of its submodules; their numbers follow."""


@attrs.frozen(kw_only=True)
class Module:
    """A submodule in which something was committed."""

    path: bytes
    """Relative to the workspace."""

    head: str
    """The commit that was HEAD there at the end."""


def may_have_submodules(shadow: Shadow) -> bool:
    """Whether the shadow borrows the objects of a submodule, so that a box may have to be asked for its commits."""
    return shadow.repository is not None and bool(lenders(shadow.repository.common))


async def submodules(shadow: Shadow) -> list[Repository]:
    """The user's submodules that are checked out, and whose objects the shadow borrows."""
    if shadow.repository is None or not (known := lenders(shadow.repository.common)):
        return []
    return [it for it in (await shadow.contents()).repositories if it.at and it.folder in known]


async def take_modules(
    shadow: Shadow, run: str, ask: Callable[[Repository], AbstractAsyncContextManager[Pipe] | None]
) -> tuple[tuple[Module, ...], tuple[Finding, ...]]:
    """Take what was committed in the submodules, and set the refs of *run* for it.

    Args:
        ask: OUT in the box, for the commits of a submodule alone; None if nothing can have been committed in it.

    Returns:
        Where something was committed, and where that was refused.

    Raises:
        WorkspaceError: a box says something else than it should, or too little.
    """
    taken: list[Module] = []
    findings: list[Finding] = []
    for module in await submodules(shadow):
        if (asked := ask(module)) is None:
            continue
        said = await git("rev-parse", "--quiet", "--verify", "HEAD^{commit}", folder=module.folder, ok=(0, 1))
        user = said.decode().strip() or None
        with shadow.quarantine() as packs:
            async with asked as box:
                box.send(b"0 %s\n" % (user or "none").encode(), last=True)
                found = await take_commits(Source(box, LIMIT + BYTES_LIMIT), packs, user)
                if await box.wait() != 0:
                    raise cut_off()
            if found.refused is not None:
                findings.append(Finding("commits refused", module.at))
            elif found.head not in (None, user):
                packs.release()
                taken.append(Module(path=module.at, head=str(found.head)))
    await shadow.set_refs(run, {f"{MODULE}{number}": module.head for number, module in enumerate(taken)})
    return tuple(taken), tuple(findings)


async def explained(shadow: Shadow, head: str | None, taken: tuple[Module, ...], finding: Finding) -> bool:
    """Whether a finding is that the repository names a commit of a submodule that was taken."""
    heads = {module.path: module.head for module in taken}
    if finding.kind != "gitlink" or head is None or finding.path not in heads:
        return False
    said = await shadow.git("ls-tree", "-z", head, "--", b":(literal)" + finding.path)
    return heads[finding.path].encode() in said
