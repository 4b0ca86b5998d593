"""Qwen Code: how it is started, what its lines mean, and how its end is judged."""

from __future__ import annotations

import json
from typing import Any

from container_runner.agents import QwenRuntime
from container_runner.errors import (
    AgentFailedError,
    AuthenticationError,
    SessionNotFoundError,
)
from container_runner.stream.messages import (
    ApiRetryMessage,
    AssistantMessage,
    ResultMessage,
    StreamEvent,
    Usage,
)
from tests.agents.dialects import ID, captured, command, read, result_of


def test_all_that_qwen_can_be_asked_for_is_on_its_command_line() -> None:
    agent = {
        "model": "m", "base_url": "http://here:1/v1", "fallback_model": "n", "system_prompt": "S",
        "permission_mode": "acceptEdits", "allowed_tools": ("a", "b"), "disallowed_tools": ("c",), "tools": ("d",),
        "mcp_servers": {"x": {"command": "y"}}, "max_turns": 3,
    }  # fmt: skip
    made = command(
        QwenRuntime, agent=agent, append_system_prompt="A", json_schema={"type": "object"}, resume=ID, fork=True,
        include_partial_messages=True,
    )  # fmt: skip

    assert made.argv == (
        "qwen", "--output-format=stream-json", "--auth-type=openai", "--allowed-mcp-server-names=x",
        "--approval-mode=auto-edit", "--model=m",
        "--fallback-model=n", "--system-prompt=S", "--append-system-prompt=A", "--allowed-tools=a",
        "--allowed-tools=b", "--exclude-tools=c", "--core-tools=d",
        "--max-session-turns=3", '--json-schema={"type": "object"}', "--include-partial-messages",
        f"--resume={ID}", "--fork-session",
    )  # fmt: skip
    on_the_host = command(QwenRuntime, agent=agent, contained=False)
    assert '--mcp-config={"mcpServers": {"x": {"command": "y"}}}' in on_the_host.argv
    assert made.env["OPENAI_BASE_URL"] == "http://here:1/v1"
    (settings,) = made.files.values()
    assert json.loads(settings)["mcpServers"] == {"x": {"command": "y"}}
    assert json.loads(settings)["memory"] == {
        "enableManagedAutoMemory": False, "enableManagedAutoDream": False, "enableAutoSkill": False
    }  # fmt: skip


def test_qwens_input_tokens_are_without_those_of_the_cache() -> None:
    *_, answer, end = read(QwenRuntime, captured("qwen"))

    assert isinstance(answer, AssistantMessage)
    assert answer.usage == Usage(input_tokens=90, cache_read_input_tokens=10, output_tokens=20)
    assert isinstance(end, ResultMessage)
    assert end.usage == Usage(input_tokens=180, cache_read_input_tokens=20, output_tokens=40)
    assert end.num_turns == 2


def test_what_qwen_used_in_a_session_that_goes_on_is_what_this_run_has_used() -> None:
    """Its own count has the runs before in it."""
    *lines, last = captured("qwen")
    whole = {**json.loads(last), "usage": {"input_tokens": 900, "output_tokens": 90, "cache_read_input_tokens": 0}}

    end = result_of(read(QwenRuntime, [*lines, whole], resume=ID))

    assert end.usage == Usage(input_tokens=180, cache_read_input_tokens=20, output_tokens=40)


def test_the_state_of_qwens_goals_is_no_piece_of_text() -> None:
    goal = {"type": "stream_event", "event": {"type": "goal_state", "goal_state": {}}}
    delta = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "x"}}
    piece = {"type": "stream_event", "event": delta}

    assert read(QwenRuntime, [goal, piece]) == []
    (found,) = read(QwenRuntime, [goal, piece], include_partial_messages=True)
    assert isinstance(found, StreamEvent)
    assert found.text == "x"


def qwen_fails(message: str) -> tuple[ResultMessage, Any]:
    line = {"type": "result", "subtype": "error_during_execution", "is_error": True, "error": {"message": message}}
    end = result_of(read(QwenRuntime, [line]))
    return end, QwenRuntime().outcome(end, 1, "")


def test_qwens_failures() -> None:
    end, error = qwen_fails("[API Error: 401 no such key]")
    assert end.errors == ["[API Error: 401 no such key]"]
    assert end.api_error_status == 401
    assert isinstance(error, AuthenticationError)
    end, error = qwen_fails("[API Error: 429 slow down]")
    assert end.api_error_status == 429
    assert type(error) is AgentFailedError
    _, error = qwen_fails("Missing API key for OpenAI-compatible auth. Set settings.security.auth.apiKey, …")
    assert isinstance(error, AuthenticationError)
    error = QwenRuntime().outcome(None, 1, f"No saved session found with ID {ID}. Run `qwen --resume` …\n")
    assert isinstance(error, SessionNotFoundError)
    error = QwenRuntime().outcome(None, 53, "Reached max session turns for this session. Increase …\n")
    assert type(error) is AgentFailedError
    assert "max session turns" in error.message


def test_qwen_asks_its_api_again() -> None:
    data = {"reason": "retry", "attempt": 2, "maxRetries": 10, "delayMs": 60000, "preserveText": False}
    (retry,) = read(QwenRuntime, [{"type": "system", "subtype": "retry", "uuid": "u", "data": data}])

    assert isinstance(retry, ApiRetryMessage)
    assert (retry.attempt, retry.max_retries, retry.retry_delay_ms, retry.uuid) == (2, 10, 60000, "u")
