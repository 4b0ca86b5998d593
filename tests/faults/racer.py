"""Asks for an agent's persistent container each time it reads an agent's name: `racer.py ENGINE IMAGE TOKEN STATE`."""

from __future__ import annotations

import sys

import anyio

from container_runner import Agent, CommandRuntime, ContainerConfig, ContainerRunner, ExecuteOptions


async def main(engine: str, image: str, token: str, state: str) -> None:
    config = ContainerConfig(
        engine=engine,
        image=image,
        network="none",
        credentials="none",
        ephemeral=False,
        extra_args=[f"--env=FAULT_SCENE={token}"],
    )
    runner = ContainerRunner(CommandRuntime(["true"]), config, state)
    manager = await runner.manager()
    while name := (await anyio.to_thread.run_sync(sys.stdin.readline)).strip():
        try:
            container = await manager.get_or_create(runner.plan(ExecuteOptions(prompt="", agent=Agent(name=name))))
            await manager.release(container)
            print(container.name, flush=True)
        except Exception as error:
            print(f"{error!r}", flush=True)


anyio.run(main, *sys.argv[1:])
