"""claude's control protocol, which qwen and amp speak too."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

import attrs
import orjson

from container_runner.errors import AgentFailedError, ProtocolError
from container_runner.session import jsonrpc, mcp
from container_runner.session.asks import (
    Allow,
    Ask,
    Content,
    Decision,
    Deny,
    HookAnswer,
    Image,
    PermissionRequest,
    Question,
    QuestionPart,
    Reply,
    ToolAnswer,
    ToolCall,
    content_blocks,
)
from container_runner.session.codec import (
    MOST_OPEN,
    Answer,
    Codec,
    Event,
    Ready,
    Request,
    Send,
    TurnEnded,
    Withdrawn,
)
from container_runner.session.hooks import Hook, HookCall
from container_runner.session.mcp import SERVER
from container_runner.session.tools import Tool
from container_runner.stream.blocks import as_text
from container_runner.stream.decode import unmix
from container_runner.stream.lines import OversizedLine
from container_runner.stream.messages import CLASSES, NoticeMessage, OutputLine, ResultMessage, parse_line

HOOK_PATIENCE: Final = 60.0
"""Seconds that the agent waits longer for a hook than we do."""

ASKING_TOOL: Final = "AskUserQuestion"
"""claude's tool for questions. It comes as a permission request whose answer carries the answers."""

_INITIALIZE: Final = "initialize"
_BUSY: Final = "too many requests are open"


@attrs.define(eq=False, repr=False)
class ControlCodec(Codec):
    """The control protocol over stdin and stdout."""

    keeps_lines: ClassVar[bool] = True

    _tools: Sequence[Tool] = ()
    """The caller's, which travel over the same lines."""

    agent: str = attrs.field(default="claude", init=False)
    _hooks: Sequence[Hook] = attrs.field(default=(), init=False)
    _count: int = attrs.field(default=0, init=False)
    _asked: dict[str, str] = attrs.field(factory=dict, init=False)
    """Our requests that have no answer yet, by their ids."""
    _open: dict[str, Ask] = attrs.field(factory=dict, init=False)
    """The agent's that have none."""

    def add_hooks(self, hooks: Sequence[Hook]) -> None:
        self._hooks = hooks

    def start(self) -> bytes:
        told: dict[str, list[dict[str, object]]] = {}
        for number, hook in enumerate(self._hooks):
            match = {} if hook.matcher is None else {"matcher": hook.matcher}
            # Its own clock is there for us alone: what it does not wait for, it goes on without.
            one = {**match, "hookCallbackIds": [str(number)], "timeout": hook.timeout + HOOK_PATIENCE}
            told.setdefault(hook.event, []).append(one)
        return self._request(_INITIALIZE, hooks=told or None).data

    def feed(self, line: bytes | OversizedLine) -> list[Event]:
        if isinstance(line, OversizedLine):
            return [line]
        message = parse_line(line)
        if message is None:
            return []
        if type(message) is OutputLine and (parts := unmix(line, CLASSES)):
            return [event for part in parts for event in self.feed(part)]
        if type(message) is NoticeMessage:
            match message.type:
                case "control_request":
                    return self._take_request(message.raw)
                case "control_response":
                    return self._take_response(message)
                case "control_cancel_request":
                    return [*self._withdraw(_text_of(message.raw, "request_id"))]
                case _:
                    pass
        if isinstance(message, ResultMessage):
            return [message, _turn_end(message)]
        return [message]

    def prompt(self, content: Content, *, id: str) -> bytes:  # noqa: A002  it is what it is
        parts = content_blocks(content)
        said = content if isinstance(content, str) else [_block(part) for part in parts]
        message = {"role": "user", "content": said}
        line = {"type": "user", "message": message, "parent_tool_use_id": None, "session_id": "default", "uuid": id}
        return _line(line)

    def reply(self, ask: Ask, decision: Decision) -> bytes:
        if ask.id not in self._open:
            return b""
        data = _success(_text_of(ask.raw, "request_id"), _decided(ask.raw["request"], decision))
        del self._open[ask.id]
        return data

    def interrupt(self) -> Request:
        return self._request("interrupt")

    def set_model(self, model: str | None) -> Request:
        return self._request("set_model", model=model)

    def set_permission_mode(self, mode: str) -> Request:
        return self._request("set_permission_mode", mode=mode)

    def stop_task(self, task_id: str) -> Request:
        return self._request("stop_task", task_id=task_id)

    def _request(self, subtype: str, **more: object) -> Request:
        self._count += 1
        name = f"ours-{self._count}"
        self._asked[name] = subtype
        line = {"type": "control_request", "request_id": name, "request": {"subtype": subtype, **more}}
        return Request(_line(line), name)

    def _take_response(self, message: NoticeMessage) -> list[Event]:
        response = _object_of(message.raw, "response")
        name = _text_of(response, "request_id")
        asked = self._asked.pop(name, None)
        if asked is None:  # an answer that came too late, or that nobody asked for
            return [message]
        error = None
        if response.get("subtype") != "success":
            error = as_text(response.get("error")) or "it gave no reason"
        if asked == _INITIALIZE:
            if error is not None:
                raise AgentFailedError(f"{self.agent} did not begin a live session: {error}")
            return [Ready()]
        return [Answer(id=name, payload=response.get("response"), error=error)]

    def _take_request(self, raw: Mapping[str, Any]) -> list[Event]:
        name, request = _text_of(raw, "request_id"), _object_of(raw, "request")
        if name in self._open:
            raise _broken("two requests of one name are open", raw)
        match as_text(request.get("subtype")):
            case "can_use_tool":
                ask: Ask = _permission(name, raw, request)
            case "elicitation":
                ask = Question(id=name, raw=raw, parts=_fields(request))
            case "hook_callback":
                hook = self._hook(request)
                tool = as_text(request.get("tool_use_id")) or None
                given = _object_of(request, "input")
                ask = HookCall(id=name, raw=raw, event=hook.event, input=given, tool_use_id=tool, hook=hook)
            case "mcp_message" if self._tools and request.get("server_name") == SERVER:
                return self._take_mcp(name, raw, _object_of(request, "message"))
            case subtype:
                return [Send(_failure(name, f"{subtype or 'this'} is not supported here"))]
        return self._hold(ask, _failure(name, _BUSY))

    def _hook(self, request: Mapping[str, Any]) -> Hook:
        name = _text_of(request, "callback_id")
        for number, hook in enumerate(self._hooks):
            if name == str(number):
                return hook
        raise _broken("a name that no hook has", request)

    def _take_mcp(self, name: str, raw: Mapping[str, Any], message: Mapping[str, Any]) -> list[Event]:
        """A message of its MCP client to the server that the caller's tools are."""
        method, call = as_text(message.get("method")), message.get("id")
        params = message.get("params")
        params = params if isinstance(params, dict) else {}
        if call is None:  # a notification, of which only one matters; it is confirmed all the same
            gone = params.get("requestId") if method == "notifications/cancelled" else None
            calls = [ask.id for ask in self._open.values() if gone is not None and _is_call(ask, gone)]
            confirmed = Send(_success(name, {"mcp_response": {"jsonrpc": "2.0", "result": {}}}))
            return [confirmed, *(event for ask in calls for event in self._withdraw(ask))]
        match mcp.respond(message, self._tools):
            case mcp.Called(name=tool, input=given):
                ask = ToolCall(id=name, raw=raw, name=tool, input=given)
                refused = jsonrpc.refused(call, jsonrpc.INTERNAL_ERROR, _BUSY)
                return self._hold(ask, _success(name, {"mcp_response": refused}))
            case said:
                return [Send(_success(name, {"mcp_response": said}))]

    def _hold(self, ask: Ask, refusal: bytes) -> list[Event]:
        if len(self._open) >= MOST_OPEN:
            return [Send(refusal)]
        self._open[ask.id] = ask
        return [ask]

    def _withdraw(self, name: str) -> list[Withdrawn]:
        return [] if self._open.pop(name, None) is None else [Withdrawn(name)]


def _turn_end(result: ResultMessage) -> TurnEnded:
    prompts: tuple[str, ...] | None = None
    if result.user_message_uuids is not None:
        prompts = tuple(result.user_message_uuids)
    elif result.user_message_uuid is not None:
        prompts = (result.user_message_uuid,)
    elif result.origin is not None and result.origin.get("kind") != "human":
        prompts = ()
    return TurnEnded(prompts=prompts, was_interrupted=(result.terminal_reason or "").startswith("aborted"))


def _decided(request: Mapping[str, Any], decision: Decision) -> dict[str, Any]:
    """The answer to a request, as the protocol has it."""
    is_elicitation = request["subtype"] == "elicitation"
    match decision:
        case Allow():
            given = request.get("input", {}) if decision.input is None else dict(decision.input)
            rules = _rules(request) if decision.always else []
            return {"behavior": "allow", "updatedInput": given, **({"updatedPermissions": rules} if rules else {})}
        case Deny() if is_elicitation:
            return {"action": "decline"}
        case Deny():
            stop = {"interrupt": True} if decision.interrupt else {}
            return {"behavior": "deny", "message": decision.message, **stop}
        case Reply() if is_elicitation:
            return {"action": "accept", "content": dict(decision.answers)}
        case Reply():
            return {"behavior": "allow", "updatedInput": {**request["input"], "answers": dict(decision.answers)}}
        case ToolAnswer():
            return {"mcp_response": mcp.answered(request["message"]["id"], decision)}
        case HookAnswer():
            return dict(decision.output)


def _permission(name: str, raw: Mapping[str, Any], request: Mapping[str, Any]) -> Ask:
    given = _object_of(request, "input")
    tool = _text_of(request, "tool_name")
    if tool == ASKING_TOOL and (parts := _questions(given)):
        return Question(id=name, raw=raw, parts=parts)
    return PermissionRequest(
        id=name,
        raw=raw,
        tool_name=tool,
        input=given,
        tool_use_id=as_text(request.get("tool_use_id")) or None,
        title=as_text(request.get("title")),
        reason=as_text(request.get("decision_reason")),
        can_always=bool(_rules(request)),
    )


def _rules(request: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What to tell it so that it does not ask again: the rules that it suggests, or else its first suggestion.

    Some of them it would write into a settings file of the workspace, where they would loosen later runs; here they
    hold for the session.
    """
    suggested = _objects(request, "permission_suggestions")
    known = [one for one in suggested if one.get("type") in ("addRules", "setMode", "addDirectories")]
    known = [{**one, "destination": "session"} for one in known if one.get("mode") != "bypassPermissions"]
    return [one for one in known if one["type"] == "addRules"] or known[:1]


def _questions(given: Mapping[str, Any]) -> tuple[QuestionPart, ...]:
    return tuple(
        QuestionPart(
            name=text,
            text=text,
            options=tuple(as_text(option.get("label")) for option in _objects(one, "options")),
            multiple=one.get("multiSelect") is True,
        )
        for one in _objects(given, "questions")
        if (text := as_text(one.get("question")))
    )


def _fields(request: Mapping[str, Any]) -> tuple[QuestionPart, ...]:
    """What an MCP server in the box wants to know: the fields of its schema, or only a yes."""
    text = as_text(request.get("message"))
    schema = request.get("requested_schema")
    properties = schema.get("properties") if isinstance(schema, dict) else None
    fields = properties if isinstance(properties, dict) else {}
    return tuple(
        QuestionPart(
            name=name,
            text=as_text(field.get("description")) or as_text(field.get("title")) or name,
            options=tuple(map(str, choices)) if isinstance(choices := field.get("enum"), list) else (),
        )
        for name, field in fields.items()
        if isinstance(field, dict)
    ) or (QuestionPart(name="", text=text),)


def _objects(value: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    found = value.get(key)
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _is_call(ask: Ask, call: object) -> bool:
    return isinstance(ask, ToolCall) and ask.raw["request"]["message"].get("id") == call


def _block(part: str | Image | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if isinstance(part, Image):
        data = base64.b64encode(part.data).decode()
        return {"type": "image", "source": {"type": "base64", "media_type": part.media_type, "data": data}}
    return dict(part)


def _success(name: str, response: object) -> bytes:
    answer = {"subtype": "success", "request_id": name, "response": response}
    return _line({"type": "control_response", "response": answer})


def _failure(name: str, error: str) -> bytes:
    answer = {"subtype": "error", "request_id": name, "error": error}
    return _line({"type": "control_response", "response": answer})


def _line(value: object) -> bytes:
    return orjson.dumps(value) + b"\n"


def _text_of(value: Mapping[str, Any], key: str) -> str:
    text = value.get(key)
    if not isinstance(text, str) or not text:
        raise _broken(f"no {key}", value)
    return text


def _object_of(value: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = value.get(key)
    if not isinstance(found, dict):
        raise _broken(f"no {key}", value)
    return found


def _broken(what: str, value: Mapping[str, Any]) -> ProtocolError:
    kind = as_text(value.get("type")) or as_text(value.get("subtype")) or "message"
    return ProtocolError(f"The agent broke its live protocol: a {kind[:80]!r} has {what}.")
