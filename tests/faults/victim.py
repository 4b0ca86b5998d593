"""A process that runs one agent, for being killed: `python -m tests.faults.victim ORDER`, ORDER as JSON.

It prints "ready" before it starts, a line with each message's type, and "done" with the last message's kind at the
end. With "then": "break" it stops reading at the first message of the agent's. With "pool": N it keeps N containers
ready, says "warm" when they are, and runs nothing. With "session" it holds one open, to whose agent the prompt goes;
with "sdk" it is claude-agent-sdk that does. With "command" it runs that instead, which has a tool that never returns.
"""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

import anyio

from container_runner import (
    KINDS,
    AcpRuntime,
    Agent,
    CommandRuntime,
    ContainerConfig,
    ContainerRunner,
    ErrorMessage,
    ExecuteOptions,
    tool,
)


async def run(order: dict[str, Any]) -> None:
    config = ContainerConfig.from_mapping(order["config"])
    kind = order.get("kind")
    runtime = AcpRuntime(order["acp"], like=kind) if "acp" in order else KINDS[kind or "claude"](order.get("program"))
    runner = ContainerRunner(runtime, config, order["state"])
    if command := order.get("command"):
        runner = ContainerRunner(CommandRuntime(command), config, order["state"], tools=[hang])
    prompt = order["prompt"] + "\n" + "x" * order.get("padding", 0)
    agent = Agent(name=order["agent"], workspace=order["workspace"], **order.get("fields", {}))
    options = ExecuteOptions(prompt=prompt, agent=agent, **order.get("options", {}))
    say("ready")
    if size := order.get("pool"):
        async with runner.warm(agent, size=size) as pool:
            while len(pool) < size:
                await anyio.sleep(0.02)
            say("warm")
            await anyio.sleep_forever()
    if order.get("session"):
        async with runner.open_session(options) as session:
            async for said in session:
                say(str(getattr(said, "type", said)))
    if order.get("sdk"):
        await query_by_sdk(runner, order)
    saw = "nothing"
    async with contextlib.aclosing(runner.execute(options)) as messages:
        async for message in messages:
            saw = message.kind if isinstance(message, ErrorMessage) else str(message.type)
            say(saw)
            if order.get("then") == "break":
                break
        say("stopping")
    say(f"done {saw}")


@tool
async def hang() -> None:
    """Never return."""
    await anyio.sleep_forever()


async def query_by_sdk(runner: ContainerRunner, order: dict[str, Any]) -> None:
    from claude_agent_sdk import ClaudeAgentOptions, query

    from container_runner.sdk import ContainerTransport

    options = ClaudeAgentOptions(cwd=order["workspace"], permission_mode="bypassPermissions")
    transport = ContainerTransport.from_options(options, runner, agent=order["agent"])
    async for message in query(prompt=order["prompt"], options=options, transport=transport):
        say(type(message).__name__)


def say(word: str) -> None:
    print(word, flush=True)


if __name__ == "__main__":
    order = json.loads(sys.argv[1])
    anyio.run(run, order, backend=order["backend"])
