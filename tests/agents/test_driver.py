"""What runs in the container: from what a runtime yields to the lines of its stdout."""

from __future__ import annotations

import ast
import dataclasses
import enum
import importlib
import inspect
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import msgspec
import pytest

from container_runner.agents import driver
from container_runner.stream import messages
from container_runner.stream.messages import parse_line

SOURCE = inspect.getsource(driver)


def read(message: Any) -> Any:
    """A message as the host reads what it becomes on the wire."""
    (line,) = driver.wire(message)
    return parse_line(json.dumps(line).encode())


def test_it_needs_nothing_but_the_standard_library_and_old_pythons_can_read_it() -> None:
    tree = ast.parse(SOURCE, feature_version=(3, 6))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}

    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names
    assert "annotations" not in SOURCE, "a future import, which Python 3.6 has not"
    assert len(SOURCE) < 32 * 1024, "it is one argument"


def test_an_old_python_is_told_and_says_which_it_is(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 2, "final", 0))

    assert driver.main(["m:x"]) == driver.EXIT_CODES["too_old"]
    assert capfd.readouterr().err == f'\n{driver.MARK}{{"kind": "too_old", "version": "3.9.2"}}\n'


def test_our_own_messages_arrive_as_what_they_were() -> None:
    said = messages.AssistantMessage(content=[messages.TextBlock("hi")], model="m")
    result = parse_line(b'{"type": "result", "subtype": "success", "is_error": false, "usage": {"input_tokens": 3}}')

    assert read(said) == said
    assert read(result) == result
    assert driver.wire(messages.OutputLine(b"plain")) == [{"type": "output", "text": "plain"}]


def test_text_is_lines() -> None:
    assert driver.wire("one\ntwo\n") == [{"type": "output", "text": "one"}, {"type": "output", "text": "two"}]
    assert driver.wire(b"\xff") == [{"type": "output", "text": "\ufffd"}]


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Finding:
    path: Path
    line: int
    colour: Colour = Colour.RED


@attrs.define
class Report:
    findings: list[Finding]
    share: float = float("nan")
    at: datetime = datetime(2026, 1, 2, tzinfo=UTC)


class Tagged(msgspec.Struct, tag="tagged"):
    names: set[str]


class Model:
    """As pydantic's are."""

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        assert mode == "json"
        return {"type": "model", "deep": (1, 2)}


@pytest.mark.parametrize(
    ("message", "raw"),
    [
        ({"type": "x", 1: (2,)}, {"type": "x", "1": [2]}),
        ({"no": "type"}, {"no": "type"}),
        (Finding(Path("/a"), 3), {"type": "Finding", "path": "/a", "line": 3, "colour": "red"}),
        (
            Report([Finding(Path("/a"), 3)]),
            {
                "type": "Report",
                "findings": [{"path": "/a", "line": 3, "colour": "red"}],
                "share": None,
                "at": "2026-01-02 00:00:00+00:00",
            },
        ),
        (Tagged({"a"}), {"type": "tagged", "names": ["a"]}),
        (Model(), {"type": "model", "deep": [1, 2]}),
    ],
)
def test_what_else_has_fields_is_an_unknown_message_with_them(message: Any, raw: dict[str, Any]) -> None:
    found = read(message)

    assert type(found) is messages.UnknownMessage
    assert found.raw == raw


@pytest.mark.parametrize("nothing", [None, 3, [1], object()])
def test_what_is_no_message_is_refused_by_the_name_of_its_type(nothing: Any) -> None:
    with pytest.raises(TypeError, match=f"execute\\(\\) yielded {type(nothing).__name__}, which is no message"):
        driver.wire(nothing)


def of_sdk(name: str, /, **values: Any) -> Any:
    """An object as claude_agent_sdk's are."""
    return type(name, (SimpleNamespace,), {"__module__": "claude_agent_sdk.types"})(**values)


def test_the_messages_of_claude_agent_sdk_become_the_lines_that_they_were_made_of() -> None:
    call = of_sdk("ToolUseBlock", id="t1", name="Bash", input={"command": "ls"})
    said = of_sdk(
        "AssistantMessage", content=[of_sdk("TextBlock", text="hi"), call], model="m", message_id="msg", usage=None,
        parent_tool_use_id=None, session_id="s",
    )  # fmt: skip
    answer = of_sdk("ToolResultBlock", tool_use_id="t1", content="a\nb", is_error=None)
    result = of_sdk(
        "ResultMessage", subtype="success", is_error=False, num_turns=2, total_cost_usd=0.5, result="done",
        model_usage={"m": {"costUSD": 0.5}}, usage={"input_tokens": 3}, deferred_tool_use=None,
    )  # fmt: skip
    init = of_sdk("SystemMessage", subtype="init", data={"type": "system", "subtype": "init", "cwd": "/workspace"})

    read_said, read_result = read(said), read(result)
    assert isinstance(read_said, messages.AssistantMessage)
    assert read_said.content == [messages.TextBlock("hi"), messages.ToolUseBlock("t1", "Bash", {"command": "ls"})]
    assert (read_said.model, read_said.message_id, read_said.session_id) == ("m", "msg", "s")
    assert read(of_sdk("UserMessage", content=[answer])).content == [messages.ToolResultBlock("t1", "a\nb")]
    assert isinstance(read_result, messages.ResultMessage)
    assert (read_result.is_error, read_result.total_cost_usd) == (False, 0.5)
    assert read_result.usage is not None
    assert read_result.usage.input_tokens == 3
    assert read_result.model_usage == {"m": {"costUSD": 0.5}}
    assert read(init).cwd == "/workspace"
    limit = of_sdk("RateLimitEvent", rate_limit_info=of_sdk("RateLimitInfo", raw={"status": "allowed", "resetsAt": 5}))
    assert read(limit).rate_limit_info.resets_at == 5


def test_options_are_ours_where_the_code_knows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def values() -> dict[str, Any]:
        return {"prompt": "p", "new_in_a_later_version": 1, "agent": {"name": "a", "tools": ["Read"]}}

    ours = driver.request(values())
    assert type(ours).__name__ == "ExecuteOptions"
    assert ours.agent.tools == ("Read",)
    monkeypatch.delitem(sys.modules, "container_runner")
    plain = driver.request(values())
    assert (plain.prompt, plain.agent.name, plain.agent.tools) == ("p", "a", ["Read"])


def test_a_traceback_is_bounded_and_names_files_as_they_are_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deep.py").write_text(
        "def f(n):\n    if not n:\n        raise ValueError('x' * 100_000)\n    f(n - 1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="xxx") as caught:
        importlib.import_module("deep").f(200)
    text = driver.told(caught.value)

    assert len(text) < driver.MOST_TRACEBACK + 100
    assert 'File "deep.py", line 4, in f\n    f(n - 1)' in text
    assert str(tmp_path) not in text
    assert "driver.py" not in text
