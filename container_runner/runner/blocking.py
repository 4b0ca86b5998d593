"""One run from a script that has no event loop."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import attrs

from container_runner.agents import ClaudeRuntime, Describes
from container_runner.config.container import ContainerConfig
from container_runner.config.fields import OWNERS
from container_runner.config.keys import refuse_key
from container_runner.errors import ConfigError, ContainerRunnerError
from container_runner.options import Agent, ExecuteOptions
from container_runner.runner.result import RunResult
from container_runner.runner.runner import ContainerRunner
from container_runner.session.tools import Tool
from container_runner.stream.messages import Message

_REQUEST = ("resume", "fork", "session_id")
"""What can be said of a run and is configured nowhere."""


def run(
    prompt: str,
    *,
    image: str | None = None,
    workspace: str | Path | None = None,
    agent: str = "agent",
    runtime: Describes | None = None,
    config: ContainerConfig | None = None,
    state_dir: str | os.PathLike[str] = ".container-runner",
    functions: Sequence[Tool] = (),
    on_message: Callable[[Message], object] | None = None,
    keep_messages: bool = False,
    **more: Any,
) -> RunResult:
    """Run an agent to its end, and return what it came to.

        result = container_runner.run("Fix the failing test", image="my/claude", workspace=".", timeout=1800)
        print(result.text, result.cost_usd)

    It blocks, and runs an event loop of its own. In an async program `await ContainerRunner.run` instead.

    Args:
        prompt: what to do.
        image: the image. It need not be given where there is a *config*.
        workspace: the folder that the agent works on. None: an empty one that is gone afterwards.
        agent: the agent's name, to which its sessions belong.
        runtime: which agent. None: claude.
        config: the box.
        state_dir: where sessions and records are kept.
        functions: functions of yours that the agent may call, made by `container_runner.tool`. (`tools` are those of
            its own that it has.)
        on_message: is called with each message as it comes.
        keep_messages: whether the result has them all.
        more: any field of `ContainerConfig`, `Agent` and `ExecuteOptions`, by its name.

    Raises:
        ConfigError: a value that we refuse, or a field that there is not.
        ContainerRunnerError: what went wrong, of the class that says so, see `ContainerRunner.run`.
    """
    if loop := _running_loop():
        raise ContainerRunnerError(
            f"container_runner.run() blocks, and was called in a running event loop ({loop}).",
            next_step="Write there: `result = await ContainerRunner(runtime, config).run(options)`.",
        )
    fields: dict[Any, dict[str, Any]] = {ContainerConfig: {}, Agent: {}, ExecuteOptions: {}}
    known = [name for name, (kind, _) in OWNERS.items() if kind in fields] + [*_REQUEST]
    for name, value in more.items():
        if name not in known:
            refuse_key(name, known)
        fields[OWNERS[name][0] if name in OWNERS else ExecuteOptions][name] = value
    box = fields[ContainerConfig]
    if image is not None:
        box["image"] = image
    if config is None and image is None:
        raise ConfigError("image", None, 'the image to run, as image="my/claude"')
    if config is None:
        config = ContainerConfig(**box)
    runner = ContainerRunner(ClaudeRuntime() if runtime is None else runtime, config, state_dir, tools=functions)
    runner.config = attrs.evolve(config, **box)
    options = ExecuteOptions(
        prompt=prompt, agent=Agent(name=agent, workspace=workspace, **fields[Agent]), **fields[ExecuteOptions]
    )

    return anyio.run(partial(runner.run, options, on_message=on_message, keep_messages=keep_messages))


def _running_loop() -> str | None:
    """The library whose event loop runs in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        trio = sys.modules.get("trio")
        return "trio" if trio is not None and trio.lowlevel.in_trio_run() else None
    return "asyncio"
