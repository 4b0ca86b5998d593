"""What records may take is a number over 0."""

from __future__ import annotations

from typing import Any

import pytest

from container_runner.config.limits import RecordLimits
from container_runner.errors import ConfigError


@pytest.mark.parametrize("field", ["max_age", "max_total", "max_run"])
@pytest.mark.parametrize("value", [0, -1, True, "lots", "", None, float("nan")])
def test_a_limit_is_a_number_over_0(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"records_{field}"):
        RecordLimits(**{field: value})


def test_a_limit_can_be_text_as_in_a_configuration_file() -> None:
    limits = RecordLimits(max_age="7d", max_total="1.5g", max_run="64m")

    assert limits == RecordLimits(max_age=7 * 86400, max_total=3 * 2**29, max_run=64 * 2**20)
