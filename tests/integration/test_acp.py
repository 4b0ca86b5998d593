"""ACP agents in a container: a scripted one for what is ours, and real ones."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from container_runner import (
    Agent,
    AssistantMessage,
    ContainerRunner,
    ContainerRunnerError,
    ExecuteOptions,
    ResultMessage,
    Session,
    SystemMessage,
    ToolUseBlock,
    tool,
)
from container_runner.agents.acp import AcpRuntime
from container_runner.session.asks import Allow, Deny, PermissionRequest, Question
from tests.integration.engines import RealEngine
from tests.integration.images import STAND_IN, TESTS
from tests.integration.runs import ON_OWN_ROOTFUL, Box, collect, error_of, on, said, tool_output

pytestmark = ON_OWN_ROOTFUL

SCRIPTED = AcpRuntime("acp-agent", modes={"bypassPermissions": {"mode": "yolo"}, "default": {"mode": "ask"}})


@pytest.fixture
def box(engine: RealEngine, workspace: Path) -> Iterator[Box]:
    box = Box.make(engine, workspace)
    yield box
    for container in box.containers():
        engine.remove(container)


@asynccontextmanager
async def session_of(box: Box, **more: Any) -> AsyncIterator[Session]:
    with anyio.fail_after(100):
        async with box.runner(SCRIPTED).open_session(Agent(name="tester", workspace=box.workspace), **more) as session:
            yield session


def processes(box: Box) -> str:
    (container,) = box.containers()
    return box.engine.run("exec", container, "ps", "-eo", "args").stdout


async def no_deleting(ask: PermissionRequest | Question) -> Allow | Deny:
    assert isinstance(ask, PermissionRequest)
    return Deny() if "rm" in ask.input["command"] else Allow()


async def test_a_session_takes_a_container_of_the_pool(box: Box, anyio_backend: str) -> None:
    agent = Agent(name="tester", workspace=box.workspace)
    runner = box.runner(SCRIPTED)
    with anyio.fail_after(100):
        async with runner.warm(agent, size=1) as pool:
            while not len(pool):
                await anyio.sleep(0.05)
            (ready,) = box.containers()
            async with runner.open_session(agent) as session:
                assert ready in box.containers()
                turn = await session.turn("sh echo hi >made.txt; hostname")

    assert turn.text == f"done: {ready[:12]}"
    assert (box.workspace / "made.txt").read_text() == "hi\n"
    assert box.containers() == []


async def test_a_session_has_turns_and_asks_before_it_acts(box: Box, anyio_backend: str) -> None:
    async with session_of(box, can_use_tool=no_deleting) as session:
        first = await session.turn("say one")
        allowed = await session.turn("sh echo hi >made.txt; cat made.txt")
        denied = await session.turn("sh rm made.txt")
        long, broken = await session.turn("long"), await session.turn("broken")

    assert (first.text, allowed.text, long.text, broken.text) == ("one", "done: hi", "ok", "ok")
    assert (box.workspace / "made.txt").read_text() == "hi\n"
    assert denied.result is not None
    assert [denial["tool_input"] for denial in denied.result.permission_denials] == [{"command": "rm made.txt"}]
    assert max(len(json.dumps(each.raw)) for each in long.messages if hasattr(each, "raw")) > 600_000
    assert session.session_id == "s1"
    assert box.containers() == []


async def test_an_interrupt_ends_the_turn_and_a_session_that_is_left_its_tools(box: Box, anyio_backend: str) -> None:
    with anyio.CancelScope() as scope:
        async with session_of(box) as session:
            await at_work(session)
            assert "sleep 300" in processes(box)
            with anyio.fail_after(15):
                await session.interrupt()
            assert "sleep 300" not in processes(box)
            cut = [each async for each in session.receive() if isinstance(each, ResultMessage)]
            assert [each.stop_reason for each in cut] == ["cancelled"]
            assert (await session.turn("say still here")).text == "still here"
            await at_work(session)
            scope.cancel()

    assert scope.cancelled_caught
    assert box.containers() == []


async def at_work(session: Session) -> None:
    await session.send("slow")
    async for each in session:
        if isinstance(each, AssistantMessage) and any(isinstance(block, ToolUseBlock) for block in each.content):
            return


async def test_an_agent_that_dies_in_a_turn_ends_its_session(box: Box, anyio_backend: str) -> None:
    async def die() -> None:
        async with session_of(box) as session:
            await session.turn("die")

    with pytest.raises(ContainerRunnerError) as caught:
        await die()

    assert (caught.value.kind, caught.value.exit_code) == ("agent_failed", 3)
    assert box.containers() == []


@pytest.mark.parametrize("target", ["/workspace", "same"])
def test_one_prompt_is_a_run_as_any(box: Box, target: str) -> None:
    messages = collect(box.runner(SCRIPTED, workspace_target=target), box.options("sh echo hi >made.txt; cat made.txt"))

    assert error_of(messages) is None, messages
    assert said(messages) == ["done: hi"]
    start = next(each for each in messages if isinstance(each, SystemMessage) and each.is_init)
    assert start.cwd == (target if target == "/workspace" else str(box.workspace))
    assert tool_output(messages) == "hi"
    assert (box.workspace / "made.txt").read_text() == "hi\n"
    assert box.containers() == []


@pytest.mark.parametrize(
    ("prompt", "fields", "kind"),
    [("fail", {}, "auth"), ("die", {}, "agent_failed"), ("say x", {"resume": "s2"}, "session_not_found")],
)
def test_a_run_that_fails_says_why(box: Box, prompt: str, fields: dict[str, Any], kind: str) -> None:
    error = error_of(collect(box.runner(SCRIPTED), box.options(prompt, **fields)))

    assert error is not None
    assert error.kind == kind
    assert box.containers() == []


def test_a_run_goes_on_with_a_session_without_its_old_words(box: Box) -> None:
    assert said(collect(box.runner(SCRIPTED), box.options("say new", resume="s1"))) == ["new"]


@tool
async def whisper(word: str = "hello") -> str:
    """Say a word of the host, and who says it."""
    return f"{word} from {os.getpid()}"


@pytest.fixture
def tools_box(box: Box, agents_image: str) -> Box:
    """The scripted agent in an image that has what a gateway needs."""
    shutil.copy(TESTS / "images/acp-agent", box.workspace)
    return box


def runner_with_tools(box: Box, **fields: Any) -> ContainerRunner:
    runtime = AcpRuntime("/workspace/acp-agent", modes=SCRIPTED.modes)
    return box.runner(runtime, image=box.engine.images.agents, **fields)


async def test_a_session_calls_the_callers_functions(tools_box: Box, anyio_backend: str) -> None:
    agent = Agent(name="tester", workspace=tools_box.workspace)
    with anyio.fail_after(100):
        async with runner_with_tools(tools_box).open_session(agent, tools=[whisper]) as session:
            called = await session.turn("call whisper")
            leaked = await session.turn("leak")

    assert called.text == f"hello from {os.getpid()}"
    assert leaked.is_error
    see_that_the_token_is_hidden(tools_box)


def test_one_prompt_has_the_callers_functions_as_any_run(tools_box: Box) -> None:
    runner = runner_with_tools(tools_box, tools=[whisper], ephemeral=False)
    called = collect(runner, tools_box.options("call whisper"))
    leaked = error_of(collect(runner, tools_box.options("leak")))

    assert error_of(called) is None, called
    assert said(called) == [f"hello from {os.getpid()}"]
    assert leaked is not None
    see_that_the_token_is_hidden(tools_box, leaked.message)


def see_that_the_token_is_hidden(box: Box, *told: str) -> None:
    kept = "".join(path.read_text() for path in box.state.rglob("*") if path.is_file())
    for text in (*told, kept):
        assert all("AGENT_TOOLS_TOKEN" in word[:40] for word in text.split("my key is ")[1:]), text
    assert "my key is" in kept


KEYS = {
    "gemini": "GEMINI_API_KEY",
    "qwen": "OPENAI_API_KEY",
    "opencode": "OPENAI_API_KEY",
    "copilot": "COPILOT_PROVIDER_API_KEY",
}
LOOK = "bash: grep -o 'word of the [h]ost' /tmp/requests.jsonl | head -1"
"""Sees that the model was told of `whisper`, of an agent whose way to call it the stand-in does not have."""
CALLS = {
    "gemini": 'tool: mcp_container_runner_whisper {"word": "hello"}',
    "opencode": 'tool: container_runner_whisper {"word": "hello"}',
    "copilot": 'tool: container_runner-whisper {"word": "hello"}',
}
"""How the model calls `whisper`; qwen's would have to search for it first."""
MODELS = {"gemini": "gemini-2.5-flash", "opencode": "own/any-model"}


@on("docker")
@pytest.mark.claude
@pytest.mark.usefixtures("agents_image")
@pytest.mark.parametrize("name", ["gemini", "opencode", "copilot"])
def test_a_real_agent_on_docker(box: Box, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    has_its_session(box, name, monkeypatch)


@on("podman")
@pytest.mark.claude
@pytest.mark.usefixtures("agents_image")
@pytest.mark.parametrize("name", ["qwen", "copilot"])  # the engine carries bytes, and has no other part in it
def test_a_real_agent_on_podman(box: Box, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    has_its_session(box, name, monkeypatch)


def has_its_session(box: Box, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks, is allowed and refused, is interrupted with a tool at work, and goes on in a second container.

    There functions of the caller's are called.
    """
    monkeypatch.setenv(KEYS[name], "any-key-of-twenty-letters")
    runner = box.runner(AcpRuntime(f"{name}-offline", like=name), image=box.engine.images.agents, credentials="env")
    base_url = STAND_IN if name == "gemini" else f"{STAND_IN}/v1"
    agent = Agent(name="tester", workspace=box.workspace, model=MODELS.get(name, "any-model"), base_url=base_url)
    backend = "asyncio" if box.engine.is_docker else "trio"

    async def first() -> str:
        asked = []

        async def answer(ask: PermissionRequest | Question) -> Allow | Deny:
            assert isinstance(ask, PermissionRequest)
            asked.append(ask.input.get("command", ask.title))
            return Deny() if "no.txt" in asked[-1] else Allow()

        async with runner.open_session(agent, can_use_tool=answer) as session:
            allowed = await session.turn("bash: echo hi >yes.txt; cat yes.txt")
            denied = await session.turn("bash: echo hi >no.txt")
            await session.send("bash: echo up >up; tail -f /dev/null")
            while not (box.workspace / "up").exists():
                await anyio.sleep(0.05)
            with anyio.fail_after(20):
                await session.interrupt()
            cut = [each async for each in session.receive() if isinstance(each, ResultMessage)]
            with anyio.fail_after(10):
                while "tail -f" in processes(box):
                    await anyio.sleep(0.1)

        assert [command.partition(" [")[0] for command in asked][:2] == [
            "echo hi >yes.txt; cat yes.txt",
            "echo hi >no.txt",
        ]
        assert allowed.text == "done: hi" or "hi" in allowed.text
        assert denied.result is not None
        assert len(denied.result.permission_denials) == 1
        assert [each.stop_reason for each in cut] == ["cancelled"]
        assert not (box.workspace / "no.txt").exists()
        assert session.session_id is not None
        return session.session_id

    async def second(resume: str) -> str:
        again = ExecuteOptions(prompt="", agent=agent, resume=resume)
        async with runner.open_session(again, tools=[whisper]) as session:
            turn = await session.turn("bash: echo again >again.txt; cat again.txt")
            assert session.session_id == resume
            if name in CALLS:
                assert f"hello from {os.getpid()}" in (await session.turn(CALLS[name])).text
            refused = await session.turn("error: 401")
            assert refused.result is not None
            assert refused.is_error
            assert "401" in refused.result.errors[0]
            return turn.text

    resume = anyio.run(first, backend=backend)
    # gemini calls a session's file by the minute, and writes over one that it takes up in the minute of its beginning.
    for path in box.state.rglob(f"session-*-{resume[:8]}.jsonl"):
        path.rename(path.with_name(f"session-2026-01-01T00-00-{resume[:8]}.jsonl"))
    assert "again" in anyio.run(second, resume, backend=backend)
    assert (box.workspace / "again.txt").read_text() == "again\n"
    assert box.containers() == []


@on("podman")
@pytest.mark.claude
@pytest.mark.usefixtures("agents_image")
def test_codex_by_its_adapter(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks for nothing: in its other modes it wants a sandbox of its own, which no box lets it make."""
    monkeypatch.setenv("CODEX_API_KEY", "any-key-of-twenty-letters")
    runtime = AcpRuntime("codex-acp-offline", like="codex-acp")
    runner = box.runner(runtime, image=box.engine.images.agents, credentials="env")
    base_url = f"{STAND_IN}/v1"
    agent = Agent(name="tester", workspace=box.workspace, model="stand-in", base_url=base_url)

    async def work(prompt: str, resume: str | None = None) -> str | None:
        options = ExecuteOptions(prompt="", agent=agent, resume=resume)
        async with runner.open_session(options, tools=[whisper]) as session:
            assert (await session.turn("say: hello")).text == "hello"
            assert (await session.turn(prompt)).text.endswith("Output:\nhi\n")
            await session.send("bash: touch up; tail -f /dev/null")
            while not (box.workspace / "up").exists():
                await anyio.sleep(0.05)
            (box.workspace / "up").unlink()
            with anyio.fail_after(20):
                await session.interrupt()
            cut = [each async for each in session.receive() if isinstance(each, ResultMessage)]
            assert [each.stop_reason for each in cut] == ["cancelled"]
            assert "word of the host" in (await session.turn(LOOK)).text
            refused = await session.turn("error: 401")
            assert refused.is_error
            return session.session_id

    first = anyio.run(work, "bash: echo hi >made.txt; cat made.txt", backend="trio")
    assert (box.workspace / "made.txt").read_text() == "hi\n"
    assert anyio.run(work, "bash: cat made.txt", first, backend="trio") == first
    assert box.containers() == []
