"""What must hold on the machine that users have: Debian 13, systemd, cgroup v2, Docker 26, Podman 5, rootless too.

The machine boots once; the tests below run in it, on its three engines, and each is a test here.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence

import pytest

from tests.integration import test_doctor, test_kill, test_limits
from tests.integration.engines import MACHINE
from tests.integration.fixtures import skipped_if_unavailable
from tests.integration.machine import PLACES, Machine, run_machine

BOTH = ("docker", "podman-rootless")
"""What is ours is held against one engine of each kind; what the kernel and the runtime do, against all."""

TESTS: dict[Callable[..., object], Sequence[str]] = {
    test_doctor.test_where_a_run_works_it_says_so_and_leaves_nothing: BOTH,
    test_limits.test_memory_swap_processes_and_processor_time_are_limited: PLACES,
    test_limits.test_an_agent_that_wanted_more_memory_is_told_so: BOTH,
    test_limits.test_a_kept_container_has_the_same_limits_and_outlives_an_agent_that_went_over_them: BOTH,
    test_kill.test_an_ephemeral_container_goes: BOTH,
    test_kill.test_a_kept_container_stays_without_the_agents_processes: BOTH,
}
"""The engines there that each runs on. A run takes some ten seconds there."""


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
            {place: [name_of(test) for test, places in TESTS.items() if place in places] for place in PLACES}
        )


@pytest.mark.engine
@pytest.mark.timeout(2700)
@pytest.mark.parametrize("place", [MACHINE])
@pytest.mark.parametrize(
    "ran",
    [
        pytest.param((engine, name_of(test)), id=f"{test.__name__.removeprefix('test_')} on {engine}")
        for test, engines in TESTS.items()
        for engine in engines
    ],
)
def test_it_holds_there(machine: Machine, ran: tuple[str, str], place: str) -> None:
    outcomes = machine.outcomes.get(ran, [])

    assert outcomes, f"it did not run; the end of the console:\n{machine.console[-5000:]}"
    assert [outcome for outcome in outcomes if outcome.outcome != "passed"] == []
