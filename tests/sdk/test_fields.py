"""No field of `ClaudeAgentOptions` is ignored, also not one that a newer SDK will have."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from claude_agent_sdk import ClaudeAgentOptions, InMemorySessionStore

from container_runner.errors import ConfigError
from container_runner.sdk.fields import BY_THE_SDK, FLAGS, REFUSED, SURROUNDINGS, check_fields

NAMES = {field.name for field in dataclasses.fields(ClaudeAgentOptions)}


def test_each_field_of_the_installed_sdk_has_one_place() -> None:
    places = [FLAGS, SURROUNDINGS, BY_THE_SDK, REFUSED.keys()]

    assert sum(map(len, places)) == len(NAMES)
    assert set().union(*places) == NAMES


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cli_path", Path("/usr/bin/claude")),
        ("user", "nobody"),
        ("sandbox", {"enabled": True}),
        ("session_store", InMemorySessionStore()),
    ],
)
def test_what_can_not_be_carried_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name) as caught:
        check_fields(ClaudeAgentOptions(**{name: value}))

    assert caught.value.field == name
    assert "leave it out" in str(caught.value)


def test_those_are_all_that_are_refused() -> None:
    assert REFUSED.keys() == {"cli_path", "user", "sandbox", "session_store"}


def test_a_field_that_is_newer_than_we_are_is_refused_once_it_is_set() -> None:
    @dataclasses.dataclass
    class Newer(ClaudeAgentOptions):
        teleport: list[str] = dataclasses.field(default_factory=list)

    check_fields(Newer())
    with pytest.raises(ConfigError, match=r"teleport.* does not know it"):
        check_fields(Newer(teleport=["mars"]))
