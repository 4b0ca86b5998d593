"""MCP servers of this machine, asked from inside of a box."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from container_runner.agents import CommandRuntime
from container_runner.config.servers import HostServer
from container_runner.errors import CommandNotFoundError, ConfigError
from container_runner.gateway import hosted as gateway_hosted
from container_runner.gateway.forwarder import forwarder
from container_runner.gateway.gateway import Gateway
from container_runner.gateway.hosted import LEASED
from container_runner.gateway.offered import plan_hosted
from container_runner.gateway.plan import GatewayPlan
from tests.gateway.box import free_port
from tests.gateway.test_functions import RUN, TOKEN, Inside
from tests.gateway.test_inject import Service
from tests.gateway.test_plan import planned

SERVER = """\
import json, os, subprocess, sys, time
def say(message):
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)
stubborn = subprocess.Popen(["sleep", "1000"])
print("words that are no message", flush=True)
cancelled = []
for line in sys.stdin:
    asked = json.loads(line)
    method, name, params = asked["method"], asked.get("id"), asked.get("params") or {}
    if method == "notifications/cancelled":
        cancelled.append(params["requestId"])
    elif method == "initialize":
        say({"id": "mine", "method": "sampling/createMessage", "params": {}})
        refused = json.loads(sys.stdin.readline())
        say({"id": name, "result": {"pid": os.getpid(), "asked": params, "refused": refused["error"]["code"]}})
    elif method == "where":
        say({"id": name, "result": {"cwd": os.getcwd()}})
    elif method == "env":
        say({"id": name, "result": dict(os.environ)})
    elif method == "cancelled":
        say({"id": name, "result": cancelled})
    elif method == "hang":
        say({"method": "notifications/progress", "params": {}})
    elif method == "end":
        os._exit(3)
    elif name is not None:
        say({"id": name, "error": {"code": -1, "message": method}})
time.sleep(1000)  # it does not mind that its input has ended
"""


@asynccontextmanager
async def box(servers: dict[str, HostServer], environ: dict[str, str] | None = None) -> AsyncIterator[Inside]:
    port = free_port()
    hosted, _ = plan_hosted(servers, {**os.environ, **(environ or {})}, TOKEN)
    gateway = Gateway(GatewayPlan(run=RUN, port=port, allow_hosts=(), allow_addresses=(), env={}, hosted=hosted))
    try:
        await gateway.start(forwarder(RUN, port), os.environ)
        yield Inside(port, gateway)
    finally:
        await gateway.stop()


def program(**more: Any) -> HostServer:
    return HostServer(command=sys.executable, args=["-c", SERVER], **more)


async def ask(inside: Inside, method: str, name: Any = 1, at: str = "/mcp/files", **params: Any) -> Any:
    status, said = await inside.post({"jsonrpc": "2.0", "id": name, "method": method, "params": params}, path=at)
    assert status == 200, said
    assert said["id"] == name
    return said.get("result", said.get("error"))


def is_there(pid: int) -> bool:
    return psutil.pid_exists(pid) and bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)


async def gone(pids: list[int], seconds: float = 15) -> None:
    with anyio.fail_after(seconds):
        while any(map(is_there, pids)):
            await anyio.sleep(0.05)


async def test_a_program_is_asked_by_several_clients_and_gone_with_all_that_it_has_started() -> None:
    async with box({"files": program(env={"KEY": "${REAL}"})}, {"REAL": "a-real-secret", "OTHER": "x"}) as inside:
        capabilities: dict[str, Any] = {"sampling": {}, "roots": {}}
        first = await ask(inside, "initialize", protocolVersion="2025-06-18", capabilities=capabilities)
        again = await ask(inside, "initialize", "a", protocolVersion="2025-06-18")
        family = [first["pid"], *(child.pid for child in psutil.Process(first["pid"]).children())]
        env = await ask(inside, "env", 1)
        unknown = await ask(inside, "tools/list", "b")
        stranger = await inside.post({"jsonrpc": "2.0", "id": 1, "method": "env"}, path="/mcp/files", token="x")
        nobody = await inside.post({"jsonrpc": "2.0", "id": 1, "method": "env"}, path="/mcp/other")
        stream = await inside.post(b"", path="/mcp/files", method="GET")
        assert len(family) == 2
        assert all(map(is_there, family))

    assert first["asked"] == {"protocolVersion": "2025-06-18", "capabilities": {}}
    assert first["refused"] == -32601
    assert again == first
    assert unknown == {"code": -1, "message": "tools/list"}
    assert env["KEY"] == "*" * len("a-real-secret")  # as the box is told
    assert "OTHER" not in env
    assert env["PATH"] == os.environ["PATH"]
    assert [status for status, _ in (stranger, nobody, stream)] == [401, 404, 405]
    await gone(family)


async def test_who_hangs_up_has_withdrawn_what_was_asked() -> None:
    async with box({"files": program()}) as inside:
        async with await anyio.connect_tcp("127.0.0.1", inside.port) as stream:
            await stream.send(inside.request({"jsonrpc": "2.0", "id": 9, "method": "hang"}, path="/mcp/files"))
            with anyio.fail_after(30):
                while not inside.gateway.is_owed:
                    await anyio.sleep(0.01)
        with anyio.fail_after(30):
            while not (numbers := await ask(inside, "cancelled")):
                await anyio.sleep(0.05)

    assert numbers == [1]


@asynccontextmanager
async def asked(inside: Inside, text: str = "") -> AsyncIterator[None]:
    """While somebody waits for an answer that never comes."""
    async with await anyio.connect_tcp("127.0.0.1", inside.port) as stream:
        await stream.send(inside.request({"id": 9, "method": "hang", "params": {"text": text}}, path="/mcp/files"))
        with anyio.fail_after(30):
            while not inside.gateway.is_owed:
                await anyio.sleep(0.01)
        yield


async def test_an_answer_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    async with box({"files": program()}) as inside:
        with monkeypatch.context() as patch:
            patch.setattr(gateway_hosted, "CALL_TIMEOUT", 0.1)
            said = await ask(inside, "hang")
        numbers = await ask(inside, "cancelled")

    assert said["message"] == "the server took too long"
    assert numbers == [1]


async def test_requests_that_are_open_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_hosted, "MOST_REQUESTS", 1)
    async with box({"files": program()}) as inside:
        async with asked(inside):
            refused = await ask(inside, "env")
        with anyio.fail_after(30):
            while inside.gateway.is_owed:
                await anyio.sleep(0.01)
        numbers = await ask(inside, "cancelled")

    assert refused["message"] == "too many requests are open"
    assert numbers == [1]


async def test_what_a_program_does_not_read_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_hosted, "MOST_UNREAD", 1000)
    deaf = HostServer(command=sys.executable, args=["-c", "import time; time.sleep(1000)"])
    async with box({"files": deaf}) as inside, asked(inside, "x" * 300_000):  # more than a pipe holds
        refused = await ask(inside, "env")

    assert "reads nothing" in refused["message"]


async def test_a_program_that_ends_is_told_and_takes_nothing_with_it() -> None:
    async with box({"files": program(), "others": program()}) as inside:
        ended = await ask(inside, "end")
        after = await ask(inside, "env")
        other = await ask(inside, "tools/list", at="/mcp/others")

    assert "the server has ended" in ended["message"]
    assert "the server has ended" in after["message"]
    assert other["message"] == "tools/list"


def group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:  # somebody else's, which has just ended
        return None


def test_a_program_is_gone_when_we_are_killed() -> None:
    """Whoever holds the other end of its input, which ends with us."""
    read, write = os.pipe()
    leased = subprocess.Popen(
        [sys.executable, "-ISc", LEASED, sys.executable, "-c", "import time; print(1, flush=True); time.sleep(1000)"],
        stdin=read,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    os.close(read)
    assert leased.stdout is not None
    assert leased.stdout.readline() == b"1\n"
    family = [pid for pid in psutil.pids() if group_of(pid) == leased.pid]
    assert len(family) == 2
    os.close(write)
    leased.wait(30)
    leased.stdout.close()
    anyio.run(gone, family)


async def test_a_server_that_runs_already_is_asked_with_its_headers() -> None:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    service = Service(listener.extra(anyio.abc.SocketAttribute.local_port))
    secret = "a-real-secret"
    service.answer = f"HTTP/1.1 200 OK\r\nMcp-Session-Id: 5\r\nContent-Length: 13\r\n\r\n{secret}".encode()

    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                await service.serve(stream)

    url = f"http://127.0.0.1:{service.port}/v1/mcp?team=a"
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        there = HostServer(url=url, headers={"Authorization": "Bearer ${REAL}"})
        async with box({"docs": there}, {"REAL": secret}) as inside:
            status, said = await inside.post({"id": 1}, path="/mcp/docs")
            refused = await inside.post({"id": 1}, path="/mcp/docs", method="PUT")
            stranger = await inside.post({"id": 1}, path="/mcp/docs", token="x")
        tasks.cancel_scope.cancel()

    assert (status, said) == (200, "*" * len(secret))
    assert (refused[0], stranger[0]) == (405, 401)
    (head,) = service.heads
    assert head.startswith(b"POST /v1/mcp?team=a HTTP/1.1\r\n")
    assert f"authorization: Bearer {secret}\r\n".encode() in head
    assert TOKEN.encode() not in head


async def test_a_program_obeys_nothing_in_the_folder_where_we_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is often the workspace, and then whatever lies there may be the agent's."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "own").symlink_to(sys.executable)
    monkeypatch.chdir(tmp_path)
    relative = HostServer(command="./own", args=["-c", SERVER])
    async with box({"files": program(), "others": relative}, {"PATH": f"bin::.:{os.environ['PATH']}"}) as inside:
        where = [(await ask(inside, "where", at=f"/mcp/{name}"))["cwd"] for name in ("files", "others")]
        env = await ask(inside, "env")

    assert where == ["/", "/"]
    assert env["PATH"] == os.environ["PATH"]


async def test_a_program_that_is_not_there_is_told_before_the_run() -> None:
    hosted, _ = plan_hosted({"files": HostServer(command="not-there")}, os.environ, TOKEN)
    gateway = Gateway(GatewayPlan(run=RUN, port=1, allow_hosts=(), allow_addresses=(), env={}, hosted=hosted))
    with pytest.raises(CommandNotFoundError, match="The MCP server files"):
        await gateway.start(["true"], os.environ)
    await gateway.stop()


@pytest.mark.parametrize("network", ["none", "bridge", "gateway"])
def test_an_agent_is_told_of_them_and_not_of_their_secrets(network: str) -> None:
    servers = {"files": {"command": "x", "env": {"A": "${REAL}"}}, "docs": "http://127.0.0.1:9/mcp"}
    plan = planned({"REAL": "a-real-secret"}, network=network, credentials="none", host_mcp_servers=servers)

    assert plan is not None
    assert plan.env["AGENT_MCP_URL"] == "http://127.0.0.1:3128/mcp"
    assert list(plan.tokens) == ["AGENT_TOOLS_TOKEN"]
    assert plan.secrets == {"REAL": "a-real-secret"}
    assert "a-real-secret" not in repr(plan)
    assert [one.token for one in plan.hosted] == [plan.tokens["AGENT_TOOLS_TOKEN"]] * 2
    assert "has the MCP server files of this machine" in plan.told


def test_what_allows_the_same_is_the_same_whatever_the_words_of_the_run() -> None:
    def identity(**more: Any) -> str:
        plan = planned({"REAL": "a-real-secret"}, network="gateway", credentials="none", **more)
        assert plan is not None
        return plan.identity

    assert identity(allow_hosts=["a.test"]) == identity(allow_hosts=["a.test"])
    assert "a-real-secret" not in identity(inject=[{"host": "a.test", "header": "X-Key", "secret": "REAL"}])
    different = [
        identity(),
        identity(allow_hosts=["a.test"]),
        identity(allow_addresses=["10.0.0.0/8"]),
        identity(inject=[{"host": "a.test", "header": "X-Key", "secret": "REAL"}]),
        identity(host_mcp_servers={"files": "files-server"}),
    ]
    assert len({*different}) == len(different)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"network": "host", "host_mcp_servers": {"a": "x"}}, "all of this machine"),
        ({"host_mcp_servers": {"a": {"command": "x", "env": {"A": "${NOT_SET}"}}}}, "export NOT_SET=VALUE"),
        ({"host_mcp_servers": {"a": {"url": "http://a.test", "headers": {"X": "${LINES}"}}}}, "on one line"),
    ],
)
def test_what_can_not_be_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        planned({"LINES": "one\nhunter2"}, CommandRuntime("x"), **fields)

    assert "hunter2" not in str(refused.value)

    assert words in refused.value.allowed


OFFICIAL = """\
from mcp.server.mcpserver import MCPServer
server = MCPServer("official")
@server.tool()
def add(x: int, y: int) -> int:
    "Add two numbers."
    return x + y
server.run()
"""

CLIENT = """\
import sys, anyio, httpx2
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
async def main(url, token):
    async with httpx2.AsyncClient(headers={"Authorization": "Bearer " + token}, timeout=200) as http:
        async with streamable_http_client(url, http_client=http) as both, ClientSession(*both) as session:
            await session.initialize()
            tools = await session.list_tools()
            print([tool.name for tool in tools.tools])
            print((await session.call_tool("add", {"x": 2, "y": 3})).content[0].text)
anyio.run(main, *sys.argv[1:])
"""


async def test_the_protocols_own_library_speaks_to_its_own_through_it(tmp_path: Path) -> None:
    pytest.importorskip("mcp.server.mcpserver")
    (tmp_path / "server.py").write_text(OFFICIAL)
    (tmp_path / "client.py").write_text(CLIENT)
    server = HostServer(command=sys.executable, args=[str(tmp_path / "server.py")])
    async with box({"official": server}) as inside:
        url = f"http://127.0.0.1:{inside.port}/mcp/official"
        with anyio.fail_after(240):
            done = await anyio.run_process([sys.executable, str(tmp_path / "client.py"), url, TOKEN], check=False)

    assert done.stdout.decode().split("\n")[:2] == ["['add']", "5"], done.stderr.decode()[-2000:]
