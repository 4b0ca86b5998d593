"""The updates of an ACP session, folded: texts are whole, tool calls come once, and states if they are new."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from container_runner.session import updates
from container_runner.session.updates import Updates
from container_runner.stream.messages import parse_message

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from acp import helpers


def chunk(text: str, kind: str = "agent_message_chunk", **more: Any) -> dict[str, Any]:
    return {"sessionUpdate": kind, "content": {"type": "text", "text": text}, **more}


def call(status: str | None = "pending", *, kind: str = "tool_call", id: str = "c1", **more: Any) -> dict[str, Any]:  # noqa: A002  the protocol's name
    return {"sessionUpdate": kind, "toolCallId": id, **({} if status is None else {"status": status}), **more}


def update(status: str | None = None, **more: Any) -> dict[str, Any]:
    return call(status, kind="tool_call_update", **more)


def told(*said: dict[str, Any], partial: bool = False) -> list[Any]:
    """What updates and the end of a turn become, each as (type, its first block or what else there is)."""
    found = Updates(partial=partial)
    folded = [each for one in said for each in found.take(one, 100)]
    folded += found.end({"stopReason": "end_turn"})[0]
    return [short(each) for each in folded]


def short(folded: dict[str, Any]) -> Any:
    message = parse_message(folded)
    json.loads(message.to_json())
    if folded["type"] in ("assistant", "user"):
        block = folded["message"]["content"][0]
        return {key: value for key, value in block.items() if key != "type"} | {"is": block.get("type")}
    return folded["type"], folded.get("subtype") or folded.get("event") or folded.get("tool_use_id")


def text(said: str) -> dict[str, Any]:
    return {"is": "text", "text": said}


def test_pieces_are_one_text_until_another_kind_comes() -> None:
    assert told(chunk("a"), chunk("b"), chunk("hm", "agent_thought_chunk"), chunk("c")) == [
        text("ab"), {"is": "thinking", "thinking": "hm"}, text("c"),
    ]  # fmt: skip


def test_another_message_is_another_text() -> None:
    assert told(chunk("a", messageId="1"), chunk("b", messageId="2")) == [text("a"), text("b")]


def test_pieces_are_told_as_they_come_if_that_is_wanted() -> None:
    (kind, event), whole = told(chunk("a"), partial=True)

    assert (kind, event["delta"]) == ("stream_event", {"type": "text_delta", "text": "a"})
    assert whole == text("a")


def test_a_text_without_an_end_becomes_messages_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updates, "MOST_TEXT", 3)

    assert told(*[chunk("ab")] * 5) == [text("abab"), text("abab"), text("ab")]


def test_a_call_whose_input_is_on_its_way_is_told_when_it_is_there() -> None:
    use, result = told(
        call(rawInput={}, kind="tool_call", title="Shell", _meta={"toolName": "run_shell_command"}),
        update(rawInput={"command": "ls"}),
        update("in_progress"),
        update("completed", content=[{"type": "content", "content": {"type": "text", "text": "out"}}]),
    )

    assert use == {"is": "tool_use", "id": "c1", "name": "run_shell_command", "input": {"command": "ls"}}
    assert result == {"is": "tool_result", "tool_use_id": "c1", "content": "out", "is_error": False}


def test_an_update_alone_creates_the_call() -> None:
    use, result = told(update("failed", title="echo hi", kind_="x", rawOutput={"message": "no"}))

    assert use["input"] == {"title": "echo hi"}
    assert (result["content"], result["is_error"]) == ("no", True)


def test_a_call_that_runs_is_told_though_its_input_never_comes() -> None:
    assert [block["input"] for block in told(call("in_progress", title="ls"))] == [{"title": "ls"}]
    found = Updates()
    assert found.take(call("pending", title="ls"), 9) == []
    assert len(found.take(update("in_progress"), 9)) == 1


def test_that_a_mode_was_set_is_not_the_agents_answer() -> None:
    assert told(chunk("[MODE_UPDATE] yolo"), chunk("hi")) == [("system", "notice"), text("hi")]


def test_a_call_that_never_ends_is_told_at_the_end_of_the_turn() -> None:
    (use,) = told(call(rawInput={"a": 1}))

    assert use["input"] == {"a": 1}


def test_what_comes_after_its_end_is_not_told_again_and_a_new_call_of_that_id_is() -> None:
    said = told(
        call("completed", rawInput={"n": 1}, rawOutput="1"),
        update("completed", rawOutput="again"),
        call("completed", rawInput={"n": 2}, rawOutput="2"),
    )

    assert [block.get("content", block.get("input")) for block in said] == [{"n": 1}, "1", {"n": 2}, "2"]


@pytest.mark.parametrize(
    ("said", "output"),
    [
        (
            {"content": [{"type": "diff", "path": "/workspace/a", "oldText": "", "newText": "b"}]},
            "changed /workspace/a",
        ),
        ({"rawOutput": {"output": "x", "metadata": {}}}, "x"),
        ({"rawOutput": {"exit": 3}}, '{"exit":3}'),
        ({"rawOutput": [1]}, "[1]"),
        ({"content": 7, "rawOutput": None}, ""),
        ({"content": [7, {"type": "terminal", "terminalId": "t"}]}, ""),
    ],
)
def test_what_a_tool_gave_back_as_text(said: dict[str, Any], output: str) -> None:
    assert told(call("completed", rawInput={"a": 1}, **said))[1]["content"] == output


def test_the_calls_kept_in_mind_are_bounded_and_each_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updates, "MOST_CALLS", 2)

    assert [use["id"] for use in told(*(call(id=f"c{n}", rawInput={"n": n}) for n in range(4)))] == [
        "c0", "c1", "c2", "c3",
    ]  # fmt: skip


def test_a_state_is_told_if_it_is_new() -> None:
    plan = {"sessionUpdate": "plan", "entries": [{"content": "a", "priority": "high", "status": "pending"}]}

    assert told(plan, plan, {**plan, "entries": []}) == [("system", "plan")] * 2


def test_an_update_that_we_do_not_know_is_kept() -> None:
    (folded,) = Updates().take({"sessionUpdate": "result", "type": "result"}, 10)

    message = parse_message(folded)
    assert message.type == "session/update"
    assert message.raw["original"] == {"sessionUpdate": "result", "type": "result"}


def test_a_picture_is_kept_between_the_texts() -> None:
    image = {"type": "image", "data": "AA==", "mimeType": "image/png"}
    found = Updates()

    assert found.take(chunk("a"), 9) == []
    first, second = found.take({"sessionUpdate": "agent_message_chunk", "content": image}, 9)
    assert first["message"]["content"] == [{"type": "text", "text": "a"}]
    assert second["message"]["content"] == [image]


@pytest.mark.parametrize(
    ("usage", "given", "read"),
    [
        # copilot and qwen count the cache's among the input's, opencode beside them.
        ({"inputTokens": 200, "outputTokens": 40, "totalTokens": 240, "cachedReadTokens": 20}, 180, 20),
        ({"inputTokens": 90, "outputTokens": 20, "totalTokens": 120, "cachedReadTokens": 10}, 90, 10),
    ],
)
def test_tokens_are_in_one_shape(usage: dict[str, int], given: int, read: int) -> None:
    numbers = Updates().end({"usage": usage})[1]["usage"]

    assert (numbers["input_tokens"], numbers["cache_read_input_tokens"]) == (given, read)


def test_tokens_that_come_with_the_pieces_are_added_up_for_each_turn() -> None:
    usage = {"inputTokens": 100, "outputTokens": 20, "totalTokens": 120, "cachedReadTokens": 10}
    found = Updates()
    for _ in range(2):
        found.take(chunk("", _meta={"usage": usage}), 9)

    assert found.end({})[1]["usage"]["output_tokens"] == 40
    assert "usage" not in found.end({})[1]


def test_tokens_that_an_agent_counts_on_are_those_of_the_turn_and_none_if_there_are_no_more() -> None:
    """copilot does, and that a turn used nothing is how it is known to have failed."""
    found = Updates(counts_on=True)
    totals = [{"inputTokens": 100 * n, "outputTokens": 20 * n, "totalTokens": 120 * n} for n in (2, 3, 3)]
    first, second, third = (found.end({"usage": total})[1] for total in totals)

    assert (first["usage"]["input_tokens"], first["usage"]["output_tokens"]) == (200, 40)
    assert (second["usage"]["input_tokens"], second["usage"]["output_tokens"]) == (100, 20)
    assert "usage" not in third


def test_the_cost_is_the_sessions_and_in_dollars() -> None:
    found = Updates()
    found.take({"sessionUpdate": "usage_update", "used": 1, "size": 2, "cost": {"amount": 0.25, "currency": "USD"}}, 9)
    found.take({"sessionUpdate": "usage_update", "used": 1, "size": 2, "cost": {"amount": 9, "currency": "EUR"}}, 9)

    assert found.end({})[1]["total_cost_usd"] == found.end({})[1]["total_cost_usd"] == 0.25


def written(update: Any) -> dict[str, Any]:
    """An update as the protocol's own library writes it."""
    found: dict[str, Any] = update.model_dump(mode="json", by_alias=True, exclude_none=True)
    return found


def test_what_the_protocols_own_library_writes_is_read() -> None:
    diff = helpers.tool_diff_content("/workspace/a", "y", "x")
    gone = helpers.tool_content(helpers.text_block("gone"))

    said = told(
        written(helpers.update_user_message_text("ask")),
        written(helpers.update_agent_thought_text("hm")),
        written(helpers.update_agent_message_text("Let me.")),
        written(helpers.update_agent_message(helpers.image_block("AA==", "image/png"))),
        written(helpers.start_edit_tool_call("e", "Edit a", "/workspace/a", {"old": "x"})),
        written(helpers.update_tool_call("e", status="completed", content=[diff])),
        written(helpers.start_read_tool_call("r", "Read a", "/workspace/a")),
        written(helpers.update_tool_call("r", status="failed", content=[gone])),
        written(helpers.update_plan([helpers.plan_entry("do it")])),
        written(helpers.update_current_mode("ask")),
        written(helpers.update_available_commands([])),
    )  # fmt: skip

    blocks = [each for each in said if isinstance(each, dict)]
    assert [block["is"] for block in blocks] == [
        "text", "thinking", "text", "image", "tool_use", "tool_result", "tool_use", "tool_result",
    ]  # fmt: skip
    assert [(use["id"], use["name"]) for use in blocks if use["is"] == "tool_use"] == [("e", "edit"), ("r", "read")]
    assert [(end["content"], end["is_error"]) for end in blocks if end["is"] == "tool_result"] == [
        ("changed /workspace/a", False), ("gone", True),
    ]  # fmt: skip
    assert [each for each in said if not isinstance(each, dict)] == [
        ("system", "plan"), ("system", "current_mode_update"), ("system", "available_commands_update"),
    ]  # fmt: skip


values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
KEYS = (
    "content",
    "rawInput",
    "rawOutput",
    "status",
    "title",
    "name",
    "kind",
    "_meta",
    "cost",
    "messageId",
    "locations",
)


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from((*updates._CHUNKS, *updates.STATES, "tool_call", "tool_call_update", "new", 3)),
            st.dictionaries(st.sampled_from(KEYS), values, max_size=4),
        ),
        max_size=8,
    )
)
def test_no_updates_are_an_exception(said: list[tuple[object, dict[str, Any]]]) -> None:
    told(*({"sessionUpdate": kind, "toolCallId": "c", **fields} for kind, fields in said))
