"""An engine that does nothing but say what a test tells it to.

It builds on pytest-subprocess, whose `fp` says which commands are expected and what they answer. By itself `fp`
can not answer `anyio.open_process`; this engine stands where the package starts its processes, asks `fp` there, and
plays the answer into the pipes.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import anyio
import anyio.lowlevel
import attrs

from container_runner.box import script
from container_runner.runner.run import START_ATTEMPTS, TRANSIENT
from container_runner.stream.messages import AgentMessage
from container_runner.testing.kept import KeptContainers
from container_runner.testing.process import Call, Output, PlayedProcess
from container_runner.testing.replies import (
    FAILURES,
    SESSION,
    Replies,
    Reply,
    Wanted,
    agent_of,
    as_claude,
    as_lines,
    failure,
)
from container_runner.testing.stdin import Stdin

if TYPE_CHECKING:
    from pytest_subprocess import FakeProcess


class FakeEngine:
    """An engine that does nothing but say what a test tells it to.

    `reply`, `messages`, `transcript` and `fail` each prepare one run of an agent, or as many as `times` says. A run
    gets the first one that is for its agent or its prompt, and else the first one that is for anybody: with `prompt`,
    runs at the same time each get their own.
    A container of a pool needs one when it is made, and no more are made than were prepared.
    For anything else, register commands with `fp`; a command that was registered first is answered first.

    A run for which nothing is left, or a command that nobody registered, raises
    `pytest_subprocess.exceptions.ProcessNotRegisteredError`, and fails the test also where that error was caught.
    """

    def __init__(self, fp: FakeProcess) -> None:
        self.fp = fp
        """The `fp` fixture of pytest-subprocess."""
        self.calls: list[Call] = []
        """All commands that were run, oldest first."""
        self.strict = False
        """Whether the test fails at its end if a run was prepared, or a command registered, and never happened."""
        self.kept = KeptContainers()
        """The kept containers that there are: `kept.names`, and `kept.end(name)` for one that ends."""
        self._replies = Replies()
        self._remembered: list[Any] = []
        """What `fp` knows of the commands that `kept` answers."""
        self._runs: list[Any] = []
        """What `fp` knows of the commands that run an agent, one for each run that was prepared."""
        self._processes: list[PlayedProcess] = []
        self._unregistered: list[str] = []
        self._always: set[int] = set()

    def reply(
        self,
        text: str | Callable[[str], str],
        *,
        prompt: Wanted | None = None,
        agent: str | None = None,
        times: int = 1,
        session_id: str = SESSION,
        cost_usd: float | None = None,
        usage: Mapping[str, int] | None = None,
        structured_output: Any = None,
        error: str | None = None,
    ) -> None:
        """Prepare a run in which claude answers *text*, and succeeds unless there is an *error*.

        Args:
            text: the answer, or a function that makes it of the prompt. It is called in a thread.
            prompt: the prompt that is answered: all of it, a pattern that is found in it, or a function that is
                given it. None: any.
            agent: the name of the agent that is answered. None: any.
            times: how many such runs are prepared.
            cost_usd: what the run has cost.
            usage: what it has used, as `{"input_tokens": 10, "output_tokens": 3}`.
            structured_output: the answer in the shape that was asked for.
            error: what goes wrong, in claude's words. The run then ends with an error of the kind "agent_failed".
        """
        more = {"session_id": session_id, "cost_usd": cost_usd, "usage": usage, "error": error}

        def stdout(given: str) -> bytes:
            said = text if isinstance(text, str) else text(given)
            return as_claude(said, structured_output=structured_output, **more)  # type: ignore[arg-type]  # by name

        self._add(Reply(stdout=stdout, exit_code=int(error is not None), prompt=prompt, agent=agent), times)

    def messages(
        self,
        lines: Iterable[AgentMessage | Mapping[str, Any] | str | bytes],
        *,
        exit_code: int = 0,
        stderr: str = "",
        hang: bool = False,
        prompt: Wanted | None = None,
        agent: str | None = None,
        times: int = 1,
    ) -> None:
        """Prepare a run: the engine's part of it, and an agent that prints *lines*.

        Args:
            lines: messages are printed as the lines that they would be, mappings as JSON, text and bytes as they are;
                each gets a newline.
            exit_code: what the agent exits with.
            stderr: what it writes to stderr.
            hang: the agent then stays, silent, until it is stopped.
            prompt: see `reply`, as for the rest.
        """
        said = as_lines(lines)
        more = {"exit_code": exit_code, "hang": hang, "prompt": prompt, "agent": agent}
        self._add(Reply(stdout=lambda _: said, stderr=stderr.encode(), **more), times)  # type: ignore[arg-type]  # by name

    def transcript(self, path: str | os.PathLike[str], **more: Any) -> None:
        """Prepare a run in which the agent prints the lines of a file, such as a recorded session.

        Args:
            more: what `messages` takes.
        """
        self.messages(Path(path).read_bytes().splitlines(), **more)

    def fail(self, kind: str, *, prompt: Wanted | None = None, agent: str | None = None, times: int = 1) -> None:
        """Prepare a run that fails with an error of this kind.

        Args:
            kind: one of those in `container_runner.testing.replies.FAILURES`, such as "image_not_found".
            prompt: see `reply`, as for the rest.
        """
        if kind not in FAILURES:
            msg = f"{kind!r} is no failure that can be played; these can: {', '.join(FAILURES)}."
            raise ValueError(msg)
        # What another attempt may cure is tried again.
        attempts = START_ATTEMPTS if kind in {error.kind for error in TRANSIENT} else 1
        self._add(attrs.evolve(failure(kind), prompt=prompt, agent=agent), times * attempts)

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
            told = _told(command)
            self._unregistered.append(told)
            raise ProcessNotRegisteredError(told) from None
        is_agent = any(popen in run.calls for run in self._runs)
        reply_to = partial(self._reply_to, command) if is_agent else None
        if any(popen in each.calls for each in self._remembered):
            out.write(self.kept.answer(command))
        process = PlayedProcess(call, popen, reply_to, stdin, out, err)
        self._processes.append(process)
        await anyio.lowlevel.checkpoint()
        return process

    def close(self) -> None:
        """End every process that still plays, and fail the test for what it did not allow."""
        import pytest

        for process in self._processes:
            process.close()
        for process in self._processes:
            if process.error is not None:
                raise process.error
        if self._unregistered:
            pytest.fail("Commands were run that nobody registered:\n" + "\n".join(self._unregistered), pytrace=False)
        unused = [
            _shown([str(word) for word in command])
            for command, answers in self.fp.definitions.items()
            if answers and id(command) not in self._always
        ]
        if self.strict and unused:
            shown = "\n".join(unused)
            pytest.fail(f"Commands were registered that nobody ran:\n{shown}", pytrace=False)

    def _add(self, reply: Reply, times: int) -> None:
        if not self._runs:
            self._register_engine()
        for _ in range(times):
            self._replies.add(reply)
            self._runs.append(self.fp.register([_ENGINE, _RUN_OR_EXEC, _ATTACHED, _ATTACHED, self.fp.any()]))

    def _reply_to(self, command: Sequence[str], prompt: str) -> Reply:
        from pytest_subprocess.exceptions import ProcessNotRegisteredError

        agent = agent_of(command)
        if reply := self._replies.take(agent, prompt):
            return reply
        shown = repr(prompt if len(prompt) <= 200 else f"{prompt[:199]}…")
        raise ProcessNotRegisteredError(f"No reply that is left is for the prompt {shown} of agent {agent!r}.")

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
            (["version", any_()], ""),  # as of an image: it is for this machine
            # Whether the user has a name in a kept container.
            (["exec", _ATTACHED, "--workdir=/", "--", _ANY, "sh", "-c", script.NAMED, "sh", any_()], ""),
            (["info", any_()], f"false {str(os.geteuid() != 0).lower()} 5.4.2"),
        ):
            self.fp.register([_ENGINE, *words], stdout=stdout, occurrences=10_000)
        for verb in (["run", "--detach"], ["ps"], ["inspect"], ["image", "inspect"], ["rm"]):
            self._remembered.append(self.fp.register([_ENGINE, *verb, any_()], occurrences=10_000))
        self._always |= {id(command) for command in self.fp.definitions} - before


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
_ANY = _Word("ANY", lambda _: True)
_ATTACHED = _Word("ATTACHED", lambda word: re.match("--(rm|interactive|user=)", word))


def _told(command: Sequence[str]) -> str:
    """A command that nobody registered, in a few words."""
    if script.GUEST not in command:
        return _shown(command)
    words = command[command.index(script.GUEST) + 2 :]
    told = f"{Path(command[0]).name} {command[1]} … {_shown(words)}"
    return f"{told}\n  a run of agent {agent_of(command)!r}; prepare it with reply, messages, transcript or fail"


def _shown(command: Sequence[str]) -> str:
    """A command on one line, without the scripts in it."""
    return " ".join("…" if "\n" in word else shlex.quote(word) for word in command)
