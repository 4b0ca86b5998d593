"""Runtimes written in Python, in a container: plain ones, and one that is built on the real claude-agent-sdk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import anyio
import pytest

from container_runner import (
    AssistantMessage,
    PythonRuntime,
    SystemMessage,
    ToolUseBlock,
    UnknownMessage,
)
from tests.integration.engines import RealEngine
from tests.integration.images import agent_sdk
from tests.integration.runs import ON_OWN_ROOTFUL, Box, error_of, lines_of, result_of, said, tool_output

pytestmark = [pytest.mark.claude, ON_OWN_ROOTFUL]

PLAIN = """
import dataclasses, os, pathlib


@dataclasses.dataclass
class Finding:
    path: pathlib.Path
    line: int


class Reviewer:
    def __init__(self, deep=False):
        self.deep = deep

    async def execute(self, options):
        print("printed")
        yield f"{options.prompt} deep={self.deep} in {os.getcwd()} as {options.agent.workspace}"
        yield Finding(pathlib.Path(os.getcwd(), "a.py"), 3)
        pathlib.Path("written").write_text("by Python")
        try:
            open("/container-runner/python/0/reviewer.py", "a")
        except OSError as error:
            yield error.strerror
        if self.deep:
            raise RuntimeError("with " + os.environ["DEPLOY_TOKEN"])
"""

SDK = """
from claude_agent_sdk import ClaudeAgentOptions, create_sdk_mcp_server, query, tool


@tool("add", "Adds two numbers", {"a": float, "b": float})
async def add(args):
    return {"content": [{"type": "text", "text": f"the sum is {args['a'] + args['b']}"}]}


class Claude:
    async def execute(self, options):
        wanted = ClaudeAgentOptions(
            cli_path="/usr/local/bin/claude-offline",
            cwd=options.agent.workspace,
            permission_mode="bypassPermissions",
            env={"ENABLE_TOOL_SEARCH": "false"},  # offer the tool as it is
            mcp_servers={"mine": create_sdk_mcp_server("mine", tools=[add])},
        )
        try:
            async for message in query(prompt=options.prompt, options=wanted):
                yield message
        finally:
            open("/workspace/closed", "w").close()
"""


@pytest.fixture
def box(engine: RealEngine, workspace: Path, claude_image: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Box]:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "any-word")
    monkeypatch.setenv("DEPLOY_TOKEN", "s3cret-deploy-token")
    box = Box.make(engine, workspace)
    code = box.new_folder("code")
    (code / "reviewer.py").write_text(PLAIN)
    (code / "reviewer.py").chmod(0o666)  # so that it is the mount that keeps it
    (code / "on_sdk.py").write_text(SDK)
    yield box
    for container in box.containers():
        engine.remove(container)


def python(box: Box, factory: str, *more: Path, **arguments: object) -> PythonRuntime:
    return PythonRuntime(factory, python_path=[box.folder / "code", *more], arguments=arguments)


def test_what_it_yields_arrives_and_what_it_raises_is_told_without_secrets(box: Box) -> None:
    where = {"image": box.engine.images.claude, "secrets": ["DEPLOY_TOKEN"]}
    messages = box.run("look", python(box, "reviewer:Reviewer"), **where)

    assert error_of(messages) is None, messages
    assert lines_of(messages) == [b"look deep=False in /workspace as /workspace", b"Read-only file system"]
    assert [message.raw for message in messages if isinstance(message, UnknownMessage)] == [
        {"type": "Finding", "path": "/workspace/a.py", "line": 3}
    ]
    assert (box.workspace / "written").stat().st_uid == box.engine.owner[0]

    error = error_of(box.run("look", python(box, "reviewer:Reviewer", deep=True), **where))
    assert error is not None
    assert error.kind == "agent_failed"
    assert error.message.startswith("reviewer:Reviewer raised RuntimeError: with ")
    assert 'File "reviewer.py", line' in error.stderr
    assert "printed" in error.stderr
    assert "s3cret-deploy-token" not in error.message + error.stderr


def test_what_the_image_lacks_is_told(box: Box) -> None:
    lacking = error_of(box.run("p", python(box, "no_such:x"), image=box.engine.images.claude))
    without = error_of(box.run("p", python(box, "reviewer:Reviewer"), image=box.engine.images.tiny))

    assert lacking is not None
    assert lacking.message == "There is no Python module 'no_such' in the image."
    assert without is not None
    assert without.kind == "command_not_found"
    assert without.next_step.startswith("Install Python 3.11 or newer in the image")


def test_a_program_built_on_claude_agent_sdk(box: Box) -> None:
    messages = box.run(
        'bash: echo hi >made.txt; cat made.txt\ntool: mcp__mine__add {"a": 2, "b": 3}',
        python(box, "on_sdk:Claude", agent_sdk()),
        image=box.engine.images.claude,
        credentials="env",
        secrets=["ANTHROPIC_API_KEY"],
    )

    assert error_of(messages) is None, messages
    (first, *_) = (message for message in messages if isinstance(message, SystemMessage) and message.is_init)
    assert first.cwd == "/workspace"
    assert "mcp__mine__add" in first.tools
    calls = [block for message in messages if isinstance(message, AssistantMessage) for block in message.content]
    assert [call.name for call in calls if isinstance(call, ToolUseBlock)] == ["Bash", "mcp__mine__add"]
    assert tool_output(messages).split("\n") == ["hi", "the sum is 5"]
    assert said(messages)[-1] == "done: the sum is 5"
    usage = result_of(messages).usage
    assert usage is not None
    assert usage.output_tokens > 0
    assert (box.workspace / "made.txt").read_text() == "hi\n"
    assert (box.workspace / "closed").exists()
    assert box.containers() == []


def test_a_program_built_on_claude_agent_sdk_is_closed_when_it_is_stopped(box: Box) -> None:
    runner = box.runner(
        python(box, "on_sdk:Claude", agent_sdk()),
        image=box.engine.images.claude,
        secrets=["ANTHROPIC_API_KEY"],
    )

    async def stop_at_the_tool() -> None:
        async with aclosing(runner.execute(box.options("bash: touch begun; sleep 60", grace=20))) as messages:
            async for message in messages:
                if isinstance(message, AssistantMessage) and isinstance(message.content[0], ToolUseBlock):
                    break

    anyio.run(stop_at_the_tool)

    assert (box.workspace / "closed").exists()
    assert box.containers() == []
