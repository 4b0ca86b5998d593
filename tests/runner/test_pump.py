"""Lines that go through as they are, with an engine that only pretends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

from container_runner import Agent, ClaudeRuntime, ContainerConfig, ContainerRunner, ExecuteOptions
from container_runner.agents.acp import AcpRuntime
from container_runner.errors import (
    AgentFailedError,
    ContainerRunnerError,
    IncompleteOutputError,
    TotalTimeoutError,
    UnsupportedRuntimeError,
)
from container_runner.runner import pump as pump_module
from container_runner.runner.pump import PumpRuntime, PumpStream
from tests import played_engine

ECHO = """\
#!/bin/sh
# Says what it was called with, and what it is told; some lines are words for it.
echo "called $*"
while IFS= read -r line; do
  case $line in
    exit*) echo bad >&2; exit "${line#exit }" ;;
    deaf) trap '' TERM; while :; do sleep 1; done ;;
    stay) cat >/dev/null; echo leaving; sleep 0.5; echo left >&2 ;;
    *) printf '%s\\n' "$line" ;;
  esac
done
"""


@pytest.fixture
def runner(tmp_path: Path) -> ContainerRunner:
    (agent := tmp_path / "echo").write_text(ECHO)
    agent.chmod(0o755)
    engine = played_engine.write(tmp_path / "engine", agent)
    config = ContainerConfig(engine=str(engine), image="any", network="none", credentials="none")
    return ContainerRunner(ClaudeRuntime(), config, tmp_path / "state")


def options(**more: Any) -> ExecuteOptions:
    return ExecuteOptions(prompt="", agent=Agent(name="tester"), grace=1, **more)


def test_an_agent_whose_session_an_editor_begins_has_no_servers_of_this_machine(runner: ContainerRunner) -> None:
    config = attrs.evolve(runner.config, host_mcp_servers={"files": "files-server /srv"})

    with pytest.raises(UnsupportedRuntimeError, match="MCP server files"):
        ContainerRunner(AcpRuntime("gemini"), config, runner.state_dir).pump(options())


async def test_lines_go_in_and_come_out_as_they_are(
    runner: ContainerRunner, anyio_backend: str, tmp_path: Path
) -> None:
    pump = runner.pump(options(), argv=["claude", "--flag"], env={"EXTRA": "more"})
    said = []
    with anyio.fail_after(60):
        await pump.start()
        pump.send(b'{"type":"user"}\n\n  {"odd" \xff\r\n')
        async for line in pump:
            said.append(line)
            if len(said) == 4:
                pump.end_input()

    assert said == [b"called --flag", b'{"type":"user"}', b"", b'  {"odd" \xff']
    assert (pump.error, pump.exit_code, pump.has_ended) == (None, 0, True)
    (run,) = (call["argv"] for call in played_engine.calls(tmp_path / "engine") if "prompt" in call)
    assert "--env=EXTRA=more" in run
    with pytest.raises(IncompleteOutputError):
        pump.send(b"more\n")


async def test_what_it_says_is_recorded_and_summed_up(runner: ContainerRunner, anyio_backend: str) -> None:
    pump = runner.pump(options())
    with anyio.fail_after(60):
        await pump.start()
        pump.prompted("do it")
        pump.send(b'{"type":"result","session_id":"s1","result":"done","total_cost_usd":0.5,"is_error":false}\n')
        pump.end_input()
        while await pump.read():
            pass

    assert pump.result is not None
    assert (pump.result.text, pump.result.session_id, pump.result.cost_usd) == ("done", "s1", 0.5)
    assert pump.result.record is not None
    assert pump.result.record.summary.prompt == "do it"
    assert pump.result.record.summary.outcome == "succeeded"


async def test_a_code_is_told_and_so_are_the_lines_of_stderr(runner: ContainerRunner, anyio_backend: str) -> None:
    heard: list[bytes] = []
    pump = runner.pump(options(), on_stderr=heard.append)
    with anyio.fail_after(60):
        await pump.start()
        pump.send(b"exit 7\n")
        while await pump.read():
            pass

    assert pump.exit_code == 7
    assert pump.stderr == "bad\n"
    assert heard == [b"bad"]
    assert isinstance(pump.error, AgentFailedError)
    with pytest.raises(AgentFailedError):
        pump.send(b"more\n")


@pytest.mark.parametrize("another_reads", [False, True])
async def test_what_was_closed_may_leave_by_itself(
    runner: ContainerRunner, anyio_backend: str, another_reads: bool
) -> None:
    heard: list[bytes] = []
    pump = runner.pump(options(), on_stderr=heard.append)
    with anyio.fail_after(60):
        await pump.start()
        pump.send(b"stay\n")
        await pump.read()
        async with anyio.create_task_group() as tasks:
            if another_reads:
                tasks.start_soon(pump.read)
                await anyio.wait_all_tasks_blocked()
            await pump.aclose()

    assert heard == [b"left"]
    assert pump.has_ended
    assert pump.result is not None
    assert pump.result.record is not None
    assert pump.result.record.summary.outcome == "succeeded"


@pytest.mark.parametrize("how", ["close", "close while another reads", "cancel", "stop"])
async def test_what_does_not_leave_is_stopped(
    runner: ContainerRunner, anyio_backend: str, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(PumpRuntime, "leave_patience", 0.2)
    monkeypatch.setattr(pump_module, "LEAVE_PATIENCE", 0.2)
    pump = runner.pump(options())
    with anyio.fail_after(60):
        await pump.start()
        pump.send(b"deaf\n")
        assert [line.split()[0] for line in await pump.read() if isinstance(line, bytes)] == [b"called"]
        client = pump._process
        if how == "close":
            await pump.aclose()
        elif how == "close while another reads":
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(pump.read)
                await anyio.sleep(0.2)
                await pump.aclose()
        elif how == "stop":
            pump.stop()
            assert await pump.read() == []
            assert pump.error is not None
        else:
            with anyio.move_on_after(0.2):
                await pump.read()
    assert pump.has_ended
    assert client is not None
    assert client.returncode is not None
    assert pump.result is not None
    assert pump.result.record is not None
    assert pump.result.record.summary.outcome != "succeeded"
    assert pump.exit_code in (None, 143)  # TERM may come before it is deaf


async def test_what_can_not_start_says_so(runner: ContainerRunner, anyio_backend: str, tmp_path: Path) -> None:
    (tmp_path / "engine" / "docker").write_text("#!/bin/sh\necho no >&2\nexit 1\n")
    with pytest.raises(ContainerRunnerError), anyio.fail_after(60):
        await runner.pump(options()).start()


async def test_the_time_in_all_counts_and_silence_does_not(
    runner: ContainerRunner, anyio_backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams: list[PumpStream] = []

    class Stream(PumpStream):
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **more)
            streams.append(self)

    monkeypatch.setattr(pump_module, "PumpStream", Stream)
    pump = runner.pump(options(timeout=600, idle_timeout=0.01))
    with anyio.fail_after(60):
        await pump.start()
        await pump.read()
        streams[0]._started_at = anyio.current_time() - 600 + 0.1  # ten times the silence is left
        while await pump.read():
            pass

    assert isinstance(pump.error, TotalTimeoutError)
