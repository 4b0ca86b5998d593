"""What the coding agents that we know have in common: what they can be asked for, and how their end is judged."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Final

import attrs

from container_runner.agents.packages import PACKAGES, AgentPackage
from container_runner.agents.runtime import (
    Command,
    CommandLineRuntime,
    Credentials,
    Endpoint,
    appended,
    for_unstarted,
    no_words,
)
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
    """A coding agent that we know. What it is like is declared, and its `command` adds what can not be.

    Args:
        program: the name or path of its command. None: the usual one.
    """

    kind: ClassVar[str]
    """What --agent-kind calls it, and `image build`."""

    flags: ClassVar[Mapping[str, str]] = {}
    """The flags of those of `OPTIONS` that are flags of its command."""

    joined: ClassVar[frozenset[str]] = frozenset()
    """Those of them that take a list as one word with commas. The others are given once for each of its words."""

    carries: ClassVar[frozenset[str]]
    """Those of `OPTIONS` that it has something for. Another one is refused: it would be ignored."""

    modes: ClassVar[Mapping[str, str]] = {}
    """What it calls each permission mode. "bypassPermissions" is that of the box."""

    has_uuids: ClassVar[bool] = False
    """Whether the ids of its sessions are UUIDs. Another id it would take for a name or a number."""

    headless: ClassVar[frozenset[str]]
    """The words of its command with which it works without a screen."""

    box_env: ClassVar[Mapping[str, str]] = {}
    """Its variables in a container: there its state lies in the sessions folder, and it does not update itself."""

    address: ClassVar[Mapping[str, str]] = {}
    """The variables that lead it to another API of its model, whose base URL stands in the place of "{}"."""

    http_server: ClassVar[Mapping[str, Any]] = {"type": "http", "url": "{}"}
    """How it is told of an MCP server that is reached by HTTP, whose URL stands in the place of "{}"."""

    all_tools: ClassVar[tuple[str, ...]] = ()
    """Those of `Agent.allowed_tools` that are all tools of a server, whose name stands in the place of "{}"."""

    credentials: ClassVar[Credentials] = Credentials()

    kept: ClassVar[tuple[str, ...]]
    """See `Command.kept`."""

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
        """See that nothing is asked for that it would ignore, or take for something else.

        Raises:
            ConfigError: an option is set that it has nothing for, or an id is none of its.
        """
        for name, value, default in asked(options):
            if value != default and name not in self.carries:
                told = f"{self.kind} has nothing for {name}, and would ignore it; leave it out"
                raise ConfigError(name, value, f"left out: {self.kind} has nothing for it", told=told)
            if name in ("resume", "session_id") and self.has_uuids and value and not _UUID.fullmatch(value):
                raise ConfigError(name, value, "a UUID, as 123e4567-e89b-42d3-a456-426614174000")

    def _words(self, options: ExecuteOptions, *, contained: bool) -> list[str]:
        """What the options say, by `flags`, and `Agent.args`.

        Every value is joined to its flag by "=", so that it can not be taken for another one.

        Raises:
            ConfigError: it has no such permission mode, can not be told of an empty list, or a value is too long for a
                command line.
        """
        values = {name: value for name, value, default in asked(options) if value != default}
        if self.modes and (mode := permissions(options, self.modes, contained=contained)):
            values["permission_mode"] = mode
        words: list[str] = []
        for name, word in self.flags.items():
            match values.get(name):
                case True:
                    words.append(word)
                case () if name not in self.joined:
                    told = f"{self.kind} would take no {name} for all of them; name one, or leave it out"
                    raise ConfigError(name, (), "at least one, or left out", told=told)
                case tuple(many) if name not in self.joined:
                    words += [each for value in many for each in flag(word, value)]
                case tuple(many):
                    words += flag(word, ",".join(many))
                case Mapping() as table:  # without "mcpServers" claude hangs
                    whole = {"mcpServers": dict(table)} if name == "mcp_servers" else dict(table)
                    words += flag(word, json.dumps(whole))
                case value:
                    words += flag(word, value)
        return [*words, *options.agent.args]

    def _command(self, options: ExecuteOptions, words: Iterable[str], *, contained: bool, **more: Any) -> Command:
        """Its process: *words* behind the program, and what is declared of it.

        Args:
            more: more fields of `Command`. `env` comes beside what is declared, and others in its place.

        Raises:
            ConfigError: see `check`.
        """
        self.check(options)
        url = options.agent.base_url
        led = {} if url is None else {name: value.format(url) for name, value in self.address.items()}
        declared = {"stdin": options.prompt.encode(), "credentials": self.credentials, "kept": self.kept}
        env = {**(self.box_env if contained else {}), **led, **more.pop("env", {})}
        return Command(argv=(self.program, *words), env=env, **{**declared, **more})

    def with_server(self, options: ExecuteOptions, name: str, url: str, token: str) -> ExecuteOptions:
        """*options*, with an MCP server more among `Agent.mcp_servers`.

        Raises:
            UnsupportedRuntimeError: it is not known how this agent is told of one.
        """
        if "mcp_servers" not in self.carries:
            message = f"{self.kind} can not be given functions as tools."
            raise UnsupportedRuntimeError(message, next_step=f"Use an agent that is told of {name}, such as claude.")
        agent = options.agent
        server = {
            key: value.format(url) if isinstance(value, str) else value for key, value in self.http_server.items()
        }
        server["headers"] = {"Authorization": f"Bearer ${{{token}}}"}  # it puts in what the variable holds
        servers = {**agent.mcp_servers, name: server}
        allowed = (*agent.allowed_tools, *(each.format(name) for each in self.all_tools))
        return attrs.evolve(options, agent=attrs.evolve(agent, mcp_servers=servers, allowed_tools=allowed))

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


NO_SERVER: Final = secrets.token_hex(8)
"""A name that no workspace can have given to a server of its own."""


def own_servers(options: ExecuteOptions, *, contained: bool) -> list[str]:
    """The flag with which gemini and qwen start no MCP server but those of *options*, whatever a workspace names."""
    names = [*options.agent.mcp_servers] or [NO_SERVER]  # an empty list would allow all
    return [f"--allowed-mcp-server-names={name}" for name in names if contained]


def bearer(key: str, upstream: str, *allowed: str) -> Endpoint:
    """The API at *upstream*, which wants what the variable *key* holds as `Authorization: Bearer ...`."""
    return Endpoint(upstream=upstream, headers={key: "authorization: Bearer {}"}, allowed=allowed)


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


_UUID: Final = re.compile("[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def _last(stderr: str) -> str:
    """The last line of *stderr*, as the end of a sentence."""
    last = next((line.strip() for line in reversed(stderr.splitlines()) if line.strip()), "")
    return f": {last[:MOST_SAID].rstrip('.')}" if last else ""
