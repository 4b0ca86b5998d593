"""What is compared: ours, the bare command line, and what one would pick instead."""

from __future__ import annotations

import os
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import anyio
import orjson

from container_runner import AssistantMessage, ContainerConfig, ContainerRunner, Session
from container_runner.agents.acp import AcpRuntime
from container_runner.stream.messages import parse_line
from tests.benchmarks import others
from tests.benchmarks.bench import STREAM, Bench, consume, read_content
from tests.benchmarks.measure import Row, Timed, compare, timed


def parse_rows(bench: Bench) -> list[Row]:
    """parse_line alone, against json.loads with claude-agent-sdk's parse_message, and against decoding alone."""
    if not others.is_installed("claude_agent_sdk"):
        return []
    count = bench.lines // 4
    lines = (bench.workspace / STREAM).read_bytes().splitlines()[:count]

    def types() -> None:
        for line in lines:
            message = parse_line(line)
            assert message is not None
            message.type  # noqa: B018  reading it is the work

    def reads() -> None:
        for line in lines:
            message = parse_line(line)
            assert isinstance(message, AssistantMessage)
            read_content(message)

    def decodes() -> None:
        for line in lines:
            assert orjson.loads(line)

    contenders = {
        "parse_line, type": timed(types),
        "parse_line, content": timed(reads),
        "claude-agent-sdk": timed(others.sdk_reader(bench.workspace / STREAM, count)),
        "orjson.loads": timed(decodes),
    }
    targets = {"claude-agent-sdk": 0.25, "orjson.loads": 1.4}
    return compare("parse", "none", contenders, [*contenders][:2], 2 * bench.runs, targets)


def stream_rows(bench: Bench) -> list[Row]:
    """The same file read through the same kind of exec."""
    name = "bench-stream"
    bench.keep(name)
    command = ("cat", f"/workspace/{STREAM}")
    recorded = bench.runner(*command, ephemeral=False)
    unrecorded = bench.runner(*command, ephemeral=False, records=False)

    def ours(runner: ContainerRunner, *, read: bool) -> Timed:
        def run() -> None:
            _, count = anyio.run(lambda: consume(runner, bench.options, read=read))
            assert count == bench.lines

        return timed(run)

    def plain() -> None:
        with subprocess.Popen([bench.engine.binary, "exec", name, *command], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert sum(isinstance(orjson.loads(line), dict) for line in process.stdout) == bench.lines

    contenders: dict[str, Timed] = {
        "typed, type": ours(unrecorded, read=False),
        "typed, content": ours(unrecorded, read=True),
        "typed, type, with a record": ours(recorded, read=False),
        "bare CLI": timed(lambda: bench.bare("exec", name, *command)),
        "bare CLI, orjson.loads": timed(plain),
        **{f"{library}, json.loads": timed(read) for library, read in others.streams(bench, name).items()},
    }
    targets = {other: 0.65 for other in contenders if other.startswith(("docker-py", "aiodocker"))}
    try:
        return compare(
            "stream", bench.engine.name, contenders, [*contenders][:3], bench.runs, {"bare CLI": 2.0, **targets}
        )
    finally:
        bench.engine.remove(name)
        bench.remove_ours()


def start_rows(bench: Bench) -> list[Row]:
    """Until the first message, and until the end, of an agent that says one word."""
    cold = bench.runner("echo", "hello")
    kept = bench.runner("echo", "hello", ephemeral=False)
    name, engine, runs = "bench-warm", bench.engine.name, 4 * bench.runs
    bench.keep(name)

    def first(runner: ContainerRunner) -> Timed:
        async def run() -> float:
            return (await consume(runner, bench.options))[0]

        return lambda: anyio.run(run)

    def bare_exec() -> float:
        return bench.bare_first_line("exec", "--interactive", name, "echo", "hello")

    def bare_cold() -> float:
        start = time.perf_counter()
        bench.bare(*bench.bare_run("bench-cold"))
        took = (
            time.perf_counter() - start + bench.bare_first_line("exec", "--interactive", "bench-cold", "echo", "hello")
        )
        bench.bare(*bench.bare_removal, "bench-cold")
        return took

    def bare_one() -> float:
        return bench.bare_first_line(*bench.bare_run("bench-one", "echo", "hello"))

    # What one call saves depends on what the engine's calls cost.
    by_two = 0.85 if engine == "docker" else 0.70
    rows: list[Row] = []
    try:
        starts = {"execute()": first(cold), "bare run, exec": bare_cold, "bare run --rm -i": bare_one}
        targets = {"bare run, exec": by_two, "bare run --rm -i": 1.15}
        rows += compare("cold start, first message", engine, starts, ["execute()"], runs, targets)
        ends = {
            "execute()": timed(first(cold)),
            "bare run, exec, rm": timed(bare_cold),
            "bare run --rm -i": timed(bare_one),
        }
        if bench.engine.daemon is not None and others.is_installed("docker"):
            host = bench.engine.daemon.host
            ends["docker-py"] = timed(lambda: others.docker_py_cold(bench, host))
        rows += compare("cold start, end", engine, ends, ["execute()"], runs, {"docker-py": 0.90})
        rows += compare(
            "kept container, first message", engine, {"execute(), kept": first(kept), "bare exec": bare_exec},
            ["execute(), kept"], runs, {"bare exec": 1.15},
        )  # fmt: skip
        rows += anyio.run(_pool_rows, bench, cold, bare_exec, runs)
        rows += anyio.run(_session_rows, bench, runs)
        return rows
    finally:
        bench.engine.remove(name)
        bench.remove_ours()


async def _pool_rows(bench: Bench, cold: ContainerRunner, bare_exec: Callable[[], float], runs: int) -> list[Row]:
    """The first message from a container that was ready."""
    runner = bench.runner("echo", "hello", pool=2)
    warm: list[float] = []
    bare: list[float] = []
    without: list[float] = []
    async with runner.warm(bench.options.agent) as pool:
        for turn in range(runs + 1):
            took = []
            for work in ("warm", "bare", "cold"):
                while len(pool) < 2:  # so that its refilling disturbs nobody's figures
                    await anyio.sleep(0.05)
                if work == "bare":
                    took.append(await anyio.to_thread.run_sync(bare_exec))
                else:
                    took.append((await consume(runner if work == "warm" else cold, bench.options))[0])
            if turn:
                for times, seconds in zip((warm, bare, without), took, strict=True):
                    times.append(seconds)
    return [
        Row.of("pool, first message", bench.engine.name, "execute(), pool", warm, "bare exec", bare, 0.35),
        Row.of("pool, first message", bench.engine.name, "execute(), pool", warm, "execute(), cold", without, 1 / 3),
    ]


async def _session_rows(bench: Bench, runs: int) -> list[Row]:
    """From the prompt to the first message, in a session that was ready and in one that is opened for it."""
    box = ContainerConfig(image=bench.image, engine=bench.engine.binary, network="none")
    runner = ContainerRunner(AcpRuntime("acp-agent"), box, state_dir=bench.state)
    agent = bench.options.agent
    warm: list[float] = []
    cold: list[float] = []

    async def first(session: AbstractAsyncContextManager[Session]) -> float:
        start = time.perf_counter()
        async with session as opened:
            await opened.send("say hello")
            async for message in opened.receive():
                if isinstance(message, AssistantMessage):
                    return time.perf_counter() - start
        raise AssertionError

    async with runner.warm_sessions(agent, size=1) as sessions:
        for turn in range(runs + 1):
            while not len(sessions):  # so that its refilling disturbs nobody's figures
                await anyio.sleep(0.05)
            took = await first(sessions.take()), await first(runner.open_session(agent))
            if turn:
                for times, seconds in zip((warm, cold), took, strict=True):
                    times.append(seconds)
    return [Row.of("session, first message", bench.engine.name, "warm session", warm, "opened for it", cold, 0.25)]


def many_rows(bench: Bench, count: int) -> list[Row]:
    """*count* ephemeral runs at once, against xargs and the bare command line with as many at a time."""
    runner = bench.runner("echo", "hello")
    at_once = 2 * (os.cpu_count() or 2)

    def ours() -> None:
        async def every() -> None:
            async with anyio.create_task_group() as tasks:
                for _ in range(count):
                    tasks.start_soon(lambda: consume(runner, bench.options))

        anyio.run(every)

    def bare() -> None:
        program, run = bench.engine.binary, shlex.join(bench.bare_run("NAME")).replace("NAME", "bench-$1")
        remove = shlex.join(bench.bare_removal)
        script = (
            f"{program} {run} >/dev/null && {program} exec -i bench-$1 echo hello >/dev/null; "
            f"{program} {remove} bench-$1 >/dev/null"
        )
        numbers = "\n".join(map(str, range(count)))
        command = ["xargs", f"-P{at_once}", "-n1", "sh", "-c", script, "sh"]
        subprocess.run(command, input=numbers.encode(), check=True, stderr=subprocess.DEVNULL)

    contenders = {f"{count} execute()": timed(ours), "xargs -P and the bare CLI": timed(bare)}
    rows = compare(
        f"{count} at once", bench.engine.name, contenders, [*contenders][:1],
        bench.runs, {"xargs -P and the bare CLI": 0.85 if bench.engine.name == "docker" else 0.70},
    )  # fmt: skip
    before = _spent()
    ours()
    own, clients, machine = (after - earlier for after, earlier in zip(_spent(), before, strict=True))
    what = f"{count} at once, processor time"
    return [
        *rows,
        Row.of(what, bench.engine.name, "our process", [own], "the whole machine", [machine], 0.10),
        Row.of(what, bench.engine.name, "our process", [own], "it and the clients", [own + clients]),
    ]


def _spent() -> tuple[float, float, float]:
    """Seconds of processor time so far: of this process, of its children that have ended, of the machine."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    own, clients = (usage.ru_utime + usage.ru_stime for usage in used)
    user, nice, system, _, _, irq, softirq = map(int, Path("/proc/stat").read_text().split()[1:8])
    return own, clients, (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def startup_rows(bench: Bench) -> list[Row]:
    """Starting Python with us, against starting Python."""
    program = Path(sys.executable).with_name("container-runner")

    def start(*words: str) -> Timed:
        return timed(lambda: subprocess.run(words, check=True, stdout=subprocess.DEVNULL))

    contenders = {
        "import container_runner": start(sys.executable, "-c", "import container_runner"),
        "container-runner --version": start(str(program), "--version"),
        "python -c pass": start(sys.executable, "-c", "pass"),
    }
    return compare("start-up", "none", contenders, [*contenders][:2], 4 * bench.runs, {"python -c pass": 3.0})
