"""`container-runner chat`: many turns with one agent, at a terminal or by a pipe."""

from __future__ import annotations

import shlex
import signal
import sys
from functools import partial
from typing import TYPE_CHECKING, Final

import anyio
import anyio.abc
import attrs

from container_runner.agents import AgentRuntime
from container_runner.agents.acp import MANNERS, AcpRuntime
from container_runner.box.translator import Translator
from container_runner.cli.carrying import ApplyFlag, When, again, begin, tell
from container_runner.cli.flags import ConfigFlags, RunFlags, prepare
from container_runner.cli.image import fetch
from container_runner.cli.options import ExecuteFlags
from container_runner.cli.run import JsonView, PlainView
from container_runner.cli.streams import Stdin, ending_signals
from container_runner.cli.text import clean, line
from container_runner.cli.view import QUIET, View, check_live, take_any_script, wants_live
from container_runner.errors import ConfigError, ContainerRunnerError
from container_runner.options import ExecuteOptions
from container_runner.records.tally import Tally
from container_runner.runner import ContainerRunner
from container_runner.runner.beside import beside
from container_runner.session.asks import Allow, Decision, Deny, PermissionRequest, Question, Reply
from container_runner.session.session import READY_TIMEOUT, Session
from container_runner.stream.blocks import tool_title

if TYPE_CHECKING:
    from container_runner.cli.live import RunView

MARK: Final = "> "
"""What stands where a prompt is waited for, at a terminal."""

ANSWER_TIMEOUT: Final = 3600.0
"""Seconds that a person has to answer what the agent asks. Then it is denied."""


def chat(
    prompt: str | None = None,
    *,
    ask: bool = False,
    live: bool | None = None,
    apply: ApplyFlag = None,
    flags: RunFlags | None = None,
    more: ExecuteFlags | None = None,
    box: ConfigFlags | None = None,
) -> int:
    """Talk with an agent, turn by turn.

    Args:
        prompt: The first prompt. The others are lines of stdin.
        ask: Ask me before the agent acts: short for --permission-mode=default.
        live: Show the live view. Default: if stdout is a terminal.
    """
    flags, more = flags or RunFlags(), more or ExecuteFlags()
    check_live(live, is_json=flags.json)
    runner, options = prepare(prompt or "", flags, more, box)
    if ask and options.agent.permission_mode is None:
        options = attrs.evolve(options, agent=attrs.evolve(options.agent, permission_mode="default"))
    if ask and not sys.stdin.isatty():
        raise ConfigError("--ask", True, "given at a terminal, where somebody can answer")
    runner = with_sessions(runner)
    runner, when = begin(runner, options, apply, flags, box)
    take_any_script()
    talk = _Talk(runner, options, when, is_live=not flags.json and wants_live(live), is_json=flags.json)
    code = anyio.run(talk.run)
    if talk.tally.session_id and not flags.json:
        talk.note("To go on with it:")
        same = [*again("chat", apply, flags, more, box), *(["--ask"] if ask else [])]
        talk.note(f"  {clean(shlex.join([*same, f'--resume={talk.tally.session_id}']))}")
    return code


def with_sessions(runner: ContainerRunner) -> ContainerRunner:
    """*runner*, with an agent that has sessions by ACP alone in that."""
    kind = getattr(runner.runtime, "kind", None)
    if kind not in MANNERS:
        return runner
    assert isinstance(runner.runtime, AgentRuntime)  # noqa: S101  only these have a kind
    by_acp = AcpRuntime(runner.runtime.program, like=kind)
    return runner.evolved(runtime=by_acp)


class _Lines(Stdin):
    """The lines of stdin."""

    async def next(self, mark: str = "") -> str | None:
        """The next one, without its newline; None at the end. *mark* is shown where somebody types."""
        if sys.stdin.isatty():
            View().note(mark, end="")
        found = await self.line()
        return None if found is None else found.decode("utf-8", "replace")


class _Talk:
    """One chat."""

    def __init__(
        self, runner: ContainerRunner, options: ExecuteOptions, when: When, *, is_live: bool, is_json: bool
    ) -> None:
        self._runner = runner
        self._options = options
        self._when: When = when
        self._translator = Translator.of(options.agent, runner.config)
        self._is_live = is_live
        self._is_json = is_json
        self._lines = _Lines()
        self.tally = Tally(in_turns=True)
        self.note = View().note
        self._code = 0
        self._session: Session | None = None
        self._in_turn = False
        self._was_cut = False
        """Whether this turn was interrupted, or an interrupt at rest was told."""
        self._typing: anyio.CancelScope | None = None

    async def run(self) -> int:
        """All of it; returns the exit code."""
        await fetch(self._runner)
        failure: Exception | None = None
        async with anyio.create_task_group() as tasks:
            await tasks.start(self._obey, tasks)
            try:
                await self._talk()
            except Exception as error:  # out of the task group, which would wrap it
                failure = error
            tasks.cancel_scope.cancel()
        refused = await self._end(is_good=failure is None and self._code == 0)
        if failure is not None:
            raise failure
        return self._code or refused

    async def _end(self, *, is_good: bool) -> int:
        """Tell what came out of a carried workspace; returns the exit code of what could not be applied."""
        found = None if self._session is None or self._session.result is None else self._session.result.changes
        return await tell(found, self._when, is_good=is_good, is_json=self._is_json)

    async def _talk(self) -> None:
        started = anyio.Event()
        opened = self._runner.open_session(self._options, ask_timeout=ANSWER_TIMEOUT, on_start=started.set)
        async with beside(partial(self._wonder, started)), opened as self._session:
            prompt: str | None = self._options.prompt
            if prompt:
                await self._turn(self._session, prompt)
            while (prompt := await self._lines.next(MARK)) is not None:
                self._was_cut = False
                if prompt.strip():
                    await self._session.send(prompt)
                    await self._turn(self._session, prompt)

    async def _wonder(self, started: anyio.Event) -> None:
        """Tell what is waited for, if it takes long until there is a session."""
        with anyio.move_on_after(QUIET):
            await started.wait()
        if not started.is_set():
            self.note("The container has not started yet; Ctrl-C ends the waiting.")
            await started.wait()
        await anyio.sleep(QUIET)
        if self._session is None:
            told = "has started, and has not said yet that it takes prompts; it has"
            self.note(f"The agent {told} {READY_TIMEOUT:g} seconds for that. Ctrl-C ends the waiting.")

    async def _turn(self, session: Session, prompt: str) -> None:
        """Show the answer to what was sent, and let the person decide what the agent asks."""
        self._in_turn, self._was_cut = True, False
        messages = session.receive()
        asked: PermissionRequest | Question | None = None
        while True:
            view = self._view(prompt)
            async with beside(view.beside):
                view.start()
                try:
                    async for said in messages:
                        if isinstance(said, PermissionRequest | Question):
                            asked = said
                            break
                        self.tally.add(said)
                        await view.take(said if self._is_json else self._translator.shown(said))
                finally:
                    view.stop()
            if asked is None:
                break
            await session.answer(asked, await self._decide(asked))
            asked = None
        self._in_turn = False

    def _view(self, prompt: str) -> JsonView | PlainView | RunView:
        if self._is_json:
            return JsonView()
        if not self._is_live:
            return PlainView()
        from container_runner.cli.live import RunView  # rich takes a while to import

        return RunView(self.tally, prompt, None)

    async def _decide(self, asked: PermissionRequest | Question) -> Decision:
        """What the person says; no, if nobody is there."""
        with anyio.CancelScope() as self._typing:
            if isinstance(asked, Question):
                return await self._answered(asked)
            self.note(f"? {line(asked.tool_name)}: {line(tool_title(asked.input) or asked.title)}")
            if asked.reason:
                self.note(f"  {line(asked.reason)}")
            choices = "[y]es, [n]o, [a]lways" if asked.can_always else "[y]es, [n]o"
            while (word := await self._lines.next(f"  {choices}: ")) is not None:
                match word.strip().lower():
                    case "y" | "yes":
                        return Allow()
                    case "a" | "always" if asked.can_always:
                        return Allow(always=True)
                    case "n" | "no":
                        return Deny()
                    case _:
                        pass
        return Deny(interrupt=True)

    async def _answered(self, asked: Question) -> Decision:
        answers: dict[str, str] = {}
        for part in asked.parts:
            self.note(f"? {line(part.text)}")
            for number, option in enumerate(part.options, 1):
                self.note(f"  {number} {line(option)}")
            said = await self._lines.next("  : ")
            if said is None:
                return Deny()
            chosen = said.strip()
            is_number = chosen.isdecimal() and 0 < int(chosen[:9]) <= len(part.options)
            answers[part.name] = part.options[int(chosen) - 1] if is_number else chosen
        return Reply(answers=answers)

    async def _obey(
        self, tasks: anyio.abc.TaskGroup, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """The first Ctrl-C interrupts a turn; the second one, and TERM and HUP, end it all."""
        with ending_signals() as signals:
            task_status.started()
            async for number in signals:
                if number != signal.SIGINT or self._was_cut or self._session is None:
                    self._code = 128 + number
                    self.note(f"{number.name}: stopping the agent…")
                    tasks.cancel_scope.cancel()
                    continue
                self._was_cut = True
                if self._in_turn:
                    self.note("Interrupting; Ctrl-C again ends the session.")
                    if self._typing is not None:
                        self._typing.cancel()
                    tasks.start_soon(self._interrupt, self._session)
                else:
                    self.note("Ctrl-C again ends the session, and so does Ctrl-D.")

    async def _interrupt(self, session: Session) -> None:
        try:
            await session.interrupt()
        except ContainerRunnerError as error:  # who reads is told as well
            self.note(f"! {clean(error.message)}")
