"""Gemini CLI, the `gemini` command."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from io import StringIO
from typing import Any, ClassVar, Final

from container_runner.agents.agent import AgentRuntime, own_servers
from container_runner.agents.runtime import Command, Credentials, Endpoint
from container_runner.config import paths
from container_runner.errors import ConfigError
from container_runner.options import ExecuteOptions
from container_runner.stream import reader
from container_runner.stream.blocks import as_text
from container_runner.stream.calls import Calls
from container_runner.stream.reader import Folded, Reader, part

PROMPT_LIMIT: Final = 8 * 1024**2
"""Bytes of a prompt that gemini reads. It drops the rest, and says so on stderr alone."""

LONGEST: Final = 1024**2
"""Characters of an answer after which what has come of it becomes a message, so that it does not fill the memory."""

_STATUS: Final = re.compile(r'"code":\s*([1-5][0-9]{2})\b')
_DENIED: Final = "requires user confirmation, which is not supported in non-interactive mode"


class GeminiRuntime(AgentRuntime):
    """Runs `gemini` with the prompt on stdin and stream-json on stdout."""

    kind = "gemini"
    flags: ClassVar = {
        "permission_mode": "--approval-mode", "model": "--model", "resume": "--resume", "session_id": "--session-id",
    }  # fmt: skip
    carries = frozenset(flags) | {"base_url", "tools", "mcp_servers", "max_turns", "include_partial_messages"}
    modes: ClassVar = {"default": "default", "acceptEdits": "auto_edit", "plan": "plan", "bypassPermissions": "yolo"}
    has_uuids = True
    headless = frozenset({"--output-format=stream-json"})
    keys = ("GEMINI_API_KEY",)
    credentials = Credentials(
        names=keys,
        endpoint=Endpoint(
            upstream="https://generativelanguage.googleapis.com",
            headers={"GEMINI_API_KEY": "x-goog-api-key: {}"},
            allowed=("POST /v1beta/models/*", "GET /v1beta/models*"),
        ),
    )
    address: ClassVar = {"GOOGLE_GEMINI_BASE_URL": "{}"}
    http_server: ClassVar = {"httpUrl": "{}", "trust": True}
    box_env: ClassVar = {
        "GEMINI_CLI_HOME": paths.SESSIONS,  # its state lies in .gemini in there
        "GEMINI_CLI_TRUST_WORKSPACE": "true",  # without it, it does nothing unasked
    }
    kept = (".gemini/tmp/workspace/chats",)
    no_login = re.compile("API[ _]key not valid|API_KEY_INVALID|must specify|set an Auth method|Invalid auth method")
    no_session = re.compile(r"^Error resuming session: .*", re.MULTILINE)
    too_long = re.compile(r"input token count .*exceeds", re.IGNORECASE)

    def command(self, options: ExecuteOptions, *, contained: bool) -> Command:
        """The gemini command line. In a container its settings come in a file, and on the host they are the user's.

        Raises:
            ConfigError: something is asked for that it has nothing for, or on the host what only settings could say.
        """
        agent, size = options.agent, len(options.prompt.encode())
        if size > PROMPT_LIMIT:
            allowed = f"at most {PROMPT_LIMIT} bytes for gemini; put the long part into a file in the workspace"
            raise ConfigError("prompt", f"{size} bytes", allowed)
        for name in () if contained else ("tools", "mcp_servers", "max_turns"):
            if value := getattr(agent, name):
                raise ConfigError(f"agent.{name}", value, "in gemini's own settings, where no container is around it")
        words = [
            "--output-format=stream-json",
            *own_servers(options, contained=contained),
            *self._words(options, contained=contained),
        ]
        env = {"GEMINI_CLI_NO_RELAUNCH": "true"}  # its launcher hears neither TERM nor INT
        files = {f"{paths.SESSIONS}/.gemini/settings.json": json.dumps(_settings(options))} if contained else {}
        return self._command(options, words, contained=contained, env=env, files=files)

    def reader(self, options: ExecuteOptions) -> Reader:
        """Its dialect, in which the answer comes piece by piece."""
        return _GeminiReader(in_pieces=options.include_partial_messages)


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


class _GeminiReader(Reader):
    """An answer comes in pieces, and has ended when something else comes."""

    types = frozenset({"init", "message", "tool_use", "tool_result", "error", "result"})

    def __init__(self, *, in_pieces: bool) -> None:
        super().__init__()
        self._in_pieces = in_pieces
        self._text = StringIO()
        self._piece: Folded = {}
        self._said = ""
        self._calls = Calls()

    def fold(self, raw: Folded) -> Iterable[Folded] | None:
        kind = as_text(raw.get("type"))
        if kind not in self.types:
            return None
        if kind == "message" and raw.get("role") == "assistant":
            self._piece, said = raw, as_text(raw.get("content"))
            self._text.write(said)
            pieces = [reader.piece(said)] if said and self._in_pieces else []
            return [*pieces, *(self._answer() if self._text.tell() > LONGEST else [])]
        return [*self._answer(), *({**each, "original": raw} for each in self._other(kind, raw))]

    def _other(self, kind: str, raw: Folded) -> list[Folded]:
        call, failed = raw.get("tool_id"), part(raw, "error")
        match kind:
            case "init":
                self.session_id = as_text(raw.get("session_id"))
                return [reader.begun(self.session_id, model=raw.get("model"))]
            case "tool_use":
                return [reader.answered(self._calls.begin(call, raw.get("tool_name"), raw.get("parameters")))]
            case "tool_result":
                said = as_text(raw.get("output")) or as_text(failed.get("message"))
                is_error = raw.get("status") != "success"
                self._calls.end(call, denied=is_error and _DENIED in said)
                return [reader.gave(call, said, is_error=is_error)]
            case "error":
                return [reader.warned(raw.get("message"))]
            case "result":
                return [self._end(raw, failed)]
            case _:
                return []

    def _end(self, raw: Folded, failed: Folded) -> Folded:
        error = None if raw.get("status") == "success" else as_text(failed.get("message")) or "it gave no reason"
        used = part(raw, "stats")
        usage = reader.used(used.get("input_tokens"), used.get("output_tokens"), read=used.get("cached"))
        end = reader.ended(
            self._said,
            error=error,
            status=reader.status_in(error or "", _STATUS),
            usage=usage if used else None,
            duration_ms=reader.count(used.get("duration_ms")) or None,
            permission_denials=self._calls.denials or None,
        )
        return {**end, "subtype": "error_max_turns"} if failed.get("type") == "FatalTurnLimitedError" else end

    def _answer(self) -> list[Folded]:
        """The answer, if it has begun."""
        if not (said := self._text.getvalue()):
            return []
        self._said, self._text = said, StringIO()
        return [{**reader.answered(reader.text(said)), "original": self._piece}]  # the last of many lines

    def fold_end(self) -> Folded | None:
        """What it still had to say when it was stopped."""
        return next(iter(self._answer()), None)
