"""What stands between an editor and an ACP agent in a box: lines in, lines for both sides out, without I/O.

The box has other paths than the editor, and the agent in it is not trusted. So:

- no byte of the agent's goes to the editor: its lines are read, and what is known of them is written anew. Another
  reader might find another method in the same bytes, by a second key, a key in capitals or a lone CR;
- the agent may ask the editor for what is in `TO_EDITOR`, and is refused the rest here. It is told that the editor
  reads no files and runs no commands for it: else it would work on the editor's disk, and not in its box;
- paths of the editor's become the box's, and the other way round;
- MCP servers of the editor's are refused, dropped or passed on, as the operator says, and each time a person is told:
  their commands are on the editor's machine;
- no way to log in is offered that has the editor run a command.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Literal, Protocol, TypeAlias
from urllib.parse import quote, unquote, urlsplit

import attrs

from container_runner.config.laws import NOT_SHOWN
from container_runner.errors import ConfigError, ContainerRunnerError
from container_runner.session import jsonrpc
from container_runner.stream.decode import fits, load

ClientMcp: TypeAlias = Literal["refuse", "drop", "pass"]

TO_EDITOR: Final = frozenset(
    [
        *("session/update", "session/request_permission", "$/cancel_request"),
        *("elicitation/create", "elicitation/complete"),
    ]
)
"""What an agent may ask or tell an editor: all that ACP has but the editor's files and commands."""

_MCP: Final = frozenset(["mcp/connect", "mcp/message", "mcp/disconnect"])
"""By which an agent speaks with MCP servers of the editor's."""

_LOGIN_TYPES: Final = (None, "agent", "env_var")
_LOGIN: Final = ("id", "name", "description", "type", "vars", "link")
"""What is told of a way to log in. An editor may find a command in the rest."""

_AS_IT_IS: Final = ("rawInput", "rawOutput", "_meta", "text", "oldText", "newText")
"""The fields that hold what the agent or its model wrote, in which nothing is translated."""

_LONGEST_NOTE: Final = 300


class Paths(Protocol):
    """Translates paths: a `box.translator.Translator`."""

    def taken(self, path: str, field: str) -> str:
        """A path of the editor's as the container has it; `ConfigError` if it has nothing of it."""
        ...

    def to_host(self, path: str) -> str | None:
        """A path of the container's as the editor has it; None if it is the container's own."""
        ...

    def server(self, name: str, server: Any) -> Any:
        """An MCP server's command, likewise."""
        ...


@attrs.frozen
class Passed:
    """What becomes of one line."""

    to_agent: bytes = b""
    to_editor: bytes = b""
    note: str = ""
    """What a person should know of it."""


@attrs.define(eq=False, repr=False)
class EditorProxy:
    """Passes the lines of one connection on. `open` are the editor's requests that wait for an answer."""

    _paths: Paths
    _client_mcp: ClientMcp = "refuse"
    open: dict[jsonrpc.Id, str] = attrs.field(factory=dict, init=False)

    def from_editor(self, line: bytes) -> Passed:
        """A line that the editor wrote, without its newline."""
        raw = _message(line)
        if raw is None:
            return _nothing(line) or Passed(to_editor=jsonrpc.refusal(None, jsonrpc.PARSE_ERROR, "It is no message."))
        method, params, name = raw.get("method"), raw.get("params"), raw.get("id")
        if not isinstance(method, str) or not isinstance(params, dict):
            self._ask(raw)
            return Passed(to_agent=line + b"\n")
        try:
            told = self._inside(method, params)
        except ConfigError as error:
            if "id" not in raw:
                return Passed(note=error.message)
            return Passed(to_editor=jsonrpc.refusal(name, jsonrpc.INVALID_PARAMS, error.message), note=error.message)
        self._ask(raw)
        note = ""
        if told.get("mcpServers") == [] and (left_out := _named(params["mcpServers"])):
            note = f"The editor's MCP servers are left out, as --client-mcp=drop says: {left_out}."
        return Passed(to_agent=line + b"\n" if told == params else jsonrpc.line({**raw, "params": told}), note=note)

    def from_agent(self, line: bytes) -> Passed:
        """A line that the agent wrote, without its newline."""
        raw = _message(line)
        if raw is None:
            told = line[:_LONGEST_NOTE].decode("utf-8", "replace")
            return _nothing(line) or Passed(note=f"The agent wrote what is no message: {told}")
        keys = ("id", "method", "params")
        if "method" not in raw:
            keys = ("id", "result", "error")
            self.open.pop(raw.get("id"), None)
        elif not self._may(raw["method"]):
            if "id" not in raw:
                return Passed()
            why = "The editor is not asked for this: the agent works in a container, with the files and commands there."
            return Passed(to_agent=jsonrpc.refusal(raw["id"], jsonrpc.METHOD_NOT_FOUND, why))
        told = self._outside({key: raw[key] for key in keys if key in raw})
        return Passed(to_editor=jsonrpc.line({"jsonrpc": "2.0", **told}))

    def answers(self, error: ContainerRunnerError) -> bytes:
        """The answer to each request that is open, when nobody will answer it any more."""
        text = error.message if isinstance(error, ConfigError) else f"{error.message} {error.next_step}".strip()
        names, self.open = list(self.open), {}
        return b"".join(jsonrpc.refusal(name, jsonrpc.INTERNAL_ERROR, text) for name in names)

    def _may(self, method: Any) -> bool:
        """Whether the agent may ask the editor for this."""
        return isinstance(method, str) and (method in TO_EDITOR or (method in _MCP and self._client_mcp == "pass"))

    def _ask(self, raw: dict[str, Any]) -> None:
        name = raw.get("id")
        if isinstance(method := raw.get("method"), str) and isinstance(name, str | int):
            self.open[name] = method

    def _inside(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """What the agent is told.

        Raises:
            ConfigError: it has to do with what is not in the box.
        """
        told = dict(params)
        if method == "initialize":
            told["clientCapabilities"] = _capabilities(params.get("clientCapabilities"))
        if isinstance(cwd := params.get("cwd"), str):
            told["cwd"] = self._paths.taken(cwd, "cwd")
        if isinstance(more := params.get("additionalDirectories"), list):
            told["additionalDirectories"] = [self._paths.taken(str(each), "additionalDirectories") for each in more]
        if (servers := params.get("mcpServers")) is not None:
            told["mcpServers"] = self._servers(servers)
        if isinstance(blocks := params.get("prompt"), list):
            told["prompt"] = [self._block(block) for block in blocks]
        return told

    def _servers(self, servers: Any) -> list[Any]:
        if not isinstance(servers, list) or not all(isinstance(server, dict) for server in servers):
            raise ConfigError("mcpServers", NOT_SHOWN, "a list of servers")
        if not servers or self._client_mcp == "drop":
            return []
        if self._client_mcp == "refuse":
            told = (
                f"The editor has MCP servers for the agent ({_named(servers)}), and the agent is in a container, where "
                "their commands are not: start it with --client-mcp=drop to go without them, or with --client-mcp=pass "
                "if the image has them"
            )
            raise ConfigError("--client-mcp", "refuse", "drop or pass", told=told)
        for server in servers:
            if is_here(server.get("url")):
                told = (
                    f"The editor's MCP server {_named([server])} listens on this machine, and the container has a "
                    "localhost of its own: start it with --client-mcp=drop to go without it, or take it out of the "
                    "editor's settings"
                )
                raise ConfigError("--client-mcp", "pass", "drop", told=told)
        return [self._paths.server(str(server.get("name", "")), server) for server in servers]

    def _block(self, block: Any) -> Any:
        if not isinstance(block, dict):
            return block
        if block.get("type") == "resource_link" and isinstance(uri := block.get("uri"), str):
            return {**block, "uri": _with_path(uri, lambda path: self._paths.taken(path, "prompt"))}
        return block  # an embedded resource holds what it is about, and its URI is a name

    def _outside(self, value: Any) -> Any:
        """What the agent says, with the editor's paths."""
        if isinstance(value, list):
            return [self._outside(each) for each in value]
        if not isinstance(value, dict):
            return value
        told = {}
        for key, each in value.items():
            if key in _AS_IT_IS:
                told[key] = each
            elif key in ("path", "cwd") and isinstance(each, str):
                told[key] = self._shown(each)
            elif key == "uri" and isinstance(each, str):
                told[key] = _with_path(each, self._shown)
            elif key == "additionalDirectories" and isinstance(each, list):
                told[key] = [self._shown(path) if isinstance(path, str) else path for path in each]
            elif key.casefold() == "authmethods":
                told[key] = list(_logins(each)) if isinstance(each, list) else []
            elif key == "locations" and isinstance(each, list):
                told[key] = list(self._locations(each))
            else:
                told[key] = self._outside(each)
        return told

    def _shown(self, path: str) -> str:
        return (self._paths.to_host(path) or path) if path.startswith("/") else path

    def _locations(self, places: list[Any]) -> Iterator[dict[str, Any]]:
        """Where the editor may go with the agent: a path of the container's own is another file on its machine."""
        for place in places:
            path = place.get("path") if isinstance(place, dict) else None
            if isinstance(path, str) and path.startswith("/") and (host := self._paths.to_host(path)) is not None:
                yield {**place, "path": host}


def _named(servers: Any) -> str:
    """The names of MCP servers, for a person."""
    return ", ".join(str(server.get("name", "?")) for server in servers)


def is_here(url: Any) -> bool:
    """Whether a URL is one of the machine's own localhost."""
    if not isinstance(url, str):
        return False
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return False
    return host == "localhost" or host.endswith(".localhost") or host == "::1" or host.startswith("127.")


def _message(line: bytes) -> dict[str, Any] | None:
    raw = load(line) if fits(line) else None
    if not isinstance(raw, dict) or not raw.keys() & {"id", "method"}:
        return None
    return raw if jsonrpc.is_id(raw.get("id")) else None


def _nothing(line: bytes) -> Passed | None:
    return None if line.strip() else Passed()


def _capabilities(given: Any) -> dict[str, Any]:
    """What the editor can do, without what it would do outside of the box."""
    kept = {name: value for name, value in given.items() if name != "_meta"} if isinstance(given, dict) else {}
    if isinstance(login := kept.get("auth"), dict):
        kept["auth"] = {**login, "terminal": False}
    return {**kept, "fs": {"readTextFile": False, "writeTextFile": False}, "terminal": False}


def _logins(methods: list[Any]) -> Iterator[dict[str, Any]]:
    """The ways to log in, without those in which the editor runs a command that the agent names."""
    for method in methods:
        if isinstance(method, dict) and method.get("type") in _LOGIN_TYPES:
            yield {name: method[name] for name in _LOGIN if name in method}


def _with_path(uri: str, translate: Any) -> str:
    """*uri* with its path translated, if it is that of a file."""
    if not uri.startswith("file:///"):
        return uri
    end = min((at for mark in "?#" if (at := uri.find(mark)) >= 0), default=len(uri))
    return f"file://{quote(translate(unquote(uri[len('file://') : end])))}{uri[end:]}"
