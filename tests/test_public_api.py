"""What the package gives to others: that it is there, complete, and explained."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import attrs
import pytest

import container_runner
from container_runner import errors
from container_runner.errors import ContainerRunnerError


def modules() -> list[ModuleType]:
    found = pkgutil.walk_packages(container_runner.__path__, "container_runner.")
    return [container_runner, *(importlib.import_module(info.name) for info in found if "__main__" not in info.name)]


def public(module: ModuleType) -> dict[str, object]:
    """The classes and functions of a module that others may use."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    }


MODULES = {module.__name__.removeprefix("container_runner."): module for module in modules()}


@pytest.mark.parametrize("name", container_runner.__all__)
def test_what_is_promised_is_there(name: str) -> None:
    assert hasattr(container_runner, name)


def test_nothing_is_promised_twice_and_the_main_things_are_promised() -> None:
    assert len(set(container_runner.__all__)) == len(container_runner.__all__)
    assert {"ContainerRunner", "ContainerConfig", "Agent", "ExecuteOptions", "ClaudeRuntime"} <= {
        *container_runner.__all__
    }


def test_type_checkers_see_the_same_names_from_the_same_modules() -> None:
    tree = ast.parse(Path(container_runner.__file__).read_text())
    seen = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("container_runner.")
        for alias in node.names
    }

    assert set(seen) == set(container_runner.__all__) - {"__version__"}
    for name, module in seen.items():
        assert getattr(importlib.import_module(str(module)), name) is getattr(container_runner, name)


def test_what_the_pages_import_is_public() -> None:
    root = Path(container_runner.__file__).parent.parent
    for page in (root / "README.md", *root.glob("docs/**/*.md")):
        inner = re.findall(r"^ *(?:from|import) (container_runner\.\S+)", page.read_text("utf-8"), re.MULTILINE)
        # For those who have claude-agent-sdk, who test, and who write an agent.
        others = {"container_runner.sdk", "container_runner.testing", "container_runner.stream.reader"}
        assert set(inner) <= others, page


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        container_runner.nothing_of_the_kind  # noqa: B018  the access is what raises


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_every_module_says_what_it_is_for(module: str) -> None:
    assert (MODULES[module].__doc__ or "").strip()


# An error's row in the tree at the top of errors.py is its documentation, a law is one line with its own words in it,
# and the flags have the documentation of the fields that they are made of.
EXPLAINED_ELSEWHERE = {"container_runner.errors", "container_runner.config.laws", "container_runner.cli.flags"}


def undocumented(module: ModuleType) -> list[str]:
    found = []
    for name, value in public(module).items():
        if not inspect.getdoc(value) and module.__name__ not in EXPLAINED_ELSEWHERE:
            found.append(name)
        if inspect.isclass(value) and not module.__name__.startswith("container_runner.cli"):
            for method, function in vars(value).items():
                if inspect.isfunction(function) and not method.startswith("_") and not inspect.getdoc(function):
                    found.append(f"{name}.{method}")
    return found


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_every_public_class_function_and_method_is_explained(module: str) -> None:
    assert undocumented(MODULES[module]) == []


KINDS: dict[str, type[ContainerRunnerError]] = {
    name: value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and issubclass(value, ContainerRunnerError)
}


def test_the_tree_of_errors_is_drawn_as_it_is() -> None:
    drawn = re.findall(r"^    ([│ ]*)[├└]── (\w+)", errors.__doc__ or "", re.MULTILINE)
    parents: list[type] = [ContainerRunnerError]

    for indent, name in drawn:
        del parents[len(indent) // 4 + 1 :]
        assert KINDS[name].__base__ is parents[-1], name
        parents.append(KINDS[name])
    assert {name for _, name in drawn} == set(KINDS) - {"ContainerRunnerError"}


def test_every_error_has_its_own_kind_an_exit_code_and_advice() -> None:
    assert len({kind.kind for kind in KINDS.values()}) == len(KINDS)
    for kind in KINDS.values():
        assert 1 <= kind.cli_exit_code <= 127
        assert errors.error_class(kind.kind) is kind
        assert kind.advice.endswith(".")
    assert errors.error_class("of the future").cli_exit_code == 1


def test_values_are_frozen() -> None:
    """What is compared by its identity is no value."""
    for module in MODULES.values():
        for name, value in public(module).items():
            if attrs.has(value) and value.__eq__ is not object.__eq__:  # type: ignore[arg-type]  # any object can be asked
                assert value.__setattr__ is not object.__setattr__, name


def test_the_version_is_the_distributions() -> None:
    assert importlib.metadata.version("agent-container-runner") == container_runner.__version__


def test_it_is_typed() -> None:
    assert (Path(container_runner.__file__).parent / "py.typed").exists()


def test_importing_it_starts_no_event_loop_library_and_needs_no_test_library() -> None:
    code = "import sys, container_runner; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    assert not {"trio", "pytest", "pytest_subprocess", "cyclopts", "rich", "hypothesis"} & set(loaded)
