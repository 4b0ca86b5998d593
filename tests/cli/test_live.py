"""The live view, as a person at a terminal sees it: real commands in a terminal in memory."""

from __future__ import annotations

import io
import json
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from container_runner.cli import live
from container_runner.cli.live import MOST_PENDING, MOST_STREAMED, RunView
from container_runner.cli.view import LEAVING, NOTHING_LEFT
from container_runner.records.tally import Tally
from container_runner.stream.messages import OutputLine, parse_message
from tests.cli.test_run import COMMAND, Place, place
from tests.terminal import Terminal

pytestmark = pytest.mark.usefixtures("mounted")

__all__ = ["place"]

SHOW_CURSOR = b"\x1b[?25h"
HIDE_CURSOR = b"\x1b[?25l"


def at_terminal(place: Place, *words: str, **more: Any) -> Terminal:
    verb, *rest = words
    return Terminal([COMMAND, verb, *place.flags, *rest], cwd=place.workspace, **more)


def agent_is_gone(place: Place) -> bool:
    """Whether no process has the workspace as its folder any more."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cwd").readlink() == place.workspace:
                return False
        except OSError:
            continue
    return True


def test_a_tool_that_failed_is_told_from_one_that_did_not_without_colours(place: Place) -> None:
    with at_terminal(place, "run", "sh echo no; false\nsh echo yes", env={"NO_COLOR": "1"}) as terminal:
        assert terminal.finish() == 0

        assert "  ✗ no" in terminal.all_text
        assert "  └ yes" in terminal.all_text


def test_what_the_agent_does_is_seen_while_it_does_it(place: Place) -> None:
    with at_terminal(place, "run", "sh sleep 1.5\nedit made.txt hello") as terminal:
        shown = terminal.wait_for(lambda text: "a tool at work" in text and re.search(r"\d\.\d s", text))
        code = terminal.finish()

        assert "● Bash sleep 1.5" in shown
        assert "1 turn · 8 tokens" in shown
        assert "Ctrl-C stops" in shown
        assert code == 0
        assert re.search(r"● Bash sleep 1.5\n  └ \(no output\) · \d\.\d s\n● Edit made.txt", terminal.all_text)
        assert "Ctrl-C stops" not in terminal.all_text
        assert "✓ succeeded after" in terminal.all_text
        assert "1 file has changed:\n    + made.txt" in terminal.all_text
        assert terminal.raw.rfind(SHOW_CURSOR) > terminal.raw.rfind(HIDE_CURSOR) >= 0


def test_ctrl_c_stops_the_agent_and_says_so(place: Place) -> None:
    # An agent that leaves at once is gone before the view is drawn again.
    with at_terminal(place, "run", "ignore-term", "--grace=1") as terminal:
        terminal.wait_for("waiting for the model")
        terminal.type("\x03")
        terminal.wait_for(lambda _: "SIGINT: stopping the agent…" in terminal.all_text)

        assert terminal.finish() == 130
        assert NOTHING_LEFT in terminal.text
        assert "--resume=" in terminal.text
        assert "Traceback" not in terminal.all_text
        assert terminal.raw.rfind(SHOW_CURSOR) > terminal.raw.rfind(HIDE_CURSOR)
        assert agent_is_gone(place)


def test_a_second_ctrl_c_leaves_at_once_and_gives_the_cursor_back(place: Place) -> None:
    with at_terminal(place, "run", "ignore-term", "--grace=5") as terminal:
        terminal.wait_for("waiting for the model")
        terminal.type("\x03")
        terminal.wait_for("Ctrl-C again leaves at once")
        began = time.monotonic()
        terminal.type("\x03")

        assert terminal.finish() == 130
        assert time.monotonic() - began < 4  # and not after the grace period
        assert LEAVING in terminal.text
        assert terminal.raw.rfind(SHOW_CURSOR) > terminal.raw.rfind(HIDE_CURSOR)
        for _ in range(100):
            if agent_is_gone(place):
                break
            time.sleep(0.1)
        assert agent_is_gone(place)


def test_a_terminal_that_is_closed_ends_the_run(place: Place) -> None:
    with at_terminal(place, "run", "sleep 1000") as terminal:
        terminal.wait_for("waiting for the model")
        terminal.hang_up()

        assert terminal.process.wait(20) == 128 + signal.SIGHUP
        assert agent_is_gone(place)


def test_a_failure_is_told_once_with_what_to_do(place: Place) -> None:
    with at_terminal(place, "run", "fail It did not work.") as terminal:
        assert terminal.finish() == 1
        assert terminal.all_text.count("✗ claude failed: It did not work.") == 1
        assert "Read what the agent said, above or by `container-runner logs`." in terminal.all_text
        assert "✗ failed after" in terminal.all_text


def test_an_agent_can_neither_control_the_terminal_nor_write_markup(place: Place) -> None:
    said = "[bold red]no[/] [link=http://x]y[/link] :smile: \x1b]0;title\x07\x1b[2J\x1b[?1049h\u202e"
    block = {"type": "text", "text": said}
    tool = {"type": "tool_use", "id": "1", "name": "[red]T[/]\x1b[2J", "input": {"command": "[b]x[/b]\x07"}}
    lines = [json.dumps({"type": "assistant", "message": {"content": [part]}}) for part in (block, tool)]
    prompt = "[bold]prompt[/bold]\n" + "".join(f"raw {row}\n" for row in lines) + "sleep 0.5"

    with at_terminal(place, "run", "--", prompt) as terminal:
        terminal.finish()

        assert "[bold red]no[/] [link=http://x]y[/link] :smile:" in terminal.all_text
        assert "[red]T[/]�[2J [b]x[/b]�" in terminal.all_text
        assert "▸ [bold]prompt[/bold]" in terminal.all_text
        for bad in (b"\x1b]", b"\x07", b"\x1b[2J", b"\x1b[?1049h", "\u202e".encode()):
            assert bad not in terminal.raw


def test_no_color_means_no_colour(place: Place) -> None:
    with at_terminal(place, "run", "edit made.txt hello", env={"NO_COLOR": "1"}) as terminal:
        terminal.finish()

        sgr = {number for found in re.findall(rb"\x1b\[([0-9;]*)m", terminal.raw) for number in found.split(b";")}
        assert b"1" in sgr
        assert sgr <= {b"", b"0", b"1", b"2"}


@pytest.mark.parametrize(
    ("env", "flags"),
    [
        ({"TERM": "dumb"}, []),
        ({"PYTHONIOENCODING": "ascii"}, []),
        ({}, ["--no-live"]),
        ({}, ["--json"]),
    ],
)
def test_where_nothing_can_move_there_are_plain_lines(place: Place, env: dict[str, str], flags: list[str]) -> None:
    with at_terminal(place, "run", "edit made.txt hello", *flags, env=env) as terminal:
        assert terminal.finish() == 0
        assert b"\x1b" not in terminal.raw
        assert "Edit" in terminal.all_text


def test_a_flood_does_not_drown_it(place: Place) -> None:
    with at_terminal(place, "run", "flood 2000 50") as terminal:
        assert terminal.finish() == 0
        assert "✓ succeeded after" in terminal.text


def test_a_narrow_terminal_is_enough(place: Place) -> None:
    with at_terminal(place, "run", "sh sleep 0.5\nI am done.", columns=24, rows=6) as terminal:
        assert terminal.finish() == 0
        assert "I am done." in terminal.all_text


def test_wide_characters_and_a_window_that_is_made_smaller_leave_one_status_line(place: Place) -> None:
    wide = "日本語" * 40
    with at_terminal(place, "run", f"sh sleep 3; echo {wide}\nsleep 1.5", columns=60) as terminal:
        terminal.wait_for("a tool at work")
        terminal.resize(30, 24)
        terminal.wait_for(lambda text: "└ 日" in text and "waiting for the" in text)
        until = time.monotonic() + 0.5  # a few more pictures
        while time.monotonic() < until:
            terminal.read()
        rows = terminal.text.splitlines()

        assert sum("waiting for the" in row for row in rows) == 1
        assert "waiting for the" in rows[-1]
        assert terminal.finish() == 0


# The view alone


def view(width: int = 60) -> tuple[RunView, Console]:
    console = Console(file=io.StringIO(), force_terminal=True, width=width, height=20, no_color=True, record=True)
    return RunView(Tally(), "prompt", "place", console), console


def event(kind: str, **fields: Any) -> Any:
    return parse_message({"type": "stream_event", "event": {"type": kind, **fields}})


def piece(text: str) -> Any:
    return event("content_block_delta", delta={"type": "text_delta", "text": text})


def says(text: str, **fields: Any) -> Any:
    return parse_message({"type": "assistant", "message": {"content": [{"type": "text", "text": text}]}, **fields})


def seen(shown: RunView, console: Console) -> list[str]:
    """The lines that stay."""
    shown.stop()
    return [row.rstrip() for row in console.export_text().split("\n") if row.strip()][2:]


def test_an_agent_that_has_started_and_says_nothing_is_wondered_at(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, _ = view()
    before = shown._status().plain
    shown.agent_started()
    started = shown._status().plain
    monkeypatch.setattr(live, "QUIET", 0.0)
    quiet = shown._status().plain
    shown.add(parse_message({"type": "system", "subtype": "init"}))

    assert before.startswith("starting the container ")
    assert started.startswith("started, nothing said yet ")
    assert quiet.startswith("started, nothing said yet: network? key? ")
    assert shown._status().plain.startswith("waiting for the model ")


def test_text_comes_as_it_is_written() -> None:
    shown, console = view()
    shown.start()
    shown.add(event("content_block_start", content_block={"type": "text"}))
    for text in ("One line.\n\n", "Half of ", "another one."):
        shown.add(piece(text))
        shown.draw()

    drawn = console.export_text()
    assert "\nOne line." in drawn
    assert re.search(r"Half of *\n. writing.*Half of another one. *\n. writing", drawn, re.DOTALL)


def test_text_that_came_in_pieces_stays_once() -> None:
    shown, console = view()
    for text in ("One line.\n\n", "Half of ", "another one."):
        shown.add(piece(text))
        shown.draw()

    shown.add(says("One line.\n\nHalf of another one."))

    assert seen(shown, console) == ["One line.", "Half of another one."]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("# Done\n\nIt is **bold**, and `code`.", ["Done", "It is bold, and code."]),
        ("- one\n- two", [" • one", " • two"]),
        ("```\na\n\n\nb\n```\n\nnow", [" a", " b", "now"]),
        ("[link](http://x)", ["link (http://x)"]),
    ],
)
def test_what_an_agent_says_is_markdown_whether_it_comes_in_pieces_or_whole(text: str, shown: list[str]) -> None:
    for comes in ([text], [*text]):
        target, console = view()
        for part in comes if len(comes) > 1 else []:
            target.add(piece(part))
            target.draw()
        target.add(says(text))

        assert [row.strip(" ") for row in seen(target, console)] == [row.strip(" ") for row in shown]


def test_text_that_differs_from_what_came_is_shown_whole() -> None:
    shown, console = view()
    shown.add(piece("One line.\n\nm"))
    shown.draw()
    shown.add(says("Another line."))

    assert seen(shown, console) == ["One line.", "Another line."]


def test_text_that_never_ends_is_kept_within_bounds() -> None:
    shown, console = view()
    for _ in range(40):
        shown.add(piece("x" * (MOST_STREAMED // 10)))

    assert len(shown._streamed) <= MOST_STREAMED
    assert sum(row.count("x") for row in seen(shown, console)) == 40 * (MOST_STREAMED // 10)


def test_many_lines_between_two_pictures_are_shown_once() -> None:
    shown, console = view()
    shown.add(piece("a line\n\n" * (2 * MOST_PENDING)))
    shown.draw()

    assert seen(shown, console) == ["a line"] * 2 * MOST_PENDING


def test_tools_without_an_answer_are_told_at_the_end() -> None:
    shown, console = view()
    block = {"type": "tool_use", "id": "1", "name": "Bash", "input": {"command": "sleep 9"}}
    shown.add(parse_message({"type": "assistant", "message": {"content": [block]}}))

    assert seen(shown, console) == ["○ Bash sleep 9"]


def test_what_a_subagent_does_is_indented() -> None:
    shown, console = view()
    shown.add(says("from below", parent_tool_use_id="1"))

    assert seen(shown, console) == ["  from below"]


@settings(max_examples=200)
@given(st.lists(st.one_of(st.text(max_size=40), st.text(alphabet="\x1b[]\x07;m2J\r\n\x9b a", max_size=40)), max_size=8))
def test_nothing_that_an_agent_says_reaches_the_terminals_controls(texts: list[str]) -> None:
    shown, console = view()
    quiet, quiet_console = view()
    for text in texts:
        safe = re.sub(r"[^\n]", "x", text)
        for target, said in ((shown, text), (quiet, safe)):
            target.add(piece(said))
            target.add(says(said))
            target.add(OutputLine(said.encode(errors="replace")))
    for target in (shown, quiet):
        target.stop()
    file, quiet_file = console.file, quiet_console.file
    assert isinstance(file, io.StringIO)
    assert isinstance(quiet_file, io.StringIO)

    controls = [re.sub(r"[^\x00-\x09\x0b-\x1f\x7f-\x9f]", "", stream.getvalue()) for stream in (file, quiet_file)]
    # Tabs become spaces, and the view's own sequences are the same whatever was said.
    assert set(controls[0]) <= {"\x1b"}
    assert console.export_text().count("\x1b") == 0
    sequences = [set(re.findall(r"\x1b[^m]*m", stream.getvalue())) for stream in (file, quiet_file)]
    assert sequences[0] == sequences[1]


def test_the_terminal_in_memory_shows_what_was_written(tmp_path: Path) -> None:
    with Terminal(["printf", r"a\nb"], cwd=tmp_path, env={"LC_ALL": "C"}) as terminal:
        assert terminal.finish() == 0
        assert terminal.text == "a\nb"
    assert terminal.process.returncode == 0
