"""One agent process, read as messages under three clocks."""

from __future__ import annotations

import math
import signal
from collections.abc import Awaitable, Callable, Iterator
from itertools import islice
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
    PermissionDeniedError,
    ResultTimeoutError,
    TotalTimeoutError,
)
from container_runner.options import ExecuteOptions
from container_runner.quantities import in_seconds
from container_runner.stream.blocks import as_text
from container_runner.stream.decode import cost, unmix
from container_runner.stream.lines import OversizedLine
from container_runner.stream.messages import (
    CLASSES,
    ApiRetryMessage,
    Message,
    OutputLine,
    ResultMessage,
    ToolResultBlock,
    parse_line,
)
from container_runner.stream.process import Process
from container_runner.stream.reader import Reader
from container_runner.stream.work import Work

T = TypeVar("T")

PLANNING = "ExitPlanMode"
"""The tool with which an agent in plan mode asks to carry out its plan."""

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
    _reader: Reader | None = None
    """What reads the lines instead, of an agent in whose dialect a line alone does not say it all."""
    _for_login: str | None = None
    """What to do if the API does not take the agent's login; None: what the error advises."""
    _started_at: float = attrs.field(factory=anyio.current_time)
    """When the total clock began, on the event loop's clock."""
    _ends_at: float = math.inf
    """When the container's time limit is over, on the same clock."""
    _check: Callable[[], Awaitable[None]] | None = None
    """Called after each `CHECK_INTERVAL` seconds of silence; it raises if nothing can come any more."""
    _is_owed: Callable[[], bool] = lambda: False
    """Whether the agent waits for something of ours, such as a function of the caller's. Then its silence is none."""
    _used_up: Callable[[], ContainerRunnerError | None] = lambda: None
    """What the agent has used up, so that it has to end; None: nothing."""
    _record: Callable[[list[bytes | OversizedLine], list[Message]], None] | None = None
    """Called with lines and the messages that they are, one for each, before anybody else sees them."""
    _left_line: bytes | None = None
    """How the line begins that says that the agent has left, and something else is at work. It is no message."""

    _heard_at: float = attrs.field(factory=anyio.current_time, init=False)
    _has_left: bool = attrs.field(default=False, init=False)
    _left_at: float = attrs.field(factory=anyio.current_time, init=False)
    _work: Work = attrs.field(factory=Work, init=False)
    _late: ContainerRunnerError | None = attrs.field(default=None, init=False)
    """The clock that had run out when the last lines came."""
    _ended_at: float | None = attrs.field(default=None, init=False)
    """When the agent had said all, for its client's own clock."""
    _has_ended: bool = attrs.field(default=False, init=False)
    """Whether the reader was told that no more lines come."""
    _unparsed: Iterator[bytes | OversizedLine] = attrs.field(factory=lambda: iter(()), init=False)
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
            ContainerRunnerError: what the check has found, or what the agent has used up.
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
            if portion := [*islice(self._unparsed, PORTION)]:
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
                return self._parse_end()
            self._unparsed = iter(lines)

    def denied(self) -> PermissionDeniedError | None:
        """The error for an agent that calls it a success that it gave up, because it might not use a tool.

        It gave up if the refusal was the last that it was told: whatever a tool gave back later, it has found another
        way. That a plan is not carried out in plan mode is how it is meant.
        """
        if self.result is None or self._work.last_told is None or not self.result.permission_denials:
            return None
        denied = {denial.get("tool_use_id"): denial.get("tool_name") for denial in self.result.permission_denials}
        last = [block for block in self._work.last_told.content if isinstance(block, ToolResultBlock)]
        tools = dict.fromkeys(as_text(denied.get(block.tool_use_id)) for block in last)
        if not last or not denied.keys() >= {block.tool_use_id for block in last} or {*tools} == {PLANNING}:
            return None
        told = ", ".join(name[:80] for name in tools)
        return PermissionDeniedError(f"The agent ended when it was not permitted to use {told}.", tools=tuple(tools))

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
        said += self._parse_end()

    def parse(self, lines: list[bytes | OversizedLine]) -> list[Message]:
        """What was read and not asked for yet, and then these lines, as messages; blank ones are none."""
        return self._parse([*self._unparsed, *lines])

    def _parse_end(self) -> list[Message]:
        """What the end of all lines means, once."""
        if self._reader is None or self._has_ended:
            return []
        self._has_ended = True
        messages: list[Message] = [*self._reader.end()]
        self.result = next((it for it in reversed(messages) if isinstance(it, ResultMessage)), self.result)
        if messages and self._record is not None:
            self._record([b""] * len(messages), messages)
        return messages

    def _parse(self, lines: list[bytes | OversizedLine]) -> list[Message]:
        messages: list[Message] = []
        said: list[bytes | OversizedLine] = []
        now = anyio.current_time()
        found: list[tuple[bytes | OversizedLine, Message]]
        for line in lines:
            if self._left_line is not None and isinstance(line, bytes) and line.startswith(self._left_line):
                self._has_left = True
                continue
            if self._reader is not None:
                found = _read_by(self._reader, line)
            else:
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
                    self._late = self._late or refused_login(message, self._for_login)
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
                if left <= CHECK_INTERVAL and self._next_end()[0] <= anyio.current_time():
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
        if (used_up := self._used_up()) is not None:
            return -math.inf, used_up
        over = ContainerGoneError("The container's time limit is over.", next_step=RAISE_LIMIT)
        ends: list[tuple[float, ContainerRunnerError]] = [(self._ends_at + options.grace + END_PATIENCE, over)]
        if options.timeout is not None:
            ends.append((self._started_at + options.timeout, total_timeout(options)))
        if self._is_owed():
            self._heard_at = anyio.current_time()
        if options.idle_timeout is not None:
            message = f"The agent was silent for {in_seconds(options.idle_timeout)}."
            ends.append((self._heard_at + options.idle_timeout, IdleTimeoutError(message)))
        if options.result_timeout is not None and self._work.done_at is not None and not self._has_left:
            message = f"The agent was still there {in_seconds(options.result_timeout)} after its last result."
            ends.append((self._work.done_at + options.result_timeout, ResultTimeoutError(message)))
        return min(ends, key=lambda end: end[0])


def _read_by(reader: Reader, line: bytes | OversizedLine) -> list[tuple[bytes | OversizedLine, Message]]:
    """The messages on a line, each with the line or the part of it that it was made of."""
    if not isinstance(line, bytes):
        return [(line, line)]
    messages = reader.read(line)
    if len(messages) == 1 and type(messages[0]) is OutputLine and (parts := unmix(line, reader.types)):
        return [(part, message) for part in parts for message in reader.read(part)]
    return [(line, message) for message in messages]


def refused_login(retry: ApiRetryMessage, for_login: str | None = None) -> AuthenticationError | None:
    """The error for a login that the API does not take. claude would ask ten times, for three minutes."""
    if retry.error != "authentication_failed" or retry.attempt < LOGIN_ATTEMPTS:
        return None
    status = f" (HTTP {retry.error_status})" if retry.error_status else ""
    message = f"The API has refused the agent's key or login {retry.attempt} times{status}."
    step = for_login and f"{for_login} With --wait-for-login the agent goes on asking."
    return AuthenticationError(message, next_step=step)


def total_timeout(options: ExecuteOptions) -> TotalTimeoutError:
    """The error for a run that its total clock ended."""
    return TotalTimeoutError(f"The agent took longer than {in_seconds(options.timeout or 0)}.")


def killed(exit_code: int, stderr: str) -> AgentKilledError | None:
    """The error for an exit code that means a signal: -N from the system, 128 + N from a shell or an engine."""
    number = -exit_code if exit_code < 0 else exit_code - 128
    for name in ("HUP", "INT", "QUIT", "ILL", "ABRT", "BUS", "FPE", "KILL", "SEGV", "PIPE", "TERM"):
        if number == signal.Signals[f"SIG{name}"]:
            message = f"The agent was killed by SIG{name}."
            return AgentKilledError(message, signal=number, exit_code=exit_code, stderr=stderr)
    return None
