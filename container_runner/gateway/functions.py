"""The caller's functions, called for the box: on the caller's event loop, whatever thread the box is served in."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Final

import anyio
import attrs

from container_runner.gateway.loop import Loop
from container_runner.session.asks import ToolAnswer, ToolCall
from container_runner.session.codec import MOST_OPEN
from container_runner.session.mcp import Called
from container_runner.session.threads import Threads
from container_runner.session.tools import Tool, call_tool

END_PATIENCE: Final = 5.0
"""Seconds that functions which were cancelled have to end, until they are left to themselves."""

_log = logging.getLogger(__name__)


def _failed(text: str) -> ToolAnswer:
    return ToolAnswer(content=(text,), is_error=True)


@attrs.define(eq=False)
class _Call:
    """One call that is not over."""

    asked: ToolCall
    caller: Loop
    """Where it was asked for."""
    done: anyio.Event = attrs.field(factory=anyio.Event)
    answer: ToolAnswer = attrs.field(factory=lambda: _failed("The run has ended."))
    scope: anyio.CancelScope | None = None
    is_withdrawn: bool = False


class Functions:
    """Makes the calls of one run. To be made on the caller's event loop."""

    def __init__(self, tools: Sequence[Tool], timeout: float) -> None:
        """Args:
        timeout: seconds that a call may take.
        """
        self._tools = tools
        self._timeout = timeout
        self._threads = Threads()
        self._loop = Loop.current()
        self._open: set[_Call] = set()
        self._all_done = anyio.Event()
        self._is_over = False
        self._count = 0

    async def call(self, called: Called) -> ToolAnswer:
        """Call a function for whoever waits here, on any event loop. If that is cancelled, so is the function."""
        if self._count >= MOST_OPEN:
            return _failed("Too many calls are open.")
        asked = ToolCall(id="", raw={}, name=called.name, input=called.input)
        call = _Call(asked, Loop.current())
        self._count += 1
        try:
            self._loop.call(partial(self._start, call))
            await call.done.wait()
        except BaseException:
            self._loop.call(partial(self._withdraw, call))
            raise
        finally:
            self._count -= 1
        return call.answer

    @property
    def is_busy(self) -> bool:
        """Whether a function is at work."""
        return bool(self._open)

    async def end(self) -> None:
        """Cancel what still goes on, and make no more calls. To be called on the caller's event loop."""
        self._is_over = True
        for call in [*self._open]:
            self._withdraw(call)
        if self._open:
            self._all_done = anyio.Event()
            with anyio.move_on_after(END_PATIENCE):
                await self._all_done.wait()

    def _start(self, call: _Call) -> None:
        if self._is_over or call.is_withdrawn:
            call.caller.call(call.done.set)
            return
        self._open.add(call)
        self._loop.start(partial(self._run, call))

    def _withdraw(self, call: _Call) -> None:
        call.is_withdrawn = True
        if call.scope is not None:
            call.scope.cancel()

    async def _run(self, call: _Call) -> None:
        try:
            with anyio.CancelScope() as call.scope:
                if not call.is_withdrawn:
                    call.answer = await call_tool(self._tools, call.asked, self._timeout, self._threads)
        except (SystemExit, KeyboardInterrupt) as error:  # it is a function's, and must not end the caller's loop
            _log.warning("the tool %s has raised %r", call.asked.name, error)
            call.answer = _failed(f"The tool has failed ({type(error).__name__}).")
        finally:
            self._open.discard(call)
            call.caller.call(call.done.set)
            if not self._open:
                self._all_done.set()
