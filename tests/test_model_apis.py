"""The stand-ins for the APIs of OpenAI and of Gemini do what a prompt tells them."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).with_name("model_apis.py")


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    file = tmp_path_factory.mktemp("apis") / "port"
    with subprocess.Popen([sys.executable, PROGRAM, f"--port-file={file}"]) as process:
        while not file.exists():
            assert process.poll() is None
            time.sleep(0.02)
        yield int(file.read_text())
        process.terminate()


def ask(port: int, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST", path, json.dumps(body))
    response = connection.getresponse()
    data = response.read()
    connection.close()
    return response.status, json.loads(data)


def request(api: str, prompt: str, *more: Any) -> tuple[str, dict[str, Any]]:
    """A request of each API with a prompt, and what came after it."""
    tool = {"name": "bash"}
    if api == "responses":
        return "/v1/responses", {
            "input": [{"type": "message", "role": "user", "content": prompt}, *more],
            "tools": [tool],
        }
    if api == "chat":
        messages = [{"role": "user", "content": prompt}, *more]
        return "/v1/chat/completions", {"messages": messages, "tools": [{"type": "function", "function": tool}]}
    contents = [{"role": "user", "parts": [{"text": prompt}]}, *more]
    tools = [{"functionDeclarations": [{"name": "run_shell_command"}]}]
    return "/v1beta/models/m:generateContent", {"contents": contents, "tools": tools}


CALLED = {
    "responses": ({"type": "function_call", "name": "bash"}, {"type": "function_call_output", "output": "hi"}),
    "chat": ({"role": "assistant", "tool_calls": [{}]}, {"role": "tool", "content": "hi"}),
    "gemini": (
        {"role": "model", "parts": [{"functionCall": {}}]},
        {"role": "user", "parts": [{"functionResponse": {"response": {"output": "hi"}}}]},
    ),
}


def test_gemini_that_asks_for_a_model_gets_an_answer_that_fits_its_schema(port: int) -> None:
    fields = {"why": {"type": "STRING"}, "score": {"type": "INTEGER"}, "kind": {"type": "string", "enum": ["a", "b"]}}
    schema = {"type": "OBJECT", "properties": fields, "required": ["why", "score", "kind"]}
    path, body = request("gemini", "say: hello")

    _, told = ask(port, path, {**body, "generationConfig": {"responseJsonSchema": schema}})

    (part,) = told["candidates"][0]["content"]["parts"]
    assert json.loads(part["text"]) == {"why": "ok", "score": 1, "kind": "a"}


@pytest.mark.parametrize("api", CALLED)
def test_each_api_says_what_it_is_told_calls_the_tool_and_fails(port: int, api: str) -> None:
    assert "all of it" in json.dumps(ask(port, *request(api, "say: all of it")))
    told = json.dumps(ask(port, *request(api, "bash: echo hi")))
    assert "echo hi" in told
    assert ("run_shell_command" if api == "gemini" else '"bash"') in told
    assert "done: hi" in json.dumps(ask(port, *request(api, "bash: echo hi", *CALLED[api])))
    status, error = ask(port, *request(api, "error: 401"))
    assert (status, error["error"]["message"]) == (401, "scripted 401")
