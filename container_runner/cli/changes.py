"""`container-runner changes`: what a run has done to a carried workspace, and what its commands share."""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, Final, TypeVar

import anyio
import attrs
from cyclopts import Parameter

from container_runner.cli.containers import JsonFlag, print_json, state_folder
from container_runner.cli.logs import local_time, print_table
from container_runner.cli.text import clean
from container_runner.errors import ConfigError
from container_runner.workspace.apply import recover
from container_runner.workspace.changes import ChangedFile, Changes
from container_runner.workspace.findings import MEANINGS, NOT_TAKEN, Finding
from container_runner.workspace.shadow import REFS, Shadow

T = TypeVar("T")

MOST_FILES: Final = 20
"""Changed files that are listed where not all are asked for."""

LEAVES_OUT: Final = "Look at these first; apply leaves them out until you name them with --include:"
"""Over findings that are not applied."""

_MARKS: Final = {"added": "+", "modified": "~", "deleted": "-"}


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class WorkFlags:
    """Whose work is meant.

    Attributes:
        workspace: The folder that the agent worked on.
        state_dir: Where sessions and records are kept. Default: the folder for such things in your home.
    """

    workspace: Annotated[Path, Parameter(alias="-w")] = Path()
    state_dir: Path | None = None


def changes(
    run: str = "",
    *,
    diff: Annotated[bool, Parameter(alias="-d", negative=())] = False,
    stat: Annotated[bool, Parameter(negative=())] = False,
    list_: Annotated[bool, Parameter(name=["--list", "-l"], negative=())] = False,
    empty: Annotated[bool, Parameter(negative=())] = False,
    json: JsonFlag = False,
    flags: WorkFlags | None = None,
) -> None:
    """Show what a run has done to its workspace, which has nothing of it yet.

    Args:
        run: The id of a run, or its beginning. Default: the last one on this folder.
        diff: Show the lines that have changed.
        stat: Show how many lines have changed in each file.
        list_: List the runs on this folder whose work is kept, oldest first.
        empty: Believe that the agent has deleted every file, where its work is not fetched yet.
        json: Print JSON for programs instead of text for people.
    """
    flags = flags or WorkFlags()
    if list_:
        _list(with_shadow(flags, _kept), json)
        return

    async def look(found: Changes) -> str:
        if diff or stat:
            return await found.diff(stat=stat)
        later = "" if run else _told_of_later(found.run, flags)
        return "\n".join([*rows_of(found, is_last=not run), *(["", later] if later else [])])

    found, text = with_changes(run, flags, lambda found: _both(found, look), may_be_empty=empty)
    if json:
        print_json(found.to_dict() | ({"diff": text} if diff or stat else {}))
    elif text:
        print(clean(text.removesuffix("\n")))


def with_changes(
    run: str, flags: WorkFlags, use: Callable[[Changes], Awaitable[T]], *, may_be_empty: bool = False
) -> T:
    """Do something with the changes of a run.

    Raises:
        ConfigError: there is no such run, or more than one.
    """

    async def work() -> T:
        shadow, name = await _find(run, flags, may_be_empty=may_be_empty)
        return await use(await Changes.load(shadow, name))

    return anyio.run(work)


def with_shadow(flags: WorkFlags, use: Callable[[Shadow], Awaitable[T]]) -> T:
    """Do something with the shadow of a folder."""

    async def work() -> T:
        return await use(await _open(flags.workspace, flags))

    return anyio.run(work)


def rows_of(found: Changes, *, is_last: bool = False) -> list[str]:
    """Changes for a person: files, commits, findings, and what can be done with them.

    Args:
        is_last: nobody has named the run, so it is the last one here; but not of those that wrote into the folder.
    """
    which = ", the last one on a copy" if is_last else ""
    rows = [f"· run {found.run[:12]}{which}", *file_rows(found.files, most=sys.maxsize)]
    if found.commits:
        rows += [f"{counted(len(found.commits), 'commit was', 'commits were')} made:"]
        rows += [f"  {commit.sha[:12]} {one_line(commit.subject)}" for commit in found.commits]
    rows += [f"The submodule {shown(module.path)} is at {module.head[:12]}." for module in found.modules]
    rows += finding_rows(found.findings)
    return [*rows, "", *next_rows(found.run)] if found.files or found.commits else rows


def file_rows(files: Sequence[ChangedFile], *, most: int = MOST_FILES) -> list[str]:
    """Changed files for a person, each with "+", "~" or "-" before it."""
    if not files:
        return ["No file has changed."]
    rows = [f"{counted(len(files), 'file has', 'files have')} changed:"]
    for file in files[:most]:
        lines = f"  (+{file.added} -{file.removed})" if file.added is not None else ""
        rows.append(f"  {_MARKS[file.status]} {shown(file.path)}{lines}")
    return [*rows, f"  and {len(files) - most} more"] if len(files) > most else rows


def finding_rows(findings: Sequence[Finding], head: str = LEAVES_OUT) -> list[str]:
    """Findings for a person; those that are not in the box any more under this *head*."""
    rows: list[str] = []
    for title, meanings in (
        (head, MEANINGS),
        ("These were left in the box:", NOT_TAKEN),
    ):
        told = [f"  ! {shown(found.path)}: {meanings[found.kind]}" for found in findings if found.kind in meanings]
        rows += [title, *told[:MOST_FILES]] if told else []
        rows += [f"  and {len(told) - MOST_FILES} more"] if len(told) > MOST_FILES else []
    return rows


def next_rows(run: str) -> list[str]:
    """What can be done with the work of a run."""
    run = run[:12]
    return [
        f"container-runner changes {run} --diff    shows it",
        f"container-runner apply {run}             writes it into the folder",
        f"container-runner branch {run} NAME       makes a branch of it",
        f"container-runner discard {run}           forgets it",
    ]


def shown(path: bytes) -> str:
    """A path on one line of a terminal."""
    return one_line(path.decode("utf-8", "backslashreplace"))


def one_line(text: str) -> str:
    """Text without what could control a terminal, on one line."""
    return clean(text).replace("\n", "␤")


def counted(number: int, one: str, many: str) -> str:
    """ "1 file has" or "3 files have"."""
    return f"{number} {one if number == 1 else many}"


def _mounted_after(run: str, flags: WorkFlags) -> str | None:
    """The last run on the folder, if that came after *run* and had the folder mounted; else None."""
    from container_runner.records.records import Records

    workspace = _folder(flags.workspace).resolve()
    for record in reversed(Records(state_folder(flags.state_dir)).runs()):
        summary = record.summary
        if record.run_id == run:
            return None
        has_worked = summary.outcome == "succeeded" or summary.exit_code is not None
        if has_worked and summary.workspace is not None and Path(summary.workspace).resolve() == workspace:
            return record.run_id if summary.changes is None else None  # a carried one that was discarded has them
    return None


def _told_of_later(run: str, flags: WorkFlags) -> str:
    """What is told of a run that came after *run* and was on the folder itself; "" if there is none."""
    later = _mounted_after(run, flags)
    if later is None:
        return ""
    return (
        f"Run {later[:12]} was the last, with the folder mounted: what it did is there, and nothing is to be fetched."
    )


async def _both(found: Changes, look: Callable[[Changes], Awaitable[str]]) -> tuple[Changes, str]:
    return found, await look(found)


def _folder(workspace: Path) -> Path:
    workspace = workspace.expanduser()
    if not workspace.is_dir():
        raise ConfigError("--workspace", str(workspace), "a folder that exists")
    return workspace


async def _open(workspace: Path, flags: WorkFlags) -> Shadow:
    shadow = await Shadow.open(_folder(workspace), state_folder(flags.state_dir))
    if (run := recover(shadow.workspace, state_folder(flags.state_dir))) is not None:
        print(f"The apply of run {run[:12]} was cut off. It is undone.", file=sys.stderr)
    return shadow


async def _find(run: str, flags: WorkFlags, *, may_be_empty: bool) -> tuple[Shadow, str]:
    """The run that is meant, and the shadow that it is in. What a run that was killed has left is fetched first."""
    from container_runner.runner.left import fetch_unfetched

    shadow = await _open(flags.workspace, flags)
    state, workspace = state_folder(flags.state_dir), None if run else shadow.workspace
    await fetch_unfetched(state, workspace, run, may_be_empty=may_be_empty)
    kept = [name for name, _ in await _kept(shadow)]
    if not run:
        if not kept:
            allowed = "a run, or a folder that an agent has worked on with --workspace-mode=carried"
            allowed = f"{allowed}; `container-runner logs --list --all` has all runs"
            later = _told_of_later("", flags)
            raise ConfigError("RUN", None, allowed, told=f"{later} RUN must be {allowed}" if later else None)
        return shadow, kept[-1]
    found = [name for name in kept if name.startswith(run)]
    if len(found) == 1:
        return shadow, found[0]
    if not found:
        return await _elsewhere(run, flags)
    allowed = "the id of a run, or as many of its first digits as tell it from the others"
    raise ConfigError("RUN", run, f"{allowed} ({len(found)} begin with this)")


async def _elsewhere(run: str, flags: WorkFlags) -> tuple[Shadow, str]:
    """A run on another folder, which the records know."""
    from container_runner.records.records import Records

    record = Records(state_folder(flags.state_dir)).find(run)
    shadow = await _open(Path(record.summary.workspace or ""), flags)
    if record.run_id not in await shadow.runs():
        allowed = "a run with --workspace-mode=carried: this one had its folder mounted, or its work was discarded"
        raise ConfigError("RUN", run, allowed)
    return shadow, record.run_id


async def _kept(shadow: Shadow) -> list[tuple[str, dt.datetime]]:
    """The runs on a folder whose work is kept, with when they began, oldest first."""
    words = ("for-each-ref", "--sort=creatordate", "--format=%(refname) %(creatordate:unix)", f"{REFS}/*/base")
    lines = (line.split() for line in (await shadow.git(*words)).decode().splitlines())
    return [(ref.split("/")[2], dt.datetime.fromtimestamp(int(when), dt.UTC)) for ref, when in lines]


def _list(kept: Sequence[tuple[str, dt.datetime]], json: bool) -> None:
    if json:
        print_json([{"run": run, "started": began} for run, began in kept])
    else:
        print_table("runs", [{"RUN": run[:12], "STARTED": local_time(began)} for run, began in kept], None)
