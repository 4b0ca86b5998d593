"""A live agent that speaks the control protocol, and does what its prompts say. It is run as a program."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


def say(**line: Any) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def result(said: str, prompt: str, **more: Any) -> None:
    usage = {"input_tokens": 10, "output_tokens": 5}
    whole = {"subtype": "success", "is_error": False, "result": said, "num_turns": 1, "usage": usage, **more}
    say(type="result", session_id="s1", user_message_uuids=[prompt], total_cost_usd=0.5, **whole)


def text(said: str) -> None:
    say(
        type="assistant",
        session_id="s1",
        message={"id": str(time.time_ns()), "content": [{"type": "text", "text": said}]},
    )


def hear() -> dict[str, Any]:
    line = sys.stdin.readline()
    if not line:
        sys.exit(0)
    heard: dict[str, Any] = json.loads(line)
    return heard


def answer(heard: dict[str, Any], **response: Any) -> None:
    whole = {"subtype": "success", "request_id": heard["request_id"], "response": {}, **response}
    say(type="control_response", response=whole)


def ask(name: str, **request: Any) -> None:
    say(type="control_request", request_id=name, request=request)


def turn(word: str, rest: str, prompt: str) -> None:
    if word == "die":
        os._exit(int(rest))
    elif word == "kill":
        os.kill(os.getpid(), int(rest))
    elif word == "break":
        say(type="control_request", request_id=7)
    elif word == "flood":
        for number in range(int(rest)):
            text(f"{number} " + "x" * 10_000)
        result("flooded", prompt)
    elif word == "may":
        ask("r1", subtype="can_use_tool", tool_name="Bash", input={"command": rest})
        said = hear()["response"]["response"]
        result(said.get("message") or said["behavior"], prompt)
    elif word == "hook":
        ask("r1", subtype="hook_callback", callback_id="0", input={"tool_name": rest}, tool_use_id="t1")
        result(json.dumps(hear()["response"]["response"]), prompt)
    elif word == "withdraw":
        ask("r1", subtype="can_use_tool", tool_name="Bash", input={})
        time.sleep(0.1)
        say(type="control_cancel_request", request_id="r1")
        result("withdrawn", prompt)
    elif word == "call":
        name, _, given = rest.partition(" ")
        call = {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "tools/call",
            "params": {"name": name, "arguments": json.loads(given)},
        }
        ask("r1", subtype="mcp_message", server_name="container_runner", message=call)
        content = hear()["response"]["response"]["mcp_response"]["result"]["content"]
        result(content[0]["text"], prompt)
    elif word == "own":  # a turn that nobody asked for, in front of the one that is answered
        say(type="result", subtype="success", is_error=False, result="mine", origin={"kind": "task-notification"})
        text("yours")
        result("yours", prompt)
    elif word not in ("hang", "deaf"):
        text(rest)
        result(rest, prompt)


def main() -> None:
    deaf, open_prompt = False, ""
    if "mute" in sys.argv:
        time.sleep(100)
    while True:
        heard = hear()
        if heard["type"] == "user":
            said = heard["message"]["content"]
            word, _, rest = (said if isinstance(said, str) else said[0]["text"]).partition(" ")
            open_prompt, deaf = heard["uuid"], word == "deaf"
            turn(word, rest, heard["uuid"])
        elif heard["request"]["subtype"] == "initialize":
            answer(heard)
        elif heard["request"]["subtype"] == "interrupt" and not deaf:
            answer(heard, response={"still_queued": []})
            if open_prompt:
                result("", open_prompt, subtype="error_during_execution", is_error=True)
        elif heard["request"]["subtype"] == "set_model":
            if heard["request"]["model"] == "none":
                answer(heard, subtype="error", error="no such model")
            elif heard["request"]["model"] != "silent":
                answer(heard)


if __name__ == "__main__":
    main()
