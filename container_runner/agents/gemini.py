"""Gemini CLI, the `gemini` command."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, Final

from container_runner.agents.agent import (
    AgentRuntime,
    bearer,
    check_uuids,
    flag,
    own_servers,
    permissions,
    with_mcp_server,
)
from container_runner.agents.runtime import Command, Credentials, Endpoint
from container_runner.config import paths
from container_runner.errors import ConfigError
from container_runner.options import ExecuteOptions
from container_runner.stream.blocks import as_text
from container_runner.stream.calls import Calls
from container_runner.stream.reader import (
    Folded,
    Reader,
    answered,
    begun,
    count,
    ended,
    gave,
    part,
    piece,
    text,
    used,
    warned,
)

PROMPT_LIMIT: Final = 8 * 1024**2
"""Bytes of a prompt that gemini reads. It drops the rest, and says so on stderr alone."""


class GeminiRuntime(AgentRuntime):
    """Runs `gemini` with the prompt on stdin and stream-json on stdout."""

    kind = "gemini"
    carries = frozenset(
        {"model", "base_url", "permission_mode", "tools", "mcp_servers", "max_turns", "include_partial_messages"}
        | {"resume", "session_id"}
    )
    headless = frozenset({"--output-format=stream-json"})
    keys = ("GEMINI_API_KEY",)
    no_login = re.compile("API[ _]key not valid|API_KEY_INVALID|must specify|set an Auth method|Invalid auth method")
    no_session = re.compile(r"^Error resuming session: .*", re.MULTILINE)
    too_long = re.compile(r"input token count .*exceeds", re.IGNORECASE)

    def command(self, options: ExecuteOptions, *, contained: bool) -> Command:
        """The gemini command line. In a container its settings come in a file, and on the host they are the user's.

        Raises:
            ConfigError: something is asked for that it has nothing for, or on the host what only settings could say.
        """
        self.check(options)
        check_uuids(options)
        agent, prompt = options.agent, options.prompt.encode()
        if len(prompt) > PROMPT_LIMIT:
            allowed = f"at most {PROMPT_LIMIT} bytes for gemini; put the long part into a file in the workspace"
            raise ConfigError("prompt", f"{len(prompt)} bytes", allowed)
        for name in () if contained else ("tools", "mcp_servers", "max_turns"):
            if value := getattr(agent, name):
                raise ConfigError(f"agent.{name}", value, "in gemini's own settings, where no container is around it")
        argv = [
            self.program,
            "--output-format=stream-json",
            *flag("--approval-mode", permissions(options, MODES, contained=contained)),
            *flag("--model", agent.model),
            *own_servers(options, contained=contained),
            *flag("--resume", options.resume),
            *flag("--session-id", options.session_id),
            *agent.args,
        ]
        return Command(
            argv=tuple(argv),
            stdin=prompt,
            env={
                "GEMINI_CLI_NO_RELAUNCH": "true",  # its launcher hears neither TERM nor INT
                **(_CONTAINED_ENV if contained else {}),
                **({} if agent.base_url is None else {"GOOGLE_GEMINI_BASE_URL": agent.base_url}),
            },
            credentials=Credentials(names=self.keys, endpoint=ENDPOINT),
            kept=(".gemini/tmp/workspace/chats",),
            files={f"{paths.SESSIONS}/.gemini/settings.json": json.dumps(_settings(options))} if contained else {},
        )

    def with_server(self, options: ExecuteOptions, name: str, url: str, token: str) -> ExecuteOptions:
        """The server among its others, in its settings."""
        return with_mcp_server(options, name, {"httpUrl": url, "headers": bearer(token), "trust": True})

    def reader(self, options: ExecuteOptions) -> Reader:
        """Its dialect, in which the answer comes piece by piece."""
        return _Gemini(in_pieces=options.include_partial_messages)


ENDPOINT: Final = Endpoint(
    upstream="https://generativelanguage.googleapis.com",
    headers={"GEMINI_API_KEY": "x-goog-api-key: {}"},
    allowed=("POST /v1beta/models/*", "GET /v1beta/models*"),
)

MODES: Final = {"default": "default", "acceptEdits": "auto_edit", "plan": "plan", "bypassPermissions": "yolo"}

_CONTAINED_ENV: Final = {
    "GEMINI_CLI_HOME": paths.SESSIONS,  # its state lies in .gemini in there
    "GEMINI_CLI_TRUST_WORKSPACE": "true",  # without it, it does nothing unasked
}


def _settings(options: ExecuteOptions) -> dict[str, Any]:
    """Its user's settings. A system's would win over a workspace's, but it takes them from files of root's alone."""
    agent = options.agent
    return {
        # With a URL of one's own it takes a way to log in that its headless mode then refuses.
        **({} if agent.base_url is None else {"security": {"auth": {"selectedType": "gemini-api-key"}}}),
        # What it clears away are also sessions that were resumed: it takes their second file for a broken one.
        "general": {"enableAutoUpdate": False, "sessionRetention": {"enabled": False}},
        "privacy": {"usageStatisticsEnabled": False},
        "telemetry": {"enabled": False},
        **({} if agent.max_turns is None else {"model": {"maxSessionTurns": agent.max_turns}}),
        **({} if agent.tools is None else {"tools": {"core": list(agent.tools)}}),
        **({"mcpServers": dict(agent.mcp_servers)} if agent.mcp_servers else {}),
    }


LONGEST: Final = 1024**2
"""Characters of an answer after which what has come of it becomes a message, so that it does not fill the memory."""

_STATUS: Final = re.compile(r'"code":\s*([1-5][0-9]{2})\b')
_DENIED: Final = "requires user confirmation, which is not supported in non-interactive mode"


class _Gemini(Reader):
    """gemini's lines. An answer comes in pieces, and has ended when something else comes."""

    types = frozenset({"init", "message", "tool_use", "tool_result", "error", "result"})

    def __init__(self, *, in_pieces: bool) -> None:
        super().__init__()
        self._in_pieces = in_pieces
        self._pieces: list[str] = []
        self._piece: Folded = {}
        self._size = 0
        self._said = ""
        self._calls = Calls()

    def fold(self, raw: Folded) -> Iterable[Folded] | None:
        kind = as_text(raw.get("type"))
        if kind not in self.types:
            return None
        if kind == "message" and raw.get("role") == "assistant":
            self._piece = raw
            return self._add(as_text(raw.get("content")))
        return [*self._answer(), *({**each, "original": raw} for each in self._other(kind, raw))]

    def _other(self, kind: str, raw: Folded) -> Iterable[Folded]:
        if kind == "init":
            self.session_id = as_text(raw.get("session_id"))
            yield begun(self.session_id, model=raw.get("model"))
        elif kind == "tool_use":
            yield answered(self._calls.begin(raw.get("tool_id"), raw.get("tool_name"), raw.get("parameters")))
        elif kind == "tool_result":
            said = as_text(raw.get("output")) or as_text(part(raw, "error").get("message"))
            is_error = raw.get("status") != "success"
            self._calls.end(raw.get("tool_id"), denied=is_error and _DENIED in said)
            yield gave(raw.get("tool_id"), said, is_error=is_error)
        elif kind == "error":
            yield warned(raw.get("message"))
        elif kind == "result":
            yield self._end(raw)

    def _end(self, raw: Folded) -> Folded:
        stats, failed = part(raw, "stats"), part(raw, "error")
        error = None if raw.get("status") == "success" else as_text(failed.get("message")) or "it gave no reason"
        status = _STATUS.search(error or "")
        end = ended(
            self._said,
            error=error,
            status=int(status[1]) if status else None,
            usage=_usage(stats) if stats else None,
            duration_ms=count(stats.get("duration_ms")) or None,
            permission_denials=self._calls.denials or None,
        )
        return {**end, "subtype": "error_max_turns"} if failed.get("type") == "FatalTurnLimitedError" else end

    def _add(self, said: str) -> Iterable[Folded]:
        if not said:
            return []
        self._pieces.append(said)
        self._size += len(said)
        return [*([piece(said)] if self._in_pieces else []), *(self._answer() if self._size > LONGEST else [])]

    def _answer(self) -> list[Folded]:
        """The answer, if it has begun."""
        if not self._pieces:
            return []
        self._said, self._pieces, self._size = "".join(self._pieces), [], 0
        return [{**answered(text(self._said)), "original": self._piece}]  # the last of many lines

    def fold_end(self) -> Folded | None:
        """What it still had to say when it was stopped."""
        return next(iter(self._answer()), None)


def _usage(stats: Folded) -> Folded:
    return used(stats.get("input_tokens"), stats.get("output_tokens"), read=stats.get("cached"))
