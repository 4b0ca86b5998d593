"""Times and counts as people read them."""

from __future__ import annotations

import pytest

from container_runner.records.figures import clock, count, duration


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.04, "0.0 s"), (59.9, "59.9 s"), (60, "1:00 min"), (3725, "1:02:05 h")]
)
def test_times_are_short(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(("number", "words"), [(0, "0"), (999, "999"), (12_345, "12.3k"), (1_234_567, "1.2M")])
def test_counts_are_short(number: int, words: str) -> None:
    assert count(number) == words


@pytest.mark.parametrize(("seconds", "words"), [(0.9, "0:00"), (61, "1:01"), (3661, "1:01:01")])
def test_the_clock_does_not_jump(seconds: float, words: str) -> None:
    assert clock(seconds) == words
