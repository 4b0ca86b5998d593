"""Who may configure what, and which of them wins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest

from container_runner.config.container import ContainerConfig
from container_runner.config.fields import FIELDS, defaults
from container_runner.config.keys import ELSEWHERE
from container_runner.config.limits import RecordLimits
from container_runner.config.tiers import default_file, effective, remember_built
from container_runner.config.tightening import Setting
from container_runner.errors import ConfigError
from container_runner.options import Agent, ExecuteOptions
from container_runner.quantities import GIB, MIB
from tests.config.places import Place

BOX = [field.name for field in attrs.fields(ContainerConfig)]


# The order of the sources


def test_nobody_said_anything(place: Place) -> None:
    found = place.ask()

    assert tuple(found.settings) == FIELDS
    assert {setting.source for setting in found.settings.values()} == {"default"}
    assert found.agent == {name: getattr(Agent(name="a"), name) for name in found.agent}
    assert found.request == {
        name: getattr(ExecuteOptions(prompt="", agent=Agent(name="a")), name) for name in found.request
    }
    assert found.command is None
    with pytest.raises(ConfigError, match="--image") as caught:
        _ = found.config
    assert str(place.file) in caught.value.next_step


ORDER = """
[defaults]
memory = "1g"
[agents.bot]
memory = "2g"
[agents.other]
memory = "9g"
[profiles.big]
memory = "3g"
"""


@pytest.mark.parametrize(
    ("operator", "more", "memory", "source"),
    [
        ("", {}, 2, "default"),
        ('[defaults]\nmemory = "1g"', {}, 1, "{} [defaults]"),
        (ORDER, {"agent": "nobody"}, 1, "{} [defaults]"),
        (ORDER, {}, 2, "{} [agents.bot]"),
        (ORDER, {"profile": "big"}, 3, "{} [profiles.big]"),
        (ORDER, {"environ": {"CONTAINER_RUNNER_MEMORY": "4g"}}, 4, "environment CONTAINER_RUNNER_MEMORY"),
        (ORDER, {"environ": {"CONTAINER_RUNNER_MEMORY": ""}}, 2, "{} [agents.bot]"),
        (
            ORDER,
            {"profile": "big", "environ": {"CONTAINER_RUNNER_MEMORY": "4g"}, "flags": {"memory": "5g"}},
            5,
            "--memory",
        ),
    ],
)
def test_later_sources_win(place: Place, operator: str, more: dict[str, Any], memory: int, source: str) -> None:
    found = place.ask(operator, **more)

    assert found.settings["memory"] == Setting(memory * GIB, source.format(place.file))


def test_the_workspaces_file_comes_last(place: Place) -> None:
    found = place.ask('[defaults]\nmemory = "1g"', 'memory = "512m"', flags={"memory": "8g"})

    assert found.settings["memory"] == Setting(512 * MIB, str(place.local))


@pytest.mark.parametrize("name", BOX)
def test_one_key_in_a_source_never_resets_another(place: Place, name: str) -> None:
    operator = (
        'image = "i"\nephemeral = false\nnetwork = "none"\nmemory = "512m"\nmax_containers = 1\nread_only = false\n'
    )
    said = {"image", "ephemeral", "network", "memory", "max_containers", "read_only"}

    found = place.ask(f'[defaults]\n{operator}[agents.bot]\npids_limit = 100\nworkspace_mode = "ro"')

    expected = ContainerConfig(
        image="i",
        ephemeral=False,
        network="none",
        memory="512m",
        max_containers=1,
        read_only=False,
        pids_limit=100,
        workspace_mode="ro",
    )
    assert getattr(found.config, name) == getattr(expected, name)
    assert (found.settings[name].source == "default") is (name not in {*said, "pids_limit", "workspace_mode"})


def test_tables_are_merged_by_key_and_lists_are_replaced(place: Place) -> None:
    operator = (
        '[defaults]\nlabels = {a = "1", b = "1"}\nsecrets = ["A"]\n[agents.bot]\nlabels = {b = "2"}\nsecrets = ["B"]'
    )

    found = place.ask(operator, flags={"labels": {"c": "3"}})

    assert found.settings["labels"].value == {"a": "1", "b": "2", "c": "3"}
    assert found.settings["labels"].source == f"{place.file} [defaults], {place.file} [agents.bot], --labels"
    assert found.settings["secrets"] == Setting(("B",), f"{place.file} [agents.bot]")


def test_an_agents_own_fields_stand_in_the_tables_too(place: Place) -> None:
    found = place.ask(
        '[agents.bot]\nmodel = "opus"\nallowed_tools = ["Read"]\ntimeout = "30m"\nidle_timeout = 0\nline_limit = "1m"\n'
        'command = "my-agent"',
        environ={"CONTAINER_RUNNER_MAX_TURNS": "7", "CONTAINER_RUNNER_INCLUDE_PARTIAL_MESSAGES": "yes"},
        flags={"grace": "9"},
    )

    agent = Agent(name="bot", **found.agent)
    request = ExecuteOptions(prompt="x", agent=agent, **found.request)
    assert (agent.model, agent.allowed_tools, agent.max_turns) == ("opus", ("Read",), 7)
    assert (request.timeout, request.idle_timeout, request.line_limit, request.grace) == (1800, None, MIB, 9)
    assert request.include_partial_messages is True
    assert found.command == "my-agent"


def test_the_limits_of_records_come_from_the_operator_and_can_differ_from_agent_to_agent(place: Place) -> None:
    operator = '[defaults]\nrecords_max_age = "7d"\nrecords_max_total = "100m"\n[agents.quiet]\nrecords = false'

    found = place.ask(operator, environ={"CONTAINER_RUNNER_RECORDS_MAX_RUN": "1m"})

    assert found.records == RecordLimits(max_age=7 * 86400, max_total=100 * MIB, max_run=MIB)
    assert found.settings["records_max_age"].source == f"{place.file} [defaults]"
    assert place.ask().records == RecordLimits()
    assert place.ask(operator, agent="quiet").records is False
    assert place.ask(operator, agent="quiet", flags={"records": True}).records


@pytest.mark.parametrize(
    "local",
    ["records = true", "records = false", 'records_max_age = "1s"', 'records_max_total = "1"', 'records_max_run = "1"'],
)
def test_an_agent_can_neither_keep_more_records_nor_fewer(place: Place, local: str) -> None:
    """More would fill the disk, and fewer would hide what it did."""
    refused = place.refusal("", local)

    assert refused.source == str(place.local)
    assert "how you see what it did" in refused.allowed
    assert "--records" in refused.allowed


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("ephemeral", "false", False),
        ("read_only", "0", False),
        ("pids_limit", "64", 64),
        ("cpus", "1.5", 1.5),
        ("cpu_quota", "2000", 2000),
        ("memory", "1073741824", GIB),
        ("time_limit", "2h", 7200),
        ("user", "1000", "1000"),
        ("gpus", "2", "2"),
        ("idle_timeout", "0", None),
        ("timeout", "5m", 300),
        ("records", "no", False),
        ("records_max_age", "12h", 43200),
        ("records_max_total", "1048576", MIB),
    ],
)
def test_text_becomes_what_the_field_holds(place: Place, name: str, text: str, value: object) -> None:
    by_variable = place.ask(environ={f"CONTAINER_RUNNER_{name.upper()}": text})
    by_flag = place.ask(flags={name: text})

    assert by_variable.settings[name].value == by_flag.settings[name].value == value


def test_the_operators_file_need_not_be_there_unless_it_is_named(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("container_runner.config.tiers.default_file", lambda: tmp_path / "nowhere/config.toml")

    assert place.ask(file=None).file == tmp_path / "nowhere/config.toml"
    refused = place.refusal(file=tmp_path / "nowhere/config.toml")
    assert (refused.field, refused.value) == ("--config", f"{tmp_path}/nowhere/config.toml")
    assert "no such file" in refused.message


def test_the_operators_file_has_a_place_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))

    assert default_file().relative_to(tmp_path).parts[-2:] == ("container-runner", "config.toml")


def test_an_operators_file_in_the_workspace_is_refused_because_the_agent_can_write_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = place.workspace / "mine.toml"
    inside.write_text("")
    link = place.folder / "link.toml"
    link.symlink_to(inside)

    for file in (inside, link):
        assert place.refusal(file=file).field == "--config"
    monkeypatch.chdir(place.workspace)
    for typed in ("mine.toml", "../nowhere.toml"):
        refused = place.refusal(file=Path(typed))
        assert (refused.field, refused.value) == ("--config", typed)


# Refusals


@pytest.mark.parametrize(
    ("operator", "more", "field", "source", "says"),
    [
        ('[defaults]\nmemory = "lots"', {}, "memory", "{} [defaults]", "size"),
        ("[agents.bot]\npids_limit = 1", {}, "pids_limit", "{} [agents.bot]", "16"),
        ('[defaults]\npids_limit = "100"', {}, "pids_limit", "{} [defaults]", "whole number"),
        ('[defaults]\nvolumes = ["/a:/b", "/a:/proc"]', {}, "volumes[1]", "{} [defaults]", "/proc"),
        ("[defaults]\nmax_turns = 0", {}, "agent.max_turns", "{} [defaults]", "from 1"),
        ("[defaults]\ntimeout = true", {}, "timeout", "{} [defaults]", "seconds"),
        ("[defaults]\ninclude_partial_messages = 1", {}, "include_partial_messages", "{} [defaults]", "true"),
        ("[defaults]\nmemry = 1", {}, "memry", "{} [defaults]", "perhaps memory"),
        ("[agents.other]\nmemry = 1", {}, "memry", "{} [agents.other]", "perhaps memory"),
        ('memory = "1g"', {}, "memory", "{}", "below [defaults]"),
        ("[default]\n", {}, "default", "{}", "perhaps defaults"),
        ("agents = 1", {}, "agents", "{}", "a table"),
        ("[agents]\nbot = 1", {}, "agents.bot", "{}", "a table"),
        ("defaults = []", {}, "defaults", "{}", "a table"),
        ("no toml", {}, "syntax", "{}", "TOML"),
        ("[profiles.a]\n[profiles.b]", {"profile": "c"}, "--profile", None, "a, b"),
        ("", {"profile": "c"}, "--profile", None, "none"),
        ("", {"environ": {"CONTAINER_RUNNER_PIDS_LIMIT": "x"}}, "pids_limit", "environment {v}PIDS_LIMIT", "16"),
        (
            "",
            {"environ": {"CONTAINER_RUNNER_MEMRY": "x"}},
            "CONTAINER_RUNNER_MEMRY",
            "environment",
            "perhaps CONTAINER_RUNNER_MEMORY",
        ),
        ("", {"environ": {"CONTAINER_RUNNER_VOLUMES": "x"}}, "CONTAINER_RUNNER_VOLUMES", "environment", "--volumes"),
        ("", {"flags": {"cpus": "many"}}, "cpus", "--cpus", "0.01"),
        ("[defaults]\ncpus = 1", {"flags": {"cpu_quota": "2000"}}, "cpus", "{} [defaults]", "either"),
        ('[defaults]\nnetwork = "host"', {"flags": {"ports": ["80"]}}, "ports", "--ports", "none"),
    ],
)
def test_an_error_names_the_source_and_what_is_allowed(
    place: Place, operator: str, more: dict[str, Any], field: str, source: str | None, says: str
) -> None:
    refused = place.refusal(operator, **more)

    assert refused.field == field
    assert refused.source == (source and source.format(place.file, v="CONTAINER_RUNNER_"))
    assert says in refused.allowed


def test_the_marker_of_a_container_of_ours_is_no_setting(place: Place) -> None:
    assert place.ask(environ={"CONTAINER_RUNNER_RUN": "0123", "OTHER": "x"}) == place.ask()


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("enabled", "always"),
        ("base_image", "image"),
        ("host_config", "extra_args"),
        ("maxContainers", "max_containers, as"),
        ("workspaceMode", "workspace_mode, as"),
        ("cpu-shares", "cpu_shares, as"),
        ("denied_tools", "disallowed_tools"),
        ("working_directory", "--workspace"),
        ("mem_limit", "memory"),
        ("systemPromptAppend", "append_system_prompt"),
    ],
)
def test_a_key_of_another_tool_is_told_what_it_is_called_here(place: Place, key: str, says: str) -> None:
    operator = place.refusal(f'[defaults]\n"{key}" = "x"')
    local = place.refusal("", f'"{key}" = "x"')

    for refused in (operator, local):
        assert says in refused.allowed
        assert refused.field == key


def test_a_docker_table_is_told_where_its_keys_go(place: Place) -> None:
    for operator in ("[docker]\nenabled = true", "[defaults.docker]\nenabled = true"):
        assert "[defaults]" in place.refusal(operator).allowed


def test_what_keys_are_called_elsewhere_is_called_otherwise_here() -> None:
    assert not ELSEWHERE.keys() & {*FIELDS}
    for words in ELSEWHERE.values():
        first = words.split()[0].rstrip(",:")
        assert first in {*FIELDS, "its", "nothing", "nothing:", "the"} or first.startswith("--"), words


def test_every_default_is_accepted_as_it_is(place: Place) -> None:
    found = place.ask('[defaults]\nimage = "i"')

    assert found.config == ContainerConfig(image="i")
    assert defaults()["memory"] == 2 * GIB


def test_a_key_that_is_nearly_one_gets_that_one_and_not_all_of_them(place: Place) -> None:
    refused = place.refusal("[defaults]\nmemry = 1\n")

    assert refused.allowed == "perhaps memory; `container-runner config` lists all keys"


def test_every_source_wins_over_the_image_that_was_built_last(place: Place) -> None:
    remember_built("mine:1", place.file)

    assert place.ask().settings["image"] == Setting("mine:1", str(place.folder / "built-image"))
    assert place.ask('[defaults]\nimage = "other"').config.image == "other"
    assert place.ask(flags={"image": "third"}).config.image == "third"


def test_an_image_that_is_named_in_the_workspace_is_no_default(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(place.workspace))
    remember_built("evil")

    assert place.ask(file=None).settings["image"].value is None
    assert effective(agent="bot", workspace=place.folder / "else", environ={}).settings["image"].value == "evil"


def test_the_image_that_was_built_with_an_agent_is_for_its_runs(place: Place) -> None:
    remember_built("mine:claude", place.file)
    remember_built("mine:codex", place.file, kind="codex")

    assert place.ask().config.image == "mine:claude"
    assert place.ask(flags={"agent_kind": "codex"}).config.image == "mine:codex"
    assert place.ask('[agents.bot]\nagent_kind = "codex"').config.image == "mine:codex"
    assert place.ask(flags={"agent_kind": "qwen"}).settings["image"].value is None


@pytest.mark.parametrize("key", ["agent_kind = 'codex'", "base_url = 'https://evil.example'"])
def test_the_workspace_does_not_say_which_agent_works_or_where_its_model_is(place: Place, key: str) -> None:
    (place.workspace / ".container-runner.toml").write_text(key)

    with pytest.raises(ConfigError, match=key.split()[0]):
        place.ask()
