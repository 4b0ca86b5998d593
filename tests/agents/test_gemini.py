"""Gemini CLI: how it is started, what its lines mean, and how its end is judged."""

from __future__ import annotations

import json
from typing import Any

import pytest

from container_runner.agents import GeminiRuntime, QwenRuntime
from container_runner.agents.agent import NO_SERVER
from container_runner.agents.gemini import LONGEST, PROMPT_LIMIT
from container_runner.errors import (
    AgentFailedError,
    AuthenticationError,
    ConfigError,
    SessionNotFoundError,
)
from container_runner.stream.messages import (
    AssistantMessage,
    ResultMessage,
    StreamEvent,
    TextBlock,
    ToolResultBlock,
    ToolUseBlock,
    Usage,
    UserMessage,
)
from tests.agents.dialects import ID, captured, command, read, result_of, shape


def said(content: str, **more: Any) -> dict[str, Any]:
    return {"type": "message", "role": "assistant", "content": content, "delta": True, **more}


def test_the_pieces_of_geminis_answer_are_one_message_until_something_else_comes() -> None:
    lines = [said("one "), said("two"), {"type": "tool_use", "tool_id": "t", "tool_name": "glob"}, said("three")]
    messages = read(GeminiRuntime, [*lines, {"type": "result", "status": "success"}])

    assert shape(messages) == [[TextBlock], [ToolUseBlock], [TextBlock], ResultMessage]
    assert [message.text for message in messages if isinstance(message, AssistantMessage)] == ["one two", "", "three"]
    assert result_of(messages).result == "three"
    assert result_of(messages).usage is None
    answers = [message for message in messages if isinstance(message, AssistantMessage)]
    assert [answer.original for answer in answers] == lines[1:]  # the last of its lines


def test_the_pieces_come_too_if_they_are_asked_for() -> None:
    pieces = read(GeminiRuntime, [said("one "), said("two")], include_partial_messages=True)

    assert [piece.text for piece in pieces[:2] if isinstance(piece, StreamEvent)] == ["one ", "two"]
    assert isinstance(pieces[2], AssistantMessage)  # what it still had to say at its end
    assert pieces[2].text == "one two"


def test_an_answer_without_end_does_not_fill_the_memory() -> None:
    messages = read(GeminiRuntime, [said("x" * (LONGEST // 4))] * 9)

    assert [len(message.text) for message in messages if isinstance(message, AssistantMessage)] == [
        *[LONGEST // 4 * 5],
        *[LONGEST // 4 * 4],
    ]


def test_geminis_input_tokens_are_without_those_of_the_cache() -> None:
    end = result_of(read(GeminiRuntime, captured("gemini")))

    assert end.usage == Usage(input_tokens=180, cache_read_input_tokens=20, output_tokens=40)
    assert end.duration_ms == 170
    assert end.num_turns is None


def gemini_fails(message: str, code: int, kind: str = "unknown") -> tuple[ResultMessage, Any]:
    line = {"type": "result", "status": "error", "error": {"type": kind, "message": message}, "stats": {}}
    end = result_of(read(GeminiRuntime, [line]))
    return end, GeminiRuntime().outcome(end, code, "")


def test_geminis_exit_code_is_no_signal() -> None:
    """It is the HTTP status modulo 256."""
    end, error = gemini_fails('[API Error: {"error":{"message":"no","code":401,"status":"X"}}]', 145)

    assert end.api_error_status == 401
    assert isinstance(error, AuthenticationError)
    assert "GEMINI_API_KEY" in error.next_step
    end, error = gemini_fails('[API Error: {"error":{"message":"busy", "code": 429}}]', 173)
    assert end.api_error_status == 429
    assert type(error) is AgentFailedError
    _, error = gemini_fails('[API Error: {"error":{"message":"API key not valid. Please pass…","code":400}}]', 144)
    assert isinstance(error, AuthenticationError)


def test_gemini_at_its_turn_limit() -> None:
    end, error = gemini_fails("Reached max session turns for this session.", 53, "FatalTurnLimitedError")

    assert end.subtype == "error_max_turns"
    assert end.is_error
    assert type(error) is AgentFailedError
    assert "max session turns" in error.message


def test_gemini_without_a_key_and_without_the_session() -> None:
    yolo = "YOLO mode is enabled. All tool calls will be automatically approved.\n"
    key = "When using Gemini API, you must specify the GEMINI_API_KEY environment variable.\n"
    assert isinstance(GeminiRuntime().outcome(None, 41, yolo + key), AuthenticationError)
    for told in (f'Invalid session identifier "{ID}".', "No previous sessions found for this project."):
        error = GeminiRuntime().outcome(None, 42, f"{yolo}Error resuming session: {told}\n  Use --list-sessions\n")
        assert isinstance(error, SessionNotFoundError)
        assert error.message == f"Error resuming session: {told}"


def test_what_gemini_may_not_do_is_a_denial() -> None:
    """It calls the run a success, and says of the call that it failed."""
    denied = 'Tool execution for "Shell" requires user confirmation, which is not supported in non-interactive mode.'
    call = {"type": "tool_use", "tool_id": "t", "tool_name": "run_shell_command", "parameters": {"command": "ls"}}
    told = {"type": "tool_result", "tool_id": "t", "status": "error", "output": denied}
    other = {"type": "tool_result", "tool_id": "u", "status": "error", "error": {"message": "no such file"}}
    messages = read(GeminiRuntime, [call, told, other, {"type": "result", "status": "success"}])

    (denial,) = result_of(messages).permission_denials
    assert denial == {"tool_use_id": "t", "tool_name": "run_shell_command", "tool_input": {"command": "ls"}}
    blocks = [block for message in messages if isinstance(message, UserMessage) for block in message.content]
    assert [block.text for block in blocks if isinstance(block, ToolResultBlock)] == [denied, "no such file"]


def test_no_server_starts_that_a_workspace_names() -> None:
    allowed = "--allowed-mcp-server-names="
    for kind in (GeminiRuntime, QwenRuntime):
        assert f"{allowed}{NO_SERVER}" in command(kind).argv
        assert f"{allowed}x" in command(kind, agent={"mcp_servers": {"x": {"command": "y"}}}).argv
        assert not any(word.startswith(allowed) for word in command(kind, contained=False).argv)


def test_geminis_settings_are_written_for_it() -> None:
    def settings(**agent: Any) -> dict[str, Any]:
        (made,) = command(GeminiRuntime, agent=agent).files.items()
        assert made[0] == "/container-runner/sessions/.gemini/settings.json"
        found: dict[str, Any] = json.loads(made[1])
        return found

    assert settings()["general"] == {"enableAutoUpdate": False, "sessionRetention": {"enabled": False}}
    assert "security" not in settings()
    assert settings(base_url="http://here:1/")["security"] == {"auth": {"selectedType": "gemini-api-key"}}
    assert settings(max_turns=3)["model"] == {"maxSessionTurns": 3}
    assert settings(tools=())["tools"] == {"core": []}
    assert settings(mcp_servers={"x": {"command": "y"}})["mcpServers"] == {"x": {"command": "y"}}
    env = command(GeminiRuntime, agent={"base_url": "http://here:1/"}).env
    assert env["GOOGLE_GEMINI_BASE_URL"] == "http://here:1/"
    with pytest.raises(ConfigError, match="max_turns"):
        command(GeminiRuntime, contained=False, agent={"max_turns": 3})


def test_a_prompt_that_gemini_would_cut_is_refused() -> None:
    command(GeminiRuntime, prompt="x" * PROMPT_LIMIT)
    with pytest.raises(ConfigError, match="for gemini"):
        command(GeminiRuntime, prompt="x" * (PROMPT_LIMIT + 1))
