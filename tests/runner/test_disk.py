"""What a run may add to this machine's disk: watched, told, and refused where it can not be."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import attrs
import pytest

from container_runner.agents import ClaudeRuntime
from container_runner.box.argv import DOCKER, PODMAN, Dialect
from container_runner.config.container import ContainerConfig
from container_runner.engine.engine import Engine
from container_runner.errors import ConfigError, DiskLimitError
from container_runner.options import Agent, ExecuteOptions
from container_runner.quantities import GIB, MIB, in_bytes
from container_runner.records.records import Records
from container_runner.runner import ContainerRunner, disk
from container_runner.runner.disk import DiskWatch
from container_runner.stream import stream as stream_module
from container_runner.stream.messages import ErrorMessage
from container_runner.testing import FakeEngine
from container_runner.workspace import usage
from tests.faults.test_checkpoints import at_every_await, stepped

ENGINES = [Engine(binary=dialect.name, dialect=dialect, environ={}) for dialect in (DOCKER, PODMAN)]
BIG = b"x" * 3 * MIB


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    workspace = tmp_path / "work"
    workspace.mkdir(mode=0o777)
    workspace.chmod(0o777)
    (workspace / "before").write_bytes(BIG)
    return workspace


def runner(tmp_path: Path, **config: Any) -> ContainerRunner:
    fields = {"image": "i", "credentials": "none", "disk_limit": "2m", **config}
    return ContainerRunner(ClaudeRuntime(), ContainerConfig(**fields), tmp_path / "state")


def options(workspace: Path | None, **more: Any) -> ExecuteOptions:
    return ExecuteOptions(prompt="Hello", agent=Agent(name="bot", workspace=workspace), **more)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "disk" in thread.name]


async def test_an_agent_that_writes_too_much_is_stopped(
    fake_engine: FakeEngine, tmp_path: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "LEAST", 0.05)
    monkeypatch.setattr(stream_module, "CHECK_INTERVAL", 0.1)
    fake_engine.messages(["I begin."], hang=True)
    subject = runner(tmp_path)

    def write(_: object) -> None:
        (workspace / "big").write_bytes(BIG)

    with pytest.raises(DiskLimitError) as caught:
        await subject.run(options(workspace, grace=0), on_message=write)

    error = caught.value
    assert (error.kind, error.limit, error.folder) == ("disk_limit", 2 * MIB, str(workspace))
    assert 3 * MIB <= error.added < 4 * MIB
    assert f"3 MiB to this machine's disk, most of it in {workspace}, and may add 2 MiB" in error.message
    assert "--disk-limit" in error.next_step
    assert threads() == []
    (record,) = Records(subject.state_dir).runs("bot")
    assert (record.summary.outcome, record.summary.kind) == ("failed", "disk_limit")
    (transcript,) = subject.state_dir.rglob(f"{record.name}.jsonl")
    assert '"kind":"disk_limit"' in transcript.read_text()


async def test_what_was_written_since_the_last_look_is_seen_at_the_end(
    fake_engine: FakeEngine, tmp_path: Path, workspace: Path
) -> None:
    fake_engine.reply(lambda _: str((workspace / "big").write_bytes(BIG)))

    messages = [message async for message in runner(tmp_path).execute(options(workspace))]

    assert isinstance(messages[-1], ErrorMessage)
    assert (messages[-1].kind, messages[-1].stop) == ("disk_limit", None)
    assert type(messages[-1].to_error()) is DiskLimitError


@pytest.mark.parametrize("ephemeral", [True, False])
async def test_what_was_there_does_not_count_and_what_is_removed_makes_room(
    fake_engine: FakeEngine, tmp_path: Path, workspace: Path, ephemeral: bool
) -> None:
    def work(_: str) -> str:
        (workspace / "before").unlink()
        return str((workspace / "big").write_bytes(BIG))

    fake_engine.reply(work)

    assert (await runner(tmp_path, ephemeral=ephemeral).run(options(workspace))).text == str(len(BIG))
    assert threads() == []


async def test_what_goes_into_the_sessions_counts(fake_engine: FakeEngine, tmp_path: Path) -> None:
    sessions = tmp_path / "state/sessions/bot/projects/-workspace"
    fake_engine.reply(lambda _: str((sessions / "big").write_bytes(BIG)))

    with pytest.raises(DiskLimitError) as caught:
        await runner(tmp_path).run(options(None))

    assert caught.value.folder == str(sessions)


async def test_a_workspace_that_can_not_be_measured_gets_no_agent(
    fake_engine: FakeEngine, tmp_path: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_engine.reply("never said")
    monkeypatch.setattr(usage, "MOST_ENTRIES", 0)

    with pytest.raises(DiskLimitError, match="can not be measured: there are more than 0 files"):
        await runner(tmp_path).run(options(workspace))

    assert "run" not in [call.argv[1] for call in fake_engine.calls]


async def test_one_that_becomes_too_large_to_be_measured_ends(
    fake_engine: FakeEngine, tmp_path: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_engine.reply(lambda _: str(monkeypatch.setattr(usage, "MOST_ENTRIES", 0)))

    with pytest.raises(DiskLimitError, match="can not be measured"):
        await runner(tmp_path).run(options(workspace))


async def test_a_look_that_fails_is_not_the_agents_fault(
    fake_engine: FakeEngine, tmp_path: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def refuse(*_: object) -> dict[str, int]:
        raise OSError(24, "Too many open files")

    fake_engine.reply(lambda _: str(monkeypatch.setattr(disk, "used", refuse)))

    await runner(tmp_path).run(options(workspace))

    assert "Too many open files" in caplog.text


@pytest.mark.parametrize("engine", ENGINES, ids=["docker", "podman"])
def test_all_that_the_agent_can_write_is_watched_and_no_flag_says_so(
    tmp_path: Path, workspace: Path, engine: Engine
) -> None:
    for name in ("data", "only-read", "more"):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(0o777)
    more = {"volumes": (f"{tmp_path}/data:/d", f"{tmp_path}/only-read:/r:ro")}
    agent = Agent(name="bot", workspace=workspace, add_dirs=(f"{tmp_path}/more:rw",))
    given = ExecuteOptions(prompt="Hello", agent=agent)

    plan = runner(tmp_path, **more).plan(given, engine=engine)
    unlimited = runner(tmp_path, **more, disk_limit=None).plan(given, engine=engine)

    state = tmp_path / "state/sessions/bot"
    assert {str(workspace), f"{tmp_path}/data", f"{tmp_path}/more", f"{state}/projects/-workspace"} <= {*plan.writable}
    assert f"{tmp_path}/only-read" not in plan.writable
    assert plan.digest == unlimited.digest


@pytest.mark.parametrize("mode", ["ro", "carried"])
def test_a_workspace_that_is_not_written_is_not_watched(
    tmp_path: Path, workspace: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = runner(tmp_path, workspace_mode=mode).plan(options(workspace), engine=ENGINES[1])

    assert str(workspace) not in plan.writable
    uppers = [path for path in plan.writable if path.endswith("/upper")]
    assert len(uppers) == (mode == "carried" and plan.carry is not None and bool(plan.carry.layers))


def test_where_it_can_not_be_seen_it_is_refused_by_name(tmp_path: Path, workspace: Path) -> None:
    def refused(make: Callable[[], object]) -> str:
        with pytest.raises(ConfigError) as caught:
            make()
        assert caught.value.field == "disk_limit"
        return caught.value.message

    def plan(dialect: Dialect = DOCKER, *, sees_files: bool = True, where: Path = workspace, **config: Any) -> object:
        engine = Engine(binary="docker", dialect=dialect, environ={}, sees_files=sees_files)
        return runner(tmp_path, **config).plan(options(where), engine=engine)

    odd = tmp_path / "a:b"
    odd.mkdir(mode=0o777)
    assert "volume of the engine" in refused(lambda: plan(workspace_mode="carried", carry="stream"))
    assert "carried by a stream" in refused(lambda: plan(PODMAN, where=odd, workspace_mode="carried"))
    assert "does not see this machine's files" in refused(lambda: plan(sees_files=False))
    assert "extra_args" in refused(lambda: plan(extra_args=("--volume=/srv/x:/x",)))
    assert "extra_args" in refused(lambda: plan(extra_args=("--mount=type=volume,dst=/x",)))
    plan(extra_args=("--tmpfs=/x",))


@pytest.mark.parametrize("value", [0, -1, 1024, "1k", "much", True, 2.5])
def test_a_limit_is_a_size_of_a_megabyte_at_least(value: Any) -> None:
    with pytest.raises(ConfigError, match="disk_limit must be a size of at least 1m"):
        ContainerConfig(image="i", disk_limit=value)


def test_a_size_in_words() -> None:
    sizes = (0, 1023, 1024, 1536, MIB, int(2.55 * MIB), GIB, 2000 * GIB)

    assert [in_bytes(size) for size in sizes] == [
        *("0 bytes", "1023 bytes", "1 KiB", "1.5 KiB", "1 MiB", "2.5 MiB", "1 GiB", "2000 GiB"),
    ]  # fmt: skip


async def test_the_next_look_is_the_later_the_longer_one_takes(
    tmp_path: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the clock of the watch alone: a walk that took a second is not made again within some fifty."""
    waits: list[float] = []
    plan = runner(tmp_path).plan(options(workspace), engine=ENGINES[0])
    watch = await DiskWatch.begin(plan)
    assert watch is not None

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        watch._took = 1.0
        return len(waits) > 1

    monkeypatch.setattr(watch._stop, "wait", wait)
    monkeypatch.setattr(watch, "_look", lambda: None)
    watch._run()

    assert waits == [disk.LEAST, disk.SHARE - 1]
    await watch.close()


async def test_few_walk_at_a_time_and_who_waits_can_be_told_to_go(
    tmp_path: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "_turns", threading.BoundedSemaphore(1))
    plan = runner(tmp_path).plan(options(workspace), engine=ENGINES[0])
    watch = await DiskWatch.begin(plan)
    assert watch is not None
    disk._turns.acquire()

    with anyio.move_on_after(0.3) as scope:
        await watch.last()
    assert scope.cancelled_caught
    await watch.close()
    disk._turns.release()

    monkeypatch.setattr(disk, "TURN_PATIENCE", 0.1)
    disk._turns.acquire()
    hung_by_others = await DiskWatch.begin(plan)
    assert hung_by_others is not None
    disk._turns.release()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_who_is_cancelled_at_any_await_leaves_no_thread(
    tmp_path: Path, workspace: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "LEAST", 0.01)
    plan = runner(tmp_path).plan(options(workspace), engine=ENGINES[0])

    async def cancelled_at(number: int) -> bool:
        async def work() -> None:
            watch = await DiskWatch.begin(plan)
            assert watch is not None
            try:
                watch.go_on()
                await anyio.sleep(0.02)
                assert await watch.last() is None
            finally:
                with anyio.CancelScope(shield=True):
                    await watch.close()

        with anyio.CancelScope() as scope:
            await stepped(work(), lambda step: scope.cancel() if step == number else None)
        with anyio.fail_after(10, shield=True):
            while threads():
                await anyio.sleep(0.01)
        return not scope.cancelled_caught

    awaits, _ = anyio.run(at_every_await, cancelled_at, backend=backend)

    assert awaits >= 3


def test_a_program_hears_of_it_by_json_and_a_code(tmp_path: Path, workspace: Path, capfd: Any) -> None:
    from tests import played_engine
    from tests.small_engine import call

    binary = played_engine.write(tmp_path / "engine")
    done = call(
        capfd, "run", "--json", "sh head -c 3000000 /dev/zero >big", "--image=i", f"--engine={binary}",
        f"--workspace={workspace}", "--rw", f"--state-dir={tmp_path / 'state'}", "--credentials=none",
        "--disk-limit=2m",
    )  # fmt: skip

    assert done.code == 9
    assert json.loads(done.lines[-1])["kind"] == "disk_limit"


def test_a_plan_of_another_limit_is_the_same_container(tmp_path: Path, workspace: Path) -> None:
    plan = runner(tmp_path, ephemeral=False).plan(options(workspace), engine=ENGINES[0])

    assert attrs.evolve(plan, disk_limit=None).reuse_labels == plan.reuse_labels
    assert plan.disk_limit == 2 * MIB
