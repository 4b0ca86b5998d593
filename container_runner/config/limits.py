"""How much is kept of what runs leave to read."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from container_runner.config.laws import refuse
from container_runner.quantities import DAY, GIB, MIB, parse_duration, parse_size


def _limit(field: str, value: object, parse: Callable[[str, str], float]) -> float:
    if isinstance(value, str):
        return parse(value, field)
    if isinstance(value, bool) or not (isinstance(value, int | float) and value > 0):
        kind = "a time such as 12h or 30d" if parse is parse_duration else "a size such as 256m or 1g"
        refuse(field, value, f"{kind}, or a number over 0")
    return value


def _max_age(value: float | str) -> float:
    return _limit("records_max_age", value, parse_duration)


def _max_total(value: float | str) -> float:
    return _limit("records_max_total", value, parse_size)


def _max_run(value: float | str) -> float:
    return _limit("records_max_run", value, parse_size)


@attrs.frozen(kw_only=True)
class RecordLimits:
    """How much is kept of what runs leave to read. It is looked after as runs start and end.

    Attributes:
        max_age: The time after which a run's records are removed: "30d", or seconds; `inf` keeps them.
        max_total: How much the records of a state folder may take in all: "1g", or bytes. The oldest runs go first.
        max_run: The size at which a transcript ends: "256m", or bytes; `max_total` ends one too. The run goes on, and
            its summary says that the transcript is incomplete.

    Raises:
        ConfigError: a value that is no number over 0, or no text that stands for one.
    """

    max_age: float = attrs.field(default=30.0 * DAY, converter=_max_age)
    max_total: float = attrs.field(default=GIB, converter=_max_total)
    max_run: float = attrs.field(default=256 * MIB, converter=_max_run)
