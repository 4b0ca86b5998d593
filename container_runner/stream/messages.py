"""What an agent says, as typed messages.

A message of the agent is a view of its line: `raw` is the decoded line, kept whole, so that nothing
unknown is lost, and the attributes read from it. In a stream, a line is decoded when more than its
type is asked for. The attributes never raise, whatever the line held: a value that is missing or of
another type gives the attribute's default. Each default is "", 0, () or {}, unless the attribute says
otherwise.

The agent's own messages are called what claude-agent-sdk calls them. Ours stand beside them:
`OutputLine`, `UnknownMessage`, `OversizedLine` and `ErrorMessage`.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeAlias, TypeVar, overload

import attrs
import msgspec
import orjson

from container_runner.errors import ContainerRunnerError
from container_runner.stream.lines import OversizedLine

T = TypeVar("T")

_WRITABLE_DEPTH = 254
"""How many levels of nesting orjson writes; it reads 1024."""

_short = reprlib.Repr()
_short.maxstring = 60
_short.maxother = 120
_short.maxlevel = 3


class _Read(Generic[T]):
    """An attribute that reads `raw` at a path of keys, and makes of what it finds a value of one type."""

    def __init__(self, convert: Callable[[Any], T], first: str, *rest: str) -> None:
        self.path = (first, *rest)
        self._convert = convert
        self._first = first
        self._rest = rest

    @overload
    def __get__(self, message: None, owner: type) -> _Read[T]: ...
    @overload
    def __get__(self, message: AgentMessage, owner: type) -> T: ...
    def __get__(self, message: AgentMessage | None, owner: type) -> T | _Read[T]:
        if message is None:
            return self
        if line := message.undecoded:
            _load(message, line)
        value: Any = message.raw.get(self._first)
        for key in self._rest:
            value = value.get(key) if isinstance(value, dict) else None
        return self._convert(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _number_or_none(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and 0 <= value < 2**63 else None


def _number(value: Any) -> float:
    return _number_or_none(value) or 0


def _count(value: Any) -> int:
    return int(_number(value))


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _objects(value: Any) -> tuple[dict[str, Any], ...]:
    return tuple(item for item in value if isinstance(item, dict)) if isinstance(value, list) else ()


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else ()


def _anything(value: Any) -> Any:
    return value


@attrs.frozen(repr=False)
class TextBlock:
    """What the agent wrote."""

    text: str

    def __repr__(self) -> str:
        return f"TextBlock({_short.repr(self.text)})"


@attrs.frozen(repr=False)
class ThinkingBlock:
    """What the agent thought; both are "" where the thought is redacted."""

    thinking: str
    signature: str

    def __repr__(self) -> str:
        return f"ThinkingBlock({_short.repr(self.thinking)})"


@attrs.frozen(kw_only=True, repr=False)
class ToolUseBlock:
    """A call of a tool, the agent's own or the server's."""

    id: str
    """What the tool's result refers to."""

    name: str
    input: dict[str, Any]

    def __repr__(self) -> str:
        return f"{_short.repr(self.name)[1:-1]}({_short.repr(self.input)})"


@attrs.frozen(kw_only=True, repr=False)
class ToolResultBlock:
    """What a tool gave back."""

    tool_use_id: str
    content: Any
    """A str, or a list of the API's content blocks, as it was on the line."""

    is_error: bool

    @property
    def text(self) -> str:
        """The text of the content, joined."""
        return "".join(block.text for block in _blocks(self.content) if isinstance(block, TextBlock))

    def __repr__(self) -> str:
        return f"ToolResultBlock({_short.repr(self.text)}{', is_error=True' if self.is_error else ''})"


@attrs.frozen(repr=False)
class UnknownBlock:
    """A block of a type that we do not know."""

    type: str
    """Its type as it says, or ""."""

    raw: Any
    """The block, kept whole."""

    def __repr__(self) -> str:
        return f"UnknownBlock({_short.repr(self.type)})"


ContentBlock: TypeAlias = TextBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock | UnknownBlock


def _setters(of: type) -> list[Callable[[Any, Any], None]]:
    """What sets the fields of a frozen class. With `_new`, an object costs half of what its `__init__` takes."""
    return [of.__dict__[name].__set__ for name in attrs.fields_dict(of)]


_new = object.__new__
(_set_text,) = _setters(TextBlock)
_set_id, _set_name, _set_input = _setters(ToolUseBlock)


def _block(raw: Any) -> ContentBlock:
    fields = raw if isinstance(raw, dict) else {}
    kind = fields.get("type")
    if kind == "text":
        block: TextBlock = _new(TextBlock)
        _set_text(block, _text(fields.get("text")))
        return block
    if kind in ("tool_use", "server_tool_use", "mcp_tool_use"):
        use: ToolUseBlock = _new(ToolUseBlock)
        _set_id(use, _text(fields.get("id")))
        _set_name(use, _text(fields.get("name")))
        _set_input(use, _object(fields.get("input")))
        return use
    if kind in ("thinking", "redacted_thinking"):
        return ThinkingBlock(_text(fields.get("thinking")), _text(fields.get("signature")))
    if isinstance(kind, str) and kind.endswith("tool_result"):
        return ToolResultBlock(
            tool_use_id=_text(fields.get("tool_use_id")),
            content=fields.get("content"),
            is_error=fields.get("is_error") is True,
        )
    return UnknownBlock(_text(kind), raw)


def _blocks(content: Any) -> tuple[ContentBlock, ...]:
    """Content as blocks: the API writes a single text as a str."""
    if isinstance(content, str):
        return (TextBlock(content),)
    if isinstance(content, list):
        return (_block(content[0]),) if len(content) == 1 else tuple(map(_block, content))
    return ()


@attrs.frozen(kw_only=True)
class Usage:
    """Tokens that were used. Every count is 0 or more."""

    input_tokens: int = 0
    """Tokens of input that no cache had a part in."""

    output_tokens: int = 0
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0

    @property
    def total(self) -> int:
        """All four together."""
        return sum(attrs.astuple(self))


def _usage(value: Any) -> Usage:
    counts = _object(value)
    return Usage(**{field.name: _count(counts.get(field.name)) for field in attrs.fields(Usage)})


@attrs.frozen(repr=False)
class AgentMessage:
    """A message that the agent wrote as one line of JSON; the base of all of them."""

    raw: dict[str, Any]
    """The line, decoded and otherwise untouched."""

    undecoded: bytes = attrs.field(default=b"", init=False, eq=False)
    """The line, until more than its type is asked for; then b""."""

    if not TYPE_CHECKING:  # else any name would pass for an attribute

        def __getattr__(self, name: str) -> Any:
            # Python asks here for `raw` only while its slot is empty.
            if name != "raw":
                message = f"{type(self).__name__!r} object has no attribute {name!r}"
                raise AttributeError(message, name=name, obj=self)
            if line := self.undecoded:
                _load(self, line)
            return _get_raw(self)

    session_id = _Read(_text, "session_id")
    """The session that the line belongs to: what to resume."""

    @property
    def type(self) -> str:
        """The line's own `type`, or ""."""
        return _text(self.raw.get("type"))

    def to_dict(self) -> dict[str, Any]:
        """`raw` itself, not a copy."""
        return self.raw

    def to_json(self) -> bytes:
        """The message as one line of JSON, without a newline."""
        return orjson.dumps(self.raw)

    def _shown(self) -> tuple[object, ...]:
        return (self.type,)

    def __repr__(self) -> str:
        shown = ", ".join(_short.repr(value) for value in self._shown() if value != "")
        return f"{type(self).__name__}({shown if len(shown) <= 500 else f'{shown[:500]}…'})"


@attrs.frozen(repr=False)
class SystemMessage(AgentMessage):
    """News about the agent itself; `subtype` says which. The first of a run is "init"."""

    type: ClassVar[str] = "system"
    subtype = _Read(_text, "subtype")
    model = _Read(_text, "model")
    """On "init": the model's name."""

    cwd = _Read(_text, "cwd")
    """On "init": the agent's working directory, a path in the container."""

    tools = _Read(_texts, "tools")
    """On "init": the names of the tools that the agent has."""

    @property
    def is_init(self) -> bool:
        """Whether this opens the run."""
        return self.subtype == "init"

    def _shown(self) -> tuple[object, ...]:
        return (self.subtype, self.model)


@attrs.frozen(repr=False)
class AssistantMessage(AgentMessage):
    """A part of the agent's answer. The agent writes a line a block, all with the same `message_id`."""

    type: ClassVar[str] = "assistant"
    content = _Read(_blocks, "message", "content")
    """Its blocks, as a tuple."""

    model = _Read(_text, "message", "model")
    message_id = _Read(_text, "message", "id")
    """The API's id; a sum of `usage` counts each id once."""

    stop_reason = _Read(_text_or_none, "message", "stop_reason")
    """Why the API stopped; None while it has not, or if the line does not say."""

    usage = _Read(_usage, "message", "usage")
    """What this request used so far."""

    parent_tool_use_id = _Read(_text_or_none, "parent_tool_use_id")
    """The tool call that a subagent works for; None for the agent itself."""

    error = _Read(_text_or_none, "error")
    """Why the API gave no answer ("rate_limit", "authentication_failed", ...); None if it did."""

    @property
    def text(self) -> str:
        """Its text blocks, joined."""
        return "".join(block.text for block in self.content if isinstance(block, TextBlock))

    def _shown(self) -> tuple[object, ...]:
        return tuple(block.text if isinstance(block, TextBlock) else block for block in self.content)


@attrs.frozen(repr=False)
class UserMessage(AgentMessage):
    """What the agent was told: mostly the results of its tools."""

    type: ClassVar[str] = "user"
    content = _Read(_blocks, "message", "content")
    """Its blocks, as a tuple; a plain text is one `TextBlock`."""

    parent_tool_use_id = _Read(_text_or_none, "parent_tool_use_id")
    """The tool call that a subagent works for; None for the agent itself."""

    tool_use_result = _Read(_anything, "tool_use_result")
    """The tool's result as the tool itself describes it: a dict, a str, or None if the line has none."""

    def _shown(self) -> tuple[object, ...]:
        return self.content


@attrs.frozen(repr=False)
class ResultMessage(AgentMessage):
    """The end of a run. If a run has several, cost and usage are cumulative: the last one's hold for all."""

    type: ClassVar[str] = "result"
    subtype = _Read(_text, "subtype")
    """What it is: "success", or what ended the run: "error_max_turns", "error_during_execution", ..."""

    result = _Read(_text, "result")
    """The agent's last words."""

    errors = _Read(_texts, "errors")
    """What went wrong, in the agent's words."""

    num_turns = _Read(_count, "num_turns")
    duration_ms = _Read(_count, "duration_ms")
    duration_api_ms = _Read(_count, "duration_api_ms")
    total_cost_usd = _Read(_number_or_none, "total_cost_usd")
    """US dollars, by the agent's own reckoning; None if it does not say."""

    usage = _Read(_usage, "usage")
    model_usage = _Read(_object, "modelUsage")
    """What each model used, by the model's name, as it was on the line (camelCase, with `costUSD`)."""

    permission_denials = _Read(_objects, "permission_denials")
    """The tool calls that were refused, each with `tool_name`, `tool_use_id` and `tool_input`."""

    stop_reason = _Read(_text_or_none, "stop_reason")
    """Why the API stopped last; None if the line does not say."""

    terminal_reason = _Read(_text_or_none, "terminal_reason")
    """Why the run ended ("completed", "max_turns", "api_error", ...); None if the line does not say."""

    structured_output = _Read(_anything, "structured_output")
    """The answer in the shape that was asked for; None if none was."""

    @property
    def is_error(self) -> bool:
        """False only if the line says both "success" and `is_error: false`: either may lie alone."""
        return self.raw.get("is_error") is not False or self.subtype != "success"

    def _shown(self) -> tuple[object, ...]:
        return (self.subtype, *self.errors, self.result) if self.is_error else (self.result,)


@attrs.frozen(repr=False)
class StreamEvent(AgentMessage):
    """An event of the API's own stream, while an answer is being written."""

    type: ClassVar[str] = "stream_event"
    event = _Read(_object, "event")
    """The event as the API sent it."""

    event_type = _Read(_text, "event", "type")
    text = _Read(_text, "event", "delta", "text")
    """The piece of text that it adds, if it adds one."""

    parent_tool_use_id = _Read(_text_or_none, "parent_tool_use_id")
    """The tool call that a subagent works for; None for the agent itself."""

    def _shown(self) -> tuple[object, ...]:
        return (self.event_type, self.text)


@attrs.frozen(repr=False)
class RateLimitEvent(AgentMessage):
    """Where the account stands with its rate limit."""

    type: ClassVar[str] = "rate_limit_event"
    status = _Read(_text, "rate_limit_info", "status")
    """One of "allowed", "allowed_warning" and "rejected"."""

    resets_at = _Read(_number_or_none, "rate_limit_info", "resetsAt")
    """When the limit starts anew, in seconds since 1970; None if the line does not say."""

    def _shown(self) -> tuple[object, ...]:
        return (self.status,)


@attrs.frozen(repr=False)
class ToolProgressMessage(AgentMessage):
    """A tool is still at work."""

    type: ClassVar[str] = "tool_progress"
    tool_use_id = _Read(_text, "tool_use_id")
    tool_name = _Read(_text, "tool_name")
    elapsed_time_seconds = _Read(_number, "elapsed_time_seconds")

    def _shown(self) -> tuple[object, ...]:
        return (self.tool_name, self.elapsed_time_seconds)


@attrs.frozen(repr=False)
class NoticeMessage(AgentMessage):
    """A line beside the conversation that a reader may skip: `type` says which, `raw` has the rest."""


@attrs.frozen(repr=False)
class UnknownMessage(AgentMessage):
    """A JSON object whose `type` we do not know, or that has none."""


@attrs.frozen(repr=False)
class OutputLine:
    """A line of stdout that is not a message."""

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

    def to_json(self) -> bytes:
        """The message as one line of JSON, without a newline."""
        return orjson.dumps(self.to_dict())

    def __repr__(self) -> str:
        return f"OutputLine({_short.repr(self.text)})"


@attrs.frozen(kw_only=True)
class ErrorMessage:
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
            kind=error.kind,
            message=error.message,
            next_step=error.next_step,
            exit_code=error.exit_code,
            signal=getattr(error, "signal", None),
            stderr=error.stderr,
            stop=stop,
        )

    def to_dict(self) -> dict[str, Any]:
        """Its type and all its fields."""
        return {"type": self.type, **attrs.asdict(self)}

    def to_json(self) -> bytes:
        """The message as one line of JSON, without a newline."""
        return orjson.dumps(self.to_dict())


Message: TypeAlias = AgentMessage | OutputLine | OversizedLine | ErrorMessage
"""Whatever a run yields."""

_VIEWS: tuple[type[AgentMessage], ...] = (
    SystemMessage,
    AssistantMessage,
    UserMessage,
    ResultMessage,
    StreamEvent,
    RateLimitEvent,
    ToolProgressMessage,
)
_NOTICES = (
    "active_goal auth_status control_cancel_request control_request control_response conversation_reset "
    "keep_alive prompt_suggestion tool_use_summary transcript_mirror"
)
_CLASSES: Mapping[Any, type[AgentMessage]] = {
    **dict.fromkeys(_NOTICES.split(), NoticeMessage),
    **{str(view.type): view for view in _VIEWS},
}


_set_raw, _set_undecoded = _setters(AgentMessage)
_get_raw: Callable[[AgentMessage], dict[str, Any]] = AgentMessage.__dict__["raw"].__get__


def parse_message(raw: dict[str, Any]) -> AgentMessage:
    """The message that a decoded line holds. Never raises."""
    try:
        view = _CLASSES.get(raw.get("type"), UnknownMessage)
    except TypeError:  # a type that is a list or an object
        view = UnknownMessage
    message: AgentMessage = _new(view)
    _set_raw(message, raw)
    _set_undecoded(message, b"")
    return message


def parse_line(line: bytes, *, defer: bool = False) -> AgentMessage | OutputLine | None:
    """The message on a line of the agent's stdout; None if the line is blank.

    Never raises: what is not a JSON object, or is nested too deep to be written again, is an `OutputLine`.

    Args:
        defer: look at no more than the line's type, and decode the rest when it is first asked for. It is the same
            message, for a third of the time if nobody asks, and for a third more if somebody does.
    """
    if defer and (len(line) < 2 * _WRITABLE_DEPTH or not _may_be_deep(line)):
        try:
            view = _CLASSES.get(_decode_head(line).type, UnknownMessage)
        except (msgspec.MsgspecError, ValueError):  # no object, a type that is no text, or damaged
            pass
        else:
            message: AgentMessage = _new(view)
            _set_undecoded(message, line)
            return message
    raw = _decode(line)
    if isinstance(raw, dict) and (len(line) < 2 * _WRITABLE_DEPTH or _is_writable(line, raw)):
        return parse_message(raw)
    return OutputLine(line) if line.strip() else None


class _Head(msgspec.Struct, gc=False):
    """What is decoded of a line at once. Of the rest it is made sure that it is JSON."""

    type: str = ""


_decode_head = msgspec.json.Decoder(_Head).decode


def _load(message: AgentMessage, line: bytes) -> None:
    """Decode what was deferred. What `_decode_head` takes, `_decode` takes as well.

    Two threads may do so at once, so `raw` comes first, and nobody looks at `undecoded` twice.
    """
    _set_raw(message, _decode(line))
    _set_undecoded(message, b"")


def _decode(line: bytes) -> Any:
    """The line's value; None if it is no JSON."""
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return _decode_leniently(line)


def _decode_leniently(line: bytes) -> Any:
    r"""What orjson refuses and agents write.

    Those are bytes that are not UTF-8, half of a surrogate pair, which JavaScript writes (`"\ud83d"`) wherever it cut
    a text inside an emoji, and numbers that no float holds. The former become U+FFFD, the latter infinite.
    None if the line still is no JSON object.
    """
    if not line.lstrip().startswith(b"{"):
        return None
    try:
        raw = json.loads(line.decode(errors="replace"), parse_int=_integer, parse_constant=_no_constant)
        text = json.dumps(raw, ensure_ascii=False)
        return json.loads(text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"))
    except (ValueError, RecursionError):
        return None


def _integer(digits: str) -> float:
    """As orjson has it: what 64 bits do not hold is a float."""
    value = float(digits)
    return int(digits) if -(2.0**63) <= value < 2.0**64 else value


def _no_constant(name: str) -> None:
    """NaN and Infinity are Python's, not JSON's."""
    raise ValueError(name)


def _may_be_deep(line: bytes) -> bool:
    return line.count(b"{") + line.count(b"[") > _WRITABLE_DEPTH


def _is_writable(line: bytes, raw: dict[str, Any]) -> bool:
    """Whether `to_json` will work; few brackets answer it without an attempt."""
    if not _may_be_deep(line):
        return True
    try:
        orjson.dumps(raw)
    except orjson.JSONEncodeError:
        return False
    return True
