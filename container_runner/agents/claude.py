"""Claude Code, the `claude` command."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import attrs

from container_runner.agents.agent import OPTIONS, AgentRuntime, bearer, flag, with_mcp_server
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

_STREAM: Final = ("--output-format=stream-json", "--verbose")  # without --verbose, claude refuses stream-json


class ClaudeRuntime(AgentRuntime):
    """Runs `claude -p` with the prompt on stdin and stream-json on stdout.

    Args:
        program: the name or path of the command.
    """

    kind = "claude"
    carries = frozenset(OPTIONS)
    headless = frozenset({"-p", *_STREAM})
    no_login = re.compile("/login|Invalid API key")
    no_session = re.compile("^(No conversation found with session ID|Error: --resume requires a valid session ID)")
    reads_mentions = True

    def command(self, options: ExecuteOptions, *, contained: bool) -> Command:
        """The claude command line. Every value is joined to its flag by '=', so none can be taken for a flag."""
        self.check(options)
        argv = (self.program, "-p", *_STREAM, *_permissions(options, contained=contained), *_flags(options))
        env = {**(_CONTAINED_ENV if contained else {}), **_address(options)}
        return Command(argv=argv, stdin=options.prompt.encode(), env=env, credentials=CREDENTIALS, kept=KEPT)

    def with_server(self, options: ExecuteOptions, name: str, url: str, token: str) -> ExecuteOptions:
        """The server among its others, and what it has among what it may use without asking."""
        server = {"type": "http", "url": url, "headers": bearer(token)}
        return with_mcp_server(options, name, server, f"mcp__{name}__*")

    def live(self, options: ExecuteOptions, *, asks: bool, tools: Sequence[Tool]) -> Command:
        """claude with lines of JSON on its stdin: it goes on until that ends."""
        self.check(options)
        permissions = _permissions(options, contained=True)
        if asks and options.agent.permission_mode is None:
            permissions = ["--permission-mode=default"]
        own = {SERVER: {"type": "sdk", "name": SERVER}} if tools else {}
        words = ("--input-format=stream-json", "--permission-prompt-tool=stdio", *permissions, *_flags(options, own))
        return Command(
            argv=(self.program, *_STREAM, *words),
            env={**_CONTAINED_ENV, **_address(options)},
            credentials=CREDENTIALS,
            kept=KEPT,
            is_live=True,
        )

    def screen(self, options: ExecuteOptions) -> Command:
        """claude without the questions of a first start, which would come each time: it is new in its box."""
        made = super().screen(options)
        return attrs.evolve(made, argv=("sh", "-c", _KNOWN, *made.argv))

    def given(self, options: ExecuteOptions, words: Sequence[str]) -> tuple[str, ...]:
        """claude with the words of somebody else. What the options say stands in front, so that a word may change it.

        *words* say whether it asks before it acts, unless the options do.
        """
        self.check(options)
        mode = options.agent.permission_mode
        return (self.program, *flag("--permission-mode", mode), *_flags(options), *words)

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

KEPT: Final = ("projects/-workspace", "tasks")
"""The transcripts of what began in /workspace, and the lists of what a session has to do. The rest of that folder is
configuration, and one run must not leave the next one its hooks, plugins, skills, servers or instructions."""

_OWN_MODEL: Final = {"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"}  # it asks nobody else

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


def _address(options: ExecuteOptions) -> dict[str, str]:
    address = options.agent.base_url
    return {} if address is None else {"ANTHROPIC_BASE_URL": address, **_OWN_MODEL}


def _flags(options: ExecuteOptions, servers: Mapping[str, Any] = MappingProxyType({})) -> list[str]:
    """What the options say. *servers* are MCP servers beside the agent's own."""
    agent = options.agent
    return [
        *flag("--model", agent.model),
        *flag("--fallback-model", agent.fallback_model),
        *flag("--effort", agent.effort),
        *flag("--system-prompt", agent.system_prompt),
        *flag("--append-system-prompt", options.append_system_prompt),
        *_list("--allowedTools", agent.allowed_tools or None),
        *_list("--disallowedTools", agent.disallowed_tools or None),
        *_list("--tools", agent.tools),
        *_list("--setting-sources", agent.setting_sources),
        *(f"--plugin-dir={path}" for path in agent.plugin_dirs),
        *(f"--add-dir={split_dir(word)[0]}" for word in agent.add_dirs),
        *flag("--mcp-config", _mcp_config({**agent.mcp_servers, **servers})),
        *flag("--max-turns", agent.max_turns),
        *flag("--max-budget-usd", options.max_budget_usd),
        *flag("--json-schema", None if options.json_schema is None else json.dumps(dict(options.json_schema))),
        *(["--include-partial-messages"] if options.include_partial_messages else []),
        *flag("--resume", options.resume),
        *(["--fork-session"] if options.fork else []),
        *flag("--session-id", options.session_id),
        *agent.args,
    ]


def _list(name: str, values: tuple[str, ...] | None) -> list[str]:
    """A list is one word; an empty one says "none"."""
    return flag(name, None if values is None else ",".join(values))


def _mcp_config(servers: Mapping[str, Any]) -> str | None:
    # The flat form, without "mcpServers", makes claude hang.
    return json.dumps({"mcpServers": dict(servers)}, sort_keys=True) if servers else None
