"""The containers of the fake docker, each an agent that is played."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from container_runner.box import guest, script
from container_runner.testing.output import log, put, refuse, tell
from container_runner.testing.replies import FAILURES, Reply, agent_of, as_claude, failure
from container_runner.testing.stdin import Stdin


def answer(words: list[str]) -> int:
    """Answer a `run` or an `exec`."""
    if words[:3] == ["run", "--rm", "--interactive"] and words[words.index(script.GUEST) + 2 :]:
        return _run(words)
    log(words)
    if words[:2] == ["exec", "--interactive"] and words[-2] == script.FEED:
        return _feed(words[-1])
    return refuse()  # such as the container of a carried workspace, which waits for its command


def _run(words: list[str]) -> int:
    """What the engine, our script and the agent would do."""
    stdin = _read_stdin()
    if stdin is None:
        log(words)
        return script.EXIT_NO_HEADER
    prompt = stdin.prompt.decode("utf-8", "replace")
    log(words, prompt=prompt, variables=stdin.variables, grace=stdin.fields["grace"])
    run, token = words[words.index(script.GUEST) - 1], stdin.fields["token"]
    if program := os.environ.get("DOCKER_FAKE_AGENT"):
        return _play(words, program, stdin)
    try:
        reply = _reply(agent_of(words), prompt)
    except (OSError, ValueError) as error:
        tell(f"docker: no reply can be played: {error}")
        return 125
    said = reply.stderr.decode().replace("{run}", run).replace("{token}", token)
    if not reply.started:
        tell(said)
        return reply.exit_code
    tell(guest.started_line(token).decode())
    if said:
        tell(said)
    put(reply.stdout(prompt))
    passed = "check" if stdin.fields["check"] and reply.exit_code == 0 else ""
    _end(token, reply.exit_code, reply.failed_step or passed)
    while os.read(0, 4096):  # the lease
        pass
    return 0


def _read_stdin() -> Stdin | None:
    """Header and prompt; None if the lease ended in front of them."""
    taken = b""
    while (needed := Stdin.length(taken)) is None or len(taken) < needed:
        more = os.read(0, 65536 if needed is None else needed - len(taken))
        if not more:
            return None
        taken += more
    return Stdin.of(taken)


def _reply(agent: str | None, prompt: str) -> Reply:
    """The first reply of the file that fits.

    Raises:
        OSError: there is no such file.
        ValueError: none fits, or a line is no reply.
    """
    file = os.environ.get("DOCKER_FAKE_REPLIES")
    if not file:
        raise ValueError("set DOCKER_FAKE_REPLIES or DOCKER_FAKE_AGENT")
    for number, line in enumerate(Path(file).read_text("utf-8").splitlines(), 1):
        if line.strip():
            try:
                reply = _parse(json.loads(line))
            except (ValueError, TypeError, KeyError, re.error) as error:
                raise ValueError(f"{file}:{number}: {error}") from None
            if reply.answers(agent, prompt):
                return reply
    raise ValueError(f"none in {file} fits the prompt {prompt[:200]!r} of agent {agent!r}")


def _parse(line: Mapping[str, Any]) -> Reply:
    told = dict(line)
    for_prompt: Any = told.pop("prompt", None)
    if (pattern := told.pop("pattern", None)) is not None:
        for_prompt = re.compile(pattern)
    agent = told.pop("agent", None)
    if (kind := told.pop("fail", None)) is not None:
        if kind not in FAILURES or told:
            raise ValueError(f'"fail" stands alone, and is one of {", ".join(FAILURES)}')
        reply = failure(kind)
    else:
        stdout = as_claude(**told)
        reply = Reply(stdout=lambda _: stdout, exit_code=int(told.get("error") is not None))
    return attrs.evolve(reply, prompt=for_prompt, agent=agent)


def _play(words: Sequence[str], program: str, stdin: Stdin) -> int:
    """Run a program of this machine as the agent, and stop it when the lease ends."""
    token, (claude, *arguments) = stdin.fields["token"], words[words.index(script.GUEST) + 2 :]
    mounts = (re.search(r'src=([^,"]+)"?,"?dst=/workspace(?:[,"]|$)', word) for word in words)
    folder = next((mount[1] for mount in mounts if mount), "/")
    with _input_of(words[words.index(script.GUEST) - 1] if stdin.fields.get("live") else None) as fifo:
        tell(guest.started_line(token).decode())
        if code := _step("setup", stdin, folder):
            _end(token, code, "setup")
            return 0
        if fifo is not None and not _is_fed(fifo):
            return 0
        process = subprocess.Popen(
            [program if claude == "claude" else claude, *arguments],
            stdin=subprocess.PIPE if fifo is None else fifo.stream,
            cwd=folder,
            start_new_session=True,
        )
    lease = threading.Thread(target=_watch, args=(process, float(stdin.fields["grace"])), daemon=True)
    lease.start()
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):  # an agent need not read its prompt
            process.stdin.write(stdin.prompt)
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
    code = process.wait()
    gap = stdin.fields.get("gap", "\n")
    if code == 0 and (checked := _step("check", stdin, folder)) is not None:
        _end(token, checked, "check", gap)
    else:
        _end(token, 128 - code if code < 0 else code, gap=gap)
    lease.join()
    return 0


def _input(run: str) -> Path:
    """The FIFO that is a live agent's stdin, until somebody has opened it to write."""
    return Path(tempfile.gettempdir()) / f"container-runner-fake-{run}"


@attrs.frozen
class _Input:
    path: Path
    stream: int


@contextlib.contextmanager
def _input_of(run: str | None) -> Iterator[_Input | None]:
    """Make the FIFO of a live run, and open it; it is gone behind the block, and where TERM ends us in it."""
    if run is None:
        yield None
        return
    path = _input(run)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        os.mkfifo(path, 0o600)
        stream = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            yield _Input(path, stream)
        finally:
            os.close(stream)
    finally:
        path.unlink(missing_ok=True)
        signal.signal(signal.SIGTERM, before)


def _is_fed(fifo: _Input) -> bool:
    """Wait until somebody has opened it to write, who removes it then; False if the lease ends before."""
    while fifo.path.exists():
        if select.select([0], [], [], 0.02)[0] and not os.read(0, 4096):
            return False
    os.set_blocking(fifo.stream, True)
    return True


def _feed(run: str) -> int:
    """Carry stdin to a live agent."""
    try:
        with open(os.open(_input(run), os.O_WRONLY), "wb", buffering=0) as fifo:  # noqa: PTH123  a path would make it
            _input(run).unlink(missing_ok=True)
            tell(guest.feeding_line(run).decode())
            with contextlib.suppress(BrokenPipeError):
                while chunk := os.read(0, 65536):
                    fifo.write(chunk)
    except FileNotFoundError:  # its run has ended
        return script.EXIT_REFUSED
    return 0


def _step(name: str, stdin: Stdin, folder: str) -> int | None:
    """Run what comes before or after the agent; its exit code, or None if there is nothing."""
    if not stdin.fields[name]:
        return None
    tell(f"container-runner: {name} {stdin.fields['token']}")
    return subprocess.run(
        ["sh", "-c", stdin.fields[name]], cwd=folder, stdin=subprocess.DEVNULL, stdout=2, check=False
    ).returncode


def _watch(process: subprocess.Popen[bytes], grace: float) -> None:
    """Stop the agent when the lease ends. As PID 1 the script ends it by its own end, and says no more."""
    while word := os.read(0, 4096):
        if guest.INTERRUPT in word:
            os.killpg(process.pid, signal.SIGINT)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(grace)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        os._exit(0)


def _end(token: str, code: int, step: str = "", gap: str = "\n") -> None:
    line = f"container-runner: ended {token} {code}{step and ' '}{step}"
    tell(line)
    put(f"{gap}{line}\n".encode())
