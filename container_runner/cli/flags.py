"""The flags that several commands share: one for every field of ContainerConfig, and those of a run."""

from __future__ import annotations

import functools
import hashlib
import inspect
import re
import shlex
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import attr
import attrs
from cyclopts import Group, Parameter

from container_runner.agents import KINDS, AgentRuntime, CommandLineRuntime, CommandRuntime, PythonRuntime
from container_runner.cli.containers import state_folder
from container_runner.cli.options import AGENT_GROUP, RUN_GROUP, ExecuteFlags, several
from container_runner.config.container import ContainerConfig
from container_runner.config.fields import FIELDS, HINTS, flag
from container_runner.config.laws import NOT_SHOWN
from container_runner.config.tiers import Effective, effective
from container_runner.errors import ConfigError, SessionNotFoundError
from container_runner.folders import expanded
from container_runner.options import Agent, ExecuteOptions, PermissionMode
from container_runner.runner import ContainerRunner

_BOX = Group("Box", sort_key=3, help="The file that container-runner init writes has more on each.")

_AS_FLAGS = {
    "env": "A variable for the agent, as NAME=VALUE. Can be given again.",
    "host_mcp_servers": "An MCP server of this machine for the agent, as NAME=COMMAND or NAME=URL. Can be given again.",
    "labels": "A label for the container, as NAME=VALUE. Can be given again.",
    "volumes": 'One more folder of the host: "host:container", with ":ro" to only read it. Can be given again.',
}
"""Help for fields that a command line spells otherwise than a file."""


@functools.cache
def field_help(kind: type[Any]) -> dict[str, str]:
    """The explanation of each field of a class: "Attributes:" in its docstring; "" where docstrings were stripped."""
    _, _, told = (inspect.getdoc(kind) or "").partition("\nAttributes:\n")
    found = re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", told.partition("\n\n")[0], re.MULTILINE)
    return dict.fromkeys(attrs.fields_dict(kind), "") | {name: " ".join(text.split()) for name, text in found}


def _make_flags() -> type[Any]:
    hints = typing.get_type_hints(ContainerConfig)
    help_ = field_help(ContainerConfig)
    members: dict[str, Any] = {}
    for field in attrs.fields(ContainerConfig):
        hint, default = hints[field.name], None
        told = _AS_FLAGS.get(field.name) or "".join(help_[field.name].partition(". ")[:2]).strip()  # its first sentence
        parameter = Parameter(group=_BOX, help=told)
        # A choice is left to the parser, which then tells and completes it.
        kind: Any = hint | None if hint is bool or typing.get_origin(hint) is typing.Literal else str | None
        if typing.get_origin(hint) in (tuple, Mapping):
            kind, default = tuple[str, ...], ()
            parameter = Parameter(group=_BOX, help=told, negative=(), alias=_singular(field.name))
        members[field.name] = attr.ib(default=default, type=Annotated[kind, parameter])
    return Parameter(name="*")(attrs.make_class("ConfigFlags", members, frozen=True, kw_only=True))


def typed(name: str) -> str:
    """How a command line spells the flag of a field: --volume for volumes, because it is given once for each."""
    hint = HINTS[name]
    kinds = {typing.get_origin(kind) for kind in (hint, *typing.get_args(hint))}
    return next(iter(_singular(name)), flag(name)) if kinds & {tuple, Mapping} else flag(name)


def _singular(name: str) -> tuple[str, ...]:
    """--volume for --volumes, because it is given once for each."""
    if not name.endswith("s") or name == "tmpfs":
        return ()
    return (f"--{name.removesuffix('es' if name.endswith('sses') else 's').replace('_', '-')}",)


ConfigFlags: Any = _make_flags()
"""An attrs class with the fields of `ContainerConfig`, None or () where no flag was given."""


def effective_from_flags(flags: RunFlags, box: Any) -> Effective:
    """The configuration that all sources and these flags come to.

    Raises:
        ConfigError: a value that is refused, named as the source that it came from.
    """
    given: dict[str, Any] = {name: value for name, value in attrs.asdict(flags).items() if name in FIELDS}
    hints = typing.get_type_hints(ContainerConfig)
    for name, value in ({} if box is None else attrs.asdict(box, recurse=False)).items():
        given[name] = dict(_pair(name, word) for word in value) if typing.get_origin(hints[name]) is Mapping else value
    for mode, is_given in (("carried", flags.carried), ("rw", flags.rw)):
        if is_given:
            if given.get("workspace_mode") not in (None, mode):
                other = given["workspace_mode"]
                other = f"--{other}" if flags.carried and flags.rw else f"--workspace-mode={other}"
                raise ConfigError(
                    f"--{mode}", True, f"without {other}", told=f"{other} and --{mode} exclude each other"
                )
            given["workspace_mode"] = mode
    return effective(
        agent=agent_name(flags),
        workspace=flags.workspace,
        flags={name: value for name, value in given.items() if value is not None and value not in ((), {})},
        file=flags.config,
        profile=flags.profile,
    )


def _pair(name: str, word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    if not equals:
        also = f"; or --secret {key}, which passes on your own" if name == "env" and key.isidentifier() else ""
        raise ConfigError(typed(name), key, f"NAME=VALUE{also}")
    return key, value


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class RunFlags:
    """What `run` and `argv` have in common, beside the box.

    Attributes:
        workspace: The folder that the agent works on.
        carried: Let it work on a copy, whose changes come back as data: short for --workspace-mode=carried.
        rw: Let it write into the folder itself: short for --workspace-mode=rw.
        agent: The agent's name. Its sessions are kept under it. Default: made of the workspace's path.
        agent_kind: Which agent works: claude, which is the default, or one of those that `image build` knows.
        model: The model to use.
        base_url: Where the model's API is, if not where the agent looks by itself.
        system_prompt: Replaces the agent's own system prompt.
        append_system_prompt: Added to the system prompt.
        permission_mode: How the agent asks before it acts. Default: it does not, the box is the limit.
        allowed_tools: A tool that it may use without asking. Can be given again.
        disallowed_tools: A tool that it may not use. Can be given again.
        max_turns: How many turns it may take.
        command: Run this command instead of an agent, as "my-agent --fast". It gets the prompt on stdin.
        acp: Run this agent, which speaks the Agent Client Protocol, by its command, as "goose acp".
        python: Run this Python object in the container instead, as "package.module:name". It has execute(options).
        python_path: A folder that its code is imported from, mounted read-only. Can be given again.
        resume: The id of a session to go on with.
        continue_: Go on with the last session of this workspace and agent.
        fork: Go on in a copy of that session.
        from_: A run, by its id or the beginning of it: the workspace, which is carried, begins with what that has left.
            "folder": with the folder, also where a session is resumed whose work is not applied.
        timeout: The time that the agent may take in all: "30m", or seconds. Default: any.
        idle_timeout: The time that it may be silent: "5m", or seconds; 0: any. Default: 30m.
        state_dir: Where sessions and locks are kept. Default: the folder for such things in your home.
        config: Your configuration file. Default: config.toml in the folder for such things in your home.
        profile: The name of one of its [profiles].
        records: Leave a transcript and a summary in the state folder, which is the default, or do not.
        records_max_age: How long records are kept. Default: 30d.
        records_max_total: How much all records of the state folder may take. Default: 1g.
        records_max_run: The size at which a transcript ends. Default: 256m.
        json: Print JSON for programs instead of text for people.
    """

    workspace: Annotated[Path, Parameter(alias="-w", group=AGENT_GROUP)] = Path()
    carried: Annotated[bool, Parameter(group=AGENT_GROUP, negative=())] = False
    rw: Annotated[bool, Parameter(group=AGENT_GROUP, negative=())] = False
    agent: Annotated[str | None, Parameter(group=AGENT_GROUP)] = None
    agent_kind: Annotated[str | None, Parameter(group=AGENT_GROUP)] = None
    model: Annotated[str | None, Parameter(group=AGENT_GROUP)] = None
    base_url: Annotated[str | None, Parameter(group=AGENT_GROUP)] = None
    system_prompt: Annotated[str | None, Parameter(group=AGENT_GROUP)] = None
    append_system_prompt: Annotated[str | None, Parameter(group=AGENT_GROUP)] = None
    permission_mode: Annotated[PermissionMode | None, Parameter(group=AGENT_GROUP)] = None
    allowed_tools: Annotated[tuple[str, ...], several("--allowed-tool")] = ()
    disallowed_tools: Annotated[tuple[str, ...], several("--disallowed-tool")] = ()
    max_turns: Annotated[int | None, Parameter(group=AGENT_GROUP)] = None
    command: Annotated[str | None, Parameter(group=AGENT_GROUP)] = None
    acp: Annotated[str | None, Parameter(group=AGENT_GROUP)] = None
    python: Annotated[str | None, Parameter(group=AGENT_GROUP)] = None
    python_path: Annotated[tuple[str, ...], Parameter(group=AGENT_GROUP, negative=())] = ()
    resume: Annotated[str | None, Parameter(group=RUN_GROUP)] = None
    continue_: Annotated[bool, Parameter(name="--continue", group=RUN_GROUP, negative=())] = False
    fork: Annotated[bool, Parameter(group=RUN_GROUP, negative=())] = False
    from_: Annotated[str | None, Parameter(name="--from", group=RUN_GROUP)] = None
    timeout: Annotated[str | None, Parameter(group=RUN_GROUP)] = None
    idle_timeout: Annotated[str | None, Parameter(group=RUN_GROUP)] = None
    state_dir: Annotated[Path | None, Parameter(group=RUN_GROUP)] = None
    config: Annotated[Path | None, Parameter(group=RUN_GROUP)] = None
    profile: Annotated[str | None, Parameter(group=RUN_GROUP)] = None
    records: Annotated[bool | None, Parameter(group=RUN_GROUP)] = None
    records_max_age: Annotated[str | None, Parameter(group=RUN_GROUP)] = None
    records_max_total: Annotated[str | None, Parameter(group=RUN_GROUP)] = None
    records_max_run: Annotated[str | None, Parameter(group=RUN_GROUP)] = None
    json: Annotated[bool, Parameter(group=RUN_GROUP, negative=())] = False


def prepare(
    prompt: str,
    flags: RunFlags,
    more: ExecuteFlags | None,
    box: Any,
    make: Callable[[RunFlags, Effective], CommandLineRuntime] | None = None,
) -> tuple[ContainerRunner, ExecuteOptions]:
    """The runner and the options that a command line asks for.

    Args:
        make: what the container runs. None: see `_runtime`.

    Raises:
        ConfigError: a value that is refused, named as the flag that it came from.
    """
    if flags.fork and not (flags.resume or flags.continue_):
        raise ConfigError("--fork", True, "given with --resume=ID", told="--fork needs --resume ID or --continue")
    found = effective_from_flags(flags, box)
    agent = Agent(name=agent_name(flags), workspace=flags.workspace, **found.agent)
    resume = last_session(flags) if flags.continue_ else flags.resume
    options = ExecuteOptions(prompt=prompt, agent=agent, resume=resume, fork=flags.fork, **found.request)
    if flags.from_ is not None:
        options = attrs.evolve(options, from_run=flags.from_)
    runtime = (make or _runtime)(flags, found)
    runner = ContainerRunner(runtime, found.config, state_folder(flags.state_dir), records=found.records)
    return runner, options if more is None else more.apply(options)


def _runtime(flags: RunFlags, found: Effective) -> CommandLineRuntime:
    """What the container runs: what --python or the command names, and else the agent."""
    given = [
        f"--{name.replace('_', '-')}" for name in ("python", "command", "acp", "agent_kind") if getattr(flags, name)
    ]
    if len(given) > 1:
        told = f"{given[0]} and {given[1]} exclude each other"
        raise ConfigError(given[0], NOT_SHOWN, f"given without {given[1]}", told=told)
    if flags.python is not None:
        return PythonRuntime(flags.python, python_path=flags.python_path)
    if flags.python_path:
        raise ConfigError("--python-path", flags.python_path[0], "given with --python=package.module:name")
    if flags.acp is not None:
        from container_runner.agents.acp import AcpRuntime

        return AcpRuntime(*split_words("--acp", flags.acp))
    if found.command is None or flags.agent_kind is not None:
        return known_agent(found.agent_kind, found.settings["agent_kind"].source)()
    return CommandRuntime(split_words("command", found.command))


def split_words(name: str, command: str) -> list[str]:
    """A command as a shell splits it; at least one word.

    Raises:
        ConfigError: it can not be split, or is empty; *name* is how it was given.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ConfigError(name, command, f"a command as a shell splits it ({error})") from None
    if not words:
        raise ConfigError(name, command, "a command, as a shell splits it")
    return words


def known_agent(kind: str, source: str | None = None) -> type[AgentRuntime]:
    """The agent that is called so.

    Raises:
        ConfigError: there is none; *source* said that there is.
    """
    if kind not in KINDS:
        *others, last = KINDS
        allowed = f"{', '.join(others)} or {last}" if others else last
        raise ConfigError(
            "agent_kind", kind, f"{allowed}; another agent runs by its command, with --command", source=source
        )
    return KINDS[kind]


def last_session(flags: RunFlags) -> str:
    """The session that was used last, of this agent in this workspace: another folder's knows other files.

    Raises:
        SessionNotFoundError: there is none.
    """
    from container_runner.records.sessions import Sessions

    agent, place = agent_name(flags), str(flags.workspace.expanduser().absolute())
    if flags.resume:
        raise ConfigError("--continue", True, "given alone", told="--continue and --resume exclude each other")
    for session in reversed(Sessions(state_folder(flags.state_dir)).of(agent)):
        # An agent that is called after its folder has no other one.
        places = {run.summary.workspace for run in session.runs} or {place if flags.agent is None else None}
        if place in places:
            return session.id
    raise SessionNotFoundError(f"The agent {agent} has no session in {place} to go on with.")


def agent_name(flags: RunFlags) -> str:
    """The agent's name: the one that was given, or the folder's."""
    return _agent_name(flags.workspace) if flags.agent is None else flags.agent


def _agent_name(workspace: Path) -> str:
    """A name that the same folder always gets, and no other one."""
    path = expanded(workspace, "--workspace").resolve()
    word = re.sub(r"[^A-Za-z0-9]+", "-", path.name).strip("-")[:40] or "agent"
    return f"{word}-{hashlib.sha256(str(path).encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"
