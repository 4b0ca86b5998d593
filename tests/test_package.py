"""The package as others get it: built, and installed where nothing else of ours is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Mapping
from pathlib import Path

import attrs
import pytest

import container_runner

ROOT = Path(__file__).parent.parent
DATA = {
    "container_runner/testing/scripted-agent",
    "container_runner/py.typed",
    "container_runner/records/page.html",
    "container_runner/engine/Containerfile",
    *(f"container_runner/gateway/forwarders/forward.{kind}" for kind in ("js", "pl", "python")),
}
"""What the package needs beside its modules."""

BUDGET = 3.0
"""How many times the modules of `python -c pass` the import of the package and `--version` may load."""


@attrs.frozen
class Installed:
    """A clean virtual environment with the wheel in it."""

    folder: Path
    wheel: Path
    sdist: Path

    @property
    def python(self) -> str:
        return str(self.folder / "bin/python")

    @property
    def command(self) -> str:
        return str(self.folder / "bin/container-runner")

    def run(self, *words: str, environ: Mapping[str, str] | None = None) -> str:
        """What a program of it prints, far from this repository and without any of our variables."""
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        given = {"PATH": os.defpath, "HOME": str(home), "LANG": "C.UTF-8", **(environ or {})}
        done = subprocess.run(words, cwd=home, env=given, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The sdist, the wheel that is built of it, and an environment with that wheel and what it depends on."""
    folder = tmp_path_factory.mktemp("package")
    quietly(sys.executable, "-m", "build", f"--outdir={folder}", str(ROOT))
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    venv.create(folder / "venv", symlinks=True)
    quietly(sys.executable, "-m", "pip", f"--python={folder}/venv/bin/python", "install", str(wheel))
    return Installed(folder / "venv", wheel, sdist)


def quietly(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheel_has_every_file_of_the_package_and_nothing_else(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as wheel:
        found = {name for name in wheel.namelist() if ".dist-info/" not in name}

    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "container_runner").rglob("*.py")}
    assert found == modules | DATA


def test_the_sdist_has_what_its_tests_and_pages_need(installed: Installed) -> None:
    with tarfile.open(installed.sdist) as sdist:
        found = {name.partition("/")[2] for name in sdist.getnames()}

    assert {"pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "Makefile", "mkdocs.yml"} <= found
    assert {"tests/test_package.py", "docs/index.md", "scripts/setup", "scripts/reference.py"} <= found
    assert found >= DATA


def test_the_command_works_in_a_clean_environment(installed: Installed) -> None:
    workspace = installed.folder / "project"
    workspace.mkdir(exist_ok=True)
    workspace.chmod(0o777)

    def command(*words: str) -> str:
        return installed.run(installed.command, *words)

    assert command("--version") == f"{container_runner.__version__}\n"
    assert "First steps" in command("--help")
    (run,) = json.loads(command("argv", "Do it.", "--rw", "--image=i", f"--workspace={workspace}", "--json"))
    assert run[1:4] == ["run", "--rm", "--interactive"]
    assert "FROM" in command("image", "containerfile")
    assert "container-runner" in command("completion", "fish")
    assert json.loads(command("init", "--image=i", "--json"))["path"].endswith("config.toml")
    assert 'image = "i"' in command("config", f"--workspace={workspace}")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package in it, but none of its source."""
    folder = tmp_path_factory.mktemp("compiled")
    shutil.copytree(ROOT / "container_runner", folder / "container_runner")
    quietly(sys.executable, "-m", "compileall", "-q", "-b", str(folder))
    for source in folder.rglob("*.py"):
        source.unlink()
    return folder


@pytest.mark.parametrize(
    "words", [["run", "--help"], ["config"], ["config", "schema"], ["logs", "--help"]], ids=" ".join
)
def test_no_help_is_read_from_source(words: list[str], compiled: Path, tmp_path: Path) -> None:
    environ = {**os.environ, "HOME": str(tmp_path), "COLUMNS": "100"}

    def told(folder: Path, *options: str) -> str:
        command = [sys.executable, *options, "-m", "container_runner", *words]
        return subprocess.run(command, env=environ, cwd=folder, check=True, capture_output=True, text=True).stdout

    assert not list(compiled.rglob("*.py"))
    assert told(compiled) == told(ROOT)
    assert told(ROOT, "-OO"), "it works without docstrings too, though it has less to say"


def test_the_installed_package_is_what_is_imported_and_every_module_imports(installed: Installed) -> None:
    """The extras are not installed: the plugin for pytest and the SDK's transport need one each, and say which."""
    code = """
import importlib, pkgutil, container_runner
from container_runner.records.page import render_page
names = [info.name for info in pkgutil.walk_packages(container_runner.__path__, "container_runner.")]
for name in names:
    if name not in ("container_runner.testing.plugin", "container_runner.__main__", "container_runner.sdk"):
        importlib.import_module(name)
try:
    import container_runner.sdk
except ModuleNotFoundError as error:
    print(error)
print(container_runner.__file__)
print(render_page((), agent="a", session_id="b")[:15])
"""
    missing, file, page = installed.run(installed.python, "-c", code).splitlines()

    assert Path(file).is_relative_to(installed.folder)
    assert page == "<!doctype html>"
    assert "[sdk]" in missing


@pytest.mark.parametrize("words", [["-c", "import container_runner"], ["-m", "container_runner", "--version"]])
def test_it_starts_with_little(installed: Installed, words: list[str]) -> None:
    """What it imports is counted, for a clock says nothing on a busy machine; the benchmarks have the seconds."""

    def imported(*words: str) -> set[str]:
        command = [installed.python, "-X", "importtime", *words]
        told = subprocess.run(command, check=True, capture_output=True, text=True, cwd=installed.folder).stderr
        return {line.rpartition("|")[2].strip() for line in told.splitlines()[1:]}

    modules, bare = imported(*words), imported("-c", "pass")

    others = {name.partition(".")[0] for name in modules} - sys.stdlib_module_names - {"container_runner"}
    assert others <= {name.partition(".")[0] for name in bare}
    assert not modules & {"asyncio", "inspect", "json", "subprocess", "tomllib"}
    assert len(modules) < BUDGET * len(bare)
