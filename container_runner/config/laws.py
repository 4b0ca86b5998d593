"""The laws that a field keeps: tests for values, and the attrs validators that refuse what fails them.

A law is a test and the words for what passes it, so that every refusal is a `ConfigError` that names the
field, the value, and what would have been accepted.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NoReturn

import attrs

from container_runner.errors import ConfigError

NOT_SHOWN: Final = "…"
"""Stands in an error for a value that may be a secret, or that can not be shown."""


def refuse(
    field: str, value: object, allowed: str, *, source: str | None = None, told: str | None = None, at: str = ""
) -> NoReturn:
    """Raise the `ConfigError` of these facts. What led to it is left out: it may hold what is not shown."""
    try:
        repr(value)
    except Exception:  # an int of 5,000 digits, a list 5,000 deep
        value = NOT_SHOWN
    raise ConfigError(field, value, allowed, source=source, told=told, at=at) from None


def refuse_unset(field: str, name: str, *, more: str = "") -> NoReturn:
    """Refuse the *name* of a variable that is not set here. What is more likely the value itself is not shown."""
    if len(name) >= LONG_NAME and re.search("[a-z]", name):
        refuse(field, NOT_SHOWN, "the name of a variable that is set here, without its value")
    refuse(field, name, f"a variable that is set here. Type: export {name}=VALUE{more}")


LONG_NAME = 16
"""From how many characters on a name that has small letters may be a token that was given in the place of its name."""

Test = Callable[[Any], object]
Validator = Callable[[Any, "attrs.Attribute[Any]", Any], None]


def law(allowed: str, test: Test, show: Callable[[object], object] = lambda value: value) -> Validator:
    """A validator that refuses what does not pass *test*, showing `show(value)` of it."""

    def validate(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if not test(value):
            refuse(attribute.name, show(value), allowed)

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


def frozen(value: Mapping[str, str]) -> Mapping[str, str]:
    """The same, which nobody can change; a converter for fields."""
    if not isinstance(value, Mapping):
        return value  # the validator refuses it
    return MappingProxyType(dict(value))


def strings(value: Sequence[str]) -> tuple[str, ...]:
    """A converter that takes a list as well; what is none is for `each` to refuse."""
    return tuple(value) if isinstance(value, list) else value  # type: ignore[return-value]  # see above


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


_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
is_image = pattern(
    r"(?:(?:[A-Za-z0-9]+(?:[.-]+[A-Za-z0-9]+)*|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?/)?"  # registry
    rf"{_PART}(?:/{_PART})*"  # name
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?"  # tag
    r"(?:@[A-Za-z][A-Za-z0-9]*(?:[+._-][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,128})?",  # digest
    longest=512,
)


def is_engine(value: Any) -> bool:
    return bool(is_line(value)) and not value.startswith("-") and value == value.strip()


is_gpus = pattern(r"all|[1-9][0-9]{0,2}|device=[A-Za-z0-9_./:-]+(?:,[A-Za-z0-9_./:-]+)*")


def is_cpus(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0.01 <= value <= 10_000


_looks_like_user = pattern(r"[1-9][0-9]{0,9}(?::(?:0|[1-9][0-9]{0,9}))?")
_LARGEST_ID = 2**31 - 1  # the engines refuse more

_looks_like_name = pattern("[a-z_][a-z0-9_-]{0,31}")


def is_user(value: Any) -> bool:
    if not _looks_like_user(value):
        return bool(value == "root")
    return all(int(number) <= _LARGEST_ID for number in value.split(":"))


def user(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """A validator for a user by number, which says of a name where its number is had."""
    if not is_user(value):
        allowed = '"UID" or "UID:GID" with a UID over 0, or "root" if you mean it'
        refuse(
            attribute.name,
            value,
            f"{allowed}; on this machine that is $(id -u {value})" if _looks_like_name(value) else allowed,
        )


_looks_like_ulimit = pattern(
    r"(?:cpu|data|fsize|locks|memlock|msgqueue|nice|nofile|nproc|rss|rtprio|rttime|sigpending|stack)"
    r"=(?:-1|[0-9]{1,18})(?::(?:-1|[0-9]{1,18}))?"
)


def is_ulimit(value: Any) -> bool:
    if not _looks_like_ulimit(value):
        return False
    soft, _, hard = value.partition("=")[2].partition(":")
    return hard in {"", "-1"} or (soft != "-1" and int(soft) <= int(hard))


def is_host_entry(value: Any) -> bool:
    name, _, address = value.partition(":") if isinstance(value, str) else ("", "", "")
    return bool(is_name(name)) and (address == "host-gateway" or is_address(address))


_looks_like_device = pattern(r"/dev/[A-Za-z0-9_.+/-]+(?::/dev/[A-Za-z0-9_.+/-]+(?::[rwm]{1,3})?)?")


def is_device(value: Any) -> bool:
    return bool(_looks_like_device(value)) and ".." not in value


LABEL_PREFIX = "container-runner."
"""The labels that belong to us: they say which containers are ours, and whose."""


def valid_env(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, Mapping):
        refuse(attribute.name, NOT_SHOWN, 'a table of NAME = "value"')
    for name, text in value.items():
        if not is_variable(name):
            shown = name.partition("=")[0] if isinstance(name, str) else name
            refuse(attribute.name, shown, "names of letters, digits and _ that do not start with a digit")
        if not is_text(text):
            refuse(f"{attribute.name}.{name}", NOT_SHOWN, "a string of Unicode text without NUL")


_is_label_key = pattern(r"[A-Za-z0-9_.-]+", longest=255)
_is_label_value = pattern(r"[A-Za-z0-9_.-]*")


def valid_labels(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, Mapping):
        refuse(attribute.name, value, 'a table of key = "value"')
    for key, text in value.items():
        if not _is_label_key(key) or key.startswith(LABEL_PREFIX):
            allowed = f"keys of letters, digits, _ . and -; those that start with {LABEL_PREFIX} are ours"
            refuse(attribute.name, key, allowed)
        if not _is_label_value(text):
            refuse(f"{attribute.name}.{key}", text, "a string of letters, digits, _ . and -")
