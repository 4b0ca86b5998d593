"""The HTML page of a session: all of it is shown, and none of it can do anything."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import re
import time
from html.parser import HTMLParser
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from container_runner.records import page as page_module
from container_runner.records.page import TEXT_LIMIT, render_page
from container_runner.records.summary import RunSummary
from container_runner.records.transcript import Part, converse, parse_record
from tests.hostile import PAYLOADS, everywhere

START = dt.datetime(2026, 11, 23, 18, 0, tzinfo=dt.UTC)
ELEMENTS = {
    "a", "b", "blockquote", "body", "br", "code", "dd", "del", "details", "div", "dl", "dt", "em", "footer", "h1", "h2",
    "h3", "h4", "h5", "h6", "head", "header", "hr", "html", "ins", "li", "main", "meta", "ol", "p", "pre", "rect", "s",
    "section", "span", "strong", "style", "summary", "svg", "table", "tbody", "td", "th", "thead", "time", "title",
    "tr", "ul",
}  # fmt: skip
ATTRIBUTES = {
    "aria-hidden", "charset", "class", "content", "height", "href", "http-equiv", "id", "lang", "name", "open", "rel",
    "rx", "start", "title", "width", "x", "y",
}  # fmt: skip
HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]")


class Reader(HTMLParser):
    """What a page consists of."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.comments: list[str] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in ("meta", "rect", "br", "hr"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)


def entry(message: dict[str, Any], *, at: float = 0, source: str = "agent") -> bytes:
    moment = (START + dt.timedelta(seconds=at)).isoformat()
    return orjson.dumps({"time": moment, "run": "ab" * 16, "agent": "bot", "from": source, "message": message})


def part(*lines: bytes, **facts: Any) -> Part:
    given_ = {"run_id": "ab" * 16, "agent": "bot", "outcome": "succeeded", "started": START, **facts}
    return Part(conversation=converse(map(parse_record, lines)), summary=RunSummary(**given_))


def page(*lines: bytes, **facts: Any) -> str:
    return render_page([part(*lines, **facts)], agent="bot", session_id="s-1")


def says(*blocks: dict[str, Any], at: float = 1, **more: Any) -> bytes:
    message = {"id": "m", "role": "assistant", "model": "claude-x", "content": list(blocks)}
    return entry({"type": "assistant", "message": message, **more}, at=at)


def uses(name: str, input_: dict[str, Any], *, id_: str = "t", at: float = 1, **more: Any) -> bytes:
    return says({"type": "tool_use", "id": id_, "name": name, "input": input_}, at=at, **more)


def gave(text: Any, *, id_: str = "t", at: float = 2, is_error: bool = False, details: Any = None) -> bytes:
    block = {"type": "tool_result", "tool_use_id": id_, "content": text, "is_error": is_error}
    return entry({"type": "user", "message": {"content": [block]}, "tool_use_result": details}, at=at)


def asked(prompt: str) -> bytes:
    return entry({"type": "start", "prompt": prompt}, source="runner")


def assert_harmless(text: str) -> Reader:
    read = Reader(text)
    assert read.open == []
    assert read.comments == []
    assert {tag for tag, _ in read.elements} <= ELEMENTS
    for tag, attributes in read.elements:
        assert set(attributes) <= ATTRIBUTES, tag
        if tag == "a":
            assert re.match(r"#t\d+$|https?://|mailto:", attributes["href"], re.IGNORECASE), attributes
    assert sum(tag == "style" for tag, _ in read.elements) == 1
    assert not HIDDEN.search(text)
    return read


# What is shown


def test_a_session_is_shown_whole() -> None:
    result = {
        "type": "result", "subtype": "success", "is_error": False, "num_turns": 3, "total_cost_usd": 1.5,
        "usage": {"input_tokens": 1000, "output_tokens": 234},
        "modelUsage": {"claude-x": {"inputTokens": 1000, "outputTokens": 234, "costUSD": 1.5}},
    }  # fmt: skip
    shown = page(
        asked("Fix the tests\nplease"),
        says({"type": "thinking", "thinking": "Let me see."}, {"type": "text", "text": "I **will** run `pytest`."}),
        uses("Bash", {"command": "pytest -q", "timeout": 5}, at=2),
        gave("1 failed", at=4.5, is_error=True),
        entry(result, at=6),
        duration=6.25,
        workspace="/home/me/project",
    )

    read = assert_harmless(shown)
    for text in (
        "Fix the tests\nplease", "Let me see.", "pytest -q", "timeout", "1 failed", "6.2 s", "$1.50", "1,234",
        "/home/me/project", "2.5 s", "claude-x", "s-1", "✓ Succeeded · 3 turns · $1.50",
    ):  # fmt: skip
        assert text in read.text, text
    assert "<strong>will</strong>" in shown
    assert "<title>Fix the tests · bot</title>" in shown
    assert shown.count('class="tool error"') == 1


def test_a_tool_call_is_folded_with_its_result() -> None:
    shown = page(uses("Bash", {"command": "ls"}), gave("a.txt"))

    (folded,) = re.findall(r'<details class="tool">.*?</details>', shown, re.DOTALL)
    assert "ls" in folded
    assert "a.txt" in folded


@pytest.mark.parametrize(
    ("name", "input_", "details", "added", "cut"),
    [
        ("Edit", {"file_path": "a.py", "old_string": "x = 1\ny", "new_string": "x = 2\ny"}, None, ["x = 2"], ["x = 1"]),
        ("Write", {"file_path": "a.py", "content": "one\ntwo"}, None, ["one", "two"], []),
        (
            "MultiEdit",
            {"edits": [{"old_string": "a", "new_string": "b"}, {"old_string": "c", "new_string": "d"}]},
            None,
            ["b", "d"],
            ["a", "c"],
        ),
        (
            "Edit",
            {"old_string": "a", "new_string": "b"},
            {"structuredPatch": [{"oldStart": 7, "lines": [" before", "-was", "+is"]}]},
            ["is"],
            ["was"],
        ),
        ("Edit", {"old_string": ["a"], "new_string": 5}, {"structuredPatch": [{"lines": [1, "x"]}, 3]}, [], []),
        ("Write", {"content": "<script>"}, None, ["<script>"], []),
    ],
)
def test_an_edit_is_a_diff(name: str, input_: dict[str, Any], details: Any, added: list[str], cut: list[str]) -> None:
    shown = page(uses(name, input_), gave("ok", details=details))

    assert_harmless(shown)
    for kind, mark, expected in (("add", "+", added), ("cut", "-", cut)):
        found = re.findall(f'<span class="{kind}">\\{mark} (.*?)</span>', shown)
        assert [Reader(text).text for text in found] == expected


def test_a_large_diff_takes_a_moment_and_no_more() -> None:
    old, new = ("\n".join(f"{number % 7} {word}" for number in range(20_000)) for word in ("a", "b"))
    began = time.monotonic()

    shown = page(uses("Edit", {"old_string": old, "new_string": new}), gave("ok"))

    assert time.monotonic() - began < 10
    assert "… and more" in shown


def test_the_timeline_is_to_scale() -> None:
    shown = page(
        uses("Bash", {"command": "first"}, id_="a", at=0), gave("", id_="a", at=5),
        uses("Bash", {"command": "second"}, id_="b", at=5), gave("", id_="b", at=20),
    )  # fmt: skip

    bars = re.findall(r'<rect class="bar" x="([\d.]+)%" y="0" width="([\d.]+)%"', shown)
    assert [(float(x), float(width)) for x, width in bars] == [(0, 25), (25, 75)]


def test_a_subagents_work_stands_inside_the_call_that_it_is_for() -> None:
    shown = page(
        uses("Task", {"description": "look around"}, id_="outer"),
        uses("Grep", {"pattern": "needle"}, id_="inner", parent_tool_use_id="outer"),
        gave("found it", id_="inner"),
        gave("report", id_="outer"),
    )

    outer = shown[shown.index("<details") : shown.rindex("</details>")]
    assert outer.index("needle") < outer.index("found it") < outer.index("report")
    assert outer.count("<details") == 2


def test_calls_can_be_nested_as_deep_as_an_agent_likes() -> None:
    lines = [uses("Task", {}, id_=f"t{n}", parent_tool_use_id=f"t{n - 1}") for n in range(3000)]

    assert_harmless(page(*lines))


def test_a_failure_says_what_to_do() -> None:
    error = {
        "type": "error",
        "kind": "out_of_memory",
        "message": "It ran out.",
        "next_step": "Raise it.",
        "stderr": "x",
    }

    shown = page(entry(error, source="runner"), outcome="failed", kind="out_of_memory")

    for text in ("out_of_memory", "It ran out.", "Raise it.", 'class="badge failed"'):
        assert text in shown


def test_runs_of_one_session_follow_each_other() -> None:
    shown = render_page([part(asked("one")), part(asked("two"))], agent="bot", session_id="s")

    assert shown.index("Run 1 of 2") < shown.index("one</div>") < shown.index("Run 2 of 2") < shown.index("two</div>")


def test_a_long_text_is_cut_and_says_so() -> None:
    shown = page(says({"type": "text", "text": "x" * (TEXT_LIMIT + 1234)}))

    assert "(1,234 more characters)" in shown
    assert len(shown) < 2 * TEXT_LIMIT


def test_a_page_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "PAGE_LIMIT", 2**20)
    blocks = [{"type": "text", "text": "<&>" * (TEXT_LIMIT // 3)}] * 12

    shown = page(says(*blocks))

    assert 2**19 < len(shown) < 2**21
    assert "The rest is left out" in shown
    assert shown.rstrip().endswith("</html>")


def test_an_empty_session_has_a_page() -> None:
    assert_harmless(render_page([], agent="bot", session_id="s"))
    assert_harmless(page())


# What it can not do


@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
def test_hostile_content_is_text_wherever_it_stands(payload: str) -> None:
    shown = render_page([part(*everywhere(payload), workspace=payload)], agent="bot", session_id="s-1")

    assert_harmless(shown)


@given(st.text(st.sampled_from("<>&\"'`*_[]()!#-+|~\\\n\t /:=ahrefjavsciptonloxd;0123\u202e\x00\x1b"), max_size=300))
@settings(max_examples=300)
def test_no_text_becomes_an_element_that_is_not_ours(text: str) -> None:
    assert_harmless(page(asked(text), says({"type": "text", "text": text}), uses(text, {text: text}), gave(text)))


def test_the_policy_allows_this_one_style_and_nothing_else() -> None:
    shown = page(asked("hello"))

    style = shown[shown.index("<style>") + 7 : shown.index("</style>")]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', shown)
    expected = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert policy == expected
    assert shown.index("Content-Security-Policy") < shown.index("<style>") < shown.index("<body>")
    assert not re.search(r"url\(|@import|expression", style)


def test_what_comes_from_other_places_is_not_fetched() -> None:
    text = "![a](https://example.org/a.png) <img src=https://example.org/b.png> [link](https://example.org/c)"

    shown = page(says({"type": "text", "text": text}))

    assert "<img" not in shown
    link = '<a href="https://example.org/c" title="https://example.org/c" rel="noopener noreferrer nofollow">link</a>'
    assert link in shown


@pytest.mark.parametrize(
    "message",
    [
        {"type": "assistant", "message": {"content": [{"type": "tool_use", "id": [], "name": {}, "input": []}]}},
        {"type": "assistant", "message": {"content": [None, 3, {"type": "text"}, {"type": "text", "text": 5}]}},
        {"type": "assistant", "message": [], "parent_tool_use_id": {"a": 1}},
        {"type": "user", "message": {"content": [{"type": "tool_result", "tool_use_id": "t", "content": [[], 1]}]}},
        {"type": "result", "usage": [], "modelUsage": {"m": [], "n": {"costUSD": "x", "inputTokens": 1e300}}},
        {"type": "result", "errors": [1, "x"], "total_cost_usd": -1, "num_turns": "many"},
        {"type": "output", "text": {}},
        {"type": "oversized", "size": "big", "head": []},
        {"type": "start", "prompt": 7},
        {"type": "error", "kind": []},
        {},
    ],
)
@pytest.mark.parametrize("source", ["agent", "runner"])
def test_a_message_of_the_wrong_shape_is_no_harm(message: dict[str, Any], source: str) -> None:
    assert_harmless(page(entry(message, source=source), gave("late"), uses("Bash", {"command": "ls"})))
