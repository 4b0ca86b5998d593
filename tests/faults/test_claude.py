"""The real claude with a tool at work: however we stop, no process of it stays."""

from __future__ import annotations

import contextlib
import time

import anyio
import pytest

from container_runner import ClaudeRuntime, ToolUseBlock
from container_runner.stream.messages import AssistantMessage, Message
from tests.faults.scene import Scene, last

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
        time.sleep(1)  # the tool's process starts
        keep = [] if ephemeral else scene.containers()
        assert any("tail -f" in line for line in scene.agents().values())
        since = victim.kill(tree=how.endswith("tree"))
    else:
        messages, since = anyio.run(stopped, scene, fields, how, backend=scene.loop)
        keep = [] if ephemeral else scene.containers()
        saw = last(messages) if how == "timeout" else "cancelled"
        assert any(map(is_tool_use, messages))
    kind = "ephemeral" if ephemeral else "persistent"
    scene.settle(f"real claude with a tool at work, {how} ({kind})", saw, since=since, keep=keep)
    assert len(keep) == (not ephemeral)


async def stopped(scene: Scene, fields: dict[str, object], how: str) -> tuple[list[Message], float]:
    messages: list[Message] = []
    timeout = 8.0 if how == "timeout" else None
    since = time.monotonic() + (timeout or 0)
    with anyio.CancelScope() as scope:
        runner = scene.runner(ClaudeRuntime(PROGRAM), **fields)
        async with contextlib.aclosing(runner.execute(scene.options(AT_WORK, timeout=timeout))) as stream:
            async for message in stream:
                messages.append(message)
                if is_tool_use(message):
                    await anyio.sleep(1)  # the tool's process starts
                    assert any("tail -f" in line for line in scene.agents().values())
                    if how == "cancel":
                        since = time.monotonic()
                        scope.cancel()
    return messages, since
