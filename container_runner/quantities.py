"""Sizes and times, as people write them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from container_runner.errors import ConfigError

KIB, MIB, GIB = 1024, 1024**2, 1024**3
DAY = 86_400

_QUANTITY = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,9})?) ?([A-Za-z]*)")
_SIZE_UNITS = {"": 1, "b": 1} | {
    letter + ending: KIB**power for power, letter in enumerate("kmgt", 1) for ending in ("", "b", "i", "ib")
}
_DURATION_UNITS = {"": 1} | {
    name: seconds
    for names, seconds in (
        ("s sec secs second seconds", 1),
        ("m min mins minute minutes", 60),
        ("h hr hrs hour hours", 3_600),
        ("d day days", DAY),
    )
    for name in names.split()
}
_LARGEST_SIZE = 2**63 - 1  # what the engines count in
_LONGEST_DURATION = 10_000 * DAY


def _quantity(value: object, units: Mapping[str, int]) -> int | float | None:
    """The number that *value* stands for, or None if it stands for none."""
    if isinstance(value, str) and (match := _QUANTITY.fullmatch(value)):
        number, unit = match.groups()
        if unit.lower() in units:
            return (float(number) if "." in number else int(number)) * units[unit.lower()]
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def parse_size(value: int | str, field: str = "size", *, least: int = 1) -> int:
    """Bytes from "2g", "512m", "1.5 GiB", "1024k" or "2048", in powers of 1024; an int is bytes already.

    Raises:
        ConfigError: naming *field*, if it is not a size, or fewer than *least* bytes.
    """
    size = _quantity(value, _SIZE_UNITS)
    if isinstance(value, float):
        size = None  # a file may say 0.5, and there is no half byte
    if size is None or not least <= size <= _LARGEST_SIZE:
        floor = f"of at least {least // MIB}m" if least >= MIB else "of more than 0"
        raise ConfigError(field, value, f"a size {floor}, such as 512m or 2g")
    return int(size)


def parse_duration(
    value: float | str, field: str = "duration", *, least: float = 0, most: float = _LONGEST_DURATION
) -> float:
    """Seconds from "90s", "30m", "4 hours", "1.5d" or "30"; a number is seconds already.

    Raises:
        ConfigError: naming *field*, if it is not a duration, is 0, or is not within *least* and *most*.
    """
    seconds = _quantity(value, _DURATION_UNITS)
    if seconds is None or not (seconds > 0 and least <= seconds <= most):
        bounds = f"of {least:g} seconds to {most / DAY:g} days" if least else "of more than 0"
        raise ConfigError(field, value, f"a time {bounds}, such as 90s, 30m, 4h or 1d")
    return float(seconds)


def in_seconds(value: float) -> str:
    """A time in words: "1 second", "90 seconds"."""
    return f"{value:g} second{'' if value == 1 else 's'}"


def in_bytes(value: int) -> str:
    """A size in words, in powers of 1024: "512 bytes", "1.5 MiB", "2 GiB"."""
    for name, unit in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if value >= unit:
            return f"{round(value / unit, 1):g} {name}"
    return f"{value} bytes"
