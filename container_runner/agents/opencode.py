"""opencode, the `opencode` command."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, ClassVar, Final

from container_runner.agents.agent import AgentRuntime, bearer
from container_runner.agents.runtime import Command, Credentials
from container_runner.config import paths
from container_runner.errors import ConfigError
from container_runner.options import ExecuteOptions
from container_runner.stream import reader
from container_runner.stream.blocks import as_text
from container_runner.stream.reader import Folded, Reader, count, part

PROVIDERS: Final = {
    "anthropic": ("ANTHROPIC_API_KEY", None),
    "google": ("GOOGLE_GENERATIVE_AI_API_KEY", None),
    "groq": ("GROQ_API_KEY", "https://api.groq.com/openai/v1"),
    "mistral": ("MISTRAL_API_KEY", "https://api.mistral.ai/v1"),
    "opencode": ("OPENCODE_API_KEY", None),
    "openai": ("OPENAI_API_KEY", None),
    "openrouter": ("OPENROUTER_API_KEY", "https://openrouter.ai/api/v1"),
    "xai": ("XAI_API_KEY", "https://api.x.ai/v1"),
}
"""The variable with each provider's key, of which only that of the model's provider goes into the box; and the API of
those that are spoken to as a `base_url` is. With the others' own, opencode does more by itself."""

_NAMED: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


class OpenCodeRuntime(AgentRuntime):
    """Runs `opencode run` with the prompt on stdin and JSON lines on stdout.

    It needs a model, as "PROVIDER/MODEL": without one it takes whichever it finds a key for, or one that is free and
    somebody else's. With a `base_url`, which is that of an API like OpenAI's Chat Completions, the provider is any
    word, and the key is OPENAI_API_KEY.
    """

    kind = "opencode"
    flags: ClassVar = {"model": "--model", "resume": "--session", "fork": "--fork"}
    carries = frozenset(flags) | {"base_url", "mcp_servers"}
    headless = frozenset({"run", "--format=json", "--thinking", "--auto"})
    keys = ("the key of the model's provider, as OPENAI_API_KEY,",)
    box_env: ClassVar = {
        "OPENCODE_DB": f"{paths.SESSIONS}/db/opencode.db",
        "OPENCODE_DISABLE_AUTOUPDATE": "1",
        "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
        "OPENCODE_DISABLE_SHARE": "1",
    }
    kept = ("db",)
    no_login = re.compile("ProviderAuthError|API key is missing|ProviderModelNotFoundError")
    no_session = re.compile("Session not found|NotFoundError.*[Ss]ession")
    too_long = re.compile("ContextOverflowError|context_length_exceeded")

    def command(self, options: ExecuteOptions, *, contained: bool) -> Command:
        """The opencode command line. What has no flag stands in a variable with its configuration."""
        agent, model = options.agent, options.agent.model or ""
        provider, slash, name = model.partition("/")
        if not (provider and slash and name):
            raise ConfigError("model", agent.model, 'a provider and its model, as "anthropic/claude-sonnet-5"')
        settings: dict[str, Any] = {"autoupdate": False, "share": "disabled", "model": model}  # ACP has no flag for it
        key, upstream = PROVIDERS.get(provider, (None, None))
        env: dict[str, str] = {}
        if contained:
            settings["permission"] = {"*": "allow"}
        if agent.mcp_servers:
            settings["mcp"] = {name: _server(name, server) for name, server in agent.mcp_servers.items()}
        if agent.base_url is not None:
            env["OPENCODE_DISABLE_MODELS_FETCH"] = "1"  # of which it learns what the models of others are like
            key, upstream = "OPENAI_API_KEY", agent.base_url
            where = {"baseURL": agent.base_url, "apiKey": f"{{env:{key}}}"}
            own = {"npm": "@ai-sdk/openai-compatible", "options": where, "models": {name: {}}}
            settings["provider"] = {provider: own}
        auto = ["--auto"] if contained else []
        words = ["run", "--format=json", "--thinking", *auto, *self._words(options, contained=contained)]
        env["OPENCODE_CONFIG_CONTENT"] = json.dumps(settings)
        endpoint = bearer(key, upstream, "POST /chat/completions") if key and upstream else None
        credentials = Credentials(names=(key,) if key else (), endpoint=endpoint)
        return self._command(options, words, contained=contained, env=env, credentials=credentials)

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
    given = server.get("headers" if "url" in server else "env", {})
    values = {key: _NAMED.sub(r"{env:\1}", str(value)) for key, value in given.items()}  # as it writes variables
    if "url" in server:
        return {"type": "remote", "url": server["url"], "headers": values, "oauth": False}
    return {"type": "local", "command": [server["command"], *server.get("args", ())], "environment": values}


class _OpenCodeReader(Reader):
    types = frozenset({"step_start", "text", "reasoning", "tool_use", "step_finish", "error"})

    def __init__(self) -> None:
        super().__init__()
        self._last = self._reason = ""
        self._error: Folded = {}
        self._turns = 0
        self._cost: float | None = None
        self._used = Counter[str]()

    def fold(self, raw: Folded) -> Iterable[Folded] | None:
        kind = as_text(raw.get("type"))
        if kind not in self.types:
            return None
        begun = []
        if not self.session_id and (session := as_text(raw.get("sessionID"))):
            self.session_id = session
            begun.append(reader.begun(session))
        return [*begun, *self._fold(kind, part(raw, "part"), part(raw, "error"))]

    def _fold(self, kind: str, what: Folded, error: Folded) -> list[Folded]:
        message = what.get("messageID")
        match kind:
            case "text":
                self._last = as_text(what.get("text"))
                return [reader.answered(reader.text(self._last), id=message)]
            case "reasoning":
                return [reader.answered(reader.thought(what.get("text")), id=message)]
            case "tool_use":  # which comes when it has ended
                state, call = part(what, "state"), what.get("callID")
                is_error = state.get("status") == "error" or part(state, "metadata").get("exit") not in (0, None)
                asked = reader.answered(reader.called(call, what.get("tool"), state.get("input")), id=message)
                return [asked, reader.gave(call, state.get("output") or state.get("error"), is_error=is_error)]
            case "step_finish":
                self._turns += 1
                self._reason, self._error = as_text(what.get("reason")), {}
                self._add(part(what, "tokens"), what.get("cost"))
            case "error":
                name, told = as_text(error.get("name")), part(error, "data")
                said = as_text(told.get("message")) or name
                said = said if name in ("", "APIError") else f"{name}: {said}"
                self._error = {"error": said, "status": told.get("statusCode")}
            case _:
                pass
        return []

    def _add(self, tokens: Folded, cost: object) -> None:
        cache = part(tokens, "cache")
        counts = {  # thoughts are output
            "input_tokens": count(tokens.get("input")),
            "output_tokens": count(tokens.get("output")) + count(tokens.get("reasoning")),
            "cache_read_input_tokens": count(cache.get("read")),
            "cache_creation_input_tokens": count(cache.get("write")),
        }
        self._used.update(counts)
        if isinstance(cost, int | float) and cost > 0:  # 0 is what it says of a model whose price it does not know
            self._cost = (self._cost or 0.0) + cost

    def fold_end(self) -> Folded | None:
        if not self._error and self._reason in ("", "tool-calls"):
            return None  # it was at work
        stopped = {} if self._reason == "stop" else {"error": f"the model stopped: {self._reason}"}
        numbers = {"usage": dict(self._used), "total_cost_usd": self._cost, "num_turns": self._turns}
        told: Folded = {name: value or None for name, value in numbers.items()}
        return reader.ended(self._last, **told, **(self._error or stopped))
