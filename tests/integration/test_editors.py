"""An agent for editors, and what stands for claude, with engines: as an editor and as SDKs use them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import acp
import acp.schema
import pytest

from tests.integration.fixtures import skipped_if_unavailable
from tests.integration.images import STAND_IN, agent_sdk, npm_package
from tests.integration.runs import COMMAND, Box, on

pytestmark = on("docker", "podman")

TYPESCRIPT_SDK = "0.3.332"


def flags(box: Box, image: str, **more: str) -> list[str]:
    given = {"engine": box.engine.binary, "image": image, "state-dir": box.state, "network": "none"}
    return [f"--{name.replace('_', '-')}={value}" for name, value in {**given, "credentials": "none", **more}.items()]


class Editor:
    """An editor that can read files, and would. It allows what does not name "no"."""

    def __init__(self) -> None:
        self.updates: list[Any] = []
        self.asked: list[str] = []
        self.touched: list[str] = []

    def on_connect(self, connection: Any) -> None:
        """It has nothing to say by itself."""

    async def session_update(self, session_id: str, update: Any, **more: Any) -> None:
        self.updates.append(update)

    async def request_permission(self, options: Any, session_id: str, tool_call: Any, **more: Any) -> Any:
        self.asked.append(str(tool_call.title))
        wanted = "reject_once" if "no.txt" in str(tool_call) else "allow_once"
        option = next(each.option_id for each in options if each.kind == wanted)
        return acp.RequestPermissionResponse.model_validate({"outcome": {"outcome": "selected", "optionId": option}})

    async def read_text_file(self, path: str, session_id: str, **more: Any) -> Any:
        self.touched.append(path)
        return acp.ReadTextFileResponse(content="")

    @property
    def said(self) -> str:
        pieces = (each.content.text for each in self.updates if each.session_update == "agent_message_chunk")
        return "".join(pieces)


@contextlib.asynccontextmanager
async def connected(box: Box, *words: str, env: dict[str, str] | None = None) -> AsyncIterator[tuple[Editor, Any]]:
    """The editor of the official library, and its connection with an agent in a box."""
    editor = Editor()
    client: Any = editor  # it lacks what no agent in a box may ask of it
    started = acp.spawn_agent_process(
        client,
        COMMAND,
        "acp",
        *words,
        cwd=box.workspace,
        env={**os.environ, **(env or {})},
        transport_kwargs={"shutdown_timeout": 60.0},  # a busy machine takes more than its two seconds
    )
    async with asyncio.timeout(100), started as (connection, process):
        can = {"fs": {"readTextFile": True, "writeTextFile": True}, "terminal": True}
        await connection.initialize(
            protocol_version=acp.PROTOCOL_VERSION,
            client_capabilities=acp.schema.ClientCapabilities.model_validate(can),
        )
        yield editor, connection
    assert process.returncode == 0


def run(main: Callable[[], Any]) -> None:
    """The library knows asyncio alone."""
    asyncio.run(main())


def text(said: str) -> list[Any]:
    return [acp.text_block(f"{said}\n")]  # the scripted agent reads one line of it


def test_an_editor_has_a_session_in_the_box(box: Box) -> None:
    (box.workspace / "sub").mkdir()

    async def main() -> None:
        words = ("--command=acp-agent", *flags(box, box.engine.images.tiny))
        async with connected(box, *words) as (editor, connection):
            with pytest.raises(acp.RequestError, match="no such path"):
                await connection.new_session(cwd=str(box.folder), mcp_servers=[])
            session = await connection.new_session(cwd=str(box.workspace / "sub"), mcp_servers=[])
            allowed = await connection.prompt(session_id=session.session_id, prompt=text("sh pwd >made; cat made"))
            # The agent writes lines of no protocol, and asks for a file of the editor's; it goes on when it is refused.
            broken = await connection.prompt(session_id=session.session_id, prompt=text("broken"))
            long = await connection.prompt(session_id=session.session_id, prompt=text("long"))
            slow = asyncio.ensure_future(connection.prompt(session_id=session.session_id, prompt=text("slow")))
            while "sleep 300" not in str(editor.updates):
                await asyncio.sleep(0.05)
            await connection.cancel(session_id=session.session_id)
            cut = await slow

        assert [each.stop_reason for each in (allowed, broken, long, cut)] == [*["end_turn"] * 3, "cancelled"]
        assert editor.said == "done: /workspaceokok"
        assert editor.touched == []

    run(main)
    assert (box.workspace / "made").read_text() == "/workspace\n"
    assert box.containers() == []


GEMINI = ("gemini", "GEMINI_API_KEY", "gemini-2.5-flash", STAND_IN)
COPILOT = ("copilot", "COPILOT_PROVIDER_API_KEY", "any-model", f"{STAND_IN}/v1")


@pytest.mark.claude
@pytest.mark.usefixtures("agents_image")
def test_an_editor_has_a_real_agent_in_the_box(box: Box) -> None:
    name, variable, model, base_url = GEMINI if box.engine.is_docker else COPILOT

    async def main() -> None:
        more = {"credentials": "env", "model": model, "base_url": base_url}
        words = (f"--agent-kind={name}", f"--command={name}-offline", *flags(box, box.engine.images.agents, **more))
        async with connected(box, *words, env={variable: "any-key-of-twenty-letters"}) as (editor, connection):
            if name == "gemini":
                await connection.authenticate(method_id="gemini-api-key")
            session = await connection.new_session(cwd=str(box.workspace), mcp_servers=[])
            first = await connection.prompt(
                session_id=session.session_id, prompt=text("bash: echo hi >yes.txt; cat yes.txt")
            )
            second = await connection.prompt(session_id=session.session_id, prompt=text("bash: echo hi >no.txt"))

        assert (first.stop_reason, second.stop_reason) == ("end_turn", "end_turn")
        assert len(editor.asked) == 2
        assert "hi" in editor.said
        assert editor.touched == []

    run(main)
    assert (box.workspace / "yes.txt").read_text() == "hi\n"
    assert not (box.workspace / "no.txt").exists()
    assert box.containers() == []


def install(box: Box, image: str, program: str) -> Path:
    """What stands for claude, which is *program* in the image."""
    words = [COMMAND, "shim", "claude", f"--install={box.folder}/bin", f"--command={program}", *flags(box, image)]
    subprocess.run(words, check=True, capture_output=True, cwd=box.folder)
    return box.folder / "bin/claude"


@contextlib.contextmanager
def waiting(box: Box, claude: Path, script: str) -> Iterator[subprocess.Popen[bytes]]:
    """A shell in the box that has done *script* and waits."""
    words = [str(claude), "-c", f"{script}\necho up; while :; do sleep 0.1; done"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=box.workspace) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        yield process


def test_streams_signals_and_code_are_those_of_the_program_in_the_box(box: Box) -> None:
    claude = install(box, box.engine.images.tiny, "sh")
    script = "printf 'a\\r\\n\\377'; printf 'e\\rr' >&2; cat; printf 'no end'; exit 9"
    data = bytes(range(256)) * 12_000
    done = subprocess.run([claude, "-c", script], input=data, capture_output=True, cwd=box.workspace, check=False)

    assert done.stdout == b"a\r\n\xff" + data + b"no end"
    assert (done.stderr, done.returncode) == (b"e\rr", 9)

    with waiting(box, claude, "trap 'echo int' INT; trap 'echo term; exit 143' TERM") as process:
        assert process.stdout is not None
        process.send_signal(2)
        assert process.stdout.readline() == b"int\n"
        process.terminate()
        assert process.stdout.read() == b"term\n"
    assert process.returncode == 143
    assert box.containers() == []


MOST = 20.0
"""Seconds in which what stands for claude must be gone, with its container. The SDKs wait for 5, and kill it then: on a
busy machine an agent that leaves took 0.2 to 1.8, and one that does not up to 4.0; this one may be busier."""

PROGRAM = """\
import subprocess, sys, time
claude = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
print(claude.stdout.readline().decode(), end="", flush=True)
time.sleep(300)
"""


@pytest.mark.parametrize("stubborn", ["", "trap '' TERM; "])
def test_the_container_goes_with_the_stdin_of_what_stands_for_claude(box: Box, stubborn: str) -> None:
    """The program ends its input, or is killed; an agent that does not leave at that is stopped."""
    claude = install(box, box.engine.images.tiny, "sh")
    script = f"{stubborn}setsid sleep 300 & echo up; cat; {'while :; do sleep 0.1; done' if stubborn else ''}"
    killed = [sys.executable, "-c", PROGRAM, str(claude), "-c", script]
    for words in [killed] if stubborn else [killed, [str(claude), "-c", script]]:
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=box.workspace) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            assert len(box.containers()) == 1
            end = time.monotonic() + MOST
            if words is killed:
                process.kill()
            else:
                process.stdin.close()
            while box.containers():
                assert time.monotonic() < end
                time.sleep(0.1)
        assert process.returncode == (-9 if words is killed else 0)


@pytest.mark.parametrize("number", [9, 15])
def test_nothing_is_left_when_what_stands_for_claude_is_killed(box: Box, number: int) -> None:
    claude = install(box, box.engine.images.tiny, "sh")
    with waiting(box, claude, "trap '' TERM; setsid sleep 300 &") as process:
        assert len(box.containers()) == 1
        process.send_signal(number)
        process.wait(60)
        for _ in range(300):
            if not box.containers():
                break
            time.sleep(0.2)
    assert box.containers() == []
    assert process.returncode == (-9 if number == 9 else 143)


TYPESCRIPT = """\
import { query } from '%s/package/sdk.mjs';

async function* later(content) {
  yield { type: 'user', message: { role: 'user', content }, parent_tool_use_id: null, session_id: 'default' };
}
async function turn(prompt, options) {
  for await (const message of query({ prompt, options: { pathToClaudeCodeExecutable: '%s', ...options } })) {
    if (message.type === 'result') return message;
  }
}
const asked = [];
const canUseTool = async (tool, input) => {
  asked.push(input.command);
  return input.command.includes('no.txt')
    ? { behavior: 'deny', message: 'no' } : { behavior: 'allow', updatedInput: input };
};
const said = await turn('say: from typescript', {});
const prompt = 'bash: echo hi >yes.txt; cat yes.txt\\nbash: echo hi >no.txt';
const told = await turn(later(prompt), { canUseTool, resume: said.session_id });
console.log(JSON.stringify([said.result, told.session_id === said.session_id, asked]));
"""


@pytest.mark.claude
@pytest.mark.usefixtures("claude_image")
def test_the_sdk_for_typescript_works_with_it(box: Box, tmp_path: Path) -> None:
    name = "claude-agent-sdk"
    if (node := shutil.which("node")) is None:
        pytest.skip("node is not installed")
    with skipped_if_unavailable():
        archive = npm_package(f"@anthropic-ai/{name}@{TYPESCRIPT_SDK}", f"{name}-{TYPESCRIPT_SDK}")
    with tarfile.open(archive) as package:
        package.extractall(tmp_path, filter="data")
    claude = install(box, box.engine.images.claude, "claude-offline")
    (tmp_path / "program.mjs").write_text(TYPESCRIPT % (tmp_path, claude))
    done = subprocess.run(
        [node, tmp_path / "program.mjs"], capture_output=True, text=True, cwd=box.workspace, timeout=120, check=False
    )

    assert done.returncode == 0, done.stderr[-2000:]
    asked = ["echo hi >yes.txt; cat yes.txt", "echo hi >no.txt"]
    assert json.loads(done.stdout) == ["from typescript", True, asked]
    assert (box.workspace / "yes.txt").read_text() == "hi\n"
    assert not (box.workspace / "no.txt").exists()
    assert box.containers() == []


PYTHON = """\
import json, sys
import anyio
from claude_agent_sdk import ClaudeAgentOptions, ClaudeSDKClient, PermissionResultAllow, query

async def main():
    async for message in query(prompt="say: from python", options=ClaudeAgentOptions(cli_path=sys.argv[1])):
        said = message
    asked = []
    async def allow(tool, given, context):
        asked.append(given["command"])
        return PermissionResultAllow()
    options = ClaudeAgentOptions(cli_path=sys.argv[1], can_use_tool=allow, resume=said.session_id)
    async with ClaudeSDKClient(options) as client:
        await client.query("bash: echo up >up; tail -f /dev/null")
        while not await anyio.Path("up").exists():
            await anyio.sleep(0.05)
        await client.interrupt()
        async for message in client.receive_response():
            told = message
    print(json.dumps([said.result, told.session_id == said.session_id, told.subtype, asked]))

anyio.run(main)
"""


@pytest.mark.claude
@pytest.mark.usefixtures("claude_image")
def test_the_sdk_for_python_works_with_it(box: Box, tmp_path: Path) -> None:
    claude = install(box, box.engine.images.claude, "claude-offline")
    with skipped_if_unavailable():
        sdk = agent_sdk()
    (tmp_path / "program.py").write_text(PYTHON)
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(sdk))))
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py", claude],
        capture_output=True,
        text=True,
        cwd=box.workspace,
        env={**os.environ, "PYTHONPATH": path},
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-2000:]
    asked = ["echo up >up; tail -f /dev/null"]
    assert json.loads(done.stdout) == ["from python", True, "error_during_execution", asked]
    assert box.containers() == []
