"""A process that runs one agent, for being killed: `python -m tests.faults.victim ORDER`, ORDER as JSON.

It prints "ready" before it starts, a line with each message's type, and "done" with the last message's kind at the
end. With "then": "break" it stops reading at the first message of the agent's. With "pool": N it keeps N containers
ready, says "warm" when they are, and runs nothing.
"""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

import anyio

from container_runner import Agent, ClaudeRuntime, ContainerConfig, ContainerRunner, ErrorMessage, ExecuteOptions


async def run(order: dict[str, Any]) -> None:
    config = ContainerConfig.from_mapping(order["config"])
    runtime = ClaudeRuntime(order.get("program", "claude"))
    runner = ContainerRunner(runtime, config, order["state"])
    prompt = order["prompt"] + "\n" + "x" * order.get("padding", 0)
    agent = Agent(name=order["agent"], workspace=order["workspace"])
    options = ExecuteOptions(prompt=prompt, agent=agent, **order.get("options", {}))
    say("ready")
    if size := order.get("pool"):
        async with runner.warm(agent, size=size) as pool:
            while len(pool) < size:
                await anyio.sleep(0.02)
            say("warm")
            await anyio.sleep_forever()
    saw = "nothing"
    async with contextlib.aclosing(runner.execute(options)) as messages:
        async for message in messages:
            saw = message.kind if isinstance(message, ErrorMessage) else str(message.type)
            say(saw)
            if order.get("then") == "break":
                break
        say("stopping")
    say(f"done {saw}")


def say(word: str) -> None:
    print(word, flush=True)


if __name__ == "__main__":
    order = json.loads(sys.argv[1])
    anyio.run(run, order, backend=order["backend"])
