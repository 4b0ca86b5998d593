"""The ACP runtime: what is started, what is set in the session, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from container_runner.agents.acp import MANNERS, AcpRuntime
from container_runner.config import paths
from container_runner.errors import (
    AgentFailedError,
    AuthenticationError,
    ConfigError,
    IncompleteOutputError,
    UnsupportedRuntimeError,
)
from container_runner.options import Agent, ExecuteOptions
from container_runner.session.acp import AcpCodec
from container_runner.stream.messages import ResultMessage, parse_message


def options(**fields: Any) -> ExecuteOptions:
    agent = {name: fields.pop(name) for name in list(fields) if name in Agent.__annotations__}
    return ExecuteOptions(prompt="go", agent=Agent(name="bot", **agent), **fields)


def codec(program: str, *, asks: bool = False, **fields: Any) -> AcpCodec:
    made = AcpRuntime(program).codec(options(**fields), asks=asks, tools=())
    assert isinstance(made, AcpCodec)
    return made


def result(**fields: Any) -> ResultMessage:
    made = parse_message({"type": "result", "subtype": "success", "is_error": False, **fields})
    assert isinstance(made, ResultMessage)
    return made


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("gemini", ("gemini", "--acp", "--model=x/m")),
        ("/opt/qwen", ("/opt/qwen", "--acp", "--auth-type=openai", "--model=x/m")),
        ("opencode", ("opencode", "acp")),
        ("copilot", ("copilot", "--acp", "--no-auto-update", "--disable-client-telemetry", "--model=x/m")),
        ("codex-acp", ("codex-acp",)),
    ],
)
def test_a_known_agent_needs_its_name_alone(program: str, words: tuple[str, ...]) -> None:
    command = AcpRuntime(program).live(options(model="x/m"), asks=False, tools=())

    assert command.argv == words
    assert command.is_live
    assert command.stdin == b""


def test_another_agent_is_given_with_its_arguments() -> None:
    command = AcpRuntime("goose", "acp", env={"A": "b"}).live(options(args=["--x"]), asks=True, tools=())

    assert (command.argv, command.env) == (("goose", "acp", "--x"), {"A": "b"})


@pytest.mark.parametrize(
    ("program", "asking", "not_asking"),
    [
        ("gemini", {"mode": "default"}, {"mode": "yolo"}),
        ("qwen", {"mode": "default"}, {"mode": "yolo"}),
        ("opencode", {"mode": "build"}, {"mode": "build"}),
        ("claude-agent-acp", {"mode": "default"}, {"mode": "bypassPermissions"}),
        ("codex-acp", {"mode": "read-only"}, {"mode": "agent-full-access"}),
        ("goose", {}, {}),
    ],
)
def test_the_mode_is_set_whoever_is_asked(program: str, asking: dict[str, str], not_asking: dict[str, str]) -> None:
    assert codec(program, asks=True).settings == asking
    assert codec(program, asks=False).settings == not_asking
    assert (codec(program, asks=True).asks, codec(program, asks=False).asks) == (True, False)


def test_copilot_has_a_switch_and_opencode_a_variable() -> None:
    asking = AcpRuntime("opencode").live(options(model="x/m"), asks=True, tools=()).env
    not_asking = AcpRuntime("opencode").live(options(model="x/m"), asks=False, tools=()).env

    assert codec("copilot").settings["allow_all"] == "on"
    assert codec("copilot", asks=True).settings["allow_all"] == "off"
    assert json.loads(asking["OPENCODE_PERMISSION"]) == {"*": "ask"}
    assert "OPENCODE_PERMISSION" not in not_asking


def test_a_mode_that_was_asked_for_goes_first_and_asks() -> None:
    made = codec("gemini", permission_mode="plan")

    assert (made.settings, made.asks) == ({"mode": "plan"}, True)
    assert not codec("gemini", permission_mode="bypassPermissions", asks=True).asks


def test_the_model_is_set_in_the_session_where_that_lists_all() -> None:
    assert codec("opencode", model="x/m").settings["model"] == "x/m"
    assert "model" not in codec("gemini", model="m").settings


def test_a_session_is_in_the_workspace_and_goes_on_with_another() -> None:
    made = codec("gemini", resume="s1", fork=True, include_partial_messages=True)

    assert (made.cwd, made.resume, made.fork, made.partial) == (paths.WORKSPACE, "s1", True, True)


def test_a_session_is_where_the_container_has_the_workspace() -> None:
    assert codec("gemini", workspace="/home/me/project").cwd == "/home/me/project"


def test_servers_are_in_the_form_of_acp() -> None:
    servers = {
        "a": {"command": "/bin/a", "args": ["-x"], "env": {"K": "v"}},
        "b": {"type": "http", "url": "http://b", "headers": {"H": "v"}},
    }

    assert codec("gemini", mcp_servers=servers).mcp_servers == [
        {"name": "a", "command": "/bin/a", "args": ["-x"], "env": [{"name": "K", "value": "v"}]},
        {"name": "b", "type": "http", "url": "http://b", "headers": [{"name": "H", "value": "v"}]},
    ]


@pytest.mark.parametrize(
    "server",
    [
        {"command": "/bin/a", "env": {"K": "${TOKEN}"}},
        {"command": "/bin/a", "args": [3]},
        {"command": "/bin/a", "env": []},
        {"command": 3},
        {"type": "sdk"},
        "broken",
    ],
)
def test_a_server_that_could_not_work_is_refused(server: object) -> None:
    with pytest.raises(ConfigError, match="mcp_servers"):
        AcpRuntime("gemini").live(options(mcp_servers={"a": server}), asks=False, tools=())


@pytest.mark.parametrize(
    "fields",
    [
        {"system_prompt": "x"},
        {"allowed_tools": ["Bash"]},
        {"max_turns": 3},
        {"json_schema": {}},
        {"session_id": "s"},
        {"max_budget_usd": 1},
        {"permission_mode": "dontAsk"},
    ],
)
def test_what_would_be_ignored_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        AcpRuntime("gemini").live(options(**fields), asks=False, tools=())


def test_where_the_api_is_is_told_where_there_is_a_way() -> None:
    url = "http://127.0.0.1:1"

    assert url in AcpRuntime("gemini").live(options(base_url=url), asks=False, tools=()).env.values()
    codex = AcpRuntime("codex-acp").live(options(base_url=url, model="own"), asks=False, tools=())
    config = json.loads(codex.env["CODEX_CONFIG"])
    assert (config["model"], "model" in codec("codex-acp", model="own").settings) == ("own", False)
    assert config["model_providers"][config["model_provider"]]["base_url"] == url
    with pytest.raises(ConfigError, match="base_url"):
        AcpRuntime("goose").live(options(base_url=url), asks=False, tools=())


def test_the_host_is_refused() -> None:
    with pytest.raises(UnsupportedRuntimeError, match="in a container"):
        AcpRuntime("gemini").command(options(), contained=False)


def test_its_last_turn_says_whether_it_failed() -> None:
    judge = AcpRuntime("gemini").outcome

    assert judge(result(), 1, "") is None  # qwen may exit with 1 when its input has ended
    assert type(judge(None, 0, "")) is IncompleteOutputError
    assert type(judge(None, 3, "")) is AgentFailedError
    assert type(judge(result(is_error=True, errors=["it broke"]), 0, "")) is AgentFailedError


@pytest.mark.parametrize(
    "failure",
    [
        {"api_error_status": 401, "errors": ["no"]},
        {"errors": ["Internal error: 401 Incorrect API key provided"]},
        {"errors": ["Error: Authentication failed with provider (HTTP 401)."]},
    ],
)
def test_a_wrong_key_is_an_error_of_its_own(failure: dict[str, Any]) -> None:
    assert type(AcpRuntime("gemini").outcome(result(is_error=True, **failure), 0, "")) is AuthenticationError


def test_each_agent_that_was_tried_can_be_told_to_ask_and_not_to() -> None:
    for manners in MANNERS.values():
        assert {"default", "bypassPermissions"} <= set(manners.modes)
