"""opencode: how it is started, what its lines mean, and how its end is judged."""

from __future__ import annotations

import json
from typing import Any

import pytest

from container_runner.agents import OpenCodeRuntime
from container_runner.errors import (
    AgentFailedError,
    AuthenticationError,
    ConfigError,
    IncompleteOutputError,
    SessionNotFoundError,
)
from container_runner.stream.messages import (
    AssistantMessage,
    ResultMessage,
    SystemMessage,
    TextBlock,
    ToolResultBlock,
    ToolUseBlock,
    Usage,
)
from tests.agents.dialects import captured, command, flags, read, result_of, shape

MODEL = {"model": "anthropic/claude-x"}
SESSION = "ses_de5191815ffe0cvyb5vvaVajek"


def test_all_that_opencode_can_be_asked_for_is_on_its_command_line_or_in_its_configuration() -> None:
    agent = {"model": "own/m", "base_url": "http://here:1/v1", "args": ["--x"]}
    made = command(OpenCodeRuntime, agent=agent, resume=SESSION, fork=True)

    assert made.argv == (
        *("opencode", "run", "--format=json", "--thinking", "--auto", "--model=own/m", f"--session={SESSION}"),
        *("--fork", "--x"),
    )
    assert json.loads(made.env["OPENCODE_CONFIG_CONTENT"]) == {
        "autoupdate": False,
        "share": "disabled",
        "model": "own/m",
        "permission": {"*": "allow"},
        "provider": {
            "own": {
                "npm": "@ai-sdk/openai-compatible",
                "options": {"baseURL": "http://here:1/v1", "apiKey": "{env:OPENAI_API_KEY}"},
                "models": {"m": {}},
            }
        },
    }
    assert made.env["OPENCODE_DB"] == "/container-runner/sessions/db/opencode.db"
    assert (made.kept, made.credentials.names) == (("db",), ("OPENAI_API_KEY",))


def test_mcp_servers_are_written_as_opencode_has_them() -> None:
    there = {"type": "http", "url": "http://here:1/mcp", "headers": {"Authorization": "Bearer ${KEY}"}}
    servers = {"there": there, "here": {"command": "serve", "args": ["--x"], "env": {"A": "${B}"}}}
    made = command(OpenCodeRuntime, agent={**MODEL, "mcp_servers": servers})

    assert json.loads(made.env["OPENCODE_CONFIG_CONTENT"])["mcp"] == {
        "there": {
            "type": "remote",
            "url": "http://here:1/mcp",
            "headers": {"Authorization": "Bearer {env:KEY}"},
            "oauth": False,
        },
        "here": {"type": "local", "command": ["serve", "--x"], "environment": {"A": "{env:B}"}},
    }
    with pytest.raises(ConfigError, match="odd"):
        command(OpenCodeRuntime, agent={**MODEL, "mcp_servers": {"odd": {}}})


def test_on_the_host_it_asks_as_it_is_configured() -> None:
    made = command(OpenCodeRuntime, contained=False, agent=MODEL)

    assert "--auto" not in made.argv
    assert made.env.keys() == {"OPENCODE_CONFIG_CONTENT"}
    assert "permission" not in json.loads(made.env["OPENCODE_CONFIG_CONTENT"])


def test_only_the_key_of_the_models_provider_is_given_to_it() -> None:
    assert command(OpenCodeRuntime, agent=MODEL).credentials.names == ("ANTHROPIC_API_KEY",)
    assert command(OpenCodeRuntime, agent={"model": "unheard-of/x"}).credentials.names == ()


@pytest.mark.parametrize("model", [None, "claude-x", "/x", "anthropic/"])
def test_a_model_without_its_provider_is_refused(model: str | None) -> None:
    with pytest.raises(ConfigError, match="a provider and its model"):
        flags(OpenCodeRuntime, agent={"model": model})


def test_a_prompt_is_on_stdin_and_what_opencode_has_nothing_for_is_refused() -> None:
    assert command(OpenCodeRuntime, prompt="-x" * 100_000, agent=MODEL).stdin == b"-x" * 100_000
    with pytest.raises(ConfigError, match="opencode has nothing for max_turns"):
        flags(OpenCodeRuntime, agent={**MODEL, "max_turns": 3})


def test_what_a_real_one_has_said_becomes_messages_and_its_end_the_result() -> None:
    messages = read(OpenCodeRuntime, captured("opencode"), agent=MODEL)

    assert shape(messages) == [SystemMessage, [ToolUseBlock], [ToolResultBlock], [TextBlock], ResultMessage]
    begin, call, *_, answer, end = messages
    assert isinstance(begin, SystemMessage)
    assert begin.session_id == SESSION
    assert isinstance(call, AssistantMessage)
    assert call.content == [
        ToolUseBlock(
            id="call_1",
            name="bash",
            input={"command": "echo hi > f.txt; cat f.txt", "description": "write", "is_background": False},
        )
    ]
    assert isinstance(answer, AssistantMessage)
    assert answer.message_id.startswith("msg_")
    assert isinstance(end, ResultMessage)
    assert (end.result, end.is_error, end.num_turns, end.session_id) == ("All done.", False, 2, SESSION)
    assert end.usage == Usage(input_tokens=180, cache_read_input_tokens=20, output_tokens=40)
    assert end.total_cost_usd is None, "0 is what it says of a model whose price it does not know"
    assert OpenCodeRuntime().outcome(end, 0, "") is None


def step(reason: str, **more: Any) -> dict[str, Any]:
    return {"type": "step_finish", "sessionID": "ses_1", "part": {"reason": reason, **more}}


def test_tokens_and_cost_are_those_of_all_steps_and_thoughts_are_output() -> None:
    tokens = {"input": 90, "output": 15, "reasoning": 5, "cache": {"write": 3, "read": 10}}
    lines = [step("tool-calls", tokens=tokens, cost=0.25), step("stop", tokens=tokens, cost=0.5)]

    end = result_of(read(OpenCodeRuntime, lines, agent=MODEL))

    assert end.usage == Usage(
        input_tokens=180, output_tokens=40, cache_read_input_tokens=20, cache_creation_input_tokens=6
    )
    assert end.total_cost_usd == 0.75


def test_one_that_ends_at_work_has_given_no_result() -> None:
    assert read(OpenCodeRuntime, [step("tool-calls")], agent=MODEL)[-1].type == "system"
    assert isinstance(OpenCodeRuntime().outcome(None, 0, ""), IncompleteOutputError)


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (
            {"name": "APIError", "data": {"message": "no", "statusCode": 401}},
            AuthenticationError,
            "opencode failed: no",
        ),
        ({"name": "ProviderAuthError", "data": {"message": "no key"}}, AuthenticationError, "no key"),
        (
            {"name": "APIError", "data": {"message": "scripted 400", "statusCode": 400}},
            AgentFailedError,
            "scripted 400",
        ),
        ({"name": "UnknownError", "data": {"message": "odd"}}, AgentFailedError, "UnknownError: odd"),
    ],
)
def test_its_failures_have_their_kinds(error: dict[str, Any], kind: type, told: str) -> None:
    line = {"type": "error", "sessionID": "ses_1", "error": error}
    result = result_of(read(OpenCodeRuntime, [line], agent=MODEL))

    failure = OpenCodeRuntime().outcome(result, 1, "")

    assert failure is not None
    assert type(failure) is kind
    assert told in failure.message
    if kind is AuthenticationError:
        assert "OPENAI_API_KEY" in failure.next_step


def test_a_session_that_is_not_there_is_told_on_stderr() -> None:
    error = OpenCodeRuntime().outcome(None, 1, "\x1b[91m\x1b[1mError: \x1b[0mSession not found")

    assert isinstance(error, SessionNotFoundError)
