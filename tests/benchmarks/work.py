"""The work that is measured: ours, with the bare command line, and with the libraries that one would pick instead."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import attrs
import orjson

from container_runner import Agent, AssistantMessage, CommandRuntime, ContainerConfig, ContainerRunner, ExecuteOptions
from container_runner.messages import ErrorMessage, parse_line
from tests.benchmarks.measure import Row, Timed, compare, timed
from tests.integration.engines import RealEngine

STREAM = "stream.jsonl"


@attrs.frozen
class Bench:
    """An engine, a workspace on it, and how much of everything is done."""

    engine: RealEngine
    folder: Path
    runs: int
    lines: int

    @property
    def image(self) -> str:
        return self.engine.images.tiny

    @property
    def workspace(self) -> Path:
        return self.folder / "workspace"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def prepare(self) -> None:
        """Make the workspace, with the stream in it."""
        self.workspace.mkdir()
        write_stream(self.workspace / STREAM, self.lines)
        for path in (self.folder, self.workspace, self.workspace / STREAM):
            os.chown(path, *self.engine.owner)

    def runner(self, *command: str, **config: Any) -> ContainerRunner:
        box = ContainerConfig(image=self.image, engine=self.engine.binary, network="none", **config)
        return ContainerRunner(CommandRuntime(command), box, state_dir=self.state)

    @property
    def options(self) -> ExecuteOptions:
        return ExecuteOptions(prompt="go", agent=Agent(name="bench", workspace=self.workspace))


def write_stream(path: Path, lines: int) -> None:
    """A stream of assistant messages, some 460 bytes each."""
    with path.open("wb") as file:
        for number in range(lines):
            file.write(orjson.dumps(assistant(number)) + b"\n")


def assistant(number: int) -> dict[str, Any]:
    return {
        "type": "assistant",
        "message": {
            "id": f"msg_{number:08d}",
            "type": "message",
            "role": "assistant",
            "model": "bench",
            "content": [
                {"type": "text", "text": "The quick brown fox jumps over the lazy dog. " * 3}
                if number % 2
                else {"type": "tool_use", "id": f"toolu_{number}", "name": "Bash", "input": {"command": "true " * 20}}
            ],
            "stop_reason": None,
            "usage": {"input_tokens": 3, "output_tokens": 5},
        },
        "parent_tool_use_id": None,
        "session_id": "00000000-0000-4000-8000-000000000000",
    }


async def consume(runner: ContainerRunner, options: ExecuteOptions, *, read: bool) -> tuple[float, int]:
    """Run to the end; the seconds until the first message, and how many there were."""
    start, first, count = time.perf_counter(), 0.0, 0
    async for message in runner.execute(options):
        first = first or time.perf_counter() - start
        count += 1
        if isinstance(message, ErrorMessage):
            raise AssertionError(message.message)  # noqa: TRY004  the run failed, not its type
        if read and isinstance(message, AssistantMessage):
            message.content  # noqa: B018  reading it is the work
        else:
            message.type  # noqa: B018
    return first, count


# --- parse ---


def parse_rows(bench: Bench) -> list[Row]:
    """parse_line alone, against json.loads with claude-agent-sdk's parse_message."""
    from claude_agent_sdk._internal.message_parser import parse_message  # the one that its transport calls

    lines = (bench.workspace / STREAM).read_bytes().splitlines()[: bench.lines // 4]

    def ours_types() -> None:
        for line in lines:
            message = parse_line(line)
            assert message is not None
            message.type  # noqa: B018

    def ours_reads() -> None:
        for line in lines:
            message = parse_line(line)
            assert isinstance(message, AssistantMessage)
            message.content  # noqa: B018

    def sdk() -> None:
        for line in lines:
            parse_message(json.loads(line))

    contenders = {
        "parse_line, type": timed(ours_types),
        "parse_line, content": timed(ours_reads),
        "claude-agent-sdk": timed(sdk),
    }
    ours = [*contenders][:2]
    return compare("parse", "none", contenders, ours, bench.runs, {"claude-agent-sdk": 0.5})


# --- streaming ---


def stream_rows(bench: Bench) -> list[Row]:
    """The same file read through the same kind of exec."""
    name = "bench-stream"
    bench.engine.run(
        "run", "--detach", f"--name={name}", "--network=none", "--entrypoint=sleep",
        f"--volume={bench.workspace}:/workspace:ro", "--", bench.image, "1000000",
    )  # fmt: skip
    runner = bench.runner("cat", f"/workspace/{STREAM}", ephemeral=False)

    def ours(*, read: bool) -> Timed:
        def run() -> None:
            _, count = anyio.run(lambda: consume(runner, bench.options, read=read))
            assert count == bench.lines

        return timed(run)

    def raw() -> None:
        quiet(bench, "exec", name, "cat", f"/workspace/{STREAM}")

    contenders: dict[str, Timed] = {
        "typed, type": ours(read=False),
        "typed, content": ours(read=True),
        "bare CLI": timed(raw),
    }
    if bench.engine.daemon is not None:
        host = bench.engine.daemon.host
        contenders["docker-py, json.loads"] = timed(lambda: docker_py_stream(host, name, bench.lines))
        contenders["aiodocker, json.loads"] = timed(lambda: asyncio.run(aiodocker_stream(host, name, bench.lines)))
    try:
        targets = {"bare CLI": 2.0, "docker-py, json.loads": 0.5, "aiodocker, json.loads": 0.5}
        return compare("stream", bench.engine.name, contenders, [*contenders][:2], bench.runs, targets)
    finally:
        bench.engine.remove(name)
        remove_all(bench)


def docker_py_stream(host: str, name: str, lines: int) -> None:
    import docker

    client = docker.DockerClient(base_url=host)
    try:
        left, count = b"", 0
        output = client.containers.get(name).exec_run(["cat", f"/workspace/{STREAM}"], stream=True).output
        for chunk in output:
            *whole, left = (left + chunk).split(b"\n")
            for line in whole:
                json.loads(line)
                count += 1
        assert count == lines
    finally:
        client.close()


async def aiodocker_stream(host: str, name: str, lines: int) -> None:
    import aiodocker

    async with aiodocker.Docker(url=host) as client:
        container = await client.containers.get(name)
        process = await container.exec(["cat", f"/workspace/{STREAM}"], stdout=True, stderr=True)
        left, count = b"", 0
        async with process.start(detach=False) as stream:
            while message := await stream.read_out():
                *whole, left = (left + message.data).split(b"\n")
                for line in whole:
                    json.loads(line)
                    count += 1
        assert count == lines


# --- start ---


def start_rows(bench: Bench) -> list[Row]:
    """Until the first message, and until the end, of an agent that says one word."""
    cold = bench.runner("echo", "hello")
    kept = bench.runner("echo", "hello", ephemeral=False)
    name = "bench-warm"
    bench.engine.run(
        "run", "--detach", f"--name={name}", "--network=none", "--entrypoint=sleep", "--", bench.image, "1000000"
    )

    async def first(runner: ContainerRunner) -> float:
        return (await consume(runner, bench.options, read=False))[0]

    def cold_first() -> float:
        return anyio.run(first, cold)

    def warm_first() -> float:
        return anyio.run(first, kept)

    def cold_end() -> None:
        anyio.run(first, cold)

    def raw_exec() -> None:
        quiet(bench, "exec", "--interactive", name, "echo", "hello")

    def raw_cold() -> float:
        start = time.perf_counter()
        argv = raw_run_argv(bench, "bench-cold")
        quiet(bench, *argv)
        quiet(bench, "exec", "--interactive", "bench-cold", "echo", "hello")
        took = time.perf_counter() - start
        bench.engine.remove("bench-cold")
        return took

    rows: list[Row] = []
    try:
        contenders: dict[str, Timed] = {"execute()": cold_first, "bare run + exec": raw_cold}
        rows += compare(
            "cold start, first message",
            bench.engine.name,
            contenders,
            ["execute()"],
            2 * bench.runs,
            {"bare run + exec": 1.10},
        )
        if bench.engine.daemon is not None:
            host = bench.engine.daemon.host
            contenders = {"execute()": timed(cold_end), "docker-py": timed(lambda: docker_py_cold(bench, host))}
            rows += compare(
                "cold start, end", bench.engine.name, contenders, ["execute()"], 2 * bench.runs, {"docker-py": 1.0}
            )
        contenders = {"execute(), kept": warm_first, "bare exec": timed(raw_exec)}
        rows += compare(
            "kept container, first message",
            bench.engine.name,
            contenders,
            ["execute(), kept"],
            2 * bench.runs,
            {"bare exec": 1.15},
        )
        rows += anyio.run(pool_rows, bench, raw_exec)
        return rows
    finally:
        bench.engine.remove(name)
        remove_all(bench)


async def pool_rows(bench: Bench, raw_exec: Callable[[], None]) -> list[Row]:
    """The first message from a container that was ready."""
    runner = bench.runner("echo", "hello", pool=2)
    ours, theirs = [], []
    async with runner.warm(bench.options.agent) as pool:
        for turn in range(2 * bench.runs + 1):
            while len(pool) < 2:
                await anyio.sleep(0.05)
            first, _ = await consume(runner, bench.options, read=False)
            start = time.perf_counter()
            await anyio.to_thread.run_sync(raw_exec)
            if turn:
                ours.append(first)
                theirs.append(time.perf_counter() - start)
    return [
        Row(
            what="pool, first message",
            engine=bench.engine.name,
            ours="execute(), pool",
            theirs="bare exec",
            ratios=tuple(a / b for a, b in zip(ours, theirs, strict=True)),
            seconds=(sorted(ours)[len(ours) // 2], sorted(theirs)[len(theirs) // 2]),
            target=1.2,
        )
    ]


def raw_run_argv(bench: Bench, name: str) -> list[str]:
    """What a careful person types: the same hardening, without anything of ours."""
    return [
        "run", "--detach", "--rm", f"--name={name}", "--pull=never", "--entrypoint=sleep", "--user=65534:65534",
        "--cap-drop=ALL", "--security-opt=no-new-privileges", "--read-only", "--log-driver=none", "--network=none",
        "--memory=2g", "--memory-swap=2g", "--pids-limit=512", "--tmpfs=/tmp:rw,nosuid,nodev,size=512m",
        f"--volume={bench.workspace}:/workspace", "--", bench.image, "1000",
    ]  # fmt: skip


def docker_py_cold(bench: Bench, host: str) -> None:
    import docker

    client = docker.DockerClient(base_url=host)
    try:
        container = client.containers.create(
            bench.image, command=["1000"], entrypoint=["sleep"], user="65534:65534", cap_drop=["ALL"], read_only=True,
            security_opt=["no-new-privileges"], network_mode="none", mem_limit="2g", memswap_limit="2g", pids_limit=512,
            log_config=docker.types.LogConfig(type="none"), tmpfs={"/tmp": "rw,nosuid,nodev,size=512m"},
            volumes={str(bench.workspace): {"bind": "/workspace", "mode": "rw"}},
        )  # fmt: skip
        container.start()
        exec_id = client.api.exec_create(container.id, ["echo", "hello"])["Id"]
        for _ in client.api.exec_start(exec_id, stream=True):
            pass
        assert client.api.exec_inspect(exec_id)["ExitCode"] == 0
        container.remove(force=True)
    finally:
        client.close()


# --- many ---


def many_rows(bench: Bench, count: int) -> list[Row]:
    """*count* ephemeral runs at once, against xargs and the bare command line with as many at a time."""
    runner = bench.runner("echo", "hello")
    at_once = 2 * (os.cpu_count() or 2)

    def ours() -> None:
        async def every() -> None:
            async with anyio.create_task_group() as tasks:
                for _ in range(count):
                    tasks.start_soon(lambda: consume(runner, bench.options, read=False))

        anyio.run(every)

    def raw() -> None:
        b, run_ = bench.engine.binary, shlex.join(raw_run_argv(bench, "NAME")).replace("NAME", "bench-$1")
        script = f"{b} {run_} >/dev/null && {b} exec -i bench-$1 echo hello >/dev/null; {b} rm -f bench-$1 >/dev/null"
        subprocess.run(
            ["xargs", f"-P{at_once}", "-n1", "sh", "-c", script, "sh"],
            input="\n".join(map(str, range(count))).encode(),
            check=True,
            stderr=subprocess.DEVNULL,
        )

    before = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    ours()
    after = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    own, clients = ((b.ru_utime + b.ru_stime) - (a.ru_utime + a.ru_stime) for a, b in zip(before, after, strict=True))
    contenders = {f"{count} execute()": timed(ours), "xargs -P and the bare CLI": timed(raw)}
    rows = compare(
        "many at once",
        bench.engine.name,
        contenders,
        [*contenders][:1],
        max(1, bench.runs // 2),
        {"xargs -P and the bare CLI": 1.1},
    )
    share = Row(
        what="our CPU among all clients'", engine=bench.engine.name, ours="this process", theirs="it and its clients",
        ratios=(own / (own + clients),), seconds=(own, own + clients), target=0.10,
    )  # fmt: skip
    return [*rows, share]


# --- memory and start-up ---


def memory_rows(bench: Bench) -> list[Row]:
    """The peak memory of a process that reads a stream, against one that reads a hundredth of it."""
    small, large = (bench.folder / f"{size}.jsonl" for size in ("small", "large"))
    write_stream(small, bench.lines // 10)
    with large.open("wb") as file:
        for _ in range(100):
            file.write(small.read_bytes())
    code = (
        "import anyio, sys\nfrom pathlib import Path\nfrom container_runner import *\n"
        "async def main():\n"
        " o = ExecuteOptions(prompt='x', agent=Agent(name='a'))\n"
        " async for m in CommandRuntime(['cat', sys.argv[1]]).execute(o): m.type\n"
        "anyio.run(main)\n"
        "status = Path('/proc/self/status').read_text().splitlines()\n"
        "print(next(line.split()[1] for line in status if line.startswith('VmHWM')))"
    )

    def peak(path: Path) -> float:
        done = subprocess.run([sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True)
        return float(done.stdout) / 1024

    megabytes = peak(large), peak(small)
    size = large.stat().st_size / 1024**2
    return [
        Row(
            what=f"peak memory in MB, {size:.0f} MB streamed", engine="none", ours=f"{size:.0f} MB",
            theirs=f"{size / 100:.0f} MB",
            ratios=(megabytes[0] / megabytes[1],), seconds=megabytes, target=(megabytes[1] + 30) / megabytes[1],
        )
    ]  # fmt: skip


def startup_rows(bench: Bench) -> list[Row]:
    """Starting Python with us, against starting Python."""
    program = Path(sys.executable).with_name("container-runner")
    contenders = {
        "import container_runner": timed(lambda: _quiet(sys.executable, "-c", "import container_runner")),
        "container-runner --version": timed(lambda: _quiet(str(program), "--version")),
        "python -c pass": timed(lambda: _quiet(sys.executable, "-c", "pass")),
    }
    return compare("start-up", "none", contenders, [*contenders][:2], 4 * bench.runs, {"python -c pass": 3.0})


# --- growth ---


def growth_rows(bench: Bench, strangers: tuple[int, ...]) -> list[Row]:
    """A kept container's first message with other people's containers on the engine, against none."""
    kept = bench.runner("echo", "hello", ephemeral=False)

    async def first() -> float:
        return (await consume(kept, bench.options, read=False))[0]

    rows: list[Row] = []
    names: list[str] = []
    anyio.run(first)
    alone = sorted(anyio.run(first) for _ in range(2 * bench.runs + 1))[bench.runs]
    try:
        for count in strangers:
            while len(names) < count:
                names.append(f"bench-stranger-{len(names)}")
                bench.engine.run("create", f"--name={names[-1]}", "--network=none", "--", bench.image, "true")
            crowded = [anyio.run(first) for _ in range(2 * bench.runs + 1)]
            rows.append(
                Row(
                    what=f"{count} strangers' containers", engine=bench.engine.name, ours="execute(), kept",
                    theirs="none there",
                    ratios=tuple(took / alone for took in crowded), seconds=(sorted(crowded)[bench.runs], alone),
                )
            )  # fmt: skip
        return rows
    finally:
        for name in names:
            bench.engine.remove(name)
        remove_all(bench)


def quiet(bench: Bench, *words: str) -> None:
    """The bare client, its output thrown away."""
    subprocess.run([bench.engine.binary, *words], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def remove_all(bench: Bench) -> None:
    for container in bench.engine.containers():
        bench.engine.remove(container)


def _quiet(*words: str) -> None:
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


def new_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="cr-bench-", dir="/var/tmp"))
    folder.chmod(0o755)
    return folder
