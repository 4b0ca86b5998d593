"""A summary is read as it was written, also by a version that knows less, and refused if it is none."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from container_runner.errors import ConfigError
from container_runner.records.summary import RunSummary
from container_runner.stream.messages import Usage

STARTED = dt.datetime(2026, 11, 23, 18, 22, 1, 500_000, dt.UTC)
BARE = {"run_id": "r", "agent": "a", "outcome": "succeeded", "started": "2026-11-23T18:22:01.500Z"}


def test_it_comes_back_as_it_was() -> None:
    usage = Usage(input_tokens=3, output_tokens=5)
    summary = RunSummary(run_id="r", agent="a", outcome="failed", started=STARTED, tokens=usage, cost_usd=0.25)

    told = summary.to_dict()

    assert told["started"] == "2026-11-23T18:22:01.500Z"
    assert {name: count for name, count in told["tokens"].items() if count} == {
        "input_tokens": 3,
        "output_tokens": 5,
        "total": 8,
    }
    assert RunSummary.from_dict(told) == summary


def test_fields_of_the_future_are_left_out() -> None:
    assert RunSummary.from_dict({**BARE, "weather": "fine"}) == RunSummary.from_dict(BARE)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("run_id", 1), ("outcome", "won"), ("started", "yesterday"), ("started", None), ("ended", 5), ("kind", []),
        ("exit_code", "0"), ("turns", 1.5), ("cost_usd", True), ("complete", "yes"), ("tokens", 5), ("image", {}),
    ],
)  # fmt: skip
def test_what_is_none_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        RunSummary.from_dict({**BARE, name: value})

    assert caught.value.field == name


@pytest.mark.parametrize("name", BARE)
def test_what_is_missing_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is missing"):
        RunSummary.from_dict({key: value for key, value in BARE.items() if key != name})
