"""The real agents in a container, end to end, against stand-ins for their APIs in the same container.

claude has a file of its own. A line in `AGENTS` is all that another agent needs.

To start one of these takes seconds. So what makes them do their work is tried on both engines, and what no engine has a
part in on one of them, which is not the same for all agents.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
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
from tests.integration.runs import Box, collect, error_of, messages_of

pytestmark = pytest.mark.claude

LOOK = "bash: grep -o 'word of the [h]ost' /tmp/requests.jsonl | head -1"


@attrs.frozen
class Given:
    """What an agent is run with."""

    runtime: type[AgentRuntime]

    key: str
    """The variable with its key."""

    engine: str
    """The one on which all of it is tried; on the other one it is the work alone."""

    base_url: str = f"{STAND_IN}/v1"
    model: str = "stand-in"

    unknown: str = "01a21ae6-ae51-7733-8117-2510a46baad9"
    """The id of a session that there is not."""

    call: str = LOOK
    """How its model calls a function of the caller's, or looks whether it was told of one: codex groups its tools in a
    way that the stand-in can not call, and qwen's model has to search for them first."""


WORD = '{"word": "word of the host"}'

AGENTS = {
    "codex": Given(CodexRuntime, "CODEX_API_KEY", "podman"),
    "opencode": Given(
        OpenCodeRuntime,
        "OPENAI_API_KEY",
        "docker",
        model="own/stand-in",
        unknown="ses_de5191815ffe0cvyb5vvaVajek",
        call=f"tool: container_runner_whisper {WORD}",
    ),
    "gemini": Given(
        GeminiRuntime,
        "GEMINI_API_KEY",
        "docker",
        base_url=STAND_IN,
        model="gemini-2.5-flash",
        call=f"tool: mcp_container_runner_whisper {WORD}",
    ),
    "qwen": Given(QwenRuntime, "OPENAI_API_KEY", "podman"),
    "copilot": Given(
        CopilotRuntime, "COPILOT_PROVIDER_API_KEY", "podman", call=f"tool: container_runner-whisper {WORD}"
    ),
}

WRITE = "bash: echo hi >made.txt; cat made.txt"


def each_on(*, own: bool) -> pytest.MarkDecorator:
    """Each agent on its own engine, or on the other one."""
    other = {"docker": "podman", "podman": "docker"}
    engines = {kind: given.engine if own else other[given.engine] for kind, given in AGENTS.items()}
    pairs = [pytest.param(kind, engine, marks=pytest.mark.engine) for kind, engine in engines.items()]
    return pytest.mark.parametrize(("kind", "engine"), pairs, indirect=["engine"])


ON_ITS_OWN, ON_THE_OTHER = each_on(own=True), each_on(own=False)

SETTINGS = {
    "mcpServers": {"theirs": {"command": "/workspace/act", "args": ["server"]}},
    "mcp": {"allowed": []},
}
HOOKS = {
    "disableAllHooks": False,
    "hooks": {"SessionStart": [{"hooks": [{"type": "command", "command": "/workspace/act hook"}]}]},
}
ACT = "#!/bin/sh\ntouch /workspace/acted-$1\nexec cat\n"
THEIRS = {
    "gemini": {"act": ACT, ".gemini/settings.json": json.dumps(SETTINGS)},
    "qwen": {"act": ACT, ".qwen/settings.json": json.dumps({**SETTINGS, **HOOKS})},
}
"""What is in somebody else's workspace, and would be started there."""


@tool
async def whisper(word: str) -> str:
    """Say a word of the host, and who says it."""
    return f"{word} from {os.getpid()}"


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


def result_in(messages: list[Message]) -> ResultMessage:
    (result,) = (message for message in messages if isinstance(message, ResultMessage))
    assert not result.is_error, result
    assert error_of(messages) is None, messages
    return result


@ON_THE_OTHER
def test_it_changes_a_file(box: Box, kind: str) -> None:
    """And starts nothing that its workspace names."""
    put(box, THEIRS.get(kind, {}))

    messages = collect(runner_of(box, kind), options_of(box, kind, WRITE))

    session, (call,) = worked(box, messages)
    assert "hi" in call.text
    assert result_in(messages).session_id == session
    assert "hi" in result_in(messages).result
    assert [*box.workspace.glob("acted-*")] == []
    assert box.containers() == []


@ON_ITS_OWN
def test_it_is_cut_and_goes_on_and_fails_with_its_own_kind(box: Box, kind: str) -> None:
    """In a kept container, where no kernel ends the tools with the container: they have sessions of their own.

    There is no network, and functions of the caller's are called.
    """
    given, runner = AGENTS[kind], runner_of(box, kind, ephemeral=False, tools=[whisper])

    def ask(prompt: str, **fields: Any) -> list[Message]:
        return collect(runner, options_of(box, kind, prompt, **fields))

    unknown = error_of(ask("say: x", resume=given.unknown))
    assert unknown is not None
    assert unknown.kind == "session_not_found", unknown

    session = anyio.run(cut_at_work, box, runner, kind, backend="trio")

    (container,) = box.containers()
    processes = box.engine.run("exec", container, "ps", "-eo", "args").stdout
    assert "ps -eo args" in processes
    assert "tail" not in processes
    assert kind not in processes.replace(box.engine.images.agents, "")

    again = ask(f"{WRITE}\n{given.call}", resume=session)

    resumed, (_, called) = worked(box, again)
    assert resumed == result_in(again).session_id == session
    assert "word of the host" in called.text
    assert (f"from {os.getpid()}" in called.text) is (given.call != LOOK)
    assert "word of the host" in result_in(again).result

    fork = {"resume": session, "fork": True} if "fork" in given.runtime.carries else {}
    messages = ask("error: 400", **fork)
    refused = error_of(messages)
    assert refused is not None
    assert refused.kind == "agent_failed", refused
    assert "scripted 400" in refused.message
    assert first_of(messages).session_id not in ("", session)

    key = error_of(ask("error: 401"))
    assert key is not None
    assert key.kind == "auth", key
    assert given.key in key.next_step
    assert box.containers() == [container]
    box.engine.remove(container)


async def cut_at_work(box: Box, runner: ContainerRunner, kind: str) -> str:
    """Leave a run whose tool is at work, and tell its session."""
    seen: list[str] = []

    async def read() -> None:
        async with messages_of(runner, options_of(box, kind, "bash: touch started; tail -f /dev/null")) as messages:
            async for message in messages:
                if isinstance(message, SystemMessage) and message.is_init:
                    seen.append(message.session_id)

    with anyio.fail_after(120):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            while not (box.workspace / "started").exists():
                await anyio.sleep(0.1)
            tasks.cancel_scope.cancel()
    (session,) = seen
    return session


def worked(box: Box, messages: list[Message]) -> tuple[str, list[ToolResultBlock]]:
    """See that it has done what `WRITE` says, as every agent tells it; its session, and what its tools gave back."""
    calls = [block for it in messages if isinstance(it, AssistantMessage) for block in it.content]
    asked = [block for block in calls if isinstance(block, ToolUseBlock)]
    told = [block for it in messages if isinstance(it, UserMessage) for block in it.content]
    gave = [block for block in told if isinstance(block, ToolResultBlock)]
    assert "echo hi" in str(asked[0].input["command"])
    assert [(block.tool_use_id, block.is_error) for block in gave] == [(block.id, False) for block in asked]
    assert (box.workspace / "made.txt").read_text() == "hi\n"
    assert (box.workspace / "made.txt").stat().st_uid == box.engine.owner[0]
    result, answers = result_in(messages), len(asked) + 1
    if result.usage is not None:
        assert result.usage.input_tokens == 90 * answers
        assert result.usage.cache_read_input_tokens == 10 * answers
    assert result.total_cost_usd is None
    return first_of(messages).session_id, gave


def put(box: Box, files: Mapping[str, str]) -> None:
    """Write files into the workspace, as its owner's."""
    for name, text in files.items():
        path = box.workspace / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    for path in box.workspace.rglob("*"):
        os.chown(path, *box.engine.owner)


def first_of(messages: list[Message]) -> SystemMessage:
    first = next(message for message in messages if isinstance(message, SystemMessage))
    assert first.is_init
    return first
