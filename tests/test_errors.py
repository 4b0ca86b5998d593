"""The tree of errors: what each one carries, and that its drawings are true."""

from __future__ import annotations

import pytest

from container_runner import errors
from container_runner.errors import ConfigError, ContainerRunnerError, EngineError, error_class


def below(kind: type[ContainerRunnerError]) -> list[type[ContainerRunnerError]]:
    return [error for child in kind.__subclasses__() for error in (child, *below(child))]


EVERY = below(ContainerRunnerError)


@pytest.mark.parametrize("error", EVERY)
def test_every_error_has_a_kind_an_exit_code_and_a_next_step_of_its_own(error: type[ContainerRunnerError]) -> None:
    assert error.kind != ContainerRunnerError.kind
    assert 0 < error.cli_exit_code < 128
    assert error.advice.endswith(".")
    assert error_class(error.kind) is error


def test_no_two_errors_have_the_same_kind() -> None:
    assert len({error.kind for error in EVERY}) == len(EVERY)


def test_the_drawn_tree_names_every_error() -> None:
    drawn = errors.__doc__ or ""

    assert [error.__name__ for error in EVERY if error.__name__ not in drawn] == []


def test_an_unknown_kind_is_a_plain_failure() -> None:
    assert error_class("from the future").cli_exit_code == 1


def test_the_text_is_what_happened_then_what_it_said_then_what_to_do() -> None:
    error = EngineError("It failed.", stderr="its words\n", next_step="Do this.")

    assert str(error) == "It failed.\nits words\nDo this."


def test_a_config_error_names_the_field_the_value_what_is_allowed_and_the_file() -> None:
    error = ConfigError("memory", "0", "a size of at least 6m").called("memory", source="box.toml")

    assert str(error) == "box.toml: memory must be a size of at least 6m; got '0'."
    assert (error.field, error.value, error.source) == ("memory", "0", "box.toml")


def test_a_config_error_can_be_told_otherwise_and_by_the_name_that_was_typed() -> None:
    missing = ConfigError("image", None, "the name of an image")
    placed = ConfigError("volumes[0]", "x", "a path").called("--volume", source="box.toml", at="3:1")
    told = ConfigError("agent.workspace", "/nope", "a folder", told="agent.workspace /nope: no such folder")

    assert str(missing) == "image is missing: give the name of an image."
    assert str(placed) == "box.toml:3:1: --volume must be a path; got 'x'."
    assert str(told.called("--workspace")) == "--workspace /nope: no such folder."
    assert str(told.called(told.field, source="jobs:2")) == "jobs:2: agent.workspace /nope: no such folder."


def test_a_long_value_is_cut() -> None:
    assert "… (5002 characters)" in str(ConfigError("image", "x" * 5000, "less"))
