"""A pytest plugin: `fake_engine`, for tests of code that uses this package, without docker or podman.

It builds on pytest-subprocess, whose `fp` says which commands are expected and what they answer. By itself `fp`
can not answer `anyio.open_process`; this fixture stands where the package starts its processes, asks `fp` there, and
plays the answer into the pipes. Install it with `pip install 'agent-container-runner[testing]'`.

pytest imports this module wherever the package is installed, so it asks for nothing until the fixture is used.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import anyio
import anyio.lowlevel
import pytest

from container_runner.box import script
from container_runner.testing.process import AgentRun, Call, Output, PlayedProcess, Stdin

if TYPE_CHECKING:
    from pytest_subprocess import FakeProcess

__all__ = ["Call", "FakeEngine", "fake_engine"]


class FakeEngine:
    """An engine that does nothing but say what a test tells it to.

    `reply`, `messages` and `transcript` each prepare one run of an agent, in the order in which they are called.
    A container of a pool takes one when it is made, and no more are made than were prepared.
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
        self._runs: list[AgentRun] = []
        self._processes: list[PlayedProcess] = []
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
        run = AgentRun(
            recorder=self.fp.register([_ENGINE, _RUN_OR_EXEC, _ATTACHED, _ATTACHED, self.fp.any()]),
            stdout=b"".join(map(_line, lines)),
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
    def agent_argv(self) -> tuple[str, ...]:
        """The latest command that ran an agent: a `run`, or an `exec` in a kept container."""
        return self._latest_agent.argv

    @property
    def stdin(self) -> bytes:
        """What the latest agent got on stdin: its prompt."""
        return Stdin.of(self._latest_agent.stdin).prompt

    @property
    def variables(self) -> dict[str, str]:
        """The variables that the latest agent got on stdin, secrets among them."""
        return Stdin.of(self._latest_agent.stdin).variables

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
    ) -> PlayedProcess:
        """What the package calls in the place of `anyio.open_process`, with a pipe for each stream."""
        from pytest_subprocess.exceptions import ProcessNotRegisteredError

        call = Call(argv=tuple(command), env=dict(os.environ if env is None else env))
        self.calls.append(call)
        out, err = Output(stdout), Output(stderr)
        try:
            # `fp` has put itself in Popen's place. What it lets pass is a real process with the real pipes.
            popen = subprocess.Popen(  # noqa: ASYNC220  pytest-subprocess has replaced it
                command, stdin=stdin, stdout=out, stderr=err, env=env, cwd=cwd, start_new_session=start_new_session
            )
        except ProcessNotRegisteredError:
            if script.GUEST in command[-2:-1]:  # a pool that is refilled for nobody
                raise BlockingIOError("No more runs were prepared.") from None
            self._unregistered.append(command)
            raise
        run = next((run for run in self._runs if popen in run.recorder.calls), None)
        process = PlayedProcess(call, popen, run, stdin, out, err)
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

    def _latest(self, verb: str, wanted: Callable[[Call], bool] = lambda _: True) -> Call:
        for call in reversed(self.calls):
            if call.argv[1] in verb.split(" or ") and wanted(call):
                return call
        msg = f"No `{verb}` was run."
        raise AssertionError(msg)

    @property
    def _latest_agent(self) -> Call:
        return self._latest("run or exec", lambda call: script.GUEST in call.argv)

    def _register_engine(self) -> None:
        """The answers of an engine where everything goes well, and no container is left from before."""
        any_ = self.fp.any
        before = {id(command) for command in self.fp.definitions}
        for words, stdout in (
            (["--version"], "Docker version 28.2.2, build e6534b4"),
            (["info", any_()], f"false {str(os.geteuid() != 0).lower()} 5.4.2"),
            (["run", "--detach", any_()], "f" * 64),
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
_RUN_OR_EXEC = _Word("RUN", lambda word: word in ("run", "exec"))
_ATTACHED = _Word("ATTACHED", lambda word: re.match("--(rm|interactive|user=)", word))


def _line(line: Mapping[str, Any] | str | bytes) -> bytes:
    if isinstance(line, Mapping):
        line = json.dumps(line)
    return (line.encode() if isinstance(line, str) else line) + b"\n"


def _shown(command: Sequence[str]) -> str:
    """A command on one line, without the scripts in it."""
    return " ".join("…" if "\n" in word else shlex.quote(word) for word in command)
