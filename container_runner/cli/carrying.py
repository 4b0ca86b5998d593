"""How a folder gets into the box where nobody has said it, and what becomes of its work at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import anyio
import attrs
import orjson
from cyclopts import Parameter

from container_runner.box import hints
from container_runner.box.environment import host_environment
from container_runner.cli.changes import counted, file_rows, finding_rows, next_rows
from container_runner.cli.flags import ConfigFlags, RunFlags, effective_from_flags
from container_runner.cli.options import ExecuteFlags, spelled
from container_runner.cli.text import clean
from container_runner.cli.view import View, put
from container_runner.config.converter import unstructured
from container_runner.config.tightening import DEFAULT
from container_runner.errors import ConfigError, ContainerRunnerError, GitNotFoundError
from container_runner.options import ExecuteOptions
from container_runner.runner import ContainerRunner
from container_runner.workspace.changes import ALL, Applied, Changes
from container_runner.workspace.findings import IGNORED
from container_runner.workspace.git import check_version

When = Literal["clean", "always", "never"]
"""When the work of a carried workspace is applied at the end of a run."""

ApplyFlag = Annotated[
    When | None,
    Parameter(
        help="Write the work of a carried workspace into the folder at the end. clean: if nothing has failed and there "
        "is nothing to look at first; always: whatever it is. Default: never with --carried, else clean."
    ),
]
"""The type of --apply."""


@attrs.frozen
class Choice:
    """The runner of a run, and what is to be said of how it gets at the folder."""

    runner: ContainerRunner

    is_ours: bool = False
    """Whether the folder is carried because nobody asked for something else."""

    note: str | None = None
    """Why it is mounted to be written, if one would not guess."""


def choose(runner: ContainerRunner, options: ExecuteOptions, flags: RunFlags, box: Any) -> Choice:
    """Carry the folder by an overlay, if nobody has said how it gets into the box, and nothing speaks against it.

    A stream is not taken by itself: it takes time, and the agent would not see what git ignores.
    """
    setting = effective_from_flags(flags, box).settings["workspace_mode"]
    if setting.source != DEFAULT or options.agent.workspace is None:
        return Choice(runner)
    try:
        carrying = runner.evolved(config=attrs.evolve(runner.config, workspace_mode="carried"))
        carry = carrying.plan(options).carry
    except ConfigError:  # it is a container that is kept, or there is something inside of /workspace
        return Choice(runner)
    if carry is None or carry.how != "overlay":
        note = "No overlay can be laid over this folder, so it is mounted to be written. --carried works on a copy."
        return Choice(runner, note=note)
    try:
        anyio.run(check_version, Path("/"))
    except GitNotFoundError as error:
        return Choice(runner, note=f"{error.message} So the folder is mounted to be written. {error.next_step}")
    return Choice(carrying, is_ours=True)


def begin(
    runner: ContainerRunner, options: ExecuteOptions, apply: When | None, flags: RunFlags, box: ConfigFlags | None
) -> tuple[ContainerRunner, When]:
    """The runner of a run, and when its work is applied. What there is to be said of both is said.

    Raises:
        ConfigError: it is to be applied, and the folder is not carried.
    """
    choice = choose(runner, options, flags, box)
    runner, when = choice.runner, apply or ("clean" if choice.is_ours else "never")
    warn(runner, options)
    if when != "never" and runner.config.workspace_mode != "carried":
        raise ConfigError("--apply", when, "--carried beside it; a folder that is mounted has the work already")
    if choice.note is not None:
        View().note(f"· {clean(choice.note)}")
    return runner, when


def warn(runner: ContainerRunner, options: ExecuteOptions) -> None:
    """Say what will not go as on the host, or not at all."""
    login = runner.runtime.command(options, contained=True).credentials
    environ = host_environment()
    told = [
        *hints.login_hints(login, runner.config, environ),
        *hints.address_hints(runner.runtime, options, runner.config, environ),
        *hints.box_hints(runner.config),
    ]
    for hint in (*hints.hints_for(options.agent, runner.config), *told):
        View().note(f"! {clean(hint)}")


def again(
    command: str, apply: When | None, flags: RunFlags, more: ExecuteFlags | None, box: ConfigFlags | None
) -> list[str]:
    """The command that was given, for another turn of the session that comes out of it."""
    words = spelled(flags, more, box, without=("resume", "continue_", "fork", "from_", "session_id"))
    return ["container-runner", command, *words, *([] if apply is None else [f"--apply={apply}"])]


async def applied(found: Changes, when: When, *, is_good: bool) -> Applied | ContainerRunnerError | None:
    """What became of the work if it is to be applied; None if it is not.

    Args:
        is_good: whether the agent has succeeded.
    """
    has_findings = any(finding.kind not in IGNORED for finding in found.findings)
    if when == "never" or (when == "clean" and (not is_good or has_findings)):
        return None
    try:
        return await found.apply([ALL] if when == "always" else ())
    except ContainerRunnerError as error:
        return error


async def tell(found: Changes | None, when: When, *, is_good: bool, is_json: bool = False) -> int:
    """Apply what came out of a carried workspace if it is to be, and tell of it.

    Returns:
        The exit code of what could not be applied, or 0.
    """
    if found is None:
        return 0
    said = await applied(found, when, is_good=is_good)
    if is_json:
        await put_changes(found, said)
    else:
        View().note("\n".join(carried_rows(found, said)))
    return said.cli_exit_code if isinstance(said, ContainerRunnerError) else 0


async def put_changes(
    found: Changes, done: Applied | ContainerRunnerError | None, *, patience: float | None = None
) -> None:
    """Tell a program what came out of a carried workspace, and which of it was applied.

    Args:
        patience: seconds that it has to read that. None: as long as it likes.
    """
    written = unstructured(done.paths) if isinstance(done, Applied) else None
    with anyio.move_on_after(patience):
        await put(orjson.dumps({"type": "changes", **found.to_dict(), "applied": written}) + b"\n")


def carried_rows(found: Changes, done: Applied | ContainerRunnerError | None) -> list[str]:
    """What came out of a carried workspace, and what became of it."""
    rows = [*file_rows(found.files), *finding_rows(found.findings)]
    if found.ignored:
        new = counted(found.ignored, "new file", "new files")
        rows += [f"{new} that git ignores stayed in the box; with --rw they would be in the folder"]
    if isinstance(done, Applied):
        rows += ["It is applied."] if done.paths else []
        if found.commits:
            made = counted(len(found.commits), "commit was", "commits were")
            rows += [f"{made} made; container-runner branch {found.run[:12]} NAME makes a branch of it"]
    elif found.files or found.commits:
        rows += [*(str(done).splitlines() if done else ()), *next_rows(found.run)]
    return [f"  {clean(row)}" for row in rows]
