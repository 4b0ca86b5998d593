"""Starts every process that is waited for on an event loop: all but the ssh of `engine/tunnel`.

A `Process` feeds its child's stdin, hands out its stdout by lines, and keeps the end of its stderr. One selector
watches the three pipes, and waiting for the selector is the only await: no task, no task group and no cancel scope
is open between two reads, so an async generator may hold a `Process` across its yields, a cancelled read loses
nothing, and asyncio and trio behave alike. While nobody reads, nothing is read: the pipes fill, and the child waits.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import selectors
import signal
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

import anyio
import anyio.abc
import anyio.lowlevel
import attrs
from anyio import open_process

from container_runner.stream.lines import Chunks, Exact, LineSplitter, OversizedLine
from container_runner.stream.settle import settle as settle

CHUNK: Final = 256 * 1024
MOST_PARTS: Final = 16
"""How many pieces are sent at once."""

EARLY_LIMIT: Final = 16 * 1024**2
"""How many bytes of stdout are taken before the gate opens. They must be taken: an engine carries stdout and stderr
each on its own, so an agent's flood can overtake the line that opens the gate, and fill every pipe in front of it."""

STDERR_TAIL: Final = 64 * 1024
"""How many bytes of stderr are kept, the newest."""

EXIT_GRACE: Final = 2.0
"""Seconds that the pipes of a process that has ended may stay open, held by a grandchild."""

EXIT_POLL: Final = 0.5
"""Seconds between two looks at whether it has ended, where the system does not tell."""

KILL_PATIENCE: Final = 2.0
"""Seconds that a process may take to end after KILL. One in the middle of a system call may never do."""

TERM_GRACE: Final = 10.0
"""Seconds between TERM and KILL for a client. `podman run` that is killed at once leaks."""


@attrs.define(eq=False, repr=False, slots=False)
class Process:
    """A running child process. Make one with `Process.start`."""

    _process: anyio.abc.Process
    _selector: selectors.DefaultSelector
    _fds: dict[str, int]
    _unsent: deque[memoryview]
    _hold_stdin: bool
    splitter: LineSplitter | Chunks | Exact
    _gate: bytes | None
    _end: bytes | None

    _early: bytearray = attrs.field(factory=bytearray, init=False)
    _exited_at: float | None = attrs.field(default=None, init=False)
    stderr: bytearray = attrs.field(factory=bytearray, init=False)
    """The end of its stderr, `STDERR_TAIL` bytes at the least if there were as many."""
    gate_line: bytes | None = attrs.field(default=None, init=False)
    """The line of stderr that opened the gate."""
    end_line: bytes | None = attrs.field(default=None, init=False)
    """The line that ends stdout, once it has come."""
    on_stderr: Callable[[bytes], object] | None = attrs.field(default=None, init=False)
    """Is called with what comes on stderr once the gate is open, as it comes, and with b"" at its end."""
    is_kept: bool = attrs.field(default=False, init=False)
    """Whether its stdin stays open though it has said all, until `close_stdin`. `read` then has nothing more."""

    @classmethod
    async def start(
        cls,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        stdin: bytes = b"",
        hold_stdin: bool = False,
        gate: bytes | None = None,
        end: bytes | None = None,
        line_limit: int | None = None,
        chunks: bool = False,
    ) -> Process:
        """Start *argv* in a session of its own, so that a terminal's Ctrl-C reaches us first.

        Args:
            stdin: what it gets on stdin, which then ends.
            hold_stdin: keep stdin open behind it, until `close_stdin`.
            gate: how the line of stderr begins that `wait_for_gate` waits for.
            end: how the last line of stdout begins, after which the process waits for its stdin to end. It is not
                among the lines that are read.
            line_limit: see `LineSplitter`.
            chunks: hand out stdout as it comes, and not by lines.

        Raises:
            OSError: the program is not there, can not be run, or an argument is too long.
        """
        pipes: list[int] = []
        selector = selectors.DefaultSelector()  # before there is a child that would be left if it can not be had
        try:
            for _ in range(3):
                pipes += os.pipe()
            their_in, our_in, our_out, their_out, our_err, their_err = pipes
            for fd in (our_in, our_out, our_err):
                os.set_blocking(fd, False)
            # Who may write a whole chunk ahead need not be waited for so often; what is no lines is much both ways.
            with contextlib.suppress(AttributeError, OSError):  # not Linux, or the user's pipes hold too much already
                fcntl.fcntl(our_out, fcntl.F_SETPIPE_SZ, CHUNK)
                if chunks:
                    fcntl.fcntl(our_in, fcntl.F_SETPIPE_SZ, CHUNK)
            # Cancelling a start would kill the child with SIGKILL at a moment when nobody cleans up after it.
            with anyio.CancelScope(shield=True):
                process = await open_process(
                    list(argv),
                    stdin=their_in,
                    stdout=their_out,
                    stderr=their_err,
                    env=env,
                    cwd=cwd,
                    start_new_session=True,
                )
        except BaseException:
            for fd in pipes:
                os.close(fd)
            selector.close()
            raise
        for fd in (their_in, their_out, their_err):
            os.close(fd)
        splitter = Chunks() if chunks else LineSplitter(line_limit)
        fds = {"stdin": our_in, "stdout": our_out, "stderr": our_err}
        self = cls(process, selector, fds, deque([memoryview(stdin)] if stdin else ()), hold_stdin, splitter, gate, end)
        try:
            self._watch()
        except BaseException:  # the kernel has no memory left for it, say
            self.close()
            await settle(self.terminate)
            raise
        return self

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def has_said_all(self) -> bool:
        """Whether the line that ends stdout has come."""
        return self.end_line is not None

    @property
    def returncode(self) -> int | None:
        """Its exit code, -N if signal N ended it, None while it runs."""
        return self._process.returncode

    def send(self, stdin: bytes, *, gate: bytes, end: bytes, line_limit: int | None = None) -> None:
        """Give more on a stdin that was held, and close the gate again until another line of stderr.

        For a process whose first gate is open, and which has said nothing since: a container that waits for its run.
        """
        self._unsent.append(memoryview(stdin))
        self._gate, self._end, self.gate_line = gate, end, None
        self.splitter = LineSplitter(line_limit)
        self._selector.register(self._fds["stdin"], selectors.EVENT_WRITE, "stdin")

    def give(self, data: bytes, *, last: bool = False) -> None:
        """Give more on a stdin that is held; `read` or `turn` sends it. Nothing happens if the process has closed it.

        Args:
            last: end stdin behind it.
        """
        self._hold_stdin = not last
        if data and "stdin" in self._fds:
            if not self._unsent:
                self._selector.register(self._fds["stdin"], selectors.EVENT_WRITE, "stdin")
            self._unsent.append(memoryview(data))
        elif last and not self._unsent:
            self.close_stdin()

    @property
    def unsent(self) -> int:
        """How many bytes of what was given are still to be sent."""
        return sum(map(len, self._unsent))

    def carry(self, other: Process) -> None:
        """Move what *other* has to move too, whenever this one is waited for, and drop what it says on stdout."""
        self._selector.register(other._selector.fileno(), selectors.EVENT_READ, other)

    @property
    def takes_more(self) -> bool:
        """Whether its stdin is still open."""
        return "stdin" in self._fds

    @property
    def is_hungry(self) -> bool:
        """Whether all that was given has been sent, or nobody is left who would take it."""
        return not self._unsent or not {"stdout", "stderr"} & self._fds.keys()

    @property
    def talks(self) -> bool:
        """Whether its stdout has not ended yet."""
        return "stdout" in self._fds

    async def turn(self) -> list[bytes | OversizedLine]:
        """Wait until something can be moved, either way, move it, and return what came on stdout: often nothing."""
        await (anyio.lowlevel.checkpoint() if self._early else self._wait_until(None))
        return self._take_early() or self._pump()

    def prod(self, data: bytes = b"\n") -> bool:
        """Write at most `PIPE_BUF` bytes to a stdin that is held, at once, if nothing waits; tell if there was room."""
        if "stdin" in self._fds and not self._unsent:
            with contextlib.suppress(BlockingIOError, BrokenPipeError):
                return os.write(self._fds["stdin"], data) > 0
        return False

    async def wait_for_gate(self, timeout: float) -> bool:
        """Wait for the gate's line of stderr, and tell whether it came: False if stderr ended first.

        What comes on stdout meanwhile is for `read`, as if it had come afterwards.

        Raises:
            TimeoutError: neither happened within *timeout* seconds.
        """
        deadline = anyio.current_time() + timeout
        while self._gate is not None:
            self._pump()
            if self._gate is not None:
                await self._wait_until(deadline)
        return self.gate_line is not None

    async def read(self, timeout: float | None = None) -> list[bytes | OversizedLine]:
        """The next lines of stdout, at least one; none at its end.

        Raises:
            TimeoutError: *timeout* seconds went by without a line. Nothing is lost; read again.
        """
        await anyio.lowlevel.checkpoint()  # before anything is taken from a pipe, so that cancelling loses nothing
        deadline = None if timeout is None else anyio.current_time() + timeout
        if lines := self._take_early():
            return lines
        while True:
            lines = self._pump()
            if self._exited_at is not None and anyio.current_time() >= self._exited_at + EXIT_GRACE:
                self.give_up_pipes()  # all that it wrote has been taken; what comes now is a grandchild's
            if lines:
                return lines
            if self.has_said_all:  # and the reader, who asks for more, has got it all
                if self.is_kept and "stdin" in self._fds:
                    return []
                self.close_stdin()
            if "stdout" not in self._fds and "stderr" not in self._fds:
                return self.splitter.flush()
            await self._wait_until(deadline)

    async def read_all(self, limit: int) -> bytes:
        """The rest of stdout. Lines that do not fit into *limit* bytes any more are read and dropped."""
        kept = bytearray()
        while lines := await self.read():
            for line in lines:
                if isinstance(line, bytes) and len(kept) + len(line) < limit:
                    kept += line
                    kept += b"\n"
        return bytes(kept[:-1])

    async def wait(self, timeout: float | None = None) -> int:
        """Wait for its end, and return its exit code.

        Raises:
            TimeoutError: it still runs after *timeout* seconds.
        """
        with anyio.fail_after(timeout):
            return await self._process.wait()

    def limit_lines(self, limit: int) -> None:
        """Keep no line from now on that is longer than *limit* bytes."""
        self.splitter.limit = min(self.splitter.limit, limit)

    def close_stdin(self) -> None:
        """End its stdin. For a leased process this is what stops it, and it takes no await."""
        self._close("stdin")

    async def terminate(self, grace: float | None = None) -> None:
        """End the process itself: TERM, *grace* seconds (`TERM_GRACE`), KILL. Nothing happens if it has ended."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.returncode is not None:
                return
            self._signal(number)
            with anyio.move_on_after(TERM_GRACE if grace is None else grace):
                await self._process.wait()

    async def abandon(self) -> None:
        """Kill it, let go of its pipes, and wait no longer than a kill takes: who is not waited for stays a zombie."""
        self._signal(signal.SIGKILL)
        self.close()
        with anyio.move_on_after(KILL_PATIENCE):
            await self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            # asyncio's own way collects a child that has just ended, and its exit code is lost to who waits for it.
            if "exit" in self._fds:
                signal.pidfd_send_signal(self._fds["exit"], number)
            elif self._exited_at is None:  # there are no pidfds, or it was closed
                self._process.send_signal(number)

    def close(self) -> None:
        """Let go of the pipes. It does not end the process: one that still writes gets SIGPIPE."""
        for name in list(self._fds):
            self._close(name)
        self._selector.close()

    def _watch(self) -> None:
        """Have the selector tell of the pipes, and of the process's end."""
        self._selector.register(self._fds["stderr"], selectors.EVENT_READ, "stderr")
        self._selector.register(self._fds["stdout"], selectors.EVENT_READ, "stdout")
        if self._unsent:
            self._selector.register(self._fds["stdin"], selectors.EVENT_WRITE, "stdin")
        elif not self._hold_stdin:
            self.close_stdin()
        try:
            self._fds["exit"] = os.pidfd_open(self.pid)
            self._selector.register(self._fds["exit"], selectors.EVENT_READ, "exit")
        except ProcessLookupError:  # it has ended, and has been waited for
            self._exited_at = anyio.current_time()
        except (AttributeError, OSError):  # a system without pidfds: `_wait_until` looks now and then
            pass

    async def _wait_until(self, deadline: float | None) -> None:
        """Wait for something to do. A process that has ended is not waited for longer than `EXIT_GRACE`."""
        now = anyio.current_time()
        ends = [] if deadline is None else [deadline]
        if self._exited_at is None and "exit" not in self._fds:
            if self.returncode is not None:
                self._exited_at = now
            ends.append(now + EXIT_POLL)
        if self._exited_at is not None:
            if now >= self._exited_at + EXIT_GRACE:
                self.give_up_pipes()
                return
            ends.append(self._exited_at + EXIT_GRACE)
        if deadline is not None and now >= deadline:
            raise TimeoutError
        with anyio.move_on_at(min(ends, default=math.inf)):
            await anyio.wait_readable(self._selector.fileno())

    def give_up_pipes(self) -> None:
        """Hear no more of what it says."""
        self._close("stdout")
        self._close("stderr")
        self._gate = None

    def _close(self, name: str) -> None:
        if (fd := self._fds.pop(name, None)) is None:
            return
        if fd in self._selector.get_map():
            self._selector.unregister(fd)
        os.close(fd)

    def _pump(self) -> list[bytes | OversizedLine]:
        """Move what can be moved without waiting."""
        lines: list[bytes | OversizedLine] = []
        is_early = self._gate is not None  # also if the gate opens in the middle: who waits for it takes no lines
        for key, _ in self._selector.select(0):
            if key.data == "stdout":
                if not (chunk := os.read(key.fd, CHUNK)):
                    self._close("stdout")
                elif is_early:
                    self._hold_early(chunk)
                else:
                    lines += self._split(chunk)
            elif key.data == "stderr":
                self._take_stderr(os.read(key.fd, CHUNK))
            elif key.data == "stdin":
                self._feed(key.fd)
            elif isinstance(key.data, Process):
                key.data._pump()  # noqa: SLF001  it is one of our own kind
            else:
                self._exited_at = anyio.current_time()
                self._close("exit")
        return lines

    def _feed(self, fd: int) -> None:
        try:
            sent = os.writev(fd, [part[:CHUNK] for part in islice(self._unsent, MOST_PARTS)])
        except BlockingIOError:
            return
        except BrokenPipeError:  # it does not want the rest, which is its right
            self._unsent.clear()
            self._close("stdin")
            return
        while self._unsent and sent >= len(self._unsent[0]):
            sent -= len(self._unsent.popleft())
        if sent:
            self._unsent[0] = self._unsent[0][sent:]
        if not self._unsent:
            self._selector.unregister(fd)
            if not self._hold_stdin:
                self._close("stdin")

    def _take_stderr(self, chunk: bytes) -> None:
        if self.on_stderr is not None and self._gate is None:
            self.on_stderr(chunk)
        if not chunk:
            self._close("stderr")
            self._open_gate()  # it will not come any more; what is on stdout is the engine's
            return
        self.stderr += chunk
        if self._gate is not None:
            start = self.stderr.find(self._gate)
            end = self.stderr.find(b"\n", start)
            if start >= 0 and end >= 0:
                self.gate_line = bytes(self.stderr[start:end])
                del self.stderr[: end + 1]
                self._open_gate()
        if len(self.stderr) > 2 * STDERR_TAIL:
            del self.stderr[:-STDERR_TAIL]

    def _split(self, chunk: bytes) -> list[bytes | OversizedLine]:
        lines = self.splitter.push(chunk)
        # Nothing comes behind the line that ends it all.
        if lines and self._end is not None and isinstance(lines[-1], bytes) and lines[-1].startswith(self._end):
            self.end_line = lines[-1]
            del lines[-1]
        return lines

    def _hold_early(self, chunk: bytes) -> None:
        """Keep what came on stdout before the gate's line. If it is too much, the rest stays where it is for now."""
        self._early += chunk
        if self._gate is not None and len(self._early) >= EARLY_LIMIT:
            self._selector.unregister(self._fds["stdout"])

    def _take_early(self) -> list[bytes | OversizedLine]:
        early, self._early = bytes(self._early), bytearray()
        return self._split(early) if early else []

    def _open_gate(self) -> None:
        self._gate = None
        if (stdout := self._fds.get("stdout")) is not None and stdout not in self._selector.get_map():
            self._selector.register(stdout, selectors.EVENT_READ, "stdout")
