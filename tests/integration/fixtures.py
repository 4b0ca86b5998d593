"""Fixtures for tests with real engines, wherever they stand; `engines.py` says how the engines come to be."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.engines import NAMES, PLACES, Engines, RealEngine
from tests.integration.images import Unavailable
from tests.integration.runs import Box


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give the tests with the big image more time, and keep the tests of the engines that were asked for."""
    for item in items:
        if item.get_closest_marker("engine"):
            assert {group_of(item.nodeid)} == engine_names(item), f"{item.nodeid} would run in a process of its own"
        if item.get_closest_marker("engine") and os.environ.get("CI") == "true":
            # An engine on a busy machine fails now and then by itself, and one of hundreds of tests must not decide.
            # What was tried again is listed at the end; what fails twice fails.
            item.add_marker(pytest.mark.flaky(reruns=1, reruns_delay=1))
        if "claude_image" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(600))
    items.sort(key=turn)  # with `pytest -n` the groups are dealt out in this order
    if wanted := config.getoption("--engine"):
        config.hook.pytest_deselected(items=[item for item in items if not engine_names(item) <= {*wanted}])
        items[:] = [item for item in items if engine_names(item) <= {*wanted}]


def turn(item: pytest.Item) -> int:
    """When a test's group is dealt out: what takes long comes first, so that at the end nobody waits for it alone."""
    group = group_of(item.nodeid)
    return PLACES.index(group) if group in PLACES else len(PLACES)


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
    """An engine's tests, so that it is started once, and no test counts what another has on it; else those of a file.

    It goes by the name, for the process that deals out the tests has nothing else of them.
    """
    file, _, name = nodeid.partition("::")
    engine = ENGINE.search(name) if file.startswith(("tests/faults/", "tests/integration/")) else None
    return engine[1] if engine else file


ENGINE = re.compile(rf"(?:\[|-)({'|'.join(sorted(PLACES, reverse=True))})(?:\]|-)")
"""A place among a test's parameters; podman-rootless is tried before podman."""


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Let the fixture `engine` be those that the nearest mark `on` names: the test's own, or its module's."""
    if mark := metafunc.definition.get_closest_marker("on"):
        metafunc.definition.add_marker(pytest.mark.parametrize("engine", on(*mark.args), indirect=True))


def on(*names: str) -> list[object]:
    """Parameters for a fixture that is one of these engines."""
    return [pytest.param(name, marks=pytest.mark.engine) for name in names]


@pytest.fixture(scope="session")
def engines() -> Iterator[Engines]:
    """The engines of this session. At its end nothing of a run or of an engine may be left."""
    engines = new_engines()
    try:
        yield engines
    finally:
        left = engines.stop()
    assert not left


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
def box(engine: RealEngine, workspace: Path) -> Box:
    """Makes runs on each of the engines in turn."""
    return Box.make(engine, workspace)


@pytest.fixture
def claude_image(engine: RealEngine) -> str:
    """The name of the image with the real claude."""
    with skipped_if_unavailable():
        return engine.images.claude


def new_engines() -> Engines:
    # Not pytest's tmp_path: only root may walk it, and sockets need short paths.
    folder = Path(tempfile.mkdtemp(prefix="cr-", dir="/var/tmp"))
    folder.chmod(0o755)
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
