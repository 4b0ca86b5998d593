"""What a run says beside its agent's messages."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import orjson
from msgspec import Struct

from container_runner.errors import AgentKilledError, CleanupError, ConfigError, ContainerRunnerError, error_class


class OwnMessage(Struct, frozen=True):
    """A message that we make ourselves."""

    type: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """The type and all fields as JSON-ready values; bytes that are not UTF-8 become U+FFFD."""
        values = {name: getattr(self, name) for name in self.__struct_fields__}
        texts = {name: value.decode(errors="replace") for name, value in values.items() if isinstance(value, bytes)}
        return {"type": self.type, **values, **texts}

    def to_json(self) -> bytes:
        """The message as one line of JSON, without a newline."""
        return orjson.dumps(self.to_dict())


class OversizedLine(OwnMessage, frozen=True):
    """A line that was longer than the limit. It was counted to its end, and only its beginning was kept."""

    size: int
    """The length of the whole line in bytes, without its newline."""

    head: bytes
    """Its first bytes: 4096, or as many as the limit if that is less."""

    type: ClassVar[str] = "oversized"

    def __repr__(self) -> str:
        return f"OversizedLine({self.size} bytes, {self.head[:40].decode(errors='replace')!r}…)"


class OutputLine(OwnMessage, frozen=True):
    """A line of stdout that is not a message, or is over the budget for one."""

    data: bytes
    """The line as it came, without its newline."""

    type: ClassVar[str] = "output"

    @property
    def text(self) -> str:
        """The line as text; bytes that are not UTF-8 become U+FFFD."""
        return self.data.decode(errors="replace")

    def to_dict(self) -> dict[str, Any]:
        """Its type and text."""
        return {"type": self.type, "text": self.text}

    def __repr__(self) -> str:
        return f"OutputLine({self.text[:60]!r}{'…' * (len(self.data) > 60)})"


class ConnectionDenied(OwnMessage, frozen=True):
    """The agent asked for what the gateway does not let through, or for a service that can not be reached or used."""

    host: str
    """What it asked for: a host, or a path of the gateway's own."""

    port: int
    """0 for a path."""

    reason: str

    verdict: Literal["denied", "failed"] = "denied"
    """"failed": it is allowed, and was not reached."""

    type: ClassVar[str] = "connection_denied"


class ErrorMessage(OwnMessage, frozen=True, kw_only=True):
    """Why a run failed: the last message of a run that did."""

    kind: str
    """A stable name for programs, as `ContainerRunnerError.kind`: "total_timeout", "out_of_memory", ..."""

    message: str
    """What happened, in one sentence."""

    next_step: str
    """What to do about it."""

    exit_code: int | None = None
    """The exit code of the process that failed; None if it has none."""

    signal: int | None = None
    """The signal that ended the agent; None if none did."""

    stderr: str = ""
    """The last of what it wrote to stderr."""

    stop: str | None = None
    """The rung of the stop ladder that ended the agent; None if it was not stopped."""

    type: ClassVar[str] = "error"
    is_error: ClassVar[bool] = True

    @classmethod
    def from_error(cls, error: ContainerRunnerError, *, stop: str | None = None) -> ErrorMessage:
        """The message that tells of an error."""
        return cls(
            kind=error.kind, message=error.message, next_step=error.next_step, exit_code=error.exit_code,
            signal=getattr(error, "signal", None), stderr=error.stderr, stop=stop,
        )  # fmt: skip

    def to_error(self) -> ContainerRunnerError:
        """The error that this tells of, to be raised."""
        kind = error_class(self.kind)
        more: dict[str, Any] = {"exit_code": self.exit_code} if kind is not CleanupError else {}
        if kind is AgentKilledError:
            more["signal"] = self.signal or 0
        if kind is ConfigError:  # which is raised, and not told, and names its field
            kind = ContainerRunnerError
        error = kind(self.message, stderr=self.stderr, **more)
        error.next_step = self.next_step
        return error
