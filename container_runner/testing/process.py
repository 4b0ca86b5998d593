"""The processes that a fake engine starts: a thread plays each one's answer into its pipes."""

from __future__ import annotations

import io
import os
import selectors
import signal
import threading
import time
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any, Final

import anyio
import anyio.lowlevel
import attrs

from container_runner.box import guest, script
from container_runner.testing.replies import Reply
from container_runner.testing.stdin import Stdin

TICK: Final = 0.01
"""Seconds between two looks at what a fake process should do."""

CHUNK: Final = 64 * 1024

_pids = count(2**30)  # no system has pids this high, so a signal to one can not reach a stranger


@attrs.define(kw_only=True, eq=False)
class Call:
    """A command that was run."""

    argv: tuple[str, ...]
    """The whole command."""

    env: Mapping[str, str] = attrs.field(repr=False)
    """The environment that it was given, with the values of the variables that `argv` names."""

    stdin: bytes = attrs.field(default=b"", repr=False)
    """What it has read from stdin so far."""

    returncode: int | None = None
    """Its exit code, -N if signal N ended it, None while it runs."""


class Output(io.BytesIO):
    """Takes what `fp` has registered for a stream; to a real process it is the pipe itself."""

    mode = "wb"

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd

    def fileno(self) -> int:
        return self._fd


class PlayedProcess:
    """What the package uses of `anyio.abc.Process`. A thread plays the answer, as a process would."""

    def __init__(
        self,
        call: Call,
        popen: Any,
        reply_to: Callable[[str], Reply] | None,
        stdin: int,
        stdout: Output,
        stderr: Output,
    ) -> None:
        self._call = call
        self._popen = popen
        self._reply_to = reply_to
        self._answer = {"stdout": stdout, "stderr": stderr}
        self._unsent: dict[str, memoryview] = {}
        self._signal: int | None = None
        self._closed = False
        self._stdin = bytearray()
        self.error: BaseException | None = None
        """What a callback of the test has raised."""
        self._thread: threading.Thread | None = None
        self.pid = next(_pids)
        if hasattr(popen, "received_signals"):  # it is one of `fp`; a real process plays by itself
            # The caller closes its ends as soon as the process has started.
            self._fds = {
                "stdin": os.dup(stdin), "stdout": os.dup(stdout.fileno()), "stderr": os.dup(stderr.fileno())
            }  # fmt: skip
            self._selector = selectors.DefaultSelector()
            self._selector.register(self._fds["stdin"], selectors.EVENT_READ, "stdin")
            for name in ("stdout", "stderr"):
                os.set_blocking(self._fds[name], False)
            self._thread = threading.Thread(target=self._play, daemon=True)
            self._thread.start()
        else:
            self.pid = popen.pid

    @property
    def returncode(self) -> int | None:
        if self._thread is None:
            self._call.returncode = self._popen.poll()
        return self._call.returncode

    async def wait(self) -> int:
        """Wait for its end, and raise what a callback of the test has raised."""
        await anyio.lowlevel.checkpoint()
        while (code := self.returncode) is None:
            await anyio.sleep(TICK)
        if self.error is not None:
            raise self.error
        return code

    def terminate(self) -> None:
        """End it with TERM, of which `fp` hears."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it with KILL, of which `fp` hears."""
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        """End it with any signal."""
        self._popen.send_signal(number)
        self._signal = number

    def close(self) -> None:
        """End it with the test."""
        if self._thread is not None:
            self._closed = True
            self._thread.join(10)
        elif self._popen.poll() is None:
            self._popen.kill()
            self._popen.wait()

    def _play(self) -> None:
        code: int | None = None
        try:
            code = self._answer_command() if self._reply_to is None else self._answer_agent(self._reply_to)
        except _CutShortError:
            pass
        except BaseException as error:  # of the test's own callback: it belongs to who waits for the process
            self.error = error
        finally:
            # First the code, then the pipes' end: who sees the end finds the code.
            self._call.returncode = -(self._signal or signal.SIGKILL) if code is None else code
            for name in list(self._fds):
                self._close(name)
            self._selector.close()

    def _answer_command(self) -> int:
        """What `fp` has registered, stdin_callable and callback and wait included."""
        self._read_stdin(attached=script.GUEST in self._call.argv)
        self._say(**{name: answer.getvalue() for name, answer in self._answer.items()})
        self._move_while(lambda: self._popen.poll() is None)
        if self._call.stdin:
            stdout, stderr = self._popen.communicate(self._call.stdin)
            self._say(stdout or b"", stderr or b"")
        self._move_while(lambda: bool(self._unsent))
        return int(self._popen.returncode)

    def _answer_agent(self, reply_to: Callable[[str], Reply]) -> int:
        """What our script and the agent in it would say."""
        at = self._call.argv.index(script.GUEST)
        run = self._call.argv[at - 1]
        if self._call.argv[1] == "run" and len(self._call.argv) == at + 2:  # a container of a pool
            self._say(stderr=guest.up_line(run) + b"\n" + guest.ready_line(run) + b"\n")
        self._read_stdin(attached=True)
        needed = Stdin.length(self._call.stdin)
        if needed is None or len(self._call.stdin) < needed:
            return script.EXIT_NO_HEADER  # the lease ended in front of the agent
        given = Stdin.of(self._call.stdin)
        token, prompt = given.fields["token"], given.prompt.decode("utf-8", "replace")
        reply = reply_to(prompt)
        stderr = reply.stderr.replace(b"{run}", run.encode()).replace(b"{token}", token.encode())
        stderr += b"\n" if stderr and not stderr.endswith(b"\n") else b""
        if not reply.started:
            self._say(stderr=stderr)
            self._move_while(lambda: bool(self._unsent))
            return reply.exit_code
        self._say(stderr=guest.started_line(token) + b"\n" + stderr, stdout=reply.stdout(prompt))
        # The agent lives as long as its lease, which ends with stdin.
        self._move_while(lambda: self._stdin_is_open and (reply.hang or bool(self._unsent)))
        code = 128 + signal.SIGTERM if reply.hang or self._unsent else reply.exit_code
        step = reply.failed_step or ("check" if given.fields["check"] and code == 0 else "")
        self._say(stderr=f"container-runner: ended {token} {code}{step and ' '}{step}\n".encode())
        self._move_while(lambda: bool(self._unsent))
        return 0

    @property
    def _stdin_is_open(self) -> bool:
        return "stdin" in self._fds

    def _read_stdin(self, *, attached: bool) -> None:
        """Read header and prompt if *attached*, or all: behind an agent's prompt comes its lease, which stays open."""
        needed: int | None = None
        while self._stdin_is_open and (needed is None or len(self._stdin) < needed):
            before = len(self._stdin)
            self._move_while(lambda: self._stdin_is_open and len(self._stdin) == before)  # noqa: B023  called at once
            if attached and needed is None:
                needed = Stdin.length(bytes(self._stdin))
        self._call.stdin = bytes(self._stdin)

    def _say(self, stdout: bytes = b"", stderr: bytes = b"") -> None:
        for name, data in (("stdout", stdout), ("stderr", stderr)):
            if data and name in self._fds:
                if name not in self._unsent:
                    self._selector.register(self._fds[name], selectors.EVENT_WRITE, name)
                self._unsent[name] = memoryview(bytes(self._unsent.get(name, b"")) + data)

    def _move_while(self, needed: Callable[[], bool]) -> None:
        while needed():
            for key, _ in self._selector.select(TICK):
                self._move(key.data, key.fd)
            if not self._selector.get_map():
                time.sleep(TICK)  # nothing to move; a callback or a delay is still at work
            if self._closed or self._signal is not None:
                raise _CutShortError

    def _move(self, name: str, fd: int) -> None:
        if name == "stdin":
            chunk = os.read(fd, CHUNK)
            self._stdin += chunk
            if not chunk:
                self._close("stdin")
            return
        try:
            sent = os.write(fd, self._unsent[name][:CHUNK])
        except BrokenPipeError:  # its reader has left, which is its right
            self._close(name)
            return
        self._unsent[name] = self._unsent[name][sent:]
        if not self._unsent[name]:
            del self._unsent[name]
            self._selector.unregister(fd)

    def _close(self, name: str) -> None:
        fd = self._fds.pop(name)
        self._unsent.pop(name, None)
        if fd in self._selector.get_map():
            self._selector.unregister(fd)
        os.close(fd)


class _CutShortError(Exception):
    """A signal, or the test's end, ends a process before its answer does."""
