"""Any agent that speaks ACP, the Agent Client Protocol."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Final, TypeAlias

import attrs

from container_runner.agents import KINDS
from container_runner.agents.agent import MOST_SAID, asked, flag
from container_runner.agents.codex import own_provider
from container_runner.agents.runtime import Command, CommandLineRuntime
from container_runner.config import paths
from container_runner.errors import (
    AgentFailedError,
    AuthenticationError,
    ConfigError,
    ContainerRunnerError,
    IncompleteOutputError,
    UnsupportedRuntimeError,
)
from container_runner.options import Agent, ExecuteOptions, check_argument
from container_runner.session.acp import AcpCodec
from container_runner.session.codec import Codec
from container_runner.session.tools import Tool
from container_runner.stream.messages import ResultMessage

CARRIES: Final = frozenset(
    ("model", "base_url", "permission_mode", "mcp_servers", "include_partial_messages", "resume", "fork")
)
"""The options that ACP has something for. Another one is refused: it would be ignored."""

NO_LOGIN: Final = re.compile(r"\b40[13]\b|API key|[Aa]uthenticat|[Uu]nauthori[sz]ed")

_NOT_ASKING: Final = "bypassPermissions"
Modes: TypeAlias = Mapping[str, Mapping[str, str]]


@attrs.frozen(kw_only=True)
class Manners:
    """How an agent is started for ACP, and what it calls its modes."""

    kind: str | None = None
    """The agent of `KINDS` whose variables, settings and kept folders it has as well."""

    args: tuple[str, ...] = ()
    modes: Modes = attrs.field(factory=dict)
    """For each permission mode what is to be set in a session: "mode", or the id of an option of its own."""

    asking_env: Mapping[str, str] = attrs.field(factory=dict)
    """Variables with which it asks before it acts, of an agent that has no mode for it."""

    model_flag: str | None = None
    """The flag that names the model, for an agent that lists in a session only some of those that it takes."""

    configured: Callable[[Agent], Mapping[str, str]] | None = None
    """The variables that tell it the model and where its API is, for an agent whose arguments are its own."""

    login: str | None = None
    failure_prefix: str | None = None
    counts_on: bool = False


def _modes(**names: str) -> Modes:
    return {mode: {"mode": name} for mode, name in names.items()}


def _codex_config(agent: Agent) -> Mapping[str, str]:
    model: dict[str, Any] = {} if agent.model is None else {"model": agent.model}
    if agent.base_url is not None:
        model |= {"model_provider": "own", "model_providers": {"own": own_provider(agent.base_url)}}
    return {"CODEX_CONFIG": json.dumps(model)} if model else {}


_COPILOT: Final = "https://agentclientprotocol.com/protocol/session-modes#"
MANNERS: Final[Mapping[str, Manners]] = {
    "gemini": Manners(
        kind="gemini",
        args=("--acp",),
        modes=_modes(bypassPermissions="yolo", default="default", acceptEdits="autoEdit", plan="plan"),
        model_flag="--model",
        login="gemini-api-key",
    ),
    "qwen": Manners(
        kind="qwen",
        args=("--acp", "--auth-type=openai"),
        modes=_modes(bypassPermissions="yolo", default="default", acceptEdits="auto-edit", plan="plan", auto="auto"),
        model_flag="--model",
    ),
    "opencode": Manners(
        kind="opencode",
        args=("acp",),
        modes=_modes(bypassPermissions="build", default="build", plan="plan"),
        asking_env={"OPENCODE_PERMISSION": json.dumps({"*": "ask"})},
    ),
    "copilot": Manners(
        kind="copilot",
        args=("--acp", "--no-auto-update", "--disable-client-telemetry"),
        modes={
            "bypassPermissions": {"mode": f"{_COPILOT}agent", "allow_all": "on"},
            "default": {"mode": f"{_COPILOT}agent", "allow_all": "off"},
            "plan": {"mode": f"{_COPILOT}plan", "allow_all": "off"},
        },
        model_flag="--model",
        failure_prefix="Error: ",
        counts_on=True,
    ),
    "codex-acp": Manners(
        kind="codex",
        configured=_codex_config,
        modes=_modes(bypassPermissions="agent-full-access", default="read-only", acceptEdits="agent", plan="read-only"),
    ),
    "claude-agent-acp": Manners(
        kind="claude",
        modes=_modes(
            **{mode: mode for mode in ("bypassPermissions", "default", "acceptEdits", "plan", "auto", "dontAsk")}
        ),
    ),
}
"""The agents that were tried."""


class AcpRuntime(CommandLineRuntime):
    """Runs any agent that speaks ACP over its stdin and stdout.

    `AcpRuntime("gemini")` and the others of `MANNERS` need no more; another one is given with its arguments, as
    `AcpRuntime("goose", "acp")`. Of such a one it is not known how it is told not to ask before it acts: what it asks
    is granted in a container, where nobody is to be asked.

    Args:
        program: the name or path of the command.
        args: its arguments. None: those that are known.
        like: the agent of `MANNERS` that it is, if its command is called otherwise.
        modes: the settings that permission modes mean, beside those that are known, as
            `{"bypassPermissions": {"mode": "yolo"}}`.
        env: variables that it needs. No secrets.

    Raises:
        ConfigError: an argument that no process can be given.
    """

    only_live = True

    def __init__(
        self,
        program: str,
        *args: str,
        like: str | None = None,
        modes: Modes | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.program = check_argument("program", program)
        self.name = PurePosixPath(program).name
        if like is not None and like not in MANNERS:
            raise ConfigError("like", like, f"one of {', '.join(MANNERS)}")
        self.manners = MANNERS.get(like or self.name, Manners())
        self.args = tuple(check_argument("args", each) for each in args) or self.manners.args
        self.modes: Modes = {**self.manners.modes, **(modes or {})}
        self.env = dict(env or {})

    def command(self, options: ExecuteOptions, *, contained: bool) -> Command:
        """The agent for one prompt, which it gets in a session.

        Raises:
            UnsupportedRuntimeError: without a container: sessions are in one.
        """
        if not contained:
            message = "An ACP agent runs in a container, and not on the host by itself."
            raise UnsupportedRuntimeError(message, next_step="Give the runtime to a ContainerRunner.")
        return self.live(options, asks=False, tools=())

    def with_server(self, options: ExecuteOptions, name: str, url: str, token: str) -> ExecuteOptions:
        """*options* as they are: the agent is told in its session, see `AcpCodec.offer`."""
        del name, url, token
        return options

    def live(self, options: ExecuteOptions, *, asks: bool, tools: Sequence[Tool]) -> Command:
        """The agent, with ACP on its stdin."""
        del tools  # which it finds behind the gateway
        self._check(options)
        manners, agent = self.manners, options.agent
        model = flag(manners.model_flag, agent.model) if manners.model_flag else ()
        known = self._known(options)
        asking = manners.asking_env if self._mode(options, asks=asks) == "default" else {}
        return attrs.evolve(
            known,
            argv=(self.program, *self.args, *model, *agent.args),
            stdin=b"",
            session_id="",  # ACP's agents choose it
            env={**known.env, **(manners.configured(agent) if manners.configured else {}), **asking, **self.env},
            is_live=True,
        )

    def codec(self, options: ExecuteOptions, *, asks: bool, tools: Sequence[Tool]) -> Codec:
        """ACP."""
        del tools
        agent = options.agent
        mode = self._mode(options, asks=asks)
        settings = dict(self.modes.get(mode, {}))
        if agent.model is not None and self.manners.model_flag is None and self.manners.configured is None:
            settings["model"] = agent.model
        return AcpCodec(
            agent=self.name,
            cwd=str(agent.workspace or paths.WORKSPACE),  # as the container has it
            resume=options.resume,
            fork=options.fork,
            mcp_servers=[_server(name, server) for name, server in agent.mcp_servers.items()],
            settings=settings,
            modes=self.modes,
            asks=mode != _NOT_ASKING,
            login=self.manners.login,
            partial=options.include_partial_messages,
            failure_prefix=self.manners.failure_prefix,
            counts_on=self.manners.counts_on,
        )

    def outcome(self, result: ResultMessage | None, exit_code: int, stderr: str) -> ContainerRunnerError | None:
        """What went wrong: judged by its last turn. How it exits when its input has ended says nothing more."""
        if result is None:
            if exit_code == 0:
                return IncompleteOutputError(f"{self.name} ended without a result.", exit_code=0, stderr=stderr)
            return super().outcome(result, exit_code, stderr)
        if not result.is_error:
            return None
        said = ("; ".join(result.errors) or "it gave no reason")[:MOST_SAID]
        is_login = result.api_error_status in (401, 403) or NO_LOGIN.search(said)
        kind = AuthenticationError if is_login else AgentFailedError
        return kind(f"{self.name} failed: {said}", exit_code=exit_code, stderr=stderr)

    def _known(self, options: ExecuteOptions) -> Command:
        """How the same agent runs without ACP."""
        kind = KINDS.get(self.manners.kind or "")
        if kind is None:
            return Command(argv=(self.program,))
        agent = Agent(name=options.agent.name, model=options.agent.model, base_url=options.agent.base_url)
        return kind(self.program).command(ExecuteOptions(prompt="", agent=agent), contained=True)

    def _mode(self, options: ExecuteOptions, *, asks: bool) -> str:
        return options.agent.permission_mode or ("default" if asks else _NOT_ASKING)

    def _check(self, options: ExecuteOptions) -> None:
        for name, value, default in asked(options):
            if value != default and name not in CARRIES:
                told = f"ACP has nothing for {name}, and {self.name} would ignore it; leave it out"
                raise ConfigError(name, value, "left out", told=told)
        if options.agent.base_url is not None and self.manners.kind not in KINDS:
            allowed = "left out: name the variable that it reads in AcpRuntime(env={...})"
            raise ConfigError("base_url", options.agent.base_url, allowed)
        mode = options.agent.permission_mode
        if mode is not None and mode not in self.modes:
            known = ", ".join(self.modes) or "left out: it is not known how to set one"
            raise ConfigError("permission_mode", mode, known)
        for name, server in options.agent.mcp_servers.items():
            _server(name, server)


def _server(name: str, server: Any) -> dict[str, Any]:
    """An MCP server in ACP's form."""
    field = f"mcp_servers[{name!r}]"
    if "${" in json.dumps(server):
        told = f"{field} has a variable in it, ${{...}}, and ACP agents do not put in what it holds; leave it out"
        raise ConfigError(field, "…", "without ${...}", told=told)
    match server:
        case {"command": str(command)} if all(isinstance(each, str) for each in server.get("args", [])):
            env = server.get("env", {})
            return {"name": name, "command": command, "args": list(server.get("args", [])), "env": _pairs(field, env)}
        case {"type": "http" | "sse" as kind, "url": str(url)}:
            headers = _pairs(field, server.get("headers", {}))
            return {"type": kind, "name": name, "url": url, "headers": headers}
        case _:
            raise ConfigError(
                field, "…", 'a server, as {"command": "/bin/x", "args": []} or {"type": "http", "url": …}'
            )


def _pairs(field: str, values: Any) -> list[dict[str, str]]:
    if not isinstance(values, Mapping) or not all(isinstance(value, str) for value in values.values()):
        raise ConfigError(field, "…", "with env and headers as texts by their names")
    return [{"name": name, "value": value} for name, value in values.items()]
