"""`container-runner acp`: an agent in a box, for an editor that speaks the Agent Client Protocol."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

import anyio
import attrs

from container_runner.agents.acp import MANNERS, AcpRuntime
from container_runner.box.translator import Translator
from container_runner.cli.carrying import warn
from container_runner.cli.flags import ConfigFlags, RunFlags, prepare, split_words
from container_runner.cli.options import ExecuteFlags
from container_runner.cli.relay import Relay, check_reach
from container_runner.cli.streams import LAST_PATIENCE, Output, Stdin
from container_runner.cli.text import clean
from container_runner.config.laws import NOT_SHOWN
from container_runner.config.tiers import Effective
from container_runner.errors import ConfigError, ContainerGoneError, ContainerRunnerError, ProtocolError
from container_runner.options import ExecuteOptions
from container_runner.runner import ContainerRunner
from container_runner.session.editor import ClientMcp, EditorProxy, Passed
from container_runner.stream.lines import OversizedLine

MOST_UNREAD: Final = 64 * 1024**2
"""Bytes that may wait for an agent that asks and does not read."""

LEAVE_PATIENCE: Final = 2.0
"""Seconds that the agent has to leave by itself when the editor has left. Then it is stopped."""


def acp(
    *,
    client_mcp: ClientMcp = "refuse",
    flags: RunFlags | None = None,
    more: ExecuteFlags | None = None,
    box: ConfigFlags | None = None,
) -> int:
    """Be an ACP agent for an editor.

    Args:
        client_mcp: What becomes of the editor's MCP servers, whose commands are on this machine and not in the box:
            refuse the session, drop them, or pass them on, because the image has their commands.
    """
    try:
        runner, options = _prepared(flags or RunFlags(), more, box)
        check_reach(runner, options)
        warn(runner, options)
        proxy = EditorProxy(Translator.of(options.agent, runner.config), client_mcp)
    except ContainerRunnerError as error:
        anyio.run(_refuse, error)
        raise
    return anyio.run(_Editor(runner, options, proxy).run)


def _prepared(
    flags: RunFlags, more: ExecuteFlags | None, box: ConfigFlags | None
) -> tuple[ContainerRunner, ExecuteOptions]:
    runner, options = prepare("", flags, more, box, _runtime)
    for name, value in (
        ("resume", options.resume),
        ("permission_mode", options.agent.permission_mode),
        ("mcp_servers", dict(options.agent.mcp_servers) or None),
    ):
        if value is not None:
            told = f"{name} is the editor's to say, in the session that it begins; leave it out"
            raise ConfigError(name, NOT_SHOWN, "left out", told=told)
    return runner, options


def _runtime(flags: RunFlags, found: Effective) -> AcpRuntime:
    """The agent: of a known kind, or by the command that starts it."""
    if flags.python is not None:
        raise ConfigError("--python", flags.python, "left out", told="--python is no ACP agent; give --command")
    name, command = ("command", found.command) if flags.acp is None else ("--acp", flags.acp)
    if command is None or (flags.agent_kind is not None and flags.command is None and flags.acp is None):
        return AcpRuntime(_known(found.agent_kind, found.settings["agent_kind"].source))
    like = None if flags.agent_kind is None else _known(flags.agent_kind, None)
    return AcpRuntime(*split_words(name, command), like=like)


def _known(kind: str, source: str | None) -> str:
    if kind in MANNERS:
        return kind
    allowed = f"one of {', '.join(MANNERS)}; another agent runs by its command, as --command='goose acp'"
    adapters = {"claude": "claude-agent-acp", "codex": "codex-acp"}
    if adapter := adapters.get(kind):
        told = f"{kind} speaks no ACP by itself: have its adapter in the image, and give --agent-kind={adapter}"
        raise ConfigError("agent_kind", kind, allowed, source=source, told=told)
    raise ConfigError("agent_kind", kind, allowed, source=source)


class _Editor(Relay):
    """The connection with the editor."""

    def __init__(self, runner: ContainerRunner, options: ExecuteOptions, proxy: EditorProxy) -> None:
        super().__init__(runner, options)
        self._proxy = proxy
        self._has_left = False

    async def run(self) -> int:
        """All of it; returns the exit code."""
        try:
            code = await super().run()
        except ContainerRunnerError as error:
            if self._has_left and isinstance(error, ContainerGoneError):
                return 0  # the agent did not leave by itself, and its container has ended it
            await self._give_up(error)
            raise
        if code and self._signal is None and not self._has_left:
            left = ProtocolError(f"The agent has ended with code {code}.", exit_code=code)
            failed = self.pump.error if self.pump is not None and self.pump.error is not None else left
            await self._give_up(failed)
            raise failed
        return 0 if self._has_left else code

    async def _give_up(self, error: ContainerRunnerError) -> None:
        if not self._has_left:
            answers = await _answers(error, self._proxy, self._stdin)
            with anyio.move_on_after(LAST_PATIENCE):
                await self.tell(answers)

    async def feed(self) -> None:
        """Carry the editor's lines to the agent. They are looked at before that has started."""
        while (line := await self._stdin.line()) is not None:
            await self._pass(self._proxy.from_editor(line))
        self._has_left = True
        await self._started.wait()
        self.end_input()
        await anyio.sleep(LEAVE_PATIENCE)
        self.stop()

    async def said(self, pieces: Sequence[bytes | OversizedLine]) -> None:
        """Carry the agent's lines to the editor."""
        for line in pieces:
            if isinstance(line, OversizedLine):
                message = f"The agent wrote a line of {line.size} bytes, which is not passed on."
                raise ProtocolError(message, next_step="Raise --line-limit.")
            passed = self._proxy.from_agent(line)
            await self._pass(attrs.evolve(passed, to_agent=b""))
            self._answer(passed.to_agent)

    def _answer(self, data: bytes) -> None:
        """Answer the agent, without waiting until it takes that: we are who reads it."""
        pump = self.pump
        if not data or pump is None or pump.has_ended or not pump.takes_more:
            return
        pump.send(data)
        if pump.unsent > MOST_UNREAD:
            raise ProtocolError("The agent does not read what it is answered.")

    async def _pass(self, passed: Passed) -> None:
        if passed.note:
            self.complain(f"container-runner: {passed.note}".encode("utf-8", "replace"))
        if passed.to_editor:
            await self.tell(passed.to_editor)
        if passed.to_agent:
            await self.give(passed.to_agent)

    def complain(self, data: bytes) -> None:
        """Pass a line of the agent's stderr on. Where an editor shows it, it must not control anything."""
        self._stderr.hold(f"{clean(data.decode('utf-8', 'replace'))}\n".encode())


async def _refuse(error: ContainerRunnerError) -> None:
    """Tell the editor why there is no agent."""
    if not sys.stdin.isatty():
        await Output(1).write(await _answers(error, EditorProxy(Translator(())), Stdin()))


async def _answers(error: ContainerRunnerError, proxy: EditorProxy, stdin: Stdin) -> bytes:
    """What the editor is told of *error*: the answer to each open request, or to the first one that it makes.

    It may show nobody what is on stderr.
    """
    while not proxy.open and (line := await stdin.line()) is not None:
        proxy.from_editor(line)
    return proxy.answers(error)
