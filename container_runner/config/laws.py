"""The laws that a field keeps: tests for values, and the attrs validators that refuse what fails them.

A law is a test and the words for what passes it, so that every refusal is a `ConfigError` that names the
field, the value, and what would have been accepted.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Any, NoReturn

import attrs

from container_runner.errors import ConfigError


class _NotShown:
    """Stands in an error for a value that may be a secret, or that can not be shown."""

    def __repr__(self) -> str:
        return "(not shown)"


NOT_SHOWN = _NotShown()


def refuse(
    field: str, value: object, allowed: str, *, source: str | None = None, told: str | None = None, at: str = ""
) -> NoReturn:
    """Raise the `ConfigError` of these facts. What led to it is left out: it may hold what is not shown."""
    try:
        repr(value)
    except Exception:  # an int of 5,000 digits, a list 5,000 deep
        value = NOT_SHOWN
    raise ConfigError(field, value, allowed, source=source, told=told, at=at) from None


Test = Callable[[Any], object]
Validator = Callable[[Any, "attrs.Attribute[Any]", Any], None]


def law(allowed: str, test: Test) -> Validator:
    """A validator that refuses what does not pass *test*."""

    def validate(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if not test(value):
            refuse(attribute.name, value, allowed)

    return validate


def each(allowed: str, test: Test, show: Callable[[object], object] = lambda item: item) -> Validator:
    """A validator that refuses a tuple's item that does not pass *test*, showing `show(item)` of it."""

    def validate(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if not isinstance(value, tuple):
            refuse(attribute.name, show(value), f"a list, each item {allowed}")
        for index, item in enumerate(value):
            if not test(item):
                refuse(f"{attribute.name}[{index}]", show(item), allowed)

    return validate


def pattern(regex: str, *, longest: int = 4_096) -> Test:
    """A test for strings that match *regex* from end to end.

    It says [0-9], because \\d also matches the digits of other scripts, and it has no `$`, which also
    matches before a trailing newline.
    """
    compiled = re.compile(regex)
    return lambda value: isinstance(value, str) and len(value) <= longest and compiled.fullmatch(value)


def whole(low: int, high: int) -> Validator:
    """A validator for whole numbers from *low* to *high*."""

    def validate(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if type(value) is not int or not low <= value <= high:  # a bool is not a number
            quoted = ", without quotes" if isinstance(value, str) and value.isdecimal() else ""
            refuse(attribute.name, value, f"a whole number from {low} to {high}{quoted}")

    return validate


def one_of(*choices: str) -> Validator:
    return law(" or ".join(choices), lambda value: isinstance(value, str) and value in choices)


boolean = law("true or false", lambda value: isinstance(value, bool))
optional = attrs.validators.optional

# Lone surrogates can not be given to a process, and the engines garble bytes that are not UTF-8.
is_text = pattern(r"[^\0\ud800-\udfff]*", longest=2**30)
is_line = pattern(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
is_variable = pattern(r"[A-Za-z_][A-Za-z0-9_]*")
is_name = pattern(r"[A-Za-z0-9][A-Za-z0-9_.-]*", longest=253)

_is_path = pattern(r"[^\x00-\x1f\x7f/][^\x00-\x1f\x7f]*")


def is_place(value: Any) -> bool:
    """Whether *value* is a path in a folder, and neither the folder itself nor in its `.git`."""
    parts = value.rstrip("/").split("/") if _is_path(value) and is_text(value) else [""]
    return not {"", ".", "..", ".git"} & {part.lower() for part in parts}


def is_address(value: object) -> bool:
    """Whether *value* is an IPv4 or IPv6 address."""
    if not isinstance(value, str) or "%" in value:  # ip_address takes numbers too, and any text after a %
        return False
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True


_taken_flag = re.compile(
    r"--(?:attach|cidfile|detach|entrypoint|help|init|interactive|name|pid|replace|rm|tty|user|workdir)(?:=|\Z)"
    r"|-[Pq]*[adituw]"  # the engines take -Pit as well as -it
)

_relative_path = re.compile(r"(?:[=,:]|\A-[A-Za-z])\.{1,2}/")
"""The engine is called in a folder of its own (`Dialect.run_in`), so a path would not be where it seems to be."""


def is_extra_arg(value: Any) -> bool:
    if not is_text(value) or not value.startswith("-") or not value.strip("-"):
        return False
    return not _taken_flag.match(value) and not _relative_path.search(value)


def flag_only(value: object) -> object:
    """What may be shown of an argument: what follows `--env=NAME=` or stands alone may be a secret."""
    return value.partition("=")[0] if isinstance(value, str) and value.startswith("-") else NOT_SHOWN


def is_ignore_pattern(value: Any) -> bool:
    return bool(is_line(value)) and value == value.strip() and not value.startswith(("!", "#"))


def is_history(value: object) -> bool:
    return value == "all" or (type(value) is int and 0 <= value <= 2**31 - 1)
