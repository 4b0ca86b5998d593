"""opencode, the `opencode` command."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, Final

from container_runner.agents.agent import AgentRuntime, bearer, with_mcp_server
from container_runner.agents.runtime import Command, Credentials, Endpoint
from container_runner.config import paths
from container_runner.errors import ConfigError
from container_runner.options import ExecuteOptions
from container_runner.stream import reader
from container_runner.stream.blocks import as_text
from container_runner.stream.reader import Folded, Reader, part

KEYS: Final = {
    "anthropic": "ANTHROPIC_API_KEY",
    "google": "GOOGLE_GENERATIVE_AI_API_KEY",
    "groq": "GROQ_API_KEY",
    "mistral": "MISTRAL_API_KEY",
    "opencode": "OPENCODE_API_KEY",
    "openai": "OPENAI_API_KEY",
    "openrouter": "OPENROUTER_API_KEY",
    "xai": "XAI_API_KEY",
}
"""The variable with each provider's key. Only that of the model's provider goes into the box."""

UPSTREAMS: Final = {
    "groq": "https://api.groq.com/openai/v1",
    "mistral": "https://api.mistral.ai/v1",
    "openrouter": "https://openrouter.ai/api/v1",
    "xai": "https://api.x.ai/v1",
}
"""The APIs of providers that are spoken to as a `base_url` is. With the others' own, opencode does more by itself."""

KEPT: Final = ("db",)
"""The database with what was said. What else it keeps, configuration and programs among it, is gone with the box."""

_CONTAINED_ENV: Final = {
    "OPENCODE_DB": f"{paths.SESSIONS}/db/opencode.db",
    "OPENCODE_DISABLE_AUTOUPDATE": "1",
    "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
    "OPENCODE_DISABLE_SHARE": "1",
}


class OpenCodeRuntime(AgentRuntime):
    """Runs `opencode run` with the prompt on stdin and JSON lines on stdout.

    It needs a model, as "PROVIDER/MODEL": without one it takes whichever it finds a key for, or one that is free and
    somebody else's. With a `base_url`, which is that of an API like OpenAI's Chat Completions, the provider is any
    word, and the key is OPENAI_API_KEY.
    """

    kind = "opencode"
    carries = frozenset({"model", "base_url", "mcp_servers", "resume", "fork"})
    headless = frozenset({"run", "--format=json", "--thinking", "--auto"})
    keys = ("the key of the model's provider, as OPENAI_API_KEY,",)
    no_login = re.compile("ProviderAuthError|API key is missing|ProviderModelNotFoundError")
    no_session = re.compile("Session not found|NotFoundError.*[Ss]ession")
    too_long = re.compile("ContextOverflowError|context_length_exceeded")

    def command(self, options: ExecuteOptions, *, contained: bool) -> Command:
        """The opencode command line. What has no flag stands in a variable with its configuration."""
        self.check(options)
        model = options.agent.model or ""
        provider, slash, name = model.partition("/")
        if not (provider and slash and name):
            raise ConfigError("model", options.agent.model, 'a provider and its model, as "anthropic/claude-sonnet-5"')
        settings: dict[str, Any] = {"autoupdate": False, "share": "disabled", "model": model}  # ACP has no flag for it
        key, upstream = KEYS.get(provider), UPSTREAMS.get(provider)
        if contained:
            settings["permission"] = {"*": "allow"}
        if servers := options.agent.mcp_servers:
            settings["mcp"] = {name: _server(name, server) for name, server in servers.items()}
        env = dict(_CONTAINED_ENV if contained else {})
        if options.agent.base_url is not None:
            env["OPENCODE_DISABLE_MODELS_FETCH"] = "1"  # of which it learns what the models of others are like
            key, upstream = KEYS["openai"], options.agent.base_url
            where = {"baseURL": options.agent.base_url, "apiKey": f"{{env:{key}}}"}
            own = {"npm": "@ai-sdk/openai-compatible", "options": where, "models": {name: {}}}
            settings["provider"] = {provider: own}
        argv = [
            self.program,
            "run",
            "--format=json",
            "--thinking",
            *(["--auto"] if contained else []),
            f"--model={model}",
            *([] if options.resume is None else [f"--session={options.resume}"]),
            *(["--fork"] if options.fork else []),
            *options.agent.args,
        ]
        return Command(
            argv=tuple(argv),
            stdin=options.prompt.encode(),
            env={**env, "OPENCODE_CONFIG_CONTENT": json.dumps(settings)},
            credentials=Credentials(names=() if key is None else (key,), endpoint=_endpoint(key, upstream)),
            kept=KEPT,
        )

    def with_server(self, options: ExecuteOptions, name: str, url: str, token: str) -> ExecuteOptions:
        """The server in its configuration."""
        return with_mcp_server(options, name, {"type": "http", "url": url, "headers": bearer(token)})

    def reader(self, options: ExecuteOptions) -> Reader:
        """Its dialect, in which the end of the lines is the end of the run."""
        del options
        return _OpenCodeReader()


def _server(name: str, server: Any) -> dict[str, Any]:
    """An MCP server as opencode has it, from the form that claude and others share.

    Raises:
        ConfigError: it is neither a command nor a URL.
    """
    if not isinstance(server, dict) or not ("command" in server or "url" in server):
        raise ConfigError(f"agent.mcp_servers.{name}", server, 'a mapping with "command", or with "url"')
    if "url" in server:
        headers = {key: _NAMED.sub(r"{env:\1}", str(value)) for key, value in server.get("headers", {}).items()}
        return {"type": "remote", "url": server["url"], "headers": headers, "oauth": False}
    given = {key: _NAMED.sub(r"{env:\1}", str(value)) for key, value in server.get("env", {}).items()}
    return {"type": "local", "command": [server["command"], *server.get("args", ())], "environment": given}


_NAMED: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
"""A variable in a value, which opencode writes as {env:NAME}."""


def _endpoint(key: str | None, upstream: str | None) -> Endpoint | None:
    if key is None or upstream is None:
        return None
    return Endpoint(upstream=upstream, headers={key: "authorization: Bearer {}"}, allowed=("POST /chat/completions",))


class _OpenCodeReader(Reader):
    types = frozenset({"step_start", "text", "reasoning", "tool_use", "step_finish", "error"})

    def __init__(self) -> None:
        super().__init__()
        self._last = self._reason = ""
        self._error: tuple[str, int | None] | None = None
        self._turns = 0
        self._cost: float | None = None
        self._used: Folded = {}

    def fold(self, raw: dict[str, Any]) -> Iterable[Folded] | None:
        kind = as_text(raw.get("type"))
        if kind not in self.types:
            return None
        begun = []
        if not self.session_id and (session := as_text(raw.get("sessionID"))):
            self.session_id = session
            begun.append(reader.begun(session))
        return [*begun, *self._fold(kind, part(raw, "part"), part(raw, "error"))]

    def _fold(self, kind: str, what: dict[str, Any], error: dict[str, Any]) -> list[Folded]:
        message = what.get("messageID")
        match kind:
            case "text":
                self._last = as_text(what.get("text"))
                return [reader.answered(reader.text(self._last), id=message)]
            case "reasoning":
                return [reader.answered(reader.thought(what.get("text")), id=message)]
            case "tool_use":  # which comes when it has ended
                state = part(what, "state")
                is_error = state.get("status") == "error" or part(state, "metadata").get("exit") not in (0, None)
                call = reader.called(what.get("callID"), what.get("tool"), state.get("input"))
                gave = state.get("output") or state.get("error")
                return [reader.answered(call, id=message), reader.gave(what.get("callID"), gave, is_error=is_error)]
            case "step_finish":
                self._turns += 1
                self._reason, self._error = as_text(what.get("reason")), None
                self._add(part(what, "tokens"), what.get("cost"))
            case "error":
                told = part(error, "data")
                said = as_text(told.get("message")) or as_text(error.get("name"))
                name = as_text(error.get("name"))
                status = told.get("statusCode")
                self._error = (said if name in ("", "APIError") else f"{name}: {said}"), status
            case _:
                pass
        return []

    def _add(self, tokens: dict[str, Any], cost: object) -> None:
        cache = part(tokens, "cache")
        counts = {
            "input_tokens": reader.count(tokens.get("input")),
            "output_tokens": reader.count(tokens.get("output")) + reader.count(tokens.get("reasoning")),
            "cache_read_input_tokens": reader.count(cache.get("read")),
            "cache_creation_input_tokens": reader.count(cache.get("write")),
        }
        self._used = {name: count + self._used.get(name, 0) for name, count in counts.items()}
        if isinstance(cost, int | float) and cost > 0:  # 0 is what it says of a model whose price it does not know
            self._cost = (self._cost or 0.0) + cost

    def fold_end(self) -> Folded | None:
        more: dict[str, Any] = {
            "usage": self._used or None,
            "total_cost_usd": self._cost,
            "num_turns": self._turns or None,
        }
        if self._error is not None:
            said, status = self._error
            return reader.ended(self._last, error=said, status=status, **more)
        if self._reason in ("", "tool-calls"):
            return None  # it was at work
        error = None if self._reason == "stop" else f"the model stopped: {self._reason}"
        return reader.ended(self._last, error=error, **more)
