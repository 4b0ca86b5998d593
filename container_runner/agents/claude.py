"""Claude Code, the `claude` command."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from container_runner.agents.runtime import Command, CommandLineRuntime, Credentials
from container_runner.config import paths
from container_runner.errors import (
    AgentError,
    AgentFailedError,
    AuthenticationError,
    ContainerRunnerError,
    IncompleteOutputError,
    PromptRefusedError,
    SessionNotFoundError,
)
from container_runner.options import ExecuteOptions, check_argument
from container_runner.stream.messages import ResultMessage

CREDENTIALS = Credentials(
    names=("ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN"),
    file="~/.claude/.credentials.json",
    target=f"{paths.SESSIONS}/.credentials.json",
)


class ClaudeRuntime(CommandLineRuntime):
    """Runs `claude -p` with the prompt on stdin and stream-json on stdout.

    Args:
        program: the name or path of the command.
    """

    def __init__(self, program: str = "claude") -> None:
        self.program = check_argument("program", program)

    def command(self, options: ExecuteOptions, *, contained: bool) -> Command:
        """The claude command line. Every value is joined to its flag by '=', so none can be taken for a flag."""
        agent = options.agent
        argv = [
            self.program,
            "-p",
            "--output-format=stream-json",
            "--verbose",  # without it, claude refuses stream-json
            *_permissions(options, contained=contained),
            *_flag("--model", agent.model),
            *_flag("--fallback-model", agent.fallback_model),
            *_flag("--effort", agent.effort),
            *_flag("--system-prompt", agent.system_prompt),
            *_flag("--append-system-prompt", options.append_system_prompt),
            *_list("--allowedTools", agent.allowed_tools or None),
            *_list("--disallowedTools", agent.disallowed_tools or None),
            *_list("--tools", agent.tools),
            *_list("--setting-sources", agent.setting_sources),
            *(f"--plugin-dir={path}" for path in agent.plugin_dirs),
            *_flag("--mcp-config", _mcp_config(agent.mcp_servers)),
            *_flag("--max-turns", agent.max_turns),
            *_flag("--max-budget-usd", options.max_budget_usd),
            *_flag("--json-schema", None if options.json_schema is None else json.dumps(dict(options.json_schema))),
            *(["--include-partial-messages"] if options.include_partial_messages else []),
            *_flag("--resume", options.resume),
            *(["--fork-session"] if options.fork else []),
            *_flag("--session-id", options.session_id),
            *agent.args,
        ]
        return Command(
            argv=tuple(argv),
            stdin=options.prompt.encode(),
            env=_CONTAINED_ENV if contained else {},
            credentials=CREDENTIALS,
            kept=KEPT,
        )

    def outcome(self, result: ResultMessage | None, exit_code: int, stderr: str) -> ContainerRunnerError | None:
        """Success needs a result, one that is no error, and exit code 0."""
        if result is None:
            if exit_code == 0:
                return IncompleteOutputError("claude ended without a result.", exit_code=0, stderr=stderr)
            return super().outcome(result, exit_code, stderr)
        if not result.is_error and exit_code == 0:
            return None
        said = "; ".join(result.errors) or result.result or result.subtype or "it gave no reason"
        said = said if len(said) <= 500 else f"{said[:500]}…"
        kind: type[AgentError] = AgentFailedError
        if result.terminal_reason == "prompt_too_long":
            kind = PromptRefusedError
        elif result.api_error_status in (401, 403) or "/login" in said or "Invalid API key" in said:
            kind = AuthenticationError
        elif said.startswith(_NO_SESSION):
            # It prints the same to stderr.
            return SessionNotFoundError(f"{said.rstrip('.')}.", exit_code=exit_code)
        return kind(f"claude failed: {said}", exit_code=exit_code, stderr=stderr)


_NO_SESSION = "No conversation found with session ID"

KEPT: Final = ("projects/-workspace", "tasks")
"""The transcripts of what began in /workspace, and the lists of what a session has to do. The rest of that folder is
configuration, and one run must not leave the next one its hooks, plugins, skills, servers or instructions."""

_CONTAINED_ENV = {
    "CLAUDE_CONFIG_DIR": paths.SESSIONS,  # with it, all of claude's state lies in that one folder
    "CLAUDE_CODE_DISABLE_AUTO_MEMORY": "1",  # which lies beside the transcripts, and would act in the next run
    "DISABLE_AUTOUPDATER": "1",  # the root is read-only
    "IS_SANDBOX": "1",  # which claude wants to hear before it skips permissions as uid 0
}


def _permissions(options: ExecuteOptions, *, contained: bool) -> list[str]:
    if options.agent.permission_mode is not None:
        return [f"--permission-mode={options.agent.permission_mode}"]
    return ["--dangerously-skip-permissions"] if contained else []


def _flag(name: str, value: str | float | None) -> list[str]:
    return [] if value is None else [check_argument(name, f"{name}={value}")]


def _list(name: str, values: tuple[str, ...] | None) -> list[str]:
    """A list is one word; an empty one says "none"."""
    return _flag(name, None if values is None else ",".join(values))


def _mcp_config(servers: Mapping[str, Any]) -> str | None:
    # The flat form, without "mcpServers", makes claude hang.
    return json.dumps({"mcpServers": dict(servers)}, sort_keys=True) if servers else None
