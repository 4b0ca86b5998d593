"""What engines say, and what it means."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container_runner.agents import CommandRuntime
from container_runner.box.guest import Report
from container_runner.config.container import ContainerConfig
from container_runner.engine.failures import STEP_TAIL, classify, sees_other_files, spawn_error, step_failed
from container_runner.errors import (
    CheckFailedError,
    ConfigError,
    ContainerGoneError,
    DiskFullError,
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
    SetupFailedError,
)
from container_runner.options import Agent, ExecuteOptions
from container_runner.runner import ContainerRunner
from container_runner.stream.command import Completed

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
    (EngineUnreachableError, 1, f"{DAEMON}Client sent an HTTP request to an HTTPS server."),
    (EnginePermissionError, 1,
     "the server probably has client authentication (--tlsverify) enabled; check your TLS client certification"
     ' settings: Get "https://127.0.0.1:1/v1.50/info": remote error: tls: bad certificate'),
    (EngineUnreachableError, 125,
     'docker: error during connect: Head "https://127.0.0.1:1/_ping": tls: failed to verify certificate: x509:'
     " certificate signed by unknown authority"),
    (EngineUnreachableError, 1,
     "Failed to initialize: unable to resolve docker endpoint: open /certs/ca.pem: no such file or directory"),
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
    *((DiskFullError, 125, text) for text in (
        f"docker: {DAEMON}mkdir /var/lib/docker/overlay2/x-init: no space left on device.",
        "Error: writing blob: storing blob to file: write /var/tmp/storage1/1: no space left on device",
        "write /var/lib/docker/tmp/GetImageBlob1: disk quota exceeded",
    )),
    (EngineUnreachableError, 1,
     'Failed to initialize: unable to resolve docker endpoint: context "nope": context not found: open /x: no such '
     'file or directory'),
    (EngineUnreachableError, 1, 'unable to resolve docker endpoint: context "nope" does not exist'),
    (EngineUnreachableError, 1,
     f"{DAEMON}client version 1.43 is too old. Minimum supported API version is 1.44, please upgrade your client"),
    (EngineUnreachableError, 1,
     f"{DAEMON}Docker Desktop is manually paused. Unpause it through the Whale menu or Dashboard."),
    (EnginePermissionError, 1, f"{DAEMON}authorization denied by plugin opa: no"),
    (EnginePermissionError, 125,
     'Error: cannot set up namespace using "/usr/bin/newuidmap": exit status 1'),
    (EnginePermissionError, 125,
     "potentially insufficient UIDs or GIDs available in user namespace: there might not be enough IDs available"),
    (MountError, 125,
     f"docker: {DAEMON}Mounts denied: \nThe path /opt/x is not shared from the host and is not known to Docker."),
    (MountError, 125, f"docker: {DAEMON}error while creating mount source path '/host_mnt/x': mkdir /host_mnt/x: "
     "operation not permitted."),
    (MountError, 126,
     'docker: Error response from daemon: failed to create task for container: runc create failed: error mounting '
     '"/home/x/fuse" to rootfs at "/workspace": mount: permission denied: unknown.'),
    (ImageUnsuitableError, 255, "exec /usr/bin/sh: exec format error"),
    (ImageUnsuitableError, 125, "Error: crun: exec container process `/bin/sh`: Exec format error: OCI runtime error"),
    (ImageUnsuitableError, 125, "docker: no matching manifest for linux/arm64/v8 in the manifest list entries."),
    (ImageUnsuitableError, 125,
     "docker: image with reference x was found but does not match the specified platform: wanted linux/arm64"),
    (PullFailedError, 125, 'Error: short-name "no/such" did not resolve to an alias and no unqualified-search '
     'registries are defined in "/etc/containers/registries.conf"'),
    (EngineArgumentError, 125, f'docker: {DAEMON}error gathering device information while adding custom device '
     '"/dev/nope": no such file or directory.'),
    (EngineArgumentError, 125, "Error: stat /dev/nope: no such file or directory"),
    (EngineArgumentError, 125, f'docker: {DAEMON}could not select device driver "" with capabilities: [[gpu]].'),
    (EngineArgumentError, 126, "Error: crun: setrlimit `RLIMIT_NOFILE`: Operation not permitted: OCI error"),
    (EngineArgumentError, 126, "Error: runc: error setting rlimit type 7: operation not permitted: OCI runtime error"),
    (EngineBusyError, 125, f"{DAEMON}all predefined address pools have been fully subnetted"),
    (EngineBusyError, 125,
     f"docker: {DAEMON}no available IPv4 addresses on this network's address pools: bridge (c0ffee)."),
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
        ('context "nope": context not found', "There is no docker context nope."),
        ('adding custom device "/dev/nope": no such file', "The engine's `run` failed with code 125."),
        ('gathering device information while adding custom device "/dev/nope": no such file or directory',
         "There is no device /dev/nope on the engine's machine."),
        ("Error: stat /dev/nope: no such file or directory", "There is no device /dev/nope on the engine's machine."),
        ('error mounting "/a b" to rootfs at "/workspace": denied', "The engine may not mount a folder /a b."),
        ("Error: cannot expose privileged port 80, you can add", "The port 80 may only be opened by root."),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(said: str, message: str) -> None:
    assert classify(Completed(returncode=125, stdout=b"", stderr=said), "run").message == message


def test_no_next_step_asks_for_words_that_are_shown() -> None:
    """The engine's own words stand in `stderr`, and each error says what to type or where to look."""
    for _, code, text in SAID:
        error = classify(Completed(returncode=code, stdout=b"", stderr=f"{text}\n"), "run")
        assert "by hand" not in error.next_step
        assert error.next_step
        assert text.split("\n")[0] in error.stderr


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


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (Report(ended=0, step="check", step_code=0), None),
        (Report(ended=0, step="check", step_code=2), CheckFailedError),
        (Report(ended=2, step="setup", step_code=2), SetupFailedError),
        (Report(ended=0), CheckFailedError),  # it was not run
    ],
)
def test_what_came_before_and_after_an_agent_decides(report: Report, expected: type | None, tmp_path: Path) -> None:
    options = ExecuteOptions(prompt="hi", agent=Agent(name="bot"), check="true")
    plan = ContainerRunner(CommandRuntime("cat"), ContainerConfig(image="an/image"), tmp_path).plan(options)

    error = step_failed(report, plan, "x" * 100_000)

    assert (error and type(error)) == expected
    assert error is None or (len(error.stderr) <= STEP_TAIL and error.exit_code == (report.step_code or 0))


@pytest.mark.parametrize(
    ("said", "is_so"),
    [
        (f'docker: {DAEMON}invalid mount config for type "bind": bind source path does not exist: /usr.', True),
        ("Error: statfs /usr: no such file or directory", True),
        (f'docker: {DAEMON}invalid mount config for type "bind": bind source path does not exist: /nowhere.', False),
        ("Error: statfs /nowhere: no such file or directory", False),
        ("Error: No such image: /usr", False),
    ],
)
def test_an_engine_that_misses_what_is_here_sees_other_files(said: str, is_so: bool) -> None:
    assert sees_other_files(classify(Completed(returncode=125, stdout=b"", stderr=said), "run")) is is_so
