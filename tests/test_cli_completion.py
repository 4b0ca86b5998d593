"""`container-runner completion`: scripts that are valid, and complete."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.small_engine import call


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_script_that_it_can_read(
    shell: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    done = call(capfd, "completion", shell)

    assert done.code == 0
    assert {"run", "doctor", "cpu-shares"} <= {*re.findall(r"[a-z-]*[a-z]", done.out.replace("--", " "))}
    script = tmp_path / "script"
    script.write_text(done.out)
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
def test_bash_completes(typed: list[str], expected: set[str], capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash")
    (tmp_path / "script").write_text(call(capfd, "completion", "bash").out)
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
