"""What the agents with dialects of their own have in common."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from container_runner.agents import KINDS as ALL
from container_runner.agents import (
    AgentRuntime,
    CodexRuntime,
    CopilotRuntime,
    GeminiRuntime,
    OpenCodeRuntime,
    QwenRuntime,
)
from container_runner.agents.agent import OPTIONS
from container_runner.agents.packages import PACKAGES
from container_runner.errors import (
    AgentFailedError,
    CommandNotExecutableError,
    ConfigError,
    IncompleteOutputError,
)
from container_runner.stream.messages import (
    AgentMessage,
    AssistantMessage,
    OutputLine,
    ResultMessage,
    SystemMessage,
    TextBlock,
    ToolResultBlock,
    ToolUseBlock,
    UnknownMessage,
    UserMessage,
)
from tests.agents.dialects import ID, KINDS, captured, command, flags, options, read, shape


@pytest.mark.parametrize(
    ("kind", "name"), [(GeminiRuntime, "gemini"), (QwenRuntime, "qwen"), (CopilotRuntime, "copilot")]
)
def test_what_a_real_one_has_said_becomes_the_same_messages_of_each(kind: type[AgentRuntime], name: str) -> None:
    messages = read(kind, captured(name))

    assert shape(messages) == [SystemMessage, [ToolUseBlock], [ToolResultBlock], [TextBlock], ResultMessage]
    begin, call, told, answer, end = messages
    assert isinstance(begin, SystemMessage)
    assert begin.is_init
    assert isinstance(call, AssistantMessage)
    assert isinstance(told, UserMessage)
    (use,), (given,) = call.content, told.content
    assert isinstance(use, ToolUseBlock)
    assert isinstance(given, ToolResultBlock)
    assert use.input["command"] == "echo hi > f.txt; cat f.txt"
    assert given.tool_use_id == use.id
    assert not given.is_error
    assert isinstance(answer, AssistantMessage)
    assert answer.text == "All done."
    assert isinstance(end, ResultMessage)
    assert not end.is_error
    assert end.result == "All done."
    assert re.fullmatch("[0-9a-f-]{36}", end.session_id)
    assert end.total_cost_usd is None
    assert end.original == json.loads(captured(name)[-1])
    assert kind().outcome(end, 0, "") is None


@pytest.mark.parametrize("kind", KINDS)
def test_the_prompt_is_on_stdin_alone(kind: type[AgentRuntime]) -> None:
    made = command(kind, prompt="--help " + "x" * 200_000)

    assert made.stdin == b"--help " + b"x" * 200_000
    assert not any("xxx" in word for word in made.argv)


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_container_none_asks_and_its_state_lies_in_the_sessions_folder(kind: type[AgentRuntime]) -> None:
    boxed, on_host = command(kind), command(kind, contained=False)

    assert {"--approval-mode=yolo", "--allow-all"} & {*boxed.argv}
    assert not {"--approval-mode=yolo", "--allow-all"} & {*on_host.argv}
    assert "/container-runner/sessions" in boxed.env.values()
    assert "/container-runner/sessions" not in on_host.env.values()
    assert on_host.files == {}
    assert boxed.kept is not None
    assert len(boxed.kept) == 1  # the transcripts alone


@pytest.mark.parametrize("kind", KINDS)
def test_permission_modes_that_it_has_not_are_refused(kind: type[AgentRuntime]) -> None:
    flags(kind, agent={"permission_mode": "plan"})
    with pytest.raises(ConfigError, match="permission_mode"):
        flags(kind, agent={"permission_mode": "dontAsk"})


@pytest.mark.parametrize("kind", [QwenRuntime, CopilotRuntime])
def test_no_tools_at_all_are_refused_by_those_that_would_take_it_for_all(kind: type[AgentRuntime]) -> None:
    assert any(word.endswith("=ls") for word in flags(kind, agent={"tools": ["ls"]}))
    with pytest.raises(ConfigError, match="would take no tools for all of them"):
        flags(kind, agent={"tools": []})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["resume", "session_id"])
def test_an_id_that_could_be_a_name_or_a_number_is_refused(kind: type[AgentRuntime], name: str) -> None:
    assert any(ID in word for word in flags(kind, **{name: ID}))
    for wrong in ("1", "latest", ID[:-1]):
        with pytest.raises(ConfigError, match="a UUID"):
            flags(kind, **{name: wrong})


@pytest.mark.parametrize("kind", [GeminiRuntime, CopilotRuntime])
def test_a_fork_is_refused_by_those_that_have_none(kind: type[AgentRuntime]) -> None:
    with pytest.raises(ConfigError, match="has nothing for fork"):
        flags(kind, resume=ID, fork=True)


@pytest.mark.parametrize("kind", KINDS)
def test_no_result_is_no_success_whatever_the_exit_code_says(kind: type[AgentRuntime]) -> None:
    """gemini and copilot end with 0 when they are told to stop."""
    assert isinstance(kind().outcome(None, 0, ""), IncompleteOutputError)


@pytest.mark.parametrize(
    ("kind", "stderr"),
    [  # as each says it in Node.js 18
        (GeminiRuntime, "SyntaxError: Invalid regular expression flags\n    at ModuleLoader.moduleStrategy (node:…)\n"),
        (QwenRuntime, "SyntaxError: The requested module 'node:fs' does not provide an export named 'openAsBlob'\n"),
    ],
)
def test_a_node_that_is_too_old_is_told(kind: type[AgentRuntime], stderr: str) -> None:
    error = kind().outcome(None, 1, stderr)

    assert isinstance(error, CommandNotExecutableError)
    assert error.next_step.endswith(f"container-runner image build {kind.kind}")
    assert isinstance(CopilotRuntime().outcome(None, 1, stderr), AgentFailedError)  # it has none of the image's


TYPES = (
    *("init", "message", "tool_use", "tool_result", "error", "result", "system", "assistant", "user", "stream_event"),
    *("user.message", "assistant.message", "assistant.message_delta", "assistant.reasoning", "assistant.idle"),
    *("thread.started", "item.started", "item.completed", "turn.completed", "turn.failed", "step_finish", "text"),
    *("tool.execution_start", "tool.execution_complete", "session.error", "session.warning"),
)
NAMES = (
    *("type", "role", "content", "delta", "status", "stats", "error", "message", "code", "subtype", "data", "event"),
    *("usage", "input_tokens", "output_tokens", "cached", "tool_id", "tool_name", "parameters", "output", "session_id"),
    *("toolRequests", "toolCallId", "arguments", "exitCode", "success", "result", "ephemeral", "aborted", "sessionId"),
    *(
        "item",
        "id",
        "text",
        "command",
        "exit_code",
        "part",
        "state",
        "metadata",
        "tokens",
        "cache",
        "cost",
        "sessionID",
    ),
    *("statusCode", "shellExecution", "parentToolCallId", "messageId", "model", "deltaContent", "duration_ms"),
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(("assistant", "success", *TYPES)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5),
    max_leaves=12,
)
LINES = st.lists(
    st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=6) | st.builds(dict, type=st.sampled_from(TYPES))
)


@pytest.mark.parametrize("kind", [*KINDS, CodexRuntime, OpenCodeRuntime])
@settings(max_examples=60)
@given(lines=LINES)
@example(lines=[{"type": "item.completed", "item": {"type": "mcp_tool_call", "result": {"content": 7}, "error": []}}])
@example(lines=[{"type": "item.completed", "item": {"type": "file_change", "id": [], "changes": 3}}])
@example(lines=[{"type": "turn.failed", "error": {"message": "[" * 5000}}, {"type": "turn.completed", "usage": "x"}])
@example(lines=[{"type": "step_finish", "part": {"tokens": [], "cost": {}}}, {"type": "error", "error": 7}])
@example(lines=[{"type": "error", "error": {"data": {"statusCode": "401", "message": {}}}}])
@example(lines=[{"type": "result", "status": "error", "error": 7, "stats": []}])
@example(lines=[{"type": "assistant", "message": {"usage": 3, "content": None}}, {"type": "result", "usage": "x"}])
@example(lines=[{"type": "assistant.message", "data": {"toolRequests": [1, {}, {"toolCallId": []}], "messageId": {}}}])
@example(lines=[{"type": "result", "exitCode": -(10**30), "usage": 1, "sessionId": None}])
def test_no_line_is_too_wrong(kind: type[AgentRuntime], lines: list[dict[str, Any]]) -> None:
    for message in read(kind, [json.dumps(line).encode() for line in lines], include_partial_messages=True):
        assert isinstance(message, AgentMessage | OutputLine)
        assert json.loads(message.to_json()) is not None
        if isinstance(message, ResultMessage):
            kind().outcome(message, 1, "")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_line_of_its_is_kept(kind: type[AgentRuntime]) -> None:
    noise, new, empty = read(kind, [b"npm warn", b"", b'{"type": "brand.new", "x": 1}', b"{}"])

    assert noise == OutputLine(b"npm warn")
    assert isinstance(new, UnknownMessage)
    assert new.raw == {"type": "brand.new", "x": 1}
    assert isinstance(empty, UnknownMessage)


def test_the_page_tells_what_each_can_be_asked_for() -> None:
    page = (Path(__file__).parents[2] / "docs/how-to/agents.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", page, re.MULTILINE)
    told = {name: [cell.strip() == "yes" for cell in cells.split("|")] for name, cells in rows}

    assert f"| option | {' | '.join(ALL)} |" in page
    assert told == {name: [name in kind.carries for kind in ALL.values()] for name in OPTIONS}


def test_each_kind_has_a_package_for_its_image() -> None:
    assert ALL.keys() == PACKAGES.keys()


TOLD = {
    "claude": '"Authorization": "Bearer ${TOKEN}"',
    "codex": 'mcp_servers.tools.bearer_token_env_var="TOKEN"',
    "copilot": '"Authorization": "Bearer ${TOKEN}"',
    "gemini": '"Authorization": "Bearer ${TOKEN}"',
    "opencode": '"Authorization": "Bearer {env:TOKEN}"',
    "qwen": '"Authorization": "Bearer ${TOKEN}"',
}


@pytest.mark.parametrize("name", ALL)
def test_each_is_told_of_a_server_and_of_the_variable_with_its_token(name: str) -> None:
    runtime = ALL[name]()
    asked = runtime.with_server(options(agent={"model": "own/m"}), "tools", "http://127.0.0.1:1/mcp/tools", "TOKEN")
    made = runtime.command(asked, contained=True)
    told = "\n".join([*made.argv, *made.env.values(), *made.files.values()])

    assert "http://127.0.0.1:1/mcp/tools" in told
    assert TOLD[name] in told
