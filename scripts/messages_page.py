"""docs/reference/messages.md, from the classes of messages and blocks."""
# ruff: noqa: E501  a row of a table is one line

from __future__ import annotations

import ast
import inspect
import re
import typing
from collections.abc import Iterator
from typing import Any

import msgspec

from container_runner.stream import blocks, decode, messages, own
from container_runner.stream.blocks import (
    ApiMessage,
    McpToolUseBlock,
    RedactedThinkingBlock,
    ServerToolResultBlock,
    ServerToolUseBlock,
)
from container_runner.stream.messages import (
    AgentMessage,
    ApiRetryMessage,
    AssistantMessage,
    ConnectionDenied,
    ConversationResetMessage,
    DeferredToolUse,
    ErrorMessage,
    HookEventMessage,
    NoticeMessage,
    OutputLine,
    RateLimitEvent,
    RateLimitInfo,
    ResultMessage,
    StreamEvent,
    SystemMessage,
    TaskNotificationMessage,
    TaskProgressMessage,
    TaskStartedMessage,
    TaskUpdatedMessage,
    TextBlock,
    ThinkingBlock,
    ToolProgressMessage,
    ToolResultBlock,
    ToolUseBlock,
    UnknownBlock,
    UnknownMessage,
    Usage,
    UserMessage,
)
from container_runner.stream.own import OversizedLine

SECTIONS: dict[str, tuple[str, tuple[type, ...]]] = {
    "What the agent says": (
        "A line is decoded once, into the message that you get.\n"
        'What is missing or of another type gives the default, which is `""`, `0`, `False`, `[]` or `{}`,'
        " or `None` where the type has it.\n"
        "`raw` is the whole line as a dict, decoded when it is first asked for.\n"
        "The third column names the place on the line where that is another.",
        (
            AgentMessage,
            SystemMessage,
            TaskStartedMessage,
            TaskProgressMessage,
            TaskUpdatedMessage,
            TaskNotificationMessage,
            HookEventMessage,
            ApiRetryMessage,
            AssistantMessage,
            UserMessage,
            ResultMessage,
            StreamEvent,
            RateLimitEvent,
            ToolProgressMessage,
            ConversationResetMessage,
            NoticeMessage,
            UnknownMessage,
        ),
    ),
    "What we say": (
        "These have no `raw`, but `type`, `to_dict()` and `to_json()` too.",
        (OutputLine, OversizedLine, ConnectionDenied, ErrorMessage),
    ),
    "Blocks": (
        "What `AssistantMessage.content` and `UserMessage.content` are made of.",
        (
            TextBlock,
            ThinkingBlock,
            RedactedThinkingBlock,
            ToolUseBlock,
            ServerToolUseBlock,
            McpToolUseBlock,
            ToolResultBlock,
            ServerToolResultBlock,
            UnknownBlock,
        ),
    ),
    "Other values": ("", (Usage, ApiMessage, RateLimitInfo, DeferredToolUse)),
}

HEAD = """\
<!-- Written by `python -m scripts.reference` from container_runner/stream/messages.py: change that. -->

# Messages

`ContainerRunner.execute` yields values of these classes, and so does a runtime on the host.
The agent's own are called what claude-agent-sdk calls them, and ours stand beside them.
Nothing that the agent prints is dropped: what is no JSON is an `OutputLine`, and a type that we do not know is an
`UnknownMessage`.
All of them are [msgspec](https://jcristharif.com/msgspec/) Structs that can not be changed.

```python
from container_runner import AssistantMessage, ErrorMessage, ResultMessage, ToolUseBlock, parse_line


def tell(message):
    match message:
        case AssistantMessage(content=blocks):
            for block in blocks:
                if isinstance(block, ToolUseBlock):
                    print("uses", block.name)
            print(message.text)
        case ResultMessage():
            print("ends after", message.num_turns, "turns, cost", message.total_cost_usd)
        case ErrorMessage(kind=kind, message=what, next_step=advice):
            print(kind, what, advice)


tell(parse_line(b'{"type": "assistant", "message": {"content": [{"type": "text", "text": "Hello."}]}}'))
```

`container-runner run --json` prints `to_json()` of each, one on a line, and at the end [what a carried run has changed](../how-to/ci.md#one-run).
`parse_line(bytes)` makes a message of a line that you have kept; it returns `None` for a blank one, and never raises.

For tests, make one with keywords: `AssistantMessage(content=[TextBlock("Hello.")])`.
It has a line too, made from what you gave: `parse_line(message.to_json()) == message`.
Messages are equal if all of their attributes are; those with `data`, if their lines say the same.
They can be pickled, and then keep their line.
"""

BUDGET = f"""\
## How much a line may cost

A line is decoded if it has at most {decode.DEPTH} levels of nesting and about {decode.VALUES:,} values (objects, lists,
texts, numbers).
Any other is an `OutputLine` with all of its bytes, as is one that is no JSON.
Without this limit, 60 MB of `[],[],…` from a hostile agent would fill 3 GB of your machine's memory; with it, a message
costs 40 MB at most, and four times the length of its line for its texts.
Brackets and commas within texts do not count, so a text may be as long as `line_limit` lets it be.
"""

SDK = """\
## What differs from claude-agent-sdk

The classes and attributes that both have are called the same. Where one means something else here:

| there | here | why |
| --- | --- | --- |
| an attribute that the line lacks is `None` | a text is `""`, a count `0`, a list `[]`, `usage` a `Usage` of zeros, unless the type here has `None` | nobody forgets to ask for `None` |
| a line without a field that is required, or with a block that is no object, raises `MessageParseError` | the attribute has its default, and `raw` the rest | one bad line does not end a run |
| a type that it does not know is skipped, and so is such a block | `UnknownMessage`, `UnknownBlock` | nothing is dropped |
| `UserMessage.content` is a `str` or a list | always a list of blocks | one loop reads both |
| `usage` is the line's dict | `Usage`, with attributes, `usage["input_tokens"]` and `usage.get()`; what else the line has is in `raw` | sums need no `or 0` |
| `ResultMessage.is_error` as on the line | True also if the subtype is not "success" | claude writes either alone |
| `ServerToolUseBlock`, `ServerToolResultBlock` stand alone | they are kinds of `ToolUseBlock` and `ToolResultBlock`, and so is `McpToolUseBlock` | one `isinstance` finds all calls |
| `ToolResultBlock.is_error` may be `None` | `False` then | |
| other results of the server's tools (`web_search_tool_result`) are left out | `ServerToolResultBlock` | nothing is dropped |
| `redacted_thinking` is left out | `RedactedThinkingBlock`, a kind of `ThinkingBlock` | |
| `RateLimitInfo.raw` | `event.raw["rate_limit_info"]` | the line is kept once |
| `HookEventMessage.hook_event_name` from one of three keys | from `hook_event`, which claude writes | |
| `MirrorErrorMessage` | a `SystemMessage` | its SDK makes it itself |
| dataclasses: `dataclasses.asdict` | `message.to_dict()`, `msgspec.structs.asdict` | [decision 3](../decisions/0003-messages-are-structs.md) |
| `Agent`'s `tools=[]`, `setting_sources=[]` | the same: none. `None`, the default: claude's own | |
"""


def page() -> str:
    parts = [HEAD.strip()]
    for heading, (text, kinds) in SECTIONS.items():
        parts += [f"## {heading}", *([text] if text else [])]
        for kind in kinds:
            parts += section(kind)
    return "\n\n".join([*parts, BUDGET.strip(), SDK.strip()]) + "\n"


def section(kind: type) -> Iterator[str]:
    """A class: its docstring, and a table with a row for each attribute of its own."""
    yield f"### `{kind.__name__}`"
    yield docstring(kind)
    known = typing.cast("Any", kind).__dict__.get("type") or kind.__struct_config__.tag  # type: ignore[attr-defined]  # a Struct
    if isinstance(known, str):
        subtypes = [f'`"{name}"`' for name, news in messages.NEWS.items() if news is kind]
        yield f'Its `type` is `"{known}"`{", its subtype " * bool(subtypes)}{" or ".join(subtypes)}.'
    if kind is NoticeMessage:
        yield f"The types are {', '.join(f'`{name}`' for name in messages.NOTICES)}."
    rows = list(attributes(kind))
    if rows:
        has_paths = any(path for _, _, path, _ in rows)
        head = ["attribute", "type", "on the line", "what it is"] if has_paths else ["attribute", "type", "what it is"]
        table = [head, ["---"] * len(head)]
        for name, type_, path, text in rows:
            shown = [f"`{name}`", f"`{type_}`".replace("|", "\\|"), *([f"`{path}`" if path else ""] * has_paths), text]
            table.append(shown)
        yield "\n".join(f"| {' | '.join(row)} |" for row in table)
    if issubclass(kind, AgentMessage) and kind is not AgentMessage:
        above = SystemMessage if issubclass(kind, SystemMessage) and kind is not SystemMessage else AgentMessage
        yield f"And those of `{above.__name__}`."


def attributes(kind: type) -> Iterator[tuple[str, str, str, str]]:
    """Name, type, place on the line (if it is another) and description of each attribute and method of its own."""
    inner = {name: f"message.{key}" for name, key in messages.INNER.items()} if hasattr(kind, "content") else {}
    names = {info.name: info.encode_name for info in msgspec.structs.fields(kind)}
    for part in (kind, *(base for base in kind.__mro__[1:] if base.__name__ in PRIVATE)):
        docs = described(part)
        for name, annotation in vars(part).get("__annotations__", {}).items():
            if name in names:
                place = names[name] if names[name] != name else ""
                yield name, readable(annotation), place, docs.get(name, "")
        for name, value in vars(part).items():
            if name.startswith("_") or (part is not kind and name in vars(kind)):
                continue
            if isinstance(value, property) and value.fget is not None:
                type_ = readable(inspect.signature(value.fget).return_annotation)
                yield name, type_, inner.get(name, ""), docstring(value)
            elif inspect.isfunction(value):
                yield f"{name}()", readable(inspect.signature(value).return_annotation), "", docstring(value)


PRIVATE = ("_Open", "_Said", "_TaskMessage", "OwnMessage")
"""Classes that are no part of the page; what they define stands with who inherits it."""


def docstring(value: object) -> str:
    return " ".join((inspect.getdoc(value) or "").split())


def readable(annotation: object) -> str:
    """An annotation as it is written, without the names of modules."""
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    text = text.replace("Count", "int").replace("Number", "float")  # which say what is allowed
    return re.sub(r"\b[a-z_]+\.", "", text)


def described(kind: type) -> dict[str, str]:
    """The docstrings under the attributes of a class."""
    trees = [ast.parse(inspect.getsource(module)) for module in (own, blocks, messages)]
    nodes = [node for tree in trees for node in tree.body]
    (definition,) = (node for node in nodes if isinstance(node, ast.ClassDef) and node.name == kind.__name__)
    found = {}
    for node, text in zip(definition.body, definition.body[1:], strict=False):
        is_text = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
        if isinstance(node, ast.Assign | ast.AnnAssign) and is_text:
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            found[ast.unparse(target)] = " ".join(ast.literal_eval(typing.cast("ast.Expr", text).value).split())
    return found
