"""One agent process, read as messages under three clocks."""

from __future__ import annotations

import math
import signal
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
import attrs

from container_runner.errors import (
    AgentKilledError,
    AuthenticationError,
    ContainerGoneError,
    ContainerRunnerError,
    ExecLostError,
    IdleTimeoutError,
    ResultTimeoutError,
    TotalTimeoutError,
)
from container_runner.options import ExecuteOptions
from container_runner.stream.decode import cost, unmix
from container_runner.stream.lines import OversizedLine
from container_runner.stream.messages import (
    CLASSES,
    ApiRetryMessage,
    Message,
    OutputLine,
    ResultMessage,
    parse_line,
)
from container_runner.stream.process import Process
from container_runner.stream.work import Work

T = TypeVar("T")

CHECK_INTERVAL = 5.0
"""Seconds of silence after which it is checked that somebody is still there."""

LAST_WAIT = 5.0
"""Seconds that the engine's client still has when the check finds its agent gone. An agent that ends just while it is
checked has said its last words, and they are on their way."""

CHECK_PATIENCE = 5.0
"""Seconds after which a check that has no answer is given up until the next silence."""

RAISE_LIMIT = "Raise time_limit (--time-limit), or resume the session in a new container."
"""What to do about a container whose time limit was too short."""

END_PATIENCE = 10.0
"""Seconds beyond the grace period that the client may take to end when the agent has ended."""

LAST_WORDS = 32 * 1024**2
"""How many bytes of memory may go to what the agent says while it is being stopped, about. Nobody reads meanwhile, and
one that floods until KILL comes would fill all there is."""

MOMENT = 0.2
"""The least time in seconds that a read has, also if a clock ran out before it was called."""

LOGIN_ATTEMPTS = 3
"""How often the API may refuse a login before the run ends: an agent may renew a login that is too old."""

PORTION = 32
"""How many lines are made into messages at a time. The messages of a whole chunk, alive together, would wake the
garbage collector each time, for nothing: reading a stream cost up to twice as much."""


@attrs.define(eq=False, repr=False)
class MessageStream:
    """Reads a process's lines as messages, and minds the clocks of the options."""

    _process: Process
    _options: ExecuteOptions
    _parse_line: Callable[[bytes], Message | None] = parse_line
    """Makes a message of a line, and None of a blank one; it never raises."""
    _started_at: float = attrs.field(factory=anyio.current_time)
    """When the total clock began, on the event loop's clock."""
    _ends_at: float = math.inf
    """When the container's time limit is over, on the same clock."""
    _check: Callable[[], Awaitable[None]] | None = None
    """Called after each `CHECK_INTERVAL` seconds of silence; it raises if nothing can come any more."""
    _record: Callable[[list[bytes | OversizedLine], list[Message]], None] | None = None
    """Called with lines and the messages that they are, one for each, before anybody else sees them."""

    _heard_at: float = attrs.field(factory=anyio.current_time, init=False)
    _left_at: float = attrs.field(factory=anyio.current_time, init=False)
    _work: Work = attrs.field(factory=Work, init=False)
    _late: ContainerRunnerError | None = attrs.field(default=None, init=False)
    """The clock that had run out when the last lines came."""
    _ended_at: float | None = attrs.field(default=None, init=False)
    """When the agent had said all, for its client's own clock."""
    _unparsed: list[bytes | OversizedLine] = attrs.field(factory=list, init=False)
    _last_words: int = attrs.field(default=0, init=False)
    is_cut: bool = attrs.field(default=False, init=False)
    """Whether `drain` has dropped something."""
    result: ResultMessage | None = attrs.field(default=None, init=False)
    """The last result so far. An agent may give several; their cost and usage are cumulative."""

    async def read(self) -> list[Message]:
        """The next messages, at least one; none at the end of the stream.

        Raises:
            TotalTimeoutError, IdleTimeoutError, ResultTimeoutError: a clock ran out. The process still runs.
        AuthenticationError: the API keeps refusing the agent's login. The process still runs.
            ExecLostError: the agent has said that it ended, and its client did not end.
            ContainerRunnerError: what the check has found.
        """
        away = anyio.current_time() - self._left_at  # what the reader needed is no silence of the agent's
        self._heard_at += away
        if self._work.done_at is not None:
            self._work.done_at += away
        if self._ended_at is not None:
            self._ended_at += away
        try:
            return await self._read()
        finally:
            self._left_at = anyio.current_time()

    async def _read(self) -> list[Message]:
        while True:
            if self._unparsed:
                portion, self._unparsed = self._unparsed[:PORTION], self._unparsed[PORTION:]
                if messages := self._parse(portion):
                    return messages
                continue
            if self._late is not None and not self._process.has_said_all:
                raise self._late
            lines = await self._under_clocks(self._process.read)
            self._heard_at = anyio.current_time()
            ends_at, error = self._next_end()  # a talkative agent never lets a read time out
            self._late = error if self._heard_at >= ends_at else None
            if not lines:
                return []
            self._unparsed = lines

    async def wait(self) -> int:
        """The process's exit code, once its output has ended. It raises what `read` does."""
        return await self._under_clocks(self._process.wait)

    async def drain(self, said: list[Message]) -> None:
        """Read to the end, and add what becomes messages to *said*, as far as `LAST_WORDS` go.

        One line alone may not be longer than that either.
        """
        self._process.limit_lines(LAST_WORDS)
        while lines := await self._process.read():
            if self._last_words >= LAST_WORDS:
                self.is_cut = True
                continue
            said += self.parse(lines)
            self._last_words += sum(cost(line) for line in lines if isinstance(line, bytes))

    def parse(self, lines: list[bytes | OversizedLine]) -> list[Message]:
        """What was read and not asked for yet, and then these lines, as messages; blank ones are none."""
        unparsed, self._unparsed = self._unparsed, []
        return self._parse(unparsed + lines)

    def _parse(self, lines: list[bytes | OversizedLine]) -> list[Message]:
        messages: list[Message] = []
        said: list[bytes | OversizedLine] = []
        now = anyio.current_time()
        for line in lines:
            message = self._parse_line(line) if isinstance(line, bytes) else line
            if message is None:
                continue
            found = [(line, message)]
            if type(message) is OutputLine and (parts := unmix(message.data, CLASSES)):
                read = ((part, self._parse_line(part)) for part in parts)
                found = [(part, message) for part, message in read if message is not None]
            for part, message in found:
                if isinstance(message, ResultMessage):
                    self.result = message
                elif type(message) is ApiRetryMessage and not self._options.wait_for_login:
                    self._late = self._late or _refused_login(message)
                self._work.take(message, now)
                said.append(part)
                messages.append(message)
        if messages and self._record is not None:
            self._record(said, messages)
        return messages

    async def _under_clocks(self, step: Callable[[float], Awaitable[T]]) -> T:
        """Wait for *step*, which takes a timeout in seconds, until the first clock runs out."""
        gone: ContainerRunnerError | None = None
        while True:
            had_said_all = self._process.has_said_all
            ends_at, error = self._next_end()
            left = ends_at - anyio.current_time()
            try:
                # What has come before the time was up counts, if only now somebody asks for it.
                return await step(max(MOMENT, min(left, LAST_WAIT if gone else CHECK_INTERVAL)))
            except TimeoutError:
                if gone:
                    raise gone from None
                if self._process.has_said_all and not had_said_all:
                    continue  # it was not silent, it had ended
                if left <= CHECK_INTERVAL:
                    raise error from None
            if self._check is not None:
                try:
                    # The engine may be slow to answer, and nothing is read meanwhile.
                    with anyio.move_on_at(min(ends_at, anyio.current_time() + CHECK_PATIENCE)):
                        await self._check()
                except ContainerRunnerError as found:
                    gone = found

    def _next_end(self) -> tuple[float, ContainerRunnerError]:
        """The clock that runs out first, and what to say then."""
        options = self._options
        if self._process.has_said_all:  # the agent has ended, whatever its clocks say now
            if self._ended_at is None:
                self._ended_at = anyio.current_time()
            lost = ExecLostError("The agent has ended, and the engine's client did not.")
            return self._ended_at + options.grace + END_PATIENCE, lost
        over = ContainerGoneError("The container's time limit is over.", next_step=RAISE_LIMIT)
        ends: list[tuple[float, ContainerRunnerError]] = [(self._ends_at + options.grace + END_PATIENCE, over)]
        if options.timeout is not None:
            ends.append((self._started_at + options.timeout, total_timeout(options)))
        if options.idle_timeout is not None:
            message = f"The agent was silent for {options.idle_timeout:g} seconds."
            ends.append((self._heard_at + options.idle_timeout, IdleTimeoutError(message)))
        if options.result_timeout is not None and self._work.done_at is not None:
            message = f"The agent was still there {options.result_timeout:g} seconds after its last result."
            ends.append((self._work.done_at + options.result_timeout, ResultTimeoutError(message)))
        return min(ends, key=lambda end: end[0])


def _refused_login(retry: ApiRetryMessage) -> AuthenticationError | None:
    """The error for a login that the API does not take. claude would ask ten times, for three minutes."""
    if retry.error != "authentication_failed" or retry.attempt < LOGIN_ATTEMPTS:
        return None
    status = f" (HTTP {retry.error_status})" if retry.error_status else ""
    return AuthenticationError(f"The API has refused the agent's key or login {retry.attempt} times{status}.")


def total_timeout(options: ExecuteOptions) -> TotalTimeoutError:
    """The error for a run that its total clock ended."""
    return TotalTimeoutError(f"The agent took longer than {options.timeout:g} seconds.")


def killed(exit_code: int, stderr: str) -> AgentKilledError | None:
    """The error for an exit code that means a signal: -N from the system, 128 + N from a shell or an engine."""
    number = -exit_code if exit_code < 0 else exit_code - 128
    for name in ("HUP", "INT", "QUIT", "ILL", "ABRT", "BUS", "FPE", "KILL", "SEGV", "PIPE", "TERM"):
        if number == signal.Signals[f"SIG{name}"]:
            message = f"The agent was killed by SIG{name}."
            return AgentKilledError(message, signal=number, exit_code=exit_code, stderr=stderr)
    return None
