"""The shape of the package: what each module may import, and what it may do, read from its source."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

import container_runner

ROOT = Path(container_runner.__file__).parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
    if path != ROOT / "__init__.py"
}

ROOMS = (
    ("errors",),
    ("quantities",),
    ("folders", "options"),
    ("config",),
    ("stream",),
    ("session",),
    ("agents",),
    ("gateway",),
    ("workspace",),
    ("box",),
    ("engine",),
    ("records",),
    ("runner",),
    ("fleet", "sdk"),
    ("doctor", "testing"),
    ("cli",),
    ("__main__",),
)
"""From the ground up: a room imports only what lies on the floors below it."""

PURE = {
    *("errors", "quantities", "options", "box.argv", "box.golden", "box.guest", "box.plan"),
    *(module for module in MODULES if module.startswith("config.") and module != "config.tiers"),
    *(
        f"gateway.{name}"
        for name in ("forwarder", "inject", "offered", "plan", "proxy", "refused", "route", "scrubber", "told", "veil")
    ),
    *("workspace.findings", "workspace.names"),
    *(f"stream.{name}" for name in ("blocks", "decode", "lines", "messages", "own")),
    *(f"session.{name}" for name in ("acp", "asks", "codec", "control", "editor", "jsonrpc", "settings", "updates")),
}
"""What does no I/O and waits for nothing."""


@functools.cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


@functools.cache
def imports(module: str, *, types: bool = False) -> frozenset[str]:
    """The full names of all that a module imports, late imports too; what only type checkers read if *types*."""
    found: set[str] = set()
    left: list[ast.AST] = [tree(module)]
    while left:
        node = left.pop()
        if not types and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        left += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def own(module: str, *, types: bool = False) -> set[str]:
    """The modules of ours that a module imports: of "box.argv.LABEL" the longest part that is one."""
    found = set()
    for name in imports(module, types=types):
        package, _, inner = name.partition(".")
        while package == "container_runner" and inner and inner not in MODULES:
            inner = inner.rpartition(".")[0]
        if package == "container_runner" and inner:
            found.add(inner)
    return found - {module}


def packages(module: str) -> set[str]:
    return {name.partition(".")[0] for name in imports(module)}


def names(module: str) -> set[str]:
    """Dotted names as they are used, such as "os.environ"."""
    return {ast.unparse(node) for node in ast.walk(tree(module)) if isinstance(node, ast.Attribute)}


def room(module: str) -> str:
    return module.partition(".")[0]


FLOORS = {name: floor for floor, names in enumerate(ROOMS) for name in names}


def test_every_module_is_in_a_room() -> None:
    assert {room(module) for module in MODULES} == set(FLOORS)


@pytest.mark.parametrize("name", FLOORS)
def test_a_room_imports_only_what_lies_below_it(name: str) -> None:
    for module in MODULES:
        if room(module) == name:
            others = {room(other) for other in own(module)} - {name}
            assert {other for other in others if FLOORS[other] >= FLOORS[name]} == set(), module


def test_tests_lie_as_the_package_does() -> None:
    tests = Path(__file__).parent
    found = {path.relative_to(tests) for name in FLOORS for path in (tests / name).glob("test_*.py")}

    assert len(found) > 30
    assert {path for path in found if f"{path.parent}.{path.stem.removeprefix('test_')}" not in MODULES} == set()


def test_no_two_modules_import_each_other() -> None:
    """Nor in a longer circle; what only type checkers read counts as well."""
    left = {module: own(module, types=True) for module in MODULES}
    while ready := [module for module, needs in left.items() if not needs & set(left)]:
        for module in ready:
            del left[module]

    assert left == {}


def test_no_file_is_longer_than_one_sitting() -> None:
    lengths = {module: len(path.read_text().splitlines()) for module, path in MODULES.items()}

    assert {module: lines for module, lines in lengths.items() if lines > 450} == {}


@pytest.mark.parametrize("module", sorted(PURE & set(MODULES)))
def test_what_is_pure_knows_no_event_loop_and_starts_nothing(module: str) -> None:
    assert not packages(module) & {"anyio", "asyncio", "trio", "subprocess", "socket", "threading", "selectors", "time"}


def test_only_the_edges_use_cattrs() -> None:
    assert {module for module in MODULES if "cattrs" in packages(module)} == {"config.converter"}


def test_only_one_module_starts_processes() -> None:
    starting = {"os.fork", "os.posix_spawn", "os.system", "os.popen", "anyio.run_process", "anyio.open_process"}
    found = {module for module in MODULES if names(module) & starting or {"subprocess", "pty"} & packages(module)}
    by_name = {
        module
        for module in MODULES
        for node in ast.walk(tree(module))
        if isinstance(node, ast.ImportFrom) and {alias.name for alias in node.names} & {"open_process", "run_process"}
    }

    # A tunnel outlives the event loop that it was opened in. What has a person's terminal has no pipes to us.
    assert found - {"engine.tunnel", "testing.container", "testing.engine", "testing.scripted"} == set()
    assert by_name == {"stream.process", "stream.terminal"}


def test_the_environment_is_read_in_few_places() -> None:
    # `agents.runtime` hands it on to an agent that runs on the host, `testing.engine` to a fake one.
    reading = {module for module in MODULES if names(module) & {"os.environ", "os.getenv"}}

    assert {module for module in reading if not module.startswith("cli")} <= {
        *("box.environment", "agents.runtime", "testing.container", "testing.engine", "testing.output", "config.tiers"),
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
