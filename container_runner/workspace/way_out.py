r"""The way out of a box: the work, as data, into the shadow.

One process in the box, `sh -c OUT sh FOLDER`, answers what it is asked on its stdin; where the folder is an overlay
whose upper part we can read, `upper` answers 1 and 2 instead, and `sh -c OUT sh FOLDER commits` only 3:

1. It tells the manifest of the folder (`manifest`).
2. Asked `SIZE` and that many bytes of names, each ended by NUL, it sends these files as tar, and a block
   `container-runner: end CODE` with tar's exit code. So only what changed travels, and of that only what is wanted.
3. If a COMMIT stands behind the size, which may be 0, it then sends a block `container-runner: head ID REF` and a pack
   of the commits that HEAD has more than COMMIT (`commits`), and ends. For this alone a git is needed in there. With
   "-" in the place of COMMIT it ends without.

Everything that comes may have been made by an agent that is up to no good, the programs' output included. So what comes
is only ever data: names are checked before anything is done with them, a file is what was asked for or nothing, no
working tree is written, and refs are set when the stream has come to its end, in the order that was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import attrs

from container_runner.errors import WorkspaceError
from container_runner.stream.pipe import Pipe
from container_runner.workspace.commits import COMMITS, LIMIT, Commits, take_commits
from container_runner.workspace.findings import Finding
from container_runner.workspace.manifest import BYTES_LIMIT, LIST, Facts
from container_runner.workspace.shadow import Shadow, Start
from container_runner.workspace.tar import Source, cut_off, garbled
from container_runner.workspace.upper import Upper
from container_runner.workspace.work import Work

COMMITS_ALONE: Final = "commits"
"""What OUT is told behind the folder if all that is wanted is its answer to 3."""

OUT: Final = rf"""{LIST}{COMMITS}
export LC_ALL=C
unset TAR_OPTIONS
cd "$1" || exit 71
[ "$2" = {COMMITS_ALONE} ] || list
while read -r size commit; do
  [ "$size" -eq 0 ] || {{ head -c "$size" | xargs -0 tar --no-recursion -cf -; say "end $?"; }}
  [ -z "$commit" ] || break
done
case $commit in '' | -) ;; *) commits "$commit" ;; esac
"""


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
    pipe: Pipe | Upper,
    *,
    commits: Pipe | None = None,
    before: Mapping[bytes, Facts] | None = None,
    overlay: bool = False,
    start: Start | None = None,
    below: str | None = None,
    may_be_empty: bool = False,
    on_end: Callable[[], None] | None = None,
) -> Outcome:
    """Take the work of *run* over from a box, and set its refs result and head.

    Args:
        pipe: OUT, running in the box, with a stdin that is held (`open_pipe(..., stdin=None)`); or what an overlay has
            written.
        commits: for an overlay, OUT with `COMMITS_ALONE`; None if nothing can have been committed.
        before: the manifest of the folder before the agent began, made in the same box; None if there is none.
        overlay: the box's folder is an overlay above the workspace, so that what is not changed shows through.
        start: what the box began with; None: the run's base.
        below: the tree that the folder was when the box began, if *start* is given and *overlay* is true.
        may_be_empty: whether to believe that all files were deleted. An empty volume in place of a lost one says so.
        on_end: is called when all that a box was asked for has come, whole, and before it is in the shadow.

    Raises:
        WorkspaceError: the stream was cut off, is not what was asked for, is too long, or has no file left. Nothing
            has been taken over then.
        UnclearError: likewise, and the box must be asked.
    """
    refs = await shadow.refs(run)
    if (base := refs.get("base")) is None:
        raise WorkspaceError(f"Nothing is known of run {run}.", next_step="`container-runner ps` has the runs.")
    user, found = refs.get("user"), None
    commit = (user or "none").encode() if shadow.is_repository else b"-"
    if commits is not None:
        commits.send(b"0 %s\n" % commit, last=True)
    box = commits if isinstance(pipe, Upper) else pipe
    with shadow.quarantine() as quarantine, shadow.quarantine() as packs:
        work = Work(shadow, base if start is None else start.files, pipe, dict(before or {}), overlay=overlay)
        if start is not None:
            await work.begin_with(base, below if overlay else None)
        await work.look(may_be_empty=may_be_empty)
        result = await work.take(quarantine, f"What run {run} left", then=commit)
        if box is not None:
            source = work.source if box is pipe else Source(box, LIMIT + BYTES_LIMIT)
            if shadow.is_repository:
                found = await take_commits(source, packs, user)
                for path in found.gitlinks:
                    work.find("gitlink", path)
                if found.refused is not None:
                    work.find("commits refused", b".git")
            if await source.some():
                raise garbled()
            if await box.wait() != 0:
                raise cut_off()
            if on_end is not None:
                on_end()
        quarantine.release()
        if found and found.head:
            packs.release()
    head = (found.head if found else None) or (start.head if start else None)
    await shadow.set_refs(run, {"head": head if head != user else None, "result": result})
    return Outcome(
        result=result,
        commits=found,
        findings=tuple(work.findings),
        ignored=work.ignored,
        is_whole=work.is_whole,
    )
