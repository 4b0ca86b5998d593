"""What of an agent's work the host would obey or trust: found by name, depth and kind, and nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from container_runner.config.protected import OBEYED_BY, PLACES, PROTECTED, Place
from container_runner.workspace import way_out, work
from container_runner.workspace.findings import MEANINGS, NOT_TAKEN, Entry, Finding, find, leads_out, wanted
from container_runner.workspace.objects import is_landmark

FILE, PROGRAM, LINK, GITLINK = b"100644", b"100755", b"120000", b"160000"


Folder = dict[str, str | tuple[bytes, str]]
"""Paths with content, or with mode and content."""


def tree(folder: Folder) -> dict[bytes, Entry]:
    """A folder as a tree, in which contents are called what they are."""
    given = {path: facts if isinstance(facts, tuple) else (FILE, facts) for path, facts in folder.items()}
    return {path.encode(): Entry(mode, content.encode()) for path, (mode, content) in given.items()}


def found(
    base: Folder,
    result: Folder,
    *,
    protected: tuple[str, ...] = (),
    unprotected: tuple[str, ...] = (),
) -> list[tuple[str, str]]:
    """The findings between two folders."""
    before, after = tree(base), tree(result)
    paths = (path for path in {**before, **after} if before.get(path) != after.get(path))
    changed = {path: (before.get(path), after.get(path)) for path in paths}
    lines = {path: b"%s blob %s\t%s" % (entry.mode, entry.oid, path) for path, entry in after.items()}
    around = {path: entry for path, entry in after.items() if is_landmark(lines[path])}  # no more than it is given,
    seen = {oid: oid for oid in wanted(changed, around)}  # and no more than it asks for
    findings = find(changed, around, seen, protected=protected, unprotected=unprotected)
    return [(finding.kind, finding.path.decode()) for finding in findings]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.name)
def test_each_place_of_the_table_is_found_at_the_top(place: Place) -> None:
    name = place.name.replace("*", "x")

    assert found({}, {name: "new"}) == [(place.kind, name)]
    assert found({name: "old"}, {name: "new"}) == [(place.kind, name)]
    assert found({name: "old"}, {}) == [(place.kind, name)]
    assert found({name: "same"}, {name: "same"}) == []


def test_a_place_stands_for_all_that_is_in_it() -> None:
    assert found({}, {".claude/skills/x/run.sh": "x"}) == [("agent", ".claude/skills/x/run.sh")]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.name)
def test_a_place_counts_in_a_folder_unless_it_is_obeyed_at_the_top_only(place: Place) -> None:
    name = f"a/b/{place.name.replace('*', 'x')}"

    assert found({}, {name: "new"}) == ([] if place.only_top else [(place.kind, name)])


def test_every_kind_of_the_way_out_is_explained() -> None:
    source = Path(way_out.__file__).read_text() + Path(work.__file__).read_text()
    kinds = {*re.findall(r'\.find\("([^"]+)"', source), *work._NO_FILES.values()}

    assert kinds <= {*MEANINGS, *NOT_TAKEN}
    assert len(kinds) > 10


def test_every_kind_says_who_obeys_it() -> None:
    assert {place.kind for place in PLACES} <= {*OBEYED_BY} <= {*MEANINGS}
    assert len({place.name for place in PLACES}) == len(PLACES)
    assert {name for name in PROTECTED if name[:5] != ".git/"} == {place.name for place in PLACES if place.walled}


@pytest.mark.parametrize("name", [".VSCODE/tasks.json", "a/.EnvRC", ".vs\u200dcode/tasks.json", "Agents.MD"])
def test_a_name_that_some_file_systems_take_for_another_counts_as_that_one(name: str) -> None:
    assert [path for _, path in found({}, {name: "new"})] == [name]


@pytest.mark.parametrize(
    "name",
    [
        "src/main.py", "Makefile", "tests/conftest.py", "setup.py", "pyproject.toml", "README.md", ".gitignore",
        ".editorconfig", "vscode/tasks.json", "my.envrc.md", "config", "hooks/post-commit", "objects/ab",
        "x/.github/workflows/a", "docs/AGENTS.md.txt", "mise/main.go", "github/workflows/ci.yml", ".vscoded/x",
        "lib/cargo/config.toml",
    ],
)  # fmt: skip
def test_ordinary_work_is_no_finding(name: str) -> None:
    assert found({}, {name: "new"}) == []
    assert found({name: "old"}, {name: (PROGRAM, "old")}) == []


def test_the_operators_own_names_count_anywhere_and_paths_from_the_top() -> None:
    work = {"deploy.sh": "x", "a/Deploy.sh": "x", "ops/keys/a.pub": "x", "b/ops/keys/a.pub": "x", ".envrc": "x"}

    assert found({}, {**work}, protected=("deploy.sh", "ops/keys/"), unprotected=(".envrc",)) == [
        ("protected", "a/Deploy.sh"),
        ("protected", "deploy.sh"),
        ("protected", "ops/keys/a.pub"),
    ]


@pytest.mark.parametrize(
    ("path", "target", "leads"),
    [
        ("a", "b", False), ("a", "./b/../c", False), ("x/a", "../b", False), ("x/y/a", "../../b", False),
        ("a", "", False), ("a", "/etc/passwd", True), ("a", "/", True), ("a", "..", True), ("x/a", "../../b", True),
        ("a", "b/../../c", True), ("a", ".git/hooks/x", True), ("a", "x/.GIT/config", True), ("a", "a", True),
        ("a", "out/secret", True), ("a", "in/../x", False), ("a", "in/../../../x", True), ("a", "deep/../x", False),
    ],
)  # fmt: skip
def test_where_a_link_leads(path: str, target: str, leads: bool) -> None:
    others = {b"out": b"/victim", b"in": b"q/r", b"deep": b"in"}

    assert leads_out(path.encode(), {**others, path.encode(): target.encode()}) is leads


def test_a_link_that_leads_out_is_found_and_one_that_was_there_is_not() -> None:
    links = {"old": (LINK, "/somewhere"), "new": (LINK, "../outside"), "by": (LINK, "old/x"), "fine": (LINK, "old2")}

    assert found({"old": links["old"]}, {**links}) == [("link", "by"), ("link", "new")]


def test_what_a_link_in_a_place_leads_to_is_the_place() -> None:
    before: Folder = {
        ".husky/pre-commit": (LINK, "../scripts/check"), ".claude": (LINK, "tools/claude"), "scripts/check": "old",
    }  # fmt: skip
    after = {**before, "scripts/check": "new", "tools/claude/settings.json": "new", "scripts/other": "new"}

    assert found(before, after) == [("hook", "scripts/check"), ("agent", "tools/claude/settings.json")]


def test_a_bare_repository_is_found_and_what_git_obeys_in_one_that_was_there() -> None:
    bare: Folder = {
        "x/HEAD": "ref",
        "x/config": "core",
        "x/objects/a": "o",
        "x/refs/h": "r",
    }

    assert found({}, {**bare}) == [("repository", "x/HEAD"), ("repository", "x/config")]
    assert found(bare, {**bare, "x/config": "evil", "x/hooks/post-commit": "evil", "x/objects/b": "o"}) == [
        ("repository", "x/config"),
        ("repository", "x/hooks/post-commit"),
    ]
    assert found({"x/config": "evil"}, {"x/config": "evil", "x/head": "ref"}) == [("repository", "x/head")]
    assert found({}, {"HEAD": "ref", "hooks/post-commit": "evil"}) == [
        ("repository", "HEAD"),
        ("repository", "hooks/post-commit"),
    ]


def test_a_gitlink_is_found() -> None:
    assert found({}, {"vendor/lib": (GITLINK, "a" * 40)}) == [("gitlink", "vendor/lib")]


def test_what_is_installed_is_one_finding_however_much_it_is() -> None:
    work: Folder = {f"app/node_modules/{number}/index.js": "x" for number in range(50)}

    assert found({".venv/bin/python": "x"}, {**work, ".venv/bin/python": "y", "venv.py": "z"}) == [
        ("installed", ".venv"),
        ("installed", "app/node_modules"),
    ]


@pytest.mark.parametrize(
    ("before", "after", "is_found"),
    [
        ({"scripts": {"test": "a"}}, {"scripts": {"test": "b"}, "dependencies": {"x": "1"}}, False),
        ({"scripts": {"test": "a"}}, {"scripts": {"test": "a", "postinstall": "evil"}}, True),
        ({"scripts": {"prepare": "husky"}}, {"scripts": {"prepare": "evil"}}, True),
        ({"scripts": {"prepare": "husky"}}, {"scripts": {"prepare": "husky", "x": "y"}}, False),
        ({}, {"lint-staged": {"*": "evil"}}, True),
        ({}, {"packageManager": "pnpm@9.0.0"}, True),
        (None, {"name": "x", "scripts": {"test": "a"}}, False),
        (None, {"scripts": {"install": "evil"}}, True),
        ({"scripts": {"install": "x"}}, None, True),
        ({}, [], True),
        ({}, {"scripts": "x"}, False),
        ({}, {"scripts": None}, True),
    ],
)
def test_a_package_is_found_if_it_runs_scripts_by_itself(before: object, after: object, is_found: bool) -> None:
    base, result = ({} if given is None else {"a/package.json": json.dumps(given)} for given in (before, after))

    assert found({**base}, {**result}) == ([("scripts", "a/package.json")] if is_found else [])


@pytest.mark.parametrize("content", ["{", "[" * 100_000, "\ud800".encode("utf-8", "surrogatepass").decode("latin-1")])
def test_a_package_that_can_not_be_read_is_found(content: str) -> None:
    assert found({"package.json": "{}"}, {"package.json": content}) == [("scripts", "package.json")]


def test_what_is_too_long_to_look_into_is_found() -> None:
    tree = {b"package.json": Entry(FILE, b"1"), b"way": Entry(LINK, b"2")}

    assert find({path: (None, entry) for path, entry in tree.items()}, tree, {}) == (
        Finding("scripts", b"package.json"),
        Finding("link", b"way"),
    )
