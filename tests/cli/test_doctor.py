"""`container-runner doctor`: what it prints, and its exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from container_runner.doctor.checks import NAMES
from tests.small_engine import SmallEngine, call

INFO = '{"ServerVersion": "28.2.2", "CgroupVersion": "2", "MemoryLimit": true, "PidsLimit": true, "CPUShares": true}'


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallEngine:
    """An engine that answers, and has no image."""
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "s3cret")
    (tmp_path / "work").mkdir()
    (tmp_path / "work").chmod(0o777)
    engine = SmallEngine.make(tmp_path)
    script = Path(engine.binary)
    answers = f"""\
  info) echo '{INFO}' ;;
  version) echo '{{}}' ;;
  image) echo "Error response from daemon: No such image: $5" >&2; exit 1 ;;
"""
    script.write_text(script.read_text().replace("  ps)", f"{answers}  ps)"))
    return engine


def test_text_is_for_people(engine: SmallEngine, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    done = call(capfd, "doctor", "--image=mine", f"--workspace={tmp_path}/work", *engine.flags)

    assert done.code == 1
    assert "\033" not in done.out
    assert done.lines[0].startswith("✓ configuration")
    assert "✗ image         The image is not on this machine." in done.lines
    assert any(line.strip().startswith("→ container-runner image build --tag=mine") for line in done.lines)
    assert done.lines[-1] == "A run would fail: image."
    assert "s3cret" not in done.out


def test_json_is_for_programs(engine: SmallEngine, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    done = call(capfd, "doctor", "--image=mine", "--json", f"--workspace={tmp_path}/work", *engine.flags)

    answer = json.loads(done.out)
    assert (done.code, answer["ok"]) == (1, False)
    assert {check["name"] for check in answer["checks"]} == {*NAMES}
    assert {*answer["checks"][0]} == {"name", "status", "found", "fix"}


def test_without_an_image_it_says_how_to_get_one_and_looks_at_the_engine(
    engine: SmallEngine, capfd: pytest.CaptureFixture[str]
) -> None:
    done = call(capfd, "doctor", *engine.flags)

    assert done.code == 1
    assert "container-runner image build" in done.out
    assert "✓ daemon" in done.out


@pytest.mark.parametrize("flag", ["--memory=1", "--grace=-1", "--max-turns=0"])
def test_a_flag_of_run_that_is_refused_fails_here_too(
    flag: str, engine: SmallEngine, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    done = call(capfd, "doctor", "--image=mine", flag, f"--workspace={tmp_path}/work", *engine.flags)

    assert done.code == 1
    assert "✗ configuration" in done.out
    assert "✓ engine        docker 28.2.2" in done.out


def test_what_an_engine_says_can_not_control_the_terminal(
    engine: SmallEngine, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    script = Path(engine.binary)
    script.write_text(script.read_text().replace("No such image: $5", "No such image: \033]0;title\007"))

    done = call(capfd, "doctor", "--image=mine", f"--workspace={tmp_path}/work", *engine.flags)

    assert "No such image" in done.out
    assert not set("\033\007") & set(done.out)
