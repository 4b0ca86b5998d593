"""`container-runner demo`: what it shows, and what it leaves alone."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import container_runner
from container_runner.cli import demo as demo_command
from container_runner.errors import ConfigError, ImageUnsuitableError
from container_runner.testing import scripted
from tests import played_engine
from tests.cli.test_run import COMMAND

pytestmark = pytest.mark.usefixtures("mounted")

ENGINE = """\
#!/bin/sh
[ "$1" != import ] || exec cat >'{folder}/image.tar'
exec '{played}' "$@"
"""


def demo(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    played = played_engine.write(folder / "engine")
    program = folder / "docker"
    program.write_text(ENGINE.format(folder=folder, played=played))
    program.chmod(0o755)
    environ = {**os.environ, "XDG_STATE_HOME": str(folder / "state"), "XDG_CONFIG_HOME": str(folder / "config")}
    command = [COMMAND, "demo", f"--engine={program}", *flags]
    return subprocess.run(
        command, cwd=folder, env=environ, input="not a prompt", capture_output=True, text=True, check=False
    )


def test_it_shows_a_run_and_what_to_type_next(tmp_path: Path) -> None:
    done = demo(tmp_path)

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "container-runner-demo" / "greeting.txt").read_text() == "Hello, world!\n"
    assert "greeting.txt says: Helo wrold\n" in done.stdout
    assert "Now it says: Hello, world!\n" in done.stdout
    assert "not a prompt" not in done.stdout + done.stderr
    commands = [line for line in done.stdout.splitlines() if "container-runner " in line and "--engine=" in line]
    assert [command.removeprefix("$ ").split()[1] for command in commands] == ["run", "image", "run"]
    assert "\nsh touch /etc/passwd' --workspace=container-runner-demo --image=" in done.stdout
    with tarfile.open(tmp_path / "image.tar") as image:
        names = image.getnames()
    assert {"usr/local/bin/scripted-agent", "usr/local/bin/claude", "etc/passwd"} <= {*names}
    again = demo(tmp_path)
    assert again.returncode == 0, again.stderr


def test_who_starts_the_module_is_told_to_do_so_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [f"{Path(container_runner.__file__).parent}/__main__.py"])

    assert demo_command._spelled(["run"]) == f"{sys.executable} -m container_runner run"


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (kept := tmp_path / "mine").mkdir()
    (kept / "thesis.txt").write_text("mine")

    done = demo(tmp_path, "--workspace=mine")

    assert done.returncode == 2
    assert "--workspace must be an empty folder, or one that is not there yet" in done.stderr
    assert [path.name for path in kept.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("mode", [0o1777, 0o777])
def test_a_folder_that_is_everybodys_keeps_its_owner(
    tmp_path: Path, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shared := tmp_path / "shared").mkdir()
    shared.chmod(mode)
    before = shared.stat()
    monkeypatch.setattr(f"{demo_command.__name__}.SHARED", (str(shared),) if mode == 0o777 else ())

    with pytest.raises(ConfigError, match=r"--workspace must be a folder of the agent's own"):
        demo_command._greeting_in(shared)
    after = shared.stat()
    assert (after.st_uid, after.st_mode) == (before.st_uid, before.st_mode)
    assert not any(shared.iterdir())


def test_where_programs_are_none_of_linux_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")

    with pytest.raises(ImageUnsuitableError, match="only those of Linux"):
        scripted.import_scripted("docker")
