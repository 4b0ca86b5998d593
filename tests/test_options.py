"""What may be asked of an agent, and what is refused."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from container_runner.config.container import ContainerConfig
from container_runner.errors import ConfigError
from container_runner.options import ARGUMENT_LIMIT, Agent, ExecuteOptions, PermissionMode, check_argument

AGENT = Agent(name="bot")
LONG = "x" * (ARGUMENT_LIMIT + 1)


@pytest.mark.parametrize("name", ["a", "A1", "my-agent_1.2", "0", "x" * 63])
def test_a_name_that_is_accepted(name: str) -> None:
    assert Agent(name=name).name == name


@pytest.mark.parametrize("name", ["", "-a", ".a", "_a", "a/b", "..", "a b", "ä", "x" * 64, "a\n", "a\0", None, 1, b"a"])
def test_a_name_that_is_refused(name: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        Agent(name=name)
    assert caught.value.field == "agent.name"


TEXT_FIELDS = ["model", "fallback_model", "system_prompt"]
LIST_FIELDS = ["allowed_tools", "disallowed_tools", "tools", "setting_sources", "plugin_dirs", "args"]


@pytest.mark.parametrize("field", TEXT_FIELDS)
@pytest.mark.parametrize("value", ["", "a\0b", "\ud800", LONG, 1, b"x"])
def test_a_text_that_no_process_can_be_given_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ConfigError):
        Agent(name="a", **{field: value})


@pytest.mark.parametrize("field", LIST_FIELDS)
@pytest.mark.parametrize("value", [[""], ["fine", "a\0b"], [LONG], [1], 1, b"x"])
def test_a_list_with_such_a_text_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ConfigError):
        Agent(name="a", **{field: value})


@pytest.mark.parametrize("field", LIST_FIELDS)
def test_a_list_may_be_given_as_one_word_or_any_iterable(field: str) -> None:
    assert getattr(Agent(name="a", **{field: "one"}), field) == ("one",)  # type: ignore[arg-type]  # what the converters take
    assert getattr(Agent(name="a", **{field: iter(["one", "two"])}), field) == ("one", "two")  # type: ignore[arg-type]  # what the converters take


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("workspace", ""),
        ("workspace", 1),
        ("workspace", "a\0b"),
        ("permission_mode", "everything"),
        ("permission_mode", ""),
        ("permission_mode", ["plan"]),
        ("effort", "hard"),
        ("effort", ["low"]),
        ("max_turns", 0),
        ("max_turns", -1),
        ("max_turns", True),
        ("max_turns", 1.5),
        ("max_turns", "1"),
        ("mcp_servers", []),
        ("mcp_servers", {"a": object()}),
        ("mcp_servers", {"a": b"x"}),
    ],
)
def test_an_agents_field_that_is_refused_is_named(field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        Agent(name="a", **{field: value})
    assert caught.value.field == f"agent.{field}"


@pytest.mark.parametrize("mode", [*get_args(PermissionMode), None])
def test_every_permission_mode_is_accepted(mode: PermissionMode | None) -> None:
    assert Agent(name="a", permission_mode=mode).permission_mode == mode


@pytest.mark.parametrize("workspace", ["/a", "relative", "~/x", Path("/a"), None])
def test_a_workspace_is_a_path_or_none(workspace: str | Path | None) -> None:
    assert Agent(name="a", workspace=workspace).workspace == workspace


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((clock, bad) for clock in ("timeout", "idle_timeout", "result_timeout") for bad in (0, -1, True, "5x", 1e9)),
        ("timeout", float("nan")),
        ("timeout", float("inf")),
        ("grace", -1),
        ("grace", 601),
        ("grace", 1.5),
        ("grace", True),
        ("line_limit", 1023),
        ("line_limit", True),
        ("line_limit", 1e6),
        ("resume", "../../etc/passwd"),
        ("resume", ""),
        ("resume", "-x"),
        ("resume", "a" * 129),
        ("session_id", "a b"),
        *(("max_budget_usd", bad) for bad in (0, -1, True, "5", float("nan"), float("inf"))),
        ("json_schema", "{}"),
        ("json_schema", {"type": object()}),
        ("append_system_prompt", ""),
        ("append_system_prompt", LONG),
        ("fork", True),
        ("prompt", None),
        ("prompt", b"bytes"),
        ("prompt", "\ud800"),
    ],
)
def test_an_option_that_is_refused_is_named(field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        ExecuteOptions(**{"prompt": "x", "agent": AGENT, field: value})
    assert caught.value.field == field


def test_a_fork_needs_something_to_fork_from() -> None:
    assert ExecuteOptions(prompt="x", agent=AGENT, resume="abc", fork=True).fork


@given(st.text(st.characters(blacklist_categories=["Cs"])))
def test_every_text_is_a_prompt(prompt: str) -> None:
    assert ExecuteOptions(prompt=prompt, agent=AGENT).prompt == prompt


def test_a_prompt_is_in_no_repr() -> None:
    assert "secret plan" not in repr(ExecuteOptions(prompt="secret plan", agent=AGENT))


def test_options_are_checked_again_when_they_are_changed() -> None:
    options = ExecuteOptions(prompt="x", agent=AGENT)

    assert attrs.evolve(options, timeout=5).timeout == 5
    with pytest.raises(ConfigError):
        attrs.evolve(options, timeout=0)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        options.timeout = 5  # type: ignore[misc]  # what a frozen value refuses


ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.lists(st.text()), st.just(object())
)


@given(st.sampled_from([field.name for field in attrs.fields(Agent)]), ANYTHING)
def test_whatever_an_agent_is_given_is_accepted_or_a_config_error(field: str, value: Any) -> None:
    with contextlib.suppress(ConfigError):
        Agent(**{"name": "a", field: value})


@given(st.sampled_from([field.name for field in attrs.fields(ExecuteOptions)]), ANYTHING)
def test_whatever_the_options_are_given_is_accepted_or_a_config_error(field: str, value: Any) -> None:
    with contextlib.suppress(ConfigError):
        ExecuteOptions(**{"prompt": "x", "agent": AGENT, field: value})


@pytest.mark.parametrize("value", ["x", " ", "\n", "-", "ä", "x" * ARGUMENT_LIMIT])
def test_an_argument_that_a_process_can_be_given(value: str) -> None:
    assert check_argument("field", value) == value


OPTIONS: Any = ExecuteOptions
SOMEBODY: Any = Agent
BOX: Any = ContainerConfig
"""To a type checker these are anything."""


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: OPTIONS("hi", AGENT), "arguments by their names, as ExecuteOptions(prompt=..., agent=...)"),
        (lambda: SOMEBODY("bot"), "arguments by their names, as Agent(name=...)"),
        (lambda: BOX("my/claude"), "arguments by their names, as ContainerConfig(image=...)"),
        (lambda: OPTIONS(prompt="hi"), "all of ExecuteOptions(prompt=..., agent=...)"),
        (lambda: BOX(memory="1g"), "all of ContainerConfig(image=...)"),
        (lambda: OPTIONS(prompt="hi", agent="bot"), 'an Agent, as Agent(name="bot", workspace=".")'),
        (lambda: BOX(image="i", mem_limit=1), "memory (mem_limit is another tool's name for it)"),
        (lambda: BOX.from_mapping({"image": "i", "mem_limit": 1}), "memory (mem_limit is another"),
        (lambda: BOX(image="i", memmory=1), "perhaps memory"),
        (lambda: SOMEBODY(name="a", nosuch=1), "one of name, workspace, add_dirs, model"),
    ],
)
def test_what_is_called_otherwise_is_told_what_to_write(call: Callable[[], object], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        call()

    assert told in caught.value.allowed


@pytest.mark.parametrize("name", ["timeout", "idle_timeout", "result_timeout"])
def test_a_time_may_be_written_as_in_a_file(name: str) -> None:
    assert getattr(OPTIONS(prompt="x", agent=AGENT, **{name: "30m"}), name) == 1800
    assert getattr(OPTIONS(prompt="x", agent=AGENT, **{name: None}), name) is None
    for wrong in ("soon", "31d", "0", "", True):
        with pytest.raises(ConfigError) as caught:
            OPTIONS(prompt="x", agent=AGENT, **{name: wrong})
        assert caught.value.field == name


@pytest.mark.parametrize(
    ("kind", "name", "told"),
    [
        (Agent, "cwd", "Agent has no cwd; write Agent(workspace=...)"),
        (Agent, "resume", "Agent has no resume; write ExecuteOptions(resume=...)"),
        (Agent, "max_turn", "Agent has no max_turn; write Agent(max_turns=...)"),
        (ExecuteOptions, "image", "ExecuteOptions has no image; write ContainerConfig(image=...)"),
        (ExecuteOptions, "xyz", "one of prompt, agent, "),
    ],
)
def test_an_argument_of_another_name_is_told_where_it_goes(kind: Any, name: str, told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        kind(**{name: "x"})
