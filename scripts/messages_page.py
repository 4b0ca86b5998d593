"""docs/reference/messages.md, from the classes of messages and blocks."""

from __future__ import annotations

import ast
import inspect
import re
import typing
from collections.abc import Iterator
from typing import Any

import attrs

from container_runner.stream import lines, messages
from container_runner.stream.lines import OversizedLine
from container_runner.stream.messages import (
    AgentMessage,
    AssistantMessage,
    ErrorMessage,
    NoticeMessage,
    OutputLine,
    RateLimitEvent,
    ResultMessage,
    StreamEvent,
    SystemMessage,
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

SECTIONS: dict[str, tuple[str, tuple[type, ...]]] = {
    "What the agent says": (
        "A message of the agent is a view of its line.\n"
        "`raw` is the decoded line, and the attributes read from it at the place that the third column names.\n"
        'They never raise: what is missing or of another type gives the default, which is `""`, `0`, `()` or `{}`,'
        " or `None` where the type has it.",
        (
            AgentMessage,
            SystemMessage,
            AssistantMessage,
            UserMessage,
            ResultMessage,
            StreamEvent,
            RateLimitEvent,
            ToolProgressMessage,
            NoticeMessage,
            UnknownMessage,
        ),
    ),
    "What we say": (
        "These have no `raw`, but `type`, `to_dict()` and `to_json()` too.",
        (OutputLine, OversizedLine, ErrorMessage),
    ),
    "Blocks": (
        "What `AssistantMessage.content` and `UserMessage.content` are made of.",
        (TextBlock, ThinkingBlock, ToolUseBlock, ToolResultBlock, UnknownBlock),
    ),
    "Other values": ("In `container_runner.stream.messages`, as all of these are.", (Usage,)),
}

HEAD = """\
<!-- Written by `python -m scripts.reference` from container_runner/stream/messages.py: change that. -->

# Messages

`ContainerRunner.execute` yields values of these classes, and so does a runtime on the host.
The agent's own are called what claude-agent-sdk calls them, and ours stand beside them.
Nothing that the agent prints is dropped: what is no JSON is an `OutputLine`, and a type that we do not know is an
`UnknownMessage`.

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

`container-runner run --json` prints `to_json()` of each, one on a line.
`parse_line(bytes)` makes a message of a line that you have kept; it returns `None` for a blank one.
"""


def page() -> str:
    parts = [HEAD.strip()]
    for heading, (text, kinds) in SECTIONS.items():
        parts += [f"## {heading}", *([text] if text else [])]
        for kind in kinds:
            parts += section(kind)
    return "\n\n".join(parts) + "\n"


def section(kind: type) -> Iterator[str]:
    """A class: its docstring, and a table with a row for each attribute of its own."""
    yield f"### `{kind.__name__}`"
    yield docstring(kind)
    known = typing.cast("Any", kind).__dict__.get("type")
    if isinstance(known, str):
        yield f'Its `type` is `"{known}"`.'
    if notices := sorted(name for name, view in messages._CLASSES.items() if view is kind is NoticeMessage):  # noqa: SLF001  the package's own page
        yield f"The types are {', '.join(f'`{name}`' for name in notices)}."
    rows = list(attributes(kind))
    if rows:
        has_paths = any(path for _, _, path, _ in rows)
        head = ["attribute", "type", "on the line", "what it is"] if has_paths else ["attribute", "type", "what it is"]
        table = [head, ["---"] * len(head)]
        for name, type_, path, text in rows:
            shown = [f"`{name}`", f"`{type_}`".replace("|", "\\|"), *([f"`{path}`" if path else ""] * has_paths), text]
            table.append(shown)
        yield "\n".join(f"| {' | '.join(row)} |" for row in table)
    if kind.__base__ is AgentMessage:
        yield "And those of `AgentMessage`."


def attributes(kind: type) -> Iterator[tuple[str, str, str, str]]:
    """Name, type, path on the line ("" if it is read from none) and description of each attribute and method."""
    docs = described(kind)
    for field in attrs.fields(typing.cast("type[attrs.AttrsInstance]", kind)):
        if not field.inherited:
            yield field.name, readable(kind.__annotations__[field.name]), "", docs.get(field.name, "")
    for name, value in vars(kind).items():
        if name.startswith("_"):
            continue
        if isinstance(value, messages._Read):  # noqa: SLF001  the package's own page
            returned = inspect.signature(value._convert).return_annotation  # noqa: SLF001  the package's own page
            yield name, readable(returned), ".".join(value.path), docs.get(name, "")
        elif isinstance(value, property) and value.fget is not None:
            yield name, readable(inspect.signature(value.fget).return_annotation), "", docstring(value)
        elif inspect.isfunction(value):
            yield f"{name}()", readable(inspect.signature(value).return_annotation), "", docstring(value)


def docstring(value: object) -> str:
    return " ".join((inspect.getdoc(value) or "").split())


def readable(annotation: object) -> str:
    """An annotation as it is written, without the names of modules."""
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    return re.sub(r"\b[a-z_]+\.", "", text)


def described(kind: type) -> dict[str, str]:
    """The docstrings under the attributes of a class."""
    module = lines if kind is OversizedLine else messages
    tree = ast.parse(inspect.getsource(module))
    (definition,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == kind.__name__)
    found = {}
    for node, text in zip(definition.body, definition.body[1:], strict=False):
        is_text = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
        if isinstance(node, ast.Assign | ast.AnnAssign) and is_text:
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            found[ast.unparse(target)] = " ".join(ast.literal_eval(typing.cast("ast.Expr", text).value).split())
    return found
