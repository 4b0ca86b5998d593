"""Which engine it is, and its answers as values."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from pytest_subprocess import FakeProcess

from container_runner.box.argv import DOCKER, PODMAN, PODMAN_ROOTLESS
from container_runner.engine import engine as engine_module
from container_runner.engine.engine import ContainerInfo, Engine
from container_runner.errors import (
    EngineError,
    EngineNotFoundError,
    EngineUnreachableError,
)
from container_runner.testing import FakeEngine

ID = "c0ffee" * 10 + "cafe"

# Which engine


Program = Callable[[str, str], Path]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    (tmp_path / "bin").mkdir()
    return tmp_path / "bin"


def program(folder: Path, name: str, script: str = "exit 0") -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def guess(folder: Path, wanted: str = "auto", **environ: str) -> tuple[str, str]:
    engine = Engine.guess(wanted, {"PATH": str(folder), **environ})
    return engine.binary, "podman-rootless" if engine.dialect is PODMAN_ROOTLESS else engine.dialect.name


@pytest.mark.parametrize(
    ("there", "environ", "expected"),
    [
        ((), {}, ("docker", "docker")),
        (("docker",), {}, ("docker", "docker")),
        (("podman",), {}, ("podman", "podman-rootless")),
        (("docker", "podman"), {"DOCKER_HOST": "unix:///x"}, ("docker", "docker")),
        (("docker", "podman"), {"DOCKER_CONTEXT": "remote"}, ("docker", "docker")),
        (("docker", "podman"), {"CONTAINER_RUNNER_ENGINE": "podman"}, ("podman", "podman-rootless")),
        (("docker",), {"CONTAINER_RUNNER_ENGINE": "podman"}, ("podman", "podman-rootless")),
        (("podman",), {"CONTAINER_RUNNER_ENGINE": "auto"}, ("podman", "podman-rootless")),
    ],
)
def test_which_engine_auto_means(
    folder: Path, there: tuple[str, ...], environ: dict[str, str], expected: tuple[str, str]
) -> None:
    for name in there:
        program(folder, name)

    assert guess(folder, **environ) == expected


@pytest.mark.parametrize(("socket", "expected"), [(True, "docker"), (False, "podman")])
def test_of_two_engines_auto_takes_docker_if_its_daemon_is_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch, socket: bool, expected: str
) -> None:
    program(folder, "docker")
    program(folder, "podman")
    monkeypatch.setattr(engine_module.Path, "exists", lambda self: socket)  # type: ignore[attr-defined]  # the module imports it for itself

    assert guess(folder)[0] == expected


def test_podman_by_the_name_of_docker_is_known(folder: Path) -> None:
    real = program(folder, "podman")
    (folder / "docker").symlink_to(real)
    assert guess(folder, "docker") == ("docker", "podman-rootless")

    (folder / "docker").unlink()
    program(folder, "docker", 'exec /usr/bin/podman "$@"')
    assert guess(folder, "docker") == ("docker", "podman-rootless")


def test_for_root_podman_is_not_rootless(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    program(folder, "podman")

    assert guess(folder) == ("podman", "podman")


def test_a_program_of_ones_own(folder: Path) -> None:
    assert guess(folder, str(program(folder, "nerdctl"))) == (str(folder / "nerdctl"), "docker")
    with pytest.raises(EngineNotFoundError):
        guess(folder, "nowhere")
    with pytest.raises(EngineNotFoundError):
        guess(folder, str(folder / "nowhere"))


# Asking it

DOCKER_VERSION = 'echo "Docker version 28.2.2, build e6534b4"'
PODMAN_SCRIPT = """
case $1 in
  --version) echo "podman version 5.4.2" ;;
  info) echo "%s 5.4.2 /var/lib/containers/storage" ;;
esac
"""


async def probe(folder: Path, wanted: str) -> Engine:
    return await Engine.probe(wanted, {"PATH": f"{folder}:/usr/bin:/bin", "HOME": "/"})


async def test_docker_is_asked_for_its_version(folder: Path) -> None:
    engine = await probe(folder, str(program(folder, "docker", DOCKER_VERSION)))

    assert (engine.dialect, engine.version) == (DOCKER, "28.2.2")


@pytest.mark.parametrize(("rootless", "dialect"), [("true", PODMAN_ROOTLESS), ("false", PODMAN)])
@pytest.mark.parametrize("name", ["podman", "docker"])
async def test_podman_is_asked_whether_it_is_rootless(folder: Path, name: str, rootless: str, dialect: object) -> None:
    engine = await probe(folder, str(program(folder, name, PODMAN_SCRIPT % f"false {rootless}")))

    assert (engine.dialect, engine.version) == (dialect, "5.4.2")


async def test_a_copy_of_podman_says_its_own_name_and_is_podman(folder: Path) -> None:
    said = PODMAN_SCRIPT.replace("podman version", "docker version") % "false false"

    engine = await probe(folder, str(program(folder, "docker", said)))

    assert (engine.dialect, engine.version) == (PODMAN, "5.4.2")


@pytest.mark.parametrize("name", ["docker", "podman-lookalike", "nerdctl"])
async def test_what_knows_nothing_of_podmans_words_is_docker(folder: Path, name: str) -> None:
    """Such as a script around docker's client that only names podman's socket."""
    script = f'''# not podman
case $1 in
  --version) echo "{"Docker version 28.2.2, build e" if name != "nerdctl" else "nerdctl version 28.2.2"}" ;;
  info) echo "template: :1:2: executing \\"\\" at <.Host>: can't evaluate field Host in type x" >&2; exit 1 ;;
esac'''

    engine = await probe(folder, str(program(folder, name, script)))

    assert (engine.dialect, engine.version) == (DOCKER, "28.2.2")


@pytest.mark.parametrize(
    ("remote", "graph_root"), [("false", "/var/lib/containers/storage"), ("true", ""), ("<no value>", "")]
)
async def test_where_another_machines_podman_keeps_its_containers_is_not_ours_to_look_at(
    folder: Path, remote: str, graph_root: str
) -> None:
    engine = await probe(folder, str(program(folder, "podman", PODMAN_SCRIPT % f"{remote} false")))

    assert engine.graph_root == graph_root


async def test_an_engine_that_is_not_there(folder: Path) -> None:
    with pytest.raises(EngineNotFoundError) as caught:
        await Engine.probe("docker", {"PATH": str(folder)})

    assert "docker" in caught.value.message


async def test_a_machine_without_any_engine(folder: Path) -> None:
    with pytest.raises(EngineNotFoundError, match="neither docker nor podman"):
        await Engine.probe("auto", {"PATH": str(folder)})
    with pytest.raises(EngineNotFoundError, match="neither docker nor podman"):
        await Engine.probe("auto", {"PATH": str(folder), "CONTAINER_RUNNER_ENGINE": "auto"})
    with pytest.raises(EngineNotFoundError, match="no program 'docker'"):
        await Engine.probe("docker", {"PATH": str(folder)})


async def test_a_program_that_is_no_engine(folder: Path) -> None:
    with pytest.raises(EngineNotFoundError, match="does not answer as docker or podman do"):
        await probe(folder, str(program(folder, "docker", "echo hello")))


async def test_an_engine_that_fails_to_answer(folder: Path) -> None:
    wanted = str(program(folder, "podman", "echo 'Error: cannot setup namespace' >&2; exit 125"))

    with pytest.raises(EngineError) as caught:
        await probe(folder, wanted)

    assert caught.value.stderr == "Error: cannot setup namespace"


async def test_the_client_speaks_english_and_hears_no_secret(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = str(program(folder, "docker", f"env >{tmp_path}/env; echo Docker version 1.2.3"))

    await Engine.probe(wanted, {"PATH": "/usr/bin:/bin", "LC_ALL": "de_DE.UTF-8", "MY_TOKEN": "s3cr3t"})

    seen = (tmp_path / "env").read_text()
    assert "LC_ALL=C\n" in seen
    assert "s3cr3t" not in seen


# Its answers as values


ENGINE = Engine(binary="docker", dialect=DOCKER, environ={})


def inspected(**state: Any) -> dict[str, Any]:
    return {
        "Id": ID,
        "Name": "/name",
        "Created": "2026-11-23T10:20:30.123456789Z",
        "Config": {"Labels": {"a": "b"}},
        "State": {"Status": "running", "OOMKilled": False, "ExitCode": 0, **state},
    }


def test_what_inspect_says_of_a_container() -> None:
    info = ContainerInfo.parse(inspected())

    assert (info.id, info.name, info.labels, info.is_running) == (ID, "name", {"a": "b"}, True)
    assert info.created == dt.datetime(2026, 11, 23, 10, 20, 30, 123456, dt.UTC)


async def test_podman_looks_up_no_packages(folder: Path) -> None:
    script = 'echo "false false 5.4.2 $DPKG_ADMINDIR"'
    engine = await probe(folder, str(program(folder, "podman", script)))

    assert engine.graph_root == "/nonexistent"
    assert "DPKG_ADMINDIR" not in engine.environ


@pytest.mark.parametrize(
    "raw",
    [
        {"Id": "i", "Name": "n"},
        {"Id": "i", "Name": "n", "State": None, "Config": None, "Created": None},
        {"Id": "i", "Name": "n", "Config": {"Labels": None}, "State": {}, "Created": "yesterday"},
    ],
)
def test_what_inspect_leaves_out_is_empty(raw: dict[str, Any]) -> None:
    info = ContainerInfo.parse(raw)

    assert (info.labels, info.status, info.is_running, info.oom_killed) == ({}, "", False, False)


@pytest.mark.parametrize("created", ["2026-11-23T10:20:30.1Z", "2026-11-23T10:20:30.123456789+01:00", "garbage", ""])
def test_every_time_can_be_compared_with_every_other(created: str) -> None:
    infos = [ContainerInfo.parse({**inspected(), "Created": text}) for text in (created, "2026-01-01T00:00:00Z")]

    assert sorted(infos, key=lambda info: info.created)


async def test_inspect_without_names_asks_nothing(fake_engine: FakeEngine) -> None:
    assert await ENGINE.inspect([]) == []


async def test_inspect_gives_those_that_are_there_though_others_are_gone(
    fake_engine: FakeEngine, fp: FakeProcess
) -> None:
    fp.register(
        ["docker", "inspect", fp.any()],
        stdout=orjson.dumps([inspected()]),
        stderr="Error: No such container: other",
        returncode=1,
    )

    (info,) = await ENGINE.inspect(["name", "other"])

    assert info.name == "name"


@pytest.mark.parametrize(
    ("stdout", "stderr", "code", "kind"),
    [
        (
            "[]",
            "Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?",
            1,
            EngineUnreachableError,
        ),
        ("not json", "", 0, EngineError),
        ('[{"State": {}}]', "", 0, EngineError),
        ('{"a": 1}', "", 0, EngineError),
        ('["a"]', "", 0, EngineError),
    ],
)
async def test_inspect_that_fails(
    fake_engine: FakeEngine, fp: FakeProcess, stdout: str, stderr: str, code: int, kind: type[EngineError]
) -> None:
    fp.register(["docker", "inspect", fp.any()], stdout=stdout, stderr=stderr, returncode=code)

    with pytest.raises(kind):
        await ENGINE.inspect(["name"])


@pytest.mark.parametrize(
    ("stdout", "code", "made"),
    [
        (f"{ID}\n", 0, True),
        (f"a warning\n{ID}\n", 0, True),
        ("", 0, False),  # a client that was asked to stop says this
        (f"{ID}\n", 127, False),  # the container was made and could not start
        (f"{ID[:12]}\n", 0, False),
        (f"{ID.upper()}\n", 0, False),
    ],
)
async def test_a_container_is_made_if_its_id_is_told(
    fake_engine: FakeEngine, fp: FakeProcess, stdout: str, code: int, made: bool
) -> None:
    fp.register(["docker", "run", fp.any()], stdout=stdout, returncode=code)

    if made:
        assert await ENGINE.create(["docker", "run", "x"], may_pull=False) == ID
    else:
        with pytest.raises(EngineError):
            await ENGINE.create(["docker", "run", "x"], may_pull=False)


@pytest.mark.parametrize(
    ("stderr", "code", "fine"),
    [
        ("", 0, True),
        ("Error response from daemon: No such container: x", 1, True),
        ("Error: removal of container x is already in progress", 1, True),
        ("Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?", 1, False),
        ("something else", 1, False),
    ],
)
async def test_removing_what_is_not_there_is_no_error(
    fake_engine: FakeEngine, fp: FakeProcess, stderr: str, code: int, fine: bool
) -> None:
    fp.register(["docker", "rm", fp.any()], stderr=stderr, returncode=code)

    if fine:
        await ENGINE.remove("x")
    else:
        with pytest.raises(EngineError):
            await ENGINE.remove("x")
