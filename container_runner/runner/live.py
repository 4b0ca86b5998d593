"""A run whose agent stays: it has a second way in, which carries what it is told."""

from __future__ import annotations

import abc
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any, ClassVar, Final

import anyio
import attrs

from container_runner.agents import Command, CommandLineRuntime
from container_runner.box import guest, script
from container_runner.box.translator import in_container
from container_runner.config.container import ContainerConfig
from container_runner.engine.failures import classify
from container_runner.errors import ConfigError, ContainerRunnerError, EngineTimeoutError, ImageUnsuitableError
from container_runner.options import ExecuteOptions
from container_runner.records.tally import Tally
from container_runner.runner.beside import beside
from container_runner.runner.outlet import BEGIN_TIMEOUT
from container_runner.runner.result import RunResult
from container_runner.runner.run import Run
from container_runner.session.answering import Answerer
from container_runner.session.codec import Reached
from container_runner.session.hooks import Hook
from container_runner.session.once import OnePrompt
from container_runner.session.session import Record, Session
from container_runner.session.stream import LiveStream
from container_runner.session.tools import Tool
from container_runner.stream.command import Completed
from container_runner.stream.messages import Message, ResultMessage
from container_runner.stream.process import STDERR_TAIL, Process

FEED_PATIENCE: Final = 2.0
"""Seconds that the client of the feed has to end by itself when its input has ended."""


class FedRuntime(CommandLineRuntime):
    """One whose agent is told things while it works."""

    leave_patience: ClassVar[float] = 0.0
    """Seconds that the agent has to leave by itself when its input has ended, before it is stopped."""

    @abc.abstractmethod
    def connect(self, feed: Process, record: Record, servers: Sequence[Reached]) -> None:
        """What the agent is told goes to *feed*, *record* is the run's, and *servers* are behind its gateway."""


class LiveRuntime(FedRuntime):
    """The agent of one session."""

    def __init__(self, runtime: CommandLineRuntime, session: Session, *, asks: bool, tools: Sequence[Tool]) -> None:
        self._runtime = runtime
        self._asks = asks
        self._tools = tools
        self.session = session

    def command(self, options: ExecuteOptions, *, contained: bool) -> Command:
        """The live one."""
        del contained
        return attrs.evolve(self._runtime.live(options, asks=self._asks, tools=self._tools), is_live=True)

    def connect(self, feed: Process, record: Record, servers: Sequence[Reached]) -> None:
        """See `Session.connect`, and `Codec.offer`."""
        self.session.codec.offer(servers)
        self.session.connect(feed, record)

    def with_server(self, options: ExecuteOptions, name: str, url: str, token: str) -> ExecuteOptions:
        """As the agent itself is told of it."""
        return self._runtime.with_server(options, name, url, token)

    def with_words(self, options: ExecuteOptions, words: str) -> ExecuteOptions:
        """As the agent itself is told."""
        return self._runtime.with_words(options, words)

    @property
    def reads_plain(self) -> bool:
        """Whether its messages are its lines."""
        return self.session.codec.keeps_lines

    def read(self, process: Process, options: ExecuteOptions, session_id: str | None = None, **more: Any) -> LiveStream:
        """What it says, of which the session hears."""
        del session_id  # its protocol tells
        session = self.session
        stream = LiveStream(process, options, session.codec, session.take, lambda: session.owes, **more)
        session.begin(stream, after=options.setup is not None)
        return stream

    def outcome(self, result: ResultMessage | None, exit_code: int, stderr: str) -> ContainerRunnerError | None:
        """What the end of the session means."""
        return self.session.outcome(self._runtime.outcome(result, exit_code, stderr), exit_code)


def live_runtime(
    runtime: CommandLineRuntime,
    options: ExecuteOptions,
    answerer: Answerer | None,
    tools: Sequence[Tool],
    hooks: Sequence[Hook],
    ask_timeout: float,
    control_timeout: float,
) -> LiveRuntime:
    """*runtime*, for one session, see `ContainerRunner.open_session`."""
    asks = answerer is not None
    codec = runtime.codec(options, asks=asks, tools=tools)
    codec.add_hooks(hooks)
    return LiveRuntime(runtime, Session(codec, tools, answerer, ask_timeout, control_timeout), asks=asks, tools=tools)


def with_prompt(runtime: CommandLineRuntime, options: ExecuteOptions, config: ContainerConfig) -> CommandLineRuntime:
    """*runtime*, for one run: of an agent that gets its prompt in a session, with a session of that prompt."""
    if isinstance(runtime, FedRuntime) or not runtime.only_live:
        return runtime
    taken, _ = in_container(options, config, runtime)
    codec = runtime.codec(taken, asks=False, tools=())
    session = OnePrompt(codec, prompt=taken.prompt, patience=options.result_timeout)
    return LiveRuntime(runtime, session, asks=False, tools=())


@attrs.define(eq=False, repr=False)
class LiveRun(Run):
    """A run whose agent is told things while it works."""

    _feed: Process | None = attrs.field(default=None, init=False)
    """The client of the exec that carries them."""
    _is_fed: bool = attrs.field(default=False, init=False)
    """Whether it does by now. Before that nothing of the agent has run."""

    @property
    def _has_started(self) -> bool:
        return self._is_fed and super()._has_started

    async def _start_client(self) -> bool:
        if not await super()._start_client():
            return False
        plan, engine = self.plan, self._manager.engine
        command = plan.feed_in(plan.container)
        feed = self._feed = await engine.start(command, gate=guest.feeding_line(command[-1]))
        if not await feed.wait_for_gate(BEGIN_TIMEOUT):
            raise await self._no_feed(feed)
        self._running.carry(feed)
        assert isinstance(self._runtime, FedRuntime)  # noqa: S101  see ContainerRunner.open_session
        self._runtime.connect(feed, self._record, () if plan.gateway is None else plan.gateway.servers)
        self._is_fed = True
        return True

    @property
    def _leave_patience(self) -> float:
        """The runtime's; 0 if there is no agent that could leave."""
        return self._runtime.leave_patience if isinstance(self._runtime, FedRuntime) and self._has_started else 0.0

    def _dismiss(self, process: Process) -> None:
        if self._feed is not None and self._leave_patience:
            self._feed.give(b"", last=True)
        else:
            super()._dismiss(process)

    async def _stop(self) -> list[Message]:
        said: list[Message] = []
        if self._feed is not None and self._leave_patience:
            self._feed.give(b"", last=True)
            with anyio.move_on_after(self._leave_patience):
                await self._stream.drain(said)
                await self._running.wait()
            self.has_left = self._running.returncode is not None and self._report()[0].ended == 0
        return said + await super()._stop()

    async def _no_feed(self, feed: Process) -> ContainerRunnerError:
        """Why there is no second way in."""
        try:
            with anyio.fail_after(FEED_PATIENCE):
                stdout = await feed.read_all(STDERR_TAIL)
                exit_code = await feed.wait()
        except TimeoutError:
            return EngineTimeoutError("The engine's client for the agent's input did not end.")
        if exit_code == script.EXIT_NO_COMMAND:
            return ImageUnsuitableError(f"The image {self.plan.image} lacks cat, which a live session needs.")
        stderr = self._record.scrubber.text(feed.stderr.decode("utf-8", "replace"))
        return classify(Completed(returncode=exit_code, stdout=stdout, stderr=stderr), "exec")

    async def _clear(self) -> None:
        try:
            await super()._clear()
        finally:
            await self._end_feed()

    async def _end_feed(self) -> None:
        if self._feed is None:
            return
        feed, self._is_fed = self._feed, False
        feed.close_stdin()
        with anyio.move_on_after(FEED_PATIENCE):
            while await feed.read():
                pass
            await feed.wait()
        await feed.terminate()
        feed.close()
        self._feed = None

    async def _abandon(self) -> None:
        await super()._abandon()
        if self._feed is not None:
            await self._feed.abandon()


@asynccontextmanager
async def opened(
    session: Session, execute: Callable[..., AsyncGenerator[Message, None]], prompt: str
) -> AsyncIterator[Session]:
    """The session, once its agent takes prompts, for the length of a block, and then closed.

    Args:
        execute: `ContainerRunner._execute` for this session.
        prompt: the first one; "" for none.
    """
    async with beside(partial(_drive, session, execute)) as tasks:
        session.run_in(tasks)
        await session.wait_until_ready()
        if prompt:
            await session.send(prompt)
        yield session
        await session.close()


async def _drive(session: Session, execute: Callable[..., AsyncGenerator[Message, None]]) -> None:
    """Run the agent of a session to its end, and tell the session what came of it."""
    tally = Tally(in_turns=True)
    ends: list[tuple[Any, ...]] = []
    refused: ConfigError | None = None
    try:
        async with aclosing(execute(lambda *end: ends.append(end))) as messages:
            async for message in messages:
                tally.add(message)
                await session.wait_for_room()
    except ConfigError as error:
        refused = error
    finally:
        _, changes, record, failure = ends[0] if ends else (None, None, None, None)
        session.end(refused or failure, RunResult.of(tally, changes, record, ()))
