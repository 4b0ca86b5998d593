"""GitHub Copilot CLI, the `copilot` command."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from container_runner.agents.agent import AgentRuntime, bearer, check_uuids, flag, permissions, with_mcp_server
from container_runner.agents.runtime import Command, Credentials, Endpoint
from container_runner.config import paths
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
    thought,
    warned,
)


class CopilotRuntime(AgentRuntime):
    """Runs `copilot` with the prompt on stdin and JSON lines on stdout."""

    kind = "copilot"
    carries = frozenset(
        {"model", "base_url", "effort", "permission_mode", "allowed_tools", "disallowed_tools", "tools"}
        | {"plugin_dirs", "mcp_servers", "include_partial_messages", "resume", "session_id"}
    )
    headless = frozenset({"--output-format=json", "--stream=off", "--no-ask-user"})
    keys = ("COPILOT_GITHUB_TOKEN", "COPILOT_PROVIDER_API_KEY")
    no_login = re.compile(r"^Error: No authentication information found|^Authentication failed", re.MULTILINE)
    no_session = re.compile(r"^Error: No session, task, or name matched .*", re.MULTILINE)
    too_long = re.compile(r"maximum context length|context_length_exceeded|model_max_prompt_tokens_exceeded")

    def command(self, options: ExecuteOptions, *, contained: bool) -> Command:
        """The copilot command line. It names its session only at its end, so the id is ours from the beginning."""
        self.check(options)
        check_uuids(options)
        agent = options.agent
        session = options.resume or options.session_id or str(uuid.uuid4())
        mode = permissions(options, MODES, contained=contained)
        argv = [
            self.program,
            "--output-format=json",
            f"--stream={'on' if options.include_partial_messages else 'off'}",
            "--no-ask-user",  # nobody would answer
            "--no-auto-update",
            "--disable-client-telemetry",
            *([mode] if mode else []),
            *flag("--model", agent.model),
            *flag("--reasoning-effort", agent.effort),
            *(f"--allow-tool={tool}" for tool in agent.allowed_tools),
            *(f"--deny-tool={tool}" for tool in agent.disallowed_tools),
            *flag("--available-tools", None if agent.tools is None else ",".join(agent.tools)),
            *(f"--plugin-dir={path}" for path in agent.plugin_dirs),
            *flag("--additional-mcp-config", _servers(agent.mcp_servers)),
            f"--{'session-id' if options.resume is None else 'resume'}={session}",
            *agent.args,
        ]
        return Command(
            argv=tuple(argv),
            stdin=options.prompt.encode(),
            env={
                **({"COPILOT_HOME": paths.SESSIONS, "COPILOT_AUTO_UPDATE": "false"} if contained else {}),
                **({} if agent.base_url is None else {"COPILOT_PROVIDER_BASE_URL": agent.base_url, **_OWN_MODEL}),
            },
            credentials=Credentials(names=self.keys[:1])
            if agent.base_url is None
            else Credentials(names=self.keys[1:], endpoint=_endpoint(self.keys[1], agent.base_url)),
            kept=("session-state",),
            session_id=session,
        )

    def with_server(self, options: ExecuteOptions, name: str, url: str, token: str) -> ExecuteOptions:
        """The server among its others, with all of its tools."""
        server = {"type": "http", "url": url, "headers": bearer(token), "tools": ["*"]}
        return with_mcp_server(options, name, server, name)

    def reader(self, options: ExecuteOptions) -> Reader:
        """Its dialect: events in envelopes, and a result in another shape."""
        return _Copilot(in_pieces=options.include_partial_messages, model=options.agent.model)


MODES: Final = {"default": "", "plan": "--mode=plan", "bypassPermissions": "--allow-all"}

_OWN_MODEL: Final = {
    "COPILOT_PROVIDER_TYPE": "openai",
    "COPILOT_OFFLINE": "true",  # it asks nobody else: neither GitHub nor whoever counts
}


def _servers(servers: Mapping[str, Any]) -> str | None:
    return json.dumps({"mcpServers": dict(servers)}) if servers else None


_SILENT: Final = frozenset({"user.message", "assistant.turn_start", "assistant.turn_end"})


class _Copilot(Reader):
    """copilot's lines. What it calls ephemeral is for a screen, and is left out."""

    types = _SILENT | {
        *("assistant.message", "assistant.reasoning", "tool.execution_start", "tool.execution_complete"),
        *("session.error", "session.warning", "result"),
    }

    def __init__(self, *, in_pieces: bool, model: str | None) -> None:
        super().__init__()
        self._in_pieces = in_pieces
        self._model = model
        self._has_begun = self._was_stopped = False
        self._said = ""
        self._failure: Folded = {}
        self._calls = Calls()

    def fold(self, raw: Folded) -> Iterable[Folded] | None:
        kind, data = as_text(raw.get("type")), part(raw, "data")
        if raw.get("ephemeral") is True:
            if kind == "assistant.idle":
                self._was_stopped = data.get("aborted") is True
            return [piece(data.get("deltaContent"))] if kind == "assistant.message_delta" and self._in_pieces else []
        if kind not in self.types:
            return None
        parent = data.get("parentToolCallId")
        said = self._end(raw) if kind == "result" else self._event(kind, data)
        return [{**each, "parent_tool_use_id": parent} if isinstance(parent, str) else each for each in said]

    def _event(self, kind: str, data: Folded) -> Iterator[Folded]:
        if not self._has_begun:
            self._has_begun = True
            yield begun(self.session_id, model=self._model)
        call = data.get("toolCallId")
        if kind == "assistant.message":
            yield from self._answer(data)
        elif kind == "assistant.reasoning":
            yield answered(thought(data.get("content")))
        elif kind == "tool.execution_start" and call not in self._calls:
            yield answered(self._calls.begin(call, data.get("toolName"), data.get("arguments")))
        elif kind == "tool.execution_complete":
            error = part(data, "error")
            self._calls.end(call, denied=error.get("code") == "denied")
            content = as_text(part(data, "result").get("content")) or as_text(error.get("message"))
            has_failed = data.get("success") is not True or bool(part(data, "shellExecution").get("exitCode"))
            yield gave(call, content, is_error=has_failed)
        elif kind in ("session.error", "session.warning"):
            if kind == "session.error":
                self._failure = data
            yield warned(data.get("message"))

    def _answer(self, data: Folded) -> Iterator[Folded]:
        content, asked = as_text(data.get("content")), data.get("toolRequests")
        requests = [each for each in asked if isinstance(each, dict)] if isinstance(asked, list) else []
        blocks = [text(content)] if content else []
        blocks += (self._calls.begin(it.get("toolCallId"), it.get("name"), it.get("arguments")) for it in requests)
        self._said = content or self._said
        if blocks:
            yield answered(*blocks, id=data.get("messageId"), model=data.get("model"))

    def _end(self, raw: Folded) -> Iterator[Folded]:
        self.session_id = as_text(raw.get("sessionId")) or self.session_id
        code, error = raw.get("exitCode"), None
        if code != 0:
            error = as_text(self._failure.get("message")) or f"it ended with exit code {count(code)}"
        elif self._was_stopped:  # it calls that a success
            error = "it was interrupted"
        yield ended(
            self._said,
            error=error,
            status=count(self._failure.get("statusCode")) or None if error else None,
            duration_api_ms=count(part(raw, "usage").get("totalApiDurationMs")) or None,
            permission_denials=self._calls.denials or None,
        )


def _endpoint(key: str, upstream: str) -> Endpoint:
    """An API of one's own. GitHub's is found with the key itself, so that one can not be added on the way."""
    allowed = ("POST /chat/completions", "POST /responses", "GET /models")
    return Endpoint(upstream=upstream, headers={key: "authorization: Bearer {}"}, allowed=allowed)
