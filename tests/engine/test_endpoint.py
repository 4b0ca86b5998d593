"""Where an engine's client looks for its engine."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from container_runner.engine.endpoint import docker_endpoint, podman_endpoint
from container_runner.engine.engine import Engine


def context(folder: Path, name: str, host: str) -> None:
    meta = folder / "contexts/meta" / hashlib.sha256(name.encode()).hexdigest()
    meta.mkdir(parents=True)
    (meta / "meta.json").write_text(json.dumps({"Name": name, "Endpoints": {"docker": {"Host": host}}}))


def test_docker_is_found_as_its_client_finds_it(tmp_path: Path) -> None:
    environ = {"DOCKER_CONFIG": str(tmp_path)}
    assert docker_endpoint(environ) == ""
    context(tmp_path, "far", "ssh://me@far")
    context(tmp_path, "near", "unix:///near.sock")
    (tmp_path / "config.json").write_text('{"currentContext": "far"}')

    assert docker_endpoint(environ) == "ssh://me@far"
    assert docker_endpoint({**environ, "DOCKER_CONTEXT": "near"}) == "unix:///near.sock"
    assert docker_endpoint({**environ, "DOCKER_CONTEXT": "default"}) == ""
    assert docker_endpoint({**environ, "DOCKER_CONTEXT": "lost"}) == "docker context lost"
    assert docker_endpoint({**environ, "DOCKER_CONTEXT": "near", "DOCKER_HOST": "tcp://x:1"}) == "tcp://x:1"


@pytest.mark.parametrize("text", ["", "[]", '{"currentContext": 3}', "\0"])
def test_a_configuration_that_is_none_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)

    assert docker_endpoint({"DOCKER_CONFIG": str(tmp_path)}) == ""


def test_podman_is_told_by_variables() -> None:
    assert podman_endpoint({}) == ""
    assert podman_endpoint({"CONTAINER_CONNECTION": "far"}) == "podman connection far"
    assert podman_endpoint({"CONTAINER_CONNECTION": "far", "CONTAINER_HOST": "tcp://x:1"}) == "tcp://x:1"


def test_no_password_is_told() -> None:
    environ = {"DOCKER_HOST": "ssh://me:word@far/x", "CONTAINER_HOST": "tcp://:word@x:1"}

    assert docker_endpoint(environ) == "ssh://me@far/x"
    assert podman_endpoint(environ) == "tcp://@x:1"
    assert docker_endpoint({"DOCKER_HOST": "tcp://me:p@ss:w@rd@far:1/@x"}) == "tcp://me@far:1/@x"


def test_a_guess_knows_the_address() -> None:
    engine = Engine.guess("docker", {"DOCKER_HOST": "tcp://x:1"})

    assert engine.endpoint == "tcp://x:1"
    assert engine.sees_files
