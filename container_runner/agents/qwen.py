"""Qwen Code, the `qwen` command, which speaks claude's dialect."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import ClassVar, Final

from container_runner.agents.agent import AgentRuntime, bearer, flag, own_servers
from container_runner.agents.runtime import Command, Credentials
from container_runner.config import paths
from container_runner.options import ExecuteOptions
from container_runner.stream import reader
from container_runner.stream.blocks import as_text
from container_runner.stream.messages import CLASSES
from container_runner.stream.reader import Folded, Reader, count, part

_STATUS: Final = re.compile(r"^\[API Error: ([1-5][0-9]{2}) ")

_SETTINGS_FILE: Final = f"{paths.HOME}/qwen-settings.json"

_SETTINGS: Final = {
    "general": {"enableAutoUpdate": False},
    "privacy": {"usageStatisticsEnabled": False},
    "disableAllHooks": True,  # they could only be the workspace's
    # What it notes by itself would act in the next run, and costs requests that nobody has asked for.
    "memory": {"enableManagedAutoMemory": False, "enableManagedAutoDream": False, "enableAutoSkill": False},
}


class QwenRuntime(AgentRuntime):
    """Runs `qwen` with the prompt on stdin and stream-json on stdout, with a model whose API is like OpenAI's."""

    kind = "qwen"
    flags: ClassVar = {
        "permission_mode": "--approval-mode", "model": "--model", "fallback_model": "--fallback-model",
        "system_prompt": "--system-prompt", "append_system_prompt": "--append-system-prompt",
        "allowed_tools": "--allowed-tools", "disallowed_tools": "--exclude-tools", "tools": "--core-tools",
        "max_turns": "--max-session-turns", "json_schema": "--json-schema",
        "include_partial_messages": "--include-partial-messages",
        "resume": "--resume", "fork": "--fork-session", "session_id": "--session-id",
    }  # fmt: skip
    carries = frozenset(flags) | {"base_url", "mcp_servers"}
    modes: ClassVar = {"acceptEdits": "auto-edit", "bypassPermissions": "yolo"} | {
        it: it for it in ("auto", "default", "plan")
    }
    has_uuids = True
    headless = frozenset({"--output-format=stream-json"})
    keys = ("OPENAI_API_KEY",)
    credentials = Credentials(
        names=keys, endpoint=bearer(*keys, "https://api.openai.com/v1", "POST /chat/completions", "GET /models*")
    )
    address: ClassVar = {"OPENAI_BASE_URL": "{}"}
    http_server: ClassVar = {"httpUrl": "{}", "trust": True}
    box_env: ClassVar = {
        "QWEN_HOME": paths.SESSIONS,
        "QWEN_CODE_SYSTEM_SETTINGS_PATH": _SETTINGS_FILE,  # these win over the workspace's
        "QWEN_CODE_SUPPRESS_YOLO_WARNING": "1",
    }
    kept = ("projects/-workspace/chats",)
    no_login = re.compile(r"^Missing API key|\[API Error: 40[13] ")
    no_session = re.compile(r"^No saved session found with (?:ID|title) .*", re.MULTILINE)
    too_long = re.compile(r"maximum context length|context_length_exceeded")

    def command(self, options: ExecuteOptions, *, contained: bool) -> Command:
        """The qwen command line."""
        servers = {"mcpServers": dict(options.agent.mcp_servers)} if options.agent.mcp_servers else {}
        words = [
            "--output-format=stream-json",
            "--auth-type=openai",
            *own_servers(options, contained=contained),
            *flag("--mcp-config", json.dumps(servers) if servers and not contained else None),
            *self._words(options, contained=contained),
        ]
        # In its settings it puts variables in for ${NAME}, and on its command line it does not.
        files = {_SETTINGS_FILE: json.dumps({**_SETTINGS, **servers})} if contained else {}
        return self._command(options, words, contained=contained, files=files)

    def reader(self, options: ExecuteOptions) -> Reader:
        """Claude's dialect, with differences. In a session that goes on, it counts from that one's start."""
        return _QwenReader(in_pieces=options.include_partial_messages, goes_on=options.resume is not None)


class _QwenReader(Reader):
    types = CLASSES

    def __init__(self, *, in_pieces: bool, goes_on: bool) -> None:
        super().__init__()
        self._in_pieces = in_pieces
        self._goes_on = goes_on
        self._used: Folded = reader.used(0, 0)

    def fold(self, raw: Folded) -> Iterable[Folded] | None:
        if (kind := as_text(raw.get("type"))) not in self.types:
            return None
        said = part(raw, "message")
        if kind == "stream_event":  # one of them is the state of its goals, which nobody has asked for
            return [raw] if self._in_pieces and part(raw, "event").get("type") != "goal_state" else []
        if kind == "system" and raw.get("subtype") == "retry":
            data = part(raw, "data")
            retry = reader.retried(
                count(data.get("attempt")), count(data.get("maxRetries")), as_text(data.get("reason"))
            )
            return [{**raw, **retry, "retry_delay_ms": count(data.get("delayMs"))}]
        if kind == "assistant" and "usage" in said:
            usage = _usage(said)
            self._used = {name: self._used[name] + number for name, number in usage.items()}
            return [{**raw, "message": {**said, "usage": usage}}]
        if kind == "result":
            error = as_text(part(raw, "error").get("message"))
            more = {"errors": [error], "api_error_status": reader.status_in(error, _STATUS)} if error else {}
            usage = {"usage": self._used if self._goes_on else _usage(raw)} if "usage" in raw else {}
            return [{**raw, **more, **usage}]
        return [raw]


def _usage(said: Folded) -> Folded:
    """The tokens. Those of the cache are among those of the input, as the total tells."""
    usage = part(said, "usage")
    return reader.used(usage.get("input_tokens"), usage.get("output_tokens"), read=usage.get("cache_read_input_tokens"))
