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
from tests.terminal import Terminal


@functools.cache
def script_of(shell: str) -> str:
    """What the command prints for a shell. It takes two seconds, because all commands are imported for it."""
    command = [sys.executable, "-m", "container_runner", "completion", shell]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


AGENTS = {"alice", "bob", "bot.2"}


@pytest.fixture
def agents(tmp_path: Path) -> dict[str, str]:
    """The environment of a user who has some agents."""
    for name in AGENTS:
        (tmp_path / "a home/.local/state/container-runner/sessions" / name).mkdir(parents=True)
    return {"HOME": str(tmp_path / "a home"), "PATH": "/usr/bin:/bin"}


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
        (["run", "--agent", "bo"], {"bob", "bot.2"}),
        (["logs", "--agent", "=", "bob"], {"bob"}),
        (["stop", ""], {"alice", "bob", "bot.2"}),
        (["stop", "--j"], {"--json"}),
    ],
)
def test_bash_completes(typed: list[str], expected: set[str], tmp_path: Path, agents: dict[str, str]) -> None:
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

    done = subprocess.run([bash, "-c", ask, "bash", *typed], capture_output=True, text=True, check=True, env=agents)

    offered = set(done.stdout.split())
    assert expected <= offered
    assert offered == expected or not offered & AGENTS


@pytest.mark.parametrize("how", ["sourced", "in $fpath"])
def test_zsh_completes(how: str, tmp_path: Path) -> None:
    zsh = shutil.which("zsh")
    if zsh is None:
        pytest.skip("there is no zsh")
    (tmp_path / "_container-runner").write_text(script_of("zsh"))
    load = f"fpath=({tmp_path} $fpath)" if how == "in $fpath" else f"LATER='source {tmp_path}/_container-runner'"
    ask = f"{load}; autoload -Uz compinit; compinit -u -D; eval $LATER; print -r -- $_comps[container-runner]"

    done = subprocess.run([zsh, "-fc", ask], capture_output=True, text=True, check=True)

    assert done.stdout.strip() in ("_container-runner", "_container-runner-agents")


@pytest.mark.parametrize("how", ["sourced", "in $fpath"])
def test_zsh_completes_what_is_typed(how: str, tmp_path: Path, agents: dict[str, str]) -> None:
    zsh = shutil.which("zsh")
    if zsh is None:
        pytest.skip("there is no zsh")
    script = tmp_path / "_container-runner"
    script.write_text(script_of("zsh"))
    (tmp_path / ".zshrc").write_text(
        f"{f'fpath=({tmp_path} $fpath)' if how == 'in $fpath' else ''}\n"
        "autoload -Uz compinit; compinit -u -D\n"
        f"{f'source {script}' if how == 'sourced' else ''}\nPS1='ready> '\n"
    )
    with Terminal(
        [zsh, "-d"], cwd=tmp_path, env={"ZDOTDIR": str(tmp_path), "HOME": agents["HOME"], "XDG_STATE_HOME": ""}
    ) as terminal:
        terminal.wait_for("ready>")
        for typed, expected in (("doc", "doctor"), ("stop ali", "stop alice"), ("run --agent=ali", "--agent=alice")):
            terminal.type(f"container-runner {typed}\t")
            terminal.wait_for(expected)
            terminal.type("\x15")


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("doc", {"doctor"}),
        ("run --cpu-", {"--cpu-shares", "--cpu-quota"}),
        ("run --agent=bo", {"--agent=bob", "--agent=bot.2"}),
        ("logs --agent bo", {"bob", "bot.2"}),
        ("shell a", {"alice"}),
    ],
)
def test_fish_completes(typed: str, expected: set[str], tmp_path: Path, agents: dict[str, str]) -> None:
    fish = shutil.which("fish")
    if fish is None:
        pytest.skip("there is no fish")
    (tmp_path / "script").write_text(script_of("fish"))
    (tmp_path / "a-file").touch()
    ask = f"source {tmp_path}/script; cd {tmp_path}; complete -C 'container-runner {typed}'"

    done = subprocess.run(
        [fish, "--no-config", "-c", ask],
        capture_output=True,
        text=True,
        check=True,
        env=agents,
    )

    offered = {line.partition("\t")[0] for line in done.stdout.splitlines()}
    assert expected <= offered
    assert "a-file" not in offered


def test_another_shell_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    assert call(capfd, "completion", "tcsh").code == 2
