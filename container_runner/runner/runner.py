"""The whole way of a run: options, commands, process, messages, and an end that leaves nothing behind."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from container_runner.agents import Describes, Runtime, command_line
from container_runner.box import argv, gitconfig, script
from container_runner.box.carried import carried_flags, plan_carry
from container_runner.box.environment import build_container_env, host_environment
from container_runner.box.mounts import build_container_mounts
from container_runner.box.plan import Plan
from container_runner.box.sources import resolve_workspace
from container_runner.box.user import User
from container_runner.config.container import ContainerConfig
from container_runner.config.limits import RecordLimits
from container_runner.engine.engine import Engine
from container_runner.engine.manager import (
    CONFIG_LABEL,
    DEADLINE_LABEL,
    DEADLINE_SLACK,
    NAME_LABEL,
    RUN_LABEL,
    Container,
    Containers,
    agent_labels,
)
from container_runner.engine.owner import Owner
from container_runner.engine.pool import Pool
from container_runner.errors import AgentError, ConfigError, ContainerRunnerError
from container_runner.folders import expanded
from container_runner.options import Agent, ExecuteOptions
from container_runner.records.recorder import Recorder
from container_runner.records.records import RunRecord
from container_runner.records.summary import RunSummary
from container_runner.records.tally import Tally
from container_runner.runner.carrier import fetch_left
from container_runner.runner.result import RunResult
from container_runner.runner.run import Run
from container_runner.stream.messages import ErrorMessage, Message
from container_runner.stream.process import settle
from container_runner.stream.stream import MessageStream, total_timeout
from container_runner.workspace import repositories
from container_runner.workspace.apply import recover
from container_runner.workspace.changes import Changes

PRUNE_TIMEOUT = 5.0
"""Seconds that the first run gives to removing what dead processes have left."""

PRUNE_PATIENCE = 1.0
"""Seconds of them that may pass when its agent has started: meanwhile nobody reads what it says."""

MOUNTING = ("--mount", "--tmpfs", "--volume", "-v")
"""How the flags begin that mount something, where they stand in `extra_args`."""

_log = logging.getLogger(__name__)


class ContainerRunner:
    """Runs a runtime's agent in a locked-down container. It is a runtime itself.

    Args:
        runtime: a runtime that can describe its command: `ClaudeRuntime`, `CommandRuntime`, or any object with the
            method that `Describes` has.
        config: the box.
        state_dir: where sessions, records and locks are kept; made when it is first needed. Default:
            ".container-runner".
        records: whether each run leaves a transcript and a summary in the state folder, or how much of them is kept.

    Raises:
        ConfigError: an argument is no such thing.
        UnsupportedRuntimeError: the runtime can not describe its command.
    """

    def __init__(
        self,
        runtime: Runtime | Describes,
        config: ContainerConfig,
        state_dir: str | os.PathLike[str] = ".container-runner",
        *,
        records: bool | RecordLimits = True,
    ) -> None:
        if isinstance(runtime, ContainerConfig):
            raise ConfigError("runtime", runtime, "the runtime first, and then the ContainerConfig")
        if isinstance(runtime, ContainerRunner):
            raise ConfigError("runtime", "a ContainerRunner", "a runtime without a container around it")
        if not isinstance(config, ContainerConfig):
            raise ConfigError("config", config, 'a ContainerConfig, as ContainerConfig(image="my/claude")')
        self.runtime = command_line(runtime)
        self.config = config
        self.state_dir = expanded(state_dir, "state_dir").absolute()
        self.records = RecordLimits() if records is True else records or None
        self._engine: Engine | None = None
        self._manager: Containers | None = None
        self._has_pruned = False
        self._pools: dict[str, Pool] = {}
        self._may_overlay = True
        """Whether the engine has not refused an overlay yet."""

    def execute(
        self,
        options: ExecuteOptions,
        *,
        on_start: Callable[[], None] | None = None,
        on_end: Callable[[RunSummary, Changes | None], None] | None = None,
    ) -> AsyncGenerator[Message, None]:
        """Run the agent and yield its messages.

        Whatever fails on the way is one last `ErrorMessage`. When the iteration ends, breaks, raises or is
        cancelled, the agent is stopped and its container removed. After a `break` that happens when the generator
        is closed, which `contextlib.aclosing` does at once.

        Args:
            on_start: called when the agent has started, which may be long before it says something.
            on_end: called with the run's summary, and what came out of a carried workspace, when all of that is done.

        Raises:
            ConfigError: the options or the configuration can not be carried out; raised here, before the first
                message is asked for.
            EngineNotFoundError: likewise, if the configuration names a program that is not there.
        """
        return self._execute(
            options, self.plan(options), on_end and (lambda summary, changes, *_: on_end(summary, changes)), on_start
        )

    async def run(
        self,
        options: ExecuteOptions,
        *,
        on_message: Callable[[Message], object] | None = None,
        keep_messages: bool = False,
    ) -> RunResult:
        """Run the agent to its end, and return what it came to.

        Args:
            on_message: is called with each message as it comes.
            keep_messages: whether the result has them all.

        Raises:
            ConfigError: the options or the configuration can not be carried out.
            ContainerRunnerError: what went wrong, of the class that says so. Its `result` is what the run had come to
                by then: the session to resume, and what it has cost.
        """
        tally, kept = Tally(), list[Message]()
        ends: list[tuple[Changes | None, RunRecord | None, ContainerRunnerError | None]] = []
        async with aclosing(self._execute(options, self.plan(options), lambda _, *end: ends.append(end))) as messages:
            async for message in messages:
                tally.add(message)
                if keep_messages:
                    kept.append(message)
                if on_message is not None:
                    on_message(message)
        ((changes, record, error),) = ends
        result = RunResult.of(tally, changes, record, tuple(kept))
        if error is not None:
            error.result = result
            raise error
        return result

    def plan(self, options: ExecuteOptions, *, engine: Engine | None = None, run_id: str | None = None) -> Plan:
        """The commands that `execute` would run. Nothing is started, and nothing is changed.

        Args:
            engine: the engine to speak to. None: the one that was used before, or what the files on this machine
                tell of it.
            run_id: the run's id. None: a new one.

        Raises:
            ConfigError: the options or the configuration can not be carried out.
        """
        if not isinstance(options, ExecuteOptions):
            raise ConfigError("options", options, 'ExecuteOptions(prompt="...", agent=Agent(name="bot"))')
        run_id = run_id or secrets.token_hex(16)
        return self._plan(options, engine, run_id, work_id=run_id)

    def _plan(self, options: ExecuteOptions, engine: Engine | None, run_id: str, work_id: str) -> Plan:
        """See `plan`. By *work_id* the work of a carried workspace is known."""
        config, agent, environ = self.config, options.agent, host_environment()
        engine = engine or self._engine or Engine.guess(config.engine, environ)
        workspace = None if agent.workspace is None else resolve_workspace(agent)
        user = User.of(config, workspace)
        command = self.runtime.command(options, contained=True)
        if len(command.stdin) > script.PROMPT_LIMIT:
            allowed = f"at most {script.PROMPT_LIMIT} bytes; put the long part into a file in the workspace"
            raise ConfigError("prompt", f"{len(command.stdin)} bytes", allowed)
        mounts = build_container_mounts(
            agent,
            config,
            self.state_dir,
            user=user,
            credentials=command.credentials,
            kept=command.kept,
            environ=[name for name in environ if environ[name]],
        )
        env = build_container_env(
            agent, config, command=command, environ=environ, credentials=mounts.credentials_by_name
        )
        name = f"container-runner-{agent.name}-{run_id[:12]}"
        carry = None
        if workspace is not None and config.workspace_mode == "carried":
            carry = plan_carry(
                config,
                engine.dialect,
                run=work_id,
                agent=agent.name,
                workspace=workspace,
                state_dir=self.state_dir,
                user=user,
                engine=engine.binary,
                container=name,
                overlay=self._may_overlay,
            )
        found_by = agent_labels(agent.name, self.state_dir, ephemeral=config.ephemeral)
        run = partial(
            argv.run_argv,
            engine.binary,
            engine.dialect,
            config,
            user=user,
            mounts=mounts,
            env=env,
            carried=carried_flags(carry, engine.dialect) if carry else (),
        )
        # All that makes the container what it is: the command without what differs from run to run, and which files
        # its mounts really are. The engine's mount of a file ends when the host renames another one over it.
        made_of = "\0".join([*run(name="", labels=found_by, run_id=""), mounts.identity])
        found_by[CONFIG_LABEL] = hashlib.sha256(made_of.encode()).hexdigest()[:32]
        ends_at = int(time.time()) + config.time_limit
        own = {RUN_LABEL: run_id, NAME_LABEL: name, DEADLINE_LABEL: str(ends_at + DEADLINE_SLACK)}
        labels = {**own, **found_by, **Owner.current().to_labels()}
        waiting = tuple(run(name=name, labels=labels, run_id=run_id))
        in_kept = argv.exec_argv(
            engine.binary,
            name=name,
            user=user,
            env=env,
            run_id=run_id,
            time_limit=config.time_limit,
            command=command.argv,
        )
        return Plan(
            run_id=run_id,
            agent=agent.name,
            container=name,
            ephemeral=config.ephemeral,
            run=(*waiting, *command.argv) if config.ephemeral else waiting,
            exec=() if config.ephemeral else tuple(in_kept),
            waiting=waiting if config.ephemeral else (),
            command=command.argv,
            carry=carry,
            mounted=mounts,
            kept=command.kept or (),
            other_mounts=any(word.startswith(MOUNTING) for word in config.extra_args),
            variables=env.named,
            values=env.values,
            hidden={**env.values, **mounts.hidden},
            files=gitconfig.box_files(environ, None if workspace is None else repositories.git_folder(workspace)),
            prompt=command.stdin,
            token=secrets.token_hex(16),
            grace=options.grace,
            user=user,
            reuse_labels=found_by,
            digest=found_by[CONFIG_LABEL],
            time_limit=config.time_limit,
            ends_at=ends_at,
            may_pull=config.pull != "never",
            image=config.image,
            state_dir=self.state_dir,
            dialect=engine.dialect,
        )

    @asynccontextmanager
    async def warm(self, agent: Agent, *, size: int | None = None) -> AsyncIterator[Pool]:
        """Keep containers ready for ephemeral runs of *agent*, for the length of a block.

        A run takes one that is exactly what its own plan would have made, uses it once, and removes it; another is
        made in the background. What is left at the end is removed.

        Args:
            size: how many to keep ready. Default: `ContainerConfig.pool`.

        Raises:
            ConfigError: the configuration is not ephemeral, the size is 0, or *agent* could not be run.
            EngineError: there is no engine, or it does not answer.
        """
        size = self.config.pool if size is None else size
        if self.config.workspace_mode == "carried":
            allowed = '"rw" or "ro" for warm containers: a carried workspace begins with the files as they are then'
            raise ConfigError("workspace_mode", "carried", allowed)
        if size < 1 or not self.config.ephemeral:
            raise ConfigError("pool", size, "a number from 1, and ephemeral containers")
        options = ExecuteOptions(prompt="", agent=agent)
        self.plan(options)  # what is wrong with it is said here, and not by each try to fill the pool
        pool = Pool(await self.manager(), lambda: self.plan(options), size)
        if agent.name in self._pools:
            raise ConfigError("pool", agent.name, "one pool for an agent at a time")
        self._pools[agent.name] = pool
        try:
            async with _beside(pool.fill):
                yield pool
        finally:
            del self._pools[agent.name]
            await settle(pool.close)

    async def manager(self) -> Containers:
        """The containers of this runner's engine and state folder.

        Raises:
            EngineError: there is no engine, or it does not answer.
        """
        if self._manager is None:
            self._engine = await Engine.probe(self.config.engine, host_environment())
            self._manager = Containers(self._engine, self.state_dir)
        return self._manager

    def _find(self, manager: Containers) -> Callable[[Plan], Awaitable[Container]]:
        """How a run finds the kept container that it uses."""
        return manager.get_or_create

    async def _execute(
        self,
        options: ExecuteOptions,
        first: Plan,
        on_end: Callable[[RunSummary, Changes | None, RunRecord | None, ContainerRunnerError | None], None]
        | None = None,
        on_start: Callable[[], None] | None = None,
    ) -> AsyncGenerator[Message, None]:
        """Run *first*, and tell *on_end* how it went, what is kept of it, and what went wrong."""
        began_at = anyio.current_time()
        run: Run | None = None
        error: ContainerRunnerError | None = None
        broken: BaseException | None = None
        record = Recorder.start(first, options, self.records, as_read=self.runtime.reads_plain, plain=self.config.env)
        try:
            try:
                try:
                    with anyio.fail_after(options.timeout):
                        manager = await self.manager()
                except TimeoutError:
                    raise total_timeout(options) from None
                # It was made for what the files on this machine tell, the first time without our folders.
                if first.prepare() or (first.run[0], first.dialect) != (manager.engine.binary, manager.engine.dialect):
                    first = self.plan(options, run_id=first.run_id)
                if first.workspace is not None:
                    recover(Path(first.workspace), first.state_dir)  # an apply that was killed, before it is read
                await fetch_left(manager)
                again = partial(self._plan_again, options, first)
                run = Run(
                    manager, self.runtime, options, first, again, self._pools, record, began_at, self._find(manager)
                )
                stream = await self._start(run, manager)
                if on_start is not None:
                    on_start()
                while (messages := await stream.read()) or await run.fetch():
                    for message in messages:
                        yield message
                error = await run.outcome()
            except ConfigError:
                raise
            except ContainerRunnerError as exception:
                error = exception
            if run is not None and isinstance(error, AgentError):
                for message in await run.stop():
                    yield message
        except BaseException as exception:
            broken = exception
            raise
        finally:
            try:
                if run is not None:
                    left = await run.finish(self.config.max_containers)
                    error = error or left
            finally:
                if error is not None:
                    record.scrubber.error(error)
                changes = None if run is None or run.carrier is None else run.carrier.changes
                stop = None if run is None else run.stopped_by
                summary = record.finish(error or broken, stop=stop, changes=changes)
                if on_end is not None:
                    on_end(summary, changes, record.kept, error)
        if error is not None:
            yield ErrorMessage.from_error(error, stop=None if run is None else run.stopped_by)

    def _plan_again(self, options: ExecuteOptions, first: Plan, overlay: bool) -> Plan:
        self._may_overlay = self._may_overlay and overlay
        if first.carry is None:
            return self.plan(options)
        return self._plan(options, None, secrets.token_hex(16), first.carry.run)

    async def _start(self, run: Run, manager: Containers) -> MessageStream:
        """Start *run*, and the first time remove meanwhile what dead processes have left."""
        if self._has_pruned:
            return await run.start()
        self._has_pruned = True
        async with _beside(partial(_prune, manager), patience=PRUNE_PATIENCE):
            return await run.start()


@asynccontextmanager
async def _beside(work: Callable[[], Coroutine[Any, Any, object]], *, patience: float = 0.0) -> AsyncIterator[None]:
    """Do some work while a block runs, and for *patience* seconds after it."""
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        try:
            yield
        except Exception as error:  # out of the task group, which would wrap it
            failure = error
        tasks.cancel_scope.deadline = anyio.current_time() + patience
    if failure is not None:
        raise failure


async def _prune(manager: Containers) -> None:
    try:
        with anyio.move_on_after(PRUNE_TIMEOUT):
            for info in await manager.prune():
                _log.info("removed %s, whose owner is dead", info.name)
    except Exception as error:  # whatever is wrong with what others left, this run has nothing to do with it
        _log.info("looking for what dead processes left: %s", error)
