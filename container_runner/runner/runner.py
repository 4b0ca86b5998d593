"""The whole way of a run: options, commands, process, messages, and an end that leaves nothing behind."""

from __future__ import annotations

import copy
import os
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import anyio
import attrs

from container_runner.agents import CommandLineRuntime, Describes, Runtime, command_line
from container_runner.box.environment import host_environment
from container_runner.box.plan import Plan
from container_runner.box.translator import Translator, in_container
from container_runner.config.container import ContainerConfig
from container_runner.config.limits import RecordLimits
from container_runner.engine.engine import Engine
from container_runner.engine.failures import OTHER_FILES, sees_other_files
from container_runner.engine.manager import Container, Containers
from container_runner.engine.pool import Pool
from container_runner.errors import AgentError, ConfigError, ContainerRunnerError, MountError
from container_runner.folders import expanded
from container_runner.options import Agent, ExecuteOptions
from container_runner.records.recorder import Recorder
from container_runner.records.records import RunRecord
from container_runner.records.summary import RunSummary
from container_runner.records.tally import Tally
from container_runner.runner.beside import beside, check_pool, filled, pruning
from container_runner.runner.known import Known
from container_runner.runner.left import fetch_left
from container_runner.runner.live import LiveRun, live_runtime, opened, with_prompt
from container_runner.runner.planning import make_plan
from container_runner.runner.pump import Pump, PumpRuntime
from container_runner.runner.result import RunResult
from container_runner.runner.run import Run
from container_runner.runner.start import find_start
from container_runner.runner.warm import WarmSessions
from container_runner.session.answering import Answerer
from container_runner.session.hooks import Hook
from container_runner.session.session import Session
from container_runner.session.tools import Tool, Toolbox, check_tools
from container_runner.stream.messages import ErrorMessage, Message
from container_runner.stream.stream import MessageStream, total_timeout
from container_runner.workspace.apply import recover
from container_runner.workspace.changes import Changes
from container_runner.workspace.shadow import Start


class ContainerRunner:
    """Runs a runtime's agent in a locked-down container. It is a runtime itself.

    Args:
        runtime: a runtime that can describe its command: `ClaudeRuntime`, `CommandRuntime`, or any object with the
            method that `Describes` has. One that has only `execute` runs by way of `PythonRuntime`.
        config: the box.
        state_dir: where sessions, records and locks are kept; made when it is first needed. Default:
            ".container-runner".
        records: whether each run leaves a transcript and a summary in the state folder, or how much of them is kept.
        tools: functions of yours that its agents may call, made by `container_runner.tool`. They run here, on the event
            loop that has called `run` or `execute`.
        tool_timeout: seconds that a call may take.

    Raises:
        ConfigError: an argument is no such thing.
        UnsupportedRuntimeError: the runtime has only `execute`, and can not be made in the container.
    """

    def __init__(
        self,
        runtime: Runtime | Describes,
        config: ContainerConfig,
        state_dir: str | os.PathLike[str] = ".container-runner",
        *,
        records: bool | RecordLimits = True,
        tools: Sequence[Tool] = (),
        tool_timeout: float = 600.0,
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
        self.tools = check_tools(tools)
        self.tool_timeout = tool_timeout
        self._known = Known()
        self._pools: dict[str, Pool] = {}

    def evolved(
        self,
        *,
        runtime: Runtime | Describes | None = None,
        config: ContainerConfig | None = None,
        tools: Sequence[Tool] | None = None,
    ) -> Self:
        """A runner like this one but for what is given. They find out once for both what there is to know of an engine.

        Raises:
            ConfigError: an argument is no such thing.
        """
        other = copy.copy(self)
        other.runtime = self.runtime if runtime is None else command_line(runtime)
        other.config = self.config if config is None else config
        other.tools = self.tools if tools is None else check_tools(tools)
        if other.config.engine != self.config.engine:
            other._known, other._pools = Known(), {}  # noqa: SLF001  it is one of our own kind
        return other

    def execute(
        self,
        options: ExecuteOptions,
        *,
        on_start: Callable[[], object] | None = None,
        on_end: Callable[[RunSummary, Changes | None], None] | None = None,
        start: Start | None = None,
    ) -> AsyncGenerator[Message, None]:
        """Run the agent and yield its messages.

        Whatever fails on the way is one last `ErrorMessage`. When the iteration ends, breaks, raises or is
        cancelled, the agent is stopped and its container removed. After a `break` that happens when the generator
        is closed, which `contextlib.aclosing` does at once.

        Args:
            on_start: called when the agent has started, which may be long before it says something.
            on_end: called with the run's summary, and what came out of a carried workspace, when all of that is done.
            start: what a carried workspace begins with, as `start.hold` gave it. None: what *options* say.

        Raises:
            ConfigError: the options or the configuration can not be carried out; raised here, before the first
                message is asked for.
            EngineNotFoundError: likewise, if the configuration names a program that is not there.
        """
        return self._execute(
            options,
            self.plan(options),
            on_end and (lambda summary, changes, *_: on_end(summary, changes)),
            on_start and (lambda _: on_start()),
            start,
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
        engine = engine or self._known.engine or Engine.guess(self.config.engine, host_environment())
        return make_plan(
            self.runtime,
            self.config,
            self.state_dir,
            options,
            engine,
            run_id=run_id,
            work_id=work_id,
            may_overlay=self._known.may_overlay,
            toolbox=Toolbox(self.tools, self.tool_timeout) if self.tools else None,
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
        check_pool(self.config, size := self.config.pool if size is None else size)
        options = ExecuteOptions(prompt="", agent=agent)
        self.plan(options)  # what is wrong with it is said here, and not by each try to fill the pool
        pool = Pool(await self.manager(), lambda: self.plan(options), size)
        async with filled(pool, self._pools, agent.name):
            yield pool

    def open_session(
        self,
        options: ExecuteOptions | Agent,
        *,
        can_use_tool: Answerer | None = None,
        tools: Sequence[Tool] = (),
        hooks: Sequence[Hook] = (),
        ask_timeout: float = 600.0,
        control_timeout: float = 60.0,
        on_start: Callable[[], object] | None = None,
    ) -> AbstractAsyncContextManager[Session]:
        """A live agent for the length of a block: many turns of one process, on the lease of any run.
        `timeout` is for all of it, `idle_timeout` for the agent's silence while it owes an answer.

        Args:
            options: whom to start, and how. A prompt among them is the first one that is sent.
            can_use_tool: answers what the agent asks. With it, the agent asks before it acts, unless `permission_mode`
                says otherwise; without it, what it asks is among what the session yields, for `Session.answer`.
            tools: functions of yours that the agent may call, beside those of the runner.
            hooks: functions of yours that the agent calls at points of its work, each with a deadline of its own.
            ask_timeout: seconds that such an answer, or a tool of yours, may take. Then it is denied.
            control_timeout: seconds that the agent has to answer a request such as `Session.set_model`.
            on_start: called when the agent has started, which may be long before it takes prompts.

        Raises:
            ContainerRunnerError: it can not be carried out, or what ended it, if that was not told inside the block.
        """
        options = ExecuteOptions(prompt="", agent=options) if isinstance(options, Agent) else options
        taken, _ = in_container(options, self.config, self.runtime)
        tools = (*self.tools, *check_tools(tools))
        made = live_runtime(self.runtime, taken, can_use_tool, tools, hooks, ask_timeout, control_timeout)
        live = self.evolved(runtime=made, tools=() if made.session.codec.calls_tools else tools)
        live.tool_timeout = ask_timeout
        if self.runtime.reads_mentions:
            made.session.translate = Translator.of(options.agent, self.config).prompt
        begun = (lambda _: on_start()) if on_start is not None else None
        execute = partial(live._execute, options, live.plan(options), on_start=begun)  # noqa: SLF001  one of our own kind
        return opened(made.session, execute, options.prompt)

    def pump(
        self,
        options: ExecuteOptions | Agent,
        *,
        argv: Sequence[str] | None = None,
        env: Mapping[str, str] = MappingProxyType({}),
        files: Mapping[str, str] = MappingProxyType({}),
        on_stderr: Callable[[bytes], object] | None = None,
        exact: bool = False,
    ) -> Pump:
        """A live agent whose lines go through as they are, for a caller who speaks its protocol. It is not started yet.

        Args:
            options: whom to start, and how. There is no prompt among them, nor do clocks but `timeout` count.
            argv: the agent's command, with paths as the container has them. None: as for a session.
            env: more variables for the agent. No secrets.
            files: small files for it: texts by absolute paths in the container, in folders that are there.
            on_stderr: is called with each line of the agent's stderr.
            exact: hand on what the agent says byte for byte, on both of its outputs, and not by lines.

        Raises:
            ConfigError: the options or the configuration can not be carried out.
            UnsupportedRuntimeError: the agent has no live sessions.
        """
        options = ExecuteOptions(prompt="", agent=options) if isinstance(options, Agent) else options
        pump = Pump(on_stderr, exact)
        # Whoever speaks the protocol has tools of their own: this agent never hears of ours.
        live = self.evolved(runtime=PumpRuntime(self.runtime, pump, argv, env, files), tools=())
        pump.run(partial(live._execute, options, live.plan(options)))  # noqa: SLF001  it is one of our own kind
        return pump

    @asynccontextmanager
    async def warm_sessions(
        self, options: ExecuteOptions | Agent, *, size: int = 1, **more: Any
    ) -> AsyncIterator[WarmSessions]:
        """Keep *size* sessions open for the length of a block, see `open_session`, which takes the same beside it."""
        async with beside((warm := WarmSessions(partial(self.open_session, options, **more), size)).fill):
            yield warm

    async def manager(self) -> Containers:
        """The containers of this runner's engine and state folder.

        Raises:
            EngineError: there is no engine, or it does not answer.
        """
        return await self._known.open(self.config.engine, self.state_dir)

    def _find(self, manager: Containers) -> Callable[[Plan], Awaitable[Container]]:
        """How a run finds the kept container that it uses."""
        return manager.get_or_create

    async def _execute(
        self,
        options: ExecuteOptions,
        first: Plan,
        on_end: Callable[[RunSummary, Changes | None, RunRecord | None, ContainerRunnerError | None], None]
        | None = None,
        on_start: Callable[[Run], object] | None = None,
        start: Start | None = None,
    ) -> AsyncGenerator[Message, None]:
        """Run *first*, and tell *on_end* how it went, what is kept of it, and what went wrong."""
        began_at = anyio.current_time()
        run: Run | None = None
        error: ContainerRunnerError | None = None
        broken: BaseException | None = None
        runtime = with_prompt(self.runtime, options, self.config)
        record = Recorder.start(first, options, self.records, as_read=runtime.reads_plain, plain=self.config.env)
        try:
            try:
                try:
                    with anyio.fail_after(options.timeout):
                        manager = await self.manager()
                except TimeoutError:
                    raise total_timeout(options) from None
                # It was made for what the files on this machine tell, the first time without our folders.
                if first.prepare() or not manager.engine.made(first):
                    first = self.plan(options, run_id=first.run_id)
                if first.workspace is not None:
                    recover(Path(first.workspace), first.state_dir)  # an apply that was killed, before it is read
                await fetch_left(manager)
                make = partial(self._make_run, manager, runtime, options, record, began_at, start)
                run = await make(first)
                try:
                    stream = await self._start(run, manager)
                except MountError as failure:
                    if not (first.mounts and sees_other_files(failure)):
                        raise
                    first = self._plan_elsewhere(options, first, manager)
                    record.note("restart", kind=failure.kind, message=OTHER_FILES)
                    await run.finish(self.config.max_containers)
                    run = await make(first)
                    stream = await self._start(run, manager)
                if on_start is not None:
                    on_start(run)
                while (messages := await stream.read()) or await run.fetch():
                    for message in (*run.outlet.denied(), *messages):
                        yield message
                for denied in run.outlet.denied():
                    yield denied
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
                if run is not None and run.has_left:
                    broken = None  # whoever ended it did so in order
                changes = None if run is None or run.carrier is None else run.carrier.changes
                stop = None if run is None else run.stopped_by
                summary = record.finish(error or broken, stop=stop, changes=changes)
                if on_end is not None:
                    on_end(summary, changes, record.kept, error)
        if error is not None:
            yield ErrorMessage.from_error(error, stop=None if run is None else run.stopped_by)

    async def _make_run(
        self,
        manager: Containers,
        runtime: CommandLineRuntime,
        options: ExecuteOptions,
        record: Recorder,
        began_at: float,
        start: Start | None,
        plan: Plan,
    ) -> Run:
        """A run of *plan*, to be started."""
        if plan.carry is not None:
            plan = plan.beginning_with(start or await find_start(options, plan.carry, self.state_dir))
        record.scrubber.add(plan.hidden)  # it may be another one than the record began with
        again = partial(self._plan_again, options, plan)
        kind = LiveRun if plan.feed else Run
        return kind(manager, runtime, options, plan, again, self._pools, record, began_at, self._find(manager))

    def _plan_elsewhere(self, options: ExecuteOptions, first: Plan, manager: Containers) -> Plan:
        """The plan in the place of *first*, for an engine that has shown that it does not see this machine's files.

        Raises:
            ConfigError: the run needs something that can not be had there.
        """
        manager.engine = attrs.evolve(manager.engine, sees_files=False)
        plan = self.plan(options, engine=manager.engine, run_id=first.run_id)
        plan.prepare()
        return plan

    def _plan_again(self, options: ExecuteOptions, first: Plan, overlay: bool) -> Plan:
        self._known.may_overlay &= overlay
        if first.carry is None:
            return self.plan(options)
        plan = self._plan(options, None, secrets.token_hex(16), first.carry.run)
        return plan.beginning_with(first.carry.start)

    async def _start(self, run: Run, manager: Containers) -> MessageStream:
        """Start *run*, and the first time remove meanwhile what dead processes have left."""
        if self._known.has_pruned:
            return await run.start()
        self._known.has_pruned = True
        async with pruning(manager):
            return await run.start()
