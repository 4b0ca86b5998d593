"""Stand-ins for the model APIs of the agents that are not claude: OpenAI's two and Gemini's.

    python3 model_apis.py --port 0 --port-file FILE

It speaks `POST …/responses`, `POST …/chat/completions`, `POST …:generateContent` and `…:streamGenerateContent`. What it
answers is said in the prompt, by the directives of `messages_api.py`, which lies beside it: a request becomes one of
the Messages API, and the blocks of the answer become what the API that was asked would stream. `bash:` calls whichever
tool for commands the agent has.

It must run in a small container too: Python 3.9, the standard library and no more.
"""

from __future__ import annotations

import json
import re
import time
from typing import Any, Iterator  # noqa: UP035 - for Python 3.9

import messages_api  # type: ignore[import-not-found,unused-ignore]  # it lies beside this file, which is run by its path

Block = dict[str, Any]

SHELLS = {
    "exec_command": "cmd",
    "shell_command": "command",
    "bash": "command",
    "run_shell_command": "command",
}
"""The tools for commands, and what they call the command."""

USED = {"input": 100, "cached": 10, "output": 20, "thoughts": 5}
"""The tokens of each answer. The cached ones are among the input, and the thoughts among the output."""


def from_responses(body: Block) -> list[Block]:
    """The messages of a request to OpenAI's Responses API."""
    items = body.get("input")
    messages = []
    for item in [{"role": "user", "content": items}] if isinstance(items, str) else items or []:
        kind = item.get("type", "message")
        if kind == "message":
            messages.append((item.get("role"), [{"type": "text", "text": text_of(item.get("content"))}]))
        elif kind.endswith("_call_output"):
            messages.append(("user", [{"type": "tool_result", "content": text_of(item.get("output"))}]))
        elif kind.endswith("_call"):
            messages.append(("assistant", [{"type": "tool_use"}]))
    return merged(messages)


def from_chat(body: Block) -> list[Block]:
    """The messages of a request to OpenAI's Chat Completions API."""
    messages = []
    for item in body.get("messages") or []:
        role, text = item.get("role"), text_of(item.get("content"))
        if role == "tool":
            messages.append(("user", [{"type": "tool_result", "content": text}]))
        else:
            messages.append((role, [{"type": "text", "text": text}]))
    return merged(messages)


def from_gemini(body: Block) -> list[Block]:
    """The messages of a request to Gemini's API."""
    messages = []
    for item in body.get("contents") or []:
        role = {"model": "assistant"}.get(item.get("role"), "user")
        for part in item.get("parts") or []:
            if "functionResponse" in part:
                given = part["functionResponse"].get("response") or {}
                messages.append((role, [{"type": "tool_result", "content": str(given.get("output", given))}]))
            elif "text" in part and not part.get("thought"):
                messages.append((role, [{"type": "text", "text": part["text"]}]))
            elif "functionCall" in part:
                messages.append((role, [{"type": "tool_use"}]))
    return merged(messages)


def merged(messages: list[tuple[Any, list[Block]]]) -> list[Block]:
    """The messages, those of the assistant's that follow each other as one: they are one answer."""
    found: list[Block] = []
    for role, content in messages:
        if found and role == "assistant" and found[-1]["role"] == role:
            found[-1]["content"] += content
        else:
            found.append({"role": role, "content": [*content]})
    return found


def text_of(content: Any) -> str:
    """The text of a content, which is a text, or parts of which some have one."""
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text") or "" for part in content or [] if isinstance(part, dict))


def words(text: str) -> list[str]:
    """The pieces in which a text is streamed."""
    return re.findall(r"\S+\s*|\s+", text)


def tools_of(body: Block) -> set[str]:
    """The names of the tools that a request offers."""
    names = set()
    for tool in body.get("tools") or []:
        names |= {tool.get("name"), (tool.get("function") or {}).get("name")}
        names |= {each.get("name") for each in tool.get("functionDeclarations") or []}
        names |= {each.get("name") for each in tool.get("tools") or [] if isinstance(each, dict)}
    return names - {None}


def answer(directive: str, argument: str, tools: set[str]) -> list[Block]:
    """The blocks of an answer, as the Messages API has them, with tools that the agent has."""
    shell = next((name for name in SHELLS if name in tools), None)
    blocks: list[Block] = messages_api.answer(directive, argument, {*tools, *({"Bash"} if shell else set())})
    for block in blocks:
        if block.get("name") == "Bash" and shell is not None:
            block["name"] = shell
            block["input"] = {SHELLS[shell]: block["input"]["command"]}
            if shell in ("bash", "run_shell_command"):
                block["input"]["description"] = "a step"
            if shell == "run_shell_command":
                block["input"]["is_background"] = False
    return blocks


def schema_of(body: Block) -> Block | None:
    """The JSON Schema that an answer of Gemini's API must fit, as when gemini asks which model to take."""
    config = body.get("generationConfig") or {}
    return config.get("responseJsonSchema") or config.get("responseSchema")


def fitting(schema: Block) -> Any:
    """The least that fits a JSON Schema."""
    kind = str(schema.get("type", "object")).lower()
    if schema.get("enum"):
        return schema["enum"][0]
    if kind == "object":
        return {name: fitting(schema["properties"][name]) for name in schema.get("required") or []}
    least: Block = {"array": [], "boolean": False, "integer": 1, "number": 1}
    return least.get(kind, "ok")


def responses_events(body: Block, blocks: list[Block]) -> Iterator[tuple[Block, bool]]:
    """The events of the Responses API, and whether each is a piece of the answer."""
    base = {"id": f"resp_{time.time_ns()}", "object": "response", "created_at": 1, "model": body.get("model")}
    yield (
        {"type": "response.created", "response": {**base, "status": "in_progress", "output": [], "usage": None}},
        False,
    )
    items = []
    for index, block in enumerate(blocks):
        where = {"output_index": index, "item_id": f"item_{index}"}
        if block["type"] == "tool_use":
            given = {"call_id": block["id"], "name": block["name"], "arguments": json.dumps(block["input"])}
            item = {"type": "function_call", "id": where["item_id"], "status": "completed", **given}
        elif block["type"] == "thinking":
            summary = [{"type": "summary_text", "text": block["thinking"]}]
            item = {"type": "reasoning", "id": where["item_id"], "summary": summary, "encrypted_content": None}
        else:
            said = [{"type": "output_text", "text": block["text"], "annotations": []}]
            item = {
                "type": "message",
                "id": where["item_id"],
                "role": "assistant",
                "status": "completed",
                "content": said,
            }
        yield {"type": "response.output_item.added", "output_index": index, "item": item}, False
        if item["type"] == "message":
            for word in words(block["text"]):
                yield {"type": "response.output_text.delta", **where, "content_index": 0, "delta": word}, True
        yield {"type": "response.output_item.done", "output_index": index, "item": item}, False
        items.append(item)
    usage = {
        "input_tokens": USED["input"],
        "input_tokens_details": {"cached_tokens": USED["cached"]},
        "output_tokens": USED["output"],
        "output_tokens_details": {"reasoning_tokens": USED["thoughts"]},
        "total_tokens": USED["input"] + USED["output"],
    }
    done = {**base, "status": "completed", "output": items, "usage": usage}
    yield {"type": "response.completed", "response": done}, False


def chat_events(body: Block, blocks: list[Block]) -> Iterator[tuple[Block, bool]]:
    """The chunks of the Chat Completions API."""
    base = {"id": f"chat_{time.time_ns()}", "object": "chat.completion.chunk", "created": 1, "model": body.get("model")}
    calls: list[Block] = []
    reason = "stop"
    for block in blocks:
        if block["type"] == "tool_use":
            function = {"name": block["name"], "arguments": json.dumps(block["input"])}
            calls.append({"index": len(calls), "id": block["id"], "type": "function", "function": function})
        elif block["type"] == "text":
            for word in words(block["text"]):
                piece = {"role": "assistant", "content": word}
                yield {**base, "choices": [{"index": 0, "delta": piece, "finish_reason": None}]}, True
    if calls:
        reason = "tool_calls"
        delta = {"role": "assistant", "tool_calls": calls}
        yield {**base, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}, False
    usage = {
        "prompt_tokens": USED["input"],
        "completion_tokens": USED["output"],
        "total_tokens": USED["input"] + USED["output"],
        "prompt_tokens_details": {"cached_tokens": USED["cached"]},
        "completion_tokens_details": {"reasoning_tokens": USED["thoughts"]},
    }
    yield {**base, "choices": [{"index": 0, "delta": {}, "finish_reason": reason}], "usage": usage}, False


def gemini_events(body: Block, blocks: list[Block]) -> Iterator[tuple[Block, bool]]:
    """The chunks of Gemini's API."""
    used = {
        "promptTokenCount": USED["input"],
        "candidatesTokenCount": USED["output"],
        "totalTokenCount": USED["input"] + USED["output"],
        "cachedContentTokenCount": USED["cached"],
    }

    def chunk(part: Block, *, is_last: bool = False) -> Block:
        content = {"role": "model", "parts": [part]}
        reason = {"finishReason": "STOP"} if is_last else {}
        candidate = {"content": content, "index": 0, **reason}
        return {"candidates": [candidate], "modelVersion": "stand-in", **({"usageMetadata": used} if is_last else {})}

    for block in blocks:
        if block["type"] == "tool_use":
            yield chunk({"functionCall": {"name": block["name"], "args": block["input"]}}), False
        elif block["type"] == "text":
            for word in words(block["text"]):
                yield chunk({"text": word}), True
    yield chunk({"text": ""}, is_last=True), False


class Handler(messages_api.Handler):  # type: ignore[misc,unused-ignore]  # its base is Any where it is not found
    def do_POST(self) -> None:  # noqa: N802  the base class's name
        body = json.loads(self.body() or b"{}")
        path = self.path.partition("?")[0]
        if kept := self.server.requests:
            with open(kept, "a") as file:  # noqa: PTH123  a path on the command line, which stays a str
                file.write(f"{json.dumps(body)}\n")
        if path.endswith("/responses"):
            self.answer_with(body, from_responses(body), responses_events, streams=bool(body.get("stream")))
        elif path.endswith("/chat/completions"):
            self.answer_with(body, from_chat(body), chat_events, streams=bool(body.get("stream")))
        elif path.endswith("enerateContent"):
            self.answer_with(body, from_gemini(body), gemini_events, streams=path.endswith(":streamGenerateContent"))
        elif path.endswith(":countTokens"):
            self.send(200, {"totalTokens": 10})
        elif path.endswith("/messages"):
            self.answer(body)
        else:
            self.send(404, {"error": {"message": "there is no such path", "type": "not_found"}})

    def do_GET(self) -> None:  # noqa: N802  the base class's name
        if self.path.partition("?")[0].endswith("/models"):
            self.send(200, {"object": "list", "data": [{"id": "stand-in", "object": "model"}], "models": []})
        else:
            super().do_GET()

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return bytes(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
        data = b""
        while size := int(self.rfile.readline().partition(b";")[0].strip() or b"0", 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def answer_with(self, body: Block, messages: list[Block], events: Any, *, streams: bool) -> None:
        directive, argument = messages_api.step(messages)
        if directive == "hang":
            messages_api.threading.Event().wait()
        if directive == "error":
            code = int(argument.partition(" ")[0])
            error = {"message": f"scripted {code}", "type": "scripted", "code": code, "status": "SCRIPTED"}
            self.send(code, {"error": error})
            return
        schema = schema_of(body)
        shaped = [] if schema is None else [{"type": "text", "text": json.dumps(fitting(schema))}]
        made = list(events(body, shaped or answer(directive, argument, tools_of(body))))
        if streams:
            self.stream_events(made, pause=1 if directive == "slow" else 0)
        elif events is responses_events:
            self.send(200, made[-1][0]["response"])
        elif events is gemini_events:
            parts = [part for chunk, _ in made for part in chunk["candidates"][0]["content"]["parts"]]
            whole = made[-1][0]
            text = {"text": "".join(part.get("text", "") for part in parts)}
            whole["candidates"][0]["content"]["parts"] = [text, *(part for part in parts if "text" not in part)]
            self.send(200, whole)
        else:
            deltas = [chunk["choices"][0]["delta"] for chunk, _ in made]
            calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
            said = "".join(delta.get("content") or "" for delta in deltas)
            message = {"role": "assistant", "content": said, **({"tool_calls": calls} if calls else {})}
            whole = made[-1][0]
            choice = {"index": 0, "message": message, "finish_reason": whole["choices"][0]["finish_reason"]}
            self.send(200, {**whole, "object": "chat.completion", "choices": [choice]})

    def stream_events(self, events: list[tuple[Block, bool]], pause: float) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for event, is_piece in events:
            time.sleep(pause if is_piece else 0)
            name = f"event: {event['type']}\n" if "type" in event else ""
            self.wfile.write(f"{name}data: {json.dumps(event)}\n\n".encode())
            self.wfile.flush()
        if "choices" in events[-1][0]:
            self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True


if __name__ == "__main__":
    messages_api.main("Stand-ins for model APIs.", Handler)
