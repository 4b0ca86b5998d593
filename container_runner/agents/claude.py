"""Claude Code, the `claude` command."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar, Final

import attrs

from container_runner.agents.agent import OPTIONS, AgentRuntime, flag
from container_runner.agents.runtime import Command, Credentials, Endpoint
from container_runner.config import paths
from container_runner.errors import AgentError, PromptRefusedError
from container_runner.options import ExecuteOptions, split_dir
from container_runner.session.codec import Codec
from container_runner.session.control import ControlCodec
from container_runner.session.mcp import SERVER
from container_runner.session.tools import Tool
from container_runner.stream.messages import ResultMessage

CREDENTIALS = Credentials(
    names=("ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN"),
    file="~/.claude/.credentials.json",
    target=f"{paths.SESSIONS}/.credentials.json",
    endpoint=Endpoint(
        upstream="https://api.anthropic.com",
        headers={"ANTHROPIC_API_KEY": "x-api-key: {}", "CLAUDE_CODE_OAUTH_TOKEN": "authorization: Bearer {}"},
        # Not /v1/files, where a key of somebody else's could take your files to.
        allowed=("POST /v1/messages", "POST /v1/messages/count_tokens", "GET /v1/models*"),
    ),
)

KEPT: Final = ("projects/-workspace", "tasks")
"""The transcripts of what began in /workspace, and the lists of what a session has to do. The rest of that folder is
configuration, and one run must not leave the next one its hooks, plugins, skills, servers or instructions."""

_STREAM: Final = ("--output-format=stream-json", "--verbose")  # without --verbose, claude refuses stream-json


class ClaudeRuntime(AgentRuntime):
    """Runs `claude -p` with the prompt on stdin and stream-json on stdout.

    Args:
        program: the name or path of the command.
    """

    kind = "claude"
    flags: ClassVar = {
        "model": "--model", "fallback_model": "--fallback-model", "effort": "--effort",
        "system_prompt": "--system-prompt", "append_system_prompt": "--append-system-prompt",
        "allowed_tools": "--allowedTools", "disallowed_tools": "--disallowedTools", "tools": "--tools",
        "setting_sources": "--setting-sources", "plugin_dirs": "--plugin-dir", "mcp_servers": "--mcp-config",
        "max_turns": "--max-turns", "max_budget_usd": "--max-budget-usd", "json_schema": "--json-schema",
        "include_partial_messages": "--include-partial-messages",
        "resume": "--resume", "fork": "--fork-session", "session_id": "--session-id",
    }  # fmt: skip
    joined = frozenset({"allowed_tools", "disallowed_tools", "tools", "setting_sources"})
    carries = frozenset(OPTIONS)
    headless = frozenset({"-p", *_STREAM})
    credentials = CREDENTIALS
    address: ClassVar = {
        "ANTHROPIC_BASE_URL": "{}",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",  # it asks nobody else
    }
    all_tools = ("mcp__{}__*",)
    box_env: ClassVar = {
        "CLAUDE_CONFIG_DIR": paths.SESSIONS,  # with it, all of claude's state lies in that one folder
        "CLAUDE_CODE_DISABLE_AUTO_MEMORY": "1",  # which lies beside the transcripts, and would act in the next run
        "DISABLE_AUTOUPDATER": "1",  # the root is read-only
        "IS_SANDBOX": "1",  # which claude wants to hear before it skips permissions as uid 0
    }
    kept = KEPT
    no_login = re.compile("/login|Invalid API key")
    no_session = re.compile("^(No conversation found with session ID|Error: --resume requires a valid session ID)")
    reads_mentions = True

    def command(self, options: ExecuteOptions, *, contained: bool) -> Command:
        """The claude command line."""
        permissions = _permissions(options, contained=contained)
        words = ("-p", *_STREAM, *permissions, *self._words(options, contained=contained))
        return self._command(options, words, contained=contained)

    def live(self, options: ExecuteOptions, *, asks: bool, tools: Sequence[Tool]) -> Command:
        """claude with lines of JSON on its stdin: it goes on until that ends."""
        permissions = _permissions(options, contained=True)
        if asks and options.agent.permission_mode is None:
            permissions = ["--permission-mode=default"]
        agent, own = options.agent, {SERVER: {"type": "sdk", "name": SERVER}} if tools else {}
        options = attrs.evolve(options, agent=attrs.evolve(agent, mcp_servers={**agent.mcp_servers, **own}))
        stdio = ("--input-format=stream-json", "--permission-prompt-tool=stdio")
        words = (*_STREAM, *stdio, *permissions, *self._words(options, contained=True))
        return self._command(options, words, contained=True, stdin=b"", is_live=True)

    def screen(self, options: ExecuteOptions) -> Command:
        """claude without the questions of a first start, which would come each time: it is new in its box."""
        made = super().screen(options)
        return attrs.evolve(made, argv=("sh", "-c", _KNOWN, *made.argv))

    def given(self, options: ExecuteOptions, words: Sequence[str]) -> tuple[str, ...]:
        """claude with the words of somebody else. What the options say stands in front, so that a word may change it.

        *words* say whether it asks before it acts, unless the options do.
        """
        self.check(options)
        mode = flag("--permission-mode", options.agent.permission_mode)
        return (self.program, *mode, *self._words(options, contained=True), *words)

    def _words(self, options: ExecuteOptions, *, contained: bool) -> list[str]:
        folders = [f"--add-dir={split_dir(word)[0]}" for word in options.agent.add_dirs]
        return [*folders, *super()._words(options, contained=contained)]

    def codec(self, options: ExecuteOptions, *, asks: bool, tools: Sequence[Tool]) -> Codec:
        """claude's control protocol."""
        del options, asks
        return ControlCodec(tools)

    def for_login(self) -> None:
        """What the error advises by itself."""

    def failure(self, result: ResultMessage | None, said: str) -> tuple[type[AgentError], str | None]:
        """It has a word of its own for a prompt that is too long."""
        if result is not None and result.terminal_reason == "prompt_too_long":
            return PromptRefusedError, None
        return super().failure(result, said)


_KNOWN: Final = """\
end=${ANTHROPIC_API_KEY#"${ANTHROPIC_API_KEY%????????????????????}"}
printf '{"hasCompletedOnboarding": true, "bypassPermissionsModeAccepted": true,
"projects": {"/workspace": {"hasTrustDialogAccepted": true}}, "customApiKeyResponses": {"approved": ["%s"]}}
' "$end" >"$CLAUDE_CONFIG_DIR/.claude.json"
exec "$0" "$@"
"""
"""Answers what claude asks a person at its first start. It knows an accepted key by the last 20 characters."""


def _permissions(options: ExecuteOptions, *, contained: bool) -> list[str]:
    if options.agent.permission_mode is not None:
        return [f"--permission-mode={options.agent.permission_mode}"]
    return ["--dangerously-skip-permissions"] if contained else []
