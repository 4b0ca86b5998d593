"""`container-runner run`: messages to a person or to a program, and signals to the agent."""

from __future__ import annotations

import os
import shlex
import stat
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import attrs

from container_runner.agents import AgentRuntime
from container_runner.box import hints, protect
from container_runner.box.translator import Translator
from container_runner.cli.carrying import ApplyFlag, When, again, applied, begin, carried_rows, put_changes
from container_runner.cli.changes import file_rows
from container_runner.cli.flags import ConfigFlags, RunFlags, prepare
from container_runner.cli.image import fetch
from container_runner.cli.look import UNSEEN, Snapshot, changed, snapshot
from container_runner.cli.options import ExecuteFlags, read_prompt
from container_runner.cli.streams import LAST_PATIENCE
from container_runner.cli.text import clean, render, summary
from container_runner.cli.view import NOTHING_YET, QUIET, View, check_live, put, take_any_script, wants_live, watched
from container_runner.config.protected import OBEYED
from container_runner.errors import (
    AgentError,
    CommandNotExecutableError,
    CommandNotFoundError,
    ContainerRunnerError,
    SessionNotFoundError,
    SetupFailedError,
    error_class,
)
from container_runner.folders import expanded
from container_runner.options import ExecuteOptions
from container_runner.records.summary import RunSummary
from container_runner.records.tally import Tally
from container_runner.runner import ContainerRunner
from container_runner.runner.start import earlier
from container_runner.stream.messages import Message
from container_runner.workspace.changes import Applied, ChangedFile, Changes

if TYPE_CHECKING:
    from container_runner.cli.live import RunView

SETUID = stat.S_ISUID | stat.S_ISGID

MOST_LISTED = 20
"""The most names in a warning."""


def run(
    prompt: str | None = None,
    *,
    prompt_file: Path | None = None,
    live: bool | None = None,
    apply: ApplyFlag = None,
    flags: RunFlags | None = None,
    more: ExecuteFlags | None = None,
    box: ConfigFlags | None = None,
) -> int:
    """Run an agent on a folder, and show what it does.

    Args:
        prompt: What to do. What is piped in is added to it, or is the prompt if there is no other.
        prompt_file: A file that holds the prompt.
        live: Show the live view. Default: if stdout is a terminal.
    """
    flags, more = flags or RunFlags(), more or ExecuteFlags()
    check_live(live, is_json=flags.json)
    runner, options = prepare(read_prompt(prompt, prompt_file), flags, more, box)
    runner, when = begin(runner, options, apply, flags, box)
    tally = Tally()
    same = again("run", apply, flags, more, box)
    if flags.json:
        return anyio.run(_run, runner, options, tally, when, JsonView())
    take_any_script()
    if not wants_live(live):
        return anyio.run(_run, runner, options, tally, when, PlainView(), same)
    from container_runner.cli.live import RunView  # rich takes a while to import

    if more.include_partial_messages is None and _tells_pieces(runner):
        options = attrs.evolve(options, include_partial_messages=True)
    view = RunView(tally, options.prompt, f"{runner.config.image} on {_place(options)}")
    return anyio.run(_run, runner, options, tally, when, view, same)


def _tells_pieces(runner: ContainerRunner) -> bool:
    """Whether the agent can be asked for each piece of its text."""
    return not isinstance(runner.runtime, AgentRuntime) or "include_partial_messages" in runner.runtime.carries


def _place(options: ExecuteOptions) -> str:
    """The workspace, as a person calls it."""
    if options.agent.workspace is None:
        return "an empty folder"
    path = expanded(options.agent.workspace, "--workspace").absolute()
    home = os.path.expanduser("~")  # noqa: PTH111  Path.home() raises where there is none
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


class JsonView(View):
    """Messages as JSON."""

    async def take(self, message: Message) -> None:
        await put(message.to_json() + b"\n")


class PlainView(View):
    """Messages as text, line by line."""

    def __init__(self) -> None:
        self._started = anyio.Event()
        self._has_said = False

    def agent_started(self) -> None:
        self._started.set()

    async def beside(self) -> None:
        """Wonder at an agent that says nothing."""
        await self._started.wait()
        await anyio.sleep(QUIET)
        if not self._has_said:
            self.note(f"· {NOTHING_YET}")

    async def take(self, message: Message) -> None:
        self._has_said = True
        if text := render(message):
            await put(f"{text}\n".encode(sys.stdout.encoding or "utf-8", "replace"))


async def _run(
    runner: ContainerRunner,
    options: ExecuteOptions,
    tally: Tally,
    when: When,
    view: JsonView | PlainView | RunView,
    same: list[str] | None = None,
) -> int:
    """Run it; with *same*, the command that would run it again, tell at the end how it went."""
    ends: list[tuple[RunSummary, Changes | None]] = []
    messages = runner.execute(options, on_start=view.agent_started, on_end=lambda *end: ends.append(end))
    await fetch(runner)
    if (run := await _goes_on_from(runner, options)) is not None:
        view.note(f"· It goes on from the work of run {run[:12]}, which is not applied. --from=folder would not.")
    before = await _look(runner, options) if same is not None else None
    translator = Translator.of(options.agent, runner.config)
    began = time.monotonic()

    async def work() -> None:
        async with aclosing(messages):
            async for message in messages:
                tally.add(message)
                await view.take(message if same is None else translator.shown(message))

    stopped = await watched(work, view, runner, stopping="stopping the agent")
    seconds = time.monotonic() - began
    came = [changes for _, changes in ends if changes is not None]
    is_good = tally.error is None
    done = [await applied(found, when if stopped is None else "never", is_good=is_good) for found in came]
    if same is not None:
        after = await _look(runner, options) if before is not None and not came else None
        rows = ending(tally, seconds, before, after, stopped.left if stopped else None)
        for found, said in zip(came, done, strict=True):
            if stopped is not None or _has_begun(tally) or found.files or found.commits:
                rows += carried_rows(found, said)
        if not all(summary.complete for summary, _ in ends):
            rows += [f"  ! Its transcript is incomplete. See the room in {runner.state_dir}, and --records-max-run."]
        view.end([*rows, *_resumption(runner, options, tally, same)])
    else:
        for found, said in zip(came, done, strict=True):
            await put_changes(found, said, patience=None if stopped is None else LAST_PATIENCE)
            if not isinstance(said, Applied) and (found.files or found.commits):
                view.note("\n".join(carried_rows(found, said)))
        if stopped is not None:
            view.note(stopped.left)
    if stopped is not None:
        return stopped.code
    if tally.error is not None:
        return error_class(tally.error.kind).cli_exit_code
    return next((said.cli_exit_code for said in done if isinstance(said, ContainerRunnerError)), 0)


async def _goes_on_from(runner: ContainerRunner, options: ExecuteOptions) -> str | None:
    """The run whose work a session that is resumed goes on from, though nobody has said so."""
    if options.resume is None or options.from_run is not None or runner.config.workspace_mode != "carried":
        return None
    return await earlier(options, runner.plan(options), await runner.manager())


@attrs.frozen
class Look:
    """What a workspace is like before or after a run."""

    files: Snapshot | None
    """Its files; None if there are too many."""

    missing: frozenset[str] = frozenset()
    """The protected paths that are not there, and that the agent could therefore make."""

    git: Mapping[str, tuple[int, int]] = attrs.field(factory=dict)
    """See `hints.git_files`."""

    gitlinks: frozenset[str] = frozenset()
    """See `hints.gitlinks`."""

    unseen: tuple[str, ...] = ()
    """The folders at its top that are not looked into."""


async def _look(runner: ContainerRunner, options: ExecuteOptions) -> Look | None:
    """Look at a workspace that the agent may write; None if there is none."""
    if options.agent.workspace is None or runner.config.workspace_mode != "rw":
        return None
    given, unprotected = Path(options.agent.workspace), runner.config.unprotected

    def look() -> Look:
        workspace = expanded(given, "--workspace").resolve()
        absent = protect.missing(workspace) - {*unprotected}
        unseen = tuple(sorted(name for name in UNSEEN if (workspace / name).is_dir()))
        if ".git" in unprotected:
            return Look(snapshot(workspace), absent, unseen=unseen)
        return Look(snapshot(workspace), absent, hints.git_files(workspace), hints.gitlinks(workspace), unseen)

    return await anyio.to_thread.run_sync(look, abandon_on_cancel=True)


def ending(tally: Tally, seconds: float, before: Look | None, after: Look | None, stopped: str | None) -> list[str]:
    """How a run went, and what it changed."""
    if stopped is None and not _has_begun(tally):
        return []  # why it could not is all there is to say
    rows = [summary(tally, seconds) if stopped is None else f"✗ {stopped}"]
    if before is not None and after is not None:
        files = changed(before.files, after.files)
        rows += [*_changed(files, after.unseen), *_warnings(before, after, files or ())]
    return rows


def _has_begun(tally: Tally) -> bool:
    """Whether anything of the agent has run."""
    if tally.error is None or tally.model or tally.turns or tally.text:
        return True
    kind = error_class(tally.error.kind)
    never = (CommandNotFoundError, CommandNotExecutableError, SessionNotFoundError, SetupFailedError)
    return issubclass(kind, AgentError) and not issubclass(kind, never)


def _resumption(runner: ContainerRunner, options: ExecuteOptions, tally: Tally, same: list[str]) -> list[str]:
    """The command that goes on with the session, if there is one and the agent takes it."""
    # An agent that failed before it began names a session that is none, as with an id that is not known.
    began = tally.error is None or tally.model or tally.turns
    if not began or (session := tally.session_id) is None:
        return []
    command = runner.runtime.command(attrs.evolve(options, resume=session), contained=True)
    if not any(session in word for word in command.argv):
        return []
    return ["  To go on with the session:", f"    {clean(shlex.join([*same, f'--resume={session}', 'PROMPT']))}"]


def _changed(files: Sequence[ChangedFile] | None, unseen: Sequence[str]) -> list[str]:
    if files is None:
        return ["  The workspace has too many files to tell which have changed."]
    if not files and unseen:
        verb = "is" if len(unseen) == 1 else "are"
        return [f"  No file has changed; {', '.join(unseen)} {verb} not looked into."]
    return [f"  {row}" for row in file_rows(files)]


def _warnings(before: Look, after: Look, files: Sequence[ChangedFile]) -> Iterator[str]:
    """What programs on this machine would obey from now on."""
    made = before.missing - after.missing
    names = {name for name in made if name.partition("/")[0] == name or ".git" not in made}
    # A file that we made in a repository that was there is none of the agent's.
    repositories = {path.rpartition("/")[0] for path in before.git}
    names |= {folder for path in after.git if (folder := path.rpartition("/")[0]) not in {*repositories, ".git", ""}}
    names |= {path for path in after.git.keys() - before.git.keys() if path.endswith("/commondir")}
    if names:
        yield f"  ! The agent made {_listed(names)}: look inside before a program of yours obeys it."
    if links := after.gitlinks - before.gitlinks:
        yield f"  ! Git takes {_listed(links)} for repositories of their own now, and runs what is configured in them."
    if replaced := {path for path, facts in after.git.items() if before.git.get(path, facts) != facts}:
        yield f"  ! Changed while the agent ran, and so not protected from then on: {_listed(replaced)}: look inside."
    if before.files is not None and after.files is not None:
        special = {path for path, facts in after.files.items() if facts[0] & SETUID and before.files.get(path) != facts}
        if special:
            yield f"  ! Whoever runs {_listed(special)} gets the rights of its owner (setuid). Type: chmod a-s FILE"
    paths = [f"{os.fsdecode(file.path)}/" for file in files]
    if obeyed := {name for name in OBEYED for path in paths if path.startswith(f"{name}/")}:
        yield f"  ! Programs obey {_listed(obeyed)}: look at the change first."


def _listed(names: Collection[str]) -> str:
    """Some names in a row."""
    shown = sorted(clean(name).replace("\n", "␤") for name in names)
    return ", ".join(shown[:MOST_LISTED]) + (f" and {len(shown) - MOST_LISTED} more" if shown[MOST_LISTED:] else "")
