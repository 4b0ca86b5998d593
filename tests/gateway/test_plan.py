"""What the gateway of a run is to do, from its configuration."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest

from container_runner.agents import ClaudeRuntime, CodexRuntime, CommandRuntime, CopilotRuntime, OpenCodeRuntime
from container_runner.agents.acp import AcpRuntime
from container_runner.config.container import ContainerConfig
from container_runner.errors import ConfigError
from container_runner.gateway.plan import GatewayPlan, plan_gateway
from container_runner.options import Agent, ExecuteOptions
from container_runner.session.tools import Toolbox

RUN = "0123456789abcdef" * 2


def planned(
    environ: dict[str, str] | None = None, runtime: Any = None, toolbox: Toolbox | None = None, **fields: Any
) -> GatewayPlan | None:
    config = ContainerConfig(**{"image": "any", "network": "gateway", **fields})
    options = ExecuteOptions(prompt="", agent=Agent(name="bot"))
    describe = partial((runtime or ClaudeRuntime()).command, contained=True)
    return plan_gateway(config, describe, options, environ or {}, RUN, toolbox)[1]


def test_an_agent_is_led_to_the_gateway_and_gets_a_token_for_its_key() -> None:
    plan = planned({"ANTHROPIC_API_KEY": "the real one"}, allow_hosts=["@npm"])

    assert plan is not None
    assert plan.port == 3128
    assert plan.env["HTTPS_PROXY"] == plan.env["http_proxy"] == "http://127.0.0.1:3128"
    assert plan.env["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:3128/model"
    (route,) = plan.routes
    assert (route.upstream, dict(route.headers)) == ("https://api.anthropic.com", {"x-api-key": "the real one"})
    assert plan.tokens == {"ANTHROPIC_API_KEY": route.token}
    assert "the real one" not in repr(plan)
    assert route.token not in repr(plan)


def test_a_login_of_a_subscription_is_a_bearer() -> None:
    plan = planned({"CLAUDE_CODE_OAUTH_TOKEN": "oat"})

    assert plan is not None
    assert dict(plan.routes[0].headers) == {"authorization": "Bearer oat"}
    assert list(plan.tokens) == ["CLAUDE_CODE_OAUTH_TOKEN"]


def test_the_operators_own_endpoint_is_where_the_key_goes() -> None:
    plan = planned({"ANTHROPIC_API_KEY": "k"}, env={"ANTHROPIC_BASE_URL": "http://models.intern:8080/claude"})

    assert plan is not None
    assert plan.routes[0].upstream == "http://models.intern:8080/claude"


@pytest.mark.parametrize(
    ("runtime", "name", "agent", "upstream", "shown"),
    [
        (CodexRuntime(), "CODEX_API_KEY", {}, "https://api.openai.com/v1", "CODEX_API_KEY"),
        (
            OpenCodeRuntime(), "GROQ_API_KEY", {"model": "groq/llama"},
            "https://api.groq.com/openai/v1", "OPENAI_API_KEY",
        ),
        (
            CopilotRuntime(), "COPILOT_PROVIDER_API_KEY", {"base_url": "https://models.test/v1"},
            "https://models.test/v1", "COPILOT_PROVIDER_API_KEY",
        ),
    ],
)  # fmt: skip
def test_each_agent_is_led_to_the_gateway_in_its_own_way(
    runtime: Any, name: str, agent: dict[str, Any], upstream: str, shown: str
) -> None:
    describe = partial(runtime.command, contained=True)
    options = ExecuteOptions(prompt="", agent=Agent(name="bot", **agent))
    config = ContainerConfig(image="any", network="gateway", credentials="inject")
    command, plan = plan_gateway(config, describe, options, {name: "the real one"}, RUN)

    assert plan is not None
    (route,) = plan.routes
    assert (route.upstream, dict(route.headers)) == (upstream, {"authorization": "Bearer the real one"})
    assert plan.tokens == {shown: route.token}
    told = f"{command.argv} {command.env}"
    assert "http://127.0.0.1:3128/model" in told
    assert upstream not in told
    assert command.credentials.names == ()


@pytest.mark.parametrize(
    ("runtime", "name", "agent"),
    [
        (OpenCodeRuntime(), "ANTHROPIC_API_KEY", {"model": "anthropic/claude-sonnet-5"}),
        (CopilotRuntime(), "COPILOT_GITHUB_TOKEN", {}),
    ],
)
def test_a_key_that_can_not_be_added_on_the_way_is_said(runtime: Any, name: str, agent: dict[str, Any]) -> None:
    describe = partial(runtime.command, contained=True)
    options = ExecuteOptions(prompt="", agent=Agent(name="bot", **agent))
    config = ContainerConfig(image="any", network="gateway", credentials="inject")
    with pytest.raises(ConfigError, match="can be added on the way"):
        plan_gateway(config, describe, options, {name: "k"}, RUN)


def test_two_runs_have_tokens_of_their_own() -> None:
    tokens = {plan.routes[0].token for _ in range(2) if (plan := planned({"ANTHROPIC_API_KEY": "k"}))}

    assert len(tokens) == 2


def test_a_kept_container_has_a_port_for_each_run() -> None:
    plan = planned(ephemeral=False)

    assert plan is not None
    assert 20_000 <= plan.port < 30_000


@pytest.mark.parametrize("credentials", ["auto", "env", "file", "none"])
def test_without_a_key_nothing_is_injected(credentials: str) -> None:
    environ = {} if credentials == "auto" else {"ANTHROPIC_API_KEY": "k"}
    plan = planned(environ, credentials=credentials)

    assert plan is not None
    assert (plan.routes, plan.tokens) == ((), {})
    assert "ANTHROPIC_BASE_URL" not in plan.env


@pytest.mark.parametrize(
    ("environ", "runtime", "fields", "field", "words"),
    [
        ({}, None, {"credentials": "inject"}, "credentials", "ANTHROPIC_API_KEY or CLAUDE_CODE_OAUTH_TOKEN"),
        ({}, CommandRuntime("my-agent"), {"credentials": "inject"}, "credentials", "no key of my-agent"),
        ({}, None, {"network": "bridge", "credentials": "inject"}, "credentials", 'network = "gateway"'),
        ({}, None, {"network": "bridge", "allow_hosts": ["a.test"]}, "allow_hosts", 'network = "gateway"'),
        ({}, None, {"network": "mine", "allow_addresses": ["10.0.0.1"]}, "allow_addresses", "which does not ask"),
    ],
)
def test_what_can_not_be_is_refused(
    environ: dict[str, str], runtime: Any, fields: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        planned(environ, runtime, **fields)
    assert refused.value.field == field
    assert words in refused.value.allowed


@pytest.mark.parametrize("network", ["none", "bridge", "gateway", "mine"])
def test_tools_need_no_network_and_open_none(network: str) -> None:
    box = Toolbox((), 1.0)
    plan = planned(network=network, toolbox=box)

    assert plan is not None
    assert plan.toolbox is box
    assert plan.env["AGENT_TOOLS_URL"] == "http://127.0.0.1:3128/mcp/container_runner"
    assert plan.tokens == {"AGENT_TOOLS_TOKEN": box.token}
    assert box.token not in repr(plan)
    assert (plan.allow_hosts, plan.routes) == ((), ())
    assert ("HTTPS_PROXY" in plan.env) == (network == "gateway")


def test_tools_are_not_for_the_network_of_the_host() -> None:
    with pytest.raises(ConfigError, match="all of this machine"):
        planned(network="host", toolbox=Toolbox((), 1.0))


def test_claude_is_told_of_the_tools_and_not_of_their_token() -> None:
    box, runtime = Toolbox((), 1.0), ClaudeRuntime()
    config = ContainerConfig(image="any", network="none")
    agent = Agent(name="bot", mcp_servers={"own": {"command": "x"}}, allowed_tools=["Read"])
    command, _ = plan_gateway(
        config,
        partial(runtime.command, contained=True),
        ExecuteOptions(prompt="", agent=agent),
        {},
        RUN,
        toolbox=box,
        offer=runtime.with_server,
    )

    servers = json.loads(next(word for word in command.argv if word.startswith("--mcp-config=")).partition("=")[2])
    assert servers["mcpServers"] == {
        "own": {"command": "x"},
        "container_runner": {
            "type": "http",
            "url": "http://127.0.0.1:3128/mcp/container_runner",
            "headers": {"Authorization": "Bearer ${AGENT_TOOLS_TOKEN}"},
        },
    }
    assert "--allowedTools=Read,mcp__container_runner__*" in command.argv
    assert box.token not in str(command.argv)


@pytest.mark.parametrize("network", ["none", "gateway", "bridge"])
def test_an_acp_agent_is_told_of_the_tools_in_its_session(network: str) -> None:
    box, runtime = Toolbox((), 1.0), AcpRuntime("gemini")
    config = ContainerConfig(image="any", network=network, host_mcp_servers={"files": "files-server /srv"})
    options = ExecuteOptions(prompt="", agent=Agent(name="bot"))
    describe = partial(runtime.command, contained=True)
    command, plan = plan_gateway(config, describe, options, {}, RUN, toolbox=box, offer=runtime.with_server)

    assert plan is not None
    assert [(one.name, one.url, one.token) for one in plan.servers] == [
        ("container_runner", "http://127.0.0.1:3128/mcp/container_runner", box.token),
        ("files", "http://127.0.0.1:3128/mcp/files", box.token),
    ]
    assert box.token not in repr((command, plan))


@pytest.mark.parametrize("network", ["none", "gateway"])
def test_ports_without_a_network_are_the_gateways(network: str) -> None:
    plan = planned(network=network, ports=["8080:80"])

    assert plan is not None
    assert [(port.host_port, port.container_port) for port in plan.ports] == [(8080, 80)]
    assert plan.allow_hosts == ()


def test_ports_with_a_network_are_the_engines() -> None:
    assert planned(network="bridge", ports=["80"]) is None

    with_tools = planned(network="bridge", ports=["80"], toolbox=Toolbox((), 1.0))
    assert with_tools is not None
    assert with_tools.ports == ()


def test_a_run_without_a_network_needs_none() -> None:
    assert planned(network="none", allow_hosts=["a.test"]) is None
