"""The commands and their flags."""

from __future__ import annotations

import hashlib
import re
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import attrs
import orjson
from cyclopts import App, Group, Parameter

from container_runner import __version__
from container_runner.cli.flags import ConfigFlags, config_from_flags
from container_runner.errors import ConfigError
from container_runner.options import Agent, ExecuteOptions
from container_runner.runner import ContainerRunner
from container_runner.runtimes import ClaudeRuntime, CommandRuntime

app = App(
    name="container-runner",
    help="Run AI coding agents in locked-down containers, with nothing but docker or podman.",
    version=__version__,
)

_AGENT = Group("Agent", sort_key=1)
_RUN = Group("Run", sort_key=2)


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class RunFlags:
    """What `run` and `argv` have in common, beside the box."""

    workspace: Annotated[Path, Parameter(alias="-w", group=_AGENT)] = Path()
    """The folder that the agent works on."""

    agent: Annotated[str | None, Parameter(group=_AGENT)] = None
    """The agent's name. Its sessions are kept under it. Default: made of the workspace's path."""

    model: Annotated[str | None, Parameter(group=_AGENT)] = None
    """The model to use."""

    system_prompt: Annotated[str | None, Parameter(group=_AGENT)] = None
    """Replaces the agent's own system prompt."""

    append_system_prompt: Annotated[str | None, Parameter(group=_AGENT)] = None
    """Added to the system prompt."""

    permission_mode: Annotated[str | None, Parameter(group=_AGENT)] = None
    """How the agent asks before it acts. Default: it does not, the box is the limit."""

    allowed_tools: Annotated[tuple[str, ...], Parameter(group=_AGENT)] = ()
    """A tool that it may use without asking. Can be given again."""

    disallowed_tools: Annotated[tuple[str, ...], Parameter(group=_AGENT)] = ()
    """A tool that it may not use. Can be given again."""

    max_turns: Annotated[int | None, Parameter(group=_AGENT)] = None
    """How many turns it may take."""

    command: Annotated[str | None, Parameter(group=_AGENT)] = None
    """Run this command in the container instead of claude, as "my-agent --fast". It gets the prompt on stdin."""

    resume: Annotated[str | None, Parameter(group=_RUN)] = None
    """The id of a session to go on with."""

    fork: Annotated[bool, Parameter(group=_RUN, negative=())] = False
    """Go on in a copy of that session."""

    timeout: Annotated[float | None, Parameter(group=_RUN)] = None
    """Seconds that the agent may take in all."""

    idle_timeout: Annotated[float, Parameter(group=_RUN)] = 1800.0
    """Seconds that it may be silent. 0: any time."""

    state_dir: Annotated[Path | None, Parameter(group=_RUN)] = None
    """Where sessions and locks are kept. Default: the folder for such things in your home."""

    json: Annotated[bool, Parameter(group=_RUN, negative=())] = False
    """Print JSON for programs instead of text for people."""


@app.command
def run(prompt: str, *, flags: RunFlags | None = None, box: ConfigFlags | None = None) -> int:
    """Run an agent on a folder, and show what it does.

    Parameters
    ----------
    prompt
        What to do. "-": read it from stdin.
    """
    from container_runner.cli.run import show

    runner, options = _prepare(prompt, flags or RunFlags(), box)
    return show(runner, options, as_json=flags is not None and flags.json)


@app.command
def argv(prompt: str, *, flags: RunFlags | None = None, box: ConfigFlags | None = None) -> None:
    """Print the exact commands of a run, without running anything.

    Secrets are in none of them; they travel by name, in the environment of the engine's client.

    Parameters
    ----------
    prompt
        What to do. "-": read it from stdin.
    """
    runner, options = _prepare(prompt, flags or RunFlags(), box)
    plan = runner.plan(options)
    if flags is not None and flags.json:
        sys.stdout.buffer.write(orjson.dumps(plan.commands) + b"\n")
    else:
        print(plan.to_shell())


def _prepare(prompt: str, flags: RunFlags, box: Any) -> tuple[ContainerRunner, ExecuteOptions]:
    if prompt == "-":
        prompt = sys.stdin.buffer.read().decode("utf-8", "replace")
    if not prompt.strip():
        raise ConfigError("prompt", prompt, "some text, or - to read it from stdin")
    agent = Agent(
        name=_agent_name(flags.workspace) if flags.agent is None else flags.agent,
        workspace=flags.workspace,
        model=flags.model,
        system_prompt=flags.system_prompt,
        permission_mode=flags.permission_mode,  # type: ignore[arg-type]  # the class checks it
        allowed_tools=flags.allowed_tools,
        disallowed_tools=flags.disallowed_tools,
        max_turns=flags.max_turns,
    )
    options = ExecuteOptions(
        prompt=prompt,
        agent=agent,
        resume=flags.resume,
        fork=flags.fork,
        append_system_prompt=flags.append_system_prompt,
        timeout=flags.timeout,
        idle_timeout=flags.idle_timeout or None,
    )
    runtime = ClaudeRuntime() if flags.command is None else CommandRuntime(_split(flags.command))
    return ContainerRunner(runtime, config_from_flags(box), state_dir=flags.state_dir or _state_dir()), options


def _split(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError as error:
        raise ConfigError("command", command, f"a command as a shell splits it ({error})") from None


def _agent_name(workspace: Path) -> str:
    """A name that the same folder always gets, and no other one."""
    path = workspace.expanduser().resolve()
    word = re.sub(r"[^A-Za-z0-9]+", "-", path.name).strip("-")[:40] or "agent"
    return f"{word}-{hashlib.sha256(str(path).encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"


def _state_dir() -> Path:
    import platformdirs

    return platformdirs.user_state_path("container-runner", appauthor=False)
