"""What must hold on the machine that users have: Debian 13, systemd, cgroup v2, Docker 26, Podman 5, rootless too.

The machine boots once; the tests below run in it, on its three engines, and each is a test here.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator

import pytest

from tests.integration import test_doctor, test_kill, test_limits
from tests.integration.engines import MACHINE
from tests.integration.fixtures import skipped_if_unavailable
from tests.integration.machine import PLACES, Machine, run_machine

TESTS: list[Callable[..., object]] = [
    test_doctor.test_where_a_run_works_it_says_so_and_leaves_nothing,
    test_limits.test_memory_swap_processes_and_processor_time_are_limited,
    test_limits.test_an_agent_that_wanted_more_memory_is_told_so,
    test_limits.test_a_kept_container_has_the_same_limits_and_outlives_an_agent_that_went_over_them,
    test_kill.test_an_ephemeral_container_goes,
    test_kill.test_a_kept_container_stays_without_the_agents_processes,
]
"""A run takes some ten seconds there: what is here depends on cgroup v2, on systemd or on crun."""


def engines_of(test: Callable[..., object]) -> Iterator[str]:
    """The machine's engines that a test runs on."""
    marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "on"]
    yield from (engine for engine in PLACES if not marks or engine in marks[0].args)


def name_of(test: Callable[..., object]) -> str:
    """The test as pytest names it, without parameters."""
    return f"{test.__module__.replace('.', '/')}.py::{test.__name__}"


@pytest.fixture(scope="module")
def machine() -> Machine:
    """The machine, after all tests have run in it."""
    # TERM unwinds like Ctrl-C, so that its disks go then too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with skipped_if_unavailable():
        return run_machine(
            {engine: [name_of(test) for test in TESTS if engine in engines_of(test)] for engine in PLACES}
        )


@pytest.mark.engine
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("place", [MACHINE])
@pytest.mark.parametrize(
    "ran",
    [
        pytest.param((engine, name_of(test)), id=f"{test.__name__.removeprefix('test_')} on {engine}")
        for test in TESTS
        for engine in engines_of(test)
    ],
)
def test_it_holds_there(machine: Machine, ran: tuple[str, str], place: str) -> None:
    outcomes = machine.outcomes.get(ran, [])

    assert outcomes, f"it did not run; the end of the console:\n{machine.console[-5000:]}"
    assert [outcome for outcome in outcomes if outcome.outcome != "passed"] == []
