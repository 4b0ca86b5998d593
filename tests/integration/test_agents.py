"""The real agents in a container, end to end, against stand-ins for their APIs in the same container.

claude has a file of its own. A line in `AGENTS` is all that another agent needs.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

from container_runner import (
    AgentRuntime,
    AssistantMessage,
    CodexRuntime,
    ContainerRunner,
    CopilotRuntime,
    ExecuteOptions,
    GeminiRuntime,
    Message,
    OpenCodeRuntime,
    QwenRuntime,
    ResultMessage,
    SystemMessage,
    ToolResultBlock,
    ToolUseBlock,
    UserMessage,
    tool,
)
from tests.integration.engines import RealEngine
from tests.integration.images import STAND_IN
from tests.integration.runs import ON_DOCKER, ON_OWN_ROOTFUL, Box, collect, error_of, said

pytestmark = [pytest.mark.claude, ON_OWN_ROOTFUL]


@attrs.frozen
class Given:
    """What an agent is run with."""

    runtime: type[AgentRuntime]

    key: str
    """The variable with its key."""

    base_url: str = f"{STAND_IN}/v1"
    model: str = "stand-in"

    unknown: str = "01a21ae6-ae51-7733-8117-2510a46baad9"
    """The id of a session that there is not."""

    reports_cost: bool = False

    @property
    def carries(self) -> frozenset[str]:
        return self.runtime.carries


AGENTS = {
    "codex": Given(CodexRuntime, "CODEX_API_KEY"),
    "opencode": Given(
        OpenCodeRuntime, "OPENAI_API_KEY", model="own/stand-in", unknown="ses_de5191815ffe0cvyb5vvaVajek"
    ),
    "gemini": Given(GeminiRuntime, "GEMINI_API_KEY", base_url=STAND_IN, model="gemini-2.5-flash"),
    "qwen": Given(QwenRuntime, "OPENAI_API_KEY"),
    "copilot": Given(CopilotRuntime, "COPILOT_PROVIDER_API_KEY"),
}

KIND = pytest.mark.parametrize("kind", AGENTS)


@pytest.fixture
def box(engine: RealEngine, workspace: Path, agents_image: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> Box:
    monkeypatch.setenv(AGENTS[kind].key, "any-word-will-do")
    return Box.make(engine, workspace)


def runner_of(box: Box, kind: str, **fields: Any) -> ContainerRunner:
    fields = {"image": box.engine.images.agents, "credentials": "env", "memory": "4g", **fields}
    return box.runner(AGENTS[kind].runtime(f"{kind}-offline"), **fields)


def options_of(box: Box, kind: str, prompt: str, **fields: Any) -> ExecuteOptions:
    options = box.options(prompt, **fields)
    given = AGENTS[kind]
    return attrs.evolve(options, agent=attrs.evolve(options.agent, model=given.model, base_url=given.base_url))


def ask(box: Box, kind: str, prompt: str, **fields: Any) -> list[Message]:
    return collect(runner_of(box, kind), options_of(box, kind, prompt, **fields))


def result_in(messages: list[Message]) -> ResultMessage:
    (result,) = (message for message in messages if isinstance(message, ResultMessage))
    assert not result.is_error, result
    assert error_of(messages) is None, messages
    return result


@KIND
def test_it_changes_a_file_and_goes_on_with_what_was_said(box: Box, kind: str) -> None:
    """One event model: whoever reads this does not see which agent it was."""
    messages = ask(box, kind, "bash: echo hi >made.txt; cat made.txt")

    first = next(message for message in messages if isinstance(message, SystemMessage))
    assert first.is_init
    assert first.session_id
    calls = [block for it in messages if isinstance(it, AssistantMessage) for block in it.content]
    (call,) = (block for block in calls if isinstance(block, ToolUseBlock))
    assert "echo hi" in str(call.input["command"])
    given = [block for it in messages if isinstance(it, UserMessage) for block in it.content]
    (gave,) = (block for block in given if isinstance(block, ToolResultBlock))
    assert (gave.tool_use_id, gave.is_error) == (call.id, False)
    assert "hi" in gave.text
    assert (box.workspace / "made.txt").read_text() == "hi\n"
    assert (box.workspace / "made.txt").stat().st_uid == box.engine.owner[0]
    result = result_in(messages)
    assert "hi" in result.result
    assert result.session_id == first.session_id
    assert result.usage is None or (result.usage.input_tokens, result.usage.cache_read_input_tokens) == (180, 20)
    assert (result.total_cost_usd is not None) is AGENTS[kind].reports_cost

    again = ask(box, kind, "say: two", resume=result.session_id)

    assert said(again)[-1].strip() == "two"
    assert result_in(again).session_id == result.session_id
    if "fork" in AGENTS[kind].carries:
        fork = result_in(ask(box, kind, "say: three", resume=result.session_id, fork=True))
        assert fork.session_id not in ("", result.session_id)
    assert box.containers() == []


@KIND
@ON_DOCKER  # no engine has a part in it
def test_what_fails_fails_with_its_own_kind(box: Box, kind: str) -> None:
    unknown = error_of(ask(box, kind, "say: x", resume=AGENTS[kind].unknown))
    assert unknown is not None
    assert unknown.kind == "session_not_found", unknown

    key = error_of(ask(box, kind, "error: 401"))
    assert key is not None
    assert key.kind == "auth", key
    assert AGENTS[kind].key in key.next_step

    refused = error_of(ask(box, kind, "error: 400"))
    assert refused is not None
    assert refused.kind == "agent_failed", refused
    assert "scripted 400" in refused.message
    assert box.containers() == []


@KIND
@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_leaving_while_a_tool_runs_leaves_nothing(box: Box, kind: str) -> None:
    """In a kept container, where no kernel ends the tools with the container: they have sessions of their own."""
    runner = runner_of(box, kind, ephemeral=False)
    prompt = "bash: touch started; tail -f /dev/null"

    with anyio.fail_after(120):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(runner.run, options_of(box, kind, prompt))
            while not (box.workspace / "started").exists():
                await anyio.sleep(0.1)
            tasks.cancel_scope.cancel()

    (container,) = box.containers()
    processes = box.engine.run("exec", container, "ps", "-eo", "args").stdout
    assert "ps -eo args" in processes
    assert "tail" not in processes
    assert kind not in processes.replace(box.engine.images.agents, "")
    box.engine.remove(container)


ACTS = "#!/bin/sh\ntouch /workspace/acted-$1\nexec cat\n"

SETTINGS = {
    "mcpServers": {"theirs": {"command": "/workspace/act", "args": ["server"]}},
    "mcp": {"allowed": []},
}
HOOKS = {
    "disableAllHooks": False,
    "hooks": {"SessionStart": [{"hooks": [{"type": "command", "command": "/workspace/act hook"}]}]},
}
WORKSPACES = {
    "gemini": {".gemini/settings.json": json.dumps(SETTINGS)},
    "qwen": {".qwen/settings.json": json.dumps({**SETTINGS, **HOOKS})},
}
"""What somebody else's folder has for each."""


@pytest.mark.parametrize("kind", WORKSPACES)
@ON_DOCKER  # no engine has a part in it
def test_what_a_workspace_would_start_is_not_started(box: Box, kind: str) -> None:
    for name, text in {"act": ACTS, **WORKSPACES[kind]}.items():
        path = box.workspace / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    for path in box.workspace.rglob("*"):
        os.chown(path, *box.engine.owner)

    result = result_in(ask(box, kind, "bash: echo done"))

    assert "done" in result.result
    assert sorted(path.name for path in box.workspace.glob("acted-*")) == []
    assert box.containers() == []


LOOK = "bash: grep -o 'word of the [h]ost' /tmp/requests.jsonl | head -1"

CALLS = {
    "codex": LOOK,  # it groups its tools in a way that the stand-in can not call
    "qwen": LOOK,  # its model has to search for them first
    "opencode": 'tool: container_runner_whisper {"word": "word of the host"}',
    "gemini": 'tool: mcp_container_runner_whisper {"word": "word of the host"}',
    "copilot": 'tool: container_runner-whisper {"word": "word of the host"}',
}
"""How each calls a tool of the caller's, or tells that its model was told of it."""


@tool
async def whisper(word: str) -> str:
    """Say a word of the host, and who says it."""
    return f"{word} from {os.getpid()}"


@pytest.mark.parametrize("kind", CALLS)
@ON_DOCKER  # no engine has a part in it
def test_it_calls_functions_of_the_callers_without_a_network(box: Box, kind: str) -> None:
    runner = runner_of(box, kind, network="none", tools=[whisper])
    messages = collect(runner, options_of(box, kind, CALLS[kind]))

    assert "word of the host" in (said := result_in(messages).result), messages
    assert CALLS[kind] == LOOK or f"from {os.getpid()}" in said
    assert box.containers() == []
