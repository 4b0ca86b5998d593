"""What the agent asks, and who answers it, within which time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias

import anyio
import anyio.abc
import attrs

from container_runner.errors import ConfigError
from container_runner.session.asks import (
    Ask,
    Decision,
    Deny,
    HookAnswer,
    PermissionRequest,
    Question,
    ToolAnswer,
    ToolCall,
    fits,
)
from container_runner.session.codec import Codec
from container_runner.session.hooks import HookCall, call_hook, denied
from container_runner.session.threads import Threads
from container_runner.session.tools import Tool, call_tool

Answerer: TypeAlias = Callable[[PermissionRequest | Question], Awaitable[Decision]]
"""The caller's function that answers what the agent asks."""

_FAILED: Final = Deny(message="The one who is asked has failed.", interrupt=True)


@attrs.define(eq=False, repr=False)
class Answering:
    """Has each ask answered once: by the caller's function, by a tool, or by whoever reads it; else it is denied."""

    _codec: Codec
    _tools: Sequence[Tool]
    _answerer: Answerer | None
    _timeout: float
    """Seconds that an answer may take."""
    _give: Callable[[bytes], None]
    """Tells the agent something."""

    tasks: anyio.abc.TaskGroup | None = attrs.field(default=None, init=False)
    """Where the caller's functions run."""
    note: Callable[..., None] = attrs.field(default=lambda *_, **__: None, init=False)
    """Writes into the record."""
    failure: Exception | None = attrs.field(default=None, init=False)
    """What a function of the caller's has raised, until it is raised where the caller is."""
    _open: dict[str, tuple[Ask, anyio.CancelScope]] = attrs.field(factory=dict, init=False)
    _threads: Threads = attrs.field(factory=Threads, init=False)

    def __bool__(self) -> bool:
        """Whether the agent waits for an answer of ours."""
        return bool(self._open)

    def take(self, ask: Ask) -> bool:
        """Have it answered; True if that is left to whoever reads it."""
        if self.tasks is None:
            return False
        is_ours = isinstance(ask, ToolCall | HookCall) or self._answerer is not None
        scope = anyio.CancelScope()
        self._open[ask.id] = ask, scope
        self.tasks.start_soon(self._work_on if is_ours else self._wait, ask, scope)
        return not is_ours

    def withdraw(self, name: str) -> None:
        """Nobody waits for the answer to this ask any more."""
        if asked := self._open.pop(name, None):
            asked[1].cancel()

    def end(self) -> None:
        """Nobody waits for any answer any more."""
        for name in list(self._open):
            self.withdraw(name)

    def decide(self, ask: Ask, decision: Decision) -> None:
        """Give the agent its answer, if it still waits for it.

        Raises:
            ConfigError: it is none to such an ask.
        """
        if not (isinstance(decision, HookAnswer) if isinstance(ask, HookCall) else fits(ask, decision)):
            allowed = "Allow(...) or Deny(...) for a PermissionRequest, Reply(...) or Deny(...) for a Question"
            raise ConfigError("decision", decision, allowed)
        asked = self._open.pop(ask.id, None)
        if asked is None:
            return
        if not isinstance(ask, ToolCall | HookCall):
            tool = {"tool": ask.tool_name} if isinstance(ask, PermissionRequest) else {}
            self.note("decision", decision=type(decision).__name__.lower(), **tool)
        try:
            data = self._codec.reply(ask, decision)
        except Exception as error:  # it has something in it that the protocol can not hold
            self.failure = self.failure or error
            data = self._codec.reply(ask, _failed(ask))
        self._give(data)
        asked[1].cancel()

    async def _work_on(self, ask: Ask, scope: anyio.CancelScope) -> None:
        with scope:
            try:
                self.decide(ask, await self._decision(ask))
            except TimeoutError:
                self.decide(ask, _late(ask))
            except Exception as error:  # the caller's own; those of tools stay with `call_tool`
                self.failure = self.failure or error
                self.decide(ask, _failed(ask))

    async def _decision(self, ask: Ask) -> Decision:
        if isinstance(ask, ToolCall):
            return await call_tool(self._tools, ask, self._timeout, self._threads)
        if isinstance(ask, HookCall):
            with anyio.fail_after(ask.hook.timeout):
                return await call_hook(ask)
        assert self._answerer is not None  # noqa: S101  `take` has looked
        assert isinstance(ask, PermissionRequest | Question)  # noqa: S101  there are no others
        with anyio.fail_after(self._timeout):
            return await self._answerer(ask)

    async def _wait(self, ask: Ask, scope: anyio.CancelScope) -> None:
        """Deny what nobody answers."""
        with scope:
            await anyio.sleep(self._timeout)
            self.decide(ask, _late(ask))


def _late(ask: Ask) -> Decision:
    if isinstance(ask, HookCall):
        return denied(ask, Deny(message="The hook took too long."))
    return Deny(message="Nobody has answered in time.")


def _failed(ask: Ask) -> Decision:
    if isinstance(ask, HookCall):
        return denied(ask, Deny(message="The hook has failed."))
    return ToolAnswer(content=("The tool has failed.",), is_error=True) if isinstance(ask, ToolCall) else _FAILED
