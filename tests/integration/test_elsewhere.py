"""Runs on an engine that does not see this machine's files."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from container_runner import (
    Agent,
    ClaudeRuntime,
    ConfigError,
    ContainerConfig,
    ContainerRunner,
    Engine,
    ExecuteOptions,
    Message,
    ResultMessage,
    RunResult,
    TotalTimeoutError,
)
from container_runner.engine.tunnel import Tunnel
from tests.integration.engines import wait_until
from tests.integration.fixtures import new_folder, on, skipped_if_unavailable
from tests.integration.remote import Elsewhere, at_work, be_impatient, come_home, cut_off

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module", params=on("docker"))
def there() -> Iterator[Elsewhere]:
    """Another machine with a Docker Engine."""
    folder = new_folder()
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        with skipped_if_unavailable():
            machine = stack.enter_context(Elsewhere.started(folder))
        yield machine


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder with a workspace, which is not over there."""
    folder = Path(tempfile.mkdtemp(prefix="cr-workspace-", dir="/tmp"))
    folder.chmod(0o755)
    workspace = folder / "project"
    workspace.mkdir()
    (workspace / "file.txt").write_text("mine\n")
    for path in (workspace, workspace / "file.txt"):
        os.chown(path, 1000, 1000)
    yield folder
    shutil.rmtree(folder)


def config(there: Elsewhere, **fields: Any) -> dict[str, Any]:
    ours = {"engine": there.client(), "image": there.images.tiny, "network": "none", "credentials": "none"}
    return {**ours, **fields}


def runner_of(there: Elsewhere, place: Path, **fields: Any) -> ContainerRunner:
    return ContainerRunner(ClaudeRuntime(), ContainerConfig(**config(there, **fields)), place / "state")


def options(place: Path, prompt: str, **fields: Any) -> ExecuteOptions:
    return ExecuteOptions(prompt=prompt, agent=Agent(name="tester", workspace=place / "project"), **fields)


def run(there: Elsewhere, place: Path, prompt: str, **fields: Any) -> RunResult:
    return anyio.run(runner_of(there, place).run, options(place, prompt, **fields))


def test_the_work_of_another_machine_comes_back_whole(there: Elsewhere, place: Path) -> None:
    result = run(there, place, "sh cat file.txt; echo new > new.txt; rm file.txt")

    assert "mine" in (result.text or "")
    assert result.changes is not None
    assert {(file.path, file.status) for file in result.changes.files} == {
        (b"new.txt", "added"),
        (b"file.txt", "deleted"),
    }
    anyio.run(result.changes.apply)
    assert [path.name for path in (place / "project").iterdir()] == ["new.txt"]
    assert there.containers() == []


def test_no_run_works_in_a_folder_of_that_name_over_there(there: Elsewhere, place: Path) -> None:
    run(there, place, "hello")  # so that all folders are here
    names = [f"{path}" for path in (place, *place.rglob("*")) if path.is_dir()]
    there.sh(f"mkdir -p {' '.join(names)}; echo theirs > {place}/project/file.txt; chmod -R a+rwX {place}")

    result = run(there, place, "sh cat file.txt; echo changed > file.txt")

    assert "mine" in (result.text or "")
    assert there.sh(f"cat {place}/project/file.txt; find {place}/state -type f") == "theirs\n"


def test_a_session_goes_there_and_back(there: Elsewhere, place: Path) -> None:
    folder = "/container-runner/sessions/projects/-workspace"
    run(there, place, f"sh mkdir -p {folder}; echo first > {folder}/s.jsonl; echo x > /container-runner/sessions/else")
    (file,) = (path for path in (place / "state/sessions").rglob("*") if path.is_file())
    assert file.name == "s.jsonl"

    result = run(there, place, f"sh cat {folder}/s.jsonl; echo second >> {folder}/s.jsonl", resume="s")

    assert "first" in (result.text or "")
    assert file.read_text() == "first\nsecond\n"
    assert file.stat().st_uid == 1000


def test_a_session_comes_back_of_an_agent_whose_time_was_up(there: Elsewhere, place: Path) -> None:
    folder = "/container-runner/sessions/projects/-workspace"
    with pytest.raises(TotalTimeoutError):
        run(there, place, f"sh mkdir -p {folder}; echo first > {folder}/s.jsonl; sleep 100", timeout=8)

    (file,) = (path for path in (place / "state/sessions").rglob("*") if path.is_file())
    assert file.read_text() == "first\n"


def test_what_can_not_be_had_there_is_refused_by_name(there: Elsewhere, place: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        anyio.run(runner_of(there, place, volumes=["/srv:/data"]).run, options(place, "hello"))

    assert caught.value.field.startswith("volumes")
    assert "does not see this machine's files" in str(caught.value)
    assert there.containers() == []


def test_a_cancelled_run_leaves_nothing_there(there: Elsewhere, place: Path) -> None:
    async def main() -> None:
        async with contextlib.aclosing(runner_of(there, place).execute(options(place, "sleep 60"))) as messages:
            await anext(messages)
            assert len(there.containers()) == 1

    anyio.run(main)

    assert there.containers() == []
    assert there.sh(f"ls {there.daemon.folder}/data/containers") == ""


def test_a_killed_run_leaves_nothing_there(there: Elsewhere, place: Path) -> None:
    with at_work(config(there), place) as victim:
        victim.kill()
        victim.wait()
        wait_until(lambda: there.containers() == [], seconds=30)

    assert there.containers() == []


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> float:
    """After so many seconds both sides of a lease lose patience."""
    return be_impatient(monkeypatch)


@pytest.mark.parametrize("way", ["tcp", "ssh"])
def test_a_line_that_is_cut_ends_both_sides(
    there: Elsewhere, place: Path, soon: float, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.ExitStack() as stack:
        program, line = there.client(), there.line
        if way == "ssh":
            with skipped_if_unavailable():
                variables = stack.enter_context(there.by_ssh())
            for name, value in variables.items():
                monkeypatch.setenv(name, value)
            assert there.ssh_line is not None
            program, line = "docker", there.ssh_line
        try:
            work = options(place, "sh echo done > work.txt; sleep 300")
            error = anyio.run(cut_off, runner_of(there, place, engine=program), work, line)
            wait_until(lambda: there.containers() == [], seconds=60)
        finally:
            line.mend()

        assert error.kind == "engine_unreachable"
        assert there.containers() == []
        # When the line is there again, what the agent had done comes home.
        engine = anyio.run(Engine.probe, program, os.environ)
        assert anyio.run(come_home, engine, place / "state") == [b"work.txt"]


def test_an_agent_of_a_reader_that_takes_its_time_lives_on(there: Elsewhere, place: Path, soon: float) -> None:
    async def main() -> Message:
        async with contextlib.aclosing(runner_of(there, place).execute(options(place, "sh sleep 2"))) as messages:
            await anext(messages)
            time.sleep(soon + 4)  # noqa: ASYNC251  nothing of ours moves
            return [message async for message in messages][-1]

    assert isinstance(anyio.run(main), ResultMessage)


def test_all_of_a_runner_goes_by_one_connection_of_ssh(
    there: Elsewhere, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run, one that goes on with its session, and one that is cancelled."""
    sessions = "/container-runner/sessions/projects/-workspace"
    first = f"sh cat file.txt; echo new > new.txt; rm file.txt; mkdir -p {sessions}; echo first > {sessions}/s.jsonl"

    async def cancel(runner: ContainerRunner) -> None:
        async with contextlib.aclosing(runner.execute(options(place, "sleep 60"))) as messages:
            await anext(messages)
            assert len(there.containers()) == 1

    with skipped_if_unavailable(), there.by_ssh() as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        runner = runner_of(there, place, engine="docker")
        result = anyio.run(runner.run, options(place, first))
        resumed = anyio.run(runner.run, options(place, f"sh cat {sessions}/s.jsonl", resume="s"))
        anyio.run(cancel, runner)
        assert there.containers() == []
        assert there.ssh_line is not None
        connections = there.ssh_line.connections
        engine = runner._known.engine
        assert engine is not None
        assert isinstance(engine.tunnel, Tunnel)
        folder = Path(engine.tunnel.host.removeprefix("unix://")).parent
        del engine, runner
        gc.collect()
        wait_until(lambda: not folder.exists(), seconds=10)

    assert connections == 1
    assert not folder.exists()
    assert "mine" in (result.text or "")
    assert (resumed.text or "").split()[-1:] == ["first"]
    assert result.record is not None
    assert result.record.summary.endpoint == variables["DOCKER_HOST"]
    assert result.changes is not None
    anyio.run(result.changes.apply)
    assert {path.name: path.read_text() for path in (place / "project").iterdir()} == {"new.txt": "new\n"}


def test_a_killed_run_leaves_no_tunnel(there: Elsewhere, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with skipped_if_unavailable(), there.by_ssh() as variables:
        for name, value in {**variables, "TMPDIR": str(place)}.items():
            monkeypatch.setenv(name, value)
        with at_work(config(there, engine="docker"), place) as victim:
            assert [*place.glob("container-runner-*/s")]
            victim.kill()
            victim.wait()
            wait_until(lambda: there.containers() == [] and not [*place.glob("container-runner-*")], seconds=30)

        assert there.containers() == []
        assert not [*place.glob("container-runner-*")]
