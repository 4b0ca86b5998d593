"""What the documentation shows works: the site builds, links lead somewhere, code runs, files load, commands exist."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import attrs
import jsonschema
import pytest
import yaml

from container_runner import ContainerConfig
from container_runner.cli.app import app
from container_runner.cli.flags import RunFlags
from container_runner.cli.jobs import make_jobs
from container_runner.cli.options import ExecuteFlags
from container_runner.config.fields import Tables
from container_runner.config.tiers import effective
from container_runner.testing import FakeEngine

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")))

TESTED_ELSEWHERE = {ROOT / "docs/how-to/testing.md"}
"""Its Python is a test suite of its own, which tests/testing runs."""

FENCE = re.compile(
    r"^(?P<mark><!-- fragment -->\n)?(?P<indent> *)```(?P<language>\w*)\n(?P<code>.*?)^ *```$", re.MULTILINE | re.DOTALL
)
"""A block of code. `<!-- fragment -->` on the line before it says that it does not run by itself."""


@attrs.frozen
class Block:
    page: Path
    line: int
    language: str
    code: str
    is_fragment: bool

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def file(self) -> str | None:
        """The name of the file that it is the content of, if its first line says so."""
        match = re.match(r"# file: (\S+)\n", self.code)
        return match and match[1]


def blocks(*languages: str) -> list[Block]:
    """The blocks of code of all pages in these languages."""
    return [block for page in PAGES for block in blocks_of(page) if block.language in languages]


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start("code"))
        yield Block(page, line, match["language"], match["code"], match["mark"] is not None)


# The site


def build(folder: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Build the site of a folder with mkdocs.yml and docs/ in it, strictly, and without a network."""
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={site}"]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **nowhere}, check=False, capture_output=True, text=True, timeout=100
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = build(ROOT, folder)
    assert built.returncode == 0, built.stderr
    return folder


def test_the_site_builds_and_has_every_page(site: Path) -> None:
    for page in PAGES[1:]:
        name = page.relative_to(ROOT / "docs").with_suffix("")
        place = site if name == Path("index") else site / name
        assert (place / "index.html").is_file(), page


def test_a_reader_of_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    loaded = re.compile(
        r"""<(?:script|img|iframe|link(?![^>]*rel="(?:canonical|edit)"))[^>]*?(?:src|href)=["']?(https?:)?//"""
    )
    asked = [str(page) for page in site.rglob("*.html") if loaded.search(page.read_text())]
    asked += [str(sheet) for sheet in site.rglob("*.css") if re.search(r"url\(.?https?:|@import", sheet.read_text())]

    assert asked == []


@pytest.mark.parametrize(
    ("page", "text", "told"),
    [
        ("why.md", "[broken](no-such-page.md)", "no-such-page.md"),
        ("why.md", "[broken](tutorial.md#no-such-heading)", "no-such-heading"),
        ("why.md", "![broken](images/no-such.svg)", "no-such.svg"),
        ("not-in-the-nav.md", "# A page that nobody finds", "not-in-the-nav.md"),
        ("reference/api.md", "::: container_runner.NoSuchThing", "NoSuchThing"),
    ],
)
def test_the_build_fails_on(tmp_path: Path, page: str, text: str, told: str) -> None:
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    with (tmp_path / "docs" / page).open("a") as file:
        file.write(f"\n{text}\n")

    built = build(tmp_path, tmp_path / "site")

    assert built.returncode != 0
    assert told in built.stderr


def test_the_build_fails_on_a_page_that_the_nav_has_and_the_folder_has_not(tmp_path: Path) -> None:
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    (tmp_path / "docs/why.md").unlink()

    assert build(tmp_path, tmp_path / "site").returncode != 0


def test_no_page_is_in_the_nav_twice() -> None:
    listed = re.findall(r"\S+\.md$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)

    assert sorted(listed) == sorted({*listed})


def test_the_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", (ROOT / "README.md").read_text())

    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 100


# Code


@pytest.mark.parametrize("block", [block for block in blocks("python") if block.page not in TESTED_ELSEWHERE], ids=str)
def test_python_runs(block: Block, fake_engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if block.is_fragment:
        compile(block.code, str(block), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        return
    for other in blocks_of(block.page):
        if other.file is not None:
            (tmp_path / other.file).write_text(other.code)
    for folder in (tmp_path, tmp_path / "project", tmp_path / "projects" / "one"):  # as the pages call workspaces
        folder.mkdir(parents=True, exist_ok=True)
        if os.getuid() == 0:  # an agent is never root
            os.chown(folder, 1000, 1000)
    monkeypatch.chdir(tmp_path)
    for _ in range(5):
        fake_engine.reply("Done.")

    exec(compile(block.code, str(block), "exec"), {"__name__": "__main__"})


# Files


@pytest.mark.parametrize("block", blocks("toml"), ids=str)
def test_toml_is_a_configuration(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CONTAINER_RUNNER_IMAGE", "my/claude")
    table = tomllib.loads(block.code)
    file = tmp_path / "file.toml"
    file.write_text(block.code)
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    if "job" in table:
        for job in table["job"]:
            if "prompt_file" in job:
                (tmp_path / job["prompt_file"]).write_text("Hello")
        assert list(make_jobs(file, RunFlags(workspace=workspace), ExecuteFlags(), None))
    elif table.keys() & attrs.fields_dict(Tables).keys():
        for agent in ("somebody", *table.get("agents", {})):
            for profile in (None, *table.get("profiles", {})):
                found = effective(agent=agent, workspace=workspace, file=file, profile=profile)
                assert found.config.image
    else:
        assert ContainerConfig.from_mapping({"image": "my/claude", **table}).image


# Commands


def typed(block: Block) -> Iterator[str]:
    """The lines that a reader is to type."""
    lines = block.code.replace("\\\n", "").splitlines()
    if block.language == "console":
        return (line.removeprefix("$ ") for line in lines if line.startswith("$ "))
    return (line for line in lines if line and not line.startswith("#"))


def commands(line: str) -> Iterator[list[str]]:
    """The calls of container-runner in a line for a shell, each as the words after the program's name."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in (*lexer, ";"):
        if set(word) <= set("|&;<>()"):
            while words and re.match(r"[A-Za-z_]\w*=", words[0]):
                words = words[1:]
            if words and Path(words[0]).name == "container-runner":
                yield words[1:]
            words = []
        else:
            words.append(word)


COMMANDS = [
    pytest.param(words, id=f"{block} {' '.join(words)[:60]}")
    for block in blocks("console", "sh", "bash")
    for line in typed(block)
    for words in commands(line)
]


def test_commands_are_found() -> None:
    line = (
        "A=1 B='x y' ./container-runner run 'a | b' --json | jq . && container-runner ps >file; echo container-runner"
    )

    assert list(commands(line)) == [["run", "a | b", "--json"], ["ps"]]
    assert len(COMMANDS) > 20


@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_and_its_flags_exist(words: list[str]) -> None:
    if words == ["--version"]:
        return
    words = ["--prompt=-" if word == "-" else word for word in words]  # as main() does

    command, *_ = app.parse_args(words, exit_on_error=False, print_error=False)

    assert command is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_the_text_exist(page: Path) -> None:
    text = FENCE.sub("", page.read_text())
    named = set(re.findall(r"`container-runner ([a-z-]+(?: [a-z]+)?)\b[^`]*`", text))

    for name in named:
        chain, _, _ = app.parse_commands(name.split())
        assert chain, name


# Recipes


def test_the_kubernetes_job_is_one_and_runs_the_shard_of_its_index(tmp_path: Path) -> None:
    (block,) = (block for block in blocks_of(ROOT / "docs/how-to/shards.md") if block.language == "yaml")
    job = yaml.safe_load(block.code)
    schema = jsonschema.Draft202012Validator(json.loads((ROOT / "tests/data/kubernetes/job-1.29.json").read_text()))
    assert [error.message for error in schema.iter_errors(job)] == []
    assert not schema.is_valid(yaml.safe_load(block.code.replace("backoffLimitPerIndex", "backoffLimitPerShard")))
    (container,) = job["spec"]["template"]["spec"]["containers"]
    number = job["spec"]["completions"]
    variables = {"JOB_COMPLETION_INDEX": str(number - 1), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    # As the kubelet does before there is a shell: $(NAME) is the variable, if there is one.
    words = [
        re.sub(r"\$\(([^)]*)\)", lambda match: variables.get(match[1], match[0]), word)
        for word in (*container["command"], *container["args"])
    ]
    (program := tmp_path / "container-runner").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)

    said = subprocess.run(words, env=variables, check=True, capture_output=True, text=True).stdout.splitlines()

    assert f"--shard={number}/{number}" in said
    assert f"--state-dir=/batch/state/{number - 1}" in said
    app.parse_args(said, exit_on_error=False, print_error=False)
