"""How runs end, and that they leave nothing: no container, and an error that says what to do."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
import time
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest

from container_runner import ClaudeRuntime, CommandRuntime, ErrorMessage, Runtime
from container_runner.errors import EngineNotFoundError, MountError, NameTakenError
from container_runner.stream import stream as stream_module
from container_runner.stream.decode import cost
from container_runner.stream.process import CHUNK
from tests.integration.engines import write_program
from tests.integration.images import add_file
from tests.integration.runs import (
    ON_DOCKER,
    ON_OWN_ROOTFUL,
    ON_ROOTFUL,
    Box,
    collect,
    error_of,
    lines_of,
    messages_of,
    on,
    result_of,
    said,
)

MIB = 1024**2
ANOTHER_RUN = "0" * 32


def shell(script: str) -> CommandRuntime:
    return CommandRuntime(["sh", "-c", script])


def test_a_run_that_succeeds_ends_with_its_result(box: Box) -> None:
    messages = box.run("hello")

    assert said(messages) == ["hello"]
    assert result_of(messages).total_cost_usd == 0.0125
    assert error_of(messages) is None
    assert box.containers() == []


@ON_OWN_ROOTFUL
@pytest.mark.parametrize(
    ("runtime", "prompt", "kind", "exit_code", "told"),
    [
        pytest.param(ClaudeRuntime(), "exit 7", "agent_failed", 7, "code 7", id="exit code"),
        pytest.param(shell("echo why >&2; exit 9"), "", "agent_failed", 9, "code 9", id="exit code of a command"),
        pytest.param(ClaudeRuntime(), "kill TERM", "agent_killed", 143, "SIGTERM", id="killed by TERM"),
        pytest.param(ClaudeRuntime(), "kill KILL", "agent_killed", 137, "SIGKILL", id="killed by KILL"),
        pytest.param(ClaudeRuntime(), "kill SEGV", "agent_killed", 139, "SIGSEGV", id="a crash"),
        pytest.param(ClaudeRuntime(), "fail It did not work.", "agent_failed", 1, "It did not work.", id="its result"),
        pytest.param(ClaudeRuntime(), "no-result", "incomplete", 0, "without a result", id="no result"),
        pytest.param(ClaudeRuntime(), 'cut {"type": "resu', "incomplete", 0, "without a result", id="half a result"),
        pytest.param(ClaudeRuntime("claude-9"), "", "command_not_found", 127, "claude-9", id="no such command"),
        pytest.param(CommandRuntime(["/no/such"]), "", "command_not_found", 127, "/no/such", id="no such path"),
        pytest.param(CommandRuntime(["/etc"]), "", "command_not_executable", 126, "/etc", id="a folder"),
        pytest.param(CommandRuntime(["/etc/passwd"]), "", "command_not_executable", 126, "passwd", id="a plain file"),
    ],
)
def test_the_agents_failures(box: Box, runtime: Runtime, prompt: str, kind: str, exit_code: int, told: str) -> None:
    error = error_of(box.run(prompt, runtime))

    assert error is not None
    assert (error.kind, error.exit_code) == (kind, exit_code)
    assert told in error.message
    assert error.next_step
    assert error.stop is None
    assert "container-runner:" not in error.stderr
    assert box.containers() == []


@ON_ROOTFUL
def test_the_end_of_stderr_comes_with_the_error(box: Box) -> None:
    error = error_of(box.run("go", shell("for i in 1 2 3; do echo line $i >&2; done; exit 1")))

    assert error is not None
    assert error.stderr == "line 1\nline 2\nline 3\n"


@pytest.mark.parametrize(
    ("fields", "kind", "told"),
    [
        ({"image": "container-runner-test/none-such"}, "image_not_found", "none-such"),
        ({"network": "container-runner-none-such"}, "network_not_found", "none-such"),
        ({"extra_args": ["--no-such-flag"]}, "engine_argument", "no-such-flag"),
        ({"extra_args": ["--runtime=no-such-runtime"]}, "engine_argument", "no-such-runtime"),
    ],
)
def test_the_engines_failures(box: Box, fields: dict[str, Any], kind: str, told: str) -> None:
    messages = collect(box.runner(**fields), box.options("go"))

    (error,) = messages
    assert error_of(messages) is error
    assert error.kind == kind
    assert told in error.stderr
    assert error.next_step
    assert box.containers() == []


@ON_ROOTFUL
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_what_can_only_go_wrong_between_our_look_and_the_engines(box: Box) -> None:
    runner = box.runner(ephemeral=False)
    manager = await runner.manager()
    plan = runner.plan(box.options("go"))
    plan.prepare()

    await manager.engine.create(plan.run, may_pull=False)
    with pytest.raises(NameTakenError):
        await manager.engine.create(plan.run, may_pull=False)
    await manager.remove(plan.container)

    plan = runner.plan(box.options("go"))
    box.workspace.rmdir()
    with pytest.raises(MountError):
        await manager.get_or_create(plan)
    box.workspace.mkdir()
    assert box.containers() == []


@ON_ROOTFUL
def test_an_image_whose_registry_does_not_answer(box: Box) -> None:
    error = error_of(box.run("go", image="127.0.0.1:1/no/such:image", pull="missing"))

    assert error is not None
    assert error.kind == "pull_failed"


@ON_DOCKER
def test_a_socket_that_is_somebody_elses(box: Box) -> None:
    client = box.folder / "docker"
    write_program(client, f"exec setpriv --reuid=1234 --regid=1234 --clear-groups {box.engine.binary}")

    error = error_of(box.run("go", engine=str(client)))

    assert error is not None
    assert error.kind == "engine_permission"


@ON_DOCKER
@pytest.mark.parametrize("program", ["/no/such/docker", "container-runner-none-such", "/etc/passwd"])
def test_a_program_that_is_not_there(box: Box, program: str) -> None:
    with pytest.raises(EngineNotFoundError, match=Path(program).name):
        box.run("go", engine=program)


@ON_OWN_ROOTFUL
@pytest.mark.parametrize(
    "words",
    [
        "OCI runtime exec failed: exec failed: unable to start container process",
        "Error response from daemon: No such container: abc",
        "Error: can only create exec sessions on running containers: container state improper",
        "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?",
        'exec: "sh": executable file not found in $PATH',
        f"container-runner: started {ANOTHER_RUN} 7",
        f"container-runner: ended {ANOTHER_RUN} 0",
        "container-runner: no-command",
        "container-runner: missing cat",
        "container-runner: oom 3",
    ],
)
def test_an_agent_that_speaks_like_an_engine_is_still_the_agent(box: Box, words: str) -> None:
    error = error_of(box.run("go", shell(f"echo '{words}'; echo '{words}' >&2; exit 1")))

    assert error is not None
    assert (error.kind, error.exit_code) == ("agent_failed", 1)


@ON_ROOTFUL
@pytest.mark.parametrize("command", ["tail /dev/zero", "tail /dev/zero; exit 1"])
def test_an_agent_that_needs_more_memory_than_it_may_is_told_apart(box: Box, command: str) -> None:
    error = error_of(box.run("go", shell(command), memory="16m"))

    assert error is not None
    assert error.kind == "out_of_memory"
    assert "--memory" in error.next_step
    assert box.containers() == []


@ON_ROOTFUL
def test_a_tool_that_ran_out_of_memory_is_the_agents_to_judge(box: Box) -> None:
    result_of(box.run("sh tail /dev/zero", memory="16m"))


def test_children_that_outlive_the_agent_do_not_outlive_the_run(box: Box) -> None:
    began = time.monotonic()

    result_of(box.run("setsid-sleep 1000\nsetsid-hold 1000\nhello"))

    assert time.monotonic() - began < 15
    assert box.containers() == []


@ON_OWN_ROOTFUL
@pytest.mark.parametrize(
    ("prompt", "fields", "kind", "stop"),
    [
        ("sleep 1000", {"timeout": 3}, "total_timeout", "term"),
        ("sleep 1000", {"idle_timeout": 0.5}, "idle_timeout", "term"),
        ("hang-after-result", {"result_timeout": 0.5}, "result_timeout", "term"),
        ("ignore-term", {"timeout": 3, "grace": 1}, "total_timeout", "kill"),
        ("flood 1000000000 1000", {"timeout": 2}, "total_timeout", "term"),
    ],
)
def test_the_clocks_end_a_run(box: Box, prompt: str, fields: dict[str, Any], kind: str, stop: str) -> None:
    began = time.monotonic()

    error = error_of(box.run(prompt, **fields))

    assert error is not None
    assert (error.kind, error.stop) == (kind, stop)
    assert time.monotonic() - began < 20
    assert box.containers() == []


@ON_OWN_ROOTFUL
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_an_agent_that_floods_while_it_is_stopped_fills_no_memory(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "LAST_WORDS", MIB)
    flood = shell("trap 'trap \"\" TERM; exec yes' TERM; echo first; while :; do sleep 1; done")

    async with messages_of(box.runner(flood), box.options("go", idle_timeout=1, grace=3)) as messages:
        got = [message async for message in messages]

    *lines, error = got
    assert isinstance(error, ErrorMessage)
    assert error.kind == "idle_timeout"
    assert error.stop in ("kill", "container")  # a client on a busy machine may be too slow for the former
    (summary,) = (box.state / "runs/tester").glob("[!.]*.json")
    assert orjson.loads(summary.read_bytes())["complete"] is False
    # The portion that goes over the limit is kept whole.
    assert MIB / cost(b"y") < len(lines) < 2 * CHUNK
    assert box.containers() == []


@ON_OWN_ROOTFUL
async def test_leaving_the_loop_ends_the_run(box: Box, anyio_backend: str) -> None:
    async with messages_of(box.runner(), box.options("sleep 1000")) as messages:
        async for _ in messages:
            break
        began = time.monotonic()

    assert time.monotonic() - began < 8
    assert box.containers() == []


@ON_OWN_ROOTFUL
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_an_exception_of_the_reader_ends_the_run(box: Box) -> None:
    async def read() -> None:
        async with messages_of(box.runner(), box.options("sleep 1000")) as messages:
            await anext(messages)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await read()
    assert box.containers() == []


@ON_OWN_ROOTFUL
@pytest.mark.parametrize("seconds", [0.05, 0.4, 1.5])
async def test_a_deadline_of_the_caller_ends_the_run_whenever_it_comes(
    box: Box, seconds: float, anyio_backend: str
) -> None:
    began = time.monotonic()

    with anyio.move_on_after(seconds) as scope:
        async with messages_of(box.runner(), box.options("sleep 1000")) as messages:
            assert [message async for message in messages] == []

    assert scope.cancelled_caught
    assert time.monotonic() - began < seconds + 8
    assert box.containers() == []


@ON_OWN_ROOTFUL
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_an_agent_that_ignores_term_is_killed_after_the_grace_period(box: Box) -> None:
    async with messages_of(box.runner(), box.options("ignore-term", grace=1)) as messages:
        await anext(messages)
        await anyio.sleep(0.5)  # it tells of itself before it turns deaf
        began = time.monotonic()

    assert 0.9 < time.monotonic() - began < 8
    assert box.containers() == []


@ON_OWN_ROOTFUL
async def test_runs_side_by_side_do_not_touch_each_other(box: Box, anyio_backend: str) -> None:
    told: dict[int, list[str]] = {}

    async def one(number: int) -> None:
        async with messages_of(box.runner(), box.options(f"sleep 0.{number}\nnumber {number}")) as messages:
            told[number] = said([message async for message in messages])

    async with anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(one, number)

    assert told == {number: [f"number {number}"] for number in range(5)}
    assert box.containers() == []


@ON_OWN_ROOTFUL
def test_every_line_before_the_end_is_kept(box: Box) -> None:
    messages = box.run("go", shell("seq 1000; exit 3"))

    assert lines_of(messages) == [str(number).encode() for number in range(1, 1001)]
    assert json.loads(messages[-1].to_json())["type"] == "error"


@on("podman")
def test_a_graphics_processor_that_podman_can_not_give_is_an_error(box: Box) -> None:
    error = error_of(box.run("hello", gpus="all"))

    assert error is not None
    assert (error.kind, error.message) == ("engine_argument", "The engine can give no GPU.")


@ON_OWN_ROOTFUL
@pytest.mark.parametrize("ephemeral", [True, False])
def test_an_image_for_another_processor_is_told_as_one(box: Box, ephemeral: bool) -> None:
    program = bytearray(Path(shutil.which("busybox") or pytest.skip("there is no busybox here")).read_bytes())
    program[18:20] = (0xF7).to_bytes(2, "little")  # the machine in the ELF header: BPF, which no processor is
    image, other = "container-runner-test/elsewhere:latest", "s390x"
    with tarfile.open(fileobj=(layer := io.BytesIO()), mode="w") as archive:
        add_file(archive, "bin/sh", bytes(program), mode=0o755)
    layers = {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"]}
    config = {"architecture": other, "os": "linux", "config": {}, "rootfs": layers}
    with tarfile.open(box.folder / "image.tar", "w") as archive:
        add_file(archive, "layer.tar", layer.getvalue())
        add_file(archive, "config.json", json.dumps(config).encode())
        manifest = [{"Config": "config.json", "RepoTags": [image], "Layers": ["layer.tar"]}]
        add_file(archive, "manifest.json", json.dumps(manifest).encode())
    box.engine.run("load", f"--input={box.folder / 'image.tar'}")
    try:
        error = error_of(box.run("hello", image=image, ephemeral=ephemeral))
    finally:
        box.engine.run("rmi", "--force", image)

    assert error is not None
    assert (error.kind, "another CPU" in error.message) == ("image_unsuitable", True), error
    assert ephemeral or f"another CPU, {other}" in error.message
    assert box.containers() == []
