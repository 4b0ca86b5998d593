"""What machines say of themselves, and a run in question on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from container_runner import Agent, ClaudeRuntime, ContainerConfig, ContainerRunner, ExecuteOptions
from container_runner.agents import Runtime
from container_runner.box.argv import DOCKER, Dialect
from container_runner.engine.engine import Engine

INSIDE = {
    "Uid": "1000",
    "CapBnd": "0000000000000000",
    "NoNewPrivs": "1",
    "Seccomp": "2",
    "sealed": "yes",
    "root": "no",
    "tmp": "yes",
    "home": "yes",
    "workspace": "yes",
    "sessions": "yes",
    "memory": str(2 * 1024**3),
    "pids": "512",
    "shares": "512",
    "network": "eth0",
    "agent": "/usr/local/bin/claude",
    "code": "0",
    "version": "2.1.330 (Claude Code)",
}
"""What `PROBE` says where all is well."""

DOCKER_INFO = {
    "ServerVersion": "28.2.2",
    "OperatingSystem": "Debian GNU/Linux 12 (bookworm)",
    "CgroupVersion": "2",
    "MemoryLimit": True,
    "PidsLimit": True,
    "CPUShares": True,
    "SecurityOptions": ["name=seccomp,profile=builtin"],
}
ROOTLESS_DOCKER = {**DOCKER_INFO, "SecurityOptions": ["name=seccomp,profile=builtin", "name=rootless"]}
DOCKER_VERSION = {"Server": {"Components": [{"Name": "Engine"}, {"Name": "runc", "Version": "1.3.3"}]}}


def engine(dialect: Dialect = DOCKER, version: str = "28.2.2", binary: str = "docker") -> Engine:
    return Engine(binary=binary, dialect=dialect, environ={}, version=version)


def podman_info(*controllers: str, version: str = "v2", runtime: str = "crun version 1.8.1") -> dict[str, Any]:
    host = {"cgroupVersion": version, "cgroupControllers": [*controllers], "ociRuntime": {"version": runtime}}
    return {"host": host}


def request(tmp_path: Path, runtime: Runtime | None = None, **fields: Any) -> tuple[ContainerRunner, ExecuteOptions]:
    (tmp_path / "work").mkdir(exist_ok=True)
    (tmp_path / "work").chmod(0o777)
    config = ContainerConfig(**{"image": "my/claude", "engine": "docker", **fields})
    runner = ContainerRunner(runtime or ClaudeRuntime(), config, tmp_path / "state")
    return runner, ExecuteOptions(prompt="x", agent=Agent(name="bot", workspace=tmp_path / "work"))
