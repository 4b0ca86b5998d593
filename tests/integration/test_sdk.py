"""The real claude-agent-sdk on the transport, with the real claude in a container, against a stand-in API in there."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from claude_agent_sdk import (
    AssistantMessage,
    ClaudeAgentOptions,
    ClaudeSDKClient,
    HookMatcher,
    Message,
    PermissionResultAllow,
    PermissionResultDeny,
    ProcessError,
    ResultMessage,
    ToolUseBlock,
    create_sdk_mcp_server,
    query,
    tool,
)

from container_runner.sdk import ContainerTransport
from tests.integration.engines import RealEngine
from tests.integration.runs import ON_OWN_ROOTFUL, Box
from tests.integration.test_claude import CLAUDE

pytestmark = [
    pytest.mark.claude,
    # On trio the SDK leaves generators of its own to the garbage collector.
    pytest.mark.filterwarnings("ignore:Async generator 'claude_agent_sdk:ResourceWarning"),
]


@pytest.fixture
def anyio_backend(engine: RealEngine) -> str:
    """Each loop with one of the engines: what differs between loops is tested without one."""
    return "asyncio" if engine.name == "docker" else "trio"


def transport_of(box: Box, options: ClaudeAgentOptions) -> ContainerTransport:
    runner = box.runner(CLAUDE, image=box.engine.images.claude, credentials="env")
    return ContainerTransport.from_options(options, runner)


async def turn(client: ClaudeSDKClient, prompt: str) -> ResultMessage:
    await client.query(prompt)
    last = [message async for message in client.receive_response()][-1]
    assert isinstance(last, ResultMessage)
    return last


@ON_OWN_ROOTFUL
async def test_a_hook_denies_a_callback_allows_and_a_tool_of_ours_answers(box: Box, anyio_backend: str) -> None:
    @tool("add", "Add two numbers.", {"x": int, "y": int})
    async def add(given: dict[str, Any]) -> dict[str, Any]:
        return {"content": [{"type": "text", "text": f"it is {given['x'] + given['y']}"}]}

    async def hook(given: Any, tool_use_id: str | None, context: Any) -> Any:
        if "rm" not in given["tool_input"].get("command", ""):
            return {}
        denied = {"permissionDecision": "deny", "permissionDecisionReason": "no rm here"}
        return {"hookSpecificOutput": {"hookEventName": "PreToolUse", **denied}}

    asked = []

    async def allow(name: str, given: dict[str, Any], context: Any) -> PermissionResultAllow | PermissionResultDeny:
        asked.append(given.get("command", name))
        if "no.txt" in asked[-1]:
            return PermissionResultDeny(message="not that one")
        return PermissionResultAllow()

    options = ClaudeAgentOptions(
        cwd=box.workspace,
        can_use_tool=allow,
        hooks={"PreToolUse": [HookMatcher(matcher="Bash", hooks=[hook])]},
        mcp_servers={"ours": create_sdk_mcp_server("ours", tools=[add])},
        env={"ENABLE_TOOL_SEARCH": "false"},  # else the model would have to search for our tool first
    )
    with anyio.fail_after(120):
        async with ClaudeSDKClient(options, transport=transport_of(box, options)) as client:
            allowed = await turn(client, "bash: echo hi >yes.txt; cat yes.txt")
            denied = await turn(client, "bash: echo hi >no.txt; cat yes.txt")
            hooked = await turn(client, "bash: rm yes.txt")
            sum_ = await turn(client, 'tool: mcp__ours__add {"x": 40, "y": 2}')

    assert allowed.result == "done: hi"
    assert "not that one" in str(denied.result)
    assert "no rm here" in str(hooked.result)
    assert sum_.result == "done: it is 42"
    assert asked == ["echo hi >yes.txt; cat yes.txt", "echo hi >no.txt; cat yes.txt", "mcp__ours__add"]
    assert [path.name for path in box.workspace.iterdir()] == ["yes.txt"]
    assert box.containers() == []


@ON_OWN_ROOTFUL
async def test_an_interrupt_ends_a_turn_and_another_container_resumes(box: Box, anyio_backend: str) -> None:
    options = ClaudeAgentOptions(cwd=box.workspace, permission_mode="bypassPermissions")
    with anyio.fail_after(120):
        async with ClaudeSDKClient(options, transport=transport_of(box, options)) as client:
            cut: Message | None = None
            await client.query("bash: echo up >up; tail -f /dev/null")
            async for message in client.receive_response():
                if isinstance(message, AssistantMessage) and isinstance(message.content[-1], ToolUseBlock):
                    while not (box.workspace / "up").exists():
                        await anyio.sleep(0.05)
                    await client.interrupt()
                cut = message
            after = await turn(client, "say: still here")
        assert box.containers() == []
        more = ClaudeAgentOptions(cwd=box.workspace, resume=after.session_id)
        resumed = [m async for m in query(prompt="say: again", options=more, transport=transport_of(box, more))][-1]

    assert isinstance(cut, ResultMessage)
    assert cut.subtype == "error_during_execution"
    assert after.result == "still here"
    assert isinstance(resumed, ResultMessage)
    assert (resumed.result, resumed.session_id) == ("again", after.session_id)
    assert box.containers() == []


@ON_OWN_ROOTFUL
async def test_a_code_that_is_not_zero_is_the_sdks_error(box: Box, anyio_backend: str) -> None:
    heard: list[str] = []
    options = ClaudeAgentOptions(
        cwd=box.workspace, resume="00000000-0000-4000-8000-000000000000", stderr=heard.append
    )  # fmt: skip
    with pytest.raises(ProcessError) as caught, anyio.fail_after(60):
        async for _ in query(prompt="say: hi", options=options, transport=transport_of(box, options)):
            pass

    assert caught.value.exit_code == 1
    assert "No conversation found" in f"{caught.value} {heard}"
    assert box.containers() == []
