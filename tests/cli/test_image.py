"""`container-runner image`: what it prints, and where to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from container_runner.agents import ClaudeRuntime
from container_runner.cli.image import fetch
from container_runner.config.container import ContainerConfig
from container_runner.engine.image import AGENTS, CONTAINERFILE
from container_runner.runner import ContainerRunner
from tests.small_engine import SmallEngine, call

pytestmark = pytest.mark.usefixtures("mounted")

DIGEST = "0123456789abcdef" * 4


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallEngine:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    engine = SmallEngine.make(tmp_path)
    script = Path(engine.binary)
    answers = f"""\
  build) cat >/dev/null; printf 'STEP 1\\nReading 5%%\\rReading 100%%\\n\\033[31mred\\n' ;;
  run) printf '1.2.3\\033[0m\\n' ;;
  image) echo sha256:{DIGEST} ;;
"""
    script.write_text(script.read_text().replace("  ps)", f"{answers}  ps)"))
    return engine


@pytest.mark.parametrize("agent", AGENTS)
def test_the_progress_goes_to_stderr_and_the_next_line_to_type_to_stdout(
    agent: str, engine: SmallEngine, capfd: pytest.CaptureFixture[str]
) -> None:
    done = call(capfd, "image", "build", agent, f"--engine={engine.binary}")

    assert done.code == 0, done.err
    assert done.err.splitlines()[:2] == ["STEP 1", "Reading 100%"]
    assert done.lines[0].startswith(f"Built container-runner/{agent} with {agent} 1.2.3")
    command = "" if agent == "claude" else f" --agent-kind={agent}"
    assert done.lines[1] == (
        f"  container-runner doctor --image=container-runner/{agent}{command} --engine={engine.binary}"
    )
    assert "\033" not in done.out + done.err
    assert f"--build-arg=AGENT_VERSION={AGENTS[agent].version}" in engine.calls[1]


def test_an_image_with_claude_is_the_default_from_then_on(
    engine: SmallEngine, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "work").mkdir()
    config = ["config", "--json", f"--workspace={tmp_path / 'work'}"]
    call(capfd, "image", "build", "codex", f"--engine={engine.binary}")
    assert json.loads(call(capfd, *config).out)["settings"]["image"]["value"] is None

    done = call(capfd, "image", "build", "--tag=mine:1", f"--engine={engine.binary}")

    assert done.lines[0].endswith("; it is the default image for claude now. Next:")
    found = json.loads(call(capfd, *config).out)["settings"]["image"]
    assert (found["value"], found["source"]) == ("mine:1", str(tmp_path / "config/container-runner/built-image"))


def test_json_is_for_programs(engine: SmallEngine, capfd: pytest.CaptureFixture[str]) -> None:
    done = call(capfd, "image", "build", "--json", "--tag=mine:1", "--agent-version=7", f"--engine={engine.binary}")

    answer = json.loads(done.out)
    assert answer.pop("seconds") >= 0
    assert answer == {"image": "mine:1", "id": DIGEST, "agent": "claude", "version": "1.2.3\033[0m"}
    assert "--build-arg=AGENT_VERSION=7" in engine.calls[1]


def test_arguments_reach_the_build(engine: SmallEngine, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["--base=my/base:1", "--package=vim", "--package=make", "--pull", "--no-cache"]
    call(capfd, "image", "build", *words, f"--engine={engine.binary}")

    building = engine.calls[1]
    assert {"--build-arg=BASE=my/base:1", "--pull", "--no-cache", "--tag=container-runner/claude"} <= {*building}
    assert any(word.endswith(" vim make") for word in building)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["claudia"], 2, "claude"),
        (["--tag=Not An Image"], 2, "tag"),
        (["--agent-version=1;2"], 2, "agent_version"),
        (["--engine=no-such-engine"], 3, "no-such-engine"),
    ],
)
def test_what_is_refused_is_named(
    words: list[str], code: int, said: str, engine: SmallEngine, capfd: pytest.CaptureFixture[str]
) -> None:
    done = call(capfd, "image", "build", *words, *([] if "engine" in words[0] else [f"--engine={engine.binary}"]))

    assert done.code == code
    assert said in done.err
    assert not any(words[0] == "build" for words in engine.calls)


def test_what_was_shown_while_it_went_wrong_is_not_shown_again(
    engine: SmallEngine, capfd: pytest.CaptureFixture[str]
) -> None:
    script = Path(engine.binary)
    script.write_text(script.read_text().replace("  build) ", "  build) echo 'dial tcp: no such host'; exit 1; "))

    done = call(capfd, "image", "build", f"--engine={engine.binary}")

    assert done.code == 4
    assert done.err.count("no such host") == 1
    assert "--from-scratch" in done.err


def test_the_containerfile_can_be_had(capfd: pytest.CaptureFixture[str]) -> None:
    assert call(capfd, "image", "containerfile").out == CONTAINERFILE.read_text()


# Images of a registry


def answer(engine: SmallEngine, verb: str, does: str) -> None:
    """Let the engine do something else for a verb."""
    script = Path(engine.binary)
    script.write_text(script.read_text().replace("  ps)", f"  {verb}) {does} ;;\n  ps)", 1))


def test_a_pull_shows_its_progress(engine: SmallEngine, capfd: pytest.CaptureFixture[str]) -> None:
    answer(engine, "pull", "echo 'a1: Pulling fs layer'; echo 'a1: Pull complete' >&2")

    done = call(capfd, "image", "pull", "some/image", f"--engine={engine.binary}")

    assert (done.code, done.out) == (0, "Pulled some/image.\n")
    assert set(done.err.splitlines()) == {"a1: Pulling fs layer", "a1: Pull complete"}
    assert engine.calls[-1] == ["pull", "--", "some/image"]


def test_a_pull_that_fails_says_so_in_whatever_words_the_engine_has(
    engine: SmallEngine, capfd: pytest.CaptureFixture[str]
) -> None:
    answer(engine, "pull", "echo 'Error: nobody has heard of it' >&2; exit 125")

    done = call(capfd, "image", "pull", "no/such", f"--engine={engine.binary}")

    assert done.code == 4
    assert done.err.count("nobody has heard of it") == 1
    assert "The image no/such could not be pulled." in done.err


@pytest.mark.parametrize(("pull", "is_there", "pulls"), [
    ("missing", True, False), ("missing", False, True), ("always", True, True), ("never", False, False),
])  # fmt: skip
async def test_a_run_pulls_before_it_begins_and_shows_it(
    pull: Any, is_there: bool, pulls: bool, engine: SmallEngine, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    script = Path(engine.binary)
    script.write_text(
        script.read_text().replace(f"  image) echo sha256:{DIGEST} ;;", f"  image) exit {int(not is_there)} ;;")
    )
    answer(engine, "pull", "echo 'a1: Pull complete'")
    config = ContainerConfig(image="some/image", engine=engine.binary, pull=pull)

    await fetch(ContainerRunner(ClaudeRuntime(), config, tmp_path / "state"))

    told = ["· pulling some/image", "a1: Pull complete"] if pulls else []
    assert capfd.readouterr().err.splitlines() == told
    assert (["pull", "--", "some/image"] in engine.calls) is pulls
