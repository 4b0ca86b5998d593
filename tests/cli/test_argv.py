"""`container-runner argv`: the commands, to be read, kept and compared."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from tests.small_engine import call


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
