"""What comes before and after an agent, in its own box."""

from __future__ import annotations

from typing import Any

import pytest

from container_runner import ErrorMessage
from tests.integration.runs import ON_OWN_ROOTFUL, Box, error_of

pytestmark = ON_OWN_ROOTFUL


@pytest.mark.parametrize(
    "box_fields", [{}, {"ephemeral": False}, {"workspace_mode": "carried"}], ids=["ephemeral", "kept", "carried"]
)
def test_a_check_sees_what_the_agent_did_in_the_box_that_was_set_up(box: Box, box_fields: dict[str, Any]) -> None:
    fields: dict[str, Any] = {**box_fields, "secrets": ["TOKEN_OF_TEST"]}
    setup = "echo $TOKEN_OF_TEST >/tmp/from-setup; id -u >/tmp/uid"
    check = 'cat made.txt; grep -q hidden /tmp/from-setup && [ "$(id -u)" = "$(cat /tmp/uid)" ] && exit 6'

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOKEN_OF_TEST", "hidden-in-the-box")
        error = error_of(box.run("edit made.txt made by the agent", setup=setup, check=check, **fields))

    for container in box.containers():  # a kept one
        box.engine.remove(container)
    assert isinstance(error, ErrorMessage)
    assert (error.kind, error.exit_code, error.stderr) == ("check_failed", 6, "made by the agent\n")


def test_a_check_that_passes_is_a_run_that_succeeded_and_no_message(box: Box) -> None:
    plain = box.run("hello")

    checked = box.run("hello", setup="echo noise", check="echo noise; true")

    assert [type(message) for message in checked] == [type(message) for message in plain]
    assert error_of(checked) is None


def test_a_setup_that_fails_ends_it_before_the_agent(box: Box) -> None:
    (error,) = box.run("edit made.txt x", setup="echo it is missing; exit 5")

    assert isinstance(error, ErrorMessage)
    assert (error.kind, error.exit_code, error.stderr) == ("setup_failed", 5, "it is missing\n")
    assert not (box.workspace / "made.txt").exists()
