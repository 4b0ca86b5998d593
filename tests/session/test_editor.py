"""What an editor and an agent in a box hear of each other."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from container_runner.errors import ConfigError, ImageNotFoundError
from container_runner.session.editor import ClientMcp, EditorProxy, Passed


class Paths:
    """/host is /workspace in the box."""

    def taken(self, path: str, field: str) -> str:
        if not path.startswith("/host"):
            raise ConfigError(field, path, "a path in the workspace")
        return path.replace("/host", "/workspace", 1)

    def to_host(self, path: str) -> str | None:
        return path.replace("/workspace", "/host", 1) if path.startswith("/workspace") else None

    def server(self, name: str, server: Any) -> Any:
        return {**server, "command": self.taken(server["command"], name)} if "command" in server else server


def proxy(client_mcp: ClientMcp = "refuse") -> EditorProxy:
    return EditorProxy(Paths(), client_mcp)


def line(**raw: Any) -> bytes:
    return orjson.dumps({"jsonrpc": "2.0", **raw})


def request(method: str, **params: Any) -> bytes:
    return line(id=7, method=method, params=params)


def params(data: bytes) -> dict[str, Any]:
    assert data.endswith(b"\n")
    found: dict[str, Any] = orjson.loads(data)["params"]
    return found


def refused(passed: Passed) -> tuple[int, str]:
    assert passed.to_agent == b""
    raw = orjson.loads(passed.to_editor)
    assert raw["id"] == 7
    return raw["error"]["code"], raw["error"]["message"]


def test_the_agent_hears_of_no_files_and_no_terminal_of_the_editors() -> None:
    given = {
        "fs": {"readTextFile": True, "writeTextFile": True},
        "terminal": True,
        "auth": {"terminal": True, "x": 1},
        "elicitation": {"form": {}},
        "_meta": {"terminal-auth": True},
    }
    told = params(proxy().from_editor(request("initialize", protocolVersion=1, clientCapabilities=given)).to_agent)

    assert told == {
        "protocolVersion": 1,
        "clientCapabilities": {
            "fs": {"readTextFile": False, "writeTextFile": False},
            "terminal": False,
            "auth": {"terminal": False, "x": 1},
            "elicitation": {"form": {}},
        },
    }
    told = params(proxy().from_editor(request("initialize", protocolVersion=1)).to_agent)
    assert told["clientCapabilities"]["terminal"] is False


@pytest.mark.parametrize(
    "method",
    [
        *("fs/read_text_file", "fs/write_text_file", "terminal/create", "terminal/output"),
        *("FS/write_text_file", "mcp/connect", "_zed/run", "session/prompt", "", None, 1, ["fs/write_text_file"]),
    ],
)
def test_an_agent_that_asks_all_the_same_is_refused_here(method: Any) -> None:
    passed = proxy().from_agent(request(method, path="/etc/passwd"))

    assert passed.to_editor == b""
    raw = orjson.loads(passed.to_agent)
    assert (raw["id"], raw["error"]["code"]) == (7, -32601)
    assert proxy().from_agent(line(method=method)) == Passed()


def test_paths_go_in() -> None:
    told = params(
        proxy()
        .from_editor(request("session/new", cwd="/host/a", additionalDirectories=["/host/b"], mcpServers=[]))
        .to_agent
    )
    assert told == {"cwd": "/workspace/a", "additionalDirectories": ["/workspace/b"], "mcpServers": []}

    prompt: list[dict[str, Any]] = [
        {"type": "text", "text": "see /host/a"},
        {"type": "resource_link", "uri": "file:///host/a%20b.py?x#L3", "name": "a b.py"},
        {"type": "resource_link", "uri": "https://example.org/host", "name": "x"},
        {"type": "resource", "resource": {"uri": "file:///elsewhere/c", "text": "…"}},
    ]
    told = params(proxy().from_editor(request("session/prompt", sessionId="s", prompt=prompt)).to_agent)
    assert told["prompt"] == [prompt[0], {**prompt[1], "uri": "file:///workspace/a%20b.py?x#L3"}, *prompt[2:]]


@pytest.mark.parametrize(
    "given",
    [
        {"cwd": "/elsewhere"},
        {"cwd": "/host", "additionalDirectories": ["/elsewhere"]},
        {"prompt": [{"type": "resource_link", "uri": "file:///elsewhere"}]},
    ],
)
def test_a_path_that_is_not_in_the_box_is_an_error(given: dict[str, Any]) -> None:
    there = proxy()
    code, message = refused(there.from_editor(request("session/new", **given)))

    assert code == -32602
    assert "/elsewhere" in message
    assert there.open == {}


def test_paths_come_out() -> None:
    update = {
        "sessionUpdate": "tool_call",
        "locations": [{"path": "/workspace/a", "line": 3}, {"path": "/etc/shadow"}, {"path": "b"}, "x"],
        "content": [{"type": "diff", "path": "/workspace/a", "oldText": "/workspace", "newText": ""}],
        "rawInput": {"path": "/workspace/a"},
    }
    told = params(
        proxy().from_agent(line(method="session/update", params={"sessionId": "s", "update": update})).to_editor
    )
    assert told["update"] == {
        **update,
        "locations": [{"path": "/host/a", "line": 3}],
        "content": [{"type": "diff", "path": "/host/a", "oldText": "/workspace", "newText": ""}],
    }

    answer = line(id=1, result={"sessions": [{"cwd": "/workspace/x", "additionalDirectories": ["/workspace", "/t"]}]})
    assert orjson.loads(proxy().from_agent(answer).to_editor)["result"] == {
        "sessions": [{"cwd": "/host/x", "additionalDirectories": ["/host", "/t"]}]
    }


@pytest.mark.parametrize(
    "method", ["session/update", "session/request_permission", "$/cancel_request", "elicitation/create"]
)
def test_what_an_agent_may_ask_of_an_editor(method: str) -> None:
    asked = request(method, sessionId="s")

    assert proxy().from_agent(asked) == Passed(to_editor=asked + b"\n")
    assert proxy("pass").from_agent(request("mcp/connect")).to_editor
    assert proxy("drop").from_agent(request("mcp/connect")).to_editor == b""


@pytest.mark.parametrize(
    ("written", "told"),
    [
        (
            b'{"id":1,"Method":"fs/write_text_file","method":"session/update","PARAMS":{},"params":{}}',
            b'{"jsonrpc":"2.0","id":1,"method":"session/update","params":{}}\n',
        ),
        (b'{"id":1,"result":{},"Method":"fs/write_text_file"}', b'{"jsonrpc":"2.0","id":1,"result":{}}\n'),
        (
            b'{"method":"fs/write_text_file","id":1,"method":"session/update"}',
            b'{"jsonrpc":"2.0","id":1,"method":"session/update"}\n',
        ),
        (
            b'{"params":[\r{"id":2,"method":"fs/write_text_file"}\r],"method":"session/update"}',
            b'{"jsonrpc":"2.0","method":"session/update","params":[{"id":2,"method":"fs/write_text_file"}]}\n',
        ),
        (b'{"Id":1,"Method":"fs/write_text_file"}', b""),
    ],
)
def test_an_editor_gets_no_bytes_of_the_agents(written: bytes, told: bytes) -> None:
    assert proxy().from_agent(written).to_editor == told


def test_what_an_editor_wrote_stays_as_it_is_if_there_is_nothing_to_change() -> None:
    told = b'{ "method" : "session/cancel", "jsonrpc": "2.0" , "params": {"a": "\\u00e9", "b": 1.0}}'

    assert proxy().from_editor(told) == Passed(to_agent=told + b"\n")
    assert (
        proxy().from_editor(line(id=7, result={"outcome": {}})).to_agent == line(id=7, result={"outcome": {}}) + b"\n"
    )


SERVER = {"name": "git", "command": "/host/git-mcp", "args": [], "env": []}


def test_mcp_servers_of_the_editors_are_refused_with_what_to_do() -> None:
    code, message = refused(proxy().from_editor(request("session/new", cwd="/host", mcpServers=[SERVER])))

    assert code == -32602
    assert "git" in message
    assert "--client-mcp=drop" in message


def test_they_are_dropped_or_passed_on_as_the_operator_says() -> None:
    given = request("session/new", cwd="/host", mcpServers=[SERVER])

    dropped = proxy("drop").from_editor(given)
    assert params(dropped.to_agent)["mcpServers"] == []
    assert dropped.note == "The editor's MCP servers are left out, as --client-mcp=drop says: git."
    assert proxy("drop").from_editor(request("session/new", cwd="/host", mcpServers=[])).note == ""
    passed = params(proxy("pass").from_editor(given).to_agent)
    assert passed["mcpServers"] == [{**SERVER, "command": "/workspace/git-mcp"}]
    code, _ = refused(
        proxy("pass").from_editor(request("session/new", mcpServers=[{**SERVER, "command": "/home/me/x"}]))
    )
    assert code == -32602


@pytest.mark.parametrize(
    "url", ["http://localhost:64342/mcp", "http://127.0.0.1/", "http://[::1]:1/", "http://a.localhost"]
)
def test_a_server_that_listens_on_this_machine_is_refused_by_name(url: str) -> None:
    server = {"type": "http", "name": "ide", "url": url, "headers": []}
    code, message = refused(proxy("pass").from_editor(request("session/load", cwd="/host", mcpServers=[server])))

    assert code == -32602
    assert "ide" in message
    assert "--client-mcp=drop" in message
    far = {**server, "url": "https://mcp.example.org:8/localhost"}
    assert params(proxy("pass").from_editor(request("session/new", mcpServers=[far])).to_agent)["mcpServers"] == [far]


@pytest.mark.parametrize("client_mcp", ["refuse", "drop", "pass"])
@pytest.mark.parametrize("servers", [{"git": {"command": "git"}}, ["git"], "git"])
def test_servers_in_another_shape_do_not_slip_through(client_mcp: ClientMcp, servers: Any) -> None:
    code, message = refused(proxy(client_mcp).from_editor(request("session/new", cwd="/host", mcpServers=servers)))

    assert (code, "mcpServers" in message) == (-32602, True)


def test_no_way_to_log_in_has_the_editor_run_a_command() -> None:
    methods = [
        {"id": "key", "name": "A key", "_meta": {"terminal-auth": {"command": "rm"}}},
        {"id": "shell", "type": "terminal", "args": ["--login"]},
        {"id": "again", "Type": "terminal", "Args": ["--login"]},
    ]
    told = orjson.loads(proxy().from_agent(line(id=1, result={"authMethods": methods})).to_editor)
    error = {"code": -32000, "message": "Log in.", "data": {"authMethods": methods, "AUTHMETHODS": methods}}
    failed = orjson.loads(proxy().from_agent(line(id=1, error=error)).to_editor)

    kept = [{"id": "key", "name": "A key"}, {"id": "again"}]
    assert told["result"] == {"authMethods": kept}
    assert failed["error"]["data"] == {"authMethods": kept, "AUTHMETHODS": kept}


def test_what_is_open_when_the_agent_ends_is_answered() -> None:
    there = proxy()
    for name in (1, 2, "two"):
        there.from_editor(line(id=name, method="session/prompt", params={}))
    there.from_agent(line(id=2, result={}))
    answers = [orjson.loads(each) for each in there.answers(ImageNotFoundError("No image.")).splitlines()]

    assert [each["id"] for each in answers] == [1, "two"]
    assert all(each["error"]["code"] == -32603 and "No image. " in each["error"]["message"] for each in answers)
    assert there.answers(ImageNotFoundError("No image.")) == b""


@pytest.mark.parametrize(
    "noise", [b"words", b"[]", b'{"id":{},"method":"x"}', b"\xff", b'{"id":true}', b"[" * 5000, b"{}"]
)
def test_what_is_no_message_is_passed_to_nobody(noise: bytes) -> None:
    from_agent, from_editor = proxy().from_agent(noise), proxy().from_editor(noise)

    assert (from_agent.to_agent, from_agent.to_editor) == (b"", b"")
    assert from_agent.note
    assert from_editor.to_agent == b""
    assert orjson.loads(from_editor.to_editor)["error"]["code"] == -32700
    assert proxy().from_agent(b" \r") == proxy().from_editor(b"") == Passed()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just("/workspace/x"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["id", "method", "params", "result", "locations", "path", "uri", "cwd", "prompt", "authMethods"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@given(JSON)
def test_no_value_of_either_side_breaks_it(value: Any) -> None:
    data = json.dumps(value).encode()
    proxy("pass").from_agent(data)
    proxy("drop").from_editor(data)
