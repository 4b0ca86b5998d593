"""ACP, the Agent Client Protocol, in its version 1: https://agentclientprotocol.com.

We are its client, without files and terminals to offer: an agent in a box works on what is in the box.
"""

from __future__ import annotations

import base64
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

import attrs
import orjson

from container_runner.config.laws import NOT_SHOWN
from container_runner.errors import (
    AgentError,
    AgentFailedError,
    AuthenticationError,
    ConfigError,
    ProtocolError,
    RequestRefusedError,
    SessionNotFoundError,
)
from container_runner.session import jsonrpc
from container_runner.session.asks import Allow, Ask, Content, Decision, Deny, Image, PermissionRequest, content_blocks
from container_runner.session.codec import (
    MOST_OPEN,
    Answer,
    Codec,
    Event,
    Reached,
    Ready,
    Request,
    Send,
    TurnEnded,
    Withdrawn,
    shown,
)
from container_runner.session.settings import NotOfferedError, Settings, option_of
from container_runner.session.updates import Updates
from container_runner.stream.blocks import as_text
from container_runner.stream.lines import OversizedLine
from container_runner.stream.messages import OutputLine, parse_message
from container_runner.stream.reader import Folded, begun, ended, part

VERSION: Final = 1
"""The version that we speak. In the drafts of 2 a turn ends in another way; an agent that has no 1 is refused."""

_CLIENT: Final = {"name": "container-runner", "title": "container-runner", "version": "0"}
_FENCE: Final = "_container_runner/fence"
_CANCELLED: Final = {"outcome": {"outcome": "cancelled"}}
_REASONS: Final = {
    "max_tokens": "the model ran into its limit of tokens",
    "max_turn_requests": "the turn had as many requests to the model as the agent allows",
    "refusal": "the model refused to go on",
    "cancelled": "the turn was interrupted",
}

Block: TypeAlias = Mapping[str, Any]


@attrs.frozen
class _Asked:
    """A request of ours that has no answer yet."""

    method: str
    prompt: str | None = None
    """The id of the prompt that it is."""
    name: str | None = None
    """The id under which the caller waits for the last of several requests; None for those of the start."""
    left: tuple[tuple[str, str], ...] = ()
    """What is to be set after it."""
    setting: tuple[str, str] | None = None
    """What it sets."""


@attrs.define(eq=False, repr=False, kw_only=True)
class AcpCodec(Codec):
    """The agent's side of one ACP session."""

    calls_tools = False
    close_patience = 60.0  # qwen needs ten seconds and more

    cwd: str
    """Where the agent works: an absolute path where it runs."""

    resume: str | None = None
    """The id of the session to go on with."""

    fork: bool = False
    """Whether to go on in a copy of it."""

    mcp_servers: Sequence[Block] = ()
    """In ACP's own form."""

    settings: Mapping[str, str] = attrs.field(factory=dict)
    """What to set before the first prompt, and to see that it is set: "mode", "model", or an option of the agent's."""

    modes: Mapping[str, Mapping[str, str]] = attrs.field(factory=dict)
    """The settings that each of `Agent`'s permission modes means."""

    asks: bool = True
    """Whether permission requests are for the caller. Otherwise each is granted, once: the box is the limit."""

    login: str | None = None
    """The method with which an agent is told to log in before its session begins, if it has that."""

    partial: bool = False
    """Whether each piece of a text is told as a `StreamEvent`."""

    failure_prefix: str | None = None
    """How a text begins with which the agent tells that it failed, where it says in the protocol that it did not."""

    counts_on: bool = False
    """Whether it tells with a turn's end what all its turns so far have used."""

    agent: str = "The agent"
    """What errors call it."""

    session_id: str = attrs.field(default="", init=False)
    _offered: tuple[Block, ...] = attrs.field(default=(), init=False)
    """The servers behind the gateway, in ACP's own form."""
    _count: int = attrs.field(default=0, init=False)
    _asked: dict[int, _Asked] = attrs.field(factory=dict, init=False)
    _open: dict[str, Ask] = attrs.field(factory=dict, init=False)
    """The agent's requests that have no answer."""
    _is_ready: bool = attrs.field(default=False, init=False)
    _turn: str | None = attrs.field(default=None, init=False)
    """The prompt that is being answered."""
    _waiting: deque[tuple[str, list[Block]]] = attrs.field(factory=deque, init=False)
    """The prompts that come after it: an agent that gets one in a turn may drop what it is at."""
    _due: list[Event] = attrs.field(factory=list, init=False)
    """What came of something that we did, to be told with the next line."""
    _agent: dict[str, Any] = attrs.field(factory=dict, init=False)
    """What the agent said of itself."""
    _chosen: Settings = attrs.field(factory=Settings, init=False)
    _updates: Updates = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._updates = Updates(partial=self.partial, counts_on=self.counts_on)

    def offer(self, servers: Sequence[Reached]) -> None:
        self._offered = tuple(
            {"type": "http", "name": one.name, "url": one.url, "headers": [_bearer(one.token)]} for one in servers
        )

    def start(self) -> bytes:
        files = {"readTextFile": False, "writeTextFile": False}
        can = {"fs": files, "terminal": False}
        return self._ask(
            _Asked("initialize"), {"protocolVersion": VERSION, "clientCapabilities": can, "clientInfo": _CLIENT}
        )

    def feed(self, line: bytes | OversizedLine) -> list[Event]:
        if isinstance(line, OversizedLine):
            return [line]
        events, self._due = self._due, []
        for found in jsonrpc.read(line):
            if isinstance(found, bytes):
                events.append(OutputLine(found))
            elif isinstance(found, jsonrpc.Answer):
                events += self._take_answer(found)
            elif found.is_request:
                events += self._take_request(found, len(line))
            else:
                events += self._take_notification(found, len(line))
        return events

    def prompt(self, content: Content, *, id: str) -> bytes:  # noqa: A002  it is what it is
        blocks = self._blocks(content)
        if self._turn is not None:
            self._waiting.append((id, blocks))
            return b""
        return self._begin(id, blocks)

    def reply(self, ask: Ask, decision: Decision) -> bytes:
        if isinstance(decision, Allow) and decision.input is not None:
            raise RequestRefusedError("ACP has no way to give a tool another input than the agent wants to give it.")
        if self._open.pop(ask.id, None) is None or not isinstance(ask, PermissionRequest):
            return b""
        option = option_of(ask.raw, decision)
        data = jsonrpc.answer(ask.raw["id"], _CANCELLED if option is None else _selected(option))
        if isinstance(decision, Allow) and option is not None:
            return data
        self._updates.deny(ask.tool_use_id or "", ask.tool_name, ask.input)
        stop = isinstance(decision, Deny) and decision.interrupt
        return data + (self.interrupt().data if stop else b"")

    def interrupt(self) -> Request:
        if self._turn is None:
            return Request(b"", None)
        data = jsonrpc.notification("session/cancel", {"sessionId": self.session_id})
        for ask in self._open.values():  # the protocol wants each of them answered so
            data += jsonrpc.answer(ask.raw["id"], _CANCELLED)
            self._due.append(Withdrawn(ask.id))
        self._open.clear()
        return Request(data, None)

    def set_model(self, model: str | None) -> Request:
        wanted = self._chosen.first_model if model is None else model
        return self._request_settings({"model": wanted or ""})

    def set_permission_mode(self, mode: str) -> Request:
        return self._request_settings(self.modes.get(mode, {"mode": mode}))

    def _request_settings(self, wanted: Mapping[str, str]) -> Request:
        name = f"ours-{self._count + 1}"
        try:
            return Request(self._set(tuple(wanted.items()), name), name)
        except NotOfferedError as error:
            raise RequestRefusedError(f"{self.agent} does not do this: {error}.") from None

    def _ask(self, asked: _Asked, params: Mapping[str, Any]) -> bytes:
        self._count += 1
        self._asked[self._count] = asked
        return jsonrpc.request(self._count, asked.method, params)

    def _take_answer(self, answer: jsonrpc.Answer) -> list[Event]:
        asked = self._asked.pop(answer.id, None) if isinstance(answer.id, int) else None
        if asked is None:  # nobody asked for it
            return []
        if asked.prompt is not None:
            return self._end(asked.prompt, answer)
        if asked.name is not None:
            return [self._take_set(asked, answer, asked.name)]
        if answer.error is not None and asked.method != _FENCE:
            raise self._refused(asked, answer.error)
        if asked.method == "initialize":
            self._agent = answer.result
            if self.login is not None and _has(answer.result.get("authMethods"), self.login):
                return [Send(self._ask(_Asked("authenticate"), {"methodId": self.login}))]
        if asked.method in ("initialize", "authenticate"):
            return [Send(self._open_session(self._agent))]
        if asked.setting is not None and not self._chosen.confirm(*asked.setting, answer.result):
            name, wanted = asked.setting
            told = f"{self.agent} has taken the {name} {wanted!r}, and is in {self._chosen.value(name)!r}."
            raise AgentFailedError(told)
        if asked.method in _OPENING:
            self._opened(answer.result)
            return self._go_on(self._wanted(asked.method))
        return self._go_on(asked.left)

    def _open_session(self, said: Mapping[str, Any]) -> bytes:
        """Begin a session, or take one up, once the agent has said what it can do."""
        version = said.get("protocolVersion")
        if version != VERSION:
            told = f"The agent speaks version {str(version)[:20]} of ACP, and this is version {VERSION}."
            raise ProtocolError(told, next_step="Take a version of the agent that speaks ACP 1.")
        can, method = part(said, "agentCapabilities"), "session/new"
        if self.resume is not None:
            held = part(can, "sessionCapabilities")
            # A load says all of the old conversation again; what can go on without does.
            if self.fork:
                method = "session/fork" if held.get("fork") is not None else ""
            elif held.get("resume") is not None:
                method = "session/resume"
            else:
                method = "session/load" if can.get("loadSession") is True else ""
            if not method:
                told = "The agent can not fork a session." if self.fork else "The agent can not go on with a session."
                raise AgentFailedError(told, next_step="Begin a new session.")
        servers = [*self.mcp_servers, *self._offered]
        for server in servers:
            kind = as_text(server.get("type"))
            if kind and part(can, "mcpCapabilities").get(kind) is not True:
                step = "Leave out functions as tools, and servers of this machine." if server in self._offered else None
                raise AgentFailedError(f"{self.agent} takes no MCP servers of the type {kind!r}.", next_step=step)
        more = {} if self.resume is None else {"sessionId": self.resume}
        return self._ask(_Asked(method), {**more, "cwd": self.cwd, "mcpServers": servers})

    def _opened(self, said: Mapping[str, Any]) -> None:
        self.session_id = as_text(said.get("sessionId")) or ("" if self.fork else self.resume or "")
        if not self.session_id:
            raise ProtocolError("The agent began a session, and did not say which.")
        self._chosen.take(said)

    def _wanted(self, method: str) -> tuple[tuple[str, str], ...]:
        wanted = tuple(each for each in self.settings.items() if each != ("model", self._chosen.value("model")))
        return wanted or (_LOADED if method == "session/load" else ())

    def _go_on(self, left: tuple[tuple[str, str], ...]) -> list[Event]:
        """The next step of the start, or its end."""
        if left == _LOADED:
            # gemini answers a load first and then says the old conversation; its next answer comes after that.
            return [Send(self._ask(_Asked(_FENCE), {"sessionId": self.session_id}))]
        if left:
            try:
                return [Send(self._set(left))]
            except NotOfferedError as error:
                raise AgentFailedError(f"The agent can not be set as it should be: {error}.") from None
        self._is_ready = True
        start = begun(self.session_id, model=self._chosen.value("model"), cwd=self.cwd)
        mode = {} if (held := self._chosen.value("mode")) is None else {"permissionMode": held}
        return [self._message({**start, **mode, "original": self._agent}), Ready()]

    def _set(self, wanted: tuple[tuple[str, str], ...], name: str | None = None) -> bytes:
        first, *left = wanted
        method, params = self._chosen.request(*first)
        asked = _Asked(method, name=name, left=tuple(left), setting=first)
        return self._ask(asked, {"sessionId": self.session_id, **params})

    def _take_set(self, asked: _Asked, answer: jsonrpc.Answer, name: str) -> Event:
        """What came of something that the caller has set."""
        error = None if answer.error is None else answer.error.message
        if error is None and asked.setting is not None and not self._chosen.confirm(*asked.setting, answer.result):
            error = f"it is in {self._chosen.value(asked.setting[0])!r} all the same"
        if error is None and asked.left:
            try:
                return Send(self._set(asked.left, name))
            except NotOfferedError as missing:
                error = str(missing)
        return Answer(id=name, payload=answer.result, error=error)

    def _refused(self, asked: _Asked, error: jsonrpc.Failure) -> AgentError:
        """Why the agent could not start."""
        if (
            asked.method == "authenticate"
            or error.code == jsonrpc.AUTHENTICATION_REQUIRED
            or error.status in (401, 403)
        ):
            return AuthenticationError(f"The agent has no login: {shown(error.message)}")
        if asked.method in _OPENING and self.resume is not None:
            return SessionNotFoundError(f"The agent does not go on with this session: {shown(error.message)}")
        return AgentFailedError(f"The agent did not take {asked.method!r}: {shown(error.message)}")

    def _take_request(self, call: jsonrpc.Call, size: int) -> list[Event]:
        if call.method != "session/request_permission":
            return [Send(jsonrpc.refusal(call.id, jsonrpc.METHOD_NOT_FOUND, "this client has no such method"))]
        name = orjson.dumps(call.id).decode()
        if name in self._open:
            return [Send(jsonrpc.refusal(call.id, jsonrpc.INVALID_REQUEST, "a request of this id is open"))]
        tool_call = part(call.params, "toolCall")
        told, tool_use_id, tool, given = self._updates.ask(tool_call, size)
        events: list[Event] = [self._message(each) for each in told]
        ask = PermissionRequest(
            id=name,
            raw=call.raw,
            tool_name=tool,
            input=given,
            tool_use_id=tool_use_id or None,
            title=as_text(tool_call.get("title")),
            can_always=option_of(call.raw, Allow(always=True)) != option_of(call.raw, Allow()),
        )
        if len(self._open) >= MOST_OPEN:
            return [*events, Send(jsonrpc.answer(call.id, _CANCELLED))]
        self._open[name] = ask
        if self.asks:
            return [*events, ask]
        return [*events, Send(self.reply(ask, Allow()))]

    def _take_notification(self, call: jsonrpc.Call, size: int) -> list[Event]:
        if call.method == "$/cancel_request":
            name = orjson.dumps(call.params.get("requestId")).decode()
            ask = self._open.pop(name, None)
            if ask is None:
                return []
            return [Withdrawn(name), Send(jsonrpc.refusal(ask.raw["id"], jsonrpc.CANCELLED, "cancelled"))]
        if call.method != "session/update":
            return [self._message({"type": "notification", "method": call.method, "original": call.params})]
        update = part(call.params, "update")
        self._chosen.take(update)
        if self.resume is not None and not self._is_ready:
            return [self._message(each) for each in self._updates.take_state(update)]
        return [self._message(each) for each in self._updates.take(update, size)]

    def _begin(self, prompt: str, blocks: list[Block]) -> bytes:
        self._turn = prompt
        self._updates.begin()
        return self._ask(_Asked("session/prompt", prompt=prompt), {"sessionId": self.session_id, "prompt": blocks})

    def _end(self, prompt: str, answer: jsonrpc.Answer) -> list[Event]:
        told, numbers = self._updates.end(answer.result)
        events: list[Event] = [*map(Withdrawn, self._open)]
        self._open.clear()  # the turn for which it asked is over
        events += [self._message(each) for each in told]
        said, reason = self._updates.last_text, as_text(answer.result.get("stopReason"))
        error, status = None, None
        if answer.error is not None:
            error, status = answer.error.message, answer.error.status
        elif reason != "end_turn":
            error = _REASONS.get(reason, f"the turn ended for another reason: {reason[:80]!r}")
        elif (
            self.failure_prefix and self._updates.last_piece.startswith(self.failure_prefix) and "usage" not in numbers
        ):
            error = self._updates.last_piece
        result = ended(said, error=error, status=status, **numbers)
        if reason == "max_turn_requests":
            result["subtype"] = "error_max_turns"
        is_cut = reason == "cancelled"
        events += [self._message(result), TurnEnded(prompts=(prompt,), was_interrupted=is_cut)]
        self._turn = None
        if self._waiting:
            events.append(Send(self._begin(*self._waiting.popleft())))
        return events

    def _message(self, folded: Folded) -> Event:
        return parse_message({"session_id": self.session_id, **folded} if self.session_id else folded)

    def _blocks(self, content: Content) -> list[Block]:
        can = part(self._agent, "agentCapabilities", "promptCapabilities")
        blocks = [_block(each) for each in content_blocks(content)]
        for block in blocks:
            kind = as_text(block.get("type"))
            needs = _NEEDS.get(kind)
            if needs is None and kind not in ("text", "resource_link"):
                raise ConfigError("content", kind, "blocks of ACP: text, image, audio, resource_link or resource")
            if needs is not None and can.get(needs) is not True:
                raise RequestRefusedError(f"{self.agent} takes no {kind} in a prompt.")
        try:
            orjson.dumps(blocks)
        except TypeError as error:
            raise ConfigError("content", NOT_SHOWN, f"what JSON can hold ({error})") from None
        return blocks


_OPENING: Final = ("session/new", "session/load", "session/resume", "session/fork")
_LOADED: Final = (("", ""),)
"""Stands for the fence among what is to be set."""
_NEEDS: Final = {"image": "image", "audio": "audio", "resource": "embeddedContext"}
"""What an agent must be able to do for a block of this type."""


def _block(each: str | Image | Mapping[str, Any]) -> Block:
    if isinstance(each, str):
        return {"type": "text", "text": each}
    if isinstance(each, Image):
        return {"type": "image", "data": base64.b64encode(each.data).decode(), "mimeType": each.media_type}
    return dict(each)


def _bearer(token: str) -> dict[str, str]:
    return {"name": "Authorization", "value": f"Bearer {token}"}


def _has(methods: object, name: str) -> bool:
    return isinstance(methods, list) and any(isinstance(one, dict) and one.get("id") == name for one in methods)


def _selected(option: str) -> dict[str, Any]:
    return {"outcome": {"outcome": "selected", "optionId": option}}
