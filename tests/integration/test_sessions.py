"""Live sessions with the real claude in a container, against a stand-in for the Messages API in there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from container_runner import (
    Agent,
    Allow,
    AssistantMessage,
    ContainerRunnerError,
    Deny,
    Hook,
    HookCall,
    PermissionRequest,
    Question,
    RequestRefusedError,
    Session,
    SystemMessage,
    ToolUseBlock,
    tool,
)
from tests.integration.engines import RealEngine
from tests.integration.runs import ON_OWN_ROOTFUL, Box
from tests.integration.test_claude import CLAUDE

pytestmark = pytest.mark.claude


@pytest.fixture
def anyio_backend(engine: RealEngine) -> str:
    """Each loop with one of the engines: what differs between loops is tested without one."""
    return "asyncio" if engine.name == "docker" else "trio"


@asynccontextmanager
async def session_of(box: Box, config: dict[str, Any] | None = None, **more: Any) -> AsyncIterator[Session]:
    fields = {name: more.pop(name) for name in ("permission_mode", "allowed_tools") if name in more}
    runner = box.runner(CLAUDE, image=box.engine.images.claude, credentials="env", **(config or {}))
    with anyio.fail_after(120):
        async with runner.open_session(Agent(name="tester", workspace=box.workspace, **fields), **more) as session:
            yield session


@ON_OWN_ROOTFUL
async def test_a_session_has_turns_and_the_agent_remembers(box: Box, anyio_backend: str) -> None:
    async with session_of(box) as session:
        first = await session.turn("bash: echo one >made.txt; cat made.txt")
        assert (box.workspace / "made.txt").read_text() == "one\n"
        second = await session.turn("say: two")

    assert first.text == "done: one"
    assert second.text == "two"
    assert not second.is_error
    assert box.containers() == []
    assert session.result.session_id == session.session_id
    assert session.result.text == "two"


@ON_OWN_ROOTFUL
async def test_what_the_agent_asks_is_allowed_or_denied(box: Box, anyio_backend: str) -> None:
    asked = []

    async def answer(ask: PermissionRequest | Question) -> Allow | Deny:
        assert isinstance(ask, PermissionRequest)
        asked.append((ask.tool_name, ask.input["command"]))
        return Deny(message="not that") if "no.txt" in ask.input["command"] else Allow()

    async with session_of(box, can_use_tool=answer) as session:
        allowed = await session.turn("bash: echo hi >yes.txt; cat yes.txt")
        denied = await session.turn("bash: echo hi >no.txt")

    assert asked == [("Bash", "echo hi >yes.txt; cat yes.txt"), ("Bash", "echo hi >no.txt")]
    assert allowed.text == "done: hi"
    assert [path.name for path in box.workspace.iterdir()] == ["yes.txt"]
    assert "not that" in denied.text


@ON_OWN_ROOTFUL
async def test_a_reader_answers_what_it_reads(box: Box, anyio_backend: str) -> None:
    async with session_of(box, permission_mode="default") as session:
        await session.send("bash: echo hi >yes.txt")
        async for said in session.receive():
            if isinstance(said, PermissionRequest):
                await session.answer(said, Allow())

    assert (box.workspace / "yes.txt").read_text() == "hi\n"


@ON_OWN_ROOTFUL
async def test_the_agent_calls_functions_of_ours(box: Box, anyio_backend: str) -> None:
    @tool
    def add(x: int, y: int = 2) -> int:
        """Add two numbers."""
        return x + y

    @tool
    async def fail() -> str:
        """Fail."""
        raise OSError("/secret/path of ours")

    async with session_of(box, tools=[add, fail]) as session:
        sum_ = await session.turn('tool: mcp__container_runner__add {"x": 40}')
        wrong = await session.turn('tool: mcp__container_runner__add {"x": "forty"}')
        failed = await session.turn("tool: mcp__container_runner__fail {}")

    assert sum_.text == "done: 42"
    assert "`int`" in wrong.text
    assert failed.text == "done: The tool has failed (OSError)."


@ON_OWN_ROOTFUL
async def test_hooks_of_ours_are_called_and_may_deny_a_tool(box: Box, anyio_backend: str) -> None:
    called = []

    async def note(call: HookCall) -> Deny | None:
        called.append((call.event, call.input.get("tool_name")))
        is_bad = call.event == "PreToolUse" and "no.txt" in call.input["tool_input"]["command"]
        return Deny(message="our hook says no") if is_bad else None

    hooks = [Hook("PreToolUse", note, "Bash"), *(Hook(event, note) for event in ("PostToolUse", "Stop", "SessionEnd"))]
    async with session_of(box, hooks=hooks) as session:
        done = await session.turn("bash: echo hi >yes.txt; cat yes.txt")
        denied = await session.turn("bash: echo hi >no.txt")

    assert done.text == "done: hi"
    assert "our hook says no" in denied.text
    assert [path.name for path in box.workspace.iterdir()] == ["yes.txt"]
    first = [("PreToolUse", "Bash"), ("PostToolUse", "Bash"), ("Stop", None)]
    assert called[:5] == [*first, ("PreToolUse", "Bash"), ("Stop", None)]


@ON_OWN_ROOTFUL
async def test_an_interrupt_ends_a_tool_and_the_session_goes_on(box: Box, anyio_backend: str) -> None:
    async with session_of(box) as session:
        await session.send("bash: echo up >up; tail -f /dev/null")
        while not (box.workspace / "up").exists():
            await anyio.sleep(0.05)
        with anyio.fail_after(15):
            await session.interrupt()
        cut = [said async for said in session.receive()]
        (container,) = box.containers()
        processes = box.engine.run("exec", container, "ps", "-eo", "args").stdout
        await session.set_model("another-model")
        after = await session.turn("say: still here")
        with pytest.raises(RequestRefusedError, match="refuses set_permission_mode"):
            await session.set_permission_mode("no such mode")

    assert "ps -eo args" in processes
    assert "tail -f" not in processes
    assert any(isinstance(said, AssistantMessage) for said in cut)
    assert after.text == "still here"
    models = [said.model for said in after.messages if isinstance(said, SystemMessage) and said.is_init]
    assert models == ["another-model"]
    assert box.containers() == []


@ON_OWN_ROOTFUL
@pytest.mark.parametrize("ephemeral", [True, False])
async def test_a_session_that_is_left_leaves_nothing(box: Box, anyio_backend: str, ephemeral: bool) -> None:
    with anyio.CancelScope() as scope:
        async with session_of(box, {"ephemeral": ephemeral}) as session:
            await session.send("bash: tail -f /dev/null")
            async for said in session:
                if isinstance(said, AssistantMessage) and any(isinstance(b, ToolUseBlock) for b in said.content):
                    scope.cancel()

    assert session.result.session_id == session.session_id
    if ephemeral:
        assert box.containers() == []
    else:
        (container,) = box.containers()
        processes = box.engine.run("exec", container, "ps", "-eo", "args").stdout
        assert "tail -f" not in processes
        assert not any(line.split()[:1] == ["cat"] for line in processes.splitlines()), processes


@ON_OWN_ROOTFUL
async def test_a_kept_container_serves_session_after_session(box: Box, anyio_backend: str) -> None:
    for number in ("one", "two"):
        async with session_of(box, {"ephemeral": False}) as session:
            assert (await session.turn(f"say: {number}")).text == number

    (container,) = box.containers()
    box.engine.remove(container)


@ON_OWN_ROOTFUL
async def test_a_session_that_is_not_there_is_told_as_such(box: Box, anyio_backend: str) -> None:
    options = box.options("", resume="00000000-0000-4000-8000-000000000000")
    runner = box.runner(CLAUDE, image=box.engine.images.claude, credentials="env")

    with pytest.raises(ContainerRunnerError) as caught, anyio.fail_after(60):
        async with runner.open_session(options):
            pytest.fail("it began")

    assert caught.value.kind == "session_not_found"
    assert box.containers() == []
