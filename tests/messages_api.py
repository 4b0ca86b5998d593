"""A stand-in for the Messages API (`POST /v1/messages`), so that the real claude CLI runs without an account.

    python3 messages_api.py --port 0 --port-file FILE

It listens on 127.0.0.1 and does what the newest prompt with a directive says, a line a directive:

    say: TEXT            answer with the text
    think: TEXT          think it, then answer "ok"
    bash: COMMAND        call the Bash tool; ` ;; ` between commands makes several calls in one turn
    tool: NAME {JSON}    call any tool
    slow: N              answer with N words, one a second
    hang                 never answer
    error: CODE          answer with that HTTP status; `error: CODE retry` allows the client to try again

Tools are called one line a turn; after the last one it answers "done: " and the first 200 characters of
what the tool gave back, or with the next line if that is no tool. A prompt without a directive gets "ok".

It must run in a small container too: Python 3.9, the standard library and no more. On Debian that is
`python3`: python3-minimal lacks http, json and socketserver, which are in libpython3-stdlib.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Iterator  # noqa: UP035 - for Python 3.9

DIRECTIVE = re.compile(r"^\s*(?:(say|think|bash|tool|slow|error): ?(.*)|(hang))\s*$", re.MULTILINE)
REMINDER = re.compile(r"<system-reminder>.*?</system-reminder>", re.DOTALL)
Block = dict[str, Any]


def texts(content: Any) -> str:
    """The text of a message's content: a str, or a list of blocks of which some are text."""
    if isinstance(content, str):
        return content
    return "\n".join(block.get("text") or "" for block in content or [] if block.get("type") == "text")


def script(message: Block) -> list[tuple[str, str]]:
    """The directives of a message, as (name, argument)."""
    if message.get("role") != "user":
        return []
    prompt = REMINDER.sub("", texts(message.get("content")))
    return [(name or hang, argument.strip()) for name, argument, hang in DIRECTIVE.findall(prompt)]


def last_result(messages: list[Block]) -> str:
    """The first 200 characters of what the newest tool gave back."""
    for message in reversed(messages):
        blocks = message.get("content")
        results = [b for b in blocks if b.get("type") == "tool_result"] if isinstance(blocks, list) else []
        if results:
            return "\n".join(texts(result.get("content")) for result in results)[:200]
    return ""


def step(messages: list[Block]) -> tuple[str, str]:
    """What to do now, as (directive, argument)."""
    newest = max((i for i, message in enumerate(messages) if script(message)), default=None)
    if newest is None:
        return "say", "ok"
    steps = script(messages[newest])
    turn = sum(message.get("role") == "assistant" for message in messages[newest:])
    return steps[turn] if turn < len(steps) else ("say", f"done: {last_result(messages)}")


def answer(directive: str, argument: str, tools: set[str]) -> list[Block]:
    """The content blocks of an answer."""
    if directive == "think":
        return [
            {"type": "thinking", "thinking": argument, "signature": "c2lnbmF0dXJl"},
            {"type": "text", "text": "ok"},
        ]
    if directive == "slow":
        return [{"type": "text", "text": " ".join(f"word{n}" for n in range(1, int(argument) + 1))}]
    if directive == "bash":
        calls = [("Bash", {"command": command, "description": "a step"}) for command in argument.split(" ;; ")]
    elif directive == "tool":
        name, _, fields = argument.partition(" ")
        calls = [(name, json.loads(fields or "{}"))]
    else:
        return [{"type": "text", "text": argument}]
    if not {name for name, _ in calls} <= tools:  # a side question of the client, which offers no tools
        return [{"type": "text", "text": "ok"}]
    return [
        {"type": "tool_use", "id": f"toolu_{time.time_ns()}{n}", "name": name, "input": fields}
        for n, (name, fields) in enumerate(calls)
    ]


def deltas(block: Block) -> list[Block]:
    """A block as the pieces in which the API streams it."""
    if block["type"] == "text":
        return [{"type": "text_delta", "text": word} for word in re.findall(r"\S+\s*|\s+", block["text"])]
    if block["type"] == "thinking":
        return [
            {"type": "thinking_delta", "thinking": block["thinking"]},
            {"type": "signature_delta", "signature": block["signature"]},
        ]
    return [{"type": "input_json_delta", "partial_json": json.dumps(block["input"])}]


def events(message: Block) -> Iterator[Block]:
    """A whole message as the events in which the API streams it."""
    yield {"type": "message_start", "message": {**message, "content": [], "stop_reason": None}}
    for index, block in enumerate(message["content"]):
        empty = {"text": "", "thinking": "", "signature": "", "input": {}}
        start = {key: empty.get(key, value) for key, value in block.items()}
        yield {"type": "content_block_start", "index": index, "content_block": start}
        for delta in deltas(block):
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    yield {
        "type": "message_delta",
        "delta": {"stop_reason": message["stop_reason"], "stop_sequence": None},
        "usage": message["usage"],
    }
    yield {"type": "message_stop"}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        path = self.path.partition("?")[0]
        if path == "/v1/messages":
            if kept := getattr(self.server, "requests", None):
                with open(kept, "a") as file:  # noqa: PTH123  a path on the command line, which stays a str
                    file.write(f"{json.dumps(body)}\n")
            self.answer(body)
        elif path == "/v1/messages/count_tokens":
            self.send(200, {"input_tokens": len(json.dumps(body)) // 4})
        else:
            self.send_error_object(404, "not_found_error")

    def do_GET(self) -> None:
        if self.path == "/":
            self.send(200, {})
        else:
            self.send_error_object(404, "not_found_error")

    def do_HEAD(self) -> None:
        self.do_GET()

    def answer(self, body: Block) -> None:
        directive, argument = step(body.get("messages") or [])
        if directive == "hang":
            threading.Event().wait()
        if directive == "error":
            code, _, retry = argument.partition(" ")
            self.send_error_object(int(code), "api_error", retry=bool(retry))
            return
        content = answer(directive, argument, {tool.get("name") for tool in body.get("tools") or []})
        message = {
            "id": f"msg_{time.time_ns()}",
            "type": "message",
            "role": "assistant",
            "model": body.get("model", ""),
            "content": content,
            "stop_reason": "tool_use" if content[-1]["type"] == "tool_use" else "end_turn",
            "stop_sequence": None,
            "usage": {
                "input_tokens": 10,
                "output_tokens": 5,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 0,
            },
        }
        if body.get("stream"):
            self.stream(message, pause=1 if directive == "slow" else 0)
        else:
            self.send(200, message)

    def stream(self, message: Block, pause: float) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for event in events(message):
            if event["type"] == "content_block_delta":
                time.sleep(pause)
            self.wfile.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
            self.wfile.flush()
        self.close_connection = True

    def send(self, code: int, value: Block, **headers: str) -> None:
        data = json.dumps(value).encode()
        self.send_response(code)
        for name, text in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **headers,
        }.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def send_error_object(self, code: int, kind: str, *, retry: bool = False) -> None:
        error = {"type": "error", "error": {"type": kind, "message": f"scripted {code}"}}
        self.send(code, error, **{"x-should-retry": str(retry).lower()})

    def log_message(self, *args: object) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    requests: str | None = None
    block_on_close = False  # a thread that hangs must not hold up the end

    def handle_error(self, *args: object) -> None:
        """Say nothing: a client that leaves in the middle of an answer is part of the game."""


def main(told: str = "A stand-in for the Messages API.", handler: type[Handler] = Handler) -> None:
    parser = argparse.ArgumentParser(description=told)
    parser.add_argument("--port", type=int, default=0, help="0, the default, takes any free port")
    parser.add_argument("--port-file", help="write the port to this file once it listens")
    parser.add_argument("--requests", help="add each request to this file, a line of JSON each")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with Server(("127.0.0.1", options.port), handler) as server:
        server.requests = options.requests
        if options.port_file:
            partial = f"{options.port_file}.{os.getpid()}"
            with open(partial, "w") as file:  # noqa: PTH123 - one rename makes the file appear whole
                file.write(str(server.server_port))
            os.replace(partial, options.port_file)  # noqa: PTH105  strings, as argparse gives them
        server.serve_forever()


if __name__ == "__main__":
    main()
