"""A session as one HTML page, which needs no script, no network and no other file.

All that the agent wrote is hostile. It reaches the page in two ways only: escaped as text, or through a Markdown
renderer that is told to pass no HTML, no images, and no links but to http, https and mailto. The page's own policy
then forbids scripts, images, frames, forms and every style but its own.
"""

from __future__ import annotations

import base64
import datetime as dt
import functools
import hashlib
import html
import importlib.resources
import json
import re
import string
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from container_runner.records.edits import Change
from container_runner.records.transcript import (
    Done,
    Failure,
    Item,
    Notice,
    Output,
    Part,
    Prompt,
    Text,
    Thinking,
    ToolCall,
)

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

TEXT_LIMIT: Final = 64 * 1024
"""Characters of one text, result or diff that are shown."""

PAGE_LIMIT: Final = 32 * 1024**2
"""Characters after which the rest of the conversation is left out."""

TIMELINE_LIMIT: Final = 100
"""Tool calls in a timeline."""

OPEN_DIFF: Final = 40
"""Lines of a diff up to which it is unfolded from the start."""

_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f\ud800-\udfff]"
)
"""Characters that are not seen, and could reorder or hide what is."""


def render_page(parts: Sequence[Part], *, agent: str, session_id: str) -> str:
    """The page of a session."""
    template = importlib.resources.files("container_runner.records").joinpath("page.html").read_text("utf-8")
    style = template.partition("<style>")[2].partition("</style>")[0]
    body: list[str] = []
    size = 0
    for piece in _body(parts, agent, session_id):
        size += len(piece)
        if size > PAGE_LIMIT:
            body.append('<p class="notice">The rest is left out: this page is long enough.</p>')
            break
        body.append(piece)
    return string.Template(template).substitute(
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        title=f"{_escape(_headline(parts))} · {_escape(agent)}",
        body="\n".join(body),
    )


def _body(parts: Sequence[Part], agent: str, session_id: str) -> Iterator[str]:
    yield f"<header>{_kicker(parts, agent)}<h1>{_escape(_headline(parts))}</h1></header>"
    yield _facts(parts, session_id)
    numbers: dict[int, str] = {}
    for number, call in enumerate((call for part in parts for call in part.conversation.tools), 1):
        numbers[id(call)] = f"t{number}"
    for number, part in enumerate(parts, 1):
        label = f"Run {number} of {len(parts)}" if len(parts) > 1 else "Conversation"
        yield _timeline(part, numbers, f"Timeline · run {number}" if len(parts) > 1 else "Timeline")
        yield f"<section><h2>{label}</h2>"
        start = next((item.time for item in part.conversation.items if item.time is not None), None)
        for item in part.conversation.items:
            yield _row(item, start, numbers)
        yield "</section>"
    yield _cost(parts)
    yield "<footer>Made by container-runner. What an agent wrote is text here, and can do nothing.</footer>"


def _headline(parts: Sequence[Part]) -> str:
    prompts = (item.text for part in parts for item in part.conversation.items if isinstance(item, Prompt))
    first = next((line.strip() for text in prompts for line in text.splitlines() if line.strip()), "A session")
    return first if len(first) <= 120 else f"{first[:119]}…"


def _kicker(parts: Sequence[Part], agent: str) -> str:
    summary = parts[-1].summary if parts else None
    shown = [f"<span>{_escape(agent)}</span>"]
    if summary is not None:
        shown.append(f'<span class="badge {summary.outcome}">{_escape(summary.kind or summary.outcome)}</span>')
        shown.append(f"<time>{summary.started.astimezone(dt.UTC):%Y-%m-%d %H:%M} UTC</time>")
    return f'<div class="kicker">{"".join(shown)}</div>'


def _facts(parts: Sequence[Part], session_id: str) -> str:
    summaries = [part.summary for part in parts if part.summary is not None]
    results = [part.conversation.result for part in parts]
    durations = [summary.duration for summary in summaries if summary.duration is not None]
    costs = [result.total_cost_usd for result in results if result is not None and result.total_cost_usd is not None]
    turns = sum(result.num_turns for result in results if result is not None)
    tokens = sum(result.usage.total for result in results if result is not None)
    tools = sum(len(part.conversation.tools) for part in parts)
    model = next((part.conversation.model for part in reversed(parts) if part.conversation.model), "")
    big = [
        ("Duration", seconds(sum(durations)) if durations else ""),
        ("Cost", dollars(sum(costs)) if costs else ""),
        ("Turns", f"{turns:,}" if turns else ""),
        ("Tokens", f"{tokens:,}" if tokens else ""),
        ("Tool calls", f"{tools:,}" if tools else ""),
        ("Runs", f"{len(parts)}" if len(parts) > 1 else ""),
    ]
    last = summaries[-1] if summaries else None
    small = [
        ("Session", session_id),
        ("Model", model),
        ("Workspace", "" if last is None else last.workspace or ""),
        ("Image", "" if last is None else last.image or ""),
    ]
    shown = "".join(f"<div><dt>{name}</dt><dd>{_escape(value)}</dd></div>" for name, value in big if value)
    rest = "".join(f'{name}<span class="mono">{_escape(value)}</span>' for name, value in small if value)
    return f'<dl class="facts">{shown}<div class="wide">{rest}</div></dl>'


def _timeline(part: Part, numbers: dict[int, str], label: str) -> str:
    tools = part.conversation.tools
    calls = [(call, call.time, call.seconds) for call in tools if call.time is not None and call.seconds is not None]
    if not calls:
        return ""
    start = min(time for _, time, _ in calls)
    whole = max((time - start).total_seconds() + took for _, time, took in calls) or 1.0
    rows = []
    for call, time, took in calls[:TIMELINE_LIMIT]:
        x = 100 * (time - start).total_seconds() / whole
        width = max(0.4, 100 * took / whole)
        rows.append(
            f'<a href="#{numbers[id(call)]}"><b>{_escape(call.name, 40)}</b>'
            f'<span class="title">{_escape(call.title, 200)}</span>'
            f'<svg aria-hidden="true"><rect class="track" x="0" y="0" width="100%" height="9" rx="4.5"/>'
            f'<rect class="bar{" error" if call.is_error else ""}" x="{min(x, 99.6):.2f}%" y="0" '
            f'width="{min(width, 100 - min(x, 99.6)):.2f}%" height="9" rx="4.5"/></svg>'
            f'<span class="took">{seconds(took)}</span></a>'
        )
    more = len(calls) - TIMELINE_LIMIT
    rest = f'<p class="notice">and {more:,} more calls</p>' if more > 0 else ""
    return f'<section class="panel"><h2>{label}</h2><div class="times">{"".join(rows)}</div>{rest}</section>'


def _row(item: Item, start: dt.datetime | None, numbers: dict[int, str]) -> str:
    at = "" if item.time is None or start is None else _clock((item.time - start).total_seconds())
    return f'<div class="row"><div class="at">{at}</div><div>{_item(item, start, numbers)}</div></div>'


def _item(item: Item, start: dt.datetime | None, numbers: dict[int, str]) -> str:
    match item:
        case Prompt():
            return f'<div class="prompt plain">{_escape(item.text, TEXT_LIMIT)}</div>'
        case Text():
            return f'<div class="say">{_markdown(item.text)}</div>'
        case Thinking():
            words = _escape(item.text, TEXT_LIMIT)
            return f'<details class="thought"><summary>Thought</summary><div class="plain">{words}</div></details>'
        case ToolCall():
            return _tool(item, start, numbers)
        case Output():
            return f'<pre class="output">{_escape(item.text, TEXT_LIMIT)}</pre>'
        case Notice():
            return f'<div class="notice">{_escape(item.text, TEXT_LIMIT)}</div>'
        case Failure():
            said = f"<pre>{_escape(item.stderr, TEXT_LIMIT)}</pre>" if item.stderr.strip() else ""
            words = f"<p><b>{_escape(item.kind, 100)}</b> {_escape(item.message, TEXT_LIMIT)}</p>"
            return f'<div class="failure">{words}{said}<p>{_escape(item.next_step, TEXT_LIMIT)}</p></div>'
        case Done():
            return _done(item)


def _tool(call: ToolCall, start: dt.datetime | None, numbers: dict[int, str]) -> str:
    changes = call.changes
    lines = sum(len(change.lines) for change in changes)
    added, removed = (sum(mark == kind for change in changes for mark, _ in change.lines) for kind in "+-")
    stat = f'<span class="stat"><ins>+{added}</ins> <del>−{removed}</del></span>' if changes else ""  # noqa: RUF001  a minus sign
    took = f'<span class="took">{seconds(call.seconds)}</span>' if call.seconds is not None else ""
    inside = [_diff(changes)] if changes else [_input(call)]
    inside += [_row(item, start, numbers) for item in call.items]
    if call.result is None:
        inside.append('<div class="notice">It has no result.</div>')
    elif call.result.strip() and not (changes and not call.is_error):
        inside.append(f'<div class="label">Result</div><pre>{_escape(call.result, TEXT_LIMIT)}</pre>')
    opened = " open" if (0 < lines <= OPEN_DIFF and not call.is_error) else ""
    return (
        f'<details class="tool{" error" if call.is_error else ""}"{opened}>'
        f'<summary><b>{_escape(call.name, 100)}</b><span class="title">{_escape(call.title, 300)}</span>{stat}{took}'
        f'</summary><div class="inside" id="{numbers.get(id(call), "")}">{"".join(inside)}</div></details>'
    )


def _input(call: ToolCall) -> str:
    shown = []
    for name, value in call.input.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2, default=str)
        shown.append(f'<div class="label">{_escape(name, 100)}</div><pre>{_escape(text, TEXT_LIMIT)}</pre>')
    return "".join(shown[:100])


def _diff(changes: Iterable[Change]) -> str:
    shown: list[str] = []
    size = 0
    for change in changes:
        if change.start is not None:
            shown.append(f'<span class="where">from line {change.start}</span>')
        for mark, line in change.lines:
            kind = {"+": ' class="add"', "-": ' class="cut"', " ": ""}[mark]
            size += len(line)
            if size > TEXT_LIMIT:
                return f'<pre class="diff">{"".join(shown)}<span class="where">… and more</span></pre>'
            shown.append(f"<span{kind}>{mark} {_escape(line)}</span>")
    return f'<pre class="diff">{"".join(shown)}</pre>'


def _done(item: Done) -> str:
    result = item.result
    said = ["Failed" if result.is_error else "Done"]
    said += [f"{result.num_turns:,} turn{'s' * (result.num_turns != 1)}"] if result.num_turns else []
    said += [dollars(result.total_cost_usd)] if result.total_cost_usd is not None else []
    errors = "".join(f'<div class="plain">{_escape(error, TEXT_LIMIT)}</div>' for error in result.errors[:20])
    mark = "✗" if result.is_error else "✓"
    return f'<div class="done{" error" if result.is_error else ""}">{mark} {" · ".join(said)}</div>{errors}'


def _cost(parts: Sequence[Part]) -> str:
    rows = []
    for number, part in enumerate(parts, 1):
        result = part.conversation.result
        for model, used in list((result.model_usage if result is not None else {}).items())[:20]:
            name = f"{model} (run {number})" if len(parts) > 1 else model
            keys = ("inputTokens", "outputTokens", "cacheReadInputTokens", "cacheCreationInputTokens")
            counts = [_number(used, key) for key in keys]
            cells = "".join(f"<td>{int(count):,}</td>" for count in counts)
            rows.append(f"<tr><td>{_escape(name, 200)}</td>{cells}<td>{dollars(_number(used, 'costUSD'))}</td></tr>")
    if not rows:
        return ""
    names = ("Model", "Input", "Output", "Cache read", "Cache write", "Cost")
    head = "".join(f"<th>{name}</th>" for name in names)
    return f'<section class="panel cost"><h2>Cost</h2><table><tr>{head}</tr>{"".join(rows)}</table></section>'


def _number(used: Any, key: str) -> float:
    value = used.get(key) if isinstance(used, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**53:
        return 0.0
    return value


@functools.cache
def _renderer() -> MarkdownIt:
    from markdown_it import MarkdownIt

    renderer = MarkdownIt("commonmark", {"html": False, "maxNesting": 20})
    renderer.enable(["table", "strikethrough"]).disable(["image", "html_block", "html_inline"])
    # The hook that markdown-it has for this is a method to be replaced.
    renderer.validateLink = lambda url: bool(re.match(r"(?:https?://|mailto:)", url, re.IGNORECASE))  # type: ignore[method-assign]  # its own hook for this
    return renderer


def _markdown(text: str) -> str:
    if len(text) > TEXT_LIMIT:  # more would take the renderer more than a moment
        return f'<div class="plain">{_escape(text, TEXT_LIMIT)}</div>'
    renderer = _renderer()
    tokens = renderer.parse(_visible(text))
    for token in tokens:
        for inner in token.children or ():
            if inner.type == "link_open":
                inner.attrs = {
                    "href": str(inner.attrs.get("href", "")),
                    "title": str(inner.attrs.get("href", "")),  # where it really leads
                    "rel": "noopener noreferrer nofollow",
                }
    return str(renderer.renderer.render(tokens, renderer.options, {}))


def _visible(text: str) -> str:
    return _HIDDEN.sub("\N{REPLACEMENT CHARACTER}", text)


def _escape(text: str, limit: int = TEXT_LIMIT) -> str:
    more = len(text) - limit
    text = html.escape(_visible(text[:limit]))
    return f"{text}… ({more:,} more characters)" if more > 0 else text


def seconds(value: float) -> str:
    """A duration for people."""
    if value < 60:
        return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes}m {rest:02}s" if minutes < 60 else f"{minutes // 60}h {minutes % 60:02}m"


def dollars(value: float) -> str:
    """An amount for people."""
    return f"${value:,.2f}" if value >= 1 else f"${value:.4f}"


def _clock(value: float) -> str:
    whole = max(0, int(value))
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
