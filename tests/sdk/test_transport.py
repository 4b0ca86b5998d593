"""The SDK on a transport whose engine only pretends, and whose agent is a script."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from claude_agent_sdk import (
    ClaudeAgentOptions,
    ClaudeSDKClient,
    CLIConnectionError,
    CLIJSONDecodeError,
    CLINotFoundError,
    ProcessError,
    ResultMessage,
    __version__,
    query,
)

from container_runner import ClaudeRuntime, CodexRuntime, ContainerConfig, ContainerRunner
from container_runner.errors import ConfigError, ContainerRunnerError
from container_runner.sdk import ContainerTransport
from container_runner.sdk.flags import SERVERS_FILE
from tests import played_engine

# On trio the SDK leaves generators of its own to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:Async generator 'claude_agent_sdk:ResourceWarning")

CLAUDE = """\
#!{python} -S
# Begins sessions, and answers prompts; some are words for it.
import json, os, sys, time
def say(**line): print(json.dumps(line), flush=True)
for line in sys.stdin:
    told = json.loads(line)
    if told["type"] == "control_request":
        say(type="control_response",
            response=dict(subtype="success", request_id=told["request_id"], response=dict(commands=[])))
    elif told["type"] == "user":
        prompt = told["message"]["content"]
        word, _, rest = prompt.partition(" ")
        if word == "print":
            print(rest, flush=True)
        if word == "exit":
            print("it went wrong\\n\\n", end="", file=sys.stderr, flush=True)
            os._exit(int(rest))
        if word == "stay":
            print("staying", file=sys.stderr, flush=True)
            while True: time.sleep(1)
        say(type="result", subtype="success", is_error=False, duration_ms=1, duration_api_ms=1, num_turns=1,
            session_id="s1", total_cost_usd=0.5, result="said " + prompt)
"""


@pytest.fixture
def runner(tmp_path: Path) -> ContainerRunner:
    (agent := tmp_path / "claude").write_text(CLAUDE.replace("{python}", sys.executable))
    agent.chmod(0o755)
    engine = played_engine.write(tmp_path / "engine", agent)
    box = {"engine": str(engine), "workspace_mode": "ro", "network": "none", "credentials": "env"}
    return ContainerRunner(ClaudeRuntime(), ContainerConfig(image="any", **box), tmp_path / "state")  # type: ignore[arg-type]  # of Any


def options_of(folder: Path, **fields: Any) -> ClaudeAgentOptions:
    (folder / "project").mkdir(exist_ok=True)
    return ClaudeAgentOptions(cwd=folder / "project", **fields)


def run_of(folder: Path) -> dict[str, Any]:
    """The command that ran the agent."""
    (run,) = (call for call in played_engine.calls(folder / "engine") if "prompt" in call)
    return run


async def read_all(transport: ContainerTransport, *prompts: str) -> list[dict[str, Any]]:
    """What it says to these prompts, and to the end of its input."""
    await transport.connect()
    try:
        for prompt in prompts:
            await transport.write(json.dumps({"type": "user", "message": {"content": prompt}}) + "\n")
        await transport.end_input()
        return [message async for message in transport.read_messages()]
    finally:
        await transport.close()


async def test_a_client_has_turns_and_the_run_is_recorded(
    runner: ContainerRunner, anyio_backend: str, tmp_path: Path
) -> None:
    options = options_of(tmp_path)
    transport = ContainerTransport.from_options(options, runner, agent="bot")
    assert not transport.is_ready()
    with anyio.fail_after(60):
        async with ClaudeSDKClient(options, transport=transport) as client:
            assert transport.is_ready()
            for prompt in ("one", "two"):
                await client.query(prompt)
                said = [message async for message in client.receive_response()]
                assert isinstance(said[-1], ResultMessage)
                assert said[-1].result == f"said {prompt}"

    assert not transport.is_ready()
    assert transport.result is not None
    assert (transport.result.session_id, transport.result.cost_usd) == ("s1", 0.5)
    assert transport.result.record is not None
    assert (transport.result.record.agent, transport.result.record.summary.prompt) == ("bot", "one")


async def test_a_query_is_answered_and_a_second_one_too(
    runner: ContainerRunner, anyio_backend: str, tmp_path: Path
) -> None:
    options = options_of(tmp_path)
    transport = ContainerTransport.from_options(options, runner)
    for prompt in ("one", "two"):
        with anyio.fail_after(60):
            said = [message async for message in query(prompt=prompt, options=options, transport=transport)]
        assert isinstance(said[-1], ResultMessage)
        assert said[-1].result == f"said {prompt}"


async def test_a_code_that_is_not_zero_is_a_process_error(
    runner: ContainerRunner, anyio_backend: str, tmp_path: Path
) -> None:
    heard: list[str] = []

    def hear(line: str) -> None:
        heard.append(line)
        raise ZeroDivisionError

    options = options_of(tmp_path, stderr=hear)
    transport = ContainerTransport.from_options(options, runner)
    with pytest.raises(ProcessError, match="it went wrong") as caught, anyio.fail_after(60):
        await read_all(transport, "exit 3")

    assert caught.value.exit_code == 3
    assert isinstance(caught.value.__cause__, ContainerRunnerError)
    assert heard == ["it went wrong"]
    with pytest.raises(CLIConnectionError):
        await transport.write("more\n")


async def test_what_is_no_message_is_left_out_and_what_is_broken_is_not(
    runner: ContainerRunner, anyio_backend: str, tmp_path: Path
) -> None:
    def transport(**fields: Any) -> ContainerTransport:
        return ContainerTransport.from_options(options_of(tmp_path, **fields), runner)

    with anyio.fail_after(100):
        said = await read_all(transport(), "print [SandboxDebug] hm", 'print  {"type": "system"} ')
        with pytest.raises(CLIJSONDecodeError):
            await read_all(transport(), "print {broken")
        with pytest.raises(CLIJSONDecodeError):
            await read_all(transport(), "print " + '{"a":' * 3000 + "1" + "}" * 3000)
        with pytest.raises(CLIJSONDecodeError, match="maximum buffer size"):
            await read_all(transport(max_buffer_size=2000), "print " + "x" * 3000)
        for costly in ('{"a":' * 500 + "1" + "}" * 500, '{"a":[' + "1," * 300_000 + "1]}"):
            with pytest.raises(CLIJSONDecodeError, match="maximum buffer size"):
                await read_all(transport(), f"print {costly}")

    assert [message["type"] for message in said] == ["result", "system", "result"]


async def test_the_last_line_may_be_cut_off(runner: ContainerRunner, anyio_backend: str, tmp_path: Path) -> None:
    (tmp_path / "claude").write_text('#!/bin/sh\nread line; echo \'{"type":"a"}\'; printf \'{"type":\'\n')
    transport = ContainerTransport.from_options(options_of(tmp_path), runner)
    with anyio.fail_after(60):
        assert await read_all(transport, "any") == [{"type": "a"}]


@pytest.mark.parametrize(
    ("said", "error"), [("container-runner: no-command {run}", CLINotFoundError), ("nonsense", CLIConnectionError)]
)
async def test_what_can_not_start_is_the_sdks_error(
    runner: ContainerRunner, anyio_backend: str, tmp_path: Path, said: str, error: type[Exception]
) -> None:
    said = said.replace("{run}", "$run")
    (tmp_path / "engine" / "docker").write_text(
        f"""#!/bin/sh
        for word; do run=$last last=$word; case $word in --label=container-runner.run=*) id=${{word##*=}} ;; esac; done
        case $1 in run) run=$id; echo "{said}" >&2; exit 127 ;; *) echo Docker version 28.0.0, build fake ;; esac
        """
    )
    with pytest.raises(CLIConnectionError) as caught, anyio.fail_after(60):
        await ContainerTransport.from_options(options_of(tmp_path), runner).connect()

    assert type(caught.value) is error
    assert isinstance(caught.value.__cause__, ContainerRunnerError)


async def test_who_has_not_connected_is_told_so(runner: ContainerRunner, anyio_backend: str, tmp_path: Path) -> None:
    transport = ContainerTransport.from_options(options_of(tmp_path), runner)
    with pytest.raises(CLIConnectionError, match="connect"):
        await transport.write("{}\n")
    await transport.end_input()
    await transport.close()


async def test_a_client_that_is_cancelled_leaves_nothing(
    runner: ContainerRunner, anyio_backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("container_runner.runner.pump.PumpRuntime.leave_patience", 0.2)
    scope = anyio.CancelScope()
    options = options_of(tmp_path, stderr=lambda _: scope.cancel())
    transport = ContainerTransport.from_options(options, runner, grace=1)
    with anyio.fail_after(60), scope:
        async with ClaudeSDKClient(options, transport=transport) as client:
            await client.query("stay")
            async for _ in client.receive_response():
                pytest.fail("it said something")

    assert scope.cancelled_caught
    pump = transport._pump
    assert pump is not None
    assert pump.has_ended
    assert pump._process is None or pump._process.returncode is not None


async def test_who_reads_is_closed_though_the_end_fails(
    runner: ContainerRunner, anyio_backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_: object) -> None:
        raise ZeroDivisionError

    transport = ContainerTransport.from_options(options_of(tmp_path), runner)
    with anyio.fail_after(60):
        await transport.connect()
        await transport.write('{"type": "user", "message": {"content": "one"}}\n')
        reader = transport.read_messages()
        assert (await anext(reader))["result"] == "said one"
        async with anyio.create_task_group() as tasks:
            with monkeypatch.context() as patch:
                patch.setattr("container_runner.runner.pump.Pump.aclose", fail)
                with pytest.raises(ZeroDivisionError):
                    await transport.close()
                with pytest.raises(StopAsyncIteration):  # though claude is there
                    await anext(reader)
                tasks.start_soon(anext, transport.read_messages(), None)
                await anyio.wait_all_tasks_blocked()
                with pytest.raises(ZeroDivisionError):  # and is no error of the reader's, which waits
                    await transport.close()
            await transport.close()


def test_what_the_container_gets(runner: ContainerRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "of the host")
    (tmp_path / "project" / "plugin").mkdir(parents=True)
    (more := tmp_path / "more").mkdir()
    options = options_of(
        tmp_path,
        env={"ANTHROPIC_API_KEY": "k3y", "CLAUDE_CODE_ENTRYPOINT": "mine"},
        client_app="app/1",
        enable_file_checkpointing=True,
        add_dirs=[more],
        plugins=[{"type": "local", "path": str(tmp_path / "project" / "plugin")}],
        mcp_servers={"web": {"command": str(tmp_path / "project" / "serve"), "env": {"TOKEN": "t0ken"}}},
    )
    anyio.run(read_all, ContainerTransport.from_options(options, runner))

    run = run_of(tmp_path)
    assert run["variables"] == {"ANTHROPIC_API_KEY": "k3y", "CLAUDE_CODE_ENTRYPOINT": "mine"}
    words = {
        "--env=CLAUDE_CODE_SDK_READS_SESSION_STATE=1", "--env=CLAUDE_AGENT_SDK_CLIENT_APP=app/1",
        "--env=CLAUDE_CODE_ENABLE_SDK_FILE_CHECKPOINTING=true", f"--env=CLAUDE_AGENT_SDK_VERSION={__version__}",
        f"--add-dir={more}", "--plugin-dir=/workspace/plugin", f"--mcp-config={SERVERS_FILE}",
    }  # fmt: skip
    assert words <= {*run["argv"]}
    assert any(f"src={more}," in word for word in run["argv"])
    assert not any(secret in word for word in run["argv"] for secret in ("k3y", "t0ken", "of the host"))


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"cwd": "/no/such/folder"}, "agent.workspace"),
        ({"add_dirs": ["/no/such/folder"]}, r"agent.add_dirs\[0\]"),
        ({"plugins": [{"type": "local", "path": "/etc/ssl"}]}, r"agent.plugin_dirs\[0\]"),
        ({"plugins": [{"type": "npm", "path": "x"}]}, r"plugins\[0\]"),
        ({"resume": "../x"}, "resume"),
        ({"cli_path": "/usr/bin/claude"}, "cli_path"),
    ],
)
def test_what_is_refused_is_refused_at_once(
    runner: ContainerRunner, tmp_path: Path, fields: dict[str, Any], field: str
) -> None:
    options = options_of(tmp_path)
    for name, value in fields.items():
        setattr(options, name, value)
    with pytest.raises(ConfigError, match=field):
        ContainerTransport.from_options(options, runner)


def test_it_is_for_claude_alone(runner: ContainerRunner, tmp_path: Path) -> None:
    runner.runtime = CodexRuntime()
    with pytest.raises(ConfigError, match="claude alone"):
        ContainerTransport.from_options(options_of(tmp_path), runner)
