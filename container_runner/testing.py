"""A pytest plugin: `fake_engine`, for tests of code that uses this package, without docker or podman.

It builds on pytest-subprocess, whose `fp` says which commands are expected and what they answer. By itself `fp`
can not answer `anyio.open_process`; this fixture stands where the package starts its processes, asks `fp` there, and
plays the answer into the pipes. Install it with `pip install 'agent-container-runner[testing]'`.

pytest imports this module wherever the package is installed, so it asks for nothing until the fixture is used.
"""

from __future__ import annotations

import io
import json
import os
import re
import selectors
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import anyio
import anyio.lowlevel
import attrs
import pytest

from container_runner.box import guest

if TYPE_CHECKING:
    from pytest_subprocess import FakeProcess

__all__ = ["Call", "FakeEngine", "fake_engine"]

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


class FakeEngine:
    """An engine that does nothing but say what a test tells it to.

    `reply`, `messages` and `transcript` each prepare one run of an agent, in the order in which they are called.
    For anything else, register commands with `fp`; a command that was registered first is answered first.

    A command that nobody registered raises `pytest_subprocess.exceptions.ProcessNotRegisteredError`, and fails the
    test also where that error was caught.
    """

    def __init__(self, fp: FakeProcess) -> None:
        self.fp = fp
        """The `fp` fixture of pytest-subprocess."""
        self.calls: list[Call] = []
        """All commands that were run, oldest first."""
        self.strict = False
        """Whether the test fails at its end if a run was prepared, or a command registered, and never happened."""
        self._runs: list[_AgentRun] = []
        self._processes: list[_PlayedProcess] = []
        self._unregistered: list[Sequence[str]] = []
        self._always: set[int] = set()

    def reply(self, text: str, *, session_id: str = "11111111-2222-4333-8444-555555555555") -> None:
        """Prepare a run in which claude answers *text*, and succeeds."""
        content = [{"type": "text", "text": text}]
        self.messages(
            [
                {"type": "system", "subtype": "init", "session_id": session_id, "model": "claude-fake"},
                {"type": "assistant", "message": {"role": "assistant", "content": content}, "session_id": session_id},
                {"type": "result", "subtype": "success", "is_error": False, "result": text, "num_turns": 1,
                 "session_id": session_id},
            ]
        )  # fmt: skip

    def messages(
        self,
        lines: Iterable[Mapping[str, Any] | str | bytes],
        *,
        exit_code: int = 0,
        stderr: str = "",
        hang: bool = False,
    ) -> None:
        """Prepare a run: the engine's part of it, and an agent that prints *lines*.

        Args:
            lines: mappings are printed as JSON, text and bytes as they are; each gets a newline.
            exit_code: what the agent exits with.
            stderr: what it writes to stderr.
            hang: the agent then stays, silent, until it is stopped.
        """
        if not self._runs:
            self._register_engine()
        run = _AgentRun(
            recorder=self.fp.register([_ENGINE, "exec", "--interactive", self.fp.any()]),
            stdout=b"".join(_line(line) for line in lines),
            stderr=stderr.encode(),
            exit_code=exit_code,
            hang=hang,
        )
        self._runs.append(run)

    def transcript(self, path: str | os.PathLike[str], *, exit_code: int = 0, stderr: str = "") -> None:
        """Prepare a run in which the agent prints the lines of a file, such as a recorded session."""
        self.messages(Path(path).read_bytes().splitlines(), exit_code=exit_code, stderr=stderr)

    @property
    def run_argv(self) -> tuple[str, ...]:
        """The latest `run` command, which started a container."""
        return self._latest("run").argv

    @property
    def exec_argv(self) -> tuple[str, ...]:
        """The latest `exec` command, which ran an agent."""
        return self._latest("exec", "--interactive").argv

    @property
    def stdin(self) -> bytes:
        """What the latest agent got on stdin: its prompt."""
        return self._latest("exec", "--interactive").stdin

    async def open_process(
        self,
        command: Sequence[str],
        *,
        stdin: int,
        stdout: int,
        stderr: int,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        start_new_session: bool = False,
    ) -> _PlayedProcess:
        """What the package calls in the place of `anyio.open_process`, with a pipe for each stream."""
        from pytest_subprocess.exceptions import ProcessNotRegisteredError

        call = Call(argv=tuple(command), env=dict(os.environ if env is None else env))
        self.calls.append(call)
        out, err = _Output(stdout), _Output(stderr)
        try:
            # `fp` has put itself in Popen's place. What it lets pass is a real process with the real pipes.
            popen = subprocess.Popen(  # noqa: ASYNC220  pytest-subprocess has replaced it
                command, stdin=stdin, stdout=out, stderr=err, env=env, cwd=cwd, start_new_session=start_new_session
            )
        except ProcessNotRegisteredError:
            self._unregistered.append(command)
            raise
        run = next((run for run in self._runs if popen in run.recorder.calls), None)
        process = _PlayedProcess(call, popen, run, stdin, out, err)
        self._processes.append(process)
        await anyio.lowlevel.checkpoint()
        return process

    def close(self) -> None:
        """End every process that still plays, and fail the test for what it did not allow."""
        for process in self._processes:
            process.close()
        for process in self._processes:
            if process.error is not None:
                raise process.error
        if self._unregistered:
            shown = "\n".join(map(_shown, self._unregistered))
            pytest.fail(f"Commands were run that nobody registered:\n{shown}", pytrace=False)
        unused = [
            _shown([str(word) for word in command])
            for command, answers in self.fp.definitions.items()
            if answers and id(command) not in self._always
        ]
        if self.strict and unused:
            shown = "\n".join(unused)
            pytest.fail(f"Commands were registered that nobody ran:\n{shown}", pytrace=False)

    def _latest(self, *verb: str) -> Call:
        for call in reversed(self.calls):
            if call.argv[1 : 1 + len(verb)] == verb:
                return call
        msg = f"No `{' '.join(verb)}` was run."
        raise AssertionError(msg)

    def _register_engine(self) -> None:
        """The answers of an engine where everything goes well, and no container is left from before."""
        any_ = self.fp.any
        before = {id(command) for command in self.fp.definitions}
        for words, stdout in (
            (["--version"], "Docker version 28.2.2, build e6534b4"),
            (["info", any_()], f"{str(os.geteuid() != 0).lower()} 5.4.2"),
            (["run", any_()], "f" * 64),
            (["exec", _NOT_INTERACTIVE, any_()], ""),
            (["ps", any_()], ""),
            (["inspect", any_()], "[]"),
            (["rm", any_()], ""),
        ):
            self.fp.register([_ENGINE, *words], stdout=stdout, occurrences=10_000)
        self._always |= {id(command) for command in self.fp.definitions} - before


@pytest.fixture
def fake_engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEngine]:
    """A `FakeEngine` in the place of docker and podman; `engine="auto"` is docker, whatever this machine has."""
    try:
        import pytest_subprocess  # noqa: F401  is it installed?
    except ImportError:
        hint = "pip install 'agent-container-runner[testing]'"
        pytest.fail(f"The fixture fake_engine needs pytest-subprocess: {hint}", pytrace=False)
    engine = FakeEngine(request.getfixturevalue("fp"))
    monkeypatch.setattr("container_runner.stream.process.open_process", engine.open_process)
    monkeypatch.setenv("CONTAINER_RUNNER_ENGINE", "docker")
    # A machine's docker may be podman by another name, which would change the commands.
    monkeypatch.setattr("container_runner.engine.engine._looks_like_podman", lambda path: "podman" in Path(path).name)
    yield engine
    engine.close()


@attrs.frozen(kw_only=True, eq=False)
class _AgentRun:
    """A prepared run of an agent."""

    recorder: Any
    stdout: bytes
    stderr: bytes
    exit_code: int
    hang: bool


class _Word(str):
    """A word of a registered command that stands for every word that passes a test."""

    _test: Callable[[str], object]

    def __new__(cls, name: str, test: Callable[[str], object]) -> Self:
        word = super().__new__(cls, name)
        word._test = test
        return word

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and bool(self._test(other))

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


_ENGINE = _Word("ENGINE", lambda word: re.search("docker|podman", Path(word).name))
_NOT_INTERACTIVE = _Word("OTHER", lambda word: word != "--interactive")


class _Output(io.BytesIO):
    """Takes what `fp` has registered for a stream; to a real process it is the pipe itself."""

    mode = "wb"

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd

    def fileno(self) -> int:
        return self._fd


class _PlayedProcess:
    """What the package uses of `anyio.abc.Process`. A thread plays the answer, as a process would."""

    def __init__(
        self, call: Call, popen: Any, run: _AgentRun | None, stdin: int, stdout: _Output, stderr: _Output
    ) -> None:
        self._call = call
        self._popen = popen
        self._run = run
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
        await anyio.lowlevel.checkpoint()
        while (code := self.returncode) is None:
            await anyio.sleep(TICK)
        if self.error is not None:
            raise self.error
        return code

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
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
            code = self._answer_command() if self._run is None else self._answer_exec(self._run)
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
        words = _ExecWords.of(self._call.argv)
        self._read_stdin(None if words is None else words.size)
        self._say(**{name: answer.getvalue() for name, answer in self._answer.items()})
        self._move_while(lambda: self._popen.poll() is None)
        if self._call.stdin:
            stdout, stderr = self._popen.communicate(self._call.stdin)
            self._say(stdout or b"", stderr or b"")
        self._move_while(lambda: bool(self._unsent))
        return int(self._popen.returncode)

    def _answer_exec(self, run: _AgentRun) -> int:
        """What our wrapper and the agent in it would say."""
        words = _ExecWords.of(self._call.argv)
        if words is None:
            msg = f"This exec does not run an agent: {_shown(self._call.argv)}"
            raise AssertionError(msg)
        self._read_stdin(words.size)
        self._say(stderr=guest.started_line(words.run_id) + b"7\n" + run.stderr, stdout=run.stdout)
        # The agent lives as long as its lease, which ends with stdin.
        self._move_while(lambda: self._stdin_is_open and (run.hang or bool(self._unsent)))
        stopped, code = False, run.exit_code
        if run.hang or self._unsent:
            stopped, code = True, 128 + signal.SIGTERM
        rest = b"\n" if run.stderr and not run.stderr.endswith(b"\n") else b""
        rest += f"container-runner: stop {words.run_id} term\n".encode() if stopped else b""
        self._say(stderr=rest + f"container-runner: ended {words.run_id} {code}\n".encode())
        self._move_while(lambda: bool(self._unsent))
        return code

    @property
    def _stdin_is_open(self) -> bool:
        return "stdin" in self._fds

    def _read_stdin(self, size: int | None) -> None:
        """Read *size* bytes, or all: what an agent's exec gets after its prompt is its lease, which stays open."""
        self._move_while(lambda: self._stdin_is_open and (size is None or len(self._stdin) < size))
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


@attrs.frozen
class _ExecWords:
    """What the command of an agent's exec tells of it."""

    run_id: str
    size: int

    @classmethod
    def of(cls, argv: Sequence[str]) -> _ExecWords | None:
        if guest.EXEC not in argv:
            return None
        run_id, _, size, *_ = argv[argv.index(guest.EXEC) + 2 :]
        return cls(run_id, int(size))


def _line(line: Mapping[str, Any] | str | bytes) -> bytes:
    if isinstance(line, Mapping):
        line = json.dumps(line)
    return (line.encode() if isinstance(line, str) else line) + b"\n"


def _shown(command: Sequence[str]) -> str:
    """A command on one line, without the scripts in it."""
    return " ".join("…" if "\n" in word else shlex.quote(word) for word in command)
