"""Makes docs/images/transcript.png: the HTML page of a session, as chromium shows it.

python -m scripts.picture_page
"""

from __future__ import annotations

import datetime as dt
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import orjson

from container_runner.records.page import render_page
from container_runner.records.summary import RunSummary
from container_runner.records.transcript import Part, converse, parse_record
from container_runner.stream.messages import Usage

PICTURE = Path(__file__).parent.parent / "docs/images/transcript.png"
START = dt.datetime(2026, 11, 23, 9, 30, tzinfo=dt.UTC)
SESSION = "0b7e3a52-4c1d-4a8e-9a35-6d0f0c6f3b11"
EDIT = {
    "file_path": "/workspace/shop/cart.py",
    "old_string": "def total(items):\n    return sum(item.price for item in items)",
    "new_string": "def total(items):\n    return sum(item.price * item.count for item in items)",
}
TALK: list[tuple[float, str, Any]] = [
    (0, "prompt", "The total of a cart is wrong when an item is in it twice. Find out why and fix it."),
    (4, "thinking", "I look at the tests first."),
    (5, "say", "I run the tests to see what fails."),
    (6, "use", ("Bash", {"command": "pytest -q"})),
    (15.4, "error", "1 failed, 41 passed in 8.71s"),
    (19, "use", ("Grep", {"pattern": "def total"})),
    (19.6, "gave", "shop/cart.py:12:def total(items):"),
    (22, "use", ("Edit", EDIT)),
    (22.3, "gave", "The file has been updated."),
    (24, "use", ("Bash", {"command": "pytest -q"})),
    (33.1, "gave", "42 passed in 8.65s"),
    (
        37,
        "say",
        "Fixed: `total` summed the prices and left out **how many** of each item there are. All 42 tests pass.",
    ),
]


def main() -> None:
    browser = shutil.which("chromium")
    if browser is None:
        sys.exit("There is no chromium on this machine.")
    usage = Usage(input_tokens=9_120, output_tokens=1_480, cache_read_input_tokens=41_300)
    summary = RunSummary(
        run_id="ab" * 16, agent="shop", outcome="succeeded", started=START, duration=39.2, workspace="/home/me/shop",
        image="my/claude", tokens=usage,
    )  # fmt: skip
    part = Part(conversation=converse(map(parse_record, lines(usage))), summary=summary)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "page.html")
        page.write_text(render_page([part], agent="shop", session_id=SESSION), "utf-8")
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1000,1330"]
        flags += [f"--user-data-dir={folder}/profile", f"--screenshot={PICTURE}"]
        subprocess.run([browser, *flags, page.as_uri()], check=True, timeout=60)


def lines(usage: Usage) -> list[bytes]:
    """The transcript of the talk."""
    written, calls = [], 0
    for at, kind, what in TALK:
        if kind == "use":
            calls += 1
        block: dict[str, Any] = {
            "say": {"type": "text", "text": what},
            "thinking": {"type": "thinking", "thinking": what},
            "use": {"type": "tool_use", "id": f"t{calls}", "name": what[0], "input": what[1]},
            "gave": {"type": "tool_result", "tool_use_id": f"t{calls}", "content": what},
            "error": {"type": "tool_result", "tool_use_id": f"t{calls}", "content": what, "is_error": True},
            "prompt": {},
        }[kind]
        said = {"type": "user" if kind in ("gave", "error") else "assistant", "message": {"content": [block]}}
        written.append(line(at, {"type": "start", "prompt": what} if kind == "prompt" else said, kind == "prompt"))
    used = {"inputTokens": 9_120, "outputTokens": 1_480, "cacheReadInputTokens": 41_300, "costUSD": 0.2143}
    result = {
        "type": "result", "subtype": "succeeded", "is_error": False, "num_turns": 6, "total_cost_usd": 0.2143,
        "modelUsage": {"claude-opus-5-5": used},
        "usage": {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens,
                  "cache_read_input_tokens": usage.cache_read_input_tokens},
    }  # fmt: skip
    return [*written, line(39, result, ours=False)]


def line(at: float, message: dict[str, Any], ours: bool) -> bytes:
    moment = (START + dt.timedelta(seconds=at)).isoformat()
    return orjson.dumps({"time": moment, "from": "runner" if ours else "agent", "message": message})


if __name__ == "__main__":
    main()
