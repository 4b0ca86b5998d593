"""The shape of the package: what each module may import, and what it may do, read from its source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import container_runner

ROOT = Path(container_runner.__file__).parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
    if path != ROOT / "__init__.py"
}

LAYERS: tuple[set[str], ...] = (
    {"conmon", "errors", "guest", "owner"},
    {"folders", "laws", "lines", "options"},
    {"locks", "messages", "process", "values"},
    {"protect", "stream", "tally"},
    {"config", "runtimes.runtime"},
    {"environment", "policy", "runtimes.claude", "runtimes.command", "user"},
    {"mounts", "runtimes"},
    {"argv"},
    {"engine"},
    {"plan"},
    {"manager", "tracing"},
    {"pool", "records"},
    {"run", "transcript"},
    {"image", "page", "runner", "sessions"},
    {"batch", "doctor", "testing"},
)
"""From the bottom to the top. A module imports only what lies in a layer below its own."""

PURE = {"argv", "config", "errors", "guest", "laws", "lines", "messages", "options", "plan", "values"}
"""What does no I/O and waits for nothing."""


def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


def imports(module: str) -> set[str]:
    """The full names of all that a module imports, late imports too, but not what only type checkers read."""
    found: set[str] = set()
    left: list[ast.AST] = [tree(module)]
    while left:
        node = left.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        left += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            name = str(node.module)
            found |= {f"{name}.{alias.name}" if name == "container_runner" else name for alias in node.names}
    return found


def own(module: str) -> set[str]:
    prefix = "container_runner."
    return {name.removeprefix(prefix) for name in imports(module) if name.startswith(prefix)}


def packages(module: str) -> set[str]:
    return {name.partition(".")[0] for name in imports(module)}


def names(module: str) -> set[str]:
    """Dotted names as they are used, such as "os.environ"."""
    return {ast.unparse(node) for node in ast.walk(tree(module)) if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize("layer", range(len(LAYERS)))
def test_a_module_imports_only_what_lies_below_it(layer: int) -> None:
    below = set().union(*LAYERS[:layer], {"__version__"})

    for module in sorted(LAYERS[layer] & set(MODULES)):
        assert own(module) - below == set(), module


def test_every_module_has_its_layer() -> None:
    assert {module for module in MODULES if not module.startswith(("cli", "__main__"))} == set().union(*LAYERS)


def test_nothing_imports_the_command_or_the_plugin() -> None:
    for module in MODULES:
        if not module.startswith("cli") and module != "__main__":
            assert not [name for name in own(module) if name.startswith(("cli", "testing"))], module


@pytest.mark.parametrize("module", sorted(PURE & set(MODULES)))
def test_what_is_pure_knows_no_event_loop_and_starts_nothing(module: str) -> None:
    assert not packages(module) & {"anyio", "asyncio", "trio", "subprocess", "socket", "threading", "selectors", "time"}


def test_only_the_edges_use_cattrs() -> None:
    assert {module for module in MODULES if "cattrs" in packages(module)} <= {"config", "policy"}


def test_only_one_module_starts_processes() -> None:
    starting = {"os.fork", "os.posix_spawn", "os.system", "os.popen", "anyio.run_process", "anyio.open_process"}
    found = {module for module in MODULES if names(module) & starting or {"subprocess", "pty"} & packages(module)}
    by_name = {
        module
        for module in MODULES
        for node in ast.walk(tree(module))
        if isinstance(node, ast.ImportFrom) and {alias.name for alias in node.names} & {"open_process", "run_process"}
    }

    assert found - {"testing"} == set()
    assert by_name == {"process"}


def test_the_environment_is_read_in_few_places() -> None:
    # `stream` hands it on to an agent that runs on the host, `testing` to a fake one.
    reading = {module for module in MODULES if names(module) & {"os.environ", "os.getenv"}}

    assert {module for module in reading if not module.startswith("cli")} <= {
        *("environment", "stream", "testing", "policy"),
    }


def test_nobody_prints_but_the_command() -> None:
    for module in MODULES:
        if not module.startswith("cli"):
            calls = {ast.unparse(node.func) for node in ast.walk(tree(module)) if isinstance(node, ast.Call)}
            assert not calls & {"print", "input", "sys.stdout.write", "sys.stderr.write"}, module


def test_no_shell_is_ever_asked() -> None:
    for module in MODULES:
        keywords = {ast.unparse(node) for node in ast.walk(tree(module)) if isinstance(node, ast.keyword)}
        assert "shell=True" not in keywords, module
