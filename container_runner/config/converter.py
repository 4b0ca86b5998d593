"""From what TOML and JSON hold to values and back, by one converter: a class says with its types what it is made of."""

from __future__ import annotations

import datetime as dt
import functools
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar

import attrs

from container_runner.config.keys import refuse_key, spelled
from container_runner.config.laws import NOT_SHOWN, refuse
from container_runner.errors import ConfigError

if TYPE_CHECKING:
    import cattrs

_T = TypeVar("_T")


def structured(
    kind: type[_T], given: object, where: str = "", *, strangers: bool = False, source: str | None = None
) -> _T:
    """A *kind*, an attrs class or a type such as tuple[Mount, ...], with the values that a file has for it.

    Args:
        where: the field that *given* is the value of.
        strangers: whether keys that we do not know are left out. Otherwise they are refused.
        source: the file or the flag that it came from.

    Raises:
        ConfigError: a value is refused; `field` is the path to it, as "volumes[0].target".
    """
    import cattrs  # slow to import, and only tables need it

    if strangers and isinstance(given, Mapping):
        given = {name: given[name] for name in attrs.fields_dict(typing.cast("Any", kind)) if name in given}
    try:
        return _converter().structure(given, kind)
    except (ConfigError, cattrs.BaseValidationError) as error:
        _refuse_first(error, where, source)


def parse_toml(data: bytes, source: str) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        ConfigError: it is none.
    """
    import tomllib

    try:
        return tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:  # also a number or a nesting that Python does not take
        what, _, place = str(error).partition(" (at line ")
        at = ":".join(place.removesuffix(")").split(", column "))
        told = f"{what[:1].lower()}{what[1:]}"
        refuse("syntax", str(error), "TOML, see https://toml.io", source=source, at=at, told=told)


def unstructured(value: object) -> Any:
    """What JSON has for a value."""
    return _converter().unstructure(value)


def parse_time(text: str) -> dt.datetime:
    """A moment as JSON has it. One that does not say its zone is in UTC.

    Raises:
        ValueError: it is none.
        TypeError: it is no text.
    """
    moment = dt.datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)


def shown_time(moment: dt.datetime) -> str:
    """A moment in UTC, as JSON has it."""
    return moment.astimezone(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@functools.cache
def _converter() -> cattrs.Converter:
    import cattrs

    converter = cattrs.Converter(forbid_extra_keys=True, prefer_attrib_converters=True)
    # cattrs would make "5" of 5 and True of "no"; here each type takes only what it is.
    converter.register_structure_hook(str, _exactly(str, "a string"))
    converter.register_structure_hook(bool, _exactly(bool, "true or false"))
    converter.register_structure_hook(int, _exactly(int, "a whole number"))
    converter.register_structure_hook(float, _exactly(int | float, "a number"))
    converter.register_structure_hook(Path, lambda value, _: Path(converter.structure(value, str)))
    converter.register_structure_hook(dt.datetime, _moment)
    converter.register_structure_hook(
        bytes, lambda value, _: converter.structure(value, str).encode("utf-8", "surrogateescape")
    )
    converter.register_unstructure_hook(dt.datetime, shown_time)
    converter.register_unstructure_hook(bytes, lambda value: value.decode("utf-8", "backslashreplace"))  # a path

    def table(value: object, kind: Any) -> object:
        if not isinstance(value, Mapping):
            refuse("", NOT_SHOWN, "a table")
        plain: Any = types.GenericAlias(dict, typing.get_args(kind))
        return converter.structure(value, plain)

    def items(value: object, kind: Any) -> object:
        item = typing.get_args(kind)[0]
        if not isinstance(value, list | tuple):
            refuse("", value, f"a list, each item {getattr(item, 'FORMS', 'a table')}")
        plain: Any = types.GenericAlias(list, item)
        return tuple(converter.structure(value, plain))

    def fields(kind: Any) -> Callable[[object, object], object]:
        # A field's own law says more than its type does.
        lawful: Any = {
            field.name: cattrs.override(struct_hook=lambda value, _: value)
            for field in attrs.fields(kind)
            if field.validator
        }
        from_table = cattrs.gen.make_dict_structure_fn(kind, converter, **lawful)
        forms = getattr(kind, "FORMS", None)

        def structure(value: object, _: object) -> object:
            if isinstance(value, kind):
                return value
            if isinstance(value, Mapping):
                return from_table(value, kind)
            if forms is None or not isinstance(value, str):
                refuse("", value if forms else NOT_SHOWN, forms or "a table")
            try:
                return kind.parse(value)
            except ConfigError as error:
                refuse("", NOT_SHOWN if error.value == NOT_SHOWN else value, error.allowed)

        return structure

    for origin, hook in ((Literal, _choice), (Mapping, table), (tuple, items)):
        converter.register_structure_hook_func(_made_of(origin), hook)
    converter.register_structure_hook_factory(attrs.has, fields)
    return converter


def _exactly(types: Any, allowed: str) -> Callable[[object, type], object]:
    def structure(value: object, kind: type) -> object:
        is_one = isinstance(value, types) and isinstance(value, bool) is (kind is bool)
        return value if is_one else refuse("", value, allowed)

    return structure


def _made_of(origin: object) -> Callable[[Any], bool]:
    return lambda kind: typing.get_origin(kind) is origin


def _choice(value: object, kind: Any) -> object:
    choices = typing.get_args(kind)
    return value if value in choices else refuse("", value, " or ".join(choices))


def _moment(value: Any, _: object) -> dt.datetime:
    try:
        return parse_time(value)
    except (TypeError, ValueError):
        refuse("", value, "a moment in ISO 8601")


def _refuse_first(error: BaseException, path: str, source: str | None) -> NoReturn:
    """Raise the first of the refusals that cattrs has gathered, with the path to it, which cattrs has noted."""
    import cattrs
    from cattrs.errors import AttributeValidationNote, IterableValidationNote

    while isinstance(error, cattrs.BaseValidationError):
        error = min(error.exceptions, key=lambda each: not isinstance(each, cattrs.ForbiddenExtraKeysError))
        for note in getattr(error, "__notes__", ()):
            if isinstance(note, AttributeValidationNote):
                path = _below(path, note.name)
            elif isinstance(note, IterableValidationNote):
                path = f"{path}[{note.index}]" if isinstance(note.index, int) else _below(path, spelled(note.index))
    if isinstance(error, cattrs.ForbiddenExtraKeysError):
        known = attrs.fields_dict(typing.cast("Any", error.cl))
        refuse_key(min(error.extra_fields, key=str), known, where=f"{path}." if path else "", source=source)
    if isinstance(error, KeyError):
        refuse(path, None, "a value; this key is required", source=source)
    if isinstance(error, ConfigError):
        raise error.called(_below(path, error.field), source=source) from None
    raise error


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name
