"""The engine and the workspace that everything is measured with, and the bare command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import attrs
import orjson

from container_runner import (
    Agent,
    AssistantMessage,
    CommandRuntime,
    ContainerConfig,
    ContainerRunner,
    ErrorMessage,
    ExecuteOptions,
    TextBlock,
    ToolUseBlock,
)
from tests.integration.engines import RealEngine

STREAM = "stream.jsonl"


@attrs.frozen
class Bench:
    """An engine, a workspace on it, and how much of everything is done."""

    engine: RealEngine
    folder: Path
    runs: int
    lines: int
    workspace_name: str = "workspace"

    @property
    def image(self) -> str:
        return self.engine.images.tiny

    @property
    def workspace(self) -> Path:
        return self.folder / self.workspace_name

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def prepare(self) -> None:
        """Make the workspace, with the stream in it."""
        self.workspace.mkdir()
        write_stream(self.workspace / STREAM, self.lines)
        for path in (self.folder, self.workspace, self.workspace / STREAM):
            os.chown(path, *self.engine.owner)

    def runner(self, *command: str, records: bool = True, **config: Any) -> ContainerRunner:
        box = ContainerConfig(image=self.image, engine=self.engine.binary, network="none", **config)
        return ContainerRunner(CommandRuntime(command), box, state_dir=self.state, records=records)

    @property
    def options(self) -> ExecuteOptions:
        return ExecuteOptions(prompt="go", agent=Agent(name="bench", workspace=self.workspace))

    @property
    def bare_removal(self) -> list[str]:
        """How one removes at once a container whose PID 1 minds no signal. Podman waits for ten seconds otherwise."""
        return ["rm", "--force"] if self.engine.name == "docker" else ["rm", "--force", "--time=0"]

    def bare_run(self, name: str, *command: str) -> list[str]:
        """What a careful person types: the same hardening, without anything of ours.

        With a command it is attached and runs that; else it is there for an `exec`.
        """
        program, *words = command or ("sleep", "1000")
        return [
            "run", "--interactive" if command else "--detach", "--rm", f"--name={name}", "--pull=never",
            f"--entrypoint={program}", "--user=65534:65534", "--cap-drop=ALL", "--security-opt=no-new-privileges",
            "--read-only", "--log-driver=none", "--network=none", "--memory=2g", "--memory-swap=2g",
            "--pids-limit=512", "--tmpfs=/tmp:rw,nosuid,nodev,size=512m",
            f"--volume={self.workspace}:/workspace", "--", self.image, *words,
        ]  # fmt: skip

    def bare(self, *words: str) -> None:
        """The bare client, its output thrown away."""
        subprocess.run([self.engine.binary, *words], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def bare_first_line(self, *words: str) -> float:
        """The seconds until the bare client prints its first line. It is then waited for."""
        start = time.perf_counter()
        command = [self.engine.binary, *words]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline()
            took = time.perf_counter() - start
        assert process.returncode == 0
        return took

    def keep(self, name: str) -> None:
        """Start a container without any of ours in it, for `exec`."""
        self.engine.run(
            "run", "--detach", f"--name={name}", "--network=none", "--entrypoint=sleep",
            f"--volume={self.workspace}:/workspace:ro", "--", self.image, "1000000",
        )  # fmt: skip

    def remove_ours(self) -> None:
        if ours := self.engine.containers():
            self.engine.run(*self.bare_removal, *ours, timeout=600)


def write_stream(path: Path, lines: int, *, text: int = 135) -> None:
    """A stream of assistant messages, half of them with *text* bytes of text, half with a tool call: some 460 bytes."""
    with path.open("wb") as file:
        for number in range(lines):
            file.write(orjson.dumps(assistant(number, text)) + b"\n")


def assistant(number: int, text: int) -> dict[str, Any]:
    fox = "The quick brown fox jumps over the lazy dog. "
    return {
        "type": "assistant",
        "message": {
            "id": f"msg_{number:08d}",
            "type": "message",
            "role": "assistant",
            "model": "bench",
            "content": [
                {"type": "text", "text": (fox * (text // len(fox) + 1))[:text]}
                if number % 2
                else {"type": "tool_use", "id": f"toolu_{number}", "name": "Bash", "input": {"command": "true " * 20}}
            ],
            "stop_reason": None,
            "usage": {"input_tokens": 3, "output_tokens": 5},
        },
        "parent_tool_use_id": None,
        "session_id": "00000000-0000-4000-8000-000000000000",
    }


def read_content(message: AssistantMessage) -> None:
    """Read every text and every tool call."""
    for block in message.content:
        if isinstance(block, TextBlock):
            block.text  # noqa: B018  reading it is the work
        elif isinstance(block, ToolUseBlock):
            block.name, block.input  # noqa: B018  reading it is the work


async def consume(runner: ContainerRunner, options: ExecuteOptions, *, read: bool = False) -> tuple[float, int]:
    """Run to the end; the seconds until the first message, and how many there were."""
    start, first, count = time.perf_counter(), 0.0, 0
    async for message in runner.execute(options):
        first = first or time.perf_counter() - start
        count += 1
        if isinstance(message, ErrorMessage):
            raise AssertionError(message.message)  # noqa: TRY004  the run failed, not its type
        if read and isinstance(message, AssistantMessage):
            read_content(message)
        else:
            message.type  # noqa: B018  reading it is the work
    return first, count


def child(task: str, **arguments: Any) -> dict[str, float]:
    """What a process of its own measured: see `tests.benchmarks.child`."""
    command = [sys.executable, "-m", "tests.benchmarks.child", task, json.dumps(arguments, default=str)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def new_folder() -> Path:
    """A folder that anybody may walk."""
    folder = Path(tempfile.mkdtemp(prefix="cr-bench-", dir="/var/tmp"))
    folder.chmod(0o755)
    return folder
