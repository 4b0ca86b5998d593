"""What to run: an agent and one request to it."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypeGuard, TypeVar, get_args

import attrs
from attrs.validators import optional

from container_runner.errors import ConfigError
from container_runner.quantities import parse_duration

T = TypeVar("T")

PermissionMode = Literal["acceptEdits", "auto", "bypassPermissions", "default", "dontAsk", "manual", "plan"]

Effort = Literal["low", "medium", "high", "xhigh", "max"]

FOLDER: Final = "folder"
"""Stands for the folder as it is, in `ExecuteOptions.from_run`."""

ARGUMENT_LIMIT: Final = 128 * 1024 - 1
"""The most bytes that Linux takes in one argument (MAX_ARG_STRLEN, less its closing NUL)."""

LINE_LIMIT: Final = 16 * 1024**2
"""The longest line in bytes, if nothing else is said. Agents' longest ones, with files in them, have some 10 MB."""


def by_name(refuse: Callable[[str, Iterable[str]], object] | None = None) -> Callable[[type[T]], type[T]]:
    """Have a class of values say what to write, where it is called with other arguments than it has.

    Args:
        refuse: raises for a name that is none of the known ones.
    """

    def decorate(kind: type[T]) -> type[T]:
        fields = attrs.fields_dict(kind)  # type: ignore[arg-type]  # it is a class of attrs
        needed = [name for name, field in fields.items() if field.default is attrs.NOTHING]
        example = f"{kind.__name__}({', '.join(f'{name}=...' for name in needed)})"
        plain = kind.__init__

        @functools.wraps(plain)
        def checked(self: T, *given: object, **values: Any) -> None:
            if given:
                raise ConfigError(kind.__name__, given[0], f"arguments by their names, as {example}")
            for name in values.keys() - fields.keys():
                if refuse is not None:
                    refuse(name, fields)
                raise _unknown(kind.__name__, name, fields)
            if missing := [name for name in needed if name not in values]:
                raise ConfigError(f"{kind.__name__}({missing[0]}=...)", None, f"all of {example}")
            plain(self, **values)

        kind.__init__ = checked  # type: ignore[assignment]  # mypy knows the one of attrs
        return kind

    return decorate


_ELSEWHERE: Final[Mapping[str, str]] = {
    **dict.fromkeys(("cwd", "working_directory", "workdir", "folder"), "Agent(workspace=...)"),
    **dict.fromkeys(("env", "image", "network", "volumes"), "ContainerConfig({}=...)"),
    **dict.fromkeys(("can_use_tool", "hooks"), "ContainerRunner.open_session({}=...)"),
    **dict.fromkeys(("prompt", "resume", "timeout", "append_system_prompt"), "ExecuteOptions({}=...)"),
    **dict.fromkeys(("model", "workspace", "system_prompt", "mcp_servers", "max_turns"), "Agent({}=...)"),
    "continue_conversation": "ExecuteOptions(resume=...)",
    "extra_args": "Agent(args=...), or ContainerConfig(extra_args=...) for the container",
    "fork_session": "ExecuteOptions(fork=...)",
    "output_format": "ExecuteOptions(json_schema=...)",
    "plugins": "Agent(plugin_dirs=...)",
}
"""Where it is said what some call by these names, or look for in another place."""


def _unknown(kind: str, name: str, fields: Iterable[str]) -> ConfigError:
    """The error for an argument that a class of values does not have."""
    import difflib  # slow to import, and only a mistake needs it

    near = difflib.get_close_matches(name, list(fields), 1, cutoff=0.75)
    meant = _ELSEWHERE.get(name, "").format(name) or (f"{kind}({near[0]}=...)" if near else "")
    allowed = meant or f"one of {', '.join(fields)}"
    told = f"{kind} has no {name}; write {meant}" if meant else None
    return ConfigError(f"{kind}({name}=...)", "…", allowed, told=told)


def _session(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    # A session id becomes part of a file's name, so it must not hold a path.
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}", value):
        raise ConfigError(attribute.name, value, "1 to 128 letters, digits, '-' and '_'")


def _argument(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Text that becomes one argument of the agent's command."""
    check_argument(attribute.name, value)


def _url(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    # It stands on command lines, and in configuration that is written for the agent.
    if not isinstance(value, str) or not _URL.fullmatch(value):
        raise ConfigError(attribute.name, value, 'a URL such as "https://models.example/v1", without a login')


_URL: Final = re.compile(r"""https?://[^\s/@"'\\\0-\x20\x7f]+(/[^\s@"'\\\0-\x20\x7f]*)?""")


def _arguments(_: object, attribute: attrs.Attribute[Any], value: tuple[object, ...] | None) -> None:
    for index, item in enumerate(value or ()):
        check_argument(f"{attribute.name}[{index}]", item)


def _is_text(value: object) -> TypeGuard[str]:
    """Whether it is text that UTF-8 can hold, which has no lone surrogates."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def check_argument(field: str, value: object) -> str:
    """*value*, if a process can be given it as one argument.

    Raises:
        ConfigError: it is no text, is empty, holds a NUL or a lone surrogate, or is longer than `ARGUMENT_LIMIT`.
    """
    if not _is_text(value) or "\0" in value or not 0 < len(value.encode()) <= ARGUMENT_LIMIT:
        raise ConfigError(field, value, f"1 to {ARGUMENT_LIMIT} bytes of text without NUL")
    return value


def _words(value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        return (value,)  # type: ignore[return-value]  # a single word; the validator refuses what is none
    return tuple(value)


def _folders(value: object) -> tuple[str, ...]:
    words = (value,) if isinstance(value, str | Path) else value
    if not isinstance(words, Iterable):
        return (words,)  # type: ignore[return-value]  # the validator refuses it
    return tuple(str(word) if isinstance(word, Path) else word for word in words)


def split_dir(word: str) -> tuple[str, bool]:
    """The path of one of `Agent.add_dirs`, and whether the agent may write there."""
    path, colon, mode = word.rpartition(":")
    return (path, mode == "rw") if colon and mode in ("ro", "rw") else (word, False)


def _words_or_none(value: object) -> tuple[str, ...] | None:
    return None if value is None else _words(value)


def _duration(value: float | str | None) -> float | None:
    """The seconds of a time as people write it, such as "30m". What is none is for `_seconds` to refuse."""
    if isinstance(value, str):
        with contextlib.suppress(ConfigError):
            return parse_duration(value)
    return value  # type: ignore[return-value]  # as above


def _seconds(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 30 * 86400:
        raise ConfigError(
            attribute.name,
            value,
            "a number of seconds between 0 and 30 days, a time such as 90s or 30m, or None for no limit",
        )


@by_name()
@attrs.frozen(kw_only=True)
class Agent:
    """Who works, on what, and with which freedoms.

    Attributes:
        name: The agent's name. It owns a sessions folder and, in persistent mode, a container.
        workspace: The folder on the host that the agent works on, /workspace in the container. None: an empty scratch
            folder that is gone after the run.
        add_dirs: More folders of the host that it may read, or work on: "/path", or "/path:rw". In the container they
            have the same path; one that lies in the workspace is there already.
        model: The model to use. None: the agent's own default.
        base_url: Where the model's API is, if not where the agent looks by itself: an http or https URL without a login
            in it. None: where the agent's own variables and configuration say.
        fallback_model: The model to use while that one is busy, or several with commas, in their order. None: no other.
        effort: How hard the model thinks. None: the agent's own default.
        system_prompt: Replaces the agent's own system prompt.
        permission_mode: How the agent asks before it acts. None: in a container it does not ask (the box is the limit);
            on the host the agent's own default.
        allowed_tools: Tools that it may use without asking, as "Read" or "Bash(git log:*)".
        disallowed_tools: Tools that it may not use.
        tools: The only tools that exist for it. Empty: none at all. None: all of them.
        setting_sources: Which of claude's settings files it reads: user, project, local. Empty: none. None: the
            agent's own default.
        plugin_dirs: Plugin folders, in the workspace or in another folder that is mounted.
        mcp_servers: MCP servers by name. They stand on the command line: write a secret as ${NAME} and list NAME in
            `secrets`.
        max_turns: How many turns it may take. None: no limit.
        args: More arguments for the agent's command, after ours.

    Raises:
        ConfigError: a value that we refuse.
    """

    name: str = attrs.field()
    workspace: str | Path | None = attrs.field(default=None)
    add_dirs: tuple[str, ...] = attrs.field(default=(), converter=_folders, validator=_arguments)
    model: str | None = attrs.field(default=None, validator=optional(_argument))
    base_url: str | None = attrs.field(default=None, validator=optional(_url))
    fallback_model: str | None = attrs.field(default=None, validator=optional(_argument))
    effort: Effort | None = attrs.field(default=None)
    system_prompt: str | None = attrs.field(default=None, validator=optional(_argument))
    permission_mode: PermissionMode | None = attrs.field(default=None)
    allowed_tools: tuple[str, ...] = attrs.field(default=(), converter=_words, validator=_arguments)
    disallowed_tools: tuple[str, ...] = attrs.field(default=(), converter=_words, validator=_arguments)
    tools: tuple[str, ...] | None = attrs.field(default=None, converter=_words_or_none, validator=_arguments)
    setting_sources: tuple[str, ...] | None = attrs.field(default=None, converter=_words_or_none, validator=_arguments)
    plugin_dirs: tuple[str, ...] = attrs.field(default=(), converter=_words, validator=_arguments)
    mcp_servers: Mapping[str, Any] = attrs.field(factory=dict)
    max_turns: int | None = attrs.field(default=None)
    args: tuple[str, ...] = attrs.field(default=(), converter=_words, validator=_arguments)

    @name.validator
    def _check_name(self, _: object, value: object) -> None:
        if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", value):
            allowed = "1 to 63 letters, digits, '_', '.' and '-', beginning with a letter or a digit"
            raise ConfigError("agent.name", value, allowed)

    @workspace.validator
    def _check_workspace(self, _: object, value: object) -> None:
        if value is not None and (not isinstance(value, str | Path) or not str(value) or "\0" in str(value)):
            raise ConfigError("agent.workspace", value, "the path of a folder, or None")

    @permission_mode.validator
    def _check_permission_mode(self, _: object, value: object) -> None:
        if value is not None and value not in get_args(PermissionMode):
            raise ConfigError("agent.permission_mode", value, f"one of {', '.join(get_args(PermissionMode))}")

    @effort.validator
    def _check_effort(self, _: object, value: object) -> None:
        if value is not None and value not in get_args(Effort):  # claude takes another word, and does nothing with it
            raise ConfigError("agent.effort", value, f"one of {', '.join(get_args(Effort))}")

    @max_turns.validator
    def _check_max_turns(self, _: object, value: object) -> None:
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ConfigError("agent.max_turns", value, "a whole number from 1, or None")

    @mcp_servers.validator
    def _check_mcp_servers(self, _: object, value: object) -> None:
        if not isinstance(value, Mapping):
            raise ConfigError("agent.mcp_servers", value, "a mapping of names to servers")
        try:
            json.dumps(dict(value))
        except (TypeError, ValueError) as error:
            raise ConfigError("agent.mcp_servers", "…", f"what JSON can hold ({error})") from None


@by_name()
@attrs.frozen(kw_only=True)
class ExecuteOptions:
    """One request to an agent.

    Attributes:
        prompt: What to do. It reaches the agent on stdin, so it may be long, and may begin with a dash.
        agent: Who does it.
        resume: The id of the session to go on with.
        fork: Go on in a copy of that session, under a new id.
        from_run: The id of an earlier run on this folder, or its first digits: a carried workspace begins with what it
            left, whatever the folder is now. "folder": with the folder. None: with the folder, but for a session that
            is resumed with what its last run left, if that was neither applied nor discarded.
        session_id: The id that a new session gets. None: the agent chooses.
        append_system_prompt: Added to the system prompt.
        json_schema: A JSON Schema. The answer then comes as data of that shape, in `ResultMessage.structured_output`.
            None: text alone.
        setup: A command for the shell of the box that comes before the agent, with its variables, user and folder.
            If it fails, so has the run, and there is no agent.
        check: Likewise one that comes after an agent that has succeeded, and says by its exit code whether the run
            has. It sees what the agent has left, and the agent's processes that go on may disturb it.
        max_budget_usd: US dollars that the run may cost, by the agent's own reckoning. It ends, as failed, once they
            are spent. None: no limit.
        include_partial_messages: Yield a StreamEvent for each piece of text as it comes.
        wait_for_login: Let the agent go on asking an API that refuses its key or login. Otherwise the run ends after
            the third refusal.
        timeout: Seconds that the run may take in all, its start included, or a time such as "30m", as for the others.
            None: the container's time limit alone.
        idle_timeout: Seconds that it may be silent. A tool that runs is silent too.
        result_timeout: Seconds that it may take to leave once it has given its last result and has nothing left to do.
            A turn, a background task or a hook that it tells of is work. The default lets hooks of its end run, to
            which claude gives 60 seconds and of which it tells nothing.
        grace: Whole seconds between asking it to stop (TERM) and making it stop (KILL).
        line_limit: The longest line in bytes that is kept whole; a longer one becomes an OversizedLine. Default: 16
            MiB. None: any length, so an agent that never ends its line can fill the memory.

    Raises:
        ConfigError: a value that we refuse.
    """

    prompt: str = attrs.field(repr=False)
    agent: Agent = attrs.field()
    resume: str | None = attrs.field(default=None, validator=optional(_session))
    fork: bool = attrs.field(default=False)
    from_run: str | None = attrs.field(default=None, validator=optional(_session))
    session_id: str | None = attrs.field(default=None, validator=optional(_session))
    append_system_prompt: str | None = attrs.field(default=None, validator=optional(_argument))
    json_schema: Mapping[str, Any] | None = attrs.field(default=None)
    setup: str | None = attrs.field(default=None, validator=optional(_argument))
    check: str | None = attrs.field(default=None, validator=optional(_argument))
    max_budget_usd: float | None = attrs.field(default=None)
    include_partial_messages: bool = False
    wait_for_login: bool = False
    timeout: float | None = attrs.field(default=None, converter=_duration, validator=_seconds)
    idle_timeout: float | None = attrs.field(default=1800.0, converter=_duration, validator=_seconds)
    result_timeout: float | None = attrs.field(default=90.0, converter=_duration, validator=_seconds)
    grace: int = attrs.field(default=3)
    line_limit: int | None = attrs.field(default=LINE_LIMIT)

    @agent.validator
    def _check_agent(self, _: object, value: object) -> None:
        if not isinstance(value, Agent):
            raise ConfigError("agent", value, 'an Agent, as Agent(name="bot", workspace=".")')

    @prompt.validator
    def _check_prompt(self, _: object, value: object) -> None:
        if not _is_text(value):
            raise ConfigError("prompt", value, "text that UTF-8 can hold")

    @json_schema.validator
    def _check_json_schema(self, _: object, value: object) -> None:
        if value is not None and not isinstance(value, Mapping):
            raise ConfigError("json_schema", value, "a JSON Schema, as a mapping, or None")
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise ConfigError("json_schema", "…", f"what JSON can hold ({error})") from None

    @max_budget_usd.validator
    def _check_max_budget_usd(self, _: object, value: object) -> None:
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf
        ):
            raise ConfigError("max_budget_usd", value, "a number of US dollars above 0, or None")

    @grace.validator
    def _check_grace(self, _: object, value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 600:
            raise ConfigError("grace", value, "a whole number of seconds from 0 to 600")

    @line_limit.validator
    def _check_line_limit(self, _: object, value: object) -> None:
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1024):
            raise ConfigError("line_limit", value, "a number of bytes from 1024, or None")

    @fork.validator
    def _check_fork(self, _: object, value: object) -> None:
        if value and self.resume is None:
            raise ConfigError("fork", value, "with resume: there is nothing to fork from without it")
