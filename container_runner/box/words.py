"""A command line of claude's that was written for this machine, as the container takes it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import orjson

from container_runner.box.translator import Translator
from container_runner.errors import ConfigError

PATHS: Final = frozenset(
    (
        "--add-dir",
        "--append-subagent-system-prompt-file",
        "--append-system-prompt-file",
        "--debug-file",
        "--messaging-socket-path",
        "--plugin-dir",
        "--plugin-dir-no-mcp",
        "--project-config-root",
        "--system-prompt-file",
    )
)
"""The flags with a path behind them."""

JSON_OR_PATHS: Final = frozenset(("--agents", "--managed-settings", "--mcp-config", "--settings"))
"""The flags with JSON behind them, or the path of a file with JSON."""

RULES: Final = frozenset(("--allowedTools", "--allowed-tools", "--disallowedTools", "--disallowed-tools"))
"""The flags with permission rules behind them, which may name paths, as `Read(//home/me/project/private/**)`."""

SEVERAL: Final = frozenset(("--add-dir", "--mcp-config")) | RULES
"""Those that take all words up to the next flag."""

RESUME: Final = ("--resume", "-r")
"""What takes the path of a transcript, too."""

HOST_COMMANDS: Final = frozenset(
    (
        *("agents", "attach", "auth", "gateway", "import", "install", "kill", "logs", "plugin", "plugins", "purge"),
        *("respawn", "rm", "setup-token", "stop", "update", "upgrade"),
    )
)
"""claude's own commands that are for this machine: what they change would go with the container."""

_RULED: Final = re.compile(r"\b(?!Bash\b)(\w+)\((?:/(?=/)|(?=~/))([^()]*)\)")
"""A path in a permission rule: `//` stands before one from the root, `~/` before one in the home folder."""

_GLOB: Final = re.compile(r"/[^/]*[*?\[{!].*", re.DOTALL)
_IN_COMMAND: Final = re.compile(r"(?<![^\s\"'=])~?/[^\s\"';|&<>()]+")


def in_the_box(words: Sequence[str], paths: Translator) -> Iterator[str]:
    """The words with the container's paths. A text, such as a prompt, stays as it is.

    Raises:
        ConfigError: one of them is a path that the container does not have; it is named with its flag. Or they are a
            command that is for this machine.
    """
    first, second = (*words[:2], "", "")[:2]
    if first in HOST_COMMANDS or (first == "mcp" and second != "serve"):
        told = (
            f"`claude {first}` is for this machine, and what it changes would go with the container; "
            "call the claude that is installed here"
        )
        raise ConfigError("words", first, "a prompt and flags", told=told)
    flag = ""
    for number, word in enumerate(words):
        if word == "--":
            yield from words[number:]
            return
        if word.startswith("-"):
            name, equals, value = word.partition("=")
            flag = "" if equals else name
            yield f"{name}={_inside(name, value, paths)}" if equals else word
            continue
        yield _inside(flag, word, paths)
        flag = flag if flag in SEVERAL else ""


def _inside(flag: str, word: str, paths: Translator) -> str:
    """What stands behind this flag."""
    if flag in RULES:
        return rule(word, flag, paths)
    is_json = flag in JSON_OR_PATHS and word.lstrip().startswith("{")
    if is_json:
        return _changed(word, servers if flag == "--mcp-config" else settings, paths)
    is_path = flag in PATHS or flag in JSON_OR_PATHS or (flag in RESUME and word.lower().endswith(".jsonl"))
    return paths.taken(word, flag) if is_path and word else word


def _changed(word: str, change: Callable[[dict[str, Any], Translator], Any], paths: Translator) -> str:
    try:
        given = orjson.loads(word)
    except orjson.JSONDecodeError:
        return word  # claude says what is wrong with it
    inside = change(given, paths)
    return word if inside == given else orjson.dumps(inside).decode()


def servers(given: dict[str, Any], paths: Translator) -> dict[str, Any]:
    """What `--mcp-config` says, as the container takes it."""
    found = given.get("mcpServers")
    if not isinstance(found, dict):
        return given
    return {**given, "mcpServers": {name: paths.server(name, server) for name, server in found.items()}}


def settings(given: Any, paths: Translator, key: str = "") -> Any:
    """What `--settings` and the like say, as the container takes it: rules, folders, and the commands of hooks.

    Raises:
        ConfigError: a rule, folder or command is of this machine, and the container does not have it.
    """
    if isinstance(given, dict):
        return {name: settings(value, paths, name) for name, value in given.items()}
    if isinstance(given, list):
        return [settings(value, paths, key) for value in given]
    if not isinstance(given, str):
        return given
    if key in ("allow", "ask", "deny"):
        return rule(given, f"permissions.{key}", paths)
    if key == "additionalDirectories":
        return paths.taken(given, key)
    if key in ("apiKeyHelper", "command"):
        return _IN_COMMAND.sub(lambda match: paths.meant(match[0], key) or match[0], given)
    return given


def rule(text: str, field: str, paths: Translator) -> str:
    """Permission rules, as the container takes them. One for a place that it does not have stays.

    Raises:
        ConfigError: one is for a folder around what is mounted, so it would say nothing of that.
    """

    def inside(match: re.Match[str]) -> str:
        tool, pattern = match.groups()
        folder = _GLOB.sub("", pattern)
        if not folder:  # it is for all there is, in the container too
            return match[0]
        if (found := paths.to_container(folder)) is not None:
            return f"{tool}(/{found}{pattern[len(folder) :]})"
        if paths.is_around(folder):
            told = (
                f"{field} {match.string}: the container has a part of {folder} elsewhere; give a rule for the folder "
                "that is mounted, such as the workspace"
            )
            raise ConfigError(field, match.string, "rules for paths that are mounted", told=told)
        return match[0]

    return _RULED.sub(inside, text)
