"""How the value of one field is read."""

from __future__ import annotations

import pytest

from container_runner.config.fields import from_text, parse
from container_runner.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("timeout", "-1", "0 for no limit"),
        ("idle_timeout", "x", "0 for no limit"),
        ("result_timeout", "-0.5", "0 for no limit"),
        ("line_limit", "5", "a number of bytes from 1024"),
        ("max_turns", "0", "a whole number from 1"),
    ],
)
def test_a_refusal_speaks_the_language_of_flags_and_files(name: str, value: str, allowed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(name, from_text(name, value), "--flag")

    assert allowed in caught.value.allowed
    assert "None" not in caught.value.allowed
