"""`container-runner completion`: scripts that are valid, and complete."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.small_engine import call


@functools.cache
def script_of(shell: str) -> str:
    """What the command prints for a shell. It takes two seconds, because all commands are imported for it."""
    command = [sys.executable, "-m", "container_runner", "completion", shell]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_script_that_it_can_read(shell: str, tmp_path: Path) -> None:
    text = script_of(shell)

    assert {"run", "doctor", "cpu-shares"} <= {*re.findall(r"[a-z-]*[a-z]", text.replace("--", " "))}
    script = tmp_path / "script"
    script.write_text(text)
    if found := shutil.which(shell):
        subprocess.run([found, "-n", str(script)], check=True)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["doc"], {"doctor"}),
        (["image", ""], {"build", "containerfile"}),
        (["run", "--cpu-"], {"--cpu-shares", "--cpu-period", "--cpu-quota"}),
        (["completion", "z"], {"zsh"}),
    ],
)
def test_bash_completes(typed: list[str], expected: set[str], tmp_path: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash")
    (tmp_path / "script").write_text(script_of("bash"))
    ask = f"""
        source {tmp_path}/script
        COMP_WORDS=(container-runner "$@") COMP_CWORD=$#
        function=$(complete -p container-runner | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        $function
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """

    done = subprocess.run([bash, "-c", ask, "bash", *typed], capture_output=True, text=True, check=True)

    assert expected <= set(done.stdout.split())


def test_another_shell_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    assert call(capfd, "completion", "tcsh").code == 2
