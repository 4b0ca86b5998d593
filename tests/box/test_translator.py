"""Paths of this machine and in the container, both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from container_runner.box.translator import Place, Translator
from container_runner.config.container import ContainerConfig
from container_runner.config.values import Mount
from container_runner.errors import ConfigError
from container_runner.options import Agent, ExecuteOptions
from container_runner.stream.messages import AssistantMessage, TextBlock, ToolUseBlock, UserMessage

FIELDS: dict[str, Any] = {"image": "i"}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("project/src", "data", "lib", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "project/src/a.py").touch()
    (tmp_path / "elsewhere/x.md").touch()
    (tmp_path / "link").symlink_to("project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path


def translator(place: Path, agent: dict[str, Any] | None = None, **config: Any) -> Translator:
    return Translator.of(
        Agent(**{"name": "bot", "workspace": place / "project", **(agent or {})}), ContainerConfig(**FIELDS, **config)
    )


def test_a_path_of_the_workspace_goes_in_and_comes_out(place: Path) -> None:
    paths = translator(place)

    assert paths.to_container(place / "project/src/a.py") == "/workspace/src/a.py"
    assert paths.to_container("src/../src/a.py") == "/workspace/src/a.py"
    assert paths.to_container(place / "link/src") == "/workspace/src"
    assert paths.to_container(place / "project") == "/workspace"
    assert paths.to_container(place / "project-not") is None
    assert paths.to_host("/workspace/src/a.py") == f"{place}/project/src/a.py"
    assert paths.to_host("/workspace/../etc") is None
    assert paths.to_host("/workspace2") is None
    assert paths.to_host("/container-runner/home/x") is None


def test_what_is_mounted_over_a_place_hides_it_both_ways(place: Path) -> None:
    paths = translator(place, volumes=[Mount(f"{place}/data", "/workspace/data")], tmpfs=["/workspace/node_modules"])

    assert paths.to_container(place / "data/x") == "/workspace/data/x"
    assert paths.to_container(place / "project/data/x") is None
    assert paths.to_host("/workspace/data/x") == f"{place}/data/x"
    assert paths.to_container(place / "project/node_modules/x") is None
    assert paths.to_host("/workspace/node_modules/x") is None


def test_a_workspace_at_its_own_place_is_the_same_on_both_sides(place: Path) -> None:
    paths = translator(place, workspace_target="same")

    assert paths.to_container("src/a.py") == paths.to_host(f"{place}/project/src/a.py") == f"{place}/project/src/a.py"
    assert paths.to_host("/workspace/x") is None


def test_more_folders_have_the_same_path(place: Path) -> None:
    paths = translator(place, {"add_dirs": [place / "lib", f"{place}/data:rw", place / "project/src"]})

    assert paths.to_container(place / "lib/x") == f"{place}/lib/x"
    assert paths.to_container(place / "data") == f"{place}/data"
    assert paths.to_container(place / "project/src") == "/workspace/src"


@given(st.lists(st.sampled_from("abc"), max_size=4), st.permutations(["", "/a", "/a/b"]))
def test_what_goes_in_comes_out(parts: list[str], hosts: list[str]) -> None:
    places = tuple(Place(f"/host{host}", f"/in/{index}") for index, host in enumerate(hosts))
    paths = Translator(places)
    path = "/".join(["/host", *parts])

    inside = paths.to_container(path)

    assert inside is not None
    assert paths.to_host(inside) == path


def options(place: Path, prompt: str = "p", **agent: Any) -> ExecuteOptions:
    return ExecuteOptions(prompt=prompt, agent=Agent(name="bot", workspace=place / "project", **agent))


def test_the_options_of_a_request_are_those_of_the_container(place: Path) -> None:
    given = options(
        place,
        plugin_dirs=["src", "/workspace/plugin"],
        add_dirs=["src", f"{place}/lib:rw"],
        mcp_servers={
            "db": {
                "command": f"{place}/project/src/a.py",
                "args": ["--root", f"{place}/project", f"--data={place}/lib/d", "/usr/bin/env", "plain", "/", 3],
                "cwd": f"{place}/project/src",
                "env": {"TOKEN": "${TOKEN}"},
            },
            "web": {"type": "http", "url": "https://example.invalid/x"},
        },
    )
    paths = translator(place, {"add_dirs": given.agent.add_dirs})

    agent = paths.options(given).agent

    assert agent.workspace == "/workspace"
    assert agent.plugin_dirs == ("/workspace/src", "/workspace/plugin")
    assert agent.add_dirs == ("/workspace/src", f"{place}/lib")
    assert agent.mcp_servers["db"] == {
        "command": "/workspace/src/a.py",
        "args": ["--root", "/workspace", f"--data={place}/lib/d", "/usr/bin/env", "plain", "/", 3],
        "cwd": "/workspace/src",
        "env": {"TOKEN": "${TOKEN}"},
    }
    assert agent.mcp_servers["web"] == given.agent.mcp_servers["web"]
    assert attrs.evolve(paths.options(given), agent=given.agent) == given


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"plugin_dirs": ["{}/elsewhere"]}, "agent.plugin_dirs[0]"),
        ({"plugin_dirs": ["/opt/in-the-image"]}, "agent.plugin_dirs[0]"),
        ({"mcp_servers": {"db": {"command": "{}/elsewhere/x.md"}}}, "agent.mcp_servers.db"),
        ({"mcp_servers": {"db": {"command": "x", "args": ["--file={}/elsewhere/x.md"]}}}, "agent.mcp_servers.db"),
        ({"prompt": "read @{}/elsewhere/x.md."}, "prompt"),
    ],
)
def test_a_path_that_the_container_has_not_is_refused_by_the_fields_name(
    place: Path, fields: dict[str, Any], field: str
) -> None:
    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: filled(item) for key, item in value.items()}
        return [filled(item) for item in value] if isinstance(value, list) else value.replace("{}", str(place))

    with pytest.raises(ConfigError) as caught:
        translator(place).options(options(place, **filled(fields)), mentions=True)

    assert caught.value.field == field
    assert "the container has no such path" in caught.value.message
    assert "--add-dir=" in caught.value.message


@pytest.mark.parametrize(
    ("prompt", "inside"),
    [
        ("look at @{}/project/src/a.py, then", "look at @/workspace/src/a.py, then"),
        ('@"{}/project/src/a.py" first', '@"/workspace/src/a.py" first'),
        ("@{}/project", "@/workspace"),
        ("@src/a.py me@/x @/etc/hosts @/no/such.py @dataclass @~nobody", None),
        ("look at {}/project/src/a.py", None),
    ],
)
def test_files_that_a_prompt_attaches(place: Path, prompt: str, inside: str | None) -> None:
    prompt = prompt.replace("{}", str(place))
    given = options(place, prompt)

    assert translator(place).options(given, mentions=True).prompt == (prompt if inside is None else inside)
    assert translator(place).options(given).prompt == prompt


def test_people_are_shown_the_paths_of_this_machine(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def call(**fields: Any) -> AssistantMessage:
        return AssistantMessage(content=[TextBlock("/workspace/x"), ToolUseBlock("t", "Edit", fields)], model="m")

    def shown(**fields: Any) -> Any:
        said, edit = translator(place).shown(call(**fields)).content
        assert said == TextBlock("/workspace/x")
        assert isinstance(edit, ToolUseBlock)
        return edit.input

    assert shown(file_path="/workspace/src/a.py", old="/workspace") == {"file_path": "src/a.py", "old": "/workspace"}
    monkeypatch.chdir(place)
    assert shown(path="/workspace/src")["path"] == "project/src"
    for folder in ("/", place / "project/src"):
        monkeypatch.chdir(folder)
        assert shown(path="/workspace/b.py")["path"] == f"{place}/project/b.py"
    untouched = call(command="cat /workspace/x", file_path="/etc/hosts", path=3)
    assert translator(place).shown(untouched) is untouched
    other = UserMessage(content=[TextBlock("x")])
    assert translator(place).shown(other) is other
