"""GitHub Copilot CLI: how it is started, what its lines mean, and how its end is judged."""

from __future__ import annotations

from typing import Any

from container_runner.agents import CopilotRuntime
from container_runner.errors import (
    AgentFailedError,
    AuthenticationError,
    SessionNotFoundError,
)
from container_runner.stream.calls import MOST, Calls
from container_runner.stream.messages import (
    AssistantMessage,
    ResultMessage,
    StreamEvent,
    SystemMessage,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    UserMessage,
)
from tests.agents.dialects import ID, captured, command, read, result_of, shape


def test_all_that_copilot_can_be_asked_for_is_on_its_command_line() -> None:
    agent = {
        "model": "m", "base_url": "http://here:1/v1", "effort": "high", "allowed_tools": ("a",),
        "disallowed_tools": ("b", "c"), "tools": ("d", "e"), "plugin_dirs": ("/p",),
        "mcp_servers": {"x": {"command": "y"}},
    }  # fmt: skip
    made = command(CopilotRuntime, agent=agent, resume=ID, include_partial_messages=True)

    assert made.argv == (
        "copilot", "--output-format=json", "--stream=on", "--no-ask-user", "--no-auto-update",
        "--disable-client-telemetry", "--allow-all", "--model=m", "--reasoning-effort=high", "--allow-tool=a",
        "--deny-tool=b", "--deny-tool=c", "--available-tools=d", "--available-tools=e", "--plugin-dir=/p",
        '--additional-mcp-config={"mcpServers": {"x": {"command": "y"}}}', f"--resume={ID}",
    )  # fmt: skip
    assert made.env["COPILOT_PROVIDER_BASE_URL"] == "http://here:1/v1"
    assert made.env["COPILOT_OFFLINE"] == "true"
    assert made.credentials.names == ("COPILOT_PROVIDER_API_KEY",)
    assert "COPILOT_OFFLINE" not in command(CopilotRuntime).env
    assert command(CopilotRuntime).credentials.names == ("COPILOT_GITHUB_TOKEN",)


def test_copilots_session_has_an_id_of_ours_from_the_beginning() -> None:
    made, other = command(CopilotRuntime), command(CopilotRuntime)

    assert f"--session-id={made.session_id}" in made.argv
    assert made.session_id != other.session_id
    assert command(CopilotRuntime, session_id=ID).session_id == ID
    assert command(CopilotRuntime, resume=ID).session_id == ID


def event(kind: str, **data: Any) -> dict[str, Any]:
    return {"type": kind, "data": data, "id": "i", "timestamp": "t", "parentId": "p"}


END = {"type": "result", "sessionId": ID, "exitCode": 0, "usage": {"totalApiDurationMs": 32}}


def test_copilots_ephemeral_lines_are_left_out_and_pieces_come_if_asked_for() -> None:
    lines = [
        {**event(kind, deltaContent="All "), "ephemeral": True} for kind in ("assistant.message_delta", "brand.new")
    ]

    assert read(CopilotRuntime, lines) == []
    (piece,) = read(CopilotRuntime, lines, include_partial_messages=True)
    assert isinstance(piece, StreamEvent)
    assert piece.text == "All "


def test_copilot_tells_neither_tokens_nor_cost() -> None:
    end = result_of(read(CopilotRuntime, captured("copilot")))

    assert end.usage is None
    assert end.total_cost_usd is None
    assert end.duration_api_ms == 32


def test_copilots_failures() -> None:
    messages = read(CopilotRuntime, captured("copilot-refused"))
    end = result_of(messages)
    assert end.is_error
    assert end.errors == ["400 fake failure"]
    assert end.api_error_status == 400
    assert type(CopilotRuntime().outcome(end, 1, "")) is AgentFailedError
    failed = event("session.error", errorType="authentication", message="Authentication failed …", statusCode=401)
    end = result_of(read(CopilotRuntime, [failed, {**END, "exitCode": 1}]))
    assert isinstance(CopilotRuntime().outcome(end, 1, ""), AuthenticationError)
    error = CopilotRuntime().outcome(None, 1, "Error: No authentication information found.\n\nCopilot can be …\n")
    assert isinstance(error, AuthenticationError)
    error = CopilotRuntime().outcome(None, 1, f"Error: No session, task, or name matched '{ID}'.\n\nTo resume …\n")
    assert isinstance(error, SessionNotFoundError)


def test_an_error_that_copilot_got_over_is_none() -> None:
    messages = read(CopilotRuntime, [event("session.error", message="busy", statusCode=503), END])

    assert not result_of(messages).is_error
    assert result_of(messages).api_error_status is None
    assert isinstance(messages[1], SystemMessage)
    assert messages[1].subtype == "warning"


def test_copilot_that_was_interrupted_says_success_and_has_none() -> None:
    end = result_of(read(CopilotRuntime, [{**event("assistant.idle", aborted=True), "ephemeral": True}, END]))

    assert end.is_error
    assert end.errors == ["it was interrupted"]


def test_what_copilot_may_not_do_is_a_denial() -> None:
    request = {"toolCallId": "c", "name": "bash", "arguments": {"command": "ls"}}
    lines = [
        event("assistant.message", messageId="m", content="", toolRequests=[request]),
        event("tool.execution_start", toolCallId="c", toolName="bash", arguments={"command": "ls"}),
        event("tool.execution_complete", toolCallId="c", success=False, error={"message": "No …", "code": "denied"}),
        END,
    ]
    messages = read(CopilotRuntime, lines)

    assert shape(messages) == [SystemMessage, [ToolUseBlock], [ToolResultBlock], ResultMessage]
    assert result_of(messages).permission_denials == [
        {"tool_use_id": "c", "tool_name": "bash", "tool_input": {"command": "ls"}}
    ]


def test_copilots_thoughts_subagents_and_failed_commands() -> None:
    failed = {"success": True, "result": {"content": "no\n<exit code 1>"}, "shellExecution": {"exitCode": 1}}
    lines = [
        event("assistant.reasoning", reasoningId="r", content="hm"),
        event("tool.execution_start", toolCallId="c", toolName="bash", parentToolCallId="parent"),
        event("tool.execution_complete", toolCallId="c", **failed),
    ]
    messages = read(CopilotRuntime, lines)

    begin, thought, call, told = messages
    assert isinstance(begin, SystemMessage)
    assert isinstance(thought, AssistantMessage)
    assert thought.content == [ThinkingBlock("hm")]
    assert isinstance(call, AssistantMessage)
    assert call.parent_tool_use_id == "parent"
    assert isinstance(told, UserMessage)
    (block,) = told.content
    assert isinstance(block, ToolResultBlock)
    assert block.is_error


def test_calls_that_never_end_do_not_fill_the_memory() -> None:
    calls = Calls()
    for number in range(MOST + 1):
        calls.begin(str(number), "bash", {})
    assert "0" in calls
    assert str(MOST) not in calls
    for _ in range(MOST + 1):
        calls.end("0", denied=True)
    assert len(calls.denials) == MOST
