"""Kept containers, without a runner: found or made, and commands run in them."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from functools import partial

import attrs

from container_runner.agents import CommandRuntime, Describes
from container_runner.box.environment import host_environment
from container_runner.box.plan import Plan
from container_runner.config.container import ContainerConfig
from container_runner.engine.engine import Engine
from container_runner.engine.manager import Container, Containers
from container_runner.engine.names import is_named
from container_runner.errors import ConfigError, ContainerGoneError
from container_runner.options import Agent, ExecuteOptions
from container_runner.runner.known import Known
from container_runner.runner.runner import ContainerRunner
from container_runner.stream.messages import Message

_TRIES = 3
"""How often a container is looked for that has ended when it was found."""


@attrs.frozen(kw_only=True, eq=False)
class KeptContainer:
    """A container that was handed out. It is not removed by others until it is released."""

    name: str

    agent: Agent
    """The agent that it belongs to."""

    created: bool
    """Whether it was made just now; otherwise it was found."""

    config: ContainerConfig = attrs.field(repr=False)

    plan: Plan = attrs.field(repr=False)
    """What it was made by."""

    held: Container = attrs.field(repr=False)
    """What keeps it from being removed."""


class ContainerManager:
    """The kept containers of a state folder: one for each agent and configuration, which later processes find again.

        manager = ContainerManager()
        container = await manager.get_or_create(Agent(name="bot", workspace="."), ContainerConfig(image="my/claude"))
        async for message in manager.exec(container, ["pytest", "-q"]):
            print(message)
        await manager.release(container)

    Args:
        state_dir: the state folder, as `ContainerRunner` has it.
        engine: the engine, as `ContainerConfig.engine`; that of a container's own configuration is not looked at.
    """

    def __init__(self, state_dir: str | os.PathLike[str] = ".container-runner", *, engine: str = "auto") -> None:
        self.state_dir = state_dir
        self.engine = engine
        self._containers: Containers | None = None

    async def get_or_create(
        self, agent: Agent, config: ContainerConfig, *, runtime: Describes | None = None
    ) -> KeptContainer:
        """A container that runs: the agent's own if it is as configured, or else a new one.

        Args:
            config: the box. That it is ephemeral is not looked at.
            runtime: whose credentials it has, for a container in which a runner's agent is to run as well. None:
                nobody's.

        Raises:
            ConfigError: the agent or the configuration can not be carried out.
            EngineError: it could not be made. Nothing is left of it.
        """
        if not isinstance(agent, Agent):
            raise ConfigError("agent", agent, 'an Agent, as Agent(name="bot", workspace=".")')
        if not isinstance(config, ContainerConfig):
            raise ConfigError("config", config, 'a ContainerConfig, as ContainerConfig(image="my/claude")')
        containers = await self._open()
        kept = attrs.evolve(config, ephemeral=False)
        runner = ContainerRunner(CommandRuntime("true") if runtime is None else runtime, kept, self.state_dir)
        make_plan = partial(runner.plan, ExecuteOptions(prompt="", agent=agent), engine=containers.engine)
        for _ in range(_TRIES):
            plan = make_plan()
            if plan.prepare():
                plan = make_plan()
            found = await containers.get_or_create(plan)
            plan = attrs.evolve(plan, container=found.name, ends_at=found.ends_at)
            try:
                is_good = await (is_named(containers.engine, plan) if found.created else containers.runs(found))
            except BaseException:
                found.let_go()
                raise
            if is_good:
                return KeptContainer(
                    name=found.name, agent=agent, created=found.created, config=kept, plan=plan, held=found
                )
            await containers.release(found, plan, is_spoiled=True)
        raise ContainerGoneError(f"Each container of agent {agent.name!r} has ended at once.")

    async def exec(
        self,
        container: KeptContainer,
        command: str | Iterable[str],
        *,
        stdin: str = "",
        timeout: float | None = None,
        idle_timeout: float | None = None,
        grace: int = 3,
    ) -> AsyncGenerator[Message, None]:
        """Run a command in a container, as the agent's user in the workspace, and yield its output as it comes.

        A line of JSON is a message, as an agent's is, and any other an `OutputLine`. A code that is not 0, or
        whatever else fails, is one last `ErrorMessage`. When the iteration ends, breaks, raises or is cancelled, or
        this process dies, the command is stopped, and what it has started.

        Args:
            command: the program and its arguments; a text is split as a shell splits it.
            stdin: what it gets on stdin, which then ends.
            timeout: seconds that it may take in all.
            idle_timeout: seconds that it may be silent.
            grace: whole seconds between asking it to stop (TERM) and making it stop (KILL).

        Raises:
            ConfigError: the command can not be run.
        """
        runner = _InContainer(await self._open(), container, command)
        options = ExecuteOptions(
            prompt=stdin, agent=container.agent, timeout=timeout, idle_timeout=idle_timeout, grace=grace
        )
        messages = runner.execute(options)
        try:
            async for message in messages:
                yield message
        finally:
            await messages.aclose()

    async def release(self, container: KeptContainer) -> None:
        """Give a container back. It runs on, and waits for the next who asks for it.

        Raises:
            EngineError: it was to be removed, because a command in it did not end in order, and could not be.
        """
        await (await self._open()).release(container.held, container.plan)

    async def stop(self, container: KeptContainer | str) -> None:
        """End and remove a container of this state folder, by itself or by its name, in use or not.

        Raises:
            ContainerGoneError: there is none with this name in this state folder.
        """
        containers = await self._open()
        if isinstance(container, str):
            await containers.stop(container)
            return
        try:
            await containers.stop(container.name)
        finally:
            container.held.let_go()

    async def clean_up(self, agent: str, max_containers: int) -> list[str]:
        """Remove an agent's containers beyond *max_containers*, oldest first, and none that is in use.

        Returns:
            The names of those that were removed.

        Raises:
            EngineError: the engine does not answer, or one of them could not be removed.
            StateError: another process was at them for too long.
        """
        return await (await self._open()).clean_up(agent, max_containers)

    async def _open(self) -> Containers:
        if self._containers is None:
            self._containers = Containers(await Engine.probe(self.engine, host_environment()), self.state_dir)
        return self._containers


class _InContainer(ContainerRunner):
    """Runs one command in a container that was handed out, and in no other."""

    def __init__(self, containers: Containers, kept: KeptContainer, command: str | Iterable[str]) -> None:
        super().__init__(CommandRuntime(command), kept.config, containers.state_dir, records=False)
        self._known = Known(containers, has_pruned=True)
        self._kept = kept

    def plan(self, options: ExecuteOptions, *, engine: Engine | None = None, run_id: str | None = None) -> Plan:
        plan, made_by = super().plan(options, engine=engine, run_id=run_id), self._kept.plan
        return attrs.evolve(
            plan,
            mounted=made_by.mounted,
            passwd=None,
            digest=made_by.digest,
            reuse_labels=made_by.reuse_labels,
            user=made_by.user,
        )

    def _find(self, manager: Containers) -> Callable[[Plan], Awaitable[Container]]:
        return partial(manager.use, self._kept.name)
