"""Containers: found, made, kept, cleaned up, pruned. The engine is fake, the locks are real."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import orjson
import psutil
import pytest
from pytest_subprocess import FakeProcess

from container_runner.agents import CommandRuntime
from container_runner.box.argv import DOCKER, PODMAN
from container_runner.box.plan import Plan
from container_runner.config.container import ContainerConfig
from container_runner.engine.engine import Engine
from container_runner.engine.locks import LockFile
from container_runner.engine.manager import DEADLINE_LABEL, DEADLINE_SLACK, STATE_LABEL, Containers, state_digest
from container_runner.engine.owner import Owner
from container_runner.errors import (
    ContainerGoneError,
    EngineArgumentError,
    EngineError,
    ImageUnsuitableError,
    StateError,
)
from container_runner.options import Agent, ExecuteOptions
from container_runner.runner import ContainerRunner
from container_runner.stream.process import Process
from container_runner.testing import FakeEngine

ENGINE = Engine(binary="docker", dialect=DOCKER, environ={})


class World:
    """The containers that there are, as the fake engine tells of them."""

    def __init__(self, fp: FakeProcess, fake: FakeEngine) -> None:
        self._fp, self._fake = fp, fake

    def holds(self, *containers: dict[str, Any], times: int = 10) -> None:
        ids = [raw["Id"] for raw in containers]
        self._fp.register(["docker", "ps", self._fp.any()], stdout=ids, occurrences=times)
        self._fp.register(["docker", "inspect", self._fp.any()], stdout=orjson.dumps(containers), occurrences=times)
        self._fp.register(["docker", "rm", self._fp.any()], occurrences=20)
        self._fp.register(["docker", "run", self._fp.any()], stdout="f" * 64, occurrences=20)

    def did(self, verb: str) -> list[tuple[str, ...]]:
        return [call.argv for call in self._fake.calls if call.argv[1] == verb]

    @property
    def removed(self) -> list[str]:
        return [argv[-1] for argv in self.did("rm")]


@pytest.fixture
def world(fp: FakeProcess, fake_engine: FakeEngine) -> World:
    return World(fp, fake_engine)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def manager(state: Path) -> Containers:
    return Containers(ENGINE, state)


@pytest.fixture
def plan(state: Path) -> Callable[..., Plan]:
    def make(**config: Any) -> Plan:
        runner = ContainerRunner(
            CommandRuntime("agent"), ContainerConfig(**{"image": "i", "ephemeral": False, **config}), state
        )
        return runner.plan(ExecuteOptions(prompt="x", agent=Agent(name="bot")), engine=ENGINE)

    return make


def container(
    name: str, labels: dict[str, str] | None = None, status: str = "running", created: str = "2026-01-01T00:00:00Z"
) -> dict[str, Any]:
    return {
        "Id": name.ljust(64, "0"),
        "Name": f"/{name}",
        "Created": created,
        "Config": {"Labels": {"container-runner.run": "r", "container-runner.name": name, **(labels or {})}},
        "State": {"Status": status},
    }


# Getting one


async def test_a_kept_container_is_made_if_there_is_none(world: World, manager: Containers, plan: Any) -> None:
    world.holds()
    wanted = plan()

    got = await manager.get_or_create(wanted)
    assert manager.is_in_use(got.name)
    await manager.release(got, wanted)

    assert (got.name, got.created) == (wanted.container, True)
    assert world.did("run") == [wanted.run]
    assert not world.removed
    assert not manager.is_in_use(got.name)


async def test_a_persistent_container_is_found_by_its_labels(world: World, manager: Containers, plan: Any) -> None:
    wanted = plan()
    world.holds(container("kept", wanted.reuse_labels))

    got = await manager.get_or_create(wanted)
    await manager.release(got, wanted)

    assert (got.name, got.created) == ("kept", False)
    assert not world.did("run")
    assert not world.removed


async def test_one_that_has_ended_is_replaced(world: World, manager: Containers, plan: Any) -> None:
    wanted = plan()
    world.holds(container("old", wanted.reuse_labels, status="exited"))

    got = await manager.get_or_create(wanted)
    await manager.release(got, wanted)

    assert got.created
    assert world.removed == ["old"]


@pytest.mark.parametrize(
    ("theirs", "own", "kind"), [("s390x", "amd64", ImageUnsuitableError), ("amd64", "amd64", ContainerGoneError)]
)
async def test_one_that_ends_at_once_may_be_of_an_image_for_another_cpu(
    fp: FakeProcess, fake_engine: FakeEngine, manager: Containers, plan: Any, theirs: str, own: str, kind: type
) -> None:
    fp.register(["docker", "image", "inspect", "--format={{.Architecture}}", "--", "i"], stdout=theirs)
    fp.register(["docker", "version", "--format={{.Server.Arch}}"], stdout=own)

    error = await manager.explained(ContainerGoneError("It does not run."), plan())

    assert type(error) is kind
    assert theirs == own or "another CPU, s390x, and this machine is amd64" in error.message


async def test_why_one_ends_at_once_is_asked_of_no_engine_that_is_away(
    fp: FakeProcess, fake_engine: FakeEngine, manager: Containers, plan: Any
) -> None:
    fp.register(["docker", "image", "inspect", fp.any()], stderr="Cannot connect to the Docker daemon", returncode=1)

    error = await manager.explained(gone := ContainerGoneError("It does not run."), plan())

    assert error is gone
    assert await manager.explained(gone, plan(ephemeral=True)) is gone


async def test_one_that_was_good_a_moment_ago_is_not_looked_for_again(
    world: World, manager: Containers, state: Path, plan: Any
) -> None:
    wanted = plan()
    world.holds(container("kept", wanted.reuse_labels))
    await manager.release(await manager.get_or_create(wanted), wanted)
    assert len(world.did("ps")) == 1

    again = await manager.get_or_create(wanted)
    assert (again.name, again.created, len(world.did("ps"))) == ("kept", False, 1)
    await manager.release(again, wanted)

    other = Containers(ENGINE, state)  # as another process has it
    spoiled, _ = await other.get_or_create(wanted), await other.get_or_create(wanted)
    await other.release(spoiled, wanted, is_spoiled=True)
    assert (await manager.get_or_create(wanted)).created


async def test_the_locks_of_containers_that_somebody_else_removed_go(
    world: World, manager: Containers, state: Path
) -> None:
    world.holds(*kept(state, "there"))
    folder = state / "locks"
    folder.mkdir(parents=True)
    for name in ("there", "gone", "held", "marked"):
        (folder / f"container.{name}.lock").touch()
    held, marked = LockFile(folder / "container.held.lock"), LockFile(folder / "container.marked.lock")
    assert held.try_acquire(shared=True)
    assert marked.try_acquire()
    marked.mark()
    marked.release()

    await manager.prune()

    assert {path.name.split(".")[1] for path in folder.iterdir()} == {"there", "held", "marked"}
    held.release()


async def test_one_whose_time_is_half_over_is_replaced(
    world: World, manager: Containers, plan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run would die of its age."""
    wanted = plan()
    deadline = int(time.time()) + wanted.time_limit // 2 + 60 + DEADLINE_SLACK
    world.holds(container("kept", {**wanted.reuse_labels, DEADLINE_LABEL: str(deadline)}))
    assert (await manager.get_or_create(wanted)).name == "kept"
    found = await manager.get_or_create(wanted)
    await manager.release(found, wanted)

    now = time.time() + 120
    monkeypatch.setattr(time, "time", lambda: now)

    assert (await manager.get_or_create(wanted)).created


async def test_one_that_can_not_be_removed_is_let_go_of_and_replaced_by_the_next_run(
    fp: FakeProcess, world: World, manager: Containers, plan: Any
) -> None:
    """Its lock is let go of too, or every later run of the agent would wait for it."""
    fp.register(["docker", "rm", fp.any()], returncode=1, stderr="device is stuck")
    wanted = plan()
    world.holds(container("kept", wanted.reuse_labels))
    got = await manager.get_or_create(wanted)

    with pytest.raises(EngineError):
        await manager.release(got, wanted, is_spoiled=True)
    assert not manager.is_in_use("kept")

    assert (await manager.get_or_create(wanted)).created
    assert world.removed == ["kept", "kept"]


async def test_a_spoiled_container_goes_when_nobody_uses_it(world: World, manager: Containers, plan: Any) -> None:
    wanted = plan()
    world.holds(container("kept", wanted.reuse_labels))
    first, second = await manager.get_or_create(wanted), await manager.get_or_create(wanted)

    await manager.release(first, wanted, is_spoiled=True)
    assert not world.removed

    await manager.release(second, wanted)
    assert world.removed == ["kept"]
    assert not manager.is_in_use("kept")


async def test_a_spoiled_container_is_not_used_while_another_run_is_in_it(
    world: World, manager: Containers, state: Path, plan: Any
) -> None:
    """Nor by another process, which has not seen what spoiled it."""
    wanted = plan()
    world.holds(container("kept", wanted.reuse_labels))
    first, second = await manager.get_or_create(wanted), await manager.get_or_create(wanted)
    await manager.release(first, wanted, is_spoiled=True)

    got = await Containers(ENGINE, state).get_or_create(wanted)

    assert got.created
    assert not world.removed
    await manager.release(second, wanted)
    assert world.removed == ["kept"]


async def test_a_paused_container_is_left_to_the_run_that_waits_in_it(
    world: World, manager: Containers, plan: Any, state: Path
) -> None:
    wanted = plan()
    world.holds(container("paused", wanted.reuse_labels, status="paused"))
    lock = LockFile(state / "locks/container.paused.lock")
    assert lock.try_acquire(shared=True)

    got = await manager.get_or_create(wanted)
    assert got.created
    assert not world.removed

    lock.release()
    await manager.get_or_create(attrs.evolve(wanted, container="the-next"))
    assert world.removed == ["paused"]


@pytest.mark.parametrize("change", ["label", "not ours", "another's name"])
async def test_one_that_an_engine_shows_by_mistake_is_neither_used_nor_removed(
    world: World, manager: Containers, plan: Any, change: str
) -> None:
    wanted = plan()
    other = container("other", {**wanted.reuse_labels, "container-runner.config": "another"}, status="exited")
    if change == "not ours":
        other = container("other", wanted.reuse_labels, status="exited")
        del other["Config"]["Labels"]["container-runner.run"]
    if change == "another's name":  # made of an image that was made of a container of ours
        other = container("other", {**wanted.reuse_labels, "container-runner.name": "the-first"}, status="exited")
    world.holds(other)

    got = await manager.get_or_create(wanted)
    await manager.release(got, wanted)

    assert got.name == wanted.container
    assert not world.removed


async def test_one_that_can_not_be_made_is_removed_by_its_name(
    fp: FakeProcess, fake_engine: FakeEngine, manager: Containers, plan: Any, state: Path
) -> None:
    fp.register(["docker", "ps", fp.any()])
    fp.register(["docker", "run", fp.any()], returncode=125, stderr="docker: invalid reference format")
    fp.register(["docker", "rm", fp.any()])
    wanted = plan()

    with pytest.raises(EngineArgumentError):
        await manager.get_or_create(wanted)

    assert fake_engine.calls[-1].argv[-1] == wanted.container
    assert not list((state / "locks").glob("container.*"))


# Ending a client

END = """\
#!/bin/sh
cd "${0%/*}"
case $1 in
  rm) echo "$*" >>removed ;;
  *) eval "$2" ;;
esac
"""


class Clients:
    """A real engine's clients, as small scripts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._program = folder / "docker"
        self._program.write_text(END)
        self._program.chmod(0o755)
        self.manager = Containers(Engine(binary=str(self._program), dialect=DOCKER, environ={}), folder / "state")

    async def start(self, script: str) -> Process:
        return await Process.start([str(self._program), "run", script], hold_stdin=True)

    @property
    def removed(self) -> str:
        file = self._folder / "removed"
        return file.read_text() if file.exists() else ""


@pytest.fixture
def clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clients:
    monkeypatch.setattr("container_runner.engine.manager.TERM_GRACE", 2)
    return Clients(tmp_path)


LEASE = "cat >/dev/null"
"""What lives until its stdin ends."""

ENDS = [
    # script, whether it has ended in order: in an ephemeral container and in a kept one
    ("exit 0", True, True),
    ("exit 3", True, False),  # an agent's parent was killed; the container is gone, or not to be used again
    (LEASE, True, True),
    (f"{LEASE}; exit 1", True, False),  # what a run has left in a kept container could not be ended
    (f"{LEASE}; sleep 0.5", True, True),  # in the middle of a start, say
    (f"{LEASE}; exit 137", True, False),
    (f"{LEASE}; exit 125", False, False),  # docker's client, whose daemon has gone
    ("exit 125", False, False),
    ("kill -KILL $$", False, False),
    (f"{LEASE}; kill -KILL $$", False, False),
    ("exec sleep 1000", False, False),  # it does not look at its stdin
]


@pytest.mark.parametrize(("script", "ephemeral", "kept"), ENDS, ids=[case[0] for case in ENDS])
@pytest.mark.parametrize("is_kept", [True, False])
async def test_a_client_is_ended_by_its_stdin_and_only_what_it_leaves_is_removed(
    clients: Clients, script: str, ephemeral: bool, kept: bool, is_kept: bool
) -> None:
    process = await clients.start(script)
    if LEASE not in script and "sleep" not in script:
        await process.wait(30)

    in_order = await clients.manager.end_client(process, "it", kept=is_kept)

    assert process.returncode is not None
    assert in_order is (kept if is_kept else ephemeral)
    assert clients.removed == ("" if ephemeral or is_kept else "rm --force --volumes -- it\n")


async def test_what_it_leaves_and_can_not_be_removed_is_an_error(clients: Clients, tmp_path: Path) -> None:
    (tmp_path / "docker").write_text(END.replace(">>removed", ">&2; exit 1"))

    with pytest.raises(EngineError):
        await clients.manager.end_client(await clients.start("kill -KILL $$"), "it")


async def test_what_a_client_says_while_it_ends_is_taken(clients: Clients) -> None:
    """It would wait for ever for somebody who does."""
    process = await clients.start(f"{LEASE}; head -c 3000000 /dev/zero; head -c 3000000 /dev/zero >&2; exit 3")

    assert await clients.manager.end_client(process, "it")
    assert process.returncode == 3


# Keeping few


def kept(state: Path, *names: str) -> list[dict[str, Any]]:
    labels = {
        "container-runner.agent": "bot",
        "container-runner.state": state_digest(state),
        "container-runner.kind": "persistent",
    }
    return [container(name, labels, created=f"2026-01-0{n}T00:00:00Z") for n, name in enumerate(names, 1)]


@pytest.mark.parametrize(("most", "gone"), [(5, []), (3, []), (2, ["one"]), (1, ["one", "two"])])
async def test_the_oldest_go_first_and_only_as_many_as_must(
    world: World, manager: Containers, state: Path, most: int, gone: list[str]
) -> None:
    world.holds(*reversed(kept(state, "one", "two", "three")))

    assert await manager.clean_up("bot", most) == gone
    assert world.removed == gone


async def test_one_that_is_in_use_is_not_removed_though_it_is_the_oldest(
    world: World, manager: Containers, state: Path
) -> None:
    world.holds(*kept(state, "one", "two", "three"))
    lock = LockFile(manager.state_dir / "locks/container.one.lock")
    assert lock.try_acquire(shared=True)

    assert await manager.clean_up("bot", 1) == ["two", "three"]

    lock.release()
    assert not (state / "locks/container.two.lock").exists()


async def test_clean_up_does_not_wait_for_others_for_long(
    world: World, manager: Containers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("container_runner.engine.manager.LOCK_PATIENCE", 0.1)
    lock = LockFile(manager.state_dir / "locks/agent.bot.lock")
    assert lock.try_acquire()

    with pytest.raises(StateError, match=r"agent\.bot\.lock was held for 0\.1 seconds"):
        await manager.clean_up("bot", 1)
    assert not world.did("ps")


async def test_those_of_another_agent_or_state_folder_are_none_of_ours(
    world: World, manager: Containers, state: Path, tmp_path: Path
) -> None:
    others = kept(tmp_path / "another", "a", "b", "c")
    for raw in kept(state, "d", "e"):
        raw["Config"]["Labels"]["container-runner.agent"] = "another"
        others.append(raw)
    world.holds(*others)

    assert await manager.clean_up("bot", 1) == []
    assert not world.removed


# Stopping one


async def test_stopping_what_is_not_ours_is_refused(world: World, manager: Containers) -> None:
    stranger = container("stranger")
    stranger["Config"]["Labels"] = {"some": "label"}
    world.holds(stranger)

    with pytest.raises(ContainerGoneError):
        await manager.stop("stranger")
    assert not world.removed


async def test_stopping_one_of_another_state_folder_is_refused(world: World, manager: Containers, state: Path) -> None:
    world.holds(container("theirs", {STATE_LABEL: state_digest(state.parent / "other")}))

    with pytest.raises(ContainerGoneError):
        await manager.stop("theirs")
    assert not world.removed


async def test_stopping_one_of_ours(world: World, manager: Containers, state: Path) -> None:
    world.holds(container("mine", {STATE_LABEL: state_digest(state)}))

    await manager.stop("mine")

    assert world.removed == ["mine"]


async def test_stopping_one_that_is_not_there(world: World, manager: Containers) -> None:
    world.holds()

    with pytest.raises(ContainerGoneError):
        await manager.stop("nobody")


# Pruning


def dead() -> Owner:
    return attrs.evolve(Owner.current(), started=Owner.current().started - 3600)


def elsewhere() -> Owner:
    return attrs.evolve(Owner.current(), host="0" * 16)


def of_another_boot() -> Owner:
    return attrs.evolve(Owner.current(), boot="another")


def beside() -> Owner:
    return attrs.evolve(Owner.current(), pid_namespace="1", started=1)


PERSISTENT = {"container-runner.kind": "persistent"}
SOON = {"container-runner.deadline": str(int(time.time()) + 3600)}
PAST = {"container-runner.deadline": str(int(time.time()) - 3600)}

LIVES: list[tuple[str, dict[str, str], str, bool]] = [
    ("ours", Owner.current().to_labels(), "running", True),
    ("a dead one's", dead().to_labels(), "running", False),
    ("a dead one's, ended", dead().to_labels(), "exited", False),
    ("a dead one's, never started", dead().to_labels(), "created", False),
    ("a dead one's, half started", dead().to_labels(), "initialized", False),
    ("ours, being made", Owner.current().to_labels(), "created", True),
    ("another machine's", {**elsewhere().to_labels(), **SOON}, "running", True),
    ("another machine's, too old", {**elsewhere().to_labels(), **PAST}, "running", False),
    ("another machine's, without a deadline", elsewhere().to_labels(), "running", True),
    ("of another boot", {**of_another_boot().to_labels(), **SOON}, "exited", False),
    ("of another boot, never started", {**of_another_boot().to_labels(), **SOON}, "created", False),
    ("of another boot, and still running", {**of_another_boot().to_labels(), **SOON}, "running", True),
    ("of another boot, and running for too long", {**of_another_boot().to_labels(), **PAST}, "running", False),
    ("of another pid namespace", {**beside().to_labels(), **SOON}, "running", True),
    ("of another pid namespace, too old", {**beside().to_labels(), **PAST}, "running", False),
    ("nobody's", SOON, "running", True),
    ("nobody's, too old", PAST, "running", False),
    ("nobody's, with a deadline that is none", {"container-runner.deadline": "x"}, "running", True),
    ("kept, of a dead one", {**PERSISTENT, **dead().to_labels()}, "running", True),
    ("kept, paused", {**PERSISTENT, **dead().to_labels()}, "paused", True),
    ("kept, ended", {**PERSISTENT, **Owner.current().to_labels()}, "exited", False),
    ("kept, just made", {**PERSISTENT, **Owner.current().to_labels()}, "created", True),
    ("kept, half started by a dead one", {**PERSISTENT, **dead().to_labels()}, "initialized", False),
    ("kept, made by a dead one", {**PERSISTENT, **dead().to_labels()}, "created", False),
    ("kept, made elsewhere", {**PERSISTENT, **elsewhere().to_labels(), **SOON}, "created", True),
    ("kept, made elsewhere long ago", {**PERSISTENT, **elsewhere().to_labels(), **PAST}, "created", False),
]


@pytest.mark.parametrize(("labels", "status", "needed"), [case[1:] for case in LIVES], ids=[case[0] for case in LIVES])
@pytest.mark.parametrize("dry_run", [True, False])
async def test_what_nobody_needs_is_pruned(
    world: World, manager: Containers, labels: dict[str, str], status: str, needed: bool, dry_run: bool
) -> None:
    world.holds(container("it", labels, status))

    pruned = await manager.prune(dry_run=dry_run)

    assert [info.name for info in pruned] == ([] if needed else ["it"])
    assert world.removed == ([] if needed or dry_run else ["it"])


async def test_one_that_can_not_be_removed_does_not_stop_the_others(
    fp: FakeProcess, world: World, manager: Containers
) -> None:
    fp.register(["docker", "rm", fp.any(min=3), "stuck"], returncode=1, stderr="device is stuck", occurrences=3)
    world.holds(container("stuck", dead().to_labels()), container("easy", dead().to_labels()))

    assert [info.name for info in await manager.prune()] == ["easy"]


async def test_podmans_monitor_of_one_that_does_not_run_is_ended_before_its_id_is_forgotten(
    fp: FakeProcess, fake_engine: FakeEngine, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[tuple[str, int]] = []
    monkeypatch.setattr(
        "container_runner.engine.manager.end_forgotten", lambda id_: ended.append((id_, len(fake_engine.calls)))
    )
    manager = Containers(Engine(binary="podman", dialect=PODMAN, environ={}), state)
    for status in ("initialized", "running", "paused", "created"):
        fp.register(["podman", "inspect", fp.any()], stdout=orjson.dumps([container(status, status=status)]))
        fp.register(["podman", "rm", fp.any()])

        await manager.remove(status)

    assert ended == [("initialized".ljust(64, "0"), 1), ("created".ljust(64, "0"), 7)]
    assert [call.argv[1] for call in fake_engine.calls] == ["inspect", "rm"] * 4


def test_a_dead_owner_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    assert psutil.pid_exists(dead().pid)
    assert dead().state == "dead"


def test_a_state_folder_is_the_same_by_any_way_to_it(state: Path, tmp_path: Path) -> None:
    state.mkdir()
    (tmp_path / "link").symlink_to(state)

    assert state_digest(tmp_path / "link") == state_digest(state)
    assert state_digest(tmp_path / "other") != state_digest(state)
