"""Qwen Code, the `qwen` command, which speaks claude's dialect."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Final

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
from container_runner.options import ExecuteOptions
from container_runner.stream.blocks import as_text
from container_runner.stream.messages import CLASSES
from container_runner.stream.reader import Folded, Reader, count, part, retried, used


class QwenRuntime(AgentRuntime):
    """Runs `qwen` with the prompt on stdin and stream-json on stdout, with a model whose API is like OpenAI's."""

    kind = "qwen"
    carries = frozenset(
        {"model", "base_url", "fallback_model", "system_prompt", "append_system_prompt", "permission_mode"}
        | {"allowed_tools", "disallowed_tools", "tools", "mcp_servers", "max_turns", "json_schema"}
        | {"include_partial_messages", "resume", "fork", "session_id"}
    )
    headless = frozenset({"--output-format=stream-json"})
    keys = ("OPENAI_API_KEY",)
    no_login = re.compile(r"^Missing API key|\[API Error: 40[13] ")
    no_session = re.compile(r"^No saved session found with (?:ID|title) .*", re.MULTILINE)
    too_long = re.compile(r"maximum context length|context_length_exceeded")

    def command(self, options: ExecuteOptions, *, contained: bool) -> Command:
        """The qwen command line. Every value is joined to its flag by '=', so none can be taken for a flag."""
        self.check(options)
        check_uuids(options)
        agent, schema = options.agent, options.json_schema
        servers = {"mcpServers": dict(agent.mcp_servers)} if agent.mcp_servers else {}
        argv = [
            self.program,
            "--output-format=stream-json",
            "--auth-type=openai",
            *flag("--approval-mode", permissions(options, MODES, contained=contained)),
            *flag("--model", agent.model),
            *flag("--fallback-model", agent.fallback_model),
            *flag("--system-prompt", agent.system_prompt),
            *flag("--append-system-prompt", options.append_system_prompt),
            *(f"--allowed-tools={tool}" for tool in agent.allowed_tools),
            *(f"--exclude-tools={tool}" for tool in agent.disallowed_tools),
            *(f"--core-tools={tool}" for tool in agent.tools or ()),
            *flag("--mcp-config", None if contained or not servers else json.dumps(servers)),
            *flag("--max-session-turns", agent.max_turns),
            *flag("--json-schema", None if schema is None else json.dumps(dict(schema))),
            *(["--include-partial-messages"] if options.include_partial_messages else []),
            *own_servers(options, contained=contained),
            *flag("--resume", options.resume),
            *(["--fork-session"] if options.fork else []),
            *flag("--session-id", options.session_id),
            *agent.args,
        ]
        return Command(
            argv=tuple(argv),
            stdin=options.prompt.encode(),
            env={
                **(_CONTAINED_ENV if contained else {}),
                **({} if agent.base_url is None else {"OPENAI_BASE_URL": agent.base_url}),
            },
            credentials=Credentials(names=self.keys, endpoint=ENDPOINT),
            kept=("projects/-workspace/chats",),
            # In its settings it puts variables in for ${NAME}, and on its command line it does not.
            files={_SETTINGS_FILE: json.dumps({**_SETTINGS, **servers})} if contained else {},
        )

    def with_server(self, options: ExecuteOptions, name: str, url: str, token: str) -> ExecuteOptions:
        """The server among its others, in its settings."""
        return with_mcp_server(options, name, {"httpUrl": url, "headers": bearer(token), "trust": True})

    def reader(self, options: ExecuteOptions) -> Reader:
        """Claude's dialect, with differences. In a session that goes on, it counts from that one's start."""
        return _Qwen(in_pieces=options.include_partial_messages, goes_on=options.resume is not None)


ENDPOINT: Final = Endpoint(
    upstream="https://api.openai.com/v1",
    headers={"OPENAI_API_KEY": "authorization: Bearer {}"},
    allowed=("POST /chat/completions", "GET /models*"),
)

MODES: Final = {"acceptEdits": "auto-edit", "bypassPermissions": "yolo"} | {
    it: it for it in ("auto", "default", "plan")
}

_SETTINGS_FILE: Final = f"{paths.HOME}/qwen-settings.json"

_SETTINGS: Final = {
    "general": {"enableAutoUpdate": False},
    "privacy": {"usageStatisticsEnabled": False},
    "disableAllHooks": True,  # they could only be the workspace's
    # What it notes by itself would act in the next run, and costs requests that nobody has asked for.
    "memory": {"enableManagedAutoMemory": False, "enableManagedAutoDream": False, "enableAutoSkill": False},
}

_CONTAINED_ENV: Final = {
    "QWEN_HOME": paths.SESSIONS,
    "QWEN_CODE_SYSTEM_SETTINGS_PATH": _SETTINGS_FILE,  # these win over the workspace's
    "QWEN_CODE_SUPPRESS_YOLO_WARNING": "1",
}

_STATUS: Final = re.compile(r"^\[API Error: ([1-5][0-9]{2}) ")


class _Qwen(Reader):
    """qwen's lines, as claude would have written them."""

    types = CLASSES

    def __init__(self, *, in_pieces: bool, goes_on: bool) -> None:
        super().__init__()
        self._in_pieces = in_pieces
        self._goes_on = goes_on
        self._used: Folded = used(0, 0)

    def fold(self, raw: Folded) -> Iterable[Folded] | None:
        kind = as_text(raw.get("type"))
        if kind not in CLASSES:
            return None
        if kind == "stream_event":  # one of them is the state of its goals, which nobody has asked for
            return [raw] if self._in_pieces and part(raw, "event").get("type") != "goal_state" else []
        if kind == "system" and raw.get("subtype") == "retry":
            data = part(raw, "data")
            retry = retried(count(data.get("attempt")), count(data.get("maxRetries")), as_text(data.get("reason")))
            return [{**raw, **retry, "retry_delay_ms": count(data.get("delayMs"))}]
        if kind == "assistant":
            said = part(raw, "message")
            if "usage" not in said:
                return [raw]
            usage = _usage(said)
            self._used = {name: self._used[name] + number for name, number in usage.items()}
            return [{**raw, "message": {**said, "usage": usage}}]
        if kind == "result":
            error = as_text(part(raw, "error").get("message"))
            status = _STATUS.match(error)
            more = {"errors": [error], "api_error_status": int(status[1]) if status else None} if error else {}
            usage = {"usage": self._used if self._goes_on else _usage(raw)} if "usage" in raw else {}
            return [{**raw, **more, **usage}]
        return [raw]


def _usage(said: Folded) -> Folded:
    """The tokens. Those of the cache are among those of the input, as the total tells."""
    usage = part(said, "usage")
    return used(usage.get("input_tokens"), usage.get("output_tokens"), read=usage.get("cache_read_input_tokens"))
