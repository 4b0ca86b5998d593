"""The flags of a request that `RunFlags` has not: one for each remaining field of ExecuteOptions and Agent."""

from __future__ import annotations

import os
import select
import stat
import sys
import typing
from pathlib import Path
from typing import Annotated, Any

import attrs
import orjson
from cyclopts import Group, Parameter

from container_runner.config.fields import flag, from_text, parse
from container_runner.errors import ConfigError
from container_runner.options import Effort, ExecuteOptions

AGENT_GROUP = Group("Agent", sort_key=1)
RUN_GROUP = Group("Run", sort_key=2)


PIPE_PATIENCE = 3.0
"""Seconds that may pass before something comes on a stdin that is added to a prompt."""


def several(alias: str) -> Parameter:
    """What a flag of the agent's is that can be given again, as *alias*."""
    return Parameter(group=AGENT_GROUP, alias=alias, negative=())


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class ExecuteFlags:
    """More of `ExecuteOptions` and `Agent`. What is not given stays as it is without the flag.

    Attributes:
        tools: The only tools that the agent has; empty: none. Can be given again.
        setting_sources: A settings file of claude's to read: user, project or local; empty: none. Can be given again.
        add_dirs: One more folder that the agent may read, or with :rw work on. Can be given again.
        plugin_dirs: A plugin's folder, in one that is mounted. Can be given again.
        fallback_model: The model to use while the other is overloaded.
        effort: How hard the model thinks.
        mcp_config: A JSON file with MCP servers, by name or below "mcpServers".
        args: One more argument for the agent's command, as --arg=--verbose. Can be given again.
        json_schema: A JSON Schema, as JSON, for the shape of the answer.
        setup: A command for the shell in the box that comes before the agent, as "npm ci".
        check: Likewise one that comes after it, and decides whether the run has succeeded.
        max_budget_usd: What a run may cost, in US dollars. Default: any.
        session_id: The id that a new session gets. Default: the agent chooses.
        include_partial_messages: Pass on each piece of text as it comes. Default: only in the live view.
        wait_for_login: Let the agent go on asking an API that refuses its key or login.
        result_timeout: The time that it may take to leave after its last result: "5m", or seconds; 0: any. Default: 90.
        grace: Whole seconds between asking the agent to stop and making it stop. Default: 3.
        line_limit: The longest line of output that is kept whole, as "1m". 0: any length. Default: 16m.
    """

    tools: Annotated[tuple[str, ...], several("--tool")] = ()
    setting_sources: Annotated[tuple[str, ...], several("--setting-source")] = ()
    add_dirs: Annotated[tuple[str, ...], several("--add-dir")] = ()
    plugin_dirs: Annotated[tuple[str, ...], several("--plugin-dir")] = ()
    mcp_config: Annotated[Path | None, Parameter(group=AGENT_GROUP)] = None
    args: Annotated[tuple[str, ...], several("--arg")] = ()
    fallback_model: Annotated[str | None, Parameter(group=AGENT_GROUP)] = None
    effort: Annotated[Effort | None, Parameter(group=AGENT_GROUP)] = None
    json_schema: Annotated[str | None, Parameter(group=RUN_GROUP)] = None
    setup: Annotated[str | None, Parameter(group=RUN_GROUP)] = None
    check: Annotated[str | None, Parameter(group=RUN_GROUP)] = None
    max_budget_usd: Annotated[str | None, Parameter(group=RUN_GROUP)] = None
    session_id: Annotated[str | None, Parameter(group=RUN_GROUP)] = None
    include_partial_messages: Annotated[bool | None, Parameter(group=RUN_GROUP)] = None
    wait_for_login: Annotated[bool | None, Parameter(group=RUN_GROUP)] = None
    result_timeout: Annotated[str | None, Parameter(group=RUN_GROUP)] = None
    grace: Annotated[int | None, Parameter(group=RUN_GROUP)] = None
    line_limit: Annotated[str | None, Parameter(group=RUN_GROUP)] = None

    def apply(self, options: ExecuteOptions) -> ExecuteOptions:
        """*options* with what these flags say.

        Raises:
            ConfigError: a value that is refused, named as the flag that it came from.
        """
        lists = ("tools", "setting_sources", "add_dirs", "plugin_dirs", "args")
        agent: dict[str, Any] = {name: value for name in lists if (value := getattr(self, name))}
        for name in ("tools", "setting_sources"):  # an empty one by itself says "none"
            if agent.get(name) == ("",):
                agent[name] = ()
        agent |= {name: value for name in ("fallback_model", "effort") if (value := getattr(self, name)) is not None}
        if self.mcp_config is not None:
            agent["mcp_servers"] = load_mcp_servers(self.mcp_config)
        changes: dict[str, Any] = {
            name: value
            for name in ("session_id", "setup", "check", "include_partial_messages", "wait_for_login", "grace")
            if (value := getattr(self, name)) is not None
        }
        if self.json_schema is not None:
            changes["json_schema"] = load_json_schema(self.json_schema)
        for name in ("result_timeout", "line_limit", "max_budget_usd"):
            if (text := getattr(self, name)) is not None:
                changes[name] = parse(name, from_text(name, text), flag(name))
        try:
            return attrs.evolve(options, agent=attrs.evolve(options.agent, **agent), **changes)
        except ConfigError as error:
            raise error.called(error.field, source="command line") from None


def load_json_schema(text: str) -> dict[str, Any]:
    """The JSON Schema that a flag gives.

    Raises:
        ConfigError: it is none.
    """
    try:
        loaded = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ConfigError(
            "--json-schema", text, f'a JSON object, or "$(cat FILE)" for the one in a file ({error})'
        ) from None
    if not isinstance(loaded, dict):
        raise ConfigError("--json-schema", text, "a JSON object")
    return loaded


def load_mcp_servers(path: Path) -> dict[str, Any]:
    """The MCP servers in a JSON file.

    Raises:
        ConfigError: it can not be read, or holds something else.
    """
    try:
        loaded = orjson.loads(path.read_bytes())
    except OSError as error:
        raise unreadable("--mcp-config", path, error) from None
    except orjson.JSONDecodeError as error:
        raise ConfigError("--mcp-config", str(path), f"a file with JSON ({error})") from None
    servers = loaded.get("mcpServers", loaded) if isinstance(loaded, dict) else None
    if not isinstance(servers, dict) or not all(isinstance(server, dict) for server in servers.values()):
        raise ConfigError("--mcp-config", str(path), 'an object of servers by name, or {"mcpServers": {...}}')
    return servers


def read_prompt(prompt: str | None, file: Path | None) -> str:
    """The prompt that a command line gives: as an argument, in a file, and by what is piped in.

    What is piped in is the prompt where there is no other, and is added to it where there is one.

    Raises:
        ConfigError: there is none, or there are two.
    """
    if prompt is not None:  # whatever the locale says of its bytes
        prompt = os.fsencode(prompt).decode("utf-8", "surrogateescape")
    if prompt is not None and file is not None:
        told = "The prompt must be an argument or --prompt-file, not both"
        raise ConfigError("--prompt-file", str(file), "the only prompt", told=told)
    if prompt == "-":
        if sys.stdin.isatty():
            print("Type the prompt; Ctrl-D ends it.", file=sys.stderr)
        return _some(sys.stdin.buffer.read())
    given = prompt_in(file, "--prompt-file") if file is not None else prompt
    piped = _piped(is_all=given is None)
    if given is None and piped is not None:
        return _some(piped)
    if given is None:
        raise ConfigError("prompt", None, "some text, pipe it in, or use --prompt-file=FILE")
    if not given.strip():
        raise ConfigError("prompt", given, "some text", told="The prompt is empty")
    if not piped or not piped.strip():
        return given
    print(f"· {len(piped)} bytes from stdin are added to the prompt.", file=sys.stderr)
    return f"{given}\n\n{piped.decode('utf-8', 'replace')}"


def _some(piped: bytes) -> str:
    if not piped.strip():
        raise ConfigError("prompt", "", "some text on stdin", told="The prompt is empty: nothing came on stdin")
    return piped.decode("utf-8", "replace")


def _piped(*, is_all: bool) -> bytes | None:
    """What is piped into this process; None if nothing is.

    Args:
        is_all: whether it is all there is of a prompt, and so is waited for. Otherwise a pipe that stays silent, as one
            that a program has left open, is let be.
    """
    try:
        fd = sys.stdin.fileno()
        mode = os.fstat(fd).st_mode
    except (AttributeError, OSError, ValueError):  # there is no stdin, or it is no file
        return None
    if not (stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)):
        return None
    if not is_all and not select.select([fd], [], [], PIPE_PATIENCE)[0]:
        print("· stdin is a pipe on which nothing comes: it is not read.", file=sys.stderr)
        return None
    return sys.stdin.buffer.read()


def unreadable(name: str, path: Path, error: OSError) -> ConfigError:
    """The error for a file that can not be read."""
    told = f"{name} {path}: {(error.strerror or 'it can not be read').lower()}"
    return ConfigError(name, str(path), "a file that can be read", told=told)


def prompt_in(file: Path, name: str) -> str:
    """The prompt that a file holds.

    Raises:
        ConfigError: it can not be read, or is empty; the error calls it by *name*.
    """
    try:
        text = file.read_bytes().decode("utf-8", "replace")
    except OSError as error:
        raise unreadable(name, file, error) from None
    if not text.strip():
        raise ConfigError(name, str(file), "a file with some text in it")
    return text


def spelled(*flags: Any, without: tuple[str, ...] = ()) -> list[str]:
    """The flags as words of a command line, those that are as they are by default left out.

    Values of variables are left out too: they may be secrets, and the words are shown.
    """
    words: list[str] = []
    for given in filter(None, flags):
        for field in attrs.fields(type(given)):
            value = getattr(given, field.name)
            if value == field.default or field.name in without:
                continue
            name = _typed(type(given), field.name)
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, bool):
                    words.append(f"--{name}" if item else f"--no-{name}")
                else:
                    words.append(f"--{name}={hidden(field.name, str(item))}")
    return words


def _typed(kind: type[Any], field: str) -> str:
    """How a person types the flag of a field, without its dashes: --volume where each is given by itself."""
    metadata = getattr(typing.get_type_hints(kind, include_extras=True)[field], "__metadata__", ())
    aliases = [alias for item in metadata if isinstance(item, Parameter) for alias in item.alias or ()]
    name = next((alias for alias in aliases if alias.startswith("--")), f"--{field.replace('_', '-')}")
    return name.removeprefix("--")


def hidden(field: str, word: str) -> str:
    """A word of a field without the value of a variable, which may be a secret."""
    is_variable = field == "env" or (field == "extra_args" and word.startswith(("--env=", "-e")))
    return f"{word.partition('=')[0]}=…" if is_variable else word
