"""The caller's functions as tools of the agent. They run here, and not in the container."""

from __future__ import annotations

import inspect
import logging
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Final, get_args, get_origin, get_type_hints, overload

import anyio
import attrs
import msgspec
import orjson

from container_runner.errors import ConfigError
from container_runner.session.asks import Image, ToolAnswer, ToolCall
from container_runner.session.threads import Threads, TooManyThreadsError

_log = logging.getLogger(__name__)

_NAME: Final = re.compile("[A-Za-z0-9_-]{1,64}")


class ToolError(Exception):
    """Raised by a tool to tell the model what went wrong.

    Of any other exception the agent hears that there was one, and no more: its text may name what is none of the box's
    business.
    """


@attrs.frozen(kw_only=True)
class Tool:
    """A function that the agent may call. Made by `tool`."""

    name: str
    description: str
    input_schema: Mapping[str, Any]
    """A JSON Schema of an object: the function's parameters."""

    function: Callable[..., object] = attrs.field(repr=False)
    parameters: type[msgspec.Struct] | None = attrs.field(default=None, repr=False)
    """What the input is held against. None: nothing, and the function gets the input as one mapping."""


@attrs.frozen
class Toolbox:
    """The tools of one run, for an agent that finds them behind its gateway."""

    tools: tuple[Tool, ...]
    timeout: float
    """Seconds that a call may take."""

    token: str = attrs.field(factory=lambda: secrets.token_urlsafe(32), repr=False)
    """What the box has to show: this run's alone."""


@overload
def tool(function: Callable[..., object], /) -> Tool: ...
@overload
def tool(*, name: str | None = None, description: str | None = None) -> Callable[[Callable[..., object]], Tool]: ...
def tool(
    function: Callable[..., object] | None = None, /, *, name: str | None = None, description: str | None = None
) -> Tool | Callable[[Callable[..., object]], Tool]:
    """Make a tool of a function, for `ContainerRunner(tools=[...])` or `ContainerRunner.open_session(tools=[...])`.

        @tool
        def add(x: int, y: Annotated[int, "what is added"] = 1) -> int:
            "Add two numbers."
            return x + y

    The annotations of its parameters become the JSON Schema that the agent gets, and what the agent gives is held
    against them. It may be `async`; if not, it runs in a thread. What it returns is told to the model: a text, an
    `Image`, a list of these, or anything that JSON can hold.

    Args:
        name: what the agent calls it. Default: the function's name.
        description: what it is for. Default: the function's docstring.

    Raises:
        ConfigError: a parameter has no annotation or one that JSON Schema can not say, or the name is none.
    """
    if function is None:
        return partial(_made, name=name, description=description)
    return _made(function, name=name, description=description)


def _made(function: Callable[..., object], *, name: str | None, description: str | None) -> Tool:
    name = getattr(function, "__name__", "") if name is None else name
    if not _NAME.fullmatch(name):
        raise ConfigError("tool.name", name, "1 to 64 letters, digits, '_' and '-'")
    try:
        parameters = _parameters(function, name)
        schema = _schema(parameters)
    except (TypeError, NameError) as error:
        allowed = "a function whose parameters have names, and annotations that JSON Schema can say"
        raise ConfigError(f"tool.{name}", str(error), allowed) from None
    told = inspect.getdoc(function) or "" if description is None else description
    return Tool(name=name, description=told, input_schema=schema, function=function, parameters=parameters)


def _parameters(function: Callable[..., object], name: str) -> type[msgspec.Struct]:
    """A struct with a field for each parameter.

    Raises:
        TypeError, NameError: what can not be told.
    """
    hints = get_type_hints(function, include_extras=True)
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"{parameter}: only parameters that have a name can be given")
        if parameter.name not in hints:
            raise TypeError(f"{parameter.name} has no annotation")
        kind = _described(hints[parameter.name])
        default = parameter.default
        if default is inspect.Parameter.empty:
            fields.append((parameter.name, kind))
        else:
            fields.append((parameter.name, kind, default))
    return msgspec.defstruct(name.replace("-", "_"), fields, kw_only=True, forbid_unknown_fields=True)


def _described(kind: Any) -> Any:
    """`Annotated[int, "what it is"]` as msgspec has it."""
    if get_origin(kind) is not Annotated:
        return kind
    inner, *notes = get_args(kind)
    told = [msgspec.Meta(description=note) if isinstance(note, str) else note for note in notes]
    return Annotated[(inner, *told)]


def _schema(parameters: type[msgspec.Struct]) -> dict[str, Any]:
    _, found = msgspec.json.schema_components([parameters], ref_template="#/$defs/{name}")
    schema = found.pop(parameters.__name__)
    schema.pop("title", None)
    return {**schema, "$defs": found} if found else schema


def check_tools(tools: object) -> tuple[Tool, ...]:
    """What is given as tools.

    Raises:
        ConfigError: something else, or two of one name.
    """
    found = tuple(tools) if isinstance(tools, Iterable) else (tools,)
    if strangers := [one for one in found if not isinstance(one, Tool)]:
        raise ConfigError("tools", strangers[0], "functions with @container_runner.tool in front of them")
    names = [one.name for one in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError("tools", ", ".join(twice), "names that no two of them have")
    return found


async def call_tool(tools: Sequence[Tool], call: ToolCall, timeout: float, threads: Threads) -> ToolAnswer:
    """What a tool gives back within *timeout* seconds, called in one of *threads* if it is not async.

    No exception leaves it; what was raised is logged.
    """
    found = next((tool for tool in tools if tool.name == call.name), None)
    if found is None:
        return ToolAnswer(content=(f"There is no tool {call.name[:64]!r}.",), is_error=True)
    with anyio.move_on_after(timeout):
        return await _call(found, call, threads)
    return ToolAnswer(content=("The tool took too long.",), is_error=True)


async def _call(found: Tool, call: ToolCall, threads: Threads) -> ToolAnswer:
    try:
        given = _given(found, call.input)
        if inspect.iscoroutinefunction(found.function):
            value = await found.function(**given)
        else:
            value = await threads.run(partial(found.function, **given))
        return _answered(value)
    except TooManyThreadsError:
        return ToolAnswer(content=("Too many calls are at work.",), is_error=True)
    except (ToolError, msgspec.ValidationError) as error:
        return ToolAnswer(content=(_text(str(error)),), is_error=True)
    except Exception as error:
        _log.warning("the tool %s has failed", found.name, exc_info=True)
        return ToolAnswer(content=(f"The tool has failed ({type(error).__name__}).",), is_error=True)


def _given(tool: Tool, given: Mapping[str, Any]) -> dict[str, Any]:
    if tool.parameters is None:
        return {"input": given}
    values = msgspec.convert(dict(given), tool.parameters)
    return {name: getattr(values, name) for name in tool.parameters.__struct_fields__}


def _answered(value: object) -> ToolAnswer:
    if isinstance(value, ToolAnswer):
        return value
    parts = (
        list(value) if isinstance(value, list | tuple) and all(isinstance(v, str | Image) for v in value) else [value]
    )
    return ToolAnswer(content=tuple(map(_part, parts)))


def _part(value: object) -> str | Image:
    if isinstance(value, Image):
        return value
    return _text(value if isinstance(value, str) else orjson.dumps(value).decode())


def _text(value: str) -> str:
    """Text that UTF-8 can hold."""
    return value.encode("utf-8", "replace").decode()
