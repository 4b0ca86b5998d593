"""A live agent's lines, read by its codec under the clocks of a session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import attrs

from container_runner.errors import AgentError, ContainerRunnerError, IdleTimeoutError
from container_runner.options import ExecuteOptions
from container_runner.session.codec import Codec, Event
from container_runner.stream.decode import cost
from container_runner.stream.lines import OversizedLine
from container_runner.stream.messages import ApiRetryMessage, Message, ResultMessage, parse_line
from container_runner.stream.process import Process
from container_runner.stream.stream import MessageStream, refused_login

Deadline = tuple[float, ContainerRunnerError]
"""When something has to have happened, on the event loop's clock, and the error if it has not."""


class LiveStream(MessageStream):
    """Reads a live agent. Its silence counts only while the agent owes an answer.

    `deadlines` are what is waited for beside that, each by a name of the session's.
    """

    def __init__(
        self,
        process: Process,
        options: ExecuteOptions,
        codec: Codec,
        take: Callable[[Event, int], None],
        owes: Callable[[], bool],
        **more: Any,
    ) -> None:
        """Args:
        take: is called with each event, when what it was read from has been recorded, and with about how many bytes
            of memory it takes.
        owes: whether the agent is to say something. If not, its silence is none.
        more: see `MessageStream`.
        """
        super().__init__(process, attrs.evolve(options, idle_timeout=None, result_timeout=None), **more)
        self.deadlines: dict[str, Deadline] = {}
        self._idle_timeout = options.idle_timeout
        self._codec = codec
        self._take = take
        self._owes = owes
        self._is_broken = False

    def touch(self) -> None:
        """The agent was told something: what it was silent before does not count."""
        self._heard_at = anyio.current_time()

    def _parse(self, lines: list[bytes | OversizedLine]) -> list[Message]:
        events: list[tuple[Event, int]] = []
        said: list[tuple[bytes | OversizedLine, Message]] = []
        for line in lines:
            if self._left_line is not None and isinstance(line, bytes) and line.startswith(self._left_line):
                continue
            found = self._read_line(line)
            messages = [event for event in found if isinstance(event, Message)]
            if self._codec.keeps_lines:
                message = messages[0] if messages else line if isinstance(line, OversizedLine) else parse_line(line)
                said += [] if message is None else [(line, message)]
            else:
                said += [(message.to_json(), message) for message in messages]
            size = 4096 if isinstance(line, OversizedLine) else cost(line)
            events += [(event, size) for event in found]
        if said and self._record is not None:
            self._record([line for line, _ in said], [message for _, message in said])
        for event, size in events:
            if isinstance(event, ResultMessage):
                self.result = event
            elif type(event) is ApiRetryMessage and not self._options.wait_for_login:
                self._late = self._late or refused_login(event)
            self._take(event, size)
        return [event for event, _ in events if isinstance(event, Message)]

    def _read_line(self, line: bytes | OversizedLine) -> list[Event]:
        if not self._is_broken:
            try:
                return self._codec.feed(line)
            except AgentError as error:  # nothing after it can be trusted to be of the protocol
                self._is_broken = True
                self._late = self._late or error
        message = line if isinstance(line, OversizedLine) else parse_line(line)
        return [] if message is None else [message]

    def _next_end(self) -> Deadline:
        ends = [super()._next_end()]
        if not self._process.has_said_all:
            ends += self.deadlines.values()
            if self._idle_timeout is not None and self._owes():
                message = f"The agent was silent for {self._idle_timeout:g} seconds."
                ends.append((self._heard_at + self._idle_timeout, IdleTimeoutError(message)))
        return min(ends, key=lambda end: end[0])
