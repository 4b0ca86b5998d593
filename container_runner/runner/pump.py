"""A live agent whose lines go through as they are: the pump under a protocol that somebody else speaks."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Self

import anyio
import attrs

from container_runner.agents import Command, CommandLineRuntime
from container_runner.agents.runtime import no_words
from container_runner.box import guest
from container_runner.errors import ContainerRunnerError, IncompleteOutputError, UnsupportedRuntimeError
from container_runner.options import ExecuteOptions
from container_runner.records.records import RunRecord
from container_runner.records.tally import Tally
from container_runner.runner.live import FedRuntime
from container_runner.runner.result import RunResult
from container_runner.session.codec import Reached
from container_runner.session.session import Record
from container_runner.stream.lines import Exact, LineSplitter, OversizedLine
from container_runner.stream.messages import Message, OutputLine, ResultMessage, parse_line
from container_runner.stream.process import STDERR_TAIL, Process
from container_runner.stream.stream import MessageStream
from container_runner.workspace.changes import Changes

LEAVE_PATIENCE: Final = 5.0
"""Seconds that an agent has to leave by itself when its input has ended, before it is told to."""

STARTED: Final = OutputLine(b"")
"""What the run says first, before the agent has said anything."""

_OURS: Final = re.compile(rb"container-runner: [a-z0-9-]+ [0-9a-f]{32}\b")


@attrs.define(eq=False, repr=False)
class Pump:
    """A live agent for who speaks its protocol: lines go in, and lines come out.

    `ContainerRunner.pump` makes one. Nothing of it runs beside the caller's own tasks: what was sent is moved while
    `read` is waited for. One task may read while others send.
    """

    _on_stderr: Callable[[bytes], object] | None = None
    """Is called with each line of the agent's stderr, without its newline."""
    is_exact: bool = False
    """Whether both outputs are handed on byte for byte, as they come, and not by lines."""

    result: RunResult | None = attrs.field(default=None, init=False)
    """What all of it came to, once it has ended."""
    error: ContainerRunnerError | None = attrs.field(default=None, init=False)
    """What went wrong, once it has ended. Of an agent that has left with a code, what its runtime says of that."""
    exit_code: int | None = attrs.field(default=None, init=False)
    """The agent's own, once it has left. None: it was stopped, or has never started."""
    stderr: str = attrs.field(default="", init=False)
    """The end of what the agent wrote to stderr, once it has left."""
    has_ended: bool = attrs.field(default=False, init=False)
    """Whether the agent has, with all that was its."""

    _messages: AsyncGenerator[Message, None] = attrs.field(init=False)
    """The run."""
    _tally: Tally = attrs.field(factory=partial(Tally, in_turns=True), init=False)
    _process: Process | None = attrs.field(default=None, init=False)
    _feed: Process | None = attrs.field(default=None, init=False)
    _record: Record | None = attrs.field(default=None, init=False)
    _lines: list[bytes | OversizedLine] = attrs.field(factory=list, init=False)
    """What nobody has read yet."""
    _errors: LineSplitter | Exact = attrs.field(factory=partial(LineSplitter, STDERR_TAIL), init=False)
    _ours: re.Pattern[bytes] = attrs.field(default=_OURS, init=False)
    """How a line of our script's begins."""
    _reader: anyio.Event | None = attrs.field(default=None, init=False)
    """Is set when who reads comes back. None: nobody waits."""
    _reading: anyio.CancelScope | None = attrs.field(default=None, init=False)
    """Around what is waited for."""
    _is_closing: bool = attrs.field(default=False, init=False)
    _takes_more: bool = attrs.field(default=True, init=False)

    async def start(self) -> None:
        """Start the agent, and wait until it has started.

        Raises:
            ConfigError: it can not be carried out.
            ContainerRunnerError: it could not be started.
        """
        await self._advance()
        if self._process is None:
            while not self.has_ended:
                await self._advance()
            raise self.error or IncompleteOutputError("The agent has not started.")

    async def read(self) -> list[bytes | OversizedLine]:
        """The agent's next lines, without their newlines, at least one; none at its end, for which see `error`.

        If `is_exact`, the next pieces of what it says, cut anywhere, with all that is in them.

        A line that is longer than `ExecuteOptions.line_limit` is an `OversizedLine`. A read that is cancelled ends the
        agent, as `aclose` does.
        """
        while not self._lines and not self.has_ended:
            await self._advance()
        lines, self._lines = self._lines, []
        return lines

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes | OversizedLine:
        """The next line. It is no generator, so nobody has to close it."""
        while not self._lines and not self.has_ended:
            await self._advance()
        if not self._lines:
            raise StopAsyncIteration
        return self._lines.pop(0)

    def send(self, data: bytes) -> None:
        """Give the agent this on its stdin: whole lines, with their newlines. It is held until the agent takes it.

        Raises:
            ContainerRunnerError: the agent has ended, and what ended it; or it is not there to be told anything.
        """
        if self._feed is None or not self.takes_more:
            raise self.error or IncompleteOutputError("The agent is not there to be told anything.")
        self._feed.give(data)

    @property
    def takes_more(self) -> bool:
        """Whether the agent is there to be told something."""
        return self._feed is not None and self._takes_more and not self.has_ended

    @property
    def unsent(self) -> int:
        """How many bytes of what was sent the agent has not taken yet."""
        return 0 if self._feed is None else self._feed.unsent

    def prompted(self, prompt: str) -> None:
        """Have the record say that the agent was given this prompt."""
        if self._record is not None and not self.has_ended:
            self._record.prompted(prompt)

    def end_input(self) -> None:
        """End the agent's stdin behind what was sent."""
        self._takes_more = False
        if self._feed is not None and not self.has_ended:
            self._feed.give(b"", last=True)

    def interrupt(self) -> None:
        """Send the agent and its tools SIGINT, as Ctrl-C at a terminal does. What it makes of that is its own."""
        if self._process is not None and not self.has_ended:
            self._process.give(guest.INTERRUPT)

    def stop(self) -> None:
        """Have the agent stopped: TERM at once, and KILL after `ExecuteOptions.grace`. Who reads sees its end."""
        if self._process is not None and not self.has_ended:
            self._process.close_stdin()

    async def aclose(self) -> None:
        """End the agent's input, give it `LEAVE_PATIENCE` seconds to leave, stop it, and remove what is left.

        It takes no longer than that, the grace period and the engine's own time.
        """
        self._is_closing = True
        if self._reading is not None:
            self._reading.cancel()  # a generator can not be closed while somebody waits for it
        while self._reader is not None:
            await self._reader.wait()
        await self._messages.aclose()
        self.has_ended = True

    async def _advance(self) -> None:
        """Go on to the run's next message. The stream has given us the lines by then."""
        if self._is_closing:
            self.has_ended = True
            return
        self._reader = anyio.Event()
        try:
            with anyio.CancelScope() as reading:
                self._reading = reading
                self._tally.add(await anext(self._messages))
            self.has_ended = reading.cancelled_caught
        except StopAsyncIteration:
            self.has_ended = True
        except BaseException:
            self.has_ended = True
            raise
        finally:
            self._reader.set()
            self._reader = None

    # The run's side

    def run(self, execute: Callable[..., AsyncGenerator[Message, None]]) -> None:
        """Say what the run is: `ContainerRunner._execute`, for this pump."""
        self._messages = execute(self._end)

    def connect(self, feed: Process, record: Record) -> None:
        """What the agent is told goes to *feed*, and *record* is the run's."""
        self._feed, self._record = feed, record

    def begin(self, process: Process) -> None:
        """The agent has started."""
        self._process = process
        if self.is_exact:
            self._ours = guest.our_lines(process.gate_line or b"")
            process.splitter = Exact(self._ours, guest.OURS)
            self._errors = Exact(self._ours, guest.OURS)
        if self._on_stderr is not None:
            self._hear(bytes(process.stderr))
            process.on_stderr = self._hear

    def take(self, lines: Sequence[bytes | OversizedLine]) -> None:
        """The agent has said this."""
        self._lines += lines

    def left(self, exit_code: int, stderr: str) -> None:
        """The agent has left by itself."""
        self.exit_code, self.stderr = exit_code, stderr

    def _hear(self, chunk: bytes) -> None:
        lines = self._errors.push(chunk) if chunk else self._errors.flush()
        for line in lines:
            data = line if isinstance(line, bytes) else line.head
            if self._on_stderr is not None and not self._ours.match(data + b"\n"):
                self._on_stderr(data)

    def _end(self, _: object, changes: Changes | None, record: RunRecord | None, error: Any) -> None:
        self.error = error
        self.result = RunResult.of(self._tally, changes, record, ())


class PumpRuntime(FedRuntime):
    """The agent under a pump.

    Args:
        argv: its command, instead of the one that the runtime has for a live session.
        env: more variables for it. No secrets.
        files: more texts for it, see `Command.files`.
    """

    leave_patience = LEAVE_PATIENCE
    reads_plain = True

    def __init__(
        self,
        runtime: CommandLineRuntime,
        pump: Pump,
        argv: Sequence[str] | None,
        env: Mapping[str, str],
        files: Mapping[str, str],
    ) -> None:
        self._runtime = runtime
        self._pump = pump
        self._argv = argv
        self._env = env
        self._files = files

    def command(self, options: ExecuteOptions, *, contained: bool) -> Command:
        """The live one, with our words."""
        del contained
        live = self._runtime.live(options, asks=False, tools=())
        argv = live.argv if self._argv is None else tuple(self._argv)
        env, files = {**live.env, **self._env}, {**live.files, **self._files}
        return attrs.evolve(live, argv=argv, env=env, files=files, is_live=True, is_exact=self._pump.is_exact)

    def with_server(self, options: ExecuteOptions, name: str, url: str, token: str) -> ExecuteOptions:
        """As the agent itself is told of it; not at all, with words of somebody else's, but by the variables.

        Raises:
            UnsupportedRuntimeError: it would be told in its session, which somebody else begins.
        """
        if self._argv is not None:
            return options
        if self._runtime.only_live:
            message = f"The agent can not be told of the MCP server {name}: an editor begins its session."
            raise UnsupportedRuntimeError(message, next_step="Leave out host_mcp_servers.")
        return self._runtime.with_server(options, name, url, token)

    def with_words(self, options: ExecuteOptions, words: str) -> ExecuteOptions:
        """As the agent itself is told; not at all, with words of somebody else's.

        Raises:
            UnsupportedRuntimeError: it can not be told.
        """
        if self._argv is not None:
            raise no_words("An agent that another program starts, in words of its own,")
        return self._runtime.with_words(options, words)

    def connect(self, feed: Process, record: Record, servers: Sequence[Reached]) -> None:
        """See `Pump.connect`."""
        del servers  # the agent was told, or it can not be
        self._pump.connect(feed, record)

    def read(self, process: Process, options: ExecuteOptions, session_id: str = "", **more: Any) -> PumpStream:
        """What it says, of which the pump has the lines."""
        del session_id
        self._pump.begin(process)
        return PumpStream(self._pump, process, options, **more)

    def outcome(self, result: ResultMessage | None, exit_code: int, stderr: str) -> ContainerRunnerError | None:
        """None for an agent that has left in order, whatever became of its last turn: who speaks with it was told."""
        self._pump.left(exit_code, stderr)
        return None if exit_code == 0 else self._runtime.outcome(result, exit_code, stderr)

    def for_missing(self) -> str | None:
        """As the runtime says."""
        return self._runtime.for_missing()


class PumpStream(MessageStream):
    """Hands each line on as it is. The messages are for the record."""

    def __init__(self, pump: Pump, process: Process, options: ExecuteOptions, **more: Any) -> None:
        """Only who speaks with the agent knows whether its silence is too long."""
        super().__init__(process, attrs.evolve(options, idle_timeout=None, result_timeout=None), **more)
        self._pump = pump
        self._has_begun = False
        self._held: list[bytes | OversizedLine] = []
        """An empty line that may be ours: one stands in front of our script's last line."""
        self._pieces = LineSplitter(options.line_limit)
        """Makes lines of pieces, for the record."""

    async def read(self) -> list[Message]:
        """The next messages, and first of all that the agent has started."""
        if not self._has_begun:
            self._has_begun = True
            return [STARTED]
        return await super().read()

    def _parse(self, lines: list[bytes | OversizedLine]) -> list[Message]:
        said = [*self._held, *(line for line in lines if not self._is_left(line))]
        if self._pump.is_exact:
            self._pump.take(said)
            lines = self._pieces.push(b"".join(piece for piece in said if isinstance(piece, bytes)))
            return self._recorded(lines) or [STARTED] * bool(said)  # half a line is something to be handed on, too
        self._held = [said.pop()] if said and said[-1] == b"" else []
        messages = self._recorded(said)
        self._pump.take(said)
        return messages

    def _parse_end(self) -> list[Message]:
        return self._recorded(self._pieces.flush())

    def _recorded(self, said: list[bytes | OversizedLine]) -> list[Message]:
        messages: list[Message] = []
        for line in said:
            message = (parse_line(line) or OutputLine(line)) if isinstance(line, bytes) else line
            if isinstance(message, ResultMessage):
                self.result = message
            messages.append(message)
        if messages and self._record is not None:
            self._record(said, messages)
        return messages

    def _is_left(self, line: bytes | OversizedLine) -> bool:
        return self._left_line is not None and isinstance(line, bytes) and line.startswith(self._left_line)
