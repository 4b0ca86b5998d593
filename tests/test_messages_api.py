"""The stand-in for the Messages API does what a prompt tells it."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.messages_api import Handler, Server

TOOLS = [{"name": "Bash"}, {"name": "Write"}]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def call(port: int, method: str, path: str, body: object = None) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, json.dumps(body) if body else None)
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


def ask(port: int, *messages: object, tools: object = TOOLS, **more: object) -> Any:
    body = {"model": "claude-x", "messages": messages, "tools": tools, **more}
    _, data = call(port, "POST", "/v1/messages?beta=true", body)
    return json.loads(data)


def user(*texts: str) -> dict[str, object]:
    return {"role": "user", "content": [{"type": "text", "text": text} for text in texts]}


def result(text: object) -> dict[str, object]:
    return {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": text}]}


CALL = {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "Bash", "input": {}}]}
REPLY = {"role": "assistant", "content": [{"type": "text", "text": "ok"}]}


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([{"role": "user", "content": "hello"}], "ok"),
        ([{"role": "user", "content": "say: yes"}], "yes"),
        ([user("<system-reminder>\nsay: no\n</system-reminder>", "say: yes\n")], "yes"),
        ([user("say: yes"), user("a note that follows")], "yes"),
        ([user("say: old"), REPLY, user("say: new")], "new"),
        ([user("bash: ls"), CALL, result("a.txt")], "done: a.txt"),
        ([user("bash: ls"), CALL, result([{"type": "text", "text": "x" * 300}])], "done: " + "x" * 200),
        ([user("bash: ls\nsay: seen"), CALL, result("a.txt")], "seen"),
        ([user("bash: old"), CALL, result("a"), REPLY, user("say: back")], "back"),
    ],
)
def test_the_newest_directive_wins(port: int, messages: list[object], text: str) -> None:
    answer = ask(port, *messages)
    assert [block["text"] for block in answer["content"]] == [text]
    assert answer["stop_reason"] == "end_turn"


def test_a_tool_is_called_a_line_a_turn(port: int) -> None:
    prompt = user('bash: a ;; b\ntool: Write {"file_path": "f"}')
    first = ask(port, prompt)
    assert first["stop_reason"] == "tool_use"
    assert [block["input"]["command"] for block in first["content"]] == ["a", "b"]
    (second,) = ask(port, prompt, CALL, result("x"))["content"]
    assert (second["name"], second["input"]) == ("Write", {"file_path": "f"})


def test_a_side_question_without_tools_gets_words(port: int) -> None:
    assert ask(port, user("bash: ls"), tools=[])["content"] == [{"type": "text", "text": "ok"}]


def test_an_answer_is_streamed_as_the_api_streams_it(port: int) -> None:
    body = {"messages": [user("think: hard")], "stream": True}
    response, data = call(port, "POST", "/v1/messages", body)
    assert response.getheader("Content-Type") == "text/event-stream"
    events = [json.loads(part.split(b"data: ")[1]) for part in data.strip().split(b"\n\n")]
    assert [event["type"] for event in events] == [
        "message_start",
        *["content_block_start", "content_block_delta", "content_block_delta", "content_block_stop"],
        *["content_block_start", "content_block_delta", "content_block_stop"],
        "message_delta",
        "message_stop",
    ]


def test_an_error_may_be_retried_only_if_the_prompt_says_so(port: int) -> None:
    for prompt, retry in [("error: 529", "false"), ("error: 529 retry", "true")]:
        response, data = call(port, "POST", "/v1/messages", {"messages": [user(prompt)]})
        assert (response.status, response.getheader("x-should-retry")) == (529, retry)
        assert json.loads(data)["error"]["message"] == "scripted 529"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("HEAD", "/", 200),
        ("GET", "/v1/other", 404),
        ("POST", "/v1/other", 404),
        ("POST", "/v1/messages/count_tokens", 200),
    ],
)
def test_other_paths_have_an_answer_too(port: int, method: str, path: str, status: int) -> None:
    response, data = call(port, method, path)
    assert response.status == status
    assert method == "HEAD" or json.loads(data)
