"""claude's control protocol: what each line becomes, and what each intention is on the wire."""

from __future__ import annotations

import json
from typing import Any

import pytest

from container_runner.errors import AgentFailedError, ConfigError, ProtocolError
from container_runner.session import asks
from container_runner.session.asks import (
    Allow,
    Deny,
    HookAnswer,
    Image,
    PermissionRequest,
    Question,
    Reply,
    ToolAnswer,
    ToolCall,
)
from container_runner.session.codec import MOST_OPEN, Answer, Event, Ready, Send, TurnEnded, Withdrawn
from container_runner.session.control import ControlCodec
from container_runner.session.hooks import Hook, HookCall
from container_runner.session.mcp import SERVER
from container_runner.session.tools import Tool
from container_runner.stream.lines import OversizedLine
from container_runner.stream.messages import AssistantMessage, NoticeMessage, OutputLine, ResultMessage

ADD = Tool(name="add", description="adds", input_schema={"type": "object"}, function=print)


def line(**value: Any) -> bytes:
    return json.dumps(value).encode()


def request(name: str, **body: Any) -> bytes:
    return line(type="control_request", request_id=name, request=body)


def answer(name: str, response: Any = None, **more: Any) -> bytes:
    body = {"subtype": "success", "request_id": name, "response": response, **more}
    return line(type="control_response", response=body)


def mcp(ask: str, method: str, call: object = 7, **params: Any) -> bytes:
    message = {"jsonrpc": "2.0", "method": method, "params": params, **({} if call is None else {"id": call})}
    return request(ask, subtype="mcp_message", server_name=SERVER, message=message)


def may(name: str, tool: str = "Bash", **more: Any) -> bytes:
    return request(name, subtype="can_use_tool", tool_name=tool, input={"command": "ls"}, **more)


def said(data: bytes) -> dict[str, Any]:
    assert data.endswith(b"\n")
    assert data.count(b"\n") == 1
    value: dict[str, Any] = json.loads(data)
    return value


def response(data: bytes) -> Any:
    value = said(data)
    assert value["type"] == "control_response"
    assert value["response"]["subtype"] == "success"
    return value["response"]["response"]


def only(events: list[Event]) -> Any:
    (event,) = events
    return event


def ready(*tools: Tool) -> ControlCodec:
    codec = ControlCodec(tools)
    first = said(codec.start())
    assert codec.feed(answer(first["request_id"], {"commands": []})) == [Ready()]
    return codec


def test_it_begins_with_initialize_and_is_ready_when_that_is_answered() -> None:
    codec = ControlCodec()

    first = said(codec.start())

    assert first["request"] == {"subtype": "initialize", "hooks": None}
    assert codec.feed(answer(first["request_id"], {"commands": []})) == [Ready()]


def test_an_agent_that_refuses_to_begin_has_failed() -> None:
    codec = ControlCodec()
    first = said(codec.start())

    with pytest.raises(AgentFailedError, match="no such thing"):
        codec.feed(answer(first["request_id"], subtype="error", error="no such thing"))


def test_what_is_no_control_message_is_what_it_is_in_any_run() -> None:
    codec = ready()
    long = OversizedLine(100, b"x")

    assert codec.feed(b"  ") == []
    assert codec.feed(long) == [long]
    assert isinstance(only(codec.feed(b"[SandboxDebug] hello")), OutputLine)
    assert isinstance(only(codec.feed(line(type="assistant", message={"content": []}))), AssistantMessage)


def test_a_control_message_is_found_behind_noise_on_its_line() -> None:
    codec = ready()

    events = codec.feed(b"\x1b[0m half a line of text" + may("r1"))

    assert isinstance(events[0], OutputLine)
    assert isinstance(events[1], PermissionRequest)


def test_a_result_is_a_message_and_the_end_of_its_turn() -> None:
    codec = ready()

    message, end = codec.feed(line(type="result", subtype="success", is_error=False))

    assert isinstance(message, ResultMessage)
    assert end == TurnEnded()


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"user_message_uuid": "a"}, TurnEnded(prompts=("a",))),
        ({"user_message_uuid": "a", "user_message_uuids": ["a", "b"]}, TurnEnded(prompts=("a", "b"))),
        ({"origin": {"kind": "task-notification"}}, TurnEnded(prompts=())),
        ({"origin": {"kind": "human"}}, TurnEnded()),
        ({"terminal_reason": "aborted_tools"}, TurnEnded(was_interrupted=True)),
    ],
)
def test_the_end_of_a_turn_says_whose_it_was(more: dict[str, Any], expected: TurnEnded) -> None:
    assert ready().feed(line(type="result", subtype="success", **more))[1] == expected


def test_a_prompt_is_a_line_with_its_id() -> None:
    assert said(ready().prompt("hello\nworld", id="u1")) == {
        "type": "user",
        "message": {"role": "user", "content": "hello\nworld"},
        "parent_tool_use_id": None,
        "session_id": "default",
        "uuid": "u1",
    }


def test_a_prompt_may_have_pictures_and_blocks_of_its_own() -> None:
    block = {"type": "document", "title": "x"}

    content = said(ready().prompt(["look", Image(b"\x89PNG"), block], id="u1"))["message"]["content"]

    picture = {"type": "base64", "media_type": "image/png", "data": "iVBORw=="}
    assert content == [{"type": "text", "text": "look"}, {"type": "image", "source": picture}, block]


@pytest.mark.parametrize("content", [[], [7], "\ud83d", [None]])
def test_what_is_no_prompt_is_refused(content: Any) -> None:
    with pytest.raises(ConfigError):
        ready().prompt(content, id="u1")


def test_requests_of_ours_are_known_by_their_answers() -> None:
    codec = ready()
    asked = [codec.interrupt(), codec.set_model(None), codec.set_permission_mode("plan"), codec.stop_task("t1")]

    assert [said(one.data)["request"] for one in asked] == [
        {"subtype": "interrupt"},
        {"subtype": "set_model", "model": None},
        {"subtype": "set_permission_mode", "mode": "plan"},
        {"subtype": "stop_task", "task_id": "t1"},
    ]
    assert len({one.id for one in asked}) == 4
    first, last = str(asked[0].id), str(asked[-1].id)
    assert codec.feed(answer(last, subtype="error", error="no task")) == [Answer(id=last, error="no task")]
    assert codec.feed(answer(first, {"still_queued": []})) == [Answer(id=first, payload={"still_queued": []})]
    assert isinstance(only(codec.feed(answer(first))), NoticeMessage), "nobody waits for a second answer"


def test_a_permission_request_is_allowed_as_it_is_or_otherwise() -> None:
    codec = ready()
    ask = only(codec.feed(may("r1", tool_use_id="t1", title="List", decision_reason="because")))
    other = only(codec.feed(may("r2")))

    assert ask == PermissionRequest(
        id="r1", tool_name="Bash", input={"command": "ls"}, tool_use_id="t1", title="List", reason="because"
    )
    assert said(codec.reply(ask, Allow()))["response"]["request_id"] == "r1"
    assert response(codec.reply(other, Allow(input={"command": "pwd"}))) == {
        "behavior": "allow",
        "updatedInput": {"command": "pwd"},
    }


def test_it_is_denied_with_a_reason_and_may_end_the_turn() -> None:
    codec = ready()
    first, second = only(codec.feed(may("r1"))), only(codec.feed(may("r2")))

    assert response(codec.reply(first, Deny(message="no"))) == {"behavior": "deny", "message": "no"}
    assert response(codec.reply(second, Deny(message="no", interrupt=True)))["interrupt"] is True


def test_always_holds_for_the_session_and_writes_no_settings() -> None:
    rule = {"type": "addRules", "rules": [{"toolName": "Bash"}], "behavior": "allow", "destination": "localSettings"}
    skip = {"type": "setMode", "mode": "bypassPermissions", "destination": "session"}
    codec = ready()
    ask = only(codec.feed(may("r1", permission_suggestions=[rule, skip, {"type": "new"}, 7])))

    assert ask.can_always
    assert response(codec.reply(ask, Allow(always=True)))["updatedPermissions"] == [{**rule, "destination": "session"}]
    assert not only(codec.feed(may("r2", permission_suggestions=[{"type": "allow", "label": "y"}]))).can_always


def test_a_question_of_claudes_is_answered_in_its_tools_input() -> None:
    codec = ready()
    questions = [{"question": "Which?", "options": [{"label": "a"}, {"label": "b"}], "multiSelect": True}]
    body = {"tool_name": "AskUserQuestion", "input": {"questions": questions}}
    ask = only(codec.feed(request("r1", subtype="can_use_tool", **body)))

    assert ask == Question(
        id="r1", parts=(asks.QuestionPart(name="Which?", text="Which?", options=("a", "b"), multiple=True),)
    )
    assert response(codec.reply(ask, Reply(answers={"Which?": "a"}))) == {
        "behavior": "allow",
        "updatedInput": {"questions": questions, "answers": {"Which?": "a"}},
    }


def test_a_question_of_a_servers_is_answered_or_declined() -> None:
    codec = ready()
    schema = {"properties": {"name": {"description": "Your name"}, "size": {"enum": ["s", "m"]}, "bad": 7}}
    first, second = (
        only(codec.feed(request(name, subtype="elicitation", message="Who?", requested_schema=schema)))
        for name in ("r1", "r2")
    )

    assert [(part.name, part.text, part.options) for part in first.parts] == [
        ("name", "Your name", ()),
        ("size", "size", ("s", "m")),
    ]
    assert response(codec.reply(first, Reply(answers={"name": "x"}))) == {"action": "accept", "content": {"name": "x"}}
    assert response(codec.reply(second, Deny())) == {"action": "decline"}


def test_the_callers_tools_are_a_server_on_the_same_lines() -> None:
    codec = ready(ADD)

    begun = only(codec.feed(mcp("r1", "initialize", 0, protocolVersion="2025-11-25")))
    noted = only(codec.feed(mcp("r2", "notifications/initialized", None)))
    listed = only(codec.feed(mcp("r3", "tools/list", 1)))
    unknown = only(codec.feed(mcp("r4", "resources/list", 2)))

    assert response(begun.data)["mcp_response"]["result"]["protocolVersion"] == "2025-11-25"
    assert response(noted.data)["mcp_response"] == {"jsonrpc": "2.0", "result": {}}
    assert response(listed.data)["mcp_response"] == {
        "jsonrpc": "2.0",
        "id": 1,
        "result": {
            "tools": [
                {
                    "name": "add",
                    "description": "adds",
                    "inputSchema": {"type": "object"},
                    "_meta": {"anthropic/alwaysLoad": True},
                }
            ]
        },
    }
    assert response(unknown.data)["mcp_response"]["error"]["code"] == -32601


def test_a_call_of_a_tool_is_an_ask_and_its_answer_is_content() -> None:
    codec = ready(ADD)
    ask = only(codec.feed(mcp("r1", "tools/call", 9, name="add", arguments={"x": 1})))

    assert ask == ToolCall(id="r1", name="add", input={"x": 1})
    assert response(codec.reply(ask, ToolAnswer(content=("42", Image(b"\x89PNG")), is_error=True))) == {
        "mcp_response": {
            "jsonrpc": "2.0",
            "id": 9,
            "result": {
                "content": [
                    {"type": "text", "text": "42"},
                    {"type": "image", "data": "iVBORw==", "mimeType": "image/png"},
                ],
                "isError": True,
            },
        }
    }


@pytest.mark.parametrize(
    "gone",
    [line(type="control_cancel_request", request_id="r1"), mcp("r2", "notifications/cancelled", None, requestId=9)],
)
def test_a_call_that_the_agent_gave_up_gets_no_answer(gone: bytes) -> None:
    codec = ready(ADD)
    ask = only(codec.feed(mcp("r1", "tools/call", 9, name="add")))

    events = [event for event in codec.feed(gone) if not isinstance(event, Send)]

    assert events == [Withdrawn("r1")]
    assert codec.reply(ask, ToolAnswer(content=())) == b""


def test_what_nobody_here_knows_is_answered_with_an_error() -> None:
    codec = ready()

    for body in ({"subtype": "request_user_dialog"}, {"subtype": "mcp_message", "server_name": SERVER}, {}):
        refusal = said(only(codec.feed(request("r1", **body))).data)["response"]

        assert (refusal["subtype"], refusal["request_id"]) == ("error", "r1")


def test_only_so_many_asks_may_be_open() -> None:
    codec = ready(ADD)
    held = [only(codec.feed(may(f"r{number}"))) for number in range(MOST_OPEN)]

    refused = only(codec.feed(may("one more")))
    call = only(codec.feed(mcp("another", "tools/call", 9, name="add")))

    assert said(refused.data)["response"]["subtype"] == "error"
    assert "error" in response(call.data)["mcp_response"]
    assert codec.reply(held[0], Allow())
    assert isinstance(only(codec.feed(may("now"))), PermissionRequest)


@pytest.mark.parametrize(
    "broken",
    [
        line(type="control_request"),
        line(type="control_request", request_id=7, request={"subtype": "can_use_tool"}),
        line(type="control_request", request_id="r1", request=[]),
        request("r1", subtype="can_use_tool", input={}),
        request("r1", subtype="can_use_tool", tool_name="Bash", input="ls"),
        request("r1", subtype="mcp_message", server_name=SERVER, message=None),
        line(type="control_response", response=None),
        line(type="control_response", response={"subtype": "success"}),
        line(type="control_cancel_request"),
    ],
)
def test_a_broken_control_message_is_an_error(broken: bytes) -> None:
    with pytest.raises(ProtocolError, match="broke its live protocol"):
        ready(ADD).feed(broken)


def test_two_open_requests_of_one_name_are_an_error() -> None:
    codec = ready()
    codec.feed(may("r1"))

    with pytest.raises(ProtocolError, match="two requests"):
        codec.feed(may("r1"))


# Hooks


async def nothing(call: HookCall) -> None:
    del call


def test_hooks_are_told_at_the_start_and_wait_longer_than_we_do() -> None:
    codec = ControlCodec()
    codec.add_hooks([Hook("PreToolUse", nothing, "Bash", timeout=5), Hook("Stop", nothing), Hook("Stop", nothing)])

    told = said(codec.start())["request"]["hooks"]

    before = {"matcher": "Bash", "hookCallbackIds": ["0"], "timeout": 65.0}
    after = [{"hookCallbackIds": ["1"], "timeout": 120.0}, {"hookCallbackIds": ["2"], "timeout": 120.0}]
    assert told == {"PreToolUse": [before], "Stop": after}


def test_a_call_of_a_hook_is_an_ask_and_its_answer_goes_as_it_is() -> None:
    codec, hook = ControlCodec(), Hook("Stop", nothing)
    codec.add_hooks([hook])

    call = only(codec.feed(request("r1", subtype="hook_callback", callback_id="0", input={"a": 1}, tool_use_id="t")))

    assert call == HookCall(id="r1", event="Stop", input={"a": 1}, tool_use_id="t", hook=hook)
    assert call.hook is hook
    assert response(codec.reply(call, HookAnswer(output={"continue": True}))) == {"continue": True}


def test_a_hook_that_there_is_not_breaks_the_protocol() -> None:
    with pytest.raises(ProtocolError, match="no hook has"):
        ready().feed(request("r1", subtype="hook_callback", callback_id="0", input={}))
