"""Cancellation at every single await of a run, driven by count, with an engine that only pretends."""

from __future__ import annotations

import os
import time
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest

from container_runner import Agent, ClaudeRuntime, ContainerConfig, ContainerRunner, ExecuteOptions
from tests.faults.live_engine import READ_HEADER
from tests.faults.live_engine import SCRIPT as LIVE
from tests.faults.scene import TABLE, Row, last, resources
from tests.faults.test_consumer import tasks
from tests.integration.engines import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]

T = TypeVar("T")

FAKE = """\
#!/bin/sh
# An engine whose containers are files in FOLDER.
cd FOLDER || exit
case $1 in
  --version) echo 'Docker version 28.0.0, build fake' ;;
  run)
    for word; do case $word in --name=*) name=${word#--name=} ;; esac; done
    : >"$name"
    trap 'rm -f "$name"' EXIT  # --rm
    READ_HEADER
    prompt=$(head -c "$size")
    echo "container-runner: started $token" >&2
    echo '{"type":"system","subtype":"init","session_id":"s"}'
    [ "$prompt" != stay ] || cat >/dev/null
    echo '{"type":"result","subtype":"success","is_error":false,"result":"ok","session_id":"s"}'
    echo "container-runner: ended $token 0" >&2
    printf '\ncontainer-runner: ended %s 0\n' "$token"
    cat >/dev/null
    ;;
  rm)
    for word; do :; done
    rm -f "$word"
    ;;
  ps) ;;
  inspect) echo '[]' ;;
esac
""".replace("READ_HEADER", READ_HEADER)


@types.coroutine
def stepped(coroutine: Coroutine[Any, Any, T], strike: Callable[[int], None]) -> Generator[Any, Any, T]:
    """The coroutine, with a call of *strike* each time that it waits, before it does."""
    step = 0
    resume: Callable[[], Any] = lambda: coroutine.send(None)  # noqa: E731  shorter than a function where it is used
    while True:
        try:
            trap = resume()
        except StopIteration as end:
            result: T = end.value
            return result
        step += 1
        strike(step)
        try:
            answer = yield trap
        except BaseException as error:
            resume = lambda error=error: coroutine.throw(error)  # type: ignore[misc]  # noqa: E731  shorter than a function where it is used
        else:
            resume = lambda answer=answer: coroutine.send(answer)  # type: ignore[misc]  # noqa: E731  shorter than a function where it is used


async def at_every_await(cancelled_at: Callable[[int], Awaitable[bool]]) -> tuple[int, float]:
    """Cancel at the first await, at the second, and so on, until it ends by itself.

    Returns:
        How many awaits there are, and the longest time in seconds that one try took.
    """
    await cancelled_at(10**6)  # what is made once for all
    before = resources()
    worst = 0.0
    for number in range(1, 1000):
        began = time.monotonic()
        ended = await cancelled_at(number)
        worst = max(worst, time.monotonic() - began)
        with anyio.move_on_after(5):  # a thread that has nothing to do any more may still have its own to close
            while resources()["descriptors"] > before["descriptors"]:
                await anyio.sleep(0.01)
        assert resources()["descriptors"] <= before["descriptors"], number
        if ended:
            return number - 1, worst
    msg = "it never ended"
    raise AssertionError(msg)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize(
    ("how", "prompt", "wanted"),
    [("cancelled", "hello", "result"), ("closed", "hello", "result"), ("cancelled", "stay", "total_timeout (term)")],
    ids=["cancelled", "closed", "cancelled-stop"],
)
def test_a_run_cancelled_at_every_await_leaves_nothing(
    tmp_path: Path, backend: str, how: str, prompt: str, wanted: str
) -> None:
    """`closed`: the one who reads cancels and then closes the generator, as `aclosing` does. `stay`: the agent does
    not end by itself, and is stopped by the clock."""
    containers = tmp_path / "containers"
    containers.mkdir()
    fake = tmp_path / "docker"
    fake.write_text(FAKE.replace("FOLDER", str(containers)))
    fake.chmod(0o755)
    workspace = tmp_path / "project"
    workspace.mkdir()
    os.chown(workspace, 1000, 1000) if os.geteuid() == 0 else None
    config = ContainerConfig(engine=str(fake), image="any", network="none", credentials="none")
    timeout = 0.2 if prompt == "stay" else None
    options = ExecuteOptions(prompt=prompt, timeout=timeout, agent=Agent(name="tester", workspace=workspace))
    saw: list[str] = []

    async def consume() -> str:
        messages = []
        stream = ContainerRunner(ClaudeRuntime(), config, tmp_path / "state").execute(options)
        try:
            async for message in stream:
                messages.append(message)
        finally:
            if how == "closed":
                with anyio.CancelScope(shield=True):
                    await stream.aclose()
        return last(messages)

    async def cancelled_at(number: int) -> bool:
        """Whether the run had ended before."""
        before = tasks()
        with anyio.CancelScope() as scope:
            strike = lambda step: scope.cancel() if step == number else None  # noqa: E731  shorter than a function where it is used
            saw.append(await stepped(consume(), strike))
        assert tasks() == before, number
        # A client that was told to go may be survived for a moment by its own `head`, which has lost its stdin.
        wait_until(lambda: not clients(containers), seconds=5)
        left = [path.name for path in containers.iterdir()] + clients(containers)
        assert not left, f"cancelled at await {number}: {left}"
        return not scope.cancel_called

    awaits, worst = anyio.run(at_every_await, cancelled_at, backend=backend)
    assert awaits > 5
    assert saw[-1] == wanted
    what = f"the consumer is {how} at every await" + (" of a run that is stopped" if prompt == "stay" else "")
    TABLE.add(Row(fault=what, engine="fake", backend=backend, saw="cancelled",
                  left=0, seconds=worst, tries=awaits))  # fmt: skip


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_session_cancelled_at_every_await_leaves_nothing(tmp_path: Path, backend: str) -> None:
    (containers := tmp_path / "containers").mkdir()
    (fake := tmp_path / "docker").write_text(LIVE.replace("FOLDER", str(containers)))
    fake.chmod(0o755)
    config = ContainerConfig(engine=str(fake), image="any", network="none", credentials="none")
    said: list[str] = []

    async def talk() -> None:
        runner = ContainerRunner(ClaudeRuntime(), config, tmp_path / "state")
        async with runner.open_session(Agent(name="tester")) as session:
            said.append((await session.turn("hello")).text)

    async def cancelled_at(number: int) -> bool:
        """Whether the session had ended before."""
        before = tasks()
        with anyio.CancelScope() as scope:
            await stepped(talk(), lambda step: scope.cancel() if step == number else None)
        assert tasks() == before, number
        wait_until(lambda: not clients(containers), seconds=5)
        left = [path.name for path in containers.iterdir()] + clients(containers)
        assert not left, f"cancelled at await {number}: {left}"
        return not scope.cancel_called

    awaits, worst = anyio.run(at_every_await, cancelled_at, backend=backend)
    assert awaits > 4
    assert said[-1] == "ok"
    TABLE.add(Row(fault="who holds a session is cancelled at every await", engine="fake", backend=backend,
                  saw="cancelled", left=0, seconds=worst, tries=awaits))  # fmt: skip


def clients(folder: Path) -> list[str]:
    """The pretended clients that still run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                if (entry / "cwd").readlink() == folder:
                    found.append((entry / "cmdline").read_text())
            except OSError:
                continue  # it has ended
    return found
