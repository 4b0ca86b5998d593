"""Runs a runtime of the user's in the container: `python3 -c DRIVER FACTORY [ARGUMENT...]`.

This file is handed over as text, and needs nothing but Python's standard library in there: neither this package, nor
the host's version of Python. On stdin it gets the request as JSON, on stdout it writes each message as a line of JSON,
and the last line on stderr tells why it failed. What the user's code prints goes to stderr, so that it can not be taken
for a message.

Pythons that are too old for it must be able to read it, and say so: no syntax newer than 3.6 is in here.
"""

import sys

if __name__ == "__main__" and sys.path[:1] == [""]:
    del sys.path[0]  # the workspace, where an agent may have put a json.py

import asyncio
import dataclasses
import enum
import importlib
import inspect
import json
import math
import os
import signal
import traceback
from functools import partial
from types import SimpleNamespace
from typing import Any, Callable  # noqa: UP035  as above

OLDEST = (3, 11)

MARK = "container-runner-runtime: "
"""How the last line on stderr begins."""

EXIT_CODES = {"raised": 1, "failed": 1, "too_old": 81, "no_module": 82, "no_attribute": 83, "not_a_runtime": 84}
"""What it exits with, by what went wrong."""

MOST_FRAMES = 30
MOST_TRACEBACK = 6000
"""The bounds of a traceback, in frames and in characters."""

BLOCKS = {
    "TextBlock": "text", "ThinkingBlock": "thinking", "ToolUseBlock": "tool_use", "ToolResultBlock": "tool_result",
    "ServerToolUseBlock": "server_tool_use", "ServerToolResultBlock": "advisor_tool_result",
}  # fmt: skip
MESSAGES = {
    "AssistantMessage": "assistant", "UserMessage": "user", "ResultMessage": "result", "StreamEvent": "stream_event",
    "RateLimitEvent": "rate_limit_event", "ConversationResetMessage": "conversation_reset",
}  # fmt: skip
"""What claude_agent_sdk's classes are called on claude's own lines."""

INNER = {"content": "content", "model": "model", "usage": "usage", "stop_reason": "stop_reason", "message_id": "id"}
RATE_LIMIT = {
    "status": "status", "resets_at": "resetsAt", "rate_limit_type": "rateLimitType", "utilization": "utilization",
}  # fmt: skip


class RefusedError(Exception):
    """What was named can not be run; its argument is one of `EXIT_CODES`."""

    def __init__(self, kind: str, **facts: str) -> None:
        super().__init__(kind)
        self.facts = dict(facts, kind=kind)


def load(name: str, arguments: Any) -> Any:
    """What "package.module:factory" stands for: an object with `execute`, or an awaitable of one."""
    module_name, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise RefusedError("no_module", module=error.name or module_name) from error
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise RefusedError("no_attribute", module=module_name, attribute=part) from None
    if inspect.isasyncgenfunction(found):
        return SimpleNamespace(execute=partial(found, **arguments))
    if inspect.isclass(found) or (callable(found) and not hasattr(found, "execute")):
        return found(**arguments)
    if arguments:
        raise TypeError(name + " is an object, and takes no arguments")
    return found


def request(values: Any) -> Any:
    """The options: `ExecuteOptions`, where the user's code has imported it, and else an object with its attributes."""
    agent = values.pop("agent")
    ours: Any = sys.modules.get("container_runner")
    if ours is None:
        return SimpleNamespace(agent=SimpleNamespace(**agent), **values)
    agent = ours.Agent(**_known(ours.Agent, agent))
    return ours.ExecuteOptions(agent=agent, **_known(ours.ExecuteOptions, values))


def _known(kind: Any, values: Any) -> Any:
    """The values that this version of a class has fields for."""
    names = {field.name for field in kind.__attrs_attrs__}
    return {name: value for name, value in values.items() if name in names}


async def run(runtime: Any, options: Any, write: Callable[[Any], None], is_stopped: Callable[[], bool]) -> Any:
    """Write what `execute` yields; the error message among it, if there is one, is returned."""
    if inspect.isawaitable(runtime):
        runtime = await runtime
    if not callable(getattr(runtime, "execute", None)):
        raise RefusedError("not_a_runtime", found=type(runtime).__name__)
    messages: Any = runtime.execute(options)
    if inspect.isawaitable(messages):
        messages = await messages
    if not hasattr(messages, "__aiter__"):
        raise RefusedError("not_a_runtime", found=type(runtime).__name__, yields=type(messages).__name__)
    iterator, failure = messages.__aiter__(), None
    try:
        async for message in iterator:
            if is_stopped():  # it was cancelled, and goes on
                raise asyncio.CancelledError
            if type(message).__name__ == "ErrorMessage" and hasattr(message, "next_step"):
                failure = message.to_dict()
                continue
            for line in wire(message):
                write(line)
    finally:
        if hasattr(iterator, "aclose"):
            await iterator.aclose()
    return failure


def wire(message: Any) -> Any:
    """The lines that a message becomes, as objects."""
    if isinstance(message, (str, bytes)):
        text = message if isinstance(message, str) else message.decode("utf-8", "replace")
        return [{"type": "output", "text": line} for line in text.removesuffix("\n").split("\n")]
    for kind in type(message).__mro__:
        if kind.__module__.split(".")[0] == "claude_agent_sdk":
            return [_of_sdk(kind.__name__, message)]
    is_table = isinstance(message, dict)
    value = message.to_dict() if callable(getattr(message, "to_dict", None)) and not is_table else message
    value = plain(value)
    if not isinstance(value, dict):
        raise TypeError("execute() yielded " + type(message).__name__ + ", which is no message")
    return [value if is_table or "type" in value else dict(value, type=type(message).__name__)]


def _of_sdk(name: str, message: Any) -> Any:
    values = {key: value for key, value in vars(message).items() if value is not None}
    if isinstance(values.get("data"), dict) and name not in MESSAGES:  # a SystemMessage: the line as it came
        return dict(plain(values["data"]), type="system", subtype=values.get("subtype", ""))
    if isinstance(values.get("content"), list):
        values["content"] = [_block(block) for block in values["content"]]
    if name in ("AssistantMessage", "UserMessage"):
        values["message"] = {theirs: values.pop(ours) for ours, theirs in INNER.items() if ours in values}
    if name == "ResultMessage" and "model_usage" in values:
        values["modelUsage"] = values.pop("model_usage")
    if name == "RateLimitEvent":
        info = message.rate_limit_info
        values["rate_limit_info"] = info.raw or {new: getattr(info, old) for old, new in RATE_LIMIT.items()}
    return dict(plain(values), type=MESSAGES.get(name, name))


def _block(block: Any) -> Any:
    kind = BLOCKS.get(type(block).__name__)
    found = plain({key: value for key, value in vars(block).items() if value is not None}) if kind else plain(block)
    return dict(found, type=kind) if kind else found


def plain(value: Any) -> Any:
    """*value* as what JSON can hold."""
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, type):
        return value.__name__
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if hasattr(value, "__attrs_attrs__"):
        return {field.name: plain(getattr(value, field.name)) for field in value.__attrs_attrs__}
    if hasattr(value, "__struct_fields__"):  # msgspec
        config = value.__struct_config__
        tag = {config.tag_field: config.tag} if config.tag is not None else {}
        return dict(tag, **{name: plain(getattr(value, name)) for name in value.__struct_fields__})
    if callable(getattr(value, "model_dump", None)):  # pydantic
        return plain(value.model_dump(mode="json"))
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def told(error: BaseException) -> str:
    """The traceback of an error, for people: bounded, without this file, and with the names of files as imported."""
    shown = traceback.TracebackException.from_exception(error, limit=-MOST_FRAMES)
    roots = sorted((root.rstrip(os.sep) + os.sep for root in sys.path), key=len, reverse=True)
    left: Any = [shown]
    while left:
        part = left.pop()
        part.stack[:] = [frame for frame in part.stack if frame.filename != _HERE]
        for frame in part.stack:
            root = next((root for root in roots if frame.filename.startswith(root)), "")
            frame.filename = frame.filename[len(root) :]
        left += [
            more for more in (part.__cause__, part.__context__, *(getattr(part, "exceptions", None) or ())) if more
        ]
    text = "".join(shown.format())
    if len(text) > MOST_TRACEBACK:
        text = text[: MOST_TRACEBACK // 4] + "\n…\n" + text[-MOST_TRACEBACK * 3 // 4 :]
    return text


_HERE = globals().get("__file__", "<string>")


def summary(error: BaseException) -> str:
    """An error on one line."""
    return "".join(traceback.format_exception_only(type(error), error)).strip()[:500]


async def serve(name: str, values: Any, write: Callable[[Any], None]) -> Any:
    """Run the runtime until it ends or TERM comes."""
    work: Any = asyncio.current_task()
    signals = []

    def stop(number: int) -> None:
        signals.append(number)
        work.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    sys.path[:0] = values["path"]
    runtime = load(name, values["arguments"])
    return await run(runtime, request(values["options"]), write, lambda: bool(signals))


def main(arguments: Any) -> int:
    """The exit code."""
    facts: Any = {"kind": "too_old", "version": ".".join(map(str, sys.version_info[:3]))}
    if sys.version_info >= OLDEST:
        facts = _main(arguments[0], arguments)
    if facts is None:
        return 0
    if facts["kind"] == "stopped":
        return 128 + signal.SIGTERM
    os.write(2, ("\n" + MARK + json.dumps(facts) + "\n").encode("utf-8", "replace"))
    return EXIT_CODES[facts["kind"]]


def _main(name: str, arguments: Any) -> Any:
    sys.argv[:] = arguments
    values = json.loads(sys.stdin.buffer.read().decode())
    out = os.dup(1)
    os.dup2(2, 1)

    def write(line: Any) -> None:
        left = json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        while left:
            left = left[os.write(out, left) :]

    try:
        failure = asyncio.run(serve(name, values, write))
    except RefusedError as error:
        return error.facts
    except asyncio.CancelledError:
        return {"kind": "stopped"}
    except BaseException as error:
        sys.stderr.flush()
        os.write(2, told(error).encode("utf-8", "replace"))
        return {"kind": "raised", "error": summary(error)}
    return None if failure is None else {"kind": "failed", "error": failure}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
