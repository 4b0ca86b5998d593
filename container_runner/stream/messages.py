"""What an agent says, as typed messages.

A line is decoded once, into the message that the caller gets; these classes are the schema. A value that is missing,
or of another type than stands here, gives the attribute its default. What else the line holds is in `raw`.

The agent's own messages are called what claude-agent-sdk calls them. Ours stand beside them:
`OutputLine`, `UnknownMessage`, `OversizedLine` and `ErrorMessage`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias, get_args

import msgspec
import orjson
from msgspec import field
from msgspec.structs import force_setattr

from container_runner.stream.blocks import ApiMessage, Count, Number, Readable, as_text, read, short
from container_runner.stream.blocks import ContentBlock as ContentBlock
from container_runner.stream.blocks import DeferredToolUse as DeferredToolUse
from container_runner.stream.blocks import RateLimitInfo as RateLimitInfo
from container_runner.stream.blocks import TextBlock as TextBlock
from container_runner.stream.blocks import ThinkingBlock as ThinkingBlock
from container_runner.stream.blocks import ToolResultBlock as ToolResultBlock
from container_runner.stream.blocks import ToolUseBlock as ToolUseBlock
from container_runner.stream.blocks import UnknownBlock as UnknownBlock
from container_runner.stream.blocks import Usage as Usage
from container_runner.stream.decode import SHORT, fits, load
from container_runner.stream.own import ConnectionDenied as ConnectionDenied
from container_runner.stream.own import ErrorMessage as ErrorMessage
from container_runner.stream.own import OutputLine as OutputLine
from container_runner.stream.own import OversizedLine


class _Origin:
    __slots__ = ("_line",)
    _line: bytes | dict[str, Any]
    """The line that a message was made of; its value, once somebody has asked for it. It is no field: messages are
    compared by what they say, and one that is made from another has no line yet."""


class AgentMessage(_Origin, Readable, kw_only=True, frozen=True, omit_defaults=True):
    """A message that the agent wrote as one line of JSON; the base of all of them."""

    session_id: str = ""
    """The session that the line belongs to: what to resume."""

    uuid: str = ""
    """The line's own id."""

    parent_tool_use_id: str | None = None
    """The tool call that a subagent works for; None for the agent itself."""

    user_message_uuid: str | None = None
    """The `uuid` of the prompt that the turn answers, if the prompt had one and the line says so."""

    user_message_uuids: list[str] | None = None
    """The same of all prompts that the turn has taken in."""

    original: dict[str, Any] | None = None
    """What an agent wrote that speaks another dialect than claude's. None where `raw` is what it wrote, and for the
    second message that was made of one line."""

    @property
    def type(self) -> str:
        """The line's own `type`, or ""."""
        return as_text(self.raw.get("type"))

    @property
    def raw(self) -> dict[str, Any]:
        """The line, decoded when it is first asked for, and otherwise untouched."""
        line = getattr(self, "_line", None)
        if not isinstance(line, dict):
            line = load(_written(self) if line is None else line)
            force_setattr(self, "_line", line)
        return line

    def to_dict(self) -> dict[str, Any]:
        """`raw` itself, not a copy."""
        return self.raw

    def to_json(self) -> bytes:
        """The message as one line of JSON, without a newline."""
        return orjson.dumps(self.raw)

    def __copy__(self) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return parse_message, (self.raw,)


class _Open(AgentMessage, frozen=True, kw_only=True):
    """A message whose line may say anything."""

    @property
    def data(self) -> dict[str, Any]:
        """The whole line, as `raw`."""
        return self.raw

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.raw == other.raw

    def _shown(self) -> str:
        return super()._shown() or short.repr(self.raw)


class SystemMessage(_Open, frozen=True, kw_only=True, tag="system"):
    """News about the agent itself; `subtype` says which. The first of a run is "init"."""

    type: ClassVar[str] = "system"
    subtype: str = ""
    model: str = ""
    """On "init": the model's name."""

    cwd: str = ""
    """On "init": the agent's working directory, a path in the container."""

    tools: list[str] = []
    """On "init": the names of the tools that the agent has."""

    @property
    def is_init(self) -> bool:
        """Whether this opens the run."""
        return self.subtype == "init"


class _TaskMessage(SystemMessage, frozen=True, kw_only=True):
    task_id: str = ""
    description: str = ""
    status: str = ""
    """How far it is, where the line says: "running", "completed", "failed", "stopped", "killed", ..."""

    tool_use_id: str | None = None
    """The tool call that began it."""

    usage: dict[str, Any] = {}
    """What it used so far: `total_tokens`, `tool_uses` and `duration_ms`."""


class TaskStartedMessage(_TaskMessage, frozen=True, kw_only=True):
    """A background task began."""

    task_type: str | None = None


class TaskProgressMessage(_TaskMessage, frozen=True, kw_only=True):
    """A background task is at work."""

    last_tool_name: str | None = None


class TaskUpdatedMessage(_TaskMessage, frozen=True, kw_only=True):
    """Something about a background task changed. That it has ended may be said here alone."""

    patch: dict[str, Any] = {}
    """What changed."""

    def __post_init__(self) -> None:
        if isinstance(status := self.patch.get("status"), str):
            force_setattr(self, "status", status)


class TaskNotificationMessage(_TaskMessage, frozen=True, kw_only=True):
    """A background task ended."""

    output_file: str = ""
    summary: str = ""


class HookEventMessage(SystemMessage, frozen=True, kw_only=True):
    """A hook of the agent began or ended; `data` has its output."""

    hook_event_name: str = field(default="", name="hook_event")


class ApiRetryMessage(SystemMessage, frozen=True, kw_only=True):
    """The API gave no answer, and will be asked again."""

    attempt: Count = 0
    """How often it was asked so far."""

    max_retries: Count = 0
    retry_delay_ms: Number = 0
    """Milliseconds until it is asked again."""

    error: str = ""
    """Why: "overloaded", "rate_limit", "authentication_failed", "unknown", ..."""

    error_status: int | None = None
    """The HTTP status; None if nobody answered."""


class _Flat(msgspec.StructMeta):
    """Lets a message be made with the names that it is read with: `AssistantMessage(content=[TextBlock("hi")])`."""

    def __call__(self, **given: Any) -> Any:
        inner = {key: given.pop(name) for name, key in INNER.items() if name in given}
        return super().__call__(**given, **({"message": ApiMessage(**inner)} if inner else {}))


INNER = {"message_id": "id"} | {name: name for name in ("content", "model", "stop_reason", "usage")}
"""What is read from the API's message, and what it is called there."""


class _Said(AgentMessage, frozen=True, kw_only=True, metaclass=_Flat):
    """A message with one of the API's in it."""

    message: ApiMessage = ApiMessage()
    """The API's message, from which most attributes are read."""

    @property
    def content(self) -> list[ContentBlock]:
        """Its blocks; a plain text is one `TextBlock`."""
        content: Any = self.message.content
        return [TextBlock(content)] if isinstance(content, str) else content


class AssistantMessage(_Said, frozen=True, kw_only=True, tag="assistant"):
    """A part of the agent's answer. The agent writes a line a block, all with the same `message_id`."""

    type: ClassVar[str] = "assistant"
    error: str | None = None
    """Why the API gave no answer ("rate_limit", "authentication_failed", ...); None if it did."""

    if TYPE_CHECKING:

        def __init__(self, *, content: list[ContentBlock] = ..., **more: Any) -> None: ...

    @property
    def text(self) -> str:
        """Its text blocks, joined."""
        return "".join(block.text for block in self.content if isinstance(block, TextBlock))

    @property
    def model(self) -> str:
        """The model's name."""
        return self.message.model

    @property
    def message_id(self) -> str:
        """The API's id; a sum of `usage` counts each id once."""
        return self.message.id

    @property
    def stop_reason(self) -> str | None:
        """Why the API stopped; None while it has not, or if the line does not say."""
        return self.message.stop_reason

    @property
    def usage(self) -> Usage | None:
        """What this request used so far; None if the line does not say."""
        return self.message.usage


class UserMessage(_Said, frozen=True, kw_only=True, tag="user"):
    """What the agent was told: mostly the results of its tools."""

    type: ClassVar[str] = "user"
    tool_use_result: Any = None
    """The tool's result as the tool itself describes it: a dict, a str, or None if the line has none."""

    origin: dict[str, Any] | None = None
    """Who said it (`kind`), where that is not the caller."""

    if TYPE_CHECKING:

        def __init__(self, *, content: list[ContentBlock] = ..., **more: Any) -> None: ...


class ResultMessage(AgentMessage, frozen=True, kw_only=True, tag="result"):
    """The end of a run. If a run has several, cost and usage are cumulative: the last one's hold for all."""

    type: ClassVar[str] = "result"
    subtype: str = ""
    """What it is: "success", or what ended the run: "error_max_turns", "error_during_execution", ..."""

    is_error: bool = True
    """False only if the line says both "success" and `is_error: false`: either may lie alone."""

    result: str = ""
    """The agent's last words."""

    errors: list[str] = []
    """What went wrong, in the agent's words."""

    api_error_status: int | None = None
    """The HTTP status of the request to the API that failed; None if none did."""

    num_turns: Count | None = None
    """How often the model has answered; None if the agent does not say, as for the following."""

    duration_ms: Count | None = None
    duration_api_ms: Count | None = None
    total_cost_usd: Number | None = None
    """US dollars, by the agent's own reckoning."""

    usage: Usage | None = None
    model_usage: dict[str, Any] = field(default_factory=dict, name="modelUsage")
    """What each model used, by the model's name, as it was on the line (camelCase, with `costUSD`)."""

    permission_denials: list[dict[str, Any]] = []
    """The tool calls that were refused, each with `tool_name`, `tool_use_id` and `tool_input`."""

    deferred_tool_use: DeferredToolUse | None = None
    """The tool call before which the run stopped, because a hook said "defer"."""

    stop_reason: str | None = None
    """Why the API stopped last; None if the line does not say."""

    terminal_reason: str | None = None
    """Why the run ended ("completed", "max_turns", "api_error", ...); None if the line does not say."""

    structured_output: Any = None
    """The answer in the shape that was asked for; None if none was."""

    origin: dict[str, Any] | None = None
    """What began the turn (`kind`), where that was not the caller."""

    def __post_init__(self) -> None:
        if self.subtype != "success":
            force_setattr(self, "is_error", True)


class StreamEvent(AgentMessage, frozen=True, kw_only=True, tag="stream_event"):
    """An event of the API's own stream, while an answer is being written."""

    type: ClassVar[str] = "stream_event"
    event: dict[str, Any] = {}
    """The event as the API sent it."""

    @property
    def event_type(self) -> str:
        """The event's own type, or ""."""
        return as_text(self.event.get("type"))

    @property
    def text(self) -> str:
        """The piece of text that it adds, if it adds one."""
        delta = self.event.get("delta")
        return as_text(delta.get("text")) if isinstance(delta, dict) else ""


class RateLimitEvent(AgentMessage, frozen=True, kw_only=True, tag="rate_limit_event"):
    """Where the account stands with its rate limit."""

    type: ClassVar[str] = "rate_limit_event"
    rate_limit_info: RateLimitInfo = RateLimitInfo()


class ToolProgressMessage(AgentMessage, frozen=True, kw_only=True, tag="tool_progress"):
    """A tool is still at work."""

    type: ClassVar[str] = "tool_progress"
    tool_use_id: str = ""
    tool_name: str = ""
    elapsed_time_seconds: Number = 0


class ConversationResetMessage(AgentMessage, frozen=True, kw_only=True, tag="conversation_reset"):
    """The conversation was replaced; what results add up begins again at 0."""

    type: ClassVar[str] = "conversation_reset"
    new_conversation_id: str = ""


class UnknownMessage(_Open, frozen=True, kw_only=True):
    """A JSON object whose `type` we do not know, or that has none."""


class NoticeMessage(_Open, frozen=True, kw_only=True):
    """A line beside the conversation that a reader may skip: `type` says which, `data` has the rest."""


NOTICES = (
    *("active_goal", "auth_status", "command_lifecycle", "control_cancel_request", "control_request"),
    *("control_response", "keep_alive", "prompt_suggestion", "tool_use_summary", "transcript_mirror"),
)
"""The types of a `NoticeMessage`."""

Message: TypeAlias = AgentMessage | OutputLine | OversizedLine | ConnectionDenied | ErrorMessage
"""Whatever a run yields."""


_AnyLine: TypeAlias = (
    SystemMessage | AssistantMessage | UserMessage | ResultMessage | StreamEvent | RateLimitEvent | ToolProgressMessage
    | ConversationResetMessage
)  # fmt: skip
_decode = msgspec.json.Decoder(_AnyLine).decode
CLASSES: dict[object, type[AgentMessage]] = {
    **dict.fromkeys(NOTICES, NoticeMessage),
    **{kind.__struct_config__.tag: kind for kind in get_args(_AnyLine)},
}
NEWS: dict[object, type[SystemMessage]] = {
    "task_started": TaskStartedMessage,
    "task_progress": TaskProgressMessage,
    "task_updated": TaskUpdatedMessage,
    "task_notification": TaskNotificationMessage,
    "hook_started": HookEventMessage,
    "hook_response": HookEventMessage,
    "api_retry": ApiRetryMessage,
}
"""The subtypes of a `SystemMessage` that have a class of their own."""


def parse_line(line: bytes) -> AgentMessage | OutputLine | None:
    """The message on a line of the agent's stdout; None if the line is blank.

    Never raises: what is not a JSON object, or is over the budget (`stream.decode.DEPTH` and `VALUES`), is an
    `OutputLine`.
    """
    if len(line) < SHORT or fits(line):
        try:
            message: AgentMessage = _decode(line)
        except (ValueError, RecursionError):  # damaged, of a type that we do not know, or not as declared
            raw = load(line)
            if isinstance(raw, dict):
                return parse_message(raw)
        else:
            if type(message) is SystemMessage and message.subtype in NEWS:
                return parse_message(load(line))
            force_setattr(message, "_line", line)
            return message
    return OutputLine(line) if line.strip() else None


def parse_message(raw: dict[str, Any], known: type[AgentMessage] | None = None) -> AgentMessage:
    """The message that a decoded line holds: of each field what can be read, and else its default. Never raises.

    Args:
        known: its class. None: the one that its type and subtype say.
    """
    kind, subtype = as_text(raw.get("type")), as_text(raw.get("subtype"))
    found = NEWS.get(subtype, SystemMessage) if kind == "system" else CLASSES.get(kind, UnknownMessage)
    message: AgentMessage = read(known or found, raw)
    force_setattr(message, "_line", raw)
    return message


def _written(message: AgentMessage) -> bytes:
    """The line that a message would be."""
    said = msgspec.to_builtins(message)
    if isinstance(message, _Said):
        blocks = [block.raw if isinstance(block, UnknownBlock) else block for block in message.content]
        said["message"] = {**said.get("message", {}), "content": blocks}
    return msgspec.json.encode(said)
