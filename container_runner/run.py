"""One run: its container, its client process, and their end."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Final

import anyio

from container_runner.agents import CommandLineRuntime
from container_runner.box import argv, guest
from container_runner.box.plan import Plan
from container_runner.engine.engine import ContainerInfo, start_limiter
from container_runner.engine.failures import classify, spawn_error
from container_runner.engine.manager import CLEANUP_TIMEOUT, Container, ContainerManager
from container_runner.engine.pool import Pool, Warm
from container_runner.errors import (
    AgentKilledError,
    CleanupError,
    CommandNotExecutableError,
    CommandNotFoundError,
    ContainerGoneError,
    ContainerRunnerError,
    EngineBusyError,
    EngineError,
    EngineTimeoutError,
    ExecLostError,
    ImageUnsuitableError,
    NameTakenError,
    OutOfMemoryError,
)
from container_runner.options import ExecuteOptions
from container_runner.records.recorder import Recorder
from container_runner.stream.messages import Message
from container_runner.stream.process import STDERR_TAIL, Completed, Process, settle
from container_runner.stream.stream import MessageStream, killed, total_timeout

START_TIMEOUT: Final = 60.0
"""Seconds that an agent may take to start, its prompt's way included."""

START_ATTEMPTS: Final = 3
TRANSIENT: Final = (ContainerGoneError, EngineBusyError, NameTakenError)
"""What another attempt may cure, as long as the agent has not started. An agent's failure is never tried again."""

STOP_SLACK: Final = 5.0
"""Seconds beyond the grace period after which a client whose agent was stopped is given up."""

_log = logging.getLogger(__name__)


class Run:
    """One run, from its start to its end.

    Args:
        plan: what is to be done, prepared.
        make_plan: makes the plan anew, for another attempt to start, because a name is never used twice.
        pools: containers that are ready, by the agent that they are for.
        record: what is written, traced and logged of the run.
        began_at: when its total clock began, on the event loop's clock.
    """

    def __init__(
        self,
        manager: ContainerManager,
        runtime: CommandLineRuntime,
        options: ExecuteOptions,
        plan: Plan,
        make_plan: Callable[[], Plan],
        pools: Mapping[str, Pool],
        record: Recorder,
        began_at: float,
    ) -> None:
        self._manager = manager
        self._runtime = runtime
        self._options = options
        self._make_plan = make_plan
        self._plan = plan
        self._pools = pools
        self._record = record
        self._began_at = began_at
        self._warm: Warm | None = None
        self._container: Container | None = None
        self._is_spoiled = False
        """Whether the container is one that no other run should use."""
        self._process: Process | None = None
        self.stopped_by: str | None = None
        """The last rung of the ladder that was needed: "term", "kill", "sweep", "container", or None."""

    async def start(self) -> MessageStream:
        """Make or find the container, start the agent in it, and wait until it has started.

        Raises:
            TotalTimeoutError: the options' total clock ran out.
            ContainerRunnerError: it could not be started, in `START_ATTEMPTS` attempts if the reason was transient.
        """
        timeout = self._options.timeout
        with anyio.move_on_at(math.inf if timeout is None else self._began_at + timeout):
            try:
                return await self._start()
            except TRANSIENT as error:
                return await self._retry(error)
        raise total_timeout(self._options)

    async def outcome(self) -> ContainerRunnerError | None:
        """What went wrong, once the agent's output has ended; None for success."""
        exit_code = await self._stream.wait()
        report, stderr = self._report()
        if report.ended is None:
            return await self._diagnose(exit_code, stderr)
        exit_code = report.ended  # a client that asks for it when the container has gone has a code of its own
        failure = self._runtime.outcome(self._stream.result, exit_code, stderr)
        if failure is None:
            return None
        if report.oom_kills:
            message = f"The agent ran out of memory: the kernel killed {report.oom_kills} of its processes."
            return OutOfMemoryError(message, exit_code=exit_code, stderr=stderr)
        if self._stream.result is None and (signalled := killed(exit_code, stderr)):
            return signalled
        return failure

    async def stop(self) -> list[Message]:
        """Climb the ladder until the agent's client has ended.

        The watchdog inside sends TERM when the lease ends, and KILL after the grace period. If the client is
        still there then, we reach in ourselves; at last the container goes.

        Returns:
            What the agent still said on the way, see `MessageStream.drain`.
        """
        if not self._has_started:
            return []  # it is `finish` that ends a start
        if self._running.returncode is not None:
            return await self._stop()  # it has ended, and only its last words are left to read
        with self._record.trace.span("stop"):
            said = await self._stop()
        self._record.stopped(self.stopped_by)
        return said

    async def _stop(self) -> list[Message]:
        process = self._running
        said: list[Message] = []
        process.close_stdin()
        for rung, timeout in (("lease", self._options.grace + STOP_SLACK), ("sweep", 2.0), ("container", STOP_SLACK)):
            if rung == "sweep" and self._plan.ephemeral:
                continue  # its container goes anyway
            if rung != "lease":
                self.stopped_by = rung
                await self._climb(rung)
            try:
                with anyio.fail_after(timeout):
                    await self._stream.drain(said)
                    await process.wait()
            except TimeoutError:
                continue
            self.stopped_by = self.stopped_by or self._report()[0].stop
            break
        if self._stream.is_cut:
            self._record.cut()
        return said

    async def finish(self, max_containers: int) -> EngineError | None:
        """Leave nothing behind, whatever is cancelled meanwhile; what could not be removed is an error."""
        if self._process is not None:
            self._process.close_stdin()  # it takes no await, so nothing can come in between: the agent will end
        try:
            if self._has_started:
                self._stream.parse([])  # the record has also what was read and nobody asked for
        finally:
            left = await settle(lambda: self._finish(max_containers))
        return left

    @property
    def _running(self) -> Process:
        assert self._process is not None  # noqa: S101  start() comes first
        return self._process

    async def _start(self) -> MessageStream:
        options, plan = self._options, self._plan
        if not plan.ephemeral:
            # It may have to wait for other runs of this agent, which must not hold up other agents.
            self._container = await self._take()
        async with start_limiter():
            self._container = self._container or await self._take()
            self._record.in_container(self._container.name)
            command = plan.exec_in(self._container.name)
            try:
                self._process = await Process.start(
                    command,
                    env={**self._manager.engine.environ, **plan.values},
                    stdin=plan.stdin,
                    hold_stdin=True,
                    gate=guest.started_line(plan.run_id),
                    end=guest.ended_line(plan.run_id),
                    line_limit=options.line_limit,
                )
                started = await self._process.wait_for_gate(START_TIMEOUT)
            except TimeoutError:  # which is an OSError as well
                raise EngineTimeoutError(f"The agent had not started after {START_TIMEOUT:g} seconds.") from None
            except OSError as error:
                raise spawn_error(command, error) from None
        if not started:
            raise await self._refusal(self._process)
        self._stream = self._runtime.read(
            self._process, options, started_at=self._began_at, check=self._check, record=self._record.record
        )
        return self._stream

    async def _take(self) -> Container:
        """The run's container: one that was ready, one that was kept, or a new one."""
        with self._record.trace.span("create"):
            if pool := self._pools.get(self._plan.agent):
                self._warm = pool.take(self._plan.digest)
            return self._warm.container if self._warm else await self._manager.get_or_create(self._plan)

    async def _retry(self, error: EngineError) -> MessageStream:
        from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

        _log.info("starting again: %s", error.message)
        self._record.note("restart", kind=error.kind, message=error.message)
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(TRANSIENT),
            stop=stop_after_attempt(START_ATTEMPTS - 1),
            wait=wait_random_exponential(multiplier=0.2, max=2),
            sleep=anyio.sleep,
            reraise=True,
        ):
            with attempt:
                await settle(self._clear)
                self._plan = self._make_plan()
                return await self._start()
        raise error

    async def _finish(self, max_containers: int) -> EngineError | None:
        name = self._plan.container if self._container is None else self._container.name
        try:
            with anyio.fail_after(CLEANUP_TIMEOUT + self._options.grace):
                if self._has_started and self._running.returncode is None:
                    await self.stop()
                persistent = self._container is not None and not self._plan.ephemeral
                report = self._report()[0] if self._has_started else guest.Report()
                is_good = report.ended is not None
                if persistent and self._has_started and (report.left or not is_good):
                    await self._climb("sweep")  # nobody inside was left to do it, or it could not be done there
                was_created = self._container is not None and self._container.created
                await self._clear(is_good=is_good)
                if persistent and was_created:
                    await self._clean_up(max_containers)
        except TimeoutError:
            left = CleanupError(f"Cleaning up took too long; {name} may be left.", left=(name,))
        except ContainerRunnerError as error:
            left = CleanupError(f"{name} may be left. {error.message}", left=(name,), stderr=error.stderr)
        else:
            return None
        await self._abandon()
        _log.warning("%s", left)
        return left

    async def _clean_up(self, max_containers: int) -> None:
        """Remove the agent's older containers. If it can not be done, that is no failure of this run."""
        try:
            await self._manager.clean_up(self._plan.agent, max_containers)
        except ContainerRunnerError as error:
            _log.warning("older containers of %s may be left: %s", self._plan.agent, error.message)

    async def _abandon(self) -> None:
        """Let go of everything, whatever state it is in."""
        if self._container is not None and self._container.lock is not None:
            self._container.lock.release()
        for process in (self._process, None if self._warm is None else self._warm.holder):
            if process is not None:
                await process.abandon()

    async def _clear(self, *, is_good: bool = False) -> None:
        """End the client, and give the container back, which is good if the run ended well."""
        if self._process is not None:
            self._process.close_stdin()
            await self._process.terminate()
            self._record.trace.end_exec(self._process.returncode)
            self._process.close()
            self._process = None
        if self._warm is not None:
            await self._warm.let_go()
            self._warm = None
        if self._container is not None:
            await self._manager.release(self._container, self._plan, is_good=is_good, is_spoiled=self._is_spoiled)
            self._container = None
            self._is_spoiled = False

    @property
    def _has_started(self) -> bool:
        return self._process is not None and self._process.gate_line is not None

    @property
    def _group(self) -> int | None:
        """The agent's process group in the container."""
        words = (self._running.gate_line or b"").split()
        return int(words[-1]) if words and words[-1].isdigit() else None

    async def _climb(self, rung: str) -> None:
        assert self._container is not None  # noqa: S101  there is no process without one
        engine, name, plan = self._manager.engine, self._container.name, self._plan
        try:
            if rung == "container":
                await engine.remove(name)
            elif self._group is not None:
                kill = argv.kill_argv(engine.binary, name=name, user=plan.user, run_id=plan.run_id, group=self._group)
                await engine.run(kill, check=False)
        except EngineError as error:
            _log.debug("stopping by %s: %s", rung, error.message)

    async def _check(self) -> None:
        """Make sure, after a silence, that the client still waits for somebody."""
        engine = self._manager.engine
        try:
            info = await self._info()
            is_lost = False
            if info is not None and info.is_running and self._group is not None:
                probe = argv.probe_argv(engine.binary, name=info.name, user=self._plan.user, group=self._group)
                is_lost = (await engine.run(probe, check=False)).returncode == guest.EXIT_GONE
        except EngineError as error:  # an engine that does not answer just now says nothing about the agent
            _log.info("looking after %s: %s", self._plan.container, error.message)
            return
        if info is None or not info.has_processes:
            raise self._gone(stderr=self._report()[1])
        if is_lost:
            raise ExecLostError("The agent has ended, and the engine's client did not notice.")

    def _report(self) -> tuple[guest.Report, str]:
        report, stderr = guest.Report.parse(bytes(self._running.stderr), self._plan.run_id)
        return report, scrub(stderr.decode("utf-8", "replace"), self._plan.values)

    async def _refusal(self, process: Process) -> ContainerRunnerError:
        """Why the agent was not started."""
        try:
            with anyio.fail_after(STOP_SLACK):
                stdout = await process.read_all(2 * STDERR_TAIL)
                exit_code = await process.wait()
        except TimeoutError:
            return EngineTimeoutError("The engine's client did not end, though the agent was not started.")
        report, stderr = self._report()
        program, image = self._plan.program, self._plan.image
        if report.refusal == "missing":
            message = f"The image {image} lacks {', '.join(report.missing)}."
            return ImageUnsuitableError(message, exit_code=exit_code)
        if report.refusal == "no-command":
            return CommandNotFoundError(f"There is no {program!r} in the image {image}.", exit_code=exit_code)
        if report.refusal == "not-executable":
            message = f"{program!r} in the image {image} can not be run by user {self._plan.user}."
            return CommandNotExecutableError(message, exit_code=exit_code)
        if report.refusal == "prompt-lost":
            self._is_spoiled = True  # an earlier run has filled what a persistent container keeps in memory
            return EngineBusyError("The container has no room for the prompt.", exit_code=exit_code, stderr=stderr)
        error = classify(Completed(returncode=exit_code, stdout=stdout, stderr=stderr), "exec")
        if type(error) is not EngineError:
            return error
        try:
            info = await self._info()
        except EngineError:
            return error
        if info is not None and info.is_running:
            return error
        # An engine has many words, or none at all, for an exec whose container ends at that moment.
        message = "The container ended while the agent was started in it."
        return ContainerGoneError(message, exit_code=exit_code, stderr=stderr)

    async def _diagnose(self, exit_code: int, stderr: str) -> ContainerRunnerError:
        """Why the wrapper did not live to see the agent's end."""
        try:
            info = await self._info()
        except EngineError as error:
            return error
        is_running = info is not None and info.is_running
        # A persistent container remembers what was killed in an earlier run.
        if info is not None and info.oom_killed and (self._plan.ephemeral or not is_running):
            return OutOfMemoryError("The container ran out of memory.", exit_code=exit_code, stderr=stderr)
        if exit_code <= 0:  # no wrapper ends like this: a signal ended the client, or told it to go, and then it says 0
            message = "The engine's client was ended before the agent was."
            return ExecLostError(message, exit_code=exit_code, stderr=stderr)
        if is_running:
            message = "Our wrapper around the agent was killed inside the container."
            return AgentKilledError(message, signal=9, exit_code=exit_code, stderr=stderr)
        return self._gone(exit_code=exit_code, stderr=stderr)

    def _gone(self, *, exit_code: int | None = None, stderr: str = "") -> ContainerGoneError:
        assert self._container is not None  # noqa: S101  there is no process without one
        if time.time() < self._container.ends_at - 1:
            message, step = "The container ended while the agent ran.", None
        else:
            message = f"The container's time limit, {self._container.time_limit} seconds, ended while the agent ran."
            step = "Raise time_limit (--time-limit), or resume the session in a new container."
        return ContainerGoneError(message, next_step=step, exit_code=exit_code, stderr=stderr)

    async def _info(self) -> ContainerInfo | None:
        """What the engine knows of the container; None if it is not there any more."""
        assert self._container is not None  # noqa: S101  there is no process without one
        infos = await self._manager.engine.inspect([self._container.name])
        return infos[0] if infos else None


def scrub(text: str, values: Mapping[str, str]) -> str:
    """*text* with the values of variables replaced by their names. One of less than 4 characters tells nothing."""
    for name, value in sorted(values.items(), key=lambda item: -len(item[1])):
        if len(value) >= 4:
            text = text.replace(value, f"[{name}]")
    return text
