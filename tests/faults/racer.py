"""Asks for an agent's persistent container each time it reads an agent's name: `racer.py ENGINE IMAGE TOKEN STATE`."""

from __future__ import annotations

import sys

import anyio

from container_runner import Agent, CommandRuntime, ContainerConfig, ContainerRunner, ExecuteOptions


async def main(*words: str) -> None:
    engine, image, token, state = words
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
            options = ExecuteOptions(prompt="", agent=Agent(name=name))
            plan = runner.plan(options)
            plan.prepare()
            container = await manager.get_or_create(plan)
            await manager.release(container, plan)
            print(container.name, flush=True)
        except Exception as error:
            print(f"{error!r}", flush=True)


anyio.run(main, *sys.argv[1:])
