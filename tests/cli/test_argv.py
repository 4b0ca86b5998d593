"""`container-runner argv`: the commands, to be read, kept and compared."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from tests.small_engine import call

pytestmark = pytest.mark.usefixtures("mounted")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "work").mkdir(mode=0o777)
    (tmp_path / "work").chmod(0o777)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "work")
    for name in ("ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


FLAGS = ("argv", "Hello", "--image=some/image", "--engine=docker", "--agent=bot")


@pytest.mark.parametrize("more", [(), ("--no-ephemeral",)])
def test_stable_and_pretty_is_a_golden_file(
    place: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...]
) -> None:
    texts = [call(capsys, *FLAGS, *more, f"--state-dir={place}/{name}", "--stable", "--pretty") for name in "ab"]

    assert texts[0].out == texts[1].out
    text = texts[0].out
    assert str(place) not in text
    assert "docker run \\\n" in text
    assert "\n  --label=container-runner.run=RUN \\\n" in text
    assert "\n# on stdin: a header; 5 bytes of prompt; the lease, which is open until the end\n" in f"\n{text}"
    assert max(map(len, text.splitlines())) < 150


def test_a_command_that_the_header_has_is_told_and_can_be_kept(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "code").mkdir(mode=0o755)
    words = (*FLAGS, "--python=mine.agent:Reviewer", f"--python-path={place}/code", "--network=gateway")

    texts = [call(capsys, *words, f"--state-dir={place}/{name}", "--stable", "--pretty") for name in "ab"]
    whole = call(capsys, *words, f"--state-dir={place}/a").out.splitlines()

    assert texts[0].out == texts[1].out
    assert "\n# the agent, in the header: python3 -c DRIVER mine.agent:Reviewer\n" in texts[0].out
    (line,) = (line for line in whole if line.startswith("# the agent, in the header: "))
    assert re.fullmatch(r'.*: python3 -c ".*\\n.*" mine\.agent:Reviewer', line)


def test_pretty_alone_can_be_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = call(capsys, *FLAGS, "--pretty").out

    words = shlex.split(re.sub(r"\\\n", "", text), comments=True)
    assert words[:3] == ["docker", "run", "--rm"]
    assert any("\n" in word for word in words)


def test_stable_as_json(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ((first, *rest),) = json.loads(call(capsys, *FLAGS, "--stable", "--json").out)

    assert first == "docker"
    assert "GUEST" in rest
    assert not [word for word in rest if "\n" in word]


def test_a_runtime_written_in_python_is_an_argument_and_a_mount(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "code").mkdir(mode=0o755)
    words = (*FLAGS, f"--state-dir={place}/state", "--python=mine.agent:Reviewer", f"--python-path={place}/code")

    (run,) = json.loads(call(capsys, *words, "--stable", "--json").out)

    assert run[-4:] == ["python3", "-c", "DRIVER", "mine.agent:Reviewer"]
    assert f"--mount=type=bind,src={place}/code,dst=/container-runner/python/0,readonly" in run


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--python=mine"], "--python must be"),
        (["--python=mine:x", "--command=mine"], "--python and --command exclude each other"),
        (["--python-path=."], "--python-path must be given with --python=package.module:name"),
        (["--python=mine:x", "--python-path=/no/such/folder"], "--python-path /no/such/folder: no such file or folder"),
        (["--python=mine:x", "--python-path=/usr/lib"], "--python-path must be a path apart from /usr"),
    ],
)
def test_what_is_wrong_with_it_is_told_by_the_flags_name(
    place: Path, capsys: pytest.CaptureFixture[str], flags: list[str], told: str
) -> None:
    done = call(capsys, *FLAGS, f"--state-dir={place}/state", *flags)

    assert done.code == 2
    assert told in done.err
