"""Runs with a real engine: the box that most tests want, and what they read in its messages."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

from container_runner import (
    Agent,
    AssistantMessage,
    ClaudeRuntime,
    ContainerConfig,
    ContainerRunner,
    ErrorMessage,
    ExecuteOptions,
    Message,
    OutputLine,
    ResultMessage,
    Runtime,
    Tool,
    ToolResultBlock,
    UserMessage,
)
from container_runner.engine.manager import STATE_LABEL, state_digest
from tests.integration.engines import BY_ROOT, RealEngine

COMMAND = str(Path(sys.executable).with_name("container-runner"))


def on(*names: str) -> pytest.MarkDecorator:
    """The fixture `engine` is one of these, and no other; said of a module, it can be said otherwise of a test."""
    return pytest.mark.on(*names)


ON_DOCKER = on("docker")
"""For what no engine has a part in."""

ON_OWN_ROOTFUL = on("docker", "podman")
"""For what is ours, whatever the engine's age."""

ON_ROOTFUL = on(*BY_ROOT)
"""For what rootless podman does as podman does."""


@attrs.frozen
class Box:
    """Makes runs on one engine; by default of the scripted agent, without network and credentials."""

    engine: RealEngine

    folder: Path
    """Where all that belongs to the test lies."""

    @classmethod
    def make(cls, engine: RealEngine, folder: Path) -> Box:
        box = cls(engine, folder)
        box.new_folder("project")
        return box

    @property
    def workspace(self) -> Path:
        return self.folder / "project"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def new_folder(self, name: str) -> Path:
        """A folder that the agent can write."""
        path = self.folder / name
        path.mkdir()
        os.chown(path, *self.engine.owner)
        return path

    def containers(self) -> list[str]:
        """The full ids of this test's containers, running or not."""
        label = f"--filter=label={STATE_LABEL}={state_digest(self.state)}"
        return self.engine.run("ps", "--all", "--quiet", "--no-trunc", label).stdout.split()

    def config(self, **fields: Any) -> ContainerConfig:
        ours = {"engine": self.engine.binary, "image": self.engine.images.tiny}
        return ContainerConfig(**{**ours, "network": "none", "credentials": "none", **fields})

    def runner(
        self, runtime: Runtime | None = None, *, state: Path | None = None, tools: Sequence[Tool] = (), **fields: Any
    ) -> ContainerRunner:
        """A runner whose configuration has these fields."""
        config = self.config(**fields)
        return ContainerRunner(runtime or ClaudeRuntime(), config, state_dir=state or self.state, tools=tools)

    def options(self, prompt: str, *, agent: str = "tester", **fields: Any) -> ExecuteOptions:
        """A request; `workspace` among the fields is the agent's."""
        workspace = fields.pop("workspace", self.workspace)
        return ExecuteOptions(prompt=prompt, agent=Agent(name=agent, workspace=workspace), **fields)

    def run(self, prompt: str, runtime: Runtime | None = None, **fields: Any) -> list[Message]:
        """All messages of one run on asyncio. The fields are those of `ExecuteOptions` or of `ContainerConfig`."""
        ours = {"workspace", "agent", *(field.name for field in attrs.fields(ExecuteOptions))}
        asked = {name: fields.pop(name) for name in ours & fields.keys()}
        return collect(self.runner(runtime, **fields), self.options(prompt, **asked))

    def sh(self, command: str, **fields: Any) -> str:
        """What a command of the agent's prints, stderr included. The run itself succeeds."""
        messages = self.run(f"sh {command}", **fields)
        assert error_of(messages) is None, messages
        return tool_output(messages)

    @contextlib.asynccontextmanager
    async def at_work(self, prompt: str, runtime: Runtime | None = None, **fields: Any) -> AsyncIterator[str]:
        """A run whose agent has said something, as the id of its container. It is stopped afterwards."""
        messages = self.runner(runtime, **fields).execute(self.options(prompt))
        async with contextlib.aclosing(messages):
            first = await anext(messages)
            assert not isinstance(first, ErrorMessage), first
            (container,) = self.containers()
            yield container

    @contextlib.contextmanager
    def cli(self, verb: str, prompt: str, *flags: str, **popen: Any) -> Iterator[subprocess.Popen[str]]:
        """The command `container-runner` at work, in a session of its own as a terminal would give it."""
        own = [
            f"--workspace={self.workspace}",
            f"--state-dir={self.state}",
            f"--engine={self.engine.binary}",
            f"--image={self.engine.images.tiny}",
            "--network=none",
            "--credentials=none",
        ]
        given = {flag.partition("=")[0] for flag in flags}
        command = [COMMAND, verb, prompt, *flags, *(flag for flag in own if flag.partition("=")[0] not in given)]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, **{**pipes, **popen}, text=True, start_new_session=True) as process:
            try:
                yield process
            finally:
                process.kill()  # it has ended, unless the test failed


def collect(runner: Runtime, options: ExecuteOptions) -> list[Message]:
    """All messages of one run on asyncio."""
    return drain(runner.execute(options))


def drain(messages: AsyncIterator[Message]) -> list[Message]:
    """All messages of a run that has begun, on asyncio."""

    async def read() -> list[Message]:
        return [message async for message in messages]

    return anyio.run(read)


def messages_of(runner: ContainerRunner, options: ExecuteOptions) -> contextlib.aclosing[AsyncGenerator[Message]]:
    """The messages, to be used with `async with`, after which the run has ended."""
    return contextlib.aclosing(runner.execute(options))


def error_of(messages: Sequence[Message]) -> ErrorMessage | None:
    """The error at the end of a run, or None. It is nowhere else."""
    assert not any(isinstance(message, ErrorMessage) for message in messages[:-1])
    return messages[-1] if messages and isinstance(messages[-1], ErrorMessage) else None


def result_of(messages: Sequence[Message]) -> ResultMessage:
    """The one result of a run that succeeded, which is its last message."""
    (result,) = (message for message in messages if isinstance(message, ResultMessage))
    assert result is messages[-1]
    assert not result.is_error
    return result


def said(messages: Sequence[Message]) -> list[str]:
    """The agent's own words."""
    return [message.text for message in messages if isinstance(message, AssistantMessage) and message.text]


def lines_of(messages: Sequence[Message]) -> list[bytes]:
    """The lines that were no messages."""
    return [message.data for message in messages if isinstance(message, OutputLine)]


def tool_output(messages: Sequence[Message]) -> str:
    """What the tools gave back."""
    results = (block for message in messages if isinstance(message, UserMessage) for block in message.content)
    return "\n".join(block.text for block in results if isinstance(block, ToolResultBlock))


def status(text: str) -> dict[str, list[str]]:
    """A file such as /proc/PID/status, by its lines' names."""
    lines = (line.partition(":") for line in text.splitlines())
    return {name: rest.split() for name, _, rest in lines}
