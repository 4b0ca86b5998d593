"""What an ACP agent offers to be set, as it stands in real answers, and whether it holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from container_runner.session.settings import NotOfferedError, Settings

DATA = Path(__file__).parents[1] / "data/acp"


def begun(agent: str) -> dict[str, Any]:
    """What a real agent has answered to session/new."""
    lines = map(json.loads, (DATA / f"{agent}.jsonl").read_bytes().splitlines())
    answer: dict[str, Any] = next(line["result"] for line in lines if line.get("id") == 2 and "result" in line)
    return answer


def settings(agent: str) -> Settings:
    made = Settings()
    made.take(begun(agent))
    return made


@pytest.mark.parametrize(
    ("agent", "mode", "model"),
    [
        ("gemini", "default", "gemini-2.5-flash"),
        ("qwen", "auto", "$runtime|openai|fake-model(openai)"),
        ("opencode", "build", "x/m"),
        ("copilot", "https://agentclientprotocol.com/protocol/session-modes#agent", None),
    ],
)
def test_the_mode_and_the_model_that_an_agent_begins_with(agent: str, mode: str, model: str | None) -> None:
    found = settings(agent)

    assert (found.value("mode"), found.value("model"), found.first_model) == (mode, model, model)


@pytest.mark.parametrize(
    ("agent", "name", "wanted", "method", "params"),
    [
        ("gemini", "mode", "yolo", "session/set_mode", {"modeId": "yolo"}),
        ("qwen", "mode", "yolo", "session/set_config_option", {"configId": "mode", "value": "yolo"}),
        ("opencode", "model", "x/m", "session/set_config_option", {"configId": "model", "value": "x/m"}),
        ("copilot", "allow_all", "on", "session/set_config_option", {"configId": "allow_all", "value": "on"}),
        ("gemini", "model", "auto", "session/set_model", {"modelId": "auto"}),
        ("gemini", "mode", "Auto Edit", "session/set_mode", {"modeId": "autoEdit"}),
    ],
)
def test_how_it_is_set(agent: str, name: str, wanted: str, method: str, params: dict[str, str]) -> None:
    assert settings(agent).request(name, wanted) == (method, params)


def test_what_an_agent_has_not_is_told_with_what_it_has() -> None:
    with pytest.raises(NotOfferedError, match="no 'bypass' among default, autoEdit, yolo, plan"):
        settings("gemini").request("mode", "bypass")
    with pytest.raises(NotOfferedError, match="no setting 'allow_all'"):
        settings("gemini").request("allow_all", "on")


def test_an_answer_that_says_otherwise_is_no_confirmation() -> None:
    found = settings("copilot")
    found.request("allow_all", "on")

    assert not found.confirm("allow_all", "on", begun("copilot"))
    assert found.value("allow_all") == "off"


def test_an_answer_that_says_nothing_is_one_unless_an_update_has_said_otherwise() -> None:
    found = settings("gemini")
    found.request("mode", "yolo")
    assert found.confirm("mode", "yolo", {})

    found.request("mode", "plan")
    found.take({"sessionUpdate": "current_mode_update", "currentModeId": "yolo"})
    assert not found.confirm("mode", "plan", {})


def test_a_switch_and_values_in_groups() -> None:
    found = Settings()
    groups = [{"group": "a", "options": [{"value": "m1", "name": "One"}]}]
    found.take({"configOptions": [
        {"id": "fast", "type": "boolean", "currentValue": False},
        {"id": "m", "category": "model", "type": "select", "currentValue": "m1", "options": groups},
    ]})  # fmt: skip

    assert found.request("fast", "true")[1] == {"configId": "fast", "type": "boolean", "value": True}
    assert found.request("model", "One")[1] == {"configId": "m", "value": "m1"}


@pytest.mark.parametrize(
    "said",
    [
        {"modes": 3},
        {"modes": {"availableModes": [3, {"id": []}], "currentModeId": {}}},
        {"configOptions": [None, {"id": 3}, {"id": "x", "options": {"a": 1}, "currentValue": []}]},
        {"configOptions": [{"id": "mode", "category": ["mode"], "options": [{"value": {}}, {"options": 3}]}]},
        {"currentModeId": 7, "models": [1]},
    ],
)
def test_no_answer_is_an_exception(said: dict[str, Any]) -> None:
    found = Settings()
    found.take(said)

    with pytest.raises(NotOfferedError):
        found.request("mode", "yolo")
