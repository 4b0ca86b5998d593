"""The gateway of one run: its forwarder in the box, and the thread in which its connections are served.

A thread, and not the caller's event loop: connections must go on while the caller does something else between two
messages. A caller that computes without a pause slows it down (Python's threads take turns), and does not stop it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, AsyncExitStack
from functools import partial
from typing import Any, Final

import anyio
import anyio.abc
import anyio.to_thread
import attrs
from anyio.from_thread import BlockingPortal, start_blocking_portal

from container_runner.errors import (
    ContainerRunnerError,
    EngineBusyError,
    EngineError,
    EngineTimeoutError,
    ImageUnsuitableError,
)
from container_runner.gateway import ports
from container_runner.gateway.audit import Audit
from container_runner.gateway.forwarder import MOST_CHANNELS
from container_runner.gateway.frames import Channel, Mux, Violation
from container_runner.gateway.functions import Functions
from container_runner.gateway.hosted import HostedServer, check_programs
from container_runner.gateway.loop import Loop
from container_runner.gateway.mcp import McpServer, ToolServer
from container_runner.gateway.plan import GatewayPlan
from container_runner.gateway.policy import Policy
from container_runner.gateway.server import Connection, Server
from container_runner.session.mcp import SERVER
from container_runner.stream.process import Process, settle

START_TIMEOUT: Final = 60.0
"""Seconds that a forwarder may take to start."""

MOST_STARTS: Final = 4
"""How often a run's forwarder is started, should it die."""

RESTART_DELAY: Final = 0.3
"""Seconds before it is: at the end of a run its container goes, and with it the forwarder."""

STOP_TIMEOUT: Final = 5.0
"""Seconds that the end of a run waits for that of its gateway."""

END_GRACE: Final = 2.0
"""Seconds that the engine's client gets to end when its forwarder has."""

_log = logging.getLogger(__name__)


MOST_AT_WORK: Final = 5 * MOST_CHANNELS
"""How many connections may be worked on, with those that the box has reset, and that are not quite ended."""


class Gateway:
    """The way out of one run's box. `start` it before the agent, and `stop` it whatever happened."""

    def __init__(self, plan: GatewayPlan) -> None:
        self.plan = plan
        self._server: Server | None = None
        self._first: Future[Server] | None = None
        """Becomes a server, of which others are made."""
        self._is_over = False
        self.is_started = False
        """Whether the box could reach it once."""
        self._audit = Audit()
        self._lock = threading.Lock()
        self._thread: AbstractContextManager[BlockingPortal] | None = None
        self._portal: BlockingPortal | None = None
        self._scope: anyio.CancelScope | None = None
        self._functions: Functions | None = None
        self._listening: ports.Listening = []
        self._hosted: list[HostedServer] = []
        self._tasks: anyio.abc.TaskGroup | None = None

    async def open(self) -> None:
        """Start our thread, which `start` does as well: best while the container starts."""
        await settle(partial(anyio.to_thread.run_sync, self._begin))

    async def start(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        """Start the forwarder, and wait until the box can reach it.

        Args:
            argv: the engine's `exec` of `forwarder` in the box.
            env: the environment of the engine's client.

        Raises:
            ImageUnsuitableError: the image has nothing that can run it.
            EngineBusyError: its port in the box is taken.
            CommandNotFoundError: the program of an MCP server is not on this machine.
            PortError: one of the host that it is to open can not be opened.
            EngineError: the engine can not start it.
        """
        check_programs(self.plan.hosted)
        if self._portal is None:
            await self.open()
        assert self._portal is not None  # noqa: S101  it is open
        self._functions = _functions(self.plan)
        begun = anyio.Event()
        tell = partial(Loop.current().call, begun.set)
        served = self._portal.start_task_soon(self._serve, list(argv), dict(env), tell)
        served.add_done_callback(lambda _: tell())
        await begun.wait()
        if served.done():
            served.result()
        self.is_started = True

    def become(self, plan: GatewayPlan) -> None:
        """Let through what *plan* says, from now on: for a container that waited for its run, and has its forwarder.

        Raises:
            CommandNotFoundError: the program of an MCP server is not on this machine.
        """
        assert self._server is not None  # noqa: S101  it was started
        check_programs(plan.hosted)
        self.plan, self._functions = plan, _functions(plan)
        self._server = self._made(self._server)

    @property
    def is_owed(self) -> bool:
        """Whether the box waits for a function of the caller's, or for an MCP server that we have started."""
        is_called = self._functions is not None and self._functions.is_busy
        return is_called or any(server.is_busy for server in self._hosted)

    def expect_end(self) -> None:
        """Start no forwarder any more: the agent has ended, and the container goes."""
        self._is_over = True

    def taken(self) -> list[Connection]:
        """The connections that have ended since it was last asked."""
        return self._audit.taken()

    async def stop(self) -> None:
        """End it, and its forwarder. Nothing happens if it was not started."""
        if self._functions is not None:
            await settle(self._functions.end)
        if self._portal is not None:
            await settle(self._stop)

    async def _stop(self) -> None:
        # A name that is being resolved can not be broken off: its thread then ends by itself.
        with anyio.move_on_after(STOP_TIMEOUT):
            await anyio.to_thread.run_sync(self._end, abandon_on_cancel=True)

    def _begin(self) -> None:
        with self._lock:  # `settle` begins again while the first try still goes on
            if self._portal is None:
                self._thread = start_blocking_portal(name="container-runner gateway")
                portal = self._thread.__enter__()
                # Reading certificates takes a while: nobody waits for it before somebody is to be served.
                self._first = portal.start_task_soon(anyio.to_thread.run_sync, self._empty)
                self._portal = portal

    def _end(self) -> None:
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is not None and self._portal is not None:
                self._portal.call(self._cancel)
                thread.__exit__(None, None, None)  # waits for what still ends

    def _cancel(self) -> None:
        if self._scope is not None:
            self._scope.cancel()

    async def _serve(self, argv: list[str], env: dict[str, str], on_start: Callable[[], None]) -> None:
        """Have a forwarder, and another if it dies, until it is stopped."""
        run = self.plan.run  # the forwarder's name for it, whatever the gateway becomes
        try:
            with anyio.CancelScope() as self._scope:  # it belongs to this thread's loop
                async with AsyncExitStack() as stack:
                    self._listening = await ports.listen(self.plan.ports, stack)
                    await self._keep_all(run, argv, env, on_start)
        finally:
            if self._server is not None:
                with anyio.CancelScope(shield=True):
                    await self._server.close()

    async def _keep_all(self, run: str, argv: list[str], env: dict[str, str], on_start: Callable[[], None]) -> None:
        """Have a forwarder, and beside it the MCP servers that the box asks for."""
        failure: ContainerRunnerError | OSError | None = None
        async with anyio.create_task_group() as self._tasks:
            try:
                await self._keep_forwarding(run, argv, env, on_start)
            except (ContainerRunnerError, OSError) as error:  # as itself, and not in a group
                failure = error
            self._tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _keep_forwarding(
        self, run: str, argv: list[str], env: dict[str, str], on_start: Callable[[], None]
    ) -> None:
        await self._forward(run, argv, env, on_start)
        for _ in range(MOST_STARTS - 1):
            await anyio.sleep(RESTART_DELAY)
            if self._is_over:
                break
            try:
                await self._forward(run, argv, env, lambda: None)
            except (ContainerRunnerError, OSError) as error:
                _log.info("the gateway of run %s is not started again: %s", run, error)
                break

    async def _forward(self, run: str, argv: list[str], env: dict[str, str], on_start: Callable[[], None]) -> None:
        """Start a forwarder and serve it to its end."""
        gate = f"container-runner: forwarding {run}".encode()
        process = await Process.start(argv, env=env, hold_stdin=True, gate=gate, chunks=True)
        try:
            if self._server is None:
                assert self._first is not None  # noqa: S101  `open` began to make it
                self._server = self._made(await anyio.to_thread.run_sync(self._first.result))
            try:
                if not await process.wait_for_gate(START_TIMEOUT):
                    raise await self._refusal(process)
            except TimeoutError:
                raise EngineTimeoutError("The gateway's forwarder had not started in time.") from None
            on_start()
            async with anyio.create_task_group() as tasks:
                at_work = 0

                async def serve(channel: Channel) -> None:
                    nonlocal at_work
                    assert self._server is not None  # noqa: S101  it was made above
                    at_work += 1
                    try:
                        await self._server.serve(channel)
                    finally:
                        at_work -= 1

                def accept(channel: Channel) -> None:
                    # The mux counts those that are open; some have yet to end.
                    if at_work >= MOST_AT_WORK:
                        raise Violation("more connections than can be ended")
                    tasks.start_soon(serve, channel)

                mux = Mux(process)
                for port, listener in self._listening:
                    tasks.start_soon(ports.serve, port, listener, mux, self._audit.add)
                try:
                    await mux.run(accept)
                except Violation as error:
                    self._audit.add(Connection(verdict="failed", reason=f"the forwarder was ended: {error}"))
                tasks.cancel_scope.cancel()
        finally:
            process.close_stdin()
            with anyio.CancelScope(shield=True):
                with anyio.move_on_after(END_GRACE):
                    await process.wait()
                await process.terminate(END_GRACE)
            process.close()

    def _empty(self) -> Server:
        """What lets nothing through."""
        return Server(Policy(()), self.plan.port, on_end=self._audit.add)

    def _made(self, before: Server) -> Server:
        """What serves the connections of a run as the plan says, with what another one has at hand."""
        plan, servers = self.plan, dict[str, McpServer]()
        if plan.toolbox is not None and self._functions is not None:
            servers[SERVER] = ToolServer(plan.toolbox.tools, self._functions.call, plan.toolbox.token)
        self._hosted = [HostedServer(one, self._start_soon) for one in plan.hosted if one.argv]
        servers |= {server.name: server for server in self._hosted}
        return attrs.evolve(
            before,
            policy=Policy(plan.allow_hosts, plan.allow_addresses),
            routes=plan.routes,
            servers=servers,
            hosted={one.name: one.route for one in plan.hosted if one.route is not None},
            proxy=plan.proxy,
        )

    def _start_soon(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Start a task in our thread, from there. It ends with us."""
        assert self._tasks is not None  # noqa: S101  somebody was served
        self._tasks.start_soon(work)

    async def _refusal(self, process: Process) -> ContainerRunnerError:
        """Why a forwarder did not start."""
        with anyio.move_on_after(END_GRACE):
            await process.wait()
        said = process.stderr.decode("utf-8", "replace")
        if "container-runner: no-interpreter" in said:
            return ImageUnsuitableError(
                "The image has neither perl, python3 nor node, one of which the gateway needs.",
                next_step='Add perl-base to the image, or choose another network, as --network=none or "bridge".',
            )
        if "container-runner: no-port" in said:
            return EngineBusyError(f"The port {self.plan.port} of the container, which the gateway needs, is taken.")
        return EngineError("The gateway's forwarder could not be started.", exit_code=process.returncode, stderr=said)


def _functions(plan: GatewayPlan) -> Functions | None:
    """The caller's functions, which are called on the event loop that calls this."""
    return None if plan.toolbox is None else Functions(plan.toolbox.tools, plan.toolbox.timeout)
