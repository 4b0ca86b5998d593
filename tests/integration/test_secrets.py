"""A secret reaches the agent, and nobody else."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import secrets
import subprocess
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from container_runner import CommandRuntime
from container_runner.errors import AgentFailedError
from tests.integration.runs import Box, error_of, lines_of, on

NAMES = ["ANTHROPIC_API_KEY", "BUILD_TOKEN", "DEPLOY_KEY"]
DIGEST = 'printf %s "$ANTHROPIC_API_KEY.$BUILD_TOKEN.$DEPLOY_KEY" | sha256sum | cut -c-64'


@pytest.fixture
def values(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A login and a secret in our environment, a secret of the configuration, and one that nobody asks for."""
    values = {name: f"value-{secrets.token_hex(16)}" for name in (*NAMES, "UNASKED")}
    for name in ("ANTHROPIC_API_KEY", "BUILD_TOKEN", "UNASKED"):
        monkeypatch.setenv(name, values[name])
    return values


def asked(values: dict[str, str]) -> dict[str, Any]:
    """The fields of the configuration that hand out all but the last."""
    return {"credentials": "env", "secrets": ["BUILD_TOKEN"], "env": {"DEPLOY_KEY": values["DEPLOY_KEY"]}}


def test_the_agent_gets_what_was_asked_for_and_nothing_else(box: Box, values: dict[str, str]) -> None:
    told = box.sh(f"{DIGEST}; env | grep -c value-; env | cut -d= -f1 | sort", **asked(values))

    digest, count, *names = told.split()
    assert digest == hashlib.sha256(".".join(values[name] for name in NAMES).encode()).hexdigest()
    assert int(count) == len(NAMES)
    assert {*NAMES} <= {*names}
    assert not {"UNASKED", "PYTEST_CURRENT_TEST"} & {*names}


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("ephemeral", [True, False], ids=["ephemeral", "persistent"])
async def test_secrets_are_on_no_command_line_and_not_in_what_the_engine_knows(
    box: Box, values: dict[str, str], ephemeral: bool
) -> None:
    """They are on the way to the agent and in its own environment, and nowhere else, an engine's files included."""
    prompt = f"sh {DIGEST}\nsleep 60"
    async with box.at_work(prompt, ephemeral=ephemeral, **asked(values)) as container:
        await anyio.sleep(1)
        shown = box.engine.run("inspect", container).stdout
        commands = {process.pid: b"\0".join(read(process, "cmdline")) for process in psutil.process_iter()}
        clients = [
            b"\0".join(read(process, "environ"))
            for process in psutil.Process().children(recursive=True)
            if container_name(shown).encode() in commands.get(process.pid, b"")
        ]
        kept = await anyio.to_thread.run_sync(stored, box, values)
    if not ephemeral:
        box.engine.remove(container)

    for value in values.values():
        assert value not in shown
        assert not [pid for pid, command in commands.items() if value.encode() in command]
    assert clients
    for client in clients:
        assert not [name for name in values if values[name].encode() in client]
    assert kept == []
    assert await anyio.to_thread.run_sync(stored, box, values) == []


def stored(box: Box, values: dict[str, str]) -> list[str]:
    """The files of the engine's, and of ours, that hold one of the values; only where the engine is the tests' own."""
    folders = [box.state, Path(box.engine.binary).parent]
    if not folders[1].name.startswith("cr-"):
        folders = folders[:1]
    patterns = [word for value in values.values() for word in ("-e", value)]
    layers = ["--exclude-dir=diff", "--exclude-dir=merged", "--exclude-dir=overlay2"]  # what the agent sees itself
    command = ["grep", "--recursive", "--text", "--files-with-matches", "--devices=skip", *layers, *patterns]
    return subprocess.run(
        [*command, *map(str, folders)], check=False, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ).stdout.split()


def test_a_secret_that_the_agent_prints_to_stderr_is_in_no_error_and_in_no_log(
    box: Box, values: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    runtime = CommandRuntime(["sh", "-c", 'echo "token $BUILD_TOKEN, key $DEPLOY_KEY" >&2; exit 3'])

    error = error_of(box.run("go", runtime, secrets=["BUILD_TOKEN"], env={"DEPLOY_KEY": values["DEPLOY_KEY"]}))

    assert error is not None
    assert error.kind == AgentFailedError.kind
    assert error.stderr.strip() == "token [BUILD_TOKEN], key [DEPLOY_KEY]"
    for text in (repr(error), error.to_json().decode(), caplog.text):
        assert "value-" not in text


def test_secrets_are_in_no_error_of_the_engine(
    box: Box, values: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    error = error_of(box.run("go", network="container-runner-none-such", **asked(values)))

    assert error is not None
    assert error.kind == "network_not_found"
    for text in (repr(error), caplog.text):
        assert "value-" not in text


def test_a_secret_that_is_not_set_here_is_not_set_there(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BUILD_TOKEN", raising=False)
    runtime = CommandRuntime(["sh", "-c", "env | grep -c BUILD_TOKEN"])

    messages = box.run("go", runtime, optional_secrets=["BUILD_TOKEN"])

    assert lines_of(messages) == [b"0"]


def test_the_hosts_proxies_stay_on_the_host(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://user:value-of-a-password@127.0.0.1:9")
    monkeypatch.setenv("HTTPS_PROXY", "http://user:value-of-a-password@127.0.0.1:9")

    assert box.sh("env | grep -i -e proxy -e value-") == ""


@on("docker", "docker-26")
@pytest.mark.parametrize("ephemeral", [True, False])
def test_docker_gives_no_proxies_of_its_own_configuration(box: Box, ephemeral: bool) -> None:
    folder = box.new_folder("configuration")
    proxy = "http://user:value-of-a-password@127.0.0.1:9"
    proxies = {f"{kind}Proxy": proxy for kind in ("http", "https", "ftp", "all", "no")}
    (folder / "config.json").write_text(json.dumps({"proxies": {"default": proxies}}))
    client = folder / "docker"
    client.write_text(f'#!/bin/sh\nexec {box.engine.binary} --config={folder} "$@"\n')
    client.chmod(0o755)
    told = box.engine.run("--config", str(folder), "run", "--rm", "--entrypoint=env", box.engine.images.tiny).stdout
    assert "value-of-a-password" in told  # as docker does it

    fields: dict[str, Any] = {"engine": str(client), "ephemeral": ephemeral}
    assert box.sh("env | grep -i -e proxy -e value-", **fields) == ""
    mine = {"HTTPS_PROXY": "http://mine:1"}
    assert box.sh("env | grep -i -e proxy -e value-", env=mine, **fields) == "HTTPS_PROXY=http://mine:1"
    for container in box.containers():
        box.engine.remove(container)


@pytest.mark.skipif(os.geteuid() != 0, reason="a file of another user")
def test_the_login_file_is_mounted_read_only_and_nothing_beside_it(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    home = box.new_folder("home")
    monkeypatch.setenv("HOME", str(home))
    login = home / ".claude" / ".credentials.json"
    login.parent.mkdir()
    login.write_text('{"token": "x"}\n')
    login.with_name("history.jsonl").write_text("all that you ever asked\n")
    for path in (login.parent, login):
        os.chown(path, *box.engine.owner)

    look = "cd $CLAUDE_CONFIG_DIR; ls -A; cat .credentials.json; echo y >.credentials.json; rm .credentials.json"
    told = box.sh(look, credentials="file").splitlines()

    assert told[:4] == [".credentials.json", "projects", "tasks", '{"token": "x"}']
    assert "read-only" in told[4].lower()
    assert login.read_text() == '{"token": "x"}\n'


def read(process: psutil.Process, file: str) -> list[bytes]:
    """/proc/PID/cmdline or environ; nothing of a process that has ended, or is another user's."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process.pid}/{file}").read_bytes().split(b"\0")
    return []


def container_name(inspected: str) -> str:
    return str(json.loads(inspected)[0]["Name"]).removeprefix("/")
