"""A session with a live agent: many turns of one process."""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final, Protocol, TypeAlias

import anyio
import anyio.abc
import attrs

from container_runner.errors import (
    AgentError,
    ConfigError,
    ContainerRunnerError,
    ControlTimeoutError,
    IncompleteOutputError,
    RequestRefusedError,
    ResultTimeoutError,
)
from container_runner.session.answering import Answerer, Answering
from container_runner.session.asks import Ask, Content, Decision, PermissionRequest, Question, content_blocks
from container_runner.session.codec import Answer, Codec, Event, Ready, Request, Send, TurnEnded, Withdrawn, shown
from container_runner.session.stream import LiveStream
from container_runner.session.tools import Tool
from container_runner.stream.messages import AgentMessage, AssistantMessage, Message, ResultMessage

Said: TypeAlias = Message | PermissionRequest | Question
"""What a session yields: the agent's messages, and what it asks if nobody was named who answers."""

READY_TIMEOUT: Final = 60.0
"""Seconds that an agent which has started may take until it takes prompts."""

INTERRUPT_PATIENCE: Final = 20.0
"""Seconds within which a turn that was interrupted has to end. Then the agent is stopped."""

CLOSE_PATIENCE: Final = 15.0
"""Seconds that an agent may take to leave when its input has ended."""

UNREAD: Final = 8 * 1024**2
"""How many bytes of memory, about, what nobody has read yet may take until no more is taken from the agent. A request
of ours whose answer lies behind it is waited for all the same, up to `MOST_UNREAD`."""

MOST_UNREAD: Final = 64 * 1024**2


class Feed(Protocol):
    """Where what the agent is told goes: a `Process`."""

    def give(self, data: bytes, *, last: bool = False) -> None:
        """Take more, to be sent while the agent is read."""
        ...

    def close_stdin(self) -> None:
        """End it."""
        ...


class Record(Protocol):
    """Who writes down what the agent is told: a `Recorder`."""

    def prompted(self, prompt: str) -> None:
        """The agent was told this."""
        ...

    def note(self, type: str, /, **facts: Any) -> None:  # noqa: A002  it is what the message says
        """Something else happened."""
        ...


@attrs.frozen(kw_only=True)
class Turn:
    """What one turn came to."""

    text: str
    """The agent's last words."""

    result: ResultMessage | None
    """The agent's own end of it. None if the agent gives none."""

    messages: tuple[Said, ...] = attrs.field(repr=False)

    @property
    def is_error(self) -> bool:
        """Whether the agent says that it failed, or it was interrupted."""
        return self.result is not None and self.result.is_error


@attrs.define(eq=False, repr=False)
class Session:
    """A live agent. `ContainerRunner.open_session` makes one, for the length of a block.

    One task may read while others send, interrupt and change it.
    """

    codec: Codec
    _tools: Sequence[Tool] = ()
    _answerer: Answerer | None = None
    _ask_timeout: float = 600.0
    _control_timeout: float = 60.0

    session_id: str | None = attrs.field(default=None, init=False)
    """What to resume, once the agent has said it."""
    translate: Callable[[str], str] = attrs.field(default=str, init=False)
    """Makes paths of this machine in a prompt those of the container."""
    result: Any = attrs.field(default=None, init=False)
    """What all of it came to, a `RunResult`, once it has ended; None before."""

    _stream: LiveStream | None = attrs.field(default=None, init=False)
    _feed: Feed | None = attrs.field(default=None, init=False)
    _record: Record | None = attrs.field(default=None, init=False)

    _news: anyio.Event = attrs.field(factory=anyio.Event, init=False)
    _queue: deque[tuple[Said | None, int]] = attrs.field(factory=deque, init=False)
    """What nobody has read yet, and about how much memory it takes; None is the end of a turn."""
    _unread: int = attrs.field(default=0, init=False)
    _open: dict[str, None] = attrs.field(factory=dict, init=False)
    """The prompts that are not answered yet."""
    _turns: int = attrs.field(default=0, init=False)
    """How many turns have ended."""
    _answering: Answering = attrs.field(init=False)
    _answers: dict[str, Answer | None] = attrs.field(factory=dict, init=False)
    """Our requests that are waited for, and their answers."""
    _is_ready: bool = attrs.field(default=False, init=False)
    is_closing: bool = attrs.field(default=False, init=False)
    """Whether we have ended the agent's input."""
    has_ended: bool = attrs.field(default=False, init=False)
    """Whether the agent has."""
    _error: BaseException | None = attrs.field(default=None, init=False)
    """What ended it."""
    _is_told: bool = attrs.field(default=False, init=False)
    _waiting: int = attrs.field(default=0, init=False)
    """How many wait for an answer to a request of ours, or for what comes of it."""

    def __attrs_post_init__(self) -> None:
        self._answering = Answering(self.codec, self._tools, self._answerer, self._ask_timeout, self._give)

    # The agent's side

    def run_in(self, tasks: anyio.abc.TaskGroup) -> None:
        """Have the caller's functions run in these tasks."""
        self._answering.tasks = tasks

    def connect(self, feed: Feed, record: Record) -> None:
        """What the agent is told goes to *feed*, and *record* has it as well."""
        self._feed, self._record = feed, record
        self._answering.note = record.note

    def begin(self, stream: LiveStream, *, after: bool = False) -> None:
        """The agent has started, or what comes *after* has, and takes its time: begin its protocol."""
        self._stream = stream
        if not after:
            self._expect("ready", READY_TIMEOUT, "did not get ready for prompts, as agents with live sessions do,")
        self._give(self.codec.start())

    def take(self, event: Event, size: int = 1024) -> None:
        """Hear the next event, which takes about *size* bytes of memory."""
        match event:
            case Ready():
                self._is_ready = True
                self._met("ready")
            case Send(data=data):
                self._give(data)
            case Ask():
                if not self.is_closing and self._answering.take(event) and isinstance(event, Said):
                    self._put(event, size)
            case Withdrawn(id=name):
                self._answering.withdraw(name)
            case Answer(id=name):
                if name in self._answers:
                    self._answers[name] = event
            case TurnEnded(prompts=prompts):
                self._turns += 1
                for prompt in list(self._open) if prompts is None else prompts:
                    self._open.pop(prompt, None)
                if not self._open:
                    self._queue.append((None, 0))
            case _:
                if isinstance(event, AgentMessage) and event.session_id:
                    self.session_id = event.session_id
                self._put(event, size)
        self._tell()

    def end(self, error: BaseException | None, result: Any = None) -> None:
        """The agent has ended; what went wrong, and what all of it came to."""
        self.has_ended = True
        self.result = result
        self._error = self._error or error
        self._answering.end()
        self._tell()

    def outcome(self, failure: ContainerRunnerError | None, exit_code: int) -> ContainerRunnerError | None:
        """What the end of the agent means, whose runtime judges it as *failure*.

        A turn that failed has said so, and is no failure of the session. One that ends by itself is.
        """
        if self.is_closing and exit_code < 128:
            return None
        return failure or IncompleteOutputError(f"{self.codec.agent} has ended its session by itself.", exit_code=0)

    @property
    def owes(self) -> bool:
        """Whether it is the agent's turn to say something."""
        return bool(self._open or not self._is_ready) and not self._answering and self._has_room

    async def wait_for_room(self) -> None:
        """Wait until there is room for more that nobody reads, or something is waited for that may lie behind it."""
        while not self._has_room and not self.is_closing:
            await self._news.wait()

    @property
    def _has_room(self) -> bool:
        return self._unread < (MOST_UNREAD if self._waiting else UNREAD)

    # The caller's side

    async def wait_until_ready(self) -> None:
        """Wait until the agent takes prompts, and raise what kept it from that."""
        while not (self._is_ready or self.has_ended):
            await self._news.wait()
        if not self._is_ready:
            self._raise()

    async def send(self, content: Content) -> None:
        """Give the agent a prompt: a text, or a list of texts, `Image`s and blocks in its protocol's own form.

        While a turn is going on, it joins that, or begins another one behind it, as the agent has it.

        Raises:
            ConfigError: it is no prompt, names a file that the container does not have, or the session is closed.
            ContainerRunnerError: the agent has ended; what ended it.
        """
        self._check()
        name = str(uuid.uuid4())
        parts = [self.translate(part) if isinstance(part, str) else part for part in content_blocks(content)]
        data = self.codec.prompt(str(parts[0]) if isinstance(content, str) else parts, id=name)
        if self._record is not None:
            self._record.prompted("\n".join(part if isinstance(part, str) else "[not text]" for part in parts))
        self._open[name] = None
        self._give(data)
        await anyio.lowlevel.checkpoint()

    async def receive(self) -> AsyncIterator[Said]:
        """What the agent says until all that it was sent is answered; nothing if nothing is open and unread.

        Raises:
            ContainerRunnerError: the agent has ended; what ended it.
            Exception: what the caller's own function that answers has raised.
        """
        while (said := await self._next(turn=True)) is not None:
            yield said

    def __aiter__(self) -> Session:
        return self

    async def __anext__(self) -> Said:
        """The next thing that the agent says, in whatever turn, until the session ends."""
        said = await self._next(turn=False)
        if said is None:
            raise StopAsyncIteration
        return said

    async def turn(self, content: Content, *, on_message: Callable[[Said], object] | None = None) -> Turn:
        """Send a prompt, and wait for all of the answer.

        A turn that failed is no error; `Turn.is_error` says so, and the session goes on.

        Args:
            on_message: is called with each message as it comes.

        Raises:
            ContainerRunnerError: the agent has ended; what ended it.
        """
        await self.send(content)
        messages: list[Said] = []
        text, result = "", None
        async for said in self.receive():
            messages.append(said)
            if on_message is not None:
                on_message(said)
            if isinstance(said, AssistantMessage) and said.parent_tool_use_id is None:
                text = said.text or text
            elif isinstance(said, ResultMessage):
                result = said
        return Turn(text=(result.result if result else "") or text, result=result, messages=tuple(messages))

    async def answer(self, ask: PermissionRequest | Question, decision: Decision) -> None:
        """Answer what the agent has asked, if no function was named that does. One that has its answer gets no other.

        Raises:
            ConfigError: the decision does not answer such an ask.
        """
        self._answering.decide(ask, decision)
        await anyio.lowlevel.checkpoint()

    async def interrupt(self) -> None:
        """End the turn that is going on, and what runs for it, and wait until it has ended.

        The session goes on. If the agent does not come back, it is stopped, and the session with it.

        Raises:
            ControlTimeoutError: it did not come back.
            ContainerRunnerError: the agent has ended; what ended it.
        """
        self._check()
        turns, is_at_work = self._turns, bool(self._open)
        self._expect("interrupt", INTERRUPT_PATIENCE, "did not come back from an interrupt")
        self._waiting += 1
        try:
            await self._request(self.codec.interrupt(), "interrupt", timeout=None)
            while is_at_work and self._turns == turns and not self.has_ended:
                await self._news.wait()
        finally:
            self._waiting -= 1
            self._met("interrupt")
        if self.has_ended and self._turns == turns:
            self._raise()

    async def set_model(self, model: str | None) -> None:
        """Go on with another model; None for the agent's default.

        Raises:
            RequestRefusedError: the agent has no such model, or can not change it. The session goes on.
            ControlTimeoutError: it did not answer. The session goes on.
            ContainerRunnerError: the agent has ended; what ended it.
        """
        await self._request(self.codec.set_model(model), "set_model", self._control_timeout)

    async def set_permission_mode(self, mode: str) -> None:
        """Have the agent ask more, or less, before it acts, as `Agent.permission_mode`. It raises as `set_model`."""
        await self._request(self.codec.set_permission_mode(mode), "set_permission_mode", self._control_timeout)

    async def stop_task(self, task_id: str) -> None:
        """End a background task, by its `TaskStartedMessage.task_id`. It raises as `set_model`."""
        await self._request(self.codec.stop_task(task_id), "stop_task", self._control_timeout)

    async def close(self) -> None:
        """End the agent's input, and wait until it has left. The end of the block does it too.

        Raises:
            ContainerRunnerError: what went wrong, if nobody was told yet.
        """
        if not self.is_closing and not self.has_ended:
            self.is_closing = True
            self._open.clear()
            patience = self.codec.close_patience or CLOSE_PATIENCE
            message = f"{self.codec.agent} was still there {patience:g} seconds after its session was closed."
            self._deadline("close", patience, ResultTimeoutError(message))
            if self._feed is not None:
                self._feed.close_stdin()
            self._tell()
        while not self.has_ended:
            await self._news.wait()
        self._raise_failure()
        if self._error is not None and not self._is_told:
            self._raise()

    # What both sides need

    async def _request(self, request: Request, what: str, timeout: float | None) -> None:
        """Send it, and wait for its answer, if there will be one."""
        self._check()
        self._give(request.data)
        if request.id is None:
            return
        self._answers[request.id] = None
        self._waiting += 1
        self._tell()
        try:
            with anyio.fail_after(timeout):
                while self._answers[request.id] is None and not self.has_ended:
                    await self._news.wait()
        except TimeoutError:
            message = f"{self.codec.agent} did not answer {what} within {timeout:g} seconds."
            raise ControlTimeoutError(message) from None
        finally:
            self._waiting -= 1
            answer = self._answers.pop(request.id)
        if answer is None:
            self._raise()
        elif answer.error is not None:
            raise RequestRefusedError(f"{self.codec.agent} refuses {what}: {shown(answer.error)}")

    async def _next(self, *, turn: bool) -> Said | None:
        await anyio.lowlevel.checkpoint()
        while True:
            while self._queue:
                said, size = self._queue.popleft()
                self._unread -= size
                self._tell()
                if said is not None:
                    return said
                if turn:
                    self._raise_failure()  # of this turn, which may be over before its first message is read
                    return None
            self._raise_failure()
            if self._error is not None and not self._is_told:
                self._raise()
            if self.has_ended or (turn and not self._open):
                return None
            await self._news.wait()

    def _put(self, said: Said, size: int) -> None:
        if self._unread < MOST_UNREAD or not self.is_closing:  # else nobody will read it, and nothing waits for room
            self._queue.append((said, size))
            self._unread += size

    def _give(self, data: bytes) -> None:
        if data and self._feed is not None:
            self._feed.give(data)
            if self._stream is not None:
                self._stream.touch()
            self._tell()

    def _check(self) -> None:
        if self.is_closing:
            raise ConfigError("session", "a closed one", "a session that is open")
        self._raise_failure()
        if self.has_ended:
            self._raise()

    def _raise_failure(self) -> None:
        if failure := self._answering.failure:
            self._answering.failure = None
            raise failure

    def _raise(self) -> None:
        """Raise what ended the session. It may be asked more than once; each time it is the same."""
        self._is_told = True
        if self._error is None:
            raise IncompleteOutputError(f"{self.codec.agent} has ended its session.")
        raise self._error

    def _expect(self, name: str, seconds: float, what: str) -> None:
        self._deadline(name, seconds, ControlTimeoutError(f"{self.codec.agent} {what} within {seconds:g} seconds."))

    def _deadline(self, name: str, seconds: float, error: AgentError) -> None:
        if self._stream is not None:
            self._stream.deadlines[name] = anyio.current_time() + seconds, error

    def _met(self, name: str) -> None:
        if self._stream is not None:
            self._stream.deadlines.pop(name, None)

    def _tell(self) -> None:
        """Wake all who wait for something."""
        self._news.set()
        self._news = anyio.Event()
