"""GitHub Copilot CLI, the `copilot` command."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Iterator
from typing import ClassVar

from container_runner.agents.agent import AgentRuntime, bearer, permissions
from container_runner.agents.runtime import Command, Credentials
from container_runner.config import paths
from container_runner.options import ExecuteOptions
from container_runner.stream import reader
from container_runner.stream.blocks import as_text
from container_runner.stream.calls import Calls
from container_runner.stream.reader import Folded, Reader, count, part, parts


class CopilotRuntime(AgentRuntime):
    """Runs `copilot` with the prompt on stdin and JSON lines on stdout."""

    kind = "copilot"
    flags: ClassVar = {
        "model": "--model", "effort": "--reasoning-effort", "allowed_tools": "--allow-tool",
        "disallowed_tools": "--deny-tool", "tools": "--available-tools", "plugin_dirs": "--plugin-dir",
        "mcp_servers": "--additional-mcp-config", "resume": "--resume",
    }  # fmt: skip
    carries = frozenset(flags) | {"base_url", "permission_mode", "include_partial_messages", "session_id"}
    modes: ClassVar = {"default": "", "plan": "--mode=plan", "bypassPermissions": "--allow-all"}
    has_uuids = True
    headless = frozenset({"--output-format=json", "--stream=off", "--no-ask-user"})
    keys = ("COPILOT_GITHUB_TOKEN", "COPILOT_PROVIDER_API_KEY")
    address: ClassVar = {
        "COPILOT_PROVIDER_BASE_URL": "{}",
        "COPILOT_PROVIDER_TYPE": "openai",
        "COPILOT_OFFLINE": "true",  # it asks nobody else: neither GitHub nor whoever counts
    }
    http_server: ClassVar = {"type": "http", "url": "{}", "tools": ["*"]}
    all_tools = ("{}",)
    box_env: ClassVar = {"COPILOT_HOME": paths.SESSIONS, "COPILOT_AUTO_UPDATE": "false"}
    kept = ("session-state",)
    no_login = re.compile(r"^Error: No authentication information found|^Authentication failed", re.MULTILINE)
    no_session = re.compile(r"^Error: No session, task, or name matched .*", re.MULTILINE)
    too_long = re.compile(r"maximum context length|context_length_exceeded|model_max_prompt_tokens_exceeded")

    def command(self, options: ExecuteOptions, *, contained: bool) -> Command:
        """The copilot command line. It names its session only at its end, so the id is ours from the beginning."""
        session = options.resume or options.session_id or str(uuid.uuid4())
        mode = permissions(options, self.modes, contained=contained)
        words = [
            "--output-format=json",
            f"--stream={'on' if options.include_partial_messages else 'off'}",
            "--no-ask-user",  # nobody would answer
            "--no-auto-update",
            "--disable-client-telemetry",
            *([mode] if mode else []),
            *([] if options.resume else [f"--session-id={session}"]),
            *self._words(options, contained=contained),
        ]
        (token, key), url = self.keys, options.agent.base_url
        credentials = Credentials(names=(token,))  # it tells where GitHub's API is, so it can not be added on the way
        if url is not None:
            endpoint = bearer(key, url, "POST /chat/completions", "POST /responses", "GET /models")
            credentials = Credentials(names=(key,), endpoint=endpoint)
        return self._command(options, words, contained=contained, credentials=credentials, session_id=session)

    def reader(self, options: ExecuteOptions) -> Reader:
        """Its dialect: events in envelopes, and a result in another shape."""
        return _CopilotReader(in_pieces=options.include_partial_messages, model=options.agent.model)


class _CopilotReader(Reader):
    """What copilot calls ephemeral is for a screen, and is left out."""

    types = frozenset({
        "assistant.message", "assistant.reasoning", "tool.execution_start", "tool.execution_complete",
        "session.error", "session.warning", "result",
        "user.message", "assistant.turn_start", "assistant.turn_end",  # of which nothing is told
    })  # fmt: skip

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
            is_piece = kind == "assistant.message_delta" and self._in_pieces
            return [reader.piece(data.get("deltaContent"))] if is_piece else []
        if kind not in self.types:
            return None
        parent = data.get("parentToolCallId")
        said = self._end(raw) if kind == "result" else self._event(kind, data)
        return [{**each, "parent_tool_use_id": parent} if isinstance(parent, str) else each for each in said]

    def _event(self, kind: str, data: Folded) -> Iterator[Folded]:
        if not self._has_begun:
            self._has_begun = True
            yield reader.begun(self.session_id, model=self._model)
        call, error = data.get("toolCallId"), part(data, "error")
        match kind:
            case "assistant.message":
                content = as_text(data.get("content"))
                blocks = [reader.text(content)] if content else []
                for it in parts(data, "toolRequests"):
                    blocks.append(self._calls.begin(it.get("toolCallId"), it.get("name"), it.get("arguments")))
                self._said = content or self._said
                if blocks:
                    yield reader.answered(*blocks, id=data.get("messageId"), model=data.get("model"))
            case "assistant.reasoning":
                yield reader.answered(reader.thought(data.get("content")))
            case "tool.execution_start" if call not in self._calls:
                yield reader.answered(self._calls.begin(call, data.get("toolName"), data.get("arguments")))
            case "tool.execution_complete":
                self._calls.end(call, denied=error.get("code") == "denied")
                content = as_text(part(data, "result").get("content")) or as_text(error.get("message"))
                has_failed = data.get("success") is not True or bool(part(data, "shellExecution").get("exitCode"))
                yield reader.gave(call, content, is_error=has_failed)
            case "session.error" | "session.warning":
                self._failure = data if kind == "session.error" else self._failure
                yield reader.warned(data.get("message"))
            case _:
                pass

    def _end(self, raw: Folded) -> Iterator[Folded]:
        self.session_id = as_text(raw.get("sessionId")) or self.session_id
        code, error = raw.get("exitCode"), None
        if code != 0:
            error = as_text(self._failure.get("message")) or f"it ended with exit code {count(code)}"
        elif self._was_stopped:  # it calls that a success
            error = "it was interrupted"
        yield reader.ended(
            self._said,
            error=error,
            status=count(self._failure.get("statusCode")) or None if error else None,
            duration_api_ms=count(part(raw, "usage").get("totalApiDurationMs")) or None,
            permission_denials=self._calls.denials or None,
        )
