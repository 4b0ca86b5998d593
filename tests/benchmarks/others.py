"""What one would pick instead. A library that is not installed is left out."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.bench import STREAM, Bench


def is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def streams(bench: Bench, container: str) -> dict[str, Callable[[], None]]:
    """Readers of the stream, each with json.loads for each line."""
    readers: dict[str, Callable[[], None]] = {}
    if bench.engine.daemon is not None:
        host = bench.engine.daemon.host
        if is_installed("docker"):
            readers["docker-py"] = lambda: _docker_py_stream(host, container, bench.lines)
        if is_installed("aiodocker"):
            readers["aiodocker"] = lambda: asyncio.run(_aiodocker_stream(host, container, bench.lines))
    if is_installed("python_on_whales"):
        readers["python-on-whales"] = lambda: _whales_stream(bench, container)
    return readers


def _docker_py_stream(host: str, name: str, lines: int) -> None:
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


async def _aiodocker_stream(host: str, name: str, lines: int) -> None:
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


def _whales_stream(bench: Bench, name: str) -> None:
    from python_on_whales import DockerClient

    client = DockerClient(client_call=[bench.engine.binary])
    count = 0
    for output in client.execute(name, ["cat", f"/workspace/{STREAM}"], stream=True) or ():
        json.loads(output[1])
        count += 1
    assert count == bench.lines


def docker_py_cold(bench: Bench, host: str) -> None:
    """Create, start, exec, inspect, remove."""
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
        assert b"".join(client.api.exec_start(exec_id, stream=True)) == b"hello\n"
        assert client.api.exec_inspect(exec_id)["ExitCode"] == 0
        container.remove(force=True)
    finally:
        client.close()


def sdk_reader(path: Path, lines: int) -> Callable[[], None]:
    """claude-agent-sdk's way from a line to a message: the function that its own transport calls."""
    from claude_agent_sdk._internal.message_parser import parse_message

    stream = path.read_bytes().splitlines()[:lines]

    def read() -> None:
        for line in stream:
            assert parse_message(json.loads(line)) is not None

    return read
