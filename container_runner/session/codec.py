"""What a live protocol is, without I/O: lines in, events out; intentions in, bytes out.

A codec waits for nothing and knows no clock, so each of its ways is a plain test. `Session` has the process, the clocks
and the caller's functions.
"""

from __future__ import annotations

import abc
import textwrap
from collections.abc import Sequence
from typing import ClassVar, Final, NoReturn, TypeAlias

import attrs

from container_runner.errors import RequestRefusedError, UnsupportedRuntimeError
from container_runner.session.asks import Ask, Content, Decision
from container_runner.session.hooks import Hook
from container_runner.stream.lines import OversizedLine
from container_runner.stream.messages import Message

MOST_OPEN: Final = 64
"""How many asks may be open at a time. A codec answers those beyond with an error: each may start a function of the
caller's, and an agent could ask without end."""


def shown(reason: str) -> str:
    """What an agent gives as a reason, in one line of 500 characters at most.

    It is cut between words: of half a secret nobody would know that it is one.
    """
    return textwrap.shorten(reason, 500, placeholder=" …")


@attrs.frozen
class Ready:
    """The agent has started, and takes prompts. It comes once."""


@attrs.frozen
class Send:
    """Bytes that the agent is to get at once: an answer that needs nobody, or the next step of a start."""

    data: bytes


@attrs.frozen
class Withdrawn:
    """The agent does not wait for this ask any more; it gets no answer."""

    id: str


@attrs.frozen(kw_only=True)
class Answer:
    """The agent has answered a `Request` of ours."""

    id: str
    payload: object = None
    """What it said."""

    error: str | None = None
    """Why it did not do it, in its words; None if it did."""


@attrs.frozen(kw_only=True)
class TurnEnded:
    """A turn is over."""

    prompts: tuple[str, ...] | None = None
    """The ids of the prompts that it has answered. None: the agent does not say; () if it was no prompt of ours that
    began it."""

    was_interrupted: bool = False
    """Whether it was cut short, by an interrupt or otherwise by the caller, where the agent says so."""


Event: TypeAlias = Message | Ask | Withdrawn | Answer | TurnEnded | Ready | Send


@attrs.frozen
class Request:
    """What the agent is to get, and how its answer is known."""

    data: bytes
    id: str | None
    """The `id` of the `Answer`; None if there will be none."""


@attrs.frozen
class Reached:
    """An MCP server as the agent finds it, by streamable HTTP."""

    name: str
    url: str
    token: str = attrs.field(repr=False)
    """What it wants to see, as `Authorization: Bearer ...`. It is of use in this run alone."""


class Codec(abc.ABC):
    """The agent's side of one session. Make one for each process."""

    agent: str = "The agent"
    """What errors call it."""

    keeps_lines: ClassVar[bool] = False
    """Whether each of its messages is a line of the agent's, decoded and no more, so that a record may have the line.
    Otherwise the message itself is recorded, as JSON."""

    calls_tools: ClassVar[bool] = True
    """Whether the caller's functions are called over its lines. Otherwise they are behind the gateway, see `offer`."""

    close_patience: ClassVar[float | None] = None
    """Seconds that it may take to leave when its input has ended; None: the usual ones."""

    def add_hooks(self, hooks: Sequence[Hook]) -> None:
        """Have the agent call these. It comes before `start`.

        Raises:
            UnsupportedRuntimeError: the agent can not.
        """
        if hooks:
            step = "Leave `hooks` out; what it asks before it acts is answered by `can_use_tool`."
            raise UnsupportedRuntimeError(f"{self.agent} has no hooks in a live session.", next_step=step)

    def offer(self, servers: Sequence[Reached]) -> None:
        """There are these MCP servers behind the gateway. It comes before `start`.

        Nothing is to be done for an agent that was told of them where its command was made. What they want to see
        travels on the agent's stdin alone: the box has it anyway, and no command line and no record has it.
        """
        del servers  # unless it is told in its session

    @abc.abstractmethod
    def start(self) -> bytes:
        """What the agent gets first. `Ready` comes when it has answered all that a start needs."""

    @abc.abstractmethod
    def feed(self, line: bytes | OversizedLine) -> list[Event]:
        """What a line of the agent's stdout says, in its order.

        A line that is none of the protocol's is a message, as in any run. Requests of the agent that nobody here
        knows are answered with an error, by `Send`.

        Raises:
            ProtocolError: it is of the protocol, and breaks it: nothing after it can be trusted.
            AgentError: the agent could not start; the class says why.
        """

    @abc.abstractmethod
    def prompt(self, content: Content, *, id: str) -> bytes:  # noqa: A002  it is what it is
        """The next prompt, which begins a turn, or joins the one that is going on.

        Args:
            id: a UUID that nobody else has, by which `TurnEnded.prompts` may name it.

        Raises:
            RequestRefusedError: the agent does not take such blocks.
            ConfigError: it is no prompt.
        """

    @abc.abstractmethod
    def reply(self, ask: Ask, decision: Decision) -> bytes:
        """The answer to an ask that is open; b"" if it is not open any more.

        `asks.fits` has found that it is of the right kind.
        """

    @abc.abstractmethod
    def interrupt(self) -> Request:
        """End the turn, and what runs for it."""

    def set_model(self, model: str | None) -> Request:
        """Go on with another model; None for the agent's default."""
        del model
        self._refuse("set_model")

    def set_permission_mode(self, mode: str) -> Request:
        """Ask more, or less, before acting."""
        del mode
        self._refuse("set_permission_mode")

    def stop_task(self, task_id: str) -> Request:
        """End a background task."""
        del task_id
        self._refuse("stop_task")

    def _refuse(self, request: str) -> NoReturn:
        raise RequestRefusedError(f"{self.agent} has no {request} in a live session.")
