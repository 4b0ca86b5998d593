"""Codex: how it is started, what its lines mean, and how its end is judged."""

from __future__ import annotations

import json
from typing import Any

import pytest

from container_runner.agents import CodexRuntime
from container_runner.errors import (
    AgentFailedError,
    AuthenticationError,
    ConfigError,
    IncompleteOutputError,
    PromptRefusedError,
    SessionNotFoundError,
)
from container_runner.stream.messages import (
    ApiRetryMessage,
    AssistantMessage,
    ResultMessage,
    SystemMessage,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    Usage,
    UserMessage,
)
from tests.agents.dialects import ID, captured, command, flags, read, result_of, shape


def test_all_that_codex_can_be_asked_for_is_on_its_command_line() -> None:
    made = command(
        CodexRuntime,
        agent={"model": "m", "base_url": "http://here:1/v1", "effort": "high", "args": ["--x"]},
        append_system_prompt='Say "hi"',
        json_schema={"type": "object"},
        resume=ID,
    )

    assert made.argv[:5] == ("codex", "exec", "resume", "--json", "--skip-git-repo-check")
    assert made.argv[-4:] == ("--output-schema=/container-runner/sessions/schema.json", "--x", ID, "-")
    assert [word for word in made.argv if "=" in word][:-1] == [
        "check_for_update_on_startup=false",
        "analytics.enabled=false",
        'model="m"',
        'model_reasoning_effort="high"',
        r'developer_instructions="Say \"hi\""',
        'model_provider="own"',
        'model_providers.own.name="own"',
        'model_providers.own.base_url="http://here:1/v1"',
        'model_providers.own.env_key="CODEX_API_KEY"',
        'model_providers.own.wire_api="responses"',
    ]
    assert made.files == {"/container-runner/sessions/schema.json": '{"type": "object"}'}
    assert (made.env, made.kept) == ({"CODEX_HOME": "/container-runner/sessions"}, ("sessions",))


def test_the_prompt_is_on_stdin_and_on_the_host_codex_keeps_its_own_sandbox() -> None:
    made = command(CodexRuntime, prompt="--help " + "x" * 200_000)
    assert made.stdin == b"--help " + b"x" * 200_000
    assert made.argv[-1] == "-"

    bypass = "--dangerously-bypass-approvals-and-sandbox"
    assert bypass in made.argv
    on_host = command(CodexRuntime, contained=False)
    assert bypass not in on_host.argv
    assert on_host.env == {}


def test_a_fork_has_a_verb_of_its_own() -> None:
    assert flags(CodexRuntime, resume=ID, fork=True)[:2] == ["exec", "fork"]


@pytest.mark.parametrize(
    ("agent", "others", "name"),
    [
        ({"max_turns": 3}, {}, "max_turns"),
        ({"system_prompt": "x"}, {}, "system_prompt"),
        ({"permission_mode": "plan"}, {}, "permission_mode"),
        ({"tools": ()}, {}, "tools"),
        ({"mcp_servers": {"x": {}}}, {}, "mcp_servers"),
        ({}, {"max_budget_usd": 1.0}, "max_budget_usd"),
        ({}, {"session_id": ID}, "session_id"),
        ({}, {"include_partial_messages": True}, "include_partial_messages"),
    ],
)
def test_what_codex_has_nothing_for_is_refused_by_name(
    agent: dict[str, Any], others: dict[str, Any], name: str
) -> None:
    with pytest.raises(ConfigError, match=f"codex has nothing for {name}, and would ignore it; leave it out"):
        flags(CodexRuntime, agent=agent, **others)


def test_what_a_real_one_has_said_becomes_messages() -> None:
    messages = read(CodexRuntime, captured("codex"))

    assert shape(messages) == [
        *(SystemMessage, SystemMessage, [ThinkingBlock], [ToolUseBlock], [ToolResultBlock], [ThinkingBlock]),
        *([TextBlock], ResultMessage),
    ]
    begin, warning, _, call, told, *_, end = messages
    assert isinstance(begin, SystemMessage)
    assert begin.is_init
    assert begin.session_id == "01a21ae6-ae51-7733-8117-2510a46baad9"
    assert isinstance(warning, SystemMessage)
    assert warning.data["message"].startswith("Model metadata for `fake-model` not found.")
    assert isinstance(call, AssistantMessage)
    assert call.content == [
        ToolUseBlock(id="item_2", name="Bash", input={"command": "/bin/bash -lc 'echo hi > f.txt; cat f.txt'"})
    ]
    assert isinstance(told, UserMessage)
    assert told.content == [ToolResultBlock(tool_use_id="item_2", content="hi\n")]
    assert isinstance(end, ResultMessage)
    assert (end.result, end.is_error, end.num_turns, end.total_cost_usd) == ("All done.", False, None, None)
    assert end.usage == Usage(input_tokens=180, cache_read_input_tokens=20, output_tokens=40)
    assert end.original == json.loads(captured("codex")[-1])
    assert CodexRuntime().outcome(end, 0, "") is None


def test_what_a_session_has_used_before_is_not_counted_again() -> None:
    """It counts from the thread's start, and does not say what it had used by then."""
    assert result_of(read(CodexRuntime, captured("codex"), resume=ID)).usage is None


def test_a_reconnection_is_not_the_end() -> None:
    said = "Reconnecting... 2/5 (unexpected status 401 Unauthorized: no, url: http://x)"
    (retry,) = read(CodexRuntime, [{"type": "error", "message": said}])

    assert isinstance(retry, ApiRetryMessage)
    assert (retry.attempt, retry.max_retries, retry.error_status) == (2, 5, 401)
    assert retry.error == "authentication_failed"
    assert retry.original == {"type": "error", "message": said}


def test_a_tool_that_starts_and_ends_on_one_line_is_a_call_and_a_result() -> None:
    item = {"type": "file_change", "id": "i", "changes": [{"path": "a.py", "kind": "add"}], "status": "completed"}
    call, told = read(CodexRuntime, [{"type": "item.completed", "item": item}])

    assert isinstance(call, AssistantMessage)
    assert call.content[0].name == "Edit"  # type: ignore[union-attr]  # a call
    assert isinstance(told, UserMessage)
    assert told.content == [ToolResultBlock(tool_use_id="i", content="add a.py")]


def test_an_answer_in_a_shape_is_data_too() -> None:
    lines = [
        {"type": "item.completed", "item": {"id": "1", "type": "agent_message", "text": '{"sum": 4}'}},
        {"type": "turn.completed", "usage": {}},
    ]

    assert result_of(read(CodexRuntime, lines, json_schema={"type": "object"})).structured_output == {"sum": 4}
    assert result_of(read(CodexRuntime, lines)).structured_output is None


@pytest.mark.parametrize(
    ("message", "kind", "told"),
    [
        ("unexpected status 401 Unauthorized: no, url: http://x", AuthenticationError, "status 401"),
        ("Missing environment variable: `CODEX_API_KEY`.", AuthenticationError, "CODEX_API_KEY"),
        ("Codex ran out of room in the model's context window.", PromptRefusedError, "ran out of room"),
        ('{"error": {"message": "scripted 400", "code": 400}}', AgentFailedError, "codex failed: scripted 400"),
    ],
)
def test_its_failures_have_their_kinds(message: str, kind: type, told: str) -> None:
    result = result_of(read(CodexRuntime, [{"type": "turn.failed", "error": {"message": message}}]))

    error = CodexRuntime().outcome(result, 1, "")

    assert error is not None
    assert type(error) is kind
    assert told in error.message
    if kind is AuthenticationError:
        assert "CODEX_API_KEY" in error.next_step


def test_a_session_that_is_not_there_is_told_on_stderr() -> None:
    stderr = f"Error: thread/resume: thread/resume failed: no rollout found for thread id {ID} (code -32600)"

    assert isinstance(CodexRuntime().outcome(None, 1, stderr), SessionNotFoundError)
    assert isinstance(CodexRuntime().outcome(None, 0, ""), IncompleteOutputError)
