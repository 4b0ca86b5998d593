"""A flag for every field of ContainerConfig, made from the class itself."""

from __future__ import annotations

import ast
import inspect
import typing
from collections.abc import Mapping
from typing import Annotated, Any

import attr
import attrs
from cyclopts import Group, Parameter

from container_runner.config import ContainerConfig
from container_runner.errors import ConfigError

_BOX = Group("Box", sort_key=3, help="docs/reference/configuration.md has more on each.")


def field_help(kind: type[Any]) -> dict[str, str]:
    """The docstrings under the fields of a class, by the fields' names."""
    (definition,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(definition, ast.ClassDef)  # noqa: S101  it is a class's source
    found: dict[str, str] = {}
    for field, text in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            found[ast.unparse(field.target)] = " ".join(ast.literal_eval(text.value).split())
    return found


def _make_flags() -> type[Any]:
    hints = typing.get_type_hints(ContainerConfig)
    help_ = field_help(ContainerConfig)
    members: dict[str, Any] = {}
    for field in attrs.fields(ContainerConfig):
        hint, default = hints[field.name], None
        parameter = Parameter(group=_BOX, help=_first_sentence(help_[field.name]))
        kind: Any = bool | None if hint is bool else str | None
        if typing.get_origin(hint) in (tuple, Mapping):
            kind, default = tuple[str, ...], ()
            parameter = attrs.evolve(parameter, negative=(), show_default=False, alias=_singular(field.name))
        members[field.name] = attr.ib(default=default, type=Annotated[kind, parameter])
    return Parameter(name="*")(attrs.make_class("ConfigFlags", members, frozen=True, kw_only=True))


def _singular(name: str) -> tuple[str, ...]:
    """--volume for --volumes, because it is given once for each."""
    return (f"--{name.removesuffix('s').replace('_', '-')}",) if name.endswith("s") and name != "tmpfs" else ()


def _first_sentence(text: str) -> str:
    head, dot, _ = " ".join(text.split()).partition(". ")
    return head + dot.strip()


ConfigFlags: Any = _make_flags()
"""An attrs class with the fields of `ContainerConfig`, None or () where no flag was given."""


def config_from_flags(flags: Any) -> ContainerConfig:
    """The configuration that the flags give.

    Raises:
        ConfigError: a value that is refused, named as the flag that it came from.
    """
    given = {} if flags is None else attrs.asdict(flags, recurse=False)
    mapping: dict[str, Any] = {name: value for name, value in given.items() if value is not None and value != ()}
    hints = typing.get_type_hints(ContainerConfig)
    for name, value in mapping.items():
        hint = hints[name]
        if typing.get_origin(hint) is Mapping:
            mapping[name] = dict(_pair(name, word) for word in value)
        elif typing.get_origin(hint) is tuple:
            mapping[name] = list(value)
        else:
            mapping[name] = _number(value, hint)
    if "image" not in mapping:
        raise ConfigError("--image", None, "the name of an image, such as --image=my/claude")
    try:
        return ContainerConfig(**mapping)
    except ConfigError as error:
        raise error.with_source("command line") from None


def _pair(name: str, word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    if not equals:
        raise ConfigError(f"--{name}", key, f"NAME=VALUE, as in --{name} NAME=VALUE")
    return key, value


def _number(value: Any, hint: Any) -> Any:
    """A word as the number that the field wants, where it is one. What is none goes on to be refused."""
    kinds = typing.get_args(hint) or (hint,)
    for kind in (int, float):
        if kind in kinds and isinstance(value, str):
            try:
                return kind(value)
            except ValueError:
                continue
    return value
