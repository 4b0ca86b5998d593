"""One run: its container, its client process, and their end."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Final

import anyio
import attrs

from container_runner.agents import CommandLineRuntime
from container_runner.box import guest
from container_runner.box.plan import Plan
from container_runner.box.proof import proving
from container_runner.engine.engine import PULL_TIMEOUT, RUN_TIMEOUT, start_limiter
from container_runner.engine.failures import refused, step_failed
from container_runner.engine.locks import LockFile, claim
from container_runner.engine.manager import CLEANUP_TIMEOUT, Container, Containers
from container_runner.engine.names import fits, learn
from container_runner.engine.pool import Pool
from container_runner.errors import (
    ContainerGoneError,
    ContainerRunnerError,
    EngineBusyError,
    EngineError,
    EngineTimeoutError,
    NameTakenError,
    OutOfMemoryError,
)
from container_runner.options import ExecuteOptions
from container_runner.records.recorder import Recorder
from container_runner.runner.carrier import Carrier, may_refuse_overlay
from container_runner.runner.courier import fetch_sessions, send_sessions
from container_runner.runner.diagnosis import gone, is_overdue, left_over, why_lost, why_not_started
from container_runner.runner.disk import DiskWatch
from container_runner.runner.lookout import Lookout
from container_runner.runner.outlet import Outlet
from container_runner.stream.beat import BeatingProcess
from container_runner.stream.command import Completed
from container_runner.stream.messages import Message
from container_runner.stream.process import STDERR_TAIL, Process, settle
from container_runner.stream.stream import MessageStream, killed, total_timeout

START_ATTEMPTS: Final = 3
TRANSIENT: Final = (ContainerGoneError, EngineBusyError, NameTakenError)
"""What another attempt may cure, as long as the agent has not started. An agent's failure is never tried again."""

STOP_SLACK: Final = 5.0
"""Seconds beyond the grace period after which a client whose agent was stopped is given up."""

_log = logging.getLogger(__name__)


@attrs.define(eq=False, repr=False)
class Run:
    """One run, from its start to its end."""

    _manager: Containers
    _runtime: CommandLineRuntime
    _options: ExecuteOptions
    plan: Plan
    """What is to be done, prepared. Once there is a container, with that one's name and end."""
    _make_plan: Callable[[bool], Plan]
    """Makes the plan anew, for another attempt to start, because a name is never used twice; with False, for an engine
    that has refused an overlay."""
    _pools: Mapping[str, Pool]
    """Containers that are ready, by the agent that they are for."""
    _record: Recorder
    """What is written, traced and logged of the run."""
    _began_at: float
    """When its total clock began, on the event loop's clock."""
    _find: Callable[[Plan], Awaitable[Container]]
    """Finds or makes a kept container."""

    carrier: Carrier | None = attrs.field(default=None, init=False)
    """What carries the workspace, if it is carried."""
    outlet: Outlet = attrs.field(
        default=attrs.Factory(lambda self: Outlet(self._manager.engine, self._record), takes_self=True), init=False
    )
    """Its way out of the box, if it has one."""
    _claim: LockFile | None = attrs.field(default=None, init=False)
    _container: Container | None = attrs.field(default=None, init=False)
    """A kept one."""
    _process: Process | None = attrs.field(default=None, init=False)
    _stream: MessageStream = attrs.field(init=False)
    _started_at: float = attrs.field(default=0.0, init=False)
    """When the client was started, in seconds since the epoch."""
    _lookout: Lookout = attrs.field(
        default=attrs.Factory(lambda self: Lookout(self._manager, self._began_at), takes_self=True), init=False
    )
    _disk: DiskWatch | None = attrs.field(default=None, init=False)
    """What watches how much the agent writes, if that is limited."""
    _is_spoiled: bool = attrs.field(default=False, init=False)
    """Whether a kept container is one that no other run should use."""
    _for_names: int = attrs.field(default=0, init=False)  # starts that told an image's names; 2 are no attempts
    stopped_by: str | None = attrs.field(default=None, init=False)
    """The last rung of the ladder that was needed: "term", "kill", "container", or None."""
    has_left: bool = attrs.field(default=False, init=False)
    """Whether the agent has left in order when it was told that nothing more comes."""

    async def start(self) -> MessageStream:
        """Start the agent in a new, a waiting or a kept container, and wait until it has started.

        Raises:
            TotalTimeoutError: the options' total clock ran out.
            ContainerRunnerError: it could not be started, in `START_ATTEMPTS` attempts if the reason was transient.
        """
        timeout, plan = self._options.timeout, self.plan
        with anyio.move_on_at(math.inf if timeout is None else self._began_at + timeout):
            if plan.workspace is not None:
                carried, patient = plan.carry is not None, not self._manager.engine.sees_files
                self._claim = await claim(plan.state_dir, plan.workspace, carried=carried, patient=patient)
            try:
                try:
                    return await self._start()
                except EngineError as error:
                    if not may_refuse_overlay(plan.carry, error):
                        raise
                    return await self._start_again(error, overlay=False)
            except TRANSIENT as error:
                return await self._retry(error)
        raise total_timeout(self._options)

    async def outcome(self) -> ContainerRunnerError | None:
        """What went wrong, once the agent's output has ended; None for success."""
        self.outlet.expect_end()
        exit_code = await self._stream.wait()
        report, stderr = self._report()
        if self._disk is not None and (over := await self._disk.last()):
            return over
        if report.ended is None:
            return await why_lost(self._manager.engine, self.plan, exit_code, stderr, since=self._started_at)
        exit_code = report.ended  # the client's own is another one
        failure = self._runtime.outcome(self._stream.result, exit_code, stderr)
        if failure is None or report.step == "setup":
            return self._stream.denied() or step_failed(report, self.plan, stderr)
        if report.oom_kills:
            message = f"The agent ran out of memory: the kernel killed {report.oom_kills} of its processes."
            return OutOfMemoryError(message, exit_code=exit_code, stderr=stderr)
        if is_overdue(self.plan):
            return gone(self.plan, exit_code=exit_code, stderr=stderr)
        if self._stream.result is None and (signalled := killed(exit_code, stderr)):
            return signalled
        return failure

    async def fetch(self) -> bool:
        """Fetch what an agent that has ended has left in its box; True if so, and there may be more to read."""
        if not (self._running.is_kept and self._running.has_said_all):
            return False
        with self._record.trace.span("fetch"):
            await fetch_sessions(self._manager.engine, self.plan, self._record)
            if self.carrier is not None:
                self.outlet.expect_end()  # the container may go before all is fetched
                await self.carrier.fetch(self._running.close_stdin)
        self._running.is_kept = False
        return True

    async def stop(self) -> list[Message]:
        """Climb the ladder until the agent's client has ended.

        Our script inside sends TERM when the lease ends, and KILL after the grace. If that is not the end, all goes.

        Returns:
            What the agent still said on the way, see `MessageStream.drain`.
        """
        if not self._has_started:
            return []  # it is `finish` that ends a start
        if self._running.returncode is not None:
            return await self._stop()  # only its last words are left to read
        with self._record.trace.span("stop"):
            if self._running.takes_more:
                await fetch_sessions(self._manager.engine, self.plan, self._record, timeout=STOP_SLACK)
            said = await self._stop()
        self._record.stopped(self.stopped_by)
        return said

    async def _stop(self) -> list[Message]:
        process = self._running
        was_running = process.returncode is None
        said: list[Message] = []
        process.close_stdin()
        for rung, timeout in (("lease", self._options.grace + STOP_SLACK), ("container", STOP_SLACK)):
            if rung == "container":
                self.stopped_by = rung
                await self._remove()
            with anyio.move_on_after(timeout):
                await self._stream.drain(said)
                await process.wait()
            if process.returncode is not None:
                break
        if was_running and self.stopped_by is None:
            self.stopped_by = "kill" if self._report()[0].ended is None else "term"
        if self._stream.is_cut:
            self._record.cut()
        return said

    async def finish(self, max_containers: int) -> ContainerRunnerError | None:
        """Leave nothing behind, whatever is cancelled meanwhile; what could not be removed is an error."""
        if self._process is not None:
            self._dismiss(self._process)  # it takes no await, so nothing can come in between: the agent will end
        try:
            if self._has_started:
                self._stream.parse([])  # the record has also what was read and nobody asked for
        finally:
            left = await settle(lambda: self._end(max_containers))
        return left

    def _dismiss(self, process: Process) -> None:
        """Have the agent end."""
        process.close_stdin()

    @property
    def _running(self) -> Process:
        assert self._process is not None  # noqa: S101  start() comes first
        return self._process

    async def _start(self) -> MessageStream:
        options = self._options
        span: AbstractContextManager[None] = self._record.trace.span("create")
        if not self.plan.ephemeral:
            # It may have to wait for other runs of this agent, which must not hold up other agents.
            with span:
                kept = self._container = await self._find(self.plan)
            self.plan = attrs.evolve(self.plan, container=kept.name, ends_at=kept.ends_at)
            self._record.in_container(self.plan.container, self.plan.endpoint)
            span = nullcontext()
            if kept.created:
                await self._check_image()
        async with start_limiter():
            self._started_at = time.time()
            with span, proving(self.plan):
                try:
                    if not await self._start_client():
                        raise await self._refusal()
                except TimeoutError:
                    raise EngineTimeoutError("The agent had not started in time.") from None
        if self._disk is not None:
            self._disk.go_on()
        if isinstance(self._process, BeatingProcess):
            self._process.begin_to_beat()
        if self.plan.ephemeral:
            self._record.in_container(self.plan.container, self.plan.endpoint)
        self._stream = self._runtime.read(
            self._running,
            options,
            started_at=self._began_at,
            ends_at=anyio.current_time() + self.plan.ends_at - time.time(),
            check=self._check,
            is_owed=lambda: self.outlet.is_owed,
            used_up=lambda: self._disk and self._disk.over,
            record=self._record.record,
            session_id=self.plan.session_id,
            left_line=guest.check_line(self.plan.token) if self.plan.check else None,
        )
        return self._stream

    async def _start_client(self) -> bool:
        """Start the engine's client with the agent behind it; tell whether the agent has started."""
        plan, engine, limit = self.plan, self._manager.engine, self._options.line_limit
        gate, end = guest.started_line(plan.token), guest.ended_line(plan.token)
        pool = self._pools.get(plan.agent) if plan.ephemeral and plan.carry is None else None
        timeout = PULL_TIMEOUT if plan.may_pull else RUN_TIMEOUT
        warm = pool.take(plan.digest) if pool else None
        if plan.carry is None:
            self._disk = await DiskWatch.begin(plan)
        if warm is not None:
            self.plan = plan.taken_by(warm.plan)
            self._process = warm.process
            self.outlet.take(warm.gateway)
        elif plan.carry is not None:
            self.carrier = Carrier(self._manager, plan.carry)
            self._process = await self.carrier.start(plan)
            await self.outlet.open(plan)
            if not await self.carrier.bring(self._process, timeout):
                return False
            self._disk = await DiskWatch.begin(plan)
        elif plan.waits:
            self._process = await engine.start(plan.waiting, gate=plan.gate)
            await self.outlet.open(plan)
            if not await self._process.wait_for_gate(timeout):
                return False
        elif plan.ephemeral:
            self._process = await engine.start(plan.run, plan.stdin(proven=True), gate=gate, end=end, line_limit=limit)
            return await self._process.wait_for_gate(timeout)
        else:
            command, given = plan.exec_in(self.plan.container), plan.stdin(proven=True)
            self._process = await engine.start(command, given, gate=gate, end=end, line_limit=limit)
            await self.outlet.open(plan)
            return await self.outlet.begin(self._process, self.plan)
        # It is a container that waits for its command. One of the pool was looked at before.
        if warm is None:
            await self._check_image()
        await send_sessions(engine, self.plan)
        self._process.is_kept = plan.carry is not None or bool(plan.mounted.sent)
        given = plan.stdin(with_command=True, proven=True)
        self._process.send(given, gate=gate, end=end, line_limit=limit)
        return await self.outlet.begin(self._process, self.plan)

    async def _check_image(self) -> None:
        """See that the names that are mounted in a new container are its image's.

        Raises:
            EngineBusyError: they are not, and the next plan has none.
        """
        if not await fits(self._manager.engine, self.plan):
            self._is_spoiled, self._for_names = True, self._for_names + 1
            raise EngineBusyError(f"The name {self.plan.image} stands for another image than when it was looked at.")

    async def _retry(self, error: EngineError) -> MessageStream:
        from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

        attempts = AsyncRetrying(
            retry=retry_if_exception_type(TRANSIENT),
            stop=lambda done: done.attempt_number >= START_ATTEMPTS - 1 + min(self._for_names, 2),
            wait=wait_random_exponential(multiplier=0.2, max=2),
            sleep=anyio.sleep,
            reraise=True,
        )
        try:
            return await attempts(self._start_again, error)
        except ContainerGoneError as gone:
            raise await self._manager.explained(gone, self.plan) from None

    async def _start_again(self, error: EngineError, *, overlay: bool = True) -> MessageStream:
        _log.info("starting again: %s", error.message)
        self._record.note("restart", kind=error.kind, message=error.message)
        await settle(self._clear)
        if self.carrier is not None:
            await settle(self.carrier.discard)
        self.plan = self._make_plan(overlay)
        self._record.scrubber.add(self.plan.hidden)  # it has tokens of its own
        return await self._start()

    async def _end(self, max_containers: int) -> ContainerRunnerError | None:
        left: ContainerRunnerError | None = await self._finish(max_containers)
        if self._disk is not None:
            await self._disk.close()
        if self.carrier is not None:
            left = left or (None if self._lookout.is_lost else await self.carrier.finish())
            self.carrier.let_go()
        if self._claim is not None:
            self._claim.release(remove=True)
        return left

    async def _finish(self, max_containers: int) -> EngineError | None:
        name = self.plan.container
        if self._lookout.is_lost:
            await self._abandon()
            return None
        try:
            with anyio.fail_after(CLEANUP_TIMEOUT + self._options.grace):
                was_created = self._container is not None and self._container.created
                try:
                    if self._has_started and self._running.returncode is None:
                        await self.stop()
                finally:
                    await self._clear()
                if was_created:
                    await self._clean_up(max_containers)
        except Exception as error:  # of any kind: a hostile agent may find one, and must not outlive it
            left = left_over(name, error, name)
        else:
            return None
        await self._abandon()
        _log.warning("%s", left)
        return left

    async def _clean_up(self, max_containers: int) -> None:
        """Remove the agent's older containers. If it can not be done, that is no failure of this run."""
        try:
            await self._manager.clean_up(self.plan.agent, max_containers)
        except ContainerRunnerError as error:
            _log.warning("older containers of %s may be left: %s", self.plan.agent, error.message)

    async def _abandon(self) -> None:
        """Let go of everything, whatever state it is in."""
        if self._container is not None:
            self._container.let_go()
        await self.outlet.close()
        if self._process is not None:
            await self._process.abandon()

    async def _clear(self) -> None:
        """End the client, and see that an ephemeral container is gone, and a kept one given back."""
        kept = None if self.plan.ephemeral else self._container
        if self._process is not None:
            lost = self._has_started and self._report()[0].ended is None
            in_order = await self._manager.end_client(
                self._process, self.plan.container, kept=kept is not None, lost=lost
            )
            self._is_spoiled = self._is_spoiled or not in_order
            told = self._report()[0].ended  # once more: its last words were read meanwhile
            self._record.trace.end_exec(self._process.returncode if told is None else told)
            self._process = None
        await self.outlet.close()
        if kept is not None:
            await self._manager.release(kept, self.plan, is_spoiled=self._is_spoiled)
        self._container = None
        self._is_spoiled = False

    @property
    def _has_started(self) -> bool:
        line = None if self._process is None else self._process.gate_line
        return line is not None and line.startswith(guest.started_line(self.plan.token))

    async def _remove(self) -> None:
        try:
            await self._manager.engine.remove(self.plan.container)
        except EngineError as error:
            _log.debug("removing %s: %s", self.plan.container, error.message)

    async def _check(self) -> None:
        """Make sure, after a silence, that the client still waits for somebody."""
        self._running.prod()  # our script looks after the agent
        await self._lookout.look(self.plan, lambda: self._report()[1])

    def _report(self) -> tuple[guest.Report, str]:
        process, plan = self._running, self.plan
        report, stderr = guest.Report.parse(
            bytes(process.stderr),
            plan.run_id,
            plan.token,
            end_line=process.end_line or b"",
            exit_code=None if self._has_started else process.returncode,
        )
        return report, self._record.scrubber.text(stderr.decode("utf-8", "replace"))

    async def _refusal(self) -> ContainerRunnerError:
        """Why the agent was not started."""
        process, plan = self._running, self.plan
        try:
            with anyio.fail_after(STOP_SLACK):
                stdout = await process.read_all(2 * STDERR_TAIL)
                exit_code = await process.wait()
        except TimeoutError:
            return EngineTimeoutError("The engine's client did not end, though the agent was not started.")
        report, stderr = self._report()
        self._is_spoiled = report.refusal not in ("no-command", "not-executable")
        if report.refusal == "nameless":
            await learn(self._manager.engine, plan)
            self._for_names += 1
        if report.refusal is not None:
            return refused(report, plan, exit_code, stderr, for_missing=self._runtime.for_missing())
        done = Completed(returncode=exit_code, stdout=stdout, stderr=stderr)
        return await why_not_started(self._manager.engine, plan, done)
