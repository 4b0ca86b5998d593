"""What a person is told before an agent works on a mounted workspace."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from container_runner.agents import (
    ClaudeRuntime,
    CodexRuntime,
    CommandLineRuntime,
    CopilotRuntime,
    GeminiRuntime,
    OpenCodeRuntime,
    QwenRuntime,
)
from container_runner.agents.acp import AcpRuntime
from container_runner.agents.runtime import Credentials
from container_runner.box.hints import address_hints, box_hints, git_files, gitlinks, hints, login_hints, no_login
from container_runner.config.container import ContainerConfig
from container_runner.options import Agent, ExecuteOptions
from container_runner.workspace import repositories

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def git(folder: Path, *words: str) -> None:
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "protocol.file.allow=always", *words]
    environ = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1"}
    subprocess.run(command, cwd=folder, check=True, capture_output=True, env=environ)


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """A repository with a submodule."""
    for name in ("lib", "top"):
        git(tmp_path, "init", "--quiet", name)
        git(tmp_path / name, "commit", "--quiet", "--allow-empty", "--message=x")
    git(tmp_path / "top", "submodule", "--quiet", "add", "../lib", "vendor/lib")
    return tmp_path / "top"


def test_of_a_repository_where_all_goes_as_on_the_host_nothing_is_told(top: Path) -> None:
    git(top, "worktree", "add", "--quiet", "../linked")

    assert [*hints(top)] == [*hints(top.parent / "linked")] == [*hints(top.parent)] == []


@pytest.mark.parametrize("kind", ["sha1", "sha256"])
@pytest.mark.parametrize("is_worktree", [False, True])
def test_tracked_files_in_protected_places_are_told_with_the_flags(
    tmp_path: Path, is_worktree: bool, kind: str
) -> None:
    git(tmp_path, "init", "--quiet", f"--object-format={kind}", "top")
    top = tmp_path / "top"
    for name in (".vscode/tasks.json", ".hg/hgrc", ".envrc", "deep/.claude/x", ".clauder", "opencode.json", "README"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).touch()
    git(top, "add", "--all")
    git(top, "commit", "--quiet", "--message=x")
    if is_worktree:
        git(top, "worktree", "add", "--quiet", "../linked")
        top = tmp_path / "linked"

    (told,) = hints(top, (".envrc",))

    assert ": .hg/hgrc, .vscode, opencode.json. " in told
    assert "--unprotected=.hg/hgrc --unprotected=.vscode --unprotected=opencode.json lets" in told
    assert [*hints(top, read_only=True)] == []


@pytest.mark.parametrize("place", ["vendor/lib", "vendor"])
@pytest.mark.parametrize("read_only", [False, True])
def test_where_git_finds_no_repository_the_folder_that_has_one_is_told(top: Path, place: str, read_only: bool) -> None:
    (told,) = hints(top / place, read_only=read_only)

    assert told.startswith("Git finds no repository in the container")
    assert told.endswith(f"--workspace={top} gives all of it.")


def test_repositories_beyond_those_that_are_protected_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repositories, "MOST_REPOSITORIES", 2)
    for name in "abc":
        git(tmp_path, "init", "--quiet", name)

    (told,) = hints(tmp_path)

    assert "3 repositories" in told
    assert "from c on" in told


def test_what_git_runs_is_compared_in_each_repository(top: Path) -> None:
    before = git_files(top)

    git(top / "vendor/lib", "config", "core.fsmonitor", "evil")

    assert {path for path, facts in git_files(top).items() if before.get(path) != facts} == {
        ".git/modules/vendor/lib/config",
    }  # fmt: skip
    assert gitlinks(top) == {"vendor/lib"}


def test_what_git_runs_is_compared_in_the_repository_of_a_worktree(top: Path) -> None:
    """An agent that makes a `commondir` there has its own configuration in place of the repository's."""
    git(top, "worktree", "add", "--quiet", "../linked")
    linked, commondir = top.parent / "linked", top / ".git/commondir"
    before = git_files(linked)
    commondir.write_text("./\n")
    assert git_files(linked) == before

    commondir.write_text("planted\n")

    assert git_files(linked).keys() - before.keys() == {str(commondir)}


def test_a_socket_in_the_workspace_is_told(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(top)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("dev.sock")

    (told,) = hints(top, read_only=True)
    assert "dev.sock" in told
    assert "without a network" in told


@pytest.mark.parametrize(
    ("environ", "fields", "is_told"),
    [
        ({}, {}, True),
        ({"KEY": ""}, {}, True),
        ({"KEY": "k"}, {}, False),
        ({"KEY": "k"}, {"credentials": "file"}, True),
        ({}, {"credentials": "none"}, False),
        ({"ANTHROPIC_AUTH_TOKEN": "t"}, {"secrets": ["ANTHROPIC_AUTH_TOKEN"]}, False),
        ({"ANTHROPIC_AUTH_TOKEN": "t"}, {}, True),
        ({}, {"env": {"CLAUDE_CODE_USE_BEDROCK": "1"}}, False),
    ],
)
def test_an_agent_without_a_login_is_told(
    tmp_path: Path, environ: dict[str, str], fields: dict[str, Any], is_told: bool
) -> None:
    login = Credentials(names=("KEY",), file=str(tmp_path / "login.json"), target="/x")
    config = ContainerConfig(image="i", **fields)

    assert [hint.endswith("export KEY=YOUR-KEY") for hint in login_hints(login, config, environ)] == [True] * is_told
    (tmp_path / "login.json").write_text('{"claudeAiOauth": {"accessToken": ""}}')  # as it is beside macOS's Keychain
    assert len([*login_hints(login, config, environ)]) == is_told
    (tmp_path / "login.json").write_text('{"claudeAiOauth": {"accessToken": "t-123456789"}}')
    assert len([*login_hints(login, config, environ)]) == (is_told and config.credentials == "env")
    assert [*login_hints(Credentials(), config, environ)] == []


def test_a_login_that_is_not_there_is_told_as_the_agent_has_it() -> None:
    file = "there is no login in ~/.codex/auth.json"

    assert no_login(QwenRuntime.credentials) == "OPENAI_API_KEY is not set"
    assert no_login(CodexRuntime.credentials) == f"CODEX_API_KEY is not set, and {file}"
    assert no_login(ClaudeRuntime.credentials).startswith(
        "neither ANTHROPIC_API_KEY nor CLAUDE_CODE_OAUTH_TOKEN is set"
    )


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ({"MY_API_KEY": "k-1", "COLOUR": "red"}, "The value of MY_API_KEY is taken for no secret"),
        ({"NPM_TOKEN": "", "SORT_KEY": "name"}, None),
    ],
)
def test_what_may_surprise_of_the_box_itself(env: dict[str, str], told: str | None) -> None:
    found = [*box_hints(ContainerConfig(image="i", env=env))]

    assert len(found) == (told is not None)
    assert all(hint.startswith(told or "") for hint in found)
    assert not any("k-1" in hint for hint in found)


URL = dict.fromkeys(("ANTHROPIC_BASE_URL", "OPENAI_BASE_URL", "GEMINI_BASE_URL"), "https://api.test")


@pytest.mark.parametrize(
    ("agent", "config", "environ", "says"),
    [
        ({}, {}, URL, ['Add --base-url="$ANTHROPIC_BASE_URL"']),
        ({}, {}, {**URL, "ANTHROPIC_BASE_URL": ""}, []),
        ({"base_url": "https://api.test"}, {}, URL, []),
        ({}, {"env": {"ANTHROPIC_BASE_URL": "https://a.test"}}, URL, []),
        ({}, {"credentials": "none"}, URL, []),
    ],
)
def test_an_address_that_stays_behind_is_told(
    agent: dict[str, Any], config: dict[str, Any], environ: dict[str, str], says: list[str]
) -> None:
    options = ExecuteOptions(prompt="Hello", agent=Agent(name="bot", **agent))
    told = [*address_hints(ClaudeRuntime(), options, ContainerConfig(image="i", **config), environ)]

    assert len(told) == len(says)
    assert all(what in line for what, line in zip(says, told, strict=True))
    assert "api.test" not in "".join(told)  # it may hold a login


@pytest.mark.parametrize(
    ("runtime", "name"),
    [
        (CodexRuntime(), None),  # it has its address from its configuration alone
        (GeminiRuntime(), "GOOGLE_GEMINI_BASE_URL"),
        (AcpRuntime("gemini"), "GOOGLE_GEMINI_BASE_URL"),
        (QwenRuntime(), "OPENAI_BASE_URL"),
        (OpenCodeRuntime(), None),
        (CopilotRuntime(), "COPILOT_PROVIDER_BASE_URL"),
        (AcpRuntime("goose", "acp"), None),  # it is not known what it reads
    ],
)
def test_the_address_is_that_of_the_agents_own_variable(runtime: CommandLineRuntime, name: str | None) -> None:
    options = ExecuteOptions(prompt="Hello", agent=Agent(name="bot", model="openai/m"))
    words = ("ANTHROPIC", "CODEX", "COPILOT", "COPILOT_PROVIDER", "GEMINI", "GOOGLE_GEMINI", "OPENAI")
    environ = {f"{word}_BASE_URL": "https://api.test" for word in words}

    told = [*address_hints(runtime, options, ContainerConfig(image="i"), environ)]

    assert [line.partition(" ")[0] for line in told] == ([] if name is None else [name])
