"""Boxes without a network, and their gateway."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import ssl
import sys
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import anyio
import anyio.to_thread
import attrs
import psutil
import pytest
import trustme

from container_runner import ClaudeRuntime, CommandRuntime, ResultMessage, tool
from container_runner.stream.own import ConnectionDenied
from tests.gateway.box import free_port
from tests.integration.engines import wait_until
from tests.integration.images import STAND_IN, TESTS
from tests.integration.runs import ON_DOCKER, ON_OWN_ROOTFUL, Box, collect, error_of, on
from tests.integration.test_agents import AGENTS
from tests.messages_api import Handler

pytestmark = [pytest.mark.claude, on("docker", "podman", "podman-rootless")]

LOOK = """\
import json, os, urllib.error, urllib.request
def ask(url):
    try:
        return urllib.request.urlopen(url, timeout=20).read().decode()
    except urllib.error.HTTPError as error:
        return f"{error.code} {error.reason}"
    except OSError as error:
        return type(error).__name__
found = {
    "allowed": ask(os.environ["GOOD"]),
    "denied": ask("http://evil.test/"),
    "without": ask("http://127.0.0.1:9/"),
    "devices": sorted(line.split(":")[0].strip() for line in open("/proc/net/dev").readlines()[2:]),
    "key": os.environ.get("ANTHROPIC_API_KEY", ""),
    "told back": ask(os.environ.get("SECURED", os.environ["GOOD"])),
    "in its place": os.environ.get("THE_SECRET", ""),
}
others = killed = 0
for pid in filter(str.isdecimal, os.listdir("/proc")):
    if os.stat(f"/proc/{pid}").st_uid != os.getuid():
        others += 1
        try:
            os.kill(int(pid), 9)
            killed += 1
        except PermissionError:
            pass
print(json.dumps({**found, "others": others, "killed": killed}))
"""


class Secured(BaseHTTPRequestHandler):
    """A service that speaks TLS, and tells back what it was shown."""

    shown: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.shown.append(self.headers["authorization"])
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.headers["authorization"].encode())

    def log_message(self, *_: Any) -> None:
        pass


class Service(BaseHTTPRequestHandler):
    """A service of this machine's loopback."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello from " + self.path.encode())

    def log_message(self, *_: Any) -> None:
        pass


class Stands(ThreadingHTTPServer):
    """What serves a stand-in."""

    requests = None  # they are kept nowhere


@contextlib.contextmanager
def served(handler: type[BaseHTTPRequestHandler], context: ssl.SSLContext | None = None) -> Iterator[str]:
    """A server of this machine's loopback, as its address and port."""
    with Stands(("127.0.0.2", 0), handler) as server:  # NO_PROXY has 127.0.0.1
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.2:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def service() -> Iterator[str]:
    with served(Service) as address:
        yield address


@pytest.fixture
def secured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A service whose certificate this process trusts, and the secret that it wants."""
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.2").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    monkeypatch.setenv("THE_SECRET", "the-real-secret-of-this-test")
    monkeypatch.setattr(Secured, "shown", [])
    with served(Secured, context) as address:
        yield address


def gateway_runner(box: Box, *hosts: str, runtime: Any = None, **fields: Any) -> Any:
    return box.runner(
        runtime or CommandRuntime(["python3", "-c", LOOK]),
        **{
            "image": box.engine.images.claude,
            "network": "gateway",
            "allow_hosts": hosts,
            "allow_addresses": ["127.0.0.0/8"],
            **fields,
        },
    )


@pytest.mark.parametrize("ephemeral", [True, False], ids=["ephemeral", "kept"])
def test_a_box_reaches_what_it_may_and_nothing_else(
    box: Box, claude_image: str, service: str, secured: str, ephemeral: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "the-real-key-of-this-test")
    runner = gateway_runner(
        box,
        service,
        ephemeral=ephemeral,
        env={"GOOD": f"http://{service}/there", "SECURED": f"http://{secured}/"},
        inject=[f"{secured} Authorization: Bearer {{}} THE_SECRET"],
    )
    messages = collect(runner, box.options("look"))
    assert error_of(messages) is None, messages
    found = next(json.loads(m.to_json()) for m in messages if b"allowed" in m.to_json())
    found = found if "allowed" in found else json.loads(found["text"])

    assert error_of(messages) is None, messages
    assert len(found.pop("in its place")) > 40
    assert Secured.shown == ["Bearer the-real-secret-of-this-test"]
    assert not [path for path in box.state.rglob("*") if path.is_file() and b"the-real-secret" in path.read_bytes()]
    assert found == {
        "told back": f"Bearer {'*' * len('the-real-secret-of-this-test')}",
        "allowed": "hello from /there",
        "denied": "403 Forbidden: evil.test:80 is not in allow_hosts",
        "without": "URLError",
        "devices": ["lo"],
        "key": "",
        "others": 1 if ephemeral else found["others"],  # the forwarder; a kept one's PID 1 is one too
        "killed": 0,
    }
    assert [(m.host, m.port) for m in messages if isinstance(m, ConnectionDenied)] == [("evil.test", 80)]
    if not ephemeral:
        (container,) = box.containers()
        left = box.engine.run("exec", container, "sh", "-c", "grep -l [f]orwarding /proc/[0-9]*/cmdline || :").stdout
        assert left == ""
        box.engine.remove(container)
    assert box.containers() == []


@ON_OWN_ROOTFUL
async def test_a_container_that_waits_for_its_run_has_its_way_out(
    box: Box, claude_image: str, service: str, anyio_backend: str
) -> None:
    runner = gateway_runner(box, service, env={"GOOD": f"http://{service}/there"})
    options = box.options("look")
    async with runner.warm(options.agent, size=1) as pool:
        with anyio.fail_after(60):
            while len(pool) < 1:
                await anyio.sleep(0.05)
        (ready,) = box.containers()
        left = box.engine.run("exec", ready, "sh", "-c", "grep -l [f]orwarding /proc/[0-9]*/cmdline | wc -l").stdout
        assert left.strip() == "1"
        messages = [message async for message in runner.execute(options)]
        assert error_of(messages) is None, messages
        assert any(b"hello from /there" in message.to_json() for message in messages)
    assert box.containers() == []
    assert [thread.name for thread in threading.enumerate() if "gateway" in thread.name] == []


@ON_OWN_ROOTFUL
@pytest.mark.parametrize("ephemeral", [True, False], ids=["ephemeral", "kept"])
def test_what_is_wrong_with_the_image_or_the_command_is_told(box: Box, claude_image: str, ephemeral: bool) -> None:
    error = error_of(box.run("go", CommandRuntime("true"), network="gateway", ephemeral=ephemeral))
    assert error is not None
    assert "neither perl, python3 nor node" in error.message
    runner = gateway_runner(box, runtime=CommandRuntime("not-there"), ephemeral=ephemeral)
    error = error_of(collect(runner, box.options("go")))
    assert error is not None
    assert error.kind == "command_not_found", error
    for container in box.containers():
        box.engine.remove(container)


class Api(Handler):
    """The stand-in for the Messages API, which keeps the keys that it was shown."""

    keys: ClassVar[list[str]] = []
    told: ClassVar[list[str]] = []
    """The system prompts."""

    def do_POST(self) -> None:  # noqa: N802  the base class's name
        self.keys.append(self.headers["x-api-key"])
        super().do_POST()

    def answer(self, body: dict[str, Any]) -> None:
        self.told.append(json.dumps(body.get("system")))
        super().answer(body)


ALONE = ("bash", "cat", "chmod", "cp", "env", "head", "mkdir", "mkfifo", "ps", "rm", "sh", "sleep", "tr", "wc")
"""What a box has beside claude that has nothing else to run a forwarder with."""


def test_the_real_claude_works_and_the_key_is_not_in_its_box(
    box: Box, claude_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_work(box, monkeypatch)


@ON_DOCKER
def test_a_claude_alone_carries_its_own_connections(
    box: Box, claude_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has a runtime for JavaScript in it."""
    places = box.new_folder("alone")
    for name in ALONE:
        (places / name).symlink_to(f"/usr/bin/{name}")
    (places / "claude").symlink_to("/usr/local/bin/claude")
    seen = at_work(box, monkeypatch, volumes=[f"{places}:/alone:ro"], env={"PATH": "/alone"})
    assert re.search(r"/alone/claude\\n[0-9a-f]{32}\\n3128\\n", seen), "it was something else"


def at_work(
    box: Box, monkeypatch: pytest.MonkeyPatch, *, env: Mapping[str, str] = MappingProxyType({}), **fields: Any
) -> str:
    """The real claude has a turn, without its key, and tells what it sees."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-the-real-key-of-this-test")
    monkeypatch.setattr(Api, "keys", [])
    prompt = "bash: env; cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n'"
    with served(Api) as address:
        runner = gateway_runner(
            box,
            runtime=ClaudeRuntime(),
            credentials="auto",
            env={"ANTHROPIC_BASE_URL": f"http://{address}", **env},
            **fields,
        )
        messages = collect(runner, box.options(prompt))

    assert error_of(messages) is None, messages
    assert isinstance(messages[-1], ResultMessage)
    seen = "\n".join(message.to_json().decode() for message in messages)
    assert "ANTHROPIC_API_KEY=" in seen
    assert "sk-the-real-key-of-this-test" not in seen
    assert set(Api.keys) == {"sk-the-real-key-of-this-test"}
    assert box.containers() == []
    return seen


CALL = """\
import json, os, urllib.request
def ask(method, token, url=os.environ["AGENT_TOOLS_URL"], **params):
    said = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
    asked = urllib.request.Request(url, said, {"Authorization": "Bearer " + token})
    try:
        return json.load(urllib.request.urlopen(asked, timeout=60))["result"]
    except urllib.error.HTTPError as error:
        return error.code
token = os.environ["AGENT_TOOLS_TOKEN"]
listed = [tool["name"] for tool in ask("tools/list", token)["tools"]]
called = ask("tools/call", token, name="whisper", arguments={"word": "hello"})
hosted = ask("tools/list", token, os.environ["AGENT_MCP_URL"] + "/files")
devices = sorted(line.split(":")[0].strip() for line in open("/proc/net/dev").readlines()[2:])
stranger = ask("tools/list", "x")
print(json.dumps({"listed": listed, "called": called, "hosted": hosted, "stranger": stranger, "devices": devices}))
"""

HOSTED = """\
import json, os, sys, time
for line in sys.stdin:
    print(json.dumps({"jsonrpc": "2.0", "id": json.loads(line)["id"], "result": os.environ["MINE"]}), flush=True)
time.sleep(1000)  # for all that its input has ended
"""


@tool
async def whisper(word: str) -> str:
    """Say a word of the host's."""
    return f"{word} from {os.getpid()}"


@ON_OWN_ROOTFUL
def test_any_agent_calls_the_callers_functions_without_a_network(box: Box, claude_image: str) -> None:
    mark = f"mark-{box.engine.name}"
    runner = box.runner(
        CommandRuntime(["python3", "-c", CALL]),
        image=box.engine.images.claude,
        network="none",
        tools=[whisper],
        host_mcp_servers={"files": {"command": sys.executable, "args": ["-c", HOSTED, mark], "env": {"MINE": "1"}}},
    )
    messages = collect(runner, box.options("call"))

    assert error_of(messages) is None, messages
    found = next(json.loads(m.to_json()) for m in messages if b"listed" in m.to_json())
    found = found if "listed" in found else json.loads(found["text"])
    assert found == {
        "listed": ["whisper"],
        "called": {"content": [{"type": "text", "text": f"hello from {os.getpid()}"}], "isError": False},
        "hosted": "1",
        "stranger": 401,
        "devices": ["lo"],
    }

    def hosted() -> list[int]:
        return [it.pid for it in psutil.process_iter(["cmdline"]) if mark in (it.info["cmdline"] or ())]

    wait_until(lambda: not hosted(), seconds=10)  # a process that was killed is there for a moment
    assert hosted() == []
    assert box.containers() == []


SERVER = """\
import json, os, sys
TOOL = {"name": "where", "description": "", "inputSchema": {"type": "object"}, "_meta": {"anthropic/alwaysLoad": True}}
for line in sys.stdin:
    asked = json.loads(line)
    results = {
        "initialize": {
            "protocolVersion": (asked.get("params") or {}).get("protocolVersion"),
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "files", "version": "1"},
        },
        "tools/list": {"tools": [TOOL]},
        "tools/call": {"content": [{"type": "text", "text": "in " + os.getcwd() + " of " + str(os.getpid())}]},
    }
    if "id" in asked:
        print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": results.get(asked["method"], {})}), flush=True)
"""


@ON_OWN_ROOTFUL
def test_the_real_claude_calls_functions_and_servers_of_this_machine_and_knows_its_network(
    box: Box, claude_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-the-real-key-of-this-test")
    monkeypatch.setattr(Api, "told", [])
    prompt = 'tool: mcp__container_runner__whisper {"word": "hello"}\ntool: mcp__files__where {}'
    with served(Api) as address:
        runner = gateway_runner(
            box,
            runtime=ClaudeRuntime(),
            credentials="auto",
            env={"ANTHROPIC_BASE_URL": f"http://{address}"},
            tools=[whisper],
            host_mcp_servers={"files": {"command": sys.executable, "args": ["-c", SERVER]}},
            tell_network=True,
        )
        messages = collect(runner, box.options(prompt))

    assert error_of(messages) is None, messages
    assert isinstance(messages[-1], ResultMessage)
    assert re.fullmatch("done: in / of [0-9]+", messages[-1].result or "")
    assert any(f"hello from {os.getpid()}".encode() in message.to_json() for message in messages)
    assert any("which lets through: no host. Each other host is denied" in system for system in Api.told)
    assert not [message for message in messages if isinstance(message, ConnectionDenied)]
    assert box.containers() == []


SERVE = """\
import http.server
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"a page of the box")
server = http.server.HTTPServer(("127.0.0.1", 8000), Page)
print("it listens", flush=True)
server.serve_forever()
"""


@ON_OWN_ROOTFUL
@pytest.mark.parametrize("network", ["none", "gateway"])
def test_a_server_in_a_box_without_a_network_is_opened_on_this_machine(
    box: Box, claude_image: str, network: str
) -> None:
    here, nowhere = free_port(), free_port()

    async def look() -> tuple[bytes, str]:
        async with box.at_work(
            "serve",
            CommandRuntime(["python3", "-c", SERVE]),
            image=box.engine.images.claude,
            network=network,
            ports=[f"{here}:8000", f"{nowhere}:8001"],
        ):
            page = await anyio.to_thread.run_sync(lambda: urllib.request.urlopen(f"http://127.0.0.1:{here}/").read())
            try:
                await anyio.to_thread.run_sync(lambda: urllib.request.urlopen(f"http://127.0.0.1:{nowhere}/"))
            except OSError as error:
                return page, type(error).__name__
            return page, ""

    page, refused = anyio.run(look)

    assert page == b"a page of the box"
    assert refused in ("ConnectionResetError", "RemoteDisconnected", "URLError")
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{here}/")
    assert box.containers() == []


def keeping(keys: list[str]) -> type[BaseHTTPRequestHandler]:
    """The stand-ins for the other APIs, which keep the keys that they are shown."""
    handler: Any = importlib.import_module("model_apis").Handler

    def do_post(self: Any) -> None:
        keys.append(self.headers["authorization"] or self.headers["x-goog-api-key"])
        handler.do_POST(self)

    return type("Keeping", (handler,), {"do_POST": do_post})


@ON_DOCKER
@pytest.mark.parametrize("kind", AGENTS)
def test_the_other_agents_work_and_their_keys_are_not_in_their_boxes(
    box: Box, agents_image: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = AGENTS[kind]
    monkeypatch.setenv(given.key, "the-real-key-of-this-test")
    monkeypatch.syspath_prepend(str(TESTS))  # where they import each other from
    keys: list[str] = []
    path = given.base_url.removeprefix(STAND_IN)
    with served(keeping(keys)) as address:
        runner = gateway_runner(
            box, runtime=given.runtime(), image=box.engine.images.agents, credentials="inject", memory="4g"
        )
        options = box.options("bash: env; cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'")
        agent = attrs.evolve(options.agent, model=given.model, base_url=f"http://{address}{path}")
        messages = collect(runner, attrs.evolve(options, agent=agent))

    assert error_of(messages) is None, messages
    seen = "\n".join(message.to_json().decode() for message in messages)
    assert f"{given.key}=" in seen
    assert "the-real-key-of-this-test" not in seen
    assert {key.removeprefix("Bearer ") for key in keys} == {"the-real-key-of-this-test"}
    assert box.containers() == []
