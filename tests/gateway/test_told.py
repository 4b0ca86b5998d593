"""What the agent is told of its network, if the operator wants."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from container_runner.agents import (
    ClaudeRuntime,
    CodexRuntime,
    Command,
    CommandRuntime,
    CopilotRuntime,
    GeminiRuntime,
    OpenCodeRuntime,
    PythonRuntime,
    QwenRuntime,
)
from container_runner.agents.acp import AcpRuntime
from container_runner.agents.adapter import command_line
from container_runner.config.container import ContainerConfig
from container_runner.errors import ConfigError, UnsupportedRuntimeError
from container_runner.gateway.plan import plan_gateway
from container_runner.gateway.told import network_told
from container_runner.options import Agent, ExecuteOptions
from container_runner.runner.pump import Pump, PumpRuntime


def told(**fields: Any) -> str:
    return network_told(ContainerConfig(**{"image": "any", "network": "gateway", **fields}), 3128)


def command(runtime: Any, **fields: Any) -> str:
    """All that the agent gets."""
    config = ContainerConfig(**{"image": "any", "network": "gateway", "tell_network": True, **fields})
    options = ExecuteOptions(prompt="", agent=Agent(name="bot"), append_system_prompt="Be brief.")
    made, _ = plan_gateway(
        config, partial(runtime.command, contained=True), options, {}, "0" * 32, tell=runtime.with_words
    )
    return f"{made.argv} {made.stdin!r} {made.files}"


def test_it_names_what_is_allowed_and_says_that_the_rest_is_not() -> None:
    text = told(allow_hosts=["@pypi", "github.com:22"], inject=["api.test x-key KEY"])

    assert "lets through: pypi.org, files.pythonhosted.org, github.com:22." in text
    assert "http://api.test/ (by the proxy, or as http://127.0.0.1:3128/api.test/) is allowed too" in text
    assert "KEY" not in text
    assert "lets through: no host." in told()
    assert told(network="none").startswith("Network: this container has none.")


@pytest.mark.parametrize(
    "runtime", [ClaudeRuntime(), CodexRuntime(), QwenRuntime(), PythonRuntime("a:b")], ids=lambda it: type(it).__name__
)
def test_it_stands_behind_what_is_said_already(runtime: Any) -> None:
    seen = command(runtime, allow_hosts=["a.test"])

    assert "Be brief." in seen
    assert seen.index("Be brief.") < seen.index("lets through: a.test")


@pytest.mark.parametrize(
    "runtime",
    [CommandRuntime("x"), GeminiRuntime(), OpenCodeRuntime(), CopilotRuntime(), AcpRuntime("x")],
    ids=lambda it: type(it).__name__,
)
def test_an_agent_that_can_not_be_told_is_refused(runtime: Any) -> None:
    with pytest.raises(UnsupportedRuntimeError, match="no system prompt"):
        command(runtime)


class Described:
    """A runtime that is none of ours."""

    def command(self, _: Any, *, contained: bool) -> Command:
        del contained
        return Command(argv=("x",))


@pytest.mark.parametrize(
    ("runtime", "name"),
    [
        (command_line(Described()), "Described has"),
        (PumpRuntime(ClaudeRuntime(), Pump(), ["claude", "--words"], {}, {}), "An agent that another program starts"),
    ],
)
def test_a_refusal_names_what_the_caller_knows(runtime: Any, name: str) -> None:
    with pytest.raises(UnsupportedRuntimeError, match=f"^{name}"):
        command(runtime)


@pytest.mark.parametrize("network", ["bridge", "host", "mine"])
def test_of_another_network_nothing_is_told(network: str) -> None:
    with pytest.raises(ConfigError, match="we know too little"):
        command(ClaudeRuntime(), network=network)


def test_nobody_is_told_who_was_not_asked() -> None:
    assert "Network:" not in command(ClaudeRuntime(), tell_network=False)
