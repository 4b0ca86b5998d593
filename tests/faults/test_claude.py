"""The real claude with a tool at work: however we stop, no process of it stays."""

from __future__ import annotations

import contextlib
import time

import anyio
import pytest

from container_runner import ClaudeRuntime, ToolUseBlock
from container_runner.stream.messages import AssistantMessage, Message
from tests.faults.scene import Scene, last
from tests.integration.engines import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.claude, pytest.mark.timeout(600)]

AT_WORK = "bash: tail -f /dev/null"
PROGRAM = "claude-offline"


def config(image: str, *, ephemeral: bool) -> dict[str, object]:
    return {"image": image, "ephemeral": ephemeral, "credentials": "env", "memory": "4g"}


def is_tool_use(message: Message) -> bool:
    return isinstance(message, AssistantMessage) and any(isinstance(b, ToolUseBlock) for b in message.content)


@pytest.mark.parametrize("ephemeral", [True, False], ids=["ephemeral", "persistent"])
@pytest.mark.parametrize("how", ["cancel", "timeout", "SIGKILL of us alone", "SIGKILL of our whole tree"])
def test_claude_is_stopped(
    scene: Scene, claude_image: str, ephemeral: bool, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "any")
    saw = "nothing"
    fields = config(claude_image, ephemeral=ephemeral)
    if how.startswith("SIGKILL"):
        victim = scene.victim(AT_WORK, program=PROGRAM, config=fields)
        victim.wait_for("assistant")
        wait_until(lambda: is_at_work(scene), seconds=60)
        assert is_at_work(scene)
        keep = [] if ephemeral else scene.containers()
        since = victim.kill(tree=how.endswith("tree"))
    else:
        timeout = 8.0 if how == "timeout" else None
        messages, since = anyio.run(stopped, scene, fields, timeout, backend=scene.loop)
        while timeout is not None and timeout < 200 and not any(map(is_tool_use, messages)):
            timeout *= 4  # a busy machine needs longer until the tool is at work
            messages, since = anyio.run(stopped, scene, fields, timeout, backend=scene.loop)
        keep = [] if ephemeral else scene.containers()
        saw = last(messages) if how == "timeout" else "cancelled"
        assert any(map(is_tool_use, messages))
    kind = "ephemeral" if ephemeral else "persistent"
    scene.settle(f"real claude with a tool at work, {how} ({kind})", saw, since=since, keep=keep)
    assert len(keep) == (not ephemeral)


def test_a_session_ends_with_us(scene: Scene, claude_image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "any")
    victim = scene.victim(AT_WORK, program=PROGRAM, config=config(claude_image, ephemeral=False), session=True)
    victim.wait_for("assistant")
    wait_until(lambda: is_at_work(scene), seconds=60)
    assert is_at_work(scene)
    keep = scene.containers()
    since = victim.kill(tree=False)
    scene.settle("real claude in a session, SIGKILL of us alone (persistent)", "nothing", since=since, keep=keep)
    assert len(keep) == 1


def test_a_program_on_claude_agent_sdk_leaves_nothing(
    scene: Scene, claude_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "any")
    victim = scene.victim(AT_WORK, program=PROGRAM, config=config(claude_image, ephemeral=True), sdk=True)
    victim.wait_for("AssistantMessage")
    wait_until(lambda: is_at_work(scene), seconds=60)
    assert is_at_work(scene)
    since = victim.kill(tree=False)
    scene.settle("real claude under claude-agent-sdk, SIGKILL of us alone", "nothing", since=since)


def is_at_work(scene: Scene) -> bool:
    return any("tail -f" in line for line in scene.agents().values())


async def stopped(scene: Scene, fields: dict[str, object], timeout: float | None) -> tuple[list[Message], float]:
    """Run it until it is stopped: by its timeout, or, without one, by cancelling it once the tool is at work."""
    messages: list[Message] = []
    since = time.monotonic() + (timeout or 0)
    with anyio.CancelScope() as scope:
        runner = scene.runner(ClaudeRuntime(PROGRAM), **fields)
        async with contextlib.aclosing(runner.execute(scene.options(AT_WORK, timeout=timeout))) as stream:
            async for message in stream:
                messages.append(message)
                if is_tool_use(message):
                    with anyio.fail_after(60):
                        while not is_at_work(scene):
                            await anyio.sleep(0.1)
                    if timeout is None:
                        since = time.monotonic()
                        scope.cancel()
    return messages, since
