"""A session as one HTML page, which needs no script, no network and no other file.

All that the agent wrote is hostile. It reaches the page in two ways only: as text, which the template shortens, makes
visible and escapes wherever a value stands in it, or through a Markdown renderer that is told to pass no HTML, no
images, and no links but to http, https and mailto. The page's own policy then forbids scripts, images, frames, forms
and every style but its own.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.resources
import json
import re
from collections.abc import Sequence
from typing import Any, Final

import attrs
from jinja2 import Environment, Template
from markdown_it import MarkdownIt
from markupsafe import Markup

from container_runner.records.figures import clock, cost, duration
from container_runner.records.transcript import Part, Prompt, ToolCall

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
    calls = [call for part in parts for call in part.conversation.tools]
    numbers = {id(call): f"t{number}" for number, call in enumerate(calls, 1)}
    template, style_hash = _template()
    return template.render(
        style_hash=style_hash,
        parts=parts,
        agent=agent,
        headline=_headline(parts),
        facts=_facts(parts),
        session_id=session_id,
        used=_used(parts),
        number=lambda call: numbers.get(id(call), ""),
        budget=_Budget(PAGE_LIMIT),
        OPEN_DIFF=OPEN_DIFF,
        TIMELINE_LIMIT=TIMELINE_LIMIT,
    )


@functools.cache
def _template() -> tuple[Template, str]:
    """The template, and the hash of the one style that its policy allows."""
    source = importlib.resources.files("container_runner.records").joinpath("page.html").read_text("utf-8")
    style = source.partition("<style>")[2].partition("</style>")[0]
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_shown)
    environment.filters |= {
        "cut": _cut, "kind": lambda item: type(item).__name__, "markdown": _markdown, "duration": duration,
        "cost": cost, "clock": clock, "json": _json, "diff": _diff, "timeline": _timeline,
    }  # fmt: skip
    return environment.from_string(source), base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()


def _shown(value: Any) -> Any:
    """What the template makes of each value before it escapes it."""
    return _cut(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _cut(text: str, limit: int = TEXT_LIMIT) -> str:
    more = len(text) - limit
    shown = _HIDDEN.sub("\N{REPLACEMENT CHARACTER}", text[:limit])
    return Markup("{}… ({} more characters)").format(shown, f"{more:,}") if more > 0 else shown


@attrs.define
class _Budget:
    """How many characters of the conversation still have room on the page."""

    left: int

    def take(self, shown: str) -> bool:
        """Whether this has room, too. Where one had none, none of the following has."""
        self.left -= len(shown)
        return self.left >= 0


def _headline(parts: Sequence[Part]) -> str:
    prompts = (item.text for part in parts for item in part.conversation.items if isinstance(item, Prompt))
    first = next((line.strip() for text in prompts for line in text.splitlines() if line.strip()), "A session")
    return first if len(first) <= 120 else f"{first[:119]}…"


def _facts(parts: Sequence[Part]) -> dict[str, str]:
    """The numbers at the top, by what they are called; "" for one that is not known."""
    results = [result for part in parts if (result := part.conversation.result) is not None]
    times = [part.summary.duration for part in parts if part.summary and part.summary.duration is not None]
    costs = [result.total_cost_usd for result in results if result.total_cost_usd is not None]
    counts = {
        "Turns": sum(result.num_turns or 0 for result in results),
        "Tokens": sum(result.usage.total for result in results if result.usage is not None),
        "Tool calls": sum(len(part.conversation.tools) for part in parts),
        "Runs": len(parts) if len(parts) > 1 else 0,
    }
    return {
        "Duration": duration(sum(times)) if times else "",
        "Cost": cost(sum(costs)) if costs else "",
        **{name: f"{count:,}" if count else "" for name, count in counts.items()},
    }


def _timeline(part: Part) -> list[tuple[ToolCall, float, float]]:
    """The tool calls whose times are known, each with where its bar begins and how long it is, in percent."""
    tools = part.conversation.tools
    calls = [(call, call.time, call.seconds) for call in tools if call.time and call.seconds is not None]
    if not calls:
        return []
    start = min(time for _, time, _ in calls)
    whole = max((time - start).total_seconds() + took for _, time, took in calls) or 1.0
    placed = []
    for call, time, took in calls:
        x = min(99.6, 100 * (time - start).total_seconds() / whole)
        placed.append((call, x, min(100 - x, max(0.4, 100 * took / whole))))
    return placed


def _diff(call: ToolCall) -> list[tuple[str, str]]:
    """The lines of a call's changes with their marks, and between them "@" where each begins."""
    shown: list[tuple[str, str]] = []
    size = 0
    for change in call.changes:
        if change.start is not None:
            shown.append(("@", f"from line {change.start}"))
        for mark, line in change.lines:
            size += len(line)
            if size > TEXT_LIMIT:
                return [*shown, ("@", "… and more")]
            shown.append((mark, line))
    return shown


def _used(parts: Sequence[Part]) -> list[tuple[str, list[int], str]]:
    """What each model used in each run: its name, its counts of tokens, and the dollars."""
    rows = []
    for number, part in enumerate(parts, 1):
        result = part.conversation.result
        for model, used in list((result.model_usage if result is not None else {}).items())[:20]:
            keys = ("inputTokens", "outputTokens", "cacheReadInputTokens", "cacheCreationInputTokens")
            name = f"{model} (run {number})" if len(parts) > 1 else model
            rows.append((name, [int(_number(used, key)) for key in keys], cost(_number(used, "costUSD"))))
    return rows


def _number(used: Any, key: str) -> float:
    value = used.get(key) if isinstance(used, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**53:
        return 0.0
    return value


@functools.cache
def _renderer() -> MarkdownIt:
    renderer = MarkdownIt("commonmark", {"html": False, "maxNesting": 20})
    renderer.enable(["table", "strikethrough"]).disable(["image", "html_block", "html_inline"])
    # The hook that markdown-it has for this is a method to be replaced.
    renderer.validateLink = lambda url: bool(re.match(r"(?:https?://|mailto:)", url, re.IGNORECASE))  # type: ignore[method-assign]  # its own hook for this
    return renderer


def _markdown(text: str) -> Markup:
    if len(text) > TEXT_LIMIT:  # more would take the renderer more than a moment
        return Markup('<div class="plain">{}</div>').format(_cut(text))
    renderer = _renderer()
    tokens = renderer.parse(_cut(text))
    for token in tokens:
        for inner in token.children or ():
            if inner.type == "link_open":
                inner.attrs = {
                    "href": str(inner.attrs.get("href", "")),
                    "title": str(inner.attrs.get("href", "")),  # where it really leads
                    "rel": "noopener noreferrer nofollow",
                }
    return Markup(renderer.renderer.render(tokens, renderer.options, {}))  # noqa: S704  it has passed no HTML


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2, default=str)
