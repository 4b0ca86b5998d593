"""`container-runner run`: messages to a person or to a program, and signals to the agent."""

from __future__ import annotations

import io
import sys
import time
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Annotated

import anyio
import attrs
from cyclopts import Parameter

from container_runner.cli.changes import Changes, Snapshot, snapshot
from container_runner.cli.flags import ConfigFlags, RunFlags, prepare
from container_runner.cli.options import ExecuteFlags, read_prompt, spelled, to_shell
from container_runner.cli.signals import until_signalled
from container_runner.cli.text import clean, render, summary
from container_runner.errors import cli_exit_code
from container_runner.messages import Message
from container_runner.options import ExecuteOptions
from container_runner.runner import ContainerRunner
from container_runner.tally import Tally

MOST_CHANGES = 20
"""Changed files that are listed at the end."""

NOTHING_LEFT = "Stopped. No container is left."
LEAVING = "Leaving at once; the container ends by itself."


def run(
    prompt: str | None = None,
    *,
    prompt_file: Path | None = None,
    live: Annotated[bool | None, Parameter(show_default=False)] = None,
    flags: RunFlags | None = None,
    more: ExecuteFlags | None = None,
    box: ConfigFlags | None = None,
) -> int:
    """Run an agent on a folder, and show what it does.

    At a terminal there is a live view; into a pipe go plain lines. At the end it says on stderr how it went, which
    files have changed, and the command that goes on with the session.

    INT, TERM and HUP stop the agent and remove its container; a second signal does not wait for that, which the
    container then does by itself.

    Parameters
    ----------
    prompt
        What to do. "-": read it from stdin.
    prompt_file
        A file that holds the prompt.
    live
        Show the live view. Default: if stdout is a terminal.
    """
    flags, more = flags or RunFlags(), more or ExecuteFlags()
    runner, options = prepare(read_prompt(prompt, prompt_file), flags, box)
    options = more.apply(options)
    tally = Tally()
    again = ["container-runner", "run", *spelled(flags, more, box, without=("resume", "fork", "session_id"))]
    view: _View
    if flags.json:
        view = _Json()
    elif not _wants_live(live):
        view = _Plain()
    else:
        view = _Live(tally, runner, options)
        if more.include_partial_messages is None:
            options = attrs.evolve(options, include_partial_messages=True)
    return anyio.run(_run, runner, options, tally, view, again)


def _wants_live(asked: bool | None) -> bool:
    if asked is False:
        return False
    from container_runner.cli import live  # rich takes a while to import

    return live.is_terminal()


class _View:
    """Shows a run; by itself only what we have to say ourselves."""

    looks_at_workspace = True

    def start(self) -> None:
        """Just before the run."""

    async def beside(self) -> None:
        """What goes on while the agent works."""

    def add(self, message: Message) -> None:
        """One more message."""

    def note(self, text: str) -> None:
        """Something of our own to say."""
        with suppress(OSError):  # the terminal may be what has gone away
            print(text, file=sys.stderr, flush=True)

    def stop(self) -> None:
        """The run is over, however it went."""

    def end(self, rows: list[str]) -> None:
        """The last lines; see `ending`."""


class _Json(_View):
    """Messages as JSON, and nothing else."""

    looks_at_workspace = False

    def add(self, message: Message) -> None:
        sys.stdout.buffer.write(message.to_json() + b"\n")
        sys.stdout.buffer.flush()


class _Plain(_View):
    """Text, line by line."""

    def __init__(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # an agent writes in any script

    def add(self, message: Message) -> None:
        if text := render(message):
            print(text, flush=True)

    def end(self, rows: list[str]) -> None:
        for row in rows:
            self.note(row)


class _Live(_View):
    """The live view."""

    def __init__(self, tally: Tally, runner: ContainerRunner, options: ExecuteOptions) -> None:
        from container_runner.cli.live import RunView

        place = f"{runner.config.image} on {Path(options.agent.workspace or '').absolute()}"
        self._tally = tally
        self._view = RunView(tally, options.prompt, place)
        self.start = self._view.start  # type: ignore[method-assign]
        self.beside = self._view.animate  # type: ignore[method-assign]
        self.add = self._view.add  # type: ignore[method-assign]
        self.note = self._view.note  # type: ignore[method-assign]
        self.stop = self._view.close  # type: ignore[method-assign]

    def end(self, rows: list[str]) -> None:
        from container_runner.cli.live import styled

        if self._tally.error is not None:
            rows = [*(render(self._tally.error) or "").split("\n"), *rows]
        self._view.stop(*map(styled, ["", *rows]))


async def _run(
    runner: ContainerRunner, options: ExecuteOptions, tally: Tally, view: _View, again: list[str]
) -> int:
    messages = runner.execute(options)
    before = await _look(runner, options) if view.looks_at_workspace else None
    began = time.monotonic()

    async def work() -> None:
        async with aclosing(messages):
            async for message in messages:
                tally.add(message)
                view.add(message)

    def leave() -> None:
        view.stop()
        _View.note(view, LEAVING)

    view.start()
    try:
        received = await until_signalled(
            work,
            stopping=lambda name: view.note(f"{name}: stopping the agent…"),
            leaving=leave,
            beside=view.beside,
        )
    finally:
        view.stop()
    seconds = time.monotonic() - began
    changes = Changes.between(before, await _look(runner, options)) if before is not None else None
    view.end(ending(tally, seconds, changes, again, stopped=received is not None))
    if received is not None:
        return 128 + received
    return 0 if tally.error is None else cli_exit_code(tally.error.kind)


async def _look(runner: ContainerRunner, options: ExecuteOptions) -> Snapshot | None:
    """The files of a workspace that the agent may write."""
    if options.agent.workspace is None or runner.config.workspace_mode == "ro":
        return None
    return await anyio.to_thread.run_sync(snapshot, options.agent.workspace, abandon_on_cancel=True)


def ending(
    tally: Tally, seconds: float, changes: Changes | None, again: list[str], *, stopped: bool = False
) -> list[str]:
    """The lines at the end of a run."""
    rows = [f"✗ {NOTHING_LEFT}" if stopped else summary(tally, seconds)]
    if changes is not None:
        marked = changes.marked()
        what = {0: "No file has changed.", 1: "1 file has changed:"}
        rows.append(f"  {what.get(len(marked), f'{len(marked)} files have changed:')}")
        rows += [f"    {mark} {clean(path).replace(chr(10), '␤')}" for mark, path in marked[:MOST_CHANGES]]
        if len(marked) > MOST_CHANGES:
            rows.append(f"    and {len(marked) - MOST_CHANGES} more")
    if tally.session_id is not None:
        rows.append("  To go on with the session:")
        rows.append(f"    {clean(to_shell([*again, f'--resume={tally.session_id}', 'PROMPT']))}")
    return rows
