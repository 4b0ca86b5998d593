"""OpenAI's Codex, the `codex` command."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import ClassVar, Final

import attrs

from container_runner.agents.agent import AgentRuntime, bearer, flag
from container_runner.agents.runtime import Command, Credentials
from container_runner.config import paths
from container_runner.errors import ConfigError
from container_runner.options import ExecuteOptions, check_argument
from container_runner.stream import reader
from container_runner.stream.blocks import as_text
from container_runner.stream.decode import load
from container_runner.stream.reader import Folded, Reader, part, parts

KEY: Final = "CODEX_API_KEY"

SCHEMA: Final = f"{paths.SESSIONS}/schema.json"
"""Where the shape of the answer is told."""

TOOL_TIMEOUT: Final = 86_400
"""Seconds that it waits for a tool of ours, which has a clock of its own. By itself it would wait for one minute."""

_RETRY: Final = re.compile(r"Reconnecting\.\.\. (\d{1,3})/(\d{1,3})")
_STATUS: Final = re.compile(r"unexpected status (\d{3}) ")


class CodexRuntime(AgentRuntime):
    """Runs `codex exec` with the prompt on stdin and JSON lines on stdout.

    In a container it asks for nothing and has no sandbox of its own: the box is the limit. On the host it has the
    sandbox that its own configuration gives it.
    """

    kind = "codex"
    carries = frozenset({"model", "base_url", "effort", "append_system_prompt", "json_schema", "resume", "fork"})
    headless = frozenset({"exec", "--json", "--skip-git-repo-check", "-"})
    keys = (KEY,)
    credentials = Credentials(
        names=keys,
        file="~/.codex/auth.json",
        target=f"{paths.SESSIONS}/auth.json",
        endpoint=bearer(KEY, "https://api.openai.com/v1", "POST /responses", "POST /responses/compact", "GET /models"),
    )
    box_env: ClassVar = {"CODEX_HOME": paths.SESSIONS}
    kept = ("sessions",)  # beside it lie configuration, rules, skills, memories and queues, which would act later
    no_login = re.compile(f"status 40[13] |Missing environment variable: `{KEY}`|not logged in", re.IGNORECASE)
    no_session = re.compile("no rollout found for thread id|thread not found", re.IGNORECASE)
    too_long = re.compile("ran out of room in the model's context window|context_length_exceeded")

    def command(self, options: ExecuteOptions, *, contained: bool) -> Command:
        """The codex command line. It ends with "-", which says that the prompt is on stdin."""
        agent, schema = options.agent, options.json_schema
        if schema is not None and not contained:
            allowed = "left out on the host: codex wants it in a file, which only a container is given"
            raise ConfigError("json_schema", "…", allowed)
        settings = {
            "check_for_update_on_startup": False,
            "analytics.enabled": False,
            "model": agent.model,
            "model_reasoning_effort": agent.effort,
            "developer_instructions": options.append_system_prompt,
        }
        if agent.base_url is not None:
            settings["model_provider"] = "own"
            settings |= {f"model_providers.own.{name}": value for name, value in own_provider(agent.base_url).items()}
        verb, session = (
            ([], []) if options.resume is None else (["fork" if options.fork else "resume"], [options.resume])
        )
        words = [
            *("exec", *verb, "--json", "--skip-git-repo-check"),
            *(["--dangerously-bypass-approvals-and-sandbox"] if contained else []),
            *(word for name, value in settings.items() if value is not None for word in _setting(name, value)),
            *flag("--output-schema", None if schema is None else SCHEMA),
            *(*agent.args, *session, "-"),
        ]
        files = {} if schema is None else {SCHEMA: json.dumps(dict(schema))}
        return self._command(options, words, contained=contained, files=files)

    def with_server(self, options: ExecuteOptions, name: str, url: str, token: str) -> ExecuteOptions:
        """The server in its configuration. It waits for a tool as long as we do."""
        own = {"url": url, "bearer_token_env_var": token, "tool_timeout_sec": TOOL_TIMEOUT}
        words = [word for key, value in own.items() for word in _setting(f"mcp_servers.{name}.{key}", value)]
        return attrs.evolve(options, agent=attrs.evolve(options.agent, args=(*options.agent.args, *words)))

    def reader(self, options: ExecuteOptions) -> Reader:
        """Its dialect. In a session that goes on it counts what it uses from that one's start, so it is not told."""
        return _CodexReader(counts_from_start=options.resume is not None, shaped=options.json_schema is not None)


def own_provider(url: str) -> dict[str, str]:
    """The API at *url* in its configuration."""
    return {"name": "own", "base_url": url, "env_key": KEY, "wire_api": "responses"}


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

    def fold(self, raw: Folded) -> Iterable[Folded] | None:
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
                if retry := _RETRY.match(said):
                    status = reader.status_in(said, _STATUS)
                    why = "authentication_failed" if status in (401, 403) else "unknown"
                    return [reader.retried(int(retry[1]), int(retry[2]), why, status=status)]
                return [reader.warned(said)]
            case "turn.completed":
                usage = part(raw, "usage")
                read, written = usage.get("cached_input_tokens"), usage.get("cache_write_input_tokens")
                used = reader.used(usage.get("input_tokens"), usage.get("output_tokens"), read=read, written=written)
                shaped = load(self._last.encode()) if self._shaped else None
                counted = None if self._counts_from_start else used
                return [reader.ended(self._last, usage=counted, structured_output=shaped)]
            case "turn.failed":
                said = as_text(part(raw, "error").get("message"))
                answer = load(said.encode()) or {}  # the API's own, as it came
                said = as_text(part(answer, "error").get("message")) or said
                return [reader.ended(self._last, error=said, status=reader.status_in(said, _STATUS))]
            case _:
                return None

    def _item(self, item: Folded, *, is_done: bool) -> Iterable[Folded] | None:
        key, said = as_text(item.get("id")), as_text(item.get("text"))
        match item.get("type"):
            case "agent_message" | "reasoning" | "error" if not is_done:
                return []
            case "agent_message":
                self._last = said
                return [reader.answered(reader.text(said))]
            case "reasoning":
                return [reader.answered(reader.thought(said))]
            case "error":
                return [reader.warned(item.get("message"))]
            case _:
                pass
        name, given, gave, failed = _call(item)
        if not name:
            return None
        call = [] if key in self._started else [reader.answered(reader.called(key, name, given))]
        if not is_done:
            self._started.add(key)
            return call
        return [*call, reader.gave(key, gave, is_error=failed or item.get("status") in ("failed", "declined"))]


def _call(item: Folded) -> tuple[str, Folded, str, bool]:
    """An item as a call of a tool: its name, its input, what it gave back, and whether it failed; "" if it is none."""
    match item.get("type"):
        case "command_execution":
            given = {"command": item.get("command")}
            return "Bash", given, as_text(item.get("aggregated_output")), item.get("exit_code") not in (0, None)
        case "file_change":
            changes = parts(item, "changes")
            told = [f"{as_text(each.get('kind'))} {as_text(each.get('path'))}" for each in changes]
            return "Edit", {"file_path": ", ".join(told), "changes": changes}, "\n".join(told), False
        case "mcp_tool_call":
            name = f"mcp__{as_text(item.get('server'))}__{as_text(item.get('tool'))}"
            error = part(item, "error")
            texts = [as_text(each.get("text")) for each in parts(part(item, "result"), "content")]
            return name, part(item, "arguments"), as_text(error.get("message")) or "\n".join(texts), bool(error)
        case "web_search":
            return "WebSearch", {"query": item.get("query")}, "", False
        case "todo_list":
            return "TodoWrite", {"todos": item.get("items")}, "", False
        case _:
            return "", {}, "", False
