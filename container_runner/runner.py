"""The whole way of a run: options, commands, process, messages, and an end that leaves nothing behind."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path

import anyio

from container_runner import argv, guest
from container_runner.config import ContainerConfig
from container_runner.engine import Engine, classify, control_limiter, spawn_error
from container_runner.environment import build_container_env, host_environment
from container_runner.errors import (
    AgentError,
    AgentKilledError,
    CleanupError,
    CommandNotExecutableError,
    CommandNotFoundError,
    ConfigError,
    ContainerGoneError,
    ContainerRunnerError,
    EngineError,
    EngineTimeoutError,
    ImageUnsuitableError,
    OutOfMemoryError,
    UnsupportedRuntimeError,
)
from container_runner.manager import (
    AGENT_LABEL,
    CLEANUP_TIMEOUT,
    CONFIG_LABEL,
    KIND_LABEL,
    RUN_LABEL,
    STATE_LABEL,
    Container,
    ContainerManager,
    state_digest,
)
from container_runner.messages import ErrorMessage, Message
from container_runner.mounts import build_container_mounts, prepare_sessions, recheck, resolve_workspace
from container_runner.options import ExecuteOptions
from container_runner.owner import Owner
from container_runner.plan import Plan
from container_runner.process import Completed, Process
from container_runner.runtimes import CommandLineRuntime, Runtime
from container_runner.stream import MessageStream, killed
from container_runner.user import User

STOP_SLACK = 5.0
"""Seconds beyond the grace period after which a client whose agent was stopped is given up."""

START_TIMEOUT = 60.0
"""Seconds that an agent may take to start, its prompt's way included."""

_log = logging.getLogger(__name__)


class ContainerRunner:
    """Runs a runtime's agent in a locked-down container. It is a runtime itself.

    Args:
        runtime: a runtime that can describe its command, such as `ClaudeRuntime` or `CommandRuntime`.
        config: the box.
        state_dir: where sessions and locks are kept; made when it is first needed. Default: ".container-runner".

    Raises:
        UnsupportedRuntimeError: the runtime can not describe its command.
    """

    def __init__(
        self, runtime: Runtime, config: ContainerConfig, state_dir: str | os.PathLike[str] = ".container-runner"
    ) -> None:
        if not isinstance(runtime, CommandLineRuntime):
            raise UnsupportedRuntimeError(f"{type(runtime).__name__} can not describe the command that it runs.")
        self.runtime = runtime
        self.config = config
        self.state_dir = Path(state_dir).expanduser().absolute()
        self._engine: Engine | None = None

    def execute(self, options: ExecuteOptions) -> AsyncGenerator[Message, None]:
        """Run the agent and yield its messages.

        Whatever fails on the way is one last `ErrorMessage`. When the iteration ends, breaks, raises or is
        cancelled, the agent is stopped and its container removed. After a `break` that happens when the generator
        is closed, which `contextlib.aclosing` does at once.

        Raises:
            ConfigError: the options or the configuration can not be carried out; raised here, before the first
                message is asked for.
        """
        self.plan(options)
        return self._execute(options)

    def plan(self, options: ExecuteOptions, *, engine: Engine | None = None) -> Plan:
        """The commands that `execute` would run. Nothing is started, and nothing is changed.

        Args:
            engine: the engine to speak to. None: the one that was used before, or what the files on this machine
                tell of it.

        Raises:
            ConfigError: the options or the configuration can not be carried out.
        """
        config, agent, environ = self.config, options.agent, host_environment()
        engine = engine or self._engine or Engine.guess(config.engine, environ)
        workspace = None if agent.workspace is None else resolve_workspace(agent)
        user = User.of(config, workspace)
        command = self.runtime.command(options, contained=True)
        if len(command.stdin) > guest.PROMPT_LIMIT:
            allowed = f"at most {guest.PROMPT_LIMIT} bytes; put the long part into a file in the workspace"
            raise ConfigError("prompt", f"{len(command.stdin)} bytes", allowed)
        mounts = build_container_mounts(
            agent, config, self.state_dir, user=user, credentials=command.credentials, environ=environ
        )
        env = build_container_env(config, command, environ, credentials=mounts.credentials_by_name)
        run_id = secrets.token_hex(16)
        name = f"container-runner-{agent.name}-{run_id[:12]}"
        found_by = {
            AGENT_LABEL: agent.name,
            STATE_LABEL: state_digest(self.state_dir),
            KIND_LABEL: "ephemeral" if config.ephemeral else "persistent",
        }

        def run(name: str, labels: dict[str, str]) -> list[str]:
            return argv.run_argv(
                engine.binary,
                engine.dialect,
                config,
                name=name,
                user=user,
                mounts=mounts,
                labels=labels,
                workspace_is_mounted=workspace is not None,
            )

        # The digest of the command without what differs from run to run: all that makes the container what it is.
        found_by[CONFIG_LABEL] = hashlib.sha256("\0".join(run("", found_by)).encode()).hexdigest()[:32]
        return Plan(
            run_id=run_id,
            agent=agent.name,
            container=name,
            ephemeral=config.ephemeral,
            run=tuple(run(name, {RUN_LABEL: run_id, **found_by, **Owner.current().to_labels()})),
            exec=tuple(
                argv.exec_argv(
                    engine.binary,
                    name=name,
                    user=user,
                    env=env,
                    run_id=run_id,
                    ephemeral=config.ephemeral,
                    stdin_size=len(command.stdin),
                    grace=options.grace,
                    command=command.argv,
                )
            ),
            mounts=mounts.mounts,
            variables=env.named,
            values=env.values,
            stdin=command.stdin,
            user=user,
            reuse_labels=found_by,
            may_pull=config.pull != "never",
            program=command.argv[0],
            dialect=engine.dialect,
        )

    async def manager(self) -> ContainerManager:
        """The containers of this runner's engine and state folder.

        Raises:
            EngineError: there is no engine, or it does not answer.
        """
        if self._engine is None:
            self._engine = await Engine.probe(self.config.engine, host_environment())
        return ContainerManager(self._engine, self.state_dir)

    async def _execute(self, options: ExecuteOptions) -> AsyncGenerator[Message, None]:
        run: _Run | None = None
        error: ContainerRunnerError | None = None
        try:
            try:
                manager = await self.manager()
                run = _Run(self, manager, self.plan(options), options)
                stream = await run.start()
                while messages := await stream.read():
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
        finally:
            if run is not None:
                run.let_go()
                with anyio.CancelScope(shield=True):
                    error = await run.finish() or error
        if error is not None:
            yield ErrorMessage.from_error(error, stop=None if run is None else run.stopped_by)


class _Run:
    """One run: its container, its client process, and their end."""

    def __init__(self, runner: ContainerRunner, manager: ContainerManager, plan: Plan, options: ExecuteOptions) -> None:
        self._runner = runner
        self._manager = manager
        self._plan = plan
        self._options = options
        self._container: Container | None = None
        self._process: Process | None = None
        self.stopped_by: str | None = None
        """The last rung of the ladder that was needed: "term", "kill", "sweep", "container", or None."""

    async def start(self) -> MessageStream:
        """Make or find the container, start the agent in it, and wait until it has started."""
        options, plan, engine = self._options, self._plan, self._manager.engine
        prepare_sessions(self._runner.state_dir, options.agent, plan.user)
        recheck(plan.mounts)
        self._container = await self._manager.get_or_create(plan)
        command = plan.exec_in(self._container.name)
        async with control_limiter():
            try:
                self._process = await Process.start(
                    command,
                    env={**engine.environ, **plan.values},
                    stdin=plan.stdin,
                    hold_stdin=True,
                    gate=guest.started_line(plan.run_id),
                    line_limit=options.line_limit,
                )
                started = await self._process.wait_for_gate(START_TIMEOUT)
            except OSError as error:
                raise spawn_error(command, error) from None
            except TimeoutError:
                raise EngineTimeoutError(f"The agent had not started after {START_TIMEOUT:g} seconds.") from None
        if not started:
            raise await self._refusal(self._process)
        self._stream = MessageStream(self._process, self._runner.runtime, options)
        return self._stream

    async def outcome(self) -> ContainerRunnerError | None:
        """What went wrong, once the agent's output has ended."""
        assert self._process is not None  # noqa: S101  start() came first
        exit_code = await self._process.wait()
        report, stderr = self._report()
        if report.ended is None:
            return await self._diagnose(exit_code, stderr)
        if exit_code == 255:  # podman's client, when the container was gone before it could ask
            exit_code = report.ended
        failure = self._runner.runtime.outcome(self._stream.result, exit_code, stderr)
        if failure is None:
            return None
        if report.oom_kills:
            message = f"The agent ran out of memory: the kernel killed {report.oom_kills} of its processes."
            return OutOfMemoryError(message, exit_code=exit_code, stderr=stderr)
        if self._stream.result is None and (signalled := killed(exit_code, stderr)):
            return signalled
        return failure

    def let_go(self) -> None:
        """End the lease, which stops the agent. It takes no await, so nothing can come in between."""
        if self._process is not None:
            self._process.close_stdin()

    async def stop(self) -> list[Message]:
        """Climb the ladder until the agent's client has ended.

        The watchdog inside sends TERM when the lease ends, and KILL after the grace period. If the client is
        still there then, we reach in ourselves; at last the container goes.

        Returns:
            What the agent still said on the way.
        """
        process = self._process
        if process is None or self._container is None:
            return []
        said: list[Message] = []
        self.let_go()
        for rung, timeout in (("", self._options.grace + STOP_SLACK), ("sweep", 2.0), ("container", STOP_SLACK)):
            if rung == "sweep" and self._plan.ephemeral:
                continue  # its container goes anyway
            if rung:
                self.stopped_by = rung
                await self._climb(rung, process)
            try:
                with anyio.fail_after(timeout):
                    while lines := await process.read():
                        said += self._stream.parse(lines)
                    await process.wait()
            except TimeoutError:
                continue
            self.stopped_by = self.stopped_by or self._report()[0].stop
            break
        return said

    async def finish(self) -> EngineError | None:
        """Leave nothing behind; what could not be removed is an error. Call it shielded: it is bounded."""
        try:
            with anyio.fail_after(CLEANUP_TIMEOUT + self._options.grace):
                if self._process is not None:
                    if self._process.returncode is None:
                        await self.stop()
                    await self._process.terminate()
                if self._container is not None:
                    await self._manager.release(self._container)
                    if not self._plan.ephemeral:
                        await self._manager.clean_up(self._plan.agent, self._runner.config.max_containers)
        except TimeoutError:
            return CleanupError("Cleaning up took too long.", left=(self._plan.container,))
        except EngineError as error:
            return CleanupError(f"{self._plan.container} is left: {error.message}", left=(self._plan.container,))
        finally:
            if self._process is not None:
                self._process.close()
        return None

    async def _climb(self, rung: str, process: Process) -> None:
        assert self._container is not None  # noqa: S101  there is no process without one
        engine, name = self._manager.engine, self._container.name
        try:
            if rung == "container":
                await engine.remove(name)
                return
            group = (process.gate_line or b"").split()[-1:]
            if group and group[0].isdigit():
                command = argv.kill_argv(
                    engine.binary, name=name, user=self._plan.user, run_id=self._plan.run_id, group=int(group[0])
                )
                await engine.run(command, check=False)
        except EngineError as error:
            _log.debug("stopping by %s: %s", rung, error.message)

    def _report(self) -> tuple[guest.Report, str]:
        assert self._process is not None  # noqa: S101  start() came first
        report, stderr = guest.Report.parse(bytes(self._process.stderr))
        return report, scrub(stderr.decode("utf-8", "replace"), self._plan.values)

    async def _refusal(self, process: Process) -> ContainerRunnerError:
        """Why the agent was not started."""
        lines = []
        while batch := await process.read(STOP_SLACK):
            lines += batch
        exit_code = await process.wait()
        report, stderr = self._report()
        program = self._plan.program
        if report.refusal == "missing":
            message = f"The image {self._runner.config.image} lacks {', '.join(report.missing)}."
            return ImageUnsuitableError(message, exit_code=exit_code)
        if report.refusal == "no-command":
            message = f"There is no {program!r} in the image {self._runner.config.image}."
            return CommandNotFoundError(message, exit_code=exit_code)
        if report.refusal == "not-executable":
            message = f"{program!r} in the image {self._runner.config.image} can not be run by user {self._plan.user}."
            return CommandNotExecutableError(message, exit_code=exit_code)
        stdout = b"\n".join(line for line in lines if isinstance(line, bytes))
        return classify(Completed(returncode=exit_code, stdout=stdout, stderr=stderr), "exec")

    async def _diagnose(self, exit_code: int, stderr: str) -> ContainerRunnerError:
        """Why the wrapper did not live to see the agent's end."""
        assert self._container is not None  # noqa: S101  there is no process without one
        try:
            infos = await self._manager.engine.inspect([self._container.name])
        except EngineError as error:
            return error
        if infos and infos[0].is_running:
            message = "Our wrapper around the agent was killed inside the container."
            return AgentKilledError(message, signal=9, exit_code=exit_code, stderr=stderr)
        if infos and infos[0].oom_killed:
            return OutOfMemoryError("The container ran out of memory.", exit_code=exit_code, stderr=stderr)
        return ContainerGoneError("The container ended while the agent ran.", exit_code=exit_code, stderr=stderr)


def scrub(text: str, secrets_: Mapping[str, str]) -> str:
    """*text* with the values of variables replaced by their names."""
    for name, value in sorted(secrets_.items(), key=lambda item: -len(item[1])):
        if len(value) >= 4:
            text = text.replace(value, f"[{name}]")
    return text
