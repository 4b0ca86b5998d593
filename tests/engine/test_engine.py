"""What engines say, what it means, and which engine it is that says it."""

from __future__ import annotations

import datetime as dt
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest_subprocess import FakeProcess

from container_runner.box.argv import DOCKER, PODMAN, PODMAN_ROOTLESS
from container_runner.engine import engine as engine_module
from container_runner.engine.engine import ContainerInfo, Engine, classify, spawn_error
from container_runner.errors import (
    ConfigError,
    ContainerGoneError,
    EngineArgumentError,
    EngineBusyError,
    EngineError,
    EngineNotFoundError,
    EnginePermissionError,
    EngineUnreachableError,
    ImageNotFoundError,
    ImageUnsuitableError,
    MountError,
    NameTakenError,
    NetworkNotFoundError,
    PortError,
    PullFailedError,
)
from container_runner.stream.process import Completed
from container_runner.testing import FakeEngine

# Failures. Most texts were captured from docker 28.2 with engine 20.10 and from podman 4.3.

DAEMON = "Error response from daemon: "
ID = "c0ffee" * 10 + "cafe"

SAID: list[tuple[type[EngineError], int, str]] = [
    (ContainerGoneError, 255, "cannot exec in a stopped state: unknown"),
    (ContainerGoneError, 1, f"{DAEMON}error writing config to pipe: write init-p: broken pipe: unknown"),
    (EngineUnreachableError, 1,
     "Cannot connect to the Docker daemon at unix:///nope.sock. Is the docker daemon running?"),
    (EngineUnreachableError, 125,
     "docker: Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?"),
    (EngineUnreachableError, 1, "failed to connect to the docker API at unix:///x; check if the path is correct"),
    (EngineUnreachableError, 125,
     "Error: unable to connect to Podman socket: Get http://d/v4: dial unix /x: connection refused"),
    (EngineUnreachableError, 125, "Cannot connect to Podman. Please verify your connection to the Linux system"),
    (EnginePermissionError, 1,
     "permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock"),
    (EnginePermissionError, 125, "Get http://x/_ping: dial unix /run/podman/podman.sock: connect: permission denied"),
    (NameTakenError, 125,
     f'docker: {DAEMON}Conflict. The container name "/n" is already in use by container "{ID}". You have '
     'to remove it.'),
    (NameTakenError, 125,
     f'Error: creating container storage: the container name "n" is already in use by {ID}. You have to '
     'remove it'),
    (ImageNotFoundError, 125, f"docker: {DAEMON}No such image: nosuchimg:1"),
    (ImageNotFoundError, 125, "Error: nosuchimg:1: image not known"),
    (PullFailedError, 125,
     "Unable to find image 'x:1' locally\ndocker: Error response from daemon: Get https://r/v2/: dial tcp "
     "127.0.0.1:5000: connect: connection refused"),
    (PullFailedError, 125,
     "Error: initializing source docker://localhost:5000/x: pinging container registry localhost:5000: "
     "Get: dial tcp: connection refused"),
    (PullFailedError, 125,
     "docker: Error response from daemon: pull access denied for nosuch, repository does not exist"),
    (PullFailedError, 125, "Error: toomanyrequests: You have reached your pull rate limit."),
    (EngineArgumentError, 125, "docker: invalid reference format"),
    (EngineArgumentError, 125, "Error: repository name must be lowercase"),
    (EngineArgumentError, 125, "unknown flag: --nosuch\nSee 'docker exec --help'."),
    (EngineArgumentError, 125, "Error: unknown flag: --nosuch\nSee 'podman run --help'"),
    (EngineArgumentError, 125, f"docker: {DAEMON}Unknown runtime specified runsc."),
    (EngineArgumentError, 125, f"docker: {DAEMON}unknown or invalid runtime name: runsc."),
    (EngineArgumentError, 125, 'Error: default OCI runtime "runsc" not found: invalid argument'),
    (EngineArgumentError, 125,
     f"docker: {DAEMON}Range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available."),
    (MountError, 125, f"docker: {DAEMON}invalid mount config for type \"bind\": bind source path does not exist: /x."),
    (MountError, 125, "Error: statfs /x: no such file or directory"),
    (NetworkNotFoundError, 125, f"docker: {DAEMON}network nosuchnet not found."),
    (NetworkNotFoundError, 125, "Error: unable to find network with name or ID nosuchnet: network not found"),
    (PortError, 125,
     f"docker: {DAEMON}driver failed programming external connectivity on endpoint n ({ID}): Bind for "
     "127.0.0.1:18099 failed: port is already allocated"),
    (PortError, 126, "Error: cannot listen on the TCP port: listen tcp4 127.0.0.1:18099: bind: address already in use"),
    (PortError, 126, "Error: rootlessport listen tcp 127.0.0.1:18099: bind: address already in use"),
    (PortError, 126,
     "Error: rootlessport cannot expose privileged port 80, you can add 'net.ipv4.ip_unprivileged_port_start=80' to "
     "/etc/sysctl.conf (currently 1024), or choose a larger port number (>= 1024): listen tcp 127.0.0.1:80: bind: "
     "permission denied"),
    (PortError, 125,
     f"docker: {DAEMON}driver failed programming external connectivity on endpoint n ({ID}): Error starting "
     "userland proxy: listen tcp4 192.0.2.7:18098: bind: cannot assign requested address"),
    (ContainerGoneError, 1, f"{DAEMON}No such container: X"),
    (ContainerGoneError, 125, 'Error: no container with name or ID "X" found: no such container'),
    (ContainerGoneError, 255, "Error: container has already been removed"),
    (ContainerGoneError, 1, f"{DAEMON}Container {ID} is not running"),
    (ContainerGoneError, 255, "Error: can only create exec sessions on running containers: container state improper"),
    (ContainerGoneError, 1, f"{DAEMON}Container X is paused, unpause the container before exec"),
    (ImageUnsuitableError, 127,
     f'docker: {DAEMON}failed to create task: exec: "sh": executable file not found in $PATH: unknown.'),
    (ImageUnsuitableError, 127,
     "Error: crun: executable file `sh` not found in $PATH: No such file or directory: OCI runtime "
     "attempted to invoke a command that was not found"),
    (EngineBusyError, 255,
     "Error: runc: exec failed: unable to start container process: read init-p: connection reset by peer: "
     "OCI runtime error"),
    (EngineBusyError, 125, "docker: Error response from daemon: context deadline exceeded"),
    (EngineBusyError, 125, "Error: database is locked"),
    (EngineError, 125, f"docker: {DAEMON}Minimum memory limit allowed is 6MB."),
    (EngineError, 126,
     "OCI runtime exec failed: exec failed: unable to start container process: chdir to cwd (\"/nope\") "
     "failed"),
    (EngineError, 137, ""),
    (EngineError, 255, ""),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "code", "text"), SAID, ids=[f"{kind.kind}-{text[:40]}" for kind, _, text in SAID])
def test_what_engines_say_is_told_apart(kind: type[EngineError], code: int, text: str) -> None:
    error = classify(Completed(returncode=code, stdout=b"", stderr=f"{text}\n"), "run")

    assert type(error) is kind
    assert error.exit_code == code


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (f"docker: {DAEMON}network my.net_1 not found.", "The network my.net_1 does not exist."),
        (f"docker: {DAEMON}failed to set up container networking: network lan not found",
         "The network lan does not exist."),
        ("Error: unable to find network with name or ID lan: network not found", "The network lan does not exist."),
        ("Error: network a b not found", "The network does not exist."),
        ("Error: cannot expose privileged port 80, you can add", "The port 80 may only be opened by root."),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(said: str, message: str) -> None:
    assert classify(Completed(returncode=125, stdout=b"", stderr=said), "run").message == message


def test_the_id_of_a_container_that_never_ran_says_nothing() -> None:
    error = classify(Completed(returncode=125, stdout=f"{ID}\n".encode(), stderr=f"{DAEMON}network n not found"), "run")

    assert error.stderr == f"{DAEMON}network n not found"
    assert ID in classify(Completed(returncode=1, stdout=b"", stderr=f"{DAEMON}Container {ID} is off"), "run").stderr


def test_docker_says_on_stdout_what_keeps_an_exec_from_starting() -> None:
    text = 'OCI runtime exec failed: exec failed: exec: "sh": executable file not found in $PATH: unknown\r\n'

    error = classify(Completed(returncode=126, stdout=text.encode(), stderr=""), "exec")

    assert type(error) is ImageUnsuitableError
    assert error.stderr == text.strip()


@pytest.mark.parametrize(
    "text",
    [
        "Error: my image is known",
        "network a\nnot found",
        "Error: statfs: something else entirely",
        "The container name is taken",
        "I could not connect to Podman",
        "an unknown flower",
        "manifesto unknown",
    ],
)
def test_what_only_looks_like_it_is_an_engine_error_of_no_special_kind(text: str) -> None:
    assert type(classify(Completed(returncode=125, stdout=b"", stderr=text), "run")) is EngineError


def test_a_flood_on_stdout_is_not_searched() -> None:
    flood = b"No such container" * 10_000

    assert type(classify(Completed(returncode=1, stdout=flood, stderr=""), "exec")) is EngineError


def test_an_error_shows_what_was_said_without_the_noise_and_not_all_of_it() -> None:
    noise = "Emulate Docker CLI using podman. Create /etc/containers/nodocker to quiet msg.\n"
    error = classify(Completed(returncode=125, stdout=b"", stderr=f"{noise}{'x' * 10_000}\nthe end\n"), "run")

    assert error.stderr.endswith("the end")
    assert "Emulate" not in error.stderr
    assert len(error.stderr) <= 4096


@given(st.integers(-64, 255), st.text(), st.binary())
def test_whatever_is_said_becomes_an_engine_error(code: int, stderr: str, stdout: bytes) -> None:
    assert isinstance(classify(Completed(returncode=code, stdout=stdout, stderr=stderr), "run"), EngineError)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOENT, EngineNotFoundError),
        (errno.EACCES, EngineNotFoundError),
        (errno.E2BIG, ConfigError),
        (errno.ENOMEM, EngineError),
        (errno.EAGAIN, EngineError),
        (errno.EMFILE, EngineError),
    ],
)
def test_a_client_that_can_not_be_started(number: int, kind: type[Exception]) -> None:
    error = spawn_error(["docker", "run", "--label=s3cr3t"], OSError(number, os.strerror(number)))

    assert isinstance(error, kind)
    assert "s3cr3t" not in str(error)


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
