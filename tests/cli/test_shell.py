"""`container-runner shell`: which container, as whom, with which variables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import attrs
import pytest

from container_runner.engine.locks import LockFile
from tests.small_engine import SmallEngine, call


@attrs.define
class Became:
    """What this process would have become."""

    argv: list[str] = attrs.field(factory=list)
    environ: dict[str, str] = attrs.field(factory=dict)

    @property
    def flags(self) -> list[str]:
        return self.argv[2 : self.argv.index("--")]

    @property
    def command(self) -> list[str]:
        return self.argv[self.argv.index("--") + 1 :]


@pytest.fixture
def engine(tmp_path: Path) -> SmallEngine:
    engine = SmallEngine.make(tmp_path)
    engine.add("old", created="2026-01-01T00:00:00Z")
    engine.add("new", created="2026-01-02T00:00:00Z")
    engine.add("ended", status="exited", created="2026-01-03T00:00:00Z")
    engine.add("once", agent="brief", kind="ephemeral")
    engine.add("elsewhere", state=tmp_path / "other")
    return engine


@pytest.fixture
def became(monkeypatch: pytest.MonkeyPatch) -> Became:
    became = Became()

    def execvpe(file: str, words: list[str], environ: dict[str, str]) -> NoReturn:
        assert file == words[0]
        became.argv, became.environ = list(words), dict(environ)
        sys.exit(0)

    monkeypatch.setattr(os, "execvpe", execvpe)
    for name in ("ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN", "TOKEN"):
        monkeypatch.setenv(name, f"the value of {name}")
    return became


def shell(engine: SmallEngine, capfd: pytest.CaptureFixture[str], *words: str) -> Any:
    done = call(capfd, "shell", *words, *engine.flags)
    assert done.code == 0, done.err
    return done


def test_it_is_the_newest_kept_container_that_runs(
    engine: SmallEngine, became: Became, capfd: pytest.CaptureFixture[str]
) -> None:
    shell(engine, capfd, "bot")

    assert became.argv[:2] == [engine.binary, "exec"]
    assert became.command[:2] == ["new", "sh"]
    assert "exec bash" in became.command[-1]


def test_it_has_the_agents_variables_and_no_secret(
    engine: SmallEngine, became: Became, capfd: pytest.CaptureFixture[str]
) -> None:
    shell(engine, capfd, "bot", "--env", "COLOUR=blue")

    assert "--workdir=/workspace" in became.flags
    assert "--env=HOME=/container-runner/home" in became.flags
    assert "--env=CLAUDE_CONFIG_DIR=/container-runner/sessions" in became.flags
    assert "--env=COLOUR" in became.flags
    assert became.environ["COLOUR"] == "blue"
    assert not {"ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN", "TOKEN"} & became.environ.keys()


def test_secrets_are_passed_on_by_name_when_they_are_asked_for(
    engine: SmallEngine, became: Became, capfd: pytest.CaptureFixture[str]
) -> None:
    shell(engine, capfd, "bot", "--secrets", "--secret=TOKEN")

    assert {"--env=ANTHROPIC_API_KEY", "--env=CLAUDE_CODE_OAUTH_TOKEN", "--env=TOKEN"} <= {*became.flags}
    assert became.environ["TOKEN"] == "the value of TOKEN"
    assert not any("the value of" in word for word in became.argv)


def test_the_configuration_of_the_agent_counts(
    engine: SmallEngine, became: Became, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[agents.bot]\nuser = "1234:5678"\nsecrets = ["TOKEN"]\n[agents.bot.env]\nCOLOUR = "red"\n')

    shell(engine, capfd, "bot", f"--config={file}")
    without = set(became.flags)
    shell(engine, capfd, "bot", "--secrets", f"--config={file}")

    assert {"--user=1234:5678", "--env=COLOUR"} <= without
    assert "--env=TOKEN" not in without
    assert "--env=TOKEN" in became.flags


def test_it_is_the_agents_user_unless_another_is_named(
    engine: SmallEngine, became: Became, capfd: pytest.CaptureFixture[str]
) -> None:
    sessions = engine.state / "sessions" / "bot"
    sessions.mkdir(parents=True)
    if os.getuid() == 0:
        os.chown(sessions, 1234, 1234)

    shell(engine, capfd, "bot")
    owner = sessions.stat()
    assert f"--user={owner.st_uid}:{owner.st_gid}" in became.flags

    shell(engine, capfd, "bot", "--user=root")
    assert "--user=0:0" in became.flags


def test_a_command_of_ones_own(engine: SmallEngine, became: Became, capfd: pytest.CaptureFixture[str]) -> None:
    done = call(capfd, "shell", *engine.flags, "bot", "--", "ls", "-la")

    assert done.code == 0, done.err
    assert became.command == ["new", "ls", "-la"]


def test_the_command_can_be_had_without_being_run(
    engine: SmallEngine, became: Became, capfd: pytest.CaptureFixture[str]
) -> None:
    words = json.loads(call(capfd, "shell", *engine.flags, "bot", "--json").out)

    assert became.argv == []
    assert words[:2] == [engine.binary, "exec"]
    assert "new" in words


def test_without_a_terminal_none_is_asked_for(
    engine: SmallEngine, became: Became, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shell(engine, capfd, "bot")

    assert "--interactive" in became.flags
    assert "--tty" not in became.flags


def test_the_container_is_in_use_while_one_is_in_it(
    engine: SmallEngine, became: Became, capfd: pytest.CaptureFixture[str]
) -> None:
    shell(engine, capfd, "bot")

    lock = engine.state / "locks" / "container.new.lock"
    kept = [int(fd.name) for fd in Path("/proc/self/fd").iterdir() if os.path.realpath(fd) == str(lock)]
    try:
        assert len(kept) == 1
        assert os.get_inheritable(kept[0])
        assert not LockFile(lock).try_acquire()
    finally:
        for fd in kept:
            os.close(fd)


def test_the_exit_code_is_the_shells(engine: SmallEngine) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "container_runner", "shell", "bot", *engine.flags],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 7, done.stderr
    assert done.stdout.splitlines()[:2] == ["exec", "--interactive"]


def test_the_nearest_name_of_an_agent_is_offered(
    engine: SmallEngine, became: Became, capfd: pytest.CaptureFixture[str]
) -> None:
    done = call(capfd, "shell", "bott", *engine.flags)

    assert done.code == 6
    assert "Did you mean bot?" in done.err
    assert became.argv == []


def test_flags_of_the_command_stand_behind_two_dashes(
    engine: SmallEngine, became: Became, capfd: pytest.CaptureFixture[str]
) -> None:
    done = call(capfd, "shell", "bot", "ls", "-l", *engine.flags)

    assert done.code == 2
    assert "stands --" in done.err
    assert became.argv == []


@pytest.mark.parametrize("agent", ["brief", "nobody"])
def test_without_a_kept_container_it_says_how_to_make_one(
    agent: str, engine: SmallEngine, became: Became, capfd: pytest.CaptureFixture[str]
) -> None:
    done = call(capfd, "shell", agent, *engine.flags)

    assert done.code == 6
    assert f"--no-ephemeral --agent={agent}" in done.err
    assert became.argv == []


def test_a_name_that_is_none_is_refused(engine: SmallEngine, capfd: pytest.CaptureFixture[str]) -> None:
    done = call(capfd, "shell", "../../etc", *engine.flags)

    assert done.code == 2
    assert "--agent must be " in done.err
    assert engine.calls == []
