"""What a file says becomes a value, or is refused with the path to it and what is allowed there."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import attrs
import pytest

from container_runner.config.converter import structured, unstructured
from container_runner.config.laws import whole
from container_runner.config.values import Mount
from container_runner.errors import ConfigError


@attrs.frozen
class Part:
    size: int = attrs.field(validator=whole(1, 9))


@attrs.frozen
class Thing:
    name: str
    ratio: float = 1.0
    is_new: bool = False
    count: int | None = None
    kind: Literal["a", "b"] = "a"
    place: Path | None = None
    made: dt.datetime | None = None
    parts: tuple[Part, ...] = ()
    mounts: tuple[Mount, ...] = ()
    tables: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)


def test_every_kind_of_value_comes_out_as_its_type_says() -> None:
    made = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
    given = {
        "name": "x", "ratio": 2, "is_new": True, "count": 3, "kind": "b", "place": "/p", "made": "2026-01-02T03:04:05",
        "parts": [{"size": 1}], "mounts": ["/a:/b:ro", {"source": "/c", "target": "/d"}], "tables": {"t": {"k": [1]}},
    }  # fmt: skip

    found = structured(Thing, given)

    mounts = (Mount("/a", "/b", read_only=True), Mount("/c", "/d"))
    assert found == Thing("x", 2, True, 3, "b", Path("/p"), made, (Part(1),), mounts, {"t": {"k": [1]}})
    assert unstructured(found)["made"] == "2026-01-02T03:04:05.000Z"
    assert unstructured(found)["parts"] == [{"size": 1}]


@pytest.mark.parametrize(
    ("given", "field", "allowed"),
    [
        ({}, "name", "required"),
        ([], "", "a table"),
        ({"nmae": "x"}, "nmae", "perhaps name"),
        ({"name": 5}, "name", "a string"),
        ({"name": "x", "ratio": "2"}, "ratio", "a number"),
        ({"name": "x", "ratio": True}, "ratio", "a number"),
        ({"name": "x", "is_new": 1}, "is_new", "true or false"),
        ({"name": "x", "count": 1.5}, "count", "a whole number"),
        ({"name": "x", "count": False}, "count", "a whole number"),
        ({"name": "x", "kind": "c"}, "kind", "a or b"),
        ({"name": "x", "place": 1}, "place", "a string"),
        ({"name": "x", "made": "yesterday"}, "made", "ISO 8601"),
        ({"name": "x", "parts": "12"}, "parts", "a list"),
        ({"name": "x", "parts": [{"size": 1}, {"size": 10}]}, "parts[1].size", "a whole number from 1 to 9"),
        ({"name": "x", "parts": [{"size": 1, "zise": 1}]}, "parts[0].zise", "the keys are size"),
        ({"name": "x", "mounts": [7]}, "mounts[0]", "host:container"),
        ({"name": "x", "mounts": ["/a"]}, "mounts[0]", "host:container"),
        ({"name": "x", "tables": {"t": 1}}, "tables.t", "a table"),
        ({"name": "x", "tables": {"t\n": 1}}, "tables.a key", "a table"),
    ],
)  # fmt: skip
def test_what_is_refused_is_named_by_its_path(given: Any, field: str, allowed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        structured(Thing, given, source="a file")

    assert (caught.value.field, caught.value.source) == (field, "a file")
    assert allowed in caught.value.allowed


def test_strangers_are_left_out_where_they_may_be() -> None:
    assert structured(Thing, {"name": "x", "api_key": "hunter2"}, strangers=True) == Thing("x")
    with pytest.raises(ConfigError) as caught:
        structured(Thing, {"name": "x", "api_key": "hunter2"})
    assert "hunter2" not in str(caught.value)
    assert caught.value.__context__ is None or "hunter2" not in str(caught.value.__context__)
