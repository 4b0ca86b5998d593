"""Records what `run` and `batch` look like at a terminal, as moving pictures in docs/images/.

    python -m scripts.record_screens

The real commands run in a terminal in memory, with the engine of `tests/played_engine.py` and an agent that plays a
story, so neither an engine nor an account is needed. What the terminal shows becomes one SVG each.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

IMAGES = Path("docs/images")
COLUMNS = 92
PROGRAM = Path(sys.executable).with_name("container-runner")

LAST = 5.0
"""Seconds that the last picture stays before it all begins again."""

PROMPT = "Let slugify keep accented letters, and test it."

SLUGS = """\
import re


def slugify(title):
    return re.sub("[^a-z0-9]+", "-", title.lower()).strip("-")
"""
BETTER_SLUGS = """\
import re
import unicodedata


def slugify(title):
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode()
    return re.sub("[^a-z0-9]+", "-", plain.lower()).strip("-")
"""
TEST = """\
from slugs import slugify


def test_accents_are_kept_as_letters():
    assert slugify("Crème brûlée") == "creme-brulee"
"""

JOBS = {
    "api-docs": ("Document every public function of the API.", 5.2),
    "flaky-test": ("Find out why test_upload fails now and then, and repair it.", 6.4),
    "types": ("Add type hints to slugs.py.", 3.1),
    "python-3.13": ("Make the tests pass on Python 3.13.", 2.2),
    "changelog": ("Write the changelog of the next release.", 3.4),
    "security": ("Look for ways to reach files outside of the upload folder.", 4.0),
}


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="record-") as folder:
        home = Path(folder, "home")
        agent = Path(folder, "agent")
        agent.write_text(f"#!/bin/sh\nexec {sys.executable} -IS {Path(__file__).absolute()} agent\n")
        agent.chmod(0o755)
        environ = prepare(home, agent)
        record(["run", "--image=my/claude", PROMPT], home / "slugs", environ, rows=28, pause=0.3)
        record(["batch", "--image=my/claude", "-j3", "../tasks.jsonl"], home / "slugs", environ, rows=15, pause=0.55)
    return 0


def prepare(home: Path, agent: Path) -> dict[str, str]:
    """Make a home with a project and a file of jobs in it.

    Returns:
        The variables of who lives there.
    """
    from tests.played_engine import write

    project = home / "slugs"
    project.mkdir(parents=True)
    (project / "slugs.py").write_text(SLUGS)
    lines = [json.dumps({"id": name, "prompt": prompt}) for name, (prompt, _) in JOBS.items()]
    (home / "tasks.jsonl").write_text("\n".join(lines))
    if os.geteuid() == 0:  # an agent does not run as root, so root's files are not its to change
        for path in (project, project / "slugs.py"):
            os.chown(path, 1000, 1000)
    engine = write(home / "engine", agent)
    return {"HOME": str(home), "XDG_STATE_HOME": str(home / "state"), "CONTAINER_RUNNER_ENGINE": str(engine)}


def record(words: list[str], folder: Path, environ: dict[str, str], *, rows: int, pause: float) -> None:
    """Run a command and write what it shows, with a picture every *pause* seconds at most."""
    name = words[0]
    from tests.terminal import Terminal

    pictures: list[tuple[float, list[str]]] = []
    with Terminal([str(PROGRAM), *words], cwd=folder, env=environ, columns=COLUMNS, rows=rows) as terminal:
        terminal.show(f"\x1b[32m$\x1b[0m container-runner {shlex.join(words)}\r\n")
        began, going = time.monotonic(), True
        while going:
            going = terminal.read(0.05)
            picture = [row(terminal.screen, number) for number in range(rows)]
            if not pictures or (picture != pictures[-1][1] and (time.monotonic() - began - pictures[-1][0] > pause)):
                pictures.append((time.monotonic() - began, picture))
        pictures.append((time.monotonic() - began, [row(terminal.screen, number) for number in range(rows)]))
        assert terminal.process.wait() in (0, 1), terminal.text
    IMAGES.mkdir(parents=True, exist_ok=True)
    image = to_svg(pictures, f"container-runner {name}")
    (IMAGES / f"{name}.svg").write_text(image)
    print(f"{IMAGES / name}.svg: {len(image)} bytes, {len(pictures)} pictures")


COLOURS = {
    "default": "#d8dee9",
    "red": "#f07178",
    "green": "#a6d189",
    "brown": "#e5c07b",
    "cyan": "#7fdbca",
    "magenta": "#c792ea",
    "blue": "#82aaff",
    "brightblack": "#7d8799",
    "track": "#3b4048",
}
SIZE, WIDTH, HEIGHT = 14, 8.43, 19
TOP, LEFT = 48, 18


def colour(name: str) -> str:
    """One of `COLOURS`; of the 256 colours, which only bars have, the nearest of them."""
    if name in COLOURS or not re.fullmatch("[0-9a-f]{6}", name):
        return name if name in COLOURS else "default"
    wanted = channels(name)
    return min(
        COLOURS, key=lambda known: sum((a - b) ** 2 for a, b in zip(channels(COLOURS[known][1:]), wanted, strict=True))
    )


def channels(code: str) -> tuple[int, ...]:
    """A colour's red, green and blue."""
    return tuple(bytes.fromhex(code))


def row(screen: Any, number: int) -> str:
    """One row of the screen as SVG, at the height 0."""
    cells = [screen.buffer[number][column] for column in range(COLUMNS)]
    parts: list[str] = []
    column = 0
    for (kind, bold), group in groupby(cells, lambda cell: (colour(cell.fg), cell.bold)):
        text = "".join(cell.data for cell in group)
        start, column = column, column + len(text)
        shown = text.strip(" ")
        if shown:
            start += len(text) - len(text.lstrip(" "))
            classes = f"{kind} b" if bold else kind
            x, width = LEFT + start * WIDTH, len(shown) * WIDTH
            parts.append(f'<text class="{classes}" x="{x:.1f}" textLength="{width:.1f}">{escape(shown)}</text>')
    return "".join(parts)


def to_svg(pictures: list[tuple[float, list[str]]], title: str) -> str:
    """A film of the pictures. Where nothing moves, it is the last one."""
    end = pictures[-1][0] + LAST
    times = [begin for begin, _ in pictures] + [end]
    spans: dict[tuple[int, int], list[str]] = {}
    known: dict[str, str] = {}
    for number in range(len(pictures[0][1])):
        for shown, first, last in stretches([picture[number] for _, picture in pictures]):
            name = known.setdefault(shown, f"r{len(known)}")
            spans.setdefault((first, last), []).append(f'<use href="#{name}" y="{TOP + number * HEIGHT}"/>')
    styles, groups = [], []
    for index, ((first, last), uses) in enumerate(sorted(spans.items())):
        begin, close = times[first] / end * 100, times[last] / end * 100
        if first == 0 and last == len(pictures):
            groups.append(f"<g>{''.join(uses)}</g>")
            continue
        hidden = "" if last == len(pictures) else ' visibility="hidden"'
        groups.append(f'<g class="m"{hidden} style="animation-name:k{index}">{"".join(uses)}</g>')
        before = "" if first == 0 else "0%{visibility:hidden}"
        after = "" if last == len(pictures) else f"{close:.2f}%{{visibility:hidden}}"
        styles.append(f"@keyframes k{index}{{{before}{begin:.2f}%{{visibility:visible}}{after}}}")
    width, height = LEFT * 2 + COLUMNS * WIDTH, TOP + len(pictures[0][1]) * HEIGHT
    colours = "".join(f".{name}{{fill:{colour}}}" for name, colour in COLOURS.items())
    rows = "".join(f'<g id="{name}">{shown}</g>' for shown, name in known.items())
    dots = "".join(
        f'<circle cx="{20 + 20 * index}" cy="18" r="6" fill="{fill}"/>'
        for index, fill in enumerate(("#ff5f57", "#febc2e", "#28c840"))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" xml:space="preserve">'
        f"<title>{escape(title)}</title><style>"
        f"text{{font:{SIZE}px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace}}"
        f".b{{font-weight:700}}{colours}.m{{animation:{end:.2f}s step-end infinite}}"
        f"@media(prefers-reduced-motion:reduce){{.m{{animation:none}}}}{''.join(styles)}</style><defs>{rows}</defs>"
        f'<rect width="100%" height="100%" rx="10" fill="#1e222a"/>{dots}'
        f'<text class="brightblack" x="{width / 2:.0f}" y="23" text-anchor="middle">{escape(title)}</text>'
        f"{''.join(groups)}</svg>\n"
    )


def stretches(rows: list[str]) -> Iterator[tuple[str, int, int]]:
    """What one row of the screen shows, each with the pictures where it begins and where it has gone."""
    first = 0
    for shown, group in groupby(rows):
        last = first + len(list(group))
        if shown:
            yield shown, first, last
        first = last


class Story:
    """An agent that speaks claude's stream-json."""

    def __init__(self, prompt: str) -> None:
        digest = hashlib.sha256(prompt.encode()).hexdigest()
        self.session = f"{digest[:8]}-{digest[8:12]}-4{digest[13:16]}-8{digest[17:20]}-{digest[20:32]}"
        self.turns = 0
        self.tokens = 0
        self.print({"type": "system", "subtype": "init", "model": "claude-sonnet-4-5"})
        time.sleep(0.6)

    def print(self, line: dict[str, Any]) -> None:
        print(json.dumps({**line, "session_id": self.session}), flush=True)

    def event(self, **event: Any) -> None:
        self.print({"type": "stream_event", "event": event})

    def answer(self, block: dict[str, Any]) -> None:
        self.turns += 1
        usage = {"input_tokens": 9, "output_tokens": 140 + 61 * self.turns, "cache_read_input_tokens": 2900}
        self.tokens += sum(usage.values())
        message = {"id": f"msg_{self.turns}", "content": [block], "usage": usage}
        self.print({"type": "assistant", "message": message})

    def say(self, text: str) -> None:
        self.event(type="content_block_start", content_block={"type": "text"})
        for word in text.split(" "):
            self.event(type="content_block_delta", delta={"type": "text_delta", "text": f"{word} "})
            time.sleep(0.06)
        self.answer({"type": "text", "text": f"{text} "})

    def use(self, name: str, seconds: float, output: str, **arguments: str) -> None:
        self.event(type="content_block_start", content_block={"type": "tool_use", "name": name})
        time.sleep(0.5)
        self.answer({"type": "tool_use", "id": f"toolu_{self.turns}", "name": name, "input": arguments})
        time.sleep(seconds)
        result = {"type": "tool_result", "tool_use_id": f"toolu_{self.turns - 1}", "content": output}
        self.print({"type": "user", "message": {"content": [result]}})
        time.sleep(0.4)

    def end(self, text: str, *, error: bool = False) -> int:
        usage = {"input_tokens": 9 * self.turns, "output_tokens": self.tokens - 2909 * self.turns}
        usage["cache_read_input_tokens"] = 2900 * self.turns
        subtype = "error_during_execution" if error else "success"
        line = {"type": "result", "subtype": subtype, "is_error": error, "result": text, "num_turns": self.turns}
        self.print({**line, "usage": usage, "total_cost_usd": round(self.tokens * 2.7e-6, 4)})
        return int(error)


def agent() -> int:
    """The story that belongs to the prompt."""
    prompt = sys.stdin.read().strip()
    story = Story(prompt)
    if prompt == PROMPT:
        return repair(story)
    seconds = next(seconds for told, seconds in JOBS.values() if told == prompt)
    for name, arguments in (
        ("Read", {"file_path": "/workspace/slugs.py"}),
        ("Grep", {"pattern": "slugify"}),
        ("Edit", {"file_path": "/workspace/slugs.py"}),
        ("Bash", {"command": "pytest -q"}),
    ):
        story.use(name, seconds / 4 - 0.5, "done", **arguments)
        if "3.13" in prompt and name == "Grep":
            return story.end("the image has no Python 3.13", error=True)
    return story.end(f"{prompt.rstrip('.').split(', ')[0]}: done, and the tests pass.")


def repair(story: Story) -> int:
    story.say("I'll look at the code and its tests first.")
    story.use("Read", 0.3, SLUGS, file_path="/workspace/slugs.py")
    story.use("Grep", 0.4, "slugs.py:4:def slugify(title):", pattern="slugify")
    story.say(
        "Accented letters are thrown away, because the pattern knows only a to z.\nI'll take the accents off first."
    )
    Path("slugs.py").write_text(BETTER_SLUGS)
    story.use("Edit", 0.3, "The file /workspace/slugs.py has been updated.", file_path="/workspace/slugs.py")
    Path("test_slugs.py").write_text(TEST)
    story.use("Write", 0.3, "File created at /workspace/test_slugs.py", file_path="/workspace/test_slugs.py")
    story.use("Bash", 1.7, "1 passed in 0.02s", command="python -m pytest -q")
    text = (
        "slugify now keeps accented letters as plain ones: “Crème brûlée” becomes “creme-brulee”. The new test passes."
    )
    story.say(text)
    return story.end(text)


if __name__ == "__main__":
    sys.exit(agent() if sys.argv[1:] == ["agent"] else main())
