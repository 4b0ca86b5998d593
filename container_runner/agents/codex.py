"""OpenAI's Codex, the `codex` command."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, Final

import attrs

from container_runner.agents.agent import AgentRuntime
from container_runner.agents.runtime import Command, Credentials, Endpoint
from container_runner.config import paths
from container_runner.errors import ConfigError
from container_runner.options import ExecuteOptions, check_argument
from container_runner.stream import reader
from container_runner.stream.blocks import as_text
from container_runner.stream.decode import load
from container_runner.stream.reader import Folded, Reader, part

KEY: Final = "CODEX_API_KEY"

CREDENTIALS: Final = Credentials(
    names=(KEY,),
    file="~/.codex/auth.json",
    target=f"{paths.SESSIONS}/auth.json",
    endpoint=Endpoint(
        upstream="https://api.openai.com/v1",
        headers={KEY: "authorization: Bearer {}"},
        allowed=("POST /responses", "POST /responses/compact", "GET /models"),
    ),
)

SCHEMA: Final = f"{paths.SESSIONS}/schema.json"
"""Where the shape of the answer is told."""

TOOL_TIMEOUT: Final = 86_400
"""Seconds that it waits for a tool of ours, which has a clock of its own. By itself it would wait for one minute."""

KEPT: Final = ("sessions",)
"""What was said. Beside it lie configuration, rules, skills, memories and queues, which would act in the next run."""


class CodexRuntime(AgentRuntime):
    """Runs `codex exec` with the prompt on stdin and JSON lines on stdout.

    In a container it asks for nothing and has no sandbox of its own: the box is the limit. On the host it has the
    sandbox that its own configuration gives it.
    """

    kind = "codex"
    carries = frozenset({"model", "base_url", "effort", "append_system_prompt", "json_schema", "resume", "fork"})
    headless = frozenset({"exec", "--json", "--skip-git-repo-check", "-"})
    keys = (KEY,)
    no_login = re.compile(f"status 40[13] |Missing environment variable: `{KEY}`|not logged in", re.IGNORECASE)
    no_session = re.compile("no rollout found for thread id|thread not found", re.IGNORECASE)
    too_long = re.compile("ran out of room in the model's context window|context_length_exceeded")

    def command(self, options: ExecuteOptions, *, contained: bool) -> Command:
        """The codex command line. It ends with "-", which says that the prompt is on stdin."""
        self.check(options)
        agent = options.agent
        settings = {
            "check_for_update_on_startup": False,
            "analytics.enabled": False,
            "model": agent.model,
            "model_reasoning_effort": agent.effort,
            "developer_instructions": options.append_system_prompt,
        }
        if agent.base_url is not None:
            settings["model_provider"] = "own"
            own = {"name": "own", "base_url": agent.base_url, "env_key": KEY, "wire_api": "responses"}
            settings |= {f"model_providers.own.{name}": value for name, value in own.items()}
        verb = "fork" if options.fork else "resume"
        schema = None if options.json_schema is None else json.dumps(dict(options.json_schema))
        if schema is not None and not contained:
            allowed = "left out on the host: codex wants it in a file, which only a container is given"
            raise ConfigError("json_schema", "…", allowed)
        argv = [
            self.program,
            "exec",
            *([] if options.resume is None else [verb]),
            "--json",
            "--skip-git-repo-check",
            *(["--dangerously-bypass-approvals-and-sandbox"] if contained else []),
            *(word for name, value in settings.items() if value is not None for word in _setting(name, value)),
            *([] if schema is None else [f"--output-schema={SCHEMA}"]),
            *agent.args,
            *([] if options.resume is None else [options.resume]),
            "-",
        ]
        return Command(
            argv=tuple(argv),
            stdin=options.prompt.encode(),
            env={"CODEX_HOME": paths.SESSIONS} if contained else {},
            files={} if schema is None else {SCHEMA: schema},
            credentials=CREDENTIALS,
            kept=KEPT,
        )

    def with_server(self, options: ExecuteOptions, name: str, url: str, token: str) -> ExecuteOptions:
        """The server in its configuration. It waits for a tool as long as we do."""
        own = {"url": url, "bearer_token_env_var": token, "tool_timeout_sec": TOOL_TIMEOUT}
        words = [word for key, value in own.items() for word in _setting(f"mcp_servers.{name}.{key}", value)]
        return attrs.evolve(options, agent=attrs.evolve(options.agent, args=(*options.agent.args, *words)))

    def reader(self, options: ExecuteOptions) -> Reader:
        """Its dialect. In a session that goes on it counts what it uses from that one's start, so it is not told."""
        return _CodexReader(counts_from_start=options.resume is not None, shaped=options.json_schema is not None)


def _setting(name: str, value: object) -> list[str]:
    """A value of its configuration, as TOML, which takes a text as JSON writes it."""
    return ["-c", check_argument(name, f"{name}={json.dumps(value)}")]


class _CodexReader(Reader):
    types = frozenset(
        f"{what}.{how}" for what in ("thread", "turn", "item") for how in ("started", "updated", "completed", "failed")
    )

    def __init__(self, *, counts_from_start: bool, shaped: bool) -> None:
        super().__init__()
        self._counts_from_start = counts_from_start
        self._shaped = shaped
        self._last = ""
        self._started = set[str]()

    def fold(self, raw: dict[str, Any]) -> Iterable[Folded] | None:
        match raw.get("type"):
            case "thread.started":
                self.session_id = as_text(raw.get("thread_id"))
                return [reader.begun(self.session_id)]
            case "turn.started" | "item.updated":
                return []
            case "item.started" | "item.completed":
                return self._item(part(raw, "item"), is_done=raw["type"] == "item.completed")
            case "error":  # which is not the end: it comes for each attempt to reach the API, too
                said = as_text(raw.get("message"))
                if retry := re.match(r"Reconnecting\.\.\. (\d{1,3})/(\d{1,3})", said):
                    return [reader.retried(int(retry[1]), int(retry[2]), _why(said), status=_status(said))]
                return [reader.warned(said)]
            case "turn.completed":
                used = part(raw, "usage")
                usage = reader.used(
                    used.get("input_tokens"),
                    used.get("output_tokens"),
                    read=used.get("cached_input_tokens"),
                    written=used.get("cache_write_input_tokens"),
                )
                shaped = load(self._last.encode()) if self._shaped else None
                more: dict[str, Any] = {
                    "usage": None if self._counts_from_start else usage,
                    "structured_output": shaped,
                }
                return [reader.ended(self._last, **more)]
            case "turn.failed":
                said = _inner(as_text(part(raw, "error").get("message")))
                return [reader.ended(self._last, error=said, status=_status(said))]
            case _:
                return None

    def _item(self, item: dict[str, Any], *, is_done: bool) -> Iterable[Folded] | None:
        key, kind = as_text(item.get("id")), item.get("type")
        if kind in ("agent_message", "reasoning", "error"):
            said = item.get("message") if kind == "error" else item.get("text")
            if not is_done:
                return []
            if kind == "error":
                return [reader.warned(said)]
            self._last = as_text(said) if kind == "agent_message" else self._last
            return [reader.answered(reader.text(said) if kind == "agent_message" else reader.thought(said))]
        name, given, gave, failed = _call(item)
        if not name:
            return None
        call = reader.answered(reader.called(key, name, given))
        if not is_done:
            self._started.add(key)
            return [call]
        result = reader.gave(key, gave, is_error=failed or item.get("status") in ("failed", "declined"))
        return [result] if key in self._started else [call, result]


def _call(item: dict[str, Any]) -> tuple[str, dict[str, Any], str, bool]:
    """An item as a call of a tool: its name, its input, what it gave back, and whether it failed; "" if it is none."""
    match item.get("type"):
        case "command_execution":
            given = {"command": item.get("command")}
            return "Bash", given, as_text(item.get("aggregated_output")), item.get("exit_code") not in (0, None)
        case "file_change":
            changes = _dicts(item.get("changes"))
            told = [f"{as_text(each.get('kind'))} {as_text(each.get('path'))}" for each in changes]
            return "Edit", {"file_path": ", ".join(told), "changes": changes}, "\n".join(told), False
        case "mcp_tool_call":
            name = f"mcp__{as_text(item.get('server'))}__{as_text(item.get('tool'))}"
            error = part(item, "error")
            texts = [as_text(each.get("text")) for each in _dicts(part(item, "result").get("content"))]
            return name, part(item, "arguments"), as_text(error.get("message")) or "\n".join(texts), bool(error)
        case "web_search":
            return "WebSearch", {"query": item.get("query")}, "", False
        case "todo_list":
            return "TodoWrite", {"todos": item.get("items")}, "", False
        case _:
            return "", {}, "", False


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _inner(said: str) -> str:
    """What the API says in an error that is its answer as it came."""
    try:
        found = json.loads(said)
    except (ValueError, RecursionError):
        return said
    return as_text(part(found, "error").get("message")) if isinstance(found, dict) else said


def _status(said: str) -> int | None:
    found = re.search(r"unexpected status (\d{3}) ", said)
    return int(found[1]) if found else None


def _why(said: str) -> str:
    return "authentication_failed" if _status(said) in (401, 403) else "unknown"
