"""What the coding agents that we know have in common: what they can be asked for, and how their end is judged."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import Any, ClassVar, Final

import attrs

from container_runner.agents.packages import PACKAGES, AgentPackage
from container_runner.agents.runtime import Command, CommandLineRuntime, appended, for_unstarted, no_words
from container_runner.errors import (
    AgentError,
    AgentFailedError,
    AuthenticationError,
    CommandNotExecutableError,
    ConfigError,
    ContainerRunnerError,
    IncompleteOutputError,
    PromptRefusedError,
    SessionNotFoundError,
    UnsupportedRuntimeError,
)
from container_runner.options import Agent, ExecuteOptions, check_argument
from container_runner.stream.messages import ResultMessage

OPTIONS: Final = (
    *("model", "base_url", "fallback_model", "effort", "system_prompt", "append_system_prompt", "permission_mode"),
    *("allowed_tools", "disallowed_tools", "tools", "setting_sources", "plugin_dirs", "mcp_servers", "max_turns"),
    *("max_budget_usd", "json_schema", "include_partial_messages", "resume", "fork", "session_id"),
)
"""The fields of `Agent` and `ExecuteOptions` that an agent must be able to do something with. What the others ask for
is up to us, and so there with every agent."""

MOST_SAID: Final = 500
"""Characters of an agent's words that go into an error's message."""

_OLD_NODE: Final = re.compile(r"ERR_UNKNOWN_BUILTIN_MODULE|requires? Node\.?(js)?\b|SyntaxError: |Unsupported engine")


class AgentRuntime(CommandLineRuntime):
    """A coding agent that we know.

    Args:
        program: the name or path of its command. None: the usual one.
    """

    kind: ClassVar[str]
    """What --agent-kind calls it, and `image build`."""

    carries: ClassVar[frozenset[str]]
    """Those of `OPTIONS` that it has something for. Another one is refused: it would be ignored."""

    headless: ClassVar[frozenset[str]]
    """The words of its command with which it works without a screen."""

    keys: ClassVar[tuple[str, ...]] = ()
    """The variables with a key or a login for its API, of which an error tells."""

    no_session: ClassVar[re.Pattern[str] | None] = None
    """What it says when the session that is to be resumed is not there."""

    no_login: ClassVar[re.Pattern[str] | None] = None
    """What it says when it has no key, or one that the API does not take, beside the HTTP statuses 401 and 403."""

    too_long: ClassVar[re.Pattern[str] | None] = None
    """What it says when the prompt does not fit into the model's context."""

    def __init__(self, program: str | None = None) -> None:
        self.program = check_argument("program", self.package.program if program is None else program)

    @property
    def package(self) -> AgentPackage:
        """What an image needs to have it."""
        return PACKAGES[self.kind]

    def check(self, options: ExecuteOptions) -> None:
        """See that nothing is asked for that it would ignore. Every `command` begins with this.

        Raises:
            ConfigError: an option is set that it has nothing for.
        """
        for name, value, default in asked(options):
            if value != default and name not in self.carries:
                raise ConfigError(
                    name,
                    value,
                    f"left out: {self.kind} has nothing for it",
                    told=f"{self.kind} has nothing for {name}, and would ignore it; leave it out",
                )

    def with_server(self, options: ExecuteOptions, name: str, url: str, token: str) -> ExecuteOptions:
        """*options*, with an MCP server more.

        Raises:
            UnsupportedRuntimeError: it is not known how this agent is told of one.
        """
        del options, url, token
        message = f"{self.kind} can not be given functions as tools."
        raise UnsupportedRuntimeError(message, next_step=f"Use an agent that is told of {name}, such as claude.")

    def screen(self, options: ExecuteOptions) -> Command:
        """Its command without what keeps it from having one."""
        made = self.command(options, contained=True)
        return attrs.evolve(made, argv=tuple(word for word in made.argv if word not in self.headless), stdin=b"")

    def with_words(self, options: ExecuteOptions, words: str) -> ExecuteOptions:
        """As `append_system_prompt` has it, if the agent carries that."""
        if "append_system_prompt" not in self.carries:
            raise no_words(self.kind)
        return appended(options, words)

    def outcome(self, result: ResultMessage | None, exit_code: int, stderr: str) -> ContainerRunnerError | None:
        """What went wrong: judged by its last event, and by its exit code if that says nothing of it."""
        if result is not None and not result.is_error and exit_code == 0:
            return None
        if result is None and exit_code == 0:
            return IncompleteOutputError(f"{self.kind} ended without a result.", exit_code=0, stderr=stderr)
        said = "" if result is None else self.said(result)
        facts: dict[str, Any] = {"exit_code": exit_code, "stderr": stderr}
        if result is None and self.package.node and _OLD_NODE.search(stderr):
            advice = f"It needs a newer one, as an image has it from: container-runner image build {self.kind}"
            message = f"{self.kind} does not start in the Node.js of the image."
            return CommandNotExecutableError(message, next_step=advice, **facts)
        failure, step = self.failure(result, said or stderr)
        if failure is SessionNotFoundError and self.no_session is not None:
            found = self.no_session.search(stderr)
            told = said or (found[0] if found else "There is no such session")
            return failure(f"{told.rstrip('.')}.", exit_code=exit_code)  # there is nothing else on stderr
        told = said if len(said) <= MOST_SAID else f"{said[:MOST_SAID]}…"
        message = f"{self.kind} failed: {told}" if told else f"{self.kind} exited with code {exit_code}{_last(stderr)}."
        return failure(message, next_step=step if told or step else for_unstarted(exit_code), **facts)

    def said(self, result: ResultMessage) -> str:
        """What it says of its failure."""
        return "; ".join(result.errors) or result.result or result.subtype or "it gave no reason"

    def failure(self, result: ResultMessage | None, said: str) -> tuple[type[AgentError], str | None]:
        """The class of the error that *said* tells of, and what to do, if not what the class advises."""
        status = None if result is None else result.api_error_status
        if self.too_long is not None and self.too_long.search(said):
            return PromptRefusedError, None
        if status in (401, 403) or (self.no_login is not None and self.no_login.search(said)):
            return AuthenticationError, self.for_login()
        if self.no_session is not None and self.no_session.search(said):
            return SessionNotFoundError, None
        return AgentFailedError, None

    def for_login(self) -> str | None:
        """What to do if its API does not take its key or login; None: what `AuthenticationError` advises."""
        names = " or ".join(self.keys)
        return f"Set {names} to one that is valid; `container-runner doctor` tells which of them the agent gets."

    def for_missing(self) -> str | None:
        """How to get an image with it."""
        return f"Name an image with {self.kind} by --image, or make one: container-runner image build {self.kind}"


def with_mcp_server(options: ExecuteOptions, name: str, server: Mapping[str, Any], *allowed: str) -> ExecuteOptions:
    """*options*, with an MCP server more, and with these tools among those that the agent may use unasked."""
    agent = options.agent
    servers, tools = {**agent.mcp_servers, name: dict(server)}, (*agent.allowed_tools, *allowed)
    return attrs.evolve(options, agent=attrs.evolve(agent, mcp_servers=servers, allowed_tools=tools))


NO_SERVER: Final = secrets.token_hex(8)
"""A name that no workspace can have given to a server of its own."""


def own_servers(options: ExecuteOptions, *, contained: bool) -> list[str]:
    """The flag with which gemini and qwen start no MCP server but those of *options*, whatever a workspace names."""
    names = [*options.agent.mcp_servers] or [NO_SERVER]  # an empty list would allow all
    return [f"--allowed-mcp-server-names={name}" for name in names if contained]


def bearer(token: str) -> dict[str, str]:
    """The header with what the variable *token* holds, for an agent that puts variables into its configuration."""
    return {"Authorization": f"Bearer ${{{token}}}"}


def asked(options: ExecuteOptions) -> list[tuple[str, Any, Any]]:
    """Each of `OPTIONS` with what is asked for, and what it is if nothing is."""
    found = []
    for holder, kind in ((options.agent, Agent), (options, ExecuteOptions)):
        for field in attrs.fields(kind):
            if field.name in OPTIONS:
                default = field.default
                if isinstance(default, attrs.Factory):  # type: ignore[arg-type]  # attrs types it as a function
                    default = default.factory()
                found.append((field.name, getattr(holder, field.name), default))
    return found


def flag(name: str, value: str | float | None) -> list[str]:
    """A flag with its value in one word, so that it can not be taken for another flag; none for None."""
    return [] if value is None else [check_argument(name, f"{name}={value}")]


def permissions(options: ExecuteOptions, modes: Mapping[str, str], *, contained: bool) -> str | None:
    """What this agent calls the permission mode: by *modes*, of which "bypassPermissions" is that of the box.

    None: nothing is asked for, and there is no box.

    Raises:
        ConfigError: the agent has no such mode.
    """
    asked_for = options.agent.permission_mode or ("bypassPermissions" if contained else None)
    if asked_for is not None and asked_for not in modes:
        raise ConfigError("agent.permission_mode", asked_for, f"one of {', '.join(modes)}, as this agent has them")
    return None if asked_for is None else modes[asked_for]


def check_uuids(options: ExecuteOptions) -> None:
    """See that the ids of sessions are what this agent takes: UUIDs. Others it may take for a name or a number.

    Raises:
        ConfigError: one is not.
    """
    for name in ("resume", "session_id"):
        value = getattr(options, name)
        if value is not None and not _UUID.fullmatch(value):
            raise ConfigError(name, value, "a UUID, as 123e4567-e89b-42d3-a456-426614174000")


_UUID: Final = re.compile("[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def _last(stderr: str) -> str:
    """The last line of *stderr*, as the end of a sentence."""
    last = next((line.strip() for line in reversed(stderr.splitlines()) if line.strip()), "")
    return f": {last[:MOST_SAID].rstrip('.')}" if last else ""
