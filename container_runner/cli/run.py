"""`container-runner run`: messages to a person or to a program, and signals to the agent."""

from __future__ import annotations

import shlex
import sys
import time
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import attrs

from container_runner.box import protect
from container_runner.cli.changes import Changes, Snapshot, snapshot
from container_runner.cli.flags import ConfigFlags, RunFlags, prepare
from container_runner.cli.options import ExecuteFlags, read_prompt, spelled
from container_runner.cli.text import clean, render, summary
from container_runner.cli.view import View, left_by, put, take_any_script, wants_live, watched
from container_runner.errors import cli_exit_code
from container_runner.options import ExecuteOptions
from container_runner.records.tally import Tally
from container_runner.runner import ContainerRunner
from container_runner.stream.messages import Message

if TYPE_CHECKING:
    from container_runner.cli.live import RunView

MOST_CHANGES = 20
"""Changed files that are listed at the end."""


def run(
    prompt: str | None = None,
    *,
    prompt_file: Path | None = None,
    live: bool | None = None,
    flags: RunFlags | None = None,
    more: ExecuteFlags | None = None,
    box: ConfigFlags | None = None,
) -> int:
    """Run an agent on a folder, and show what it does.

    Args:
        prompt: What to do. "-": read it from stdin.
        prompt_file: A file that holds the prompt.
        live: Show the live view. Default: if stdout is a terminal.
    """
    flags, more = flags or RunFlags(), more or ExecuteFlags()
    runner, options = prepare(read_prompt(prompt, prompt_file), flags, more, box)
    tally = Tally()
    again = ["container-runner", "run", *spelled(flags, more, box, without=("resume", "fork", "session_id"))]
    if flags.json:
        return anyio.run(_run, runner, options, tally, _Json())
    take_any_script()
    if not wants_live(live):
        return anyio.run(_run, runner, options, tally, _Plain(), again)
    from container_runner.cli.live import RunView  # rich takes a while to import

    if more.include_partial_messages is None:
        options = attrs.evolve(options, include_partial_messages=True)
    view = RunView(tally, options.prompt, f"{runner.config.image} on {_place(options)}")
    return anyio.run(_run, runner, options, tally, view, again)


def _place(options: ExecuteOptions) -> str:
    """The workspace, as a person calls it."""
    if options.agent.workspace is None:
        return "an empty folder"
    path, home = Path(options.agent.workspace).expanduser().absolute(), Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


class _Json(View):
    """Messages as JSON."""

    async def take(self, message: Message) -> None:
        await put(message.to_json() + b"\n")


class _Plain(View):
    """Messages as text, line by line."""

    async def take(self, message: Message) -> None:
        if text := render(message):
            await put(f"{text}\n".encode(sys.stdout.encoding or "utf-8", "replace"))


async def _run(
    runner: ContainerRunner,
    options: ExecuteOptions,
    tally: Tally,
    view: _Json | _Plain | RunView,
    again: list[str] | None = None,
) -> int:
    """Run it; with the command that would run it *again*, tell at the end how it went."""
    messages = runner.execute(options)
    before = await _look(runner, options) if again is not None else None
    began = time.monotonic()

    async def work() -> None:
        async with aclosing(messages):
            async for message in messages:
                tally.add(message)
                await view.take(message)

    received = await watched(work, view, stopping="stopping the agent")
    seconds = time.monotonic() - began
    stopped = await left_by(runner) if received is not None else None
    if again is not None:
        after = await _look(runner, options) if before is not None else None
        rows = ending(tally, seconds, before, after, stopped)
        view.end([*rows, *_resumption(runner, options, tally, again)])
    elif stopped is not None:
        view.note(stopped)
    if received is not None:
        return 128 + received
    return 0 if tally.error is None else cli_exit_code(tally.error.kind)


@attrs.frozen
class Look:
    """What a workspace is like before or after a run."""

    files: Snapshot | None
    """Its files; None if there are too many."""

    missing: frozenset[str] = frozenset()
    """The protected paths that are not there, and that the agent could therefore make."""


async def _look(runner: ContainerRunner, options: ExecuteOptions) -> Look | None:
    """Look at a workspace that the agent may write; None if there is none."""
    if options.agent.workspace is None or runner.config.workspace_mode == "ro":
        return None
    workspace, unprotected = Path(options.agent.workspace), runner.config.unprotected

    def look() -> Look:
        return Look(snapshot(workspace), protect.missing(workspace.expanduser()) - {*unprotected})

    return await anyio.to_thread.run_sync(look, abandon_on_cancel=True)


def ending(tally: Tally, seconds: float, before: Look | None, after: Look | None, stopped: str | None) -> list[str]:
    """How a run went, and what it changed."""
    rows = [summary(tally, seconds) if stopped is None else f"✗ {stopped}"]
    if before is not None and after is not None:
        rows += _changed(Changes.between(before.files, after.files))
        rows += _made(before.missing - after.missing)
    return rows


def _resumption(runner: ContainerRunner, options: ExecuteOptions, tally: Tally, again: list[str]) -> list[str]:
    """The command that goes on with the session, if there is one and the agent takes it."""
    # An agent that failed before it began names a session that is none, as with an id that is not known.
    began = tally.error is None or tally.model or tally.turns
    if not began or (session := tally.session_id) is None:
        return []
    command = runner.runtime.command(attrs.evolve(options, resume=session), contained=True)
    if not any(session in word for word in command.argv):
        return []
    return ["  To go on with the session:", f"    {clean(shlex.join([*again, f'--resume={session}', 'PROMPT']))}"]


def _changed(changes: Changes | None) -> list[str]:
    if changes is None:
        return ["  The workspace has too many files to tell which have changed."]
    marked = changes.marked()
    what = {0: "No file has changed.", 1: "1 file has changed:"}
    rows = [f"  {what.get(len(marked), f'{len(marked)} files have changed:')}"]
    rows += [f"    {mark} {clean(path).replace(chr(10), '␤')}" for mark, path in marked[:MOST_CHANGES]]
    return [*rows, f"    and {len(marked) - MOST_CHANGES} more"] if len(marked) > MOST_CHANGES else rows


def _made(protected: frozenset[str]) -> list[str]:
    """A warning about new files that programs on this machine obey."""
    names = sorted(name for name in protected if name.partition("/")[0] == name or ".git" not in protected)
    if not names:
        return []
    return [f"  ! The agent made {', '.join(names)}: look inside before a program of yours obeys it."]
