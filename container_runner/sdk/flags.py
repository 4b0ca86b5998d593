"""What `ClaudeAgentOptions` say, as claude's command line and the files that it names."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from container_runner.agents.agent import flag
from container_runner.box.translator import Translator
from container_runner.box.words import in_the_box, rule, settings
from container_runner.config import paths
from container_runner.errors import ConfigError
from container_runner.options import ARGUMENT_LIMIT, Agent

if TYPE_CHECKING:
    from claude_agent_sdk import ClaudeAgentOptions

SERVERS_FILE: Final = f"{paths.HOME}/.sdk-mcp.json"
SETTINGS_FILE: Final = f"{paths.HOME}/.sdk-settings.json"
PROMPT_FILE: Final = f"{paths.HOME}/.sdk-system-prompt"

NAMES_FILE: Final = 4096
"""A text that is longer is no path."""


@attrs.frozen
class Flags:
    """What claude is told when it starts."""

    words: tuple[str, ...]
    """Each value is joined to its flag by '=', so none can be taken for a flag."""

    files: Mapping[str, str] = attrs.field(repr=False)
    """Texts by the paths that they have in the container. They may hold keys, so they are on no command line."""


def make_flags(options: ClaudeAgentOptions, agent: Agent, translator: Translator) -> Flags:
    """What the fields among `fields.FLAGS` say.

    Args:
        agent: whose `mcp_servers`, `plugin_dirs` and `add_dirs` are those of the options, with paths as the container
            has them.
        translator: for the paths in rules, settings and `extra_args`.

    Raises:
        ConfigError: a value that claude would not take, or not as it is meant, or a path that the container lacks.
    """
    files: dict[str, str] = {}
    if agent.mcp_servers:
        files[SERVERS_FILE] = json.dumps({"mcpServers": dict(agent.mcp_servers)})
    if options.settings is not None:
        files[SETTINGS_FILE] = json.dumps(settings(_object(options.settings, "settings", options.cwd), translator))
    allowed, sources = _with_skills(options)
    words = [
        *("--output-format=stream-json", "--verbose", "--input-format=stream-json"),
        *_system_prompt(options.system_prompt, files, options.cwd),
        *_tools(options.tools),
        *_list("--allowedTools", [rule(each, "allowed_tools", translator) for each in allowed]),
        *_list("--disallowedTools", [rule(each, "disallowed_tools", translator) for each in options.disallowed_tools]),
        *flag("--max-turns", options.max_turns or None),
        *flag("--max-budget-usd", options.max_budget_usd),
        *flag("--task-budget", None if options.task_budget is None else options.task_budget["total"]),
        *flag("--model", options.model or None),
        *flag("--fallback-model", options.fallback_model or None),
        *_list("--betas", options.betas),
        # Without this one claude does not ask, denies, and calls it a success.
        *flag("--permission-prompt-tool", "stdio" if options.can_use_tool else options.permission_prompt_tool_name),
        *flag("--permission-mode", options.permission_mode),
        *_switch("--continue", options.continue_conversation),
        *flag("--resume", options.resume or None),
        *_switch("--fork-session", options.fork_session),
        *flag("--session-id", options.session_id or None),
        *flag("--resume-session-at", options.resume_session_at or None),
        *flag("--resume-drops-turn", options.resume_drops_turn),
        *flag("--settings", SETTINGS_FILE if SETTINGS_FILE in files else None),
        *(f"--add-dir={path}" for path in agent.add_dirs),
        *flag("--mcp-config", SERVERS_FILE if SERVERS_FILE in files else None),
        *_switch("--strict-mcp-config", options.strict_mcp_config),
        *_switch("--include-partial-messages", options.include_partial_messages),
        *_switch("--include-hook-events", options.include_hook_events),
        *([] if sources is None else [f"--setting-sources={','.join(sources)}"]),
        *(f"--plugin-dir={path}" for path in agent.plugin_dirs),
        *_thinking(options),
        *flag("--effort", options.effort),
        *flag("--json-schema", _schema(options.output_format)),
        *in_the_box(_extra(options.extra_args), translator),
    ]
    for word in words:
        if "\0" in word or len(word.encode()) > ARGUMENT_LIMIT:
            name = word.partition("=")[0]
            raise ConfigError(name, f"{len(word)} characters", f"at most {ARGUMENT_LIMIT} bytes of text without NUL")
    return Flags(tuple(words), files)


def servers_of(options: ClaudeAgentOptions) -> dict[str, Any]:
    """The MCP servers by name, as claude is told of them: of one in this process that it is there.

    Raises:
        ConfigError: it is no JSON, and no file with JSON.
    """
    servers = options.mcp_servers
    if isinstance(servers, str | os.PathLike):
        read = _object(str(servers), "mcp_servers", options.cwd) if str(servers) else {}
        servers = read.get("mcpServers", {})
    if not isinstance(servers, Mapping):
        raise ConfigError("mcp_servers", servers, 'servers by name, or JSON as {"mcpServers": {...}}')
    return {name: _without_instance(server) for name, server in servers.items()}


def plugin_paths(options: ClaudeAgentOptions) -> tuple[str, ...]:
    """The folders of the plugins.

    Raises:
        ConfigError: one is of another kind.
    """
    for index, plugin in enumerate(options.plugins):
        if plugin["type"] != "local":
            raise ConfigError(f"plugins[{index}]", plugin["type"], 'a plugin of the type "local"')
    return tuple(plugin["path"] for plugin in options.plugins)


def _without_instance(server: Any) -> Any:
    is_ours = isinstance(server, Mapping) and server.get("type") == "sdk"
    return {key: value for key, value in server.items() if key != "instance"} if is_ours else server


def _object(given: str, field: str, cwd: str | Path | None) -> dict[str, Any]:
    """What a text says that is JSON or the path of a file with it, which claude takes relative to its folder."""
    text = given.strip()
    try:
        if not text.startswith("{"):
            text = (Path(cwd or "") / os.path.expanduser(text)).read_text("utf-8-sig")  # noqa: PTH111  a string
        value = json.loads(text)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        shown = given if len(given) <= NAMES_FILE and not given.strip().startswith("{") else "…"
        raise ConfigError(field, shown, f"JSON, or the path of a file with it ({why})") from None
    if not isinstance(value, dict):
        raise ConfigError(field, "…", "an object of JSON, or the path of a file with one")
    return value


def _system_prompt(prompt: Any, files: dict[str, str], cwd: str | Path | None) -> list[str]:
    match prompt:
        case None:
            return ["--system-prompt="]  # the SDK's agents have none, unless one is asked for
        case str():
            return [f"--system-prompt={prompt}"]
        case {"type": "custom", "prompt": text}:
            return [f"--system-prompt={text}"]
        case {"type": "file", "path": path}:
            try:
                files[PROMPT_FILE] = (Path(cwd or "") / path).read_text("utf-8")
            except (OSError, ValueError) as error:
                why = getattr(error, "strerror", None) or "it is not UTF-8"
                raise ConfigError("system_prompt", path, f"the path of a file that can be read ({why})") from None
            return [f"--system-prompt-file={PROMPT_FILE}"]
        case {"type": "preset"}:
            return [f"--append-system-prompt={prompt['append']}"] if "append" in prompt else []
        case _:
            raise ConfigError("system_prompt", prompt, 'a text, or one of the types "preset", "custom" and "file"')


def _tools(tools: Any) -> list[str]:
    if tools is None:
        return []
    return [f"--tools={','.join(tools) if isinstance(tools, list) else 'default'}"]


def _with_skills(options: ClaudeAgentOptions) -> tuple[list[str], list[str] | None]:
    """The allowed tools and the setting sources, with what skills need."""
    allowed = list(options.allowed_tools)
    sources: list[str] | None = None if options.setting_sources is None else [*options.setting_sources]
    if options.skills is None:
        return allowed, sources
    if options.skills != "all" and not isinstance(options.skills, list):
        raise ConfigError("skills", options.skills, 'a list of names, or "all"')
    names = ["Skill"] if options.skills == "all" else [_skill(name) for name in options.skills]
    allowed += [name for name in names if name not in allowed]
    return allowed, ["user", "project"] if sources is None else sources


def _skill(name: Any) -> str:
    """The rule for a skill. claude cuts rules at commas, spaces and brackets, and a name can not escape them."""
    if not isinstance(name, str) or not re.fullmatch(r"[\w.:-]+", name):
        raise ConfigError("skills", name, "names of letters, digits, '-', '_', '.' and ':'")
    return f"Skill({name})"


def _thinking(options: ClaudeAgentOptions) -> list[str]:
    thinking: Any = options.thinking
    if thinking is None:
        return flag("--max-thinking-tokens", options.max_thinking_tokens)
    if thinking["type"] == "enabled":
        words = [f"--max-thinking-tokens={thinking['budget_tokens']}"]
    elif thinking["type"] in ("adaptive", "disabled"):
        words = [f"--thinking={thinking['type']}"]
    else:
        raise ConfigError("thinking", thinking["type"], "one of the types adaptive, enabled and disabled")
    return words + (flag("--thinking-display", thinking.get("display")) if thinking["type"] != "disabled" else [])


def _schema(output_format: Mapping[str, Any] | None) -> str | None:
    if output_format is None:
        return None
    if output_format.get("type") != "json_schema":
        raise ConfigError("output_format", output_format.get("type"), 'the type "json_schema"')
    schema = output_format.get("schema")
    return None if schema is None else json.dumps(schema)


def _list(name: str, values: Any) -> list[str]:
    return [f"{name}={','.join(values)}"] if values else []


def _extra(given: Mapping[str, str | None]) -> list[str]:
    return [f"--{name}" if value is None else f"--{name}={value}" for name, value in given.items()]


def _switch(name: str, is_on: bool) -> list[str]:
    return [name] if is_on else []
