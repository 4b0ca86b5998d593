"""Every line that an agent can write becomes a message, and every attribute of it can be read."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle
import resource
import tracemalloc
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from container_runner.errors import AgentKilledError, TotalTimeoutError
from container_runner.stream import blocks, decode, messages
from container_runner.stream.blocks import ApiMessage, ServerToolResultBlock
from container_runner.stream.decode import fits, load
from container_runner.stream.lines import LineSplitter, OversizedLine
from container_runner.stream.messages import (
    AgentMessage,
    AssistantMessage,
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
    parse_line,
    parse_message,
)

DATA = Path(__file__).parent.parent / "data"
STREAMS = sorted((DATA / "streams").glob("*.jsonl"))
WRITTEN = (DATA / "messages.jsonl").read_bytes().splitlines()


def read_everything(value: object) -> dict[str, Any]:
    """Every public attribute of a message or a block, and of the blocks in it."""
    names = [name for name in dir(value) if not name.startswith("_")]
    found = {name: getattr(value, name) for name in names}
    assert len(repr(value)) < 1_000
    assert repr(value).isprintable()
    for block in found.get("content") or () if isinstance(value, AgentMessage) else ():
        read_everything(block)
    return found


def stream(name: str) -> list[AgentMessage]:
    splitter = LineSplitter()
    lines = splitter.push((DATA / "streams" / f"{name}.jsonl").read_bytes()) + splitter.flush()
    found = [parse_line(line) for line in lines if isinstance(line, bytes)]
    return [message for message in found if isinstance(message, AgentMessage)]


def only(name: str, kind: type[AgentMessage]) -> Any:
    (message,) = [message for message in stream(name) if isinstance(message, kind)]
    return message


# What the real CLI wrote


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem)
def test_every_line_of_a_recorded_stream_is_a_message_that_we_know(path: Path) -> None:
    lines = path.read_bytes().splitlines()
    found = stream(path.stem)
    assert len(found) == len(lines) > 0
    for line, message in zip(lines, found, strict=True):
        assert not isinstance(message, UnknownMessage)
        read_everything(message)
        assert message.session_id
        assert message.type == message.raw["type"]
        assert orjson.loads(message.to_json()) == message.to_dict() == json.loads(line)
        for block in message.content if isinstance(message, AssistantMessage | UserMessage) else ():
            assert not isinstance(block, UnknownBlock)


def test_a_run_opens_with_init_and_ends_with_its_result() -> None:
    init, answer, result = stream("text")
    assert isinstance(init, SystemMessage)
    assert init.is_init
    assert (init.cwd, "Bash" in init.tools, init.model[:6]) == ("/workspace", True, "claude")
    assert isinstance(answer, AssistantMessage)
    assert answer.text == "Hello from the stand-in."
    assert answer.content == [TextBlock("Hello from the stand-in.")]
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.total) == (10, 15)
    assert (answer.parent_tool_use_id, answer.error, answer.stop_reason) == (None, None, None)
    assert answer.message_id.startswith("msg_")
    assert isinstance(result, ResultMessage)
    assert (result.subtype, result.is_error, result.result) == ("success", False, "Hello from the stand-in.")
    assert (result.num_turns, result.stop_reason, result.terminal_reason) == (1, "end_turn", "completed")
    assert result.session_id == init.session_id
    assert result.duration_ms
    assert result.total_cost_usd == pytest.approx(0.00014)
    assert result.usage == Usage(input_tokens=10, output_tokens=5)
    assert list(result.model_usage) == [init.model]
    assert (result.errors, result.permission_denials, result.structured_output) == ([], [], None)


def test_a_tool_and_its_result_find_each_other() -> None:
    _, call, back, answer, _ = stream("bash")
    assert isinstance(call, AssistantMessage)
    (use,) = call.content
    assert isinstance(use, ToolUseBlock)
    assert (use.name, use.input["command"]) == ("Bash", "echo hello > greeting.txt && cat greeting.txt")
    assert call.text == ""
    assert isinstance(back, UserMessage)
    (result,) = back.content
    assert isinstance(result, ToolResultBlock)
    assert (result.tool_use_id, result.text, result.is_error) == (use.id, "hello", False)
    assert back.tool_use_result["stdout"] == "hello"
    assert isinstance(answer, AssistantMessage)
    assert answer.text == "done: hello"


def test_blocks_of_one_turn_share_a_message_id() -> None:
    calls = [message for message in stream("several-tools") if isinstance(message, AssistantMessage)]
    assert calls[0].message_id == calls[1].message_id != calls[2].message_id
    failed = [message for message in stream("several-tools") if isinstance(message, UserMessage)][-1]
    assert [block.is_error for block in failed.content if isinstance(block, ToolResultBlock)] == [True]


def test_a_thought_is_not_text() -> None:
    thought, answer = [message for message in stream("thinking") if isinstance(message, AssistantMessage)]
    (block,) = thought.content
    assert isinstance(block, ThinkingBlock)
    assert block.thinking.startswith("The stand-in is scripted")
    assert (thought.text, answer.text) == ("", "ok")


def test_partial_messages_add_up_to_the_answer() -> None:
    events = [message for message in stream("partial") if isinstance(message, StreamEvent)]
    assert {event.event_type for event in events} >= {"message_start", "content_block_delta", "message_stop"}
    assert "".join(event.text for event in events) == "done: partial"


def test_resuming_keeps_the_session_and_forking_leaves_it() -> None:
    first, resumed, forked = (only(name, ResultMessage).session_id for name in ("text", "resume", "fork"))
    assert first == resumed != forked


@pytest.mark.parametrize(
    ("name", "subtype", "terminal_reason", "words"),
    [
        ("api-error", "success", "api_error", "API Error: 400 scripted 400"),
        ("max-turns", "error_max_turns", "max_turns", "Reached maximum number of turns (1)"),
        ("sigint", "error_during_execution", "aborted_tools", ""),
        ("unknown-session", "error_during_execution", None, "No conversation found with session ID: 0000"),
    ],
)
def test_a_failed_run_says_so(name: str, subtype: str, terminal_reason: str | None, words: str) -> None:
    result = only(name, ResultMessage)
    assert result.is_error
    assert (result.subtype, result.terminal_reason) == (subtype, terminal_reason)
    assert " ".join([*result.errors, result.result]).startswith(words)


def test_an_agent_that_was_terminated_gives_no_result() -> None:
    assert not [message for message in stream("sigterm") if isinstance(message, ResultMessage)]


# What is known of the other types


@pytest.mark.parametrize("line", WRITTEN, ids=lambda line: "-".join(type_of(line)))
def test_every_written_line_is_a_message_that_we_know(line: bytes) -> None:
    message = parse_line(line)
    assert isinstance(message, AgentMessage)
    assert not isinstance(message, UnknownMessage)
    assert message.type == type_of(line)[0]
    read_everything(message)
    assert orjson.loads(message.to_json()) == orjson.loads(line)


def type_of(line: bytes) -> tuple[str, ...]:
    raw = orjson.loads(line)
    return tuple(raw[key] for key in ("type", "subtype") if key in raw)


def written(kind: type[AgentMessage]) -> list[Any]:
    return [message for message in map(parse_line, WRITTEN) if isinstance(message, kind)]


def test_each_type_has_its_class() -> None:
    assert [m.rate_limit_info for m in written(RateLimitEvent)] == [
        RateLimitInfo("allowed_warning", 1_790_000_000, "five_hour", 0.9)
    ]
    (progress,) = written(ToolProgressMessage)
    assert (progress.tool_use_id, progress.tool_name, progress.elapsed_time_seconds) == ("toolu_1", "Bash", 2.5)
    assert {m.type for m in written(NoticeMessage)} >= {"keep_alive", "control_request", "auth_status"}
    assert "compact_boundary" in {m.subtype for m in written(SystemMessage) if not m.is_init}
    success = written(ResultMessage)[0]
    assert [denial["tool_name"] for denial in success.permission_denials] == ["Bash"]
    assert (success.structured_output, success.usage.total) == ({"answer": 42}, 20)
    assert "rate_limit" in {m.error for m in written(AssistantMessage)}


def test_each_block_has_its_class() -> None:
    blocks = [block for message in written(AssistantMessage) for block in message.content]
    assert [type(block).__name__ for block in blocks] == [
        "TextBlock",
        "ThinkingBlock",
        "RedactedThinkingBlock",
        "ToolUseBlock",
        "ServerToolUseBlock",
        "ServerToolResultBlock",  # of a type that is not declared
        "ServerToolResultBlock",
        "UnknownBlock",
        "TextBlock",
    ]
    assert blocks[7] == UnknownBlock("hologram", {"type": "hologram", "beam": 1})


def test_a_tool_result_of_blocks_has_the_text_of_its_text_blocks() -> None:
    (block,) = written(UserMessage)[1].content
    assert (block.text, block.is_error) == ("Exit code 1", True)


def test_a_plain_text_is_one_block() -> None:
    assert written(UserMessage)[2].content == [TextBlock("go on")]


# What no agent should write


@pytest.mark.parametrize("line", [b"", b" ", b"\r", b" \t\r"])
def test_a_blank_line_is_nothing(line: bytes) -> None:
    assert parse_line(line) is None


@pytest.mark.parametrize(
    "line",
    [
        b"Warning: something",
        b"[1, 2]",
        b'"text"',
        b"12",
        b"null",
        b"true",
        b'{"type": "assistant"',
        b'{"type": NaN}',
        b"\xef\xbb\xbf{}",
        b"\xff\xfe{}",
        b"{" * 100_000,
        b'{"a":' * 2_000 + b"1" + b"}" * 2_000,
        b'{"a":' * 300 + b"1" + b"}" * 300,
    ],
    ids=lambda line: line[:20],
)
def test_what_is_no_json_object_is_output(line: bytes) -> None:
    message = parse_line(line)
    assert message == OutputLine(line)
    read_everything(message)
    assert orjson.loads(message.to_json()) == {"type": "output", "text": line.decode(errors="replace")}


@pytest.mark.parametrize("depth", [100, 254])
def test_a_nested_object_that_can_be_written_is_a_message(depth: int) -> None:
    line = b'{"a":' * depth + b"1" + b"}" * depth
    message = parse_line(line)
    assert isinstance(message, UnknownMessage)
    assert message.to_json() == line


def test_a_text_full_of_brackets_is_not_taken_for_nesting() -> None:
    line = orjson.dumps({"type": "result", "subtype": "success", "is_error": False, "result": "{[" * 10_000})
    assert isinstance(parse_line(line), ResultMessage)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (rb"half an emoji \ud83d", "half an emoji \ufffd"),
        (rb"the other half \ude00!", "the other half \ufffd!"),
        (rb"a whole one \ud83d\ude00", "a whole one \U0001f600"),
        (rb"half \ud83d, whole \ud83d\ude00", "half \ufffd, whole \U0001f600"),
        (rb"not an escape: \\ud83d", r"not an escape: \ud83d"),
        (b"not utf-8: \xff", "not utf-8: \ufffd"),
    ],
)
def test_a_damaged_text_does_not_cost_the_message(text: bytes, read: str) -> None:
    message = parse_line(b'{"type":"result","subtype":"success","is_error":false,"result":"' + text + b'"}')
    assert isinstance(message, ResultMessage)
    assert message.result == read
    assert orjson.loads(message.to_json()) == message.raw


@pytest.mark.parametrize("number", [b"1e999", b"9" * 5_000])
def test_a_number_that_no_float_holds_does_not_cost_the_message(number: bytes) -> None:
    message = parse_line(b'{"type":"assistant","n":' + number + b',"m":18446744073709551616}')
    assert isinstance(message, AssistantMessage)
    assert message.raw == {"type": "assistant", "n": math.inf, "m": 2.0**64}
    assert orjson.loads(message.to_json()) == {"type": "assistant", "n": None, "m": 2.0**64}


def test_of_two_equal_keys_the_last_one_counts() -> None:
    message = parse_line(b'{"type":"user","type":"result","is_error":true}')
    assert isinstance(message, ResultMessage)


@pytest.mark.parametrize("raw", [{}, {"type": "soon"}, {"type": None}, {"type": ["user"]}, {"type": {}}])
def test_an_unknown_type_is_kept_whole(raw: dict[str, Any]) -> None:
    message = parse_message({**raw, "more": [1]})
    assert isinstance(message, UnknownMessage)
    assert message.type == (raw.get("type") if isinstance(raw.get("type"), str) else "")
    assert message.to_dict() == {**raw, "more": [1]}


@pytest.mark.parametrize(
    ("raw", "is_error"),
    [
        ({"subtype": "success", "is_error": False}, False),
        ({"subtype": "success", "is_error": True}, True),
        ({"subtype": "error_max_turns", "is_error": False}, True),
        ({"subtype": "success"}, True),
        ({"subtype": "success", "is_error": 0}, True),
        ({"is_error": False}, True),
        ({}, True),
    ],
)
def test_a_result_is_good_only_if_all_of_it_says_so(raw: dict[str, Any], is_error: bool) -> None:
    assert parse_message({"type": "result", **raw}).is_error is is_error  # type: ignore[attr-defined]  # it is a result


@pytest.mark.parametrize("value", [-1, True, "12", None, [], {}, 2**80, 1e300, float("nan"), float("inf")])
def test_a_count_that_can_not_be_read_is_untold(value: object) -> None:
    raw = {"type": "result", "num_turns": value, "usage": {"input_tokens": value}, "total_cost_usd": value}
    message: Any = parse_message(raw)
    assert (message.num_turns, message.usage.total, message.total_cost_usd) == (None, 0, None)


TYPES = [*messages.CLASSES, *blocks._BLOCKS, "nobody"]
KINDS: list[Any] = [*{*messages.CLASSES.values(), *messages.NEWS.values()}]
NAMES = {
    info.encode_name for kind in (*KINDS, ApiMessage, Usage, ToolUseBlock) for info in msgspec.structs.fields(kind)
}
FIELDS = st.sampled_from(sorted(NAMES | {"type", "delta", "text", "thinking", "tool_use_id", "status"}))
SUBTYPES = st.sampled_from([*messages.NEWS, "init", "success"])
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    # no surrogates: they can not be written as UTF-8
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(FIELDS, inner, max_size=6),
    max_leaves=20,
)
OBJECTS = st.builds(
    lambda fields, kind: {**fields, "type": kind}, st.dictionaries(FIELDS, JSON), st.sampled_from(TYPES) | JSON
)


@given(OBJECTS)
def test_any_object_is_read_without_an_error_and_kept_whole(raw: dict[str, Any]) -> None:
    message = parse_line(orjson.dumps(raw))
    assert isinstance(message, AgentMessage)
    read_everything(message)
    assert orjson.loads(message.to_json()) == message.to_dict() == orjson.loads(orjson.dumps(raw))


@given(
    st.sampled_from([AssistantMessage, UserMessage]),
    st.lists(
        st.builds(lambda fields, kind: {**fields, "type": kind}, st.dictionaries(FIELDS, JSON), st.sampled_from(TYPES))
    ),
)
def test_any_block_is_read_without_an_error(kind: type[AgentMessage], content: list[Any]) -> None:
    message = parse_message({"type": kind.type, "message": {"content": content}})
    assert len(read_everything(message)["content"]) == len(content)


@given(st.binary() | st.binary().map(lambda data: b'{"type":"' + data + b'"}'))
def test_any_bytes_are_read_without_an_error(line: bytes) -> None:
    message = parse_line(line)
    if message is None:
        assert not line.strip()
    else:
        read_everything(message)
        orjson.loads(message.to_json())


# Both ways to read a line


def damaged(line: bytes, at: int, piece: bytes) -> bytes:
    at %= len(line) + 1
    return line[:at] + piece + line[at + len(piece) // 2 :]


PIECES = st.sampled_from(
    [b'"', b"\\", b"\\u", b"\\ud83d", b"\xff", b"\0", b"1e999", b"-", b"NaN", b"{", b"}", b"[", b"]", b",", b":", b" "]
)


def fields_of(value: Any) -> Any:
    """What a message says, without looking at its line."""
    if isinstance(value, msgspec.Struct):
        return type(value), [fields_of(getattr(value, name)) for name in value.__struct_fields__]
    if isinstance(value, dict):
        return {key: fields_of(item) for key, item in value.items()}
    if isinstance(value, list):
        return [fields_of(item) for item in value]
    # What 64 bits do not hold is exact one way, and a float the other.
    return float(value) if isinstance(value, int) and not -(2**63) <= value < 2**64 else value


@given(
    st.binary().map(lambda data: b'{"type":"' + data + b'"}')
    | OBJECTS.map(orjson.dumps)
    | st.builds(damaged, OBJECTS.map(orjson.dumps), st.integers(0, 2**16), PIECES | st.binary(max_size=4))
    | st.integers(250, 1_100).map(lambda depth: b'{"a":' * depth + b"1" + b"}" * depth)
)
@settings(max_examples=500)
def test_both_ways_to_read_a_line_agree(line: bytes) -> None:
    message = parse_line(line)
    if isinstance(message, AgentMessage):
        slow = parse_message(load(line))
        assert fields_of(slow) == fields_of(message)
        assert orjson.dumps(slow.raw) == orjson.dumps(message.raw)
    else:
        assert message is None or load(line) is None or not isinstance(load(line), dict) or not fits(line)


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem)
def test_what_claude_writes_takes_the_fast_way(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "load", lambda line: pytest.fail(f"not as declared: {line!r}"))
    for line in path.read_bytes().splitlines():
        assert b"task_" in line or b"api_retry" in line or isinstance(parse_line(line), AgentMessage)


@pytest.mark.parametrize(
    ("line", "read"),
    [
        (
            {"type": "result", "num_turns": 3, "usage": 5, "errors": ["a", 1, "b"]},
            {"num_turns": 3, "errors": ["a", "b"]},
        ),
        ({"type": "result", "usage": {"input_tokens": 3, "output_tokens": None}}, {"usage": Usage(input_tokens=3)}),
        ({"type": "result", "duration_ms": 12.7, "num_turns": "3"}, {"duration_ms": 12, "num_turns": None}),
        ({"type": "assistant", "message": {"id": 5, "model": "m", "content": 3}}, {"model": "m", "content": []}),
        (
            {"type": "assistant", "uuid": "u", "message": {"content": [{"type": "text", "text": 5}, 7, {"type": "x"}]}},
            {"uuid": "u", "content": [TextBlock(""), UnknownBlock("", 7), UnknownBlock("x", {"type": "x"})]},
        ),
        ({"type": "system", "subtype": "init", "tools": ["Bash", None]}, {"tools": ["Bash"], "is_init": True}),
        ({"type": "system", "subtype": "task_updated", "task_id": 1, "patch": {"status": 1}}, {"status": ""}),
    ],
)
def test_a_value_of_another_type_costs_no_more_than_itself(line: dict[str, Any], read: dict[str, Any]) -> None:
    message = parse_line(orjson.dumps(line))
    assert {name: getattr(message, name) for name in read} == read
    assert isinstance(message, AgentMessage)
    assert message.raw == line


# The budget


def test_a_line_of_brackets_fills_no_memory() -> None:
    """The line itself is 60 MB; its value took 3 GB."""
    line = b'{"type":"user","x":[' + b"[]," * 20_000_000 + b"[]]}"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = parse_line(line)
    assert message == OutputLine(line)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024


@pytest.mark.parametrize("piece", [b"[],", b'{"":""},', b'"ab",', b"1e5,", b"[[[]]],"])
def test_what_is_decoded_is_within_the_budget(piece: bytes) -> None:
    count = decode.VALUES // sum(map(piece.count, (b",", b"[", b"{")))
    within, over = (b'{"type":"soon","x":[' + piece * n + b"0]}" for n in (count - 10, count + 1))
    tracemalloc.start()
    try:
        message = parse_line(within)
        size, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(message, UnknownMessage)
    assert size < 150 * decode.VALUES + 4 * len(within)
    assert peak < 2 * (150 * decode.VALUES + 4 * len(within))
    assert parse_line(over) == OutputLine(over)


@pytest.mark.parametrize("text", [b"[{,]}", b"[,\\n", b'\\",[', b"\\\\"])
def test_brackets_and_commas_in_a_text_count_for_nothing(text: bytes) -> None:
    line = b'{"type":"result","subtype":"success","is_error":false,"result":"' + text * decode.VALUES + b'"}'
    assert isinstance(parse_line(line), ResultMessage)


@pytest.mark.parametrize(
    "line", [b'{"a":"' + b"[," * 2**20, b'{"a":[' + b'"",' * 2**20 + b'"', b'{"a":' + b'"' * 2**21]
)
def test_a_long_line_that_is_damaged_is_output(line: bytes) -> None:
    assert parse_line(line) == OutputLine(line)


# Made by hand

HI = AssistantMessage(content=[TextBlock("hi")])
MADE = [
    HI,
    AssistantMessage(content=[ToolUseBlock("1", "Bash", {"command": "ls"})], model="m", message_id="msg_1", error="x"),
    AssistantMessage(content=[UnknownBlock("x", {"type": "x"}), ThinkingBlock("t")], usage=Usage(input_tokens=1)),
    UserMessage(content=[ToolResultBlock("1", "done")], tool_use_result={"stdout": "done"}, session_id="s"),
    UserMessage(content=[ServerToolResultBlock("1", [{"type": "text", "text": "done"}])]),
    SystemMessage(subtype="init", model="m", cwd="/workspace", tools=["Bash"]),
    ResultMessage(
        subtype="success", is_error=False, result="Done.", num_turns=2, total_cost_usd=0.5, model_usage={"m": 1}
    ),
    ResultMessage(deferred_tool_use=DeferredToolUse("1", "Bash", {}), permission_denials=[{"tool_name": "Bash"}]),
    StreamEvent(event={"type": "message_stop"}, uuid="u"),
    RateLimitEvent(rate_limit_info=RateLimitInfo(status="allowed", resets_at=1)),
    ToolProgressMessage(tool_name="Bash", elapsed_time_seconds=2),
    ConversationResetMessage(new_conversation_id="c"),
    TaskStartedMessage(subtype="task_started", task_id="t", description="d"),
    TaskUpdatedMessage(subtype="task_updated", task_id="t", patch={"status": "killed"}),
    HookEventMessage(subtype="hook_started", hook_event_name="Stop"),
    parse_message({"type": "keep_alive"}),
    parse_message({"type": "soon", "more": [1]}),
]


@pytest.mark.parametrize("message", MADE, ids=lambda message: type(message).__name__)
def test_a_message_that_is_made_is_a_line_that_reads_the_same(message: AgentMessage) -> None:
    again = parse_line(message.to_json())
    assert again == message
    assert type(again) is type(message)
    assert fields_of(again) == fields_of(message)
    for copied in (copy.copy(message), copy.deepcopy(message), pickle.loads(pickle.dumps(message))):
        assert copied == message
        assert fields_of(copied) == fields_of(message)


def test_a_copy_keeps_what_only_its_line_says() -> None:
    message: Any = parse_line(b'{"type":"assistant","message":{"content":"hi"},"more":1}')
    assert message.raw["more"] == copy.deepcopy(message).raw["more"] == pickle.loads(pickle.dumps(message)).raw["more"]
    other = msgspec.structs.replace(message, error="x")
    assert other.raw == {"type": "assistant", "message": {"content": [{"type": "text", "text": "hi"}]}, "error": "x"}


def test_messages_are_compared_by_what_they_say() -> None:
    assert (
        parse_line(b'{"type":"assistant","message":{"role":"assistant","content":[{"type":"text","text":"hi"}]}}') == HI
    )
    assert AssistantMessage(content=[TextBlock("ho")]) != HI
    assert parse_line(b'{"type":"system","subtype":"x","a":1}') != parse_line(b'{"type":"system","subtype":"x","a":2}')
    assert parse_message({"type": "soon", "a": 1}) != parse_message({"type": "soon", "a": 2})
    assert SystemMessage() != UnknownMessage()


def test_messages_and_blocks_are_matched() -> None:
    match HI:
        case AssistantMessage(content=[TextBlock(text)], error=None):
            assert text == "hi"
        case _:
            pytest.fail("no match")


def test_usage_is_read_by_attribute_and_by_key() -> None:
    usage = Usage(input_tokens=3, output_tokens=4)
    assert (usage.input_tokens, usage["output_tokens"], usage.get("input_tokens"), usage.get("tier", 0)) == (3, 4, 3, 0)
    assert dict(usage) == {**usage} == msgspec.structs.asdict(usage)
    assert ("input_tokens" in usage, "tier" in usage) == (True, False)
    with pytest.raises(KeyError):
        usage["tier"]


def test_a_misspelt_attribute_is_an_error() -> None:
    with pytest.raises(AttributeError, match="'AssistantMessage' object has no attribute 'txt'"):
        HI.txt  # type: ignore[attr-defined]  # noqa: B018  it is misspelt


# claude-agent-sdk's names

SDK_NAMES = (
    *("TextBlock", "ThinkingBlock", "ToolUseBlock", "ToolResultBlock", "ServerToolUseBlock", "ServerToolResultBlock"),
    *("SystemMessage", "AssistantMessage", "UserMessage", "ResultMessage", "DeferredToolUse", "StreamEvent"),
    *("TaskStartedMessage", "TaskProgressMessage", "TaskUpdatedMessage", "TaskNotificationMessage"),
    *("HookEventMessage", "RateLimitEvent", "RateLimitInfo", "ConversationResetMessage"),
)


@pytest.mark.parametrize("name", SDK_NAMES)
def test_what_the_sdk_has_is_called_the_same_here(name: str) -> None:
    types = pytest.importorskip("claude_agent_sdk.types")
    ours = getattr(messages, name, None) or getattr(blocks, name)
    missing = {field.name for field in dataclasses.fields(getattr(types, name)) if not hasattr(ours, field.name)}
    assert missing == ({"raw"} if name == "RateLimitInfo" else set())


# How they look


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (HI, "AssistantMessage(content=[TextBlock(text='hi')])"),
        (
            AssistantMessage(content=[ToolUseBlock(id="1", name="Bash", input={"command": "ls\x1b"})], session_id="s"),
            r"AssistantMessage(content=[ToolUseBlock(id='1', name='Bash', input={'command': 'ls\x1b'})])",
        ),
        (SystemMessage(subtype="init", model="claude-x"), "SystemMessage(subtype='init', model='claude-x')"),
        (
            ResultMessage(subtype="success", is_error=False, result="Done."),
            "ResultMessage(subtype='success', result='Done.')",
        ),
        (parse_message({"type": "keep_alive"}), "NoticeMessage({'type': 'keep_alive'})"),
        (Usage(input_tokens=1), "Usage(input_tokens=1)"),
        (OutputLine(b"\x1b[31mred"), r"OutputLine('\x1b[31mred')"),
    ],
)
def test_a_message_is_pleasant_to_print(message: object, shown: str) -> None:
    assert repr(message) == shown


def test_a_message_of_megabytes_prints_as_one_short_line() -> None:
    block = ToolUseBlock("1", "W" * 10**6, {str(n): "\n" * 10**5 for n in range(20)})
    assert len(repr(AssistantMessage(content=[block] * 30))) < 1_000
    assert len(repr(OutputLine(b"x" * 10**6))) < 1_000


# Ours


def test_an_error_becomes_the_last_message() -> None:
    error = TotalTimeoutError("It ran for 60 s.", exit_code=143, stderr="last words\n")
    message = ErrorMessage.from_error(error, stop="term")
    assert message == ErrorMessage(
        kind="total_timeout",
        message="It ran for 60 s.",
        next_step=TotalTimeoutError.advice,
        exit_code=143,
        stderr="last words\n",
        stop="term",
    )
    assert (message.type, message.is_error, message.signal) == ("error", True, None)
    assert orjson.loads(message.to_json()) == {"type": "error", **msgspec.structs.asdict(message)}


def test_an_error_message_names_the_signal() -> None:
    error = AgentKilledError("A signal ended the agent.", signal=9, exit_code=137)
    assert ErrorMessage.from_error(error).signal == 9


@pytest.mark.parametrize("message", [OversizedLine(9, b"x"), OutputLine(b"x"), SystemMessage(), Usage()])
def test_messages_do_not_change(message: Any) -> None:
    with pytest.raises(AttributeError):
        setattr(message, message.__struct_fields__[0], None)
