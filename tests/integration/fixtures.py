"""Fixtures for tests with real engines, wherever they stand; `engines.py` says how the engines come to be."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.engines import NAMES, PLACES, Engines, RealEngine, is_ours
from tests.integration.images import Unavailable
from tests.integration.runs import Box


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give the tests with the big image more time, and keep the tests of the engines that were asked for."""
    for item in items:
        if item.get_closest_marker("engine"):
            assert {engine_of(item.nodeid)} == engine_names(item), f"{item.nodeid} would run in a process of its own"
        if os.environ.get("CI") == "true":
            # A busy machine fails now and then by itself, and one of ten thousand tests must not decide. What was
            # tried again is listed at the end; what fails twice fails. What is left behind is told once, at the end of
            # a process's last test, and would be gone for a second try.
            item.add_marker(pytest.mark.flaky(reruns=1, reruns_delay=1, rerun_except=[LeftBehindError.__name__]))
        if {"claude_image", "agents_image"} & {*getattr(item, "fixturenames", ())}:
            item.add_marker(pytest.mark.timeout(600))
    items.sort(key=turn)  # with `pytest -n` the groups are dealt out in this order
    if wanted := config.getoption("--engine"):
        config.hook.pytest_deselected(items=[item for item in items if not engine_names(item) <= {*wanted}])
        items[:] = [item for item in items if engine_names(item) <= {*wanted}]


def turn(item: pytest.Item) -> int:
    """When a test's group is dealt out: what takes long comes first, so that at the end nobody waits for it alone."""
    engine = engine_of(item.nodeid)
    return PLACES.index(engine) if engine else len(PLACES)


def engine_names(item: pytest.Item) -> set[str]:
    """The places where a test runs; none for a test without an engine."""
    callspec = getattr(item, "callspec", None)
    return {value for value in callspec.params.values() if value in PLACES} if callspec else set()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """With `pytest -n` all tests of a group run in one process, one after another."""
    from xdist.scheduler import LoadScopeScheduling

    config.option.loadscopereorder = False  # by the number of tests
    scheduler = LoadScopeScheduling(config, log)
    scheduler._split_scope = group_of
    return scheduler


def group_of(nodeid: str) -> str:
    """An engine's tests, so that no test counts what another has on it; else those of a file.

    The longest ones' are cut in parts, each with an engine of its own, if the engine is one that is ours to start.
    """
    file = nodeid.partition("::")[0]
    engine = engine_of(nodeid)
    return f"{engine} {part_of(file)}" if engine in IN_PARTS and is_ours(engine) else engine or file


@functools.cache
def part_of(file: str) -> str:
    """The faults, the rest in two halves, and what has the big images in it: they take a minute to import."""
    _, folder, name = file.split("/")
    if BIG_IMAGE.search((Path(__file__).parents[2] / file).read_text()):
        return "agents"
    return folder if folder == "faults" else f"{folder} {'a-l' if name < 'test_m' else 'm-z'}"


def engine_of(nodeid: str) -> str:
    """The engine that a test is with, or "".

    It goes by the name, for the process that deals out the tests has nothing else of them.
    """
    file, _, name = nodeid.partition("::")
    engine = ENGINE.search(name) if file.startswith(("tests/faults/", "tests/integration/")) else None
    return engine[1] if engine else ""


IN_PARTS = ("docker", "podman")

BIG_IMAGE = re.compile(r"claude_image|agents_image|images\.(?:agents|claude)\b")

ENGINE = re.compile(rf"(?:\[|-)({'|'.join(sorted(PLACES, reverse=True))})(?:\]|-)")
"""A place among a test's parameters; podman-rootless is tried before podman."""


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Let the fixture `engine` be those that the nearest mark `on` names: the test's own, or its module's."""
    own = [mark for mark in metafunc.definition.own_markers if mark.name == "on"]
    assert len(own) < 2, f"{metafunc.definition.nodeid} has two marks `on`, and the lower one would count"
    mark = metafunc.definition.get_closest_marker("on")
    if mark and "engine" in metafunc.fixturenames:
        metafunc.definition.add_marker(pytest.mark.parametrize("engine", on(*mark.args), indirect=True))


def on(*names: str) -> list[object]:
    """Parameters for a fixture that is one of these engines."""
    return [pytest.param(name, marks=pytest.mark.engine) for name in names]


class LeftBehindError(AssertionError):
    """Something of a run or of an engine is there when the tests of a process have ended, of whichever test it was."""


@pytest.fixture(scope="session")
def engines() -> Iterator[Engines]:
    """The engines of this session. At its end nothing of a run or of an engine may be left."""
    engines = new_engines()
    try:
        yield engines
    finally:
        left = engines.stop()
    if left:
        raise LeftBehindError(", ".join(left))


@pytest.fixture(params=on(*NAMES))
def engine(request: pytest.FixtureRequest, engines: Engines) -> RealEngine:
    """Each of the engines in turn; a test or a module that wants others has the mark `on`."""
    with skipped_if_unavailable():
        return engines.get(request.param)


@pytest.fixture(params=on("docker"))
def docker(request: pytest.FixtureRequest, engines: Engines) -> RealEngine:
    """Docker Engine."""
    with skipped_if_unavailable():
        return engines.get(request.param)


@pytest.fixture(params=on("podman"))
def podman(request: pytest.FixtureRequest, engines: Engines) -> RealEngine:
    """Podman run by root."""
    with skipped_if_unavailable():
        return engines.get(request.param)


@pytest.fixture(params=on("docker"))
def private_docker(request: pytest.FixtureRequest) -> Iterator[Callable[[], RealEngine]]:
    """Makes a Docker Engine that only this test uses, so the test may kill its daemon."""
    started = []

    def start() -> RealEngine:
        started.append(new_engines())
        with skipped_if_unavailable():
            return started[-1].docker(private=True)

    yield start
    for engines in started:
        engines.stop()  # what the test left there is what it is about


@pytest.fixture
def workspace(request: pytest.FixtureRequest) -> Iterator[Path]:
    """An empty folder in which the container's default user may write, on a path that it may walk."""
    names = {"engine", "docker", "podman"} & {*request.fixturenames}
    folder = Path(tempfile.mkdtemp(prefix="cr-workspace-", dir="/tmp"))
    folder.chmod(0o755)
    for name in names:
        os.chown(folder, *request.getfixturevalue(name).owner)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def box(engine: RealEngine, workspace: Path) -> Iterator[Box]:
    """Makes runs on each of the engines in turn. What they keep goes with the test."""
    box = Box.make(engine, workspace)
    yield box
    if any(box.state.glob("locks/container.*")):
        for container in box.containers():
            engine.remove(container)


@pytest.fixture
def claude_image(engine: RealEngine) -> str:
    """The name of the image with the real claude."""
    with skipped_if_unavailable():
        return engine.images.claude


@pytest.fixture
def agents_image(engine: RealEngine) -> str:
    """The name of the image with the real agents that are not claude."""
    with skipped_if_unavailable():
        return engine.images.agents


def new_folder() -> Path:
    """A folder of the tests' own, in which engines are started."""
    # Not pytest's tmp_path: only root may walk it, and sockets need short paths.
    folder = Path(tempfile.mkdtemp(prefix="cr-", dir="/var/tmp"))
    folder.chmod(0o755)
    return folder


def new_engines() -> Engines:
    folder = new_folder()
    # TERM unwinds like Ctrl-C, so that the engines are stopped then too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return Engines(folder)


@contextlib.contextmanager
def skipped_if_unavailable() -> Iterator[None]:
    """Skip the test if this machine can not provide what is asked for; in CI it fails."""
    try:
        yield
    except Unavailable as reason:
        if os.environ.get("CI") == "true":
            pytest.fail(str(reason))
        pytest.skip(str(reason))
