"""`config`, `config schema` and `init`, and what the sources do to a run."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import jsonschema
import pytest

from container_runner.cli.config import as_toml, json_schema
from container_runner.cli.init import EXAMPLES
from container_runner.config.container import ContainerConfig
from container_runner.config.fields import FIELDS
from container_runner.config.tiers import Effective, effective
from container_runner.config.tightening import TIGHTENING
from container_runner.testing import FakeEngine
from tests.small_engine import Done, call


@attrs.frozen
class Home:
    """A home and a workspace of the test's own, and the command."""

    folder: Path
    run: Callable[..., Done]

    @property
    def file(self) -> Path:
        return self.folder / "xdg/container-runner/config.toml"

    @property
    def workspace(self) -> Path:
        return self.folder / "work"

    @property
    def local(self) -> Path:
        return self.workspace / ".container-runner.toml"

    def operator(self, text: str) -> None:
        self.file.parent.mkdir(parents=True)
        self.file.write_text(text)

    def settings(self, *words: str) -> dict[str, Any]:
        done = self.run("config", "--json", *words)
        assert done.code == 0, done.err
        settings: dict[str, Any] = json.loads(done.out)["settings"]
        return settings


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Home:
    for name in ("ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN", "CONTAINER_RUNNER_ENGINE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("work", "home"):
        (tmp_path / name).mkdir()
    (tmp_path / "work").chmod(0o777)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr("platformdirs.user_config_path", lambda name, **_: tmp_path / "xdg" / name)

    return Home(tmp_path, partial(call, capfdbinary))


# config


def test_every_value_is_told_with_its_source(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.operator('[defaults]\nimage = "i"\n[agents.bot]\nmemory = "1g"\n[profiles.ci]\npids_limit = 99\n')
    home.local.write_text('time_limit = "1h"\n')
    monkeypatch.setenv("CONTAINER_RUNNER_CPU_SHARES", "100")

    done = home.run("config", "--agent=bot", "--profile=ci", "--network=none")

    lines = [line.split("  # ") for line in done.out.splitlines()]
    told = {line[0].strip(): line[1] for line in lines}
    assert (done.code, done.err) == (0, "")
    assert told['image = "i"'] == f"{home.file} [defaults]"
    assert told['memory = "1g"'] == f"{home.file} [agents.bot]"
    assert told["pids_limit = 99"] == f"{home.file} [profiles.ci]"
    assert told["cpu_shares = 100"] == "environment CONTAINER_RUNNER_CPU_SHARES"
    assert told['network = "none"'] == "--network"
    assert told["time_limit = 3600"] == str(home.local)
    assert told["ephemeral = true"] == told["# cpus: none"] == "default"
    assert len(told) == len(FIELDS)


def test_the_limits_of_records_are_shown_as_a_person_writes_them(home: Home) -> None:
    home.operator('[defaults]\nrecords_max_total = "500m"\n')

    lines = [line.split("  # ") for line in home.run("config", "--no-records").out.splitlines()]

    told = {line[0].strip(): line[1] for line in lines}
    assert told["records = false"] == "--records"
    assert told['records_max_age = "30d"'] == told['records_max_run = "256m"'] == "default"
    assert told['records_max_total = "500m"'] == f"{home.file} [defaults]"


def test_what_is_printed_is_toml_that_means_the_same(home: Home) -> None:
    home.operator(
        '[defaults]\nimage = "i"\nvolumes = ["/a:/b:ro", {source = "/a:1", target = "/c"}]\n'
        'ports = ["[::1]:8080:80/udp", "81"]\ntmpfs = ["/cache:size=1g,exec,mode=700"]\nlabels = {a = "1"}\n'
        'cpus = 0.5\nshm_size = 1000\ntime_limit = 90\nsystem_prompt = "two\\nlines \\u202e"\nread_only = false\n'
    )

    printed = home.run("config").out
    again = home.folder / "again.toml"
    again.write_text(f"[defaults]\n{printed}")

    def values(file: Path) -> dict[str, Any]:
        found: Effective = effective(agent="a", workspace=home.workspace, environ={}, file=file)
        return {name: setting.value for name, setting in found.settings.items()}

    assert values(again) == values(home.file)
    assert "\u202e" not in printed


def test_secret_values_are_not_printed(home: Home) -> None:
    home.operator(
        '[defaults]\nenv = {TOKEN = "hunter2"}\nmcp_servers = {s = {command = "x", env = {KEY = "hunter2"}}}\n'
        'extra_args = ["--env=OTHER=hunter2", "-eMORE=hunter2"]\n'
    )

    for words in (["config"], ["config", "--json"]):
        out = home.run(*words).out
        assert "TOKEN" in out
        assert "hunter2" not in out


def test_json_has_sizes_in_bytes_and_the_file(home: Home) -> None:
    settings = home.settings("--memory=1g", "--volume=/a:/b")

    assert settings["memory"] == {"value": 2**30, "source": "--memory"}
    assert settings["volumes"]["value"] == [{"source": "/a", "target": "/b", "read_only": False}]
    assert settings["image"] == {"value": None, "source": "default"}
    assert json.loads(home.run("config", "--json").out)["file"] == str(home.file)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--memory=lots"], ["--memory", "memory", "size"]),
        (["--config=nowhere.toml"], ["--config", "outside"]),
        (["--config=/nowhere.toml"], ["--config /nowhere.toml: no such file or directory."]),
        (["--profile=ci"], ["--profile", "there are none"]),
        (["--memry=1g"], ["--memory"]),
    ],
)
def test_what_is_refused_exits_with_2_and_names_it(home: Home, words: list[str], says: list[str]) -> None:
    done = home.run("config", *words)

    assert (done.code, done.out if words != ["--memry=1g"] else "") == (2, "")
    for word in says:
        assert word in done.out + done.err


def test_a_table_that_is_none_of_ours_is_named_with_its_line(home: Home) -> None:
    home.operator('[agents.a]\nmodel = "opus"\n\n[default]\nimage = "i"\n')

    assert f"{home.file}:4: default is no key here: perhaps defaults" in home.run("config").err


@pytest.mark.usefixtures("mounted")
def test_a_run_obeys_all_sources(home: Home, fake_engine: FakeEngine) -> None:
    home.operator('[defaults]\nimage = "i"\nmodel = "opus"\ncommand = "my-agent"\nmemory = "1g"\n')
    home.local.write_text('network = "none"\n')

    done = home.run("argv", "--json", "Do it.", "--pids-limit=99", "--engine=docker")

    assert done.code == 0, done.err
    (run,) = json.loads(done.out)
    assert {"--memory=1073741824", "--network=none", "--pids-limit=99"} <= {*run}
    assert run[-1] == "my-agent"


def test_a_run_is_refused_for_what_its_workspace_says(home: Home) -> None:
    home.local.write_text('extra_args = ["--privileged"]\n')

    done = home.run("argv", "Do it.", "--image=i")

    assert done.code == 2
    assert str(home.local) in done.err
    assert str(home.file) in done.err
    assert "--extra-args" in done.err


def test_without_any_image_it_is_told_where_to_name_one(home: Home) -> None:
    done = home.run("argv", "Do it.")

    assert done.code == 2
    assert "--image" in done.err
    assert str(home.file) in done.err


# config schema


def test_the_schema_is_one_and_describes_every_field(home: Home) -> None:
    schema = json.loads(home.run("config", "schema").out)
    local = json.loads(home.run("config", "schema", "--workspace").out)

    for found in (schema, local):
        jsonschema.Draft202012Validator.check_schema(found)
    table = schema["$defs"]["table"]["properties"]
    assert list(table) == [*FIELDS]
    assert {*local["properties"]} == {*TIGHTENING, "labels", "tmpfs"}
    for name, field in {**table, **local["properties"]}.items():
        assert field["description"], name


GOOD = [
    {},
    {"defaults": {"image": "i", "memory": "2g", "cpus": 1.5, "time_limit": "1h"}},
    {"agents": {"bot": {"memory": 1024**3, "volumes": ["/a:/b", {"source": "/a", "target": "/c", "read_only": True}]}}},
    {"profiles": {"ci": {"ports": ["80", {"container_port": 80, "host_port": 81}], "tmpfs": [{"target": "/x"}]}}},
    {"defaults": {"unprotected": [".git/hooks"], "labels": {"a": "1"}, "env": {"A": "1"}, "timeout": "30m"}},
]
BAD = [
    {"memory": "2g"},
    {"defaults": {"memry": "2g"}},
    {"defaults": {"memory": "lots"}},
    {"defaults": {"ephemeral": "yes"}},
    {"defaults": {"workspace_mode": "rx"}},
    {"defaults": {"volumes": "/a:/b"}},
    {"defaults": {"volumes": [{"source": "/a"}]}},
    {"defaults": {"volumes": [{"source": "/a", "target": "/b", "mode": "ro"}]}},
    {"defaults": {"env": {"A": 1}}},
    {"defaults": {"unprotected": ["src"]}},
    {"agents": {"bot": 1}},
]


@pytest.mark.parametrize("value", GOOD, ids=json.dumps)
def test_the_schema_accepts_what_we_accept(value: Any, home: Home) -> None:
    jsonschema.validate(value, json_schema())


@pytest.mark.parametrize("value", BAD, ids=json.dumps)
def test_the_schema_refuses_what_we_refuse(value: Any) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(value, json_schema())


def test_the_defaults_in_the_schema_obey_it() -> None:
    for name, field in json_schema()["$defs"]["table"]["properties"].items():
        if "default" in field:
            jsonschema.validate(field["default"], field)
            assert field["default"] is not None, name


# init


def uncommented(text: str) -> list[str]:
    """Every line that sets a field, whether behind a # or not."""
    lines = (line.removeprefix("# ") for line in text.splitlines())
    return [line for line in lines if line.partition(" = ")[0] in FIELDS]


def test_init_explains_every_field_and_sets_what_is_recommended(home: Home) -> None:
    done = home.run("init")

    text = home.file.read_text()
    assert (done.code, done.err) == (0, "")
    assert str(home.file) in done.out
    assert tomllib.loads(text) == {"defaults": {"network": "gateway"}}
    assert {line.partition(" = ")[0] for line in uncommented(text)} == {*FIELDS}
    assert home.file.stat().st_mode & 0o777 == 0o600
    assert [name for name, setting in home.settings().items() if setting["source"] != "default"] == ["network"]


def test_each_line_of_it_works_when_the_mark_is_removed(home: Home) -> None:
    home.run("init")
    schema = jsonschema.Draft202012Validator(json_schema())

    for line in uncommented(home.file.read_text()):
        text = f"[defaults]\n{line}\n"
        home.file.write_text(text)
        schema.validate(tomllib.loads(text))
        name = line.partition(" = ")[0]
        assert home.settings()[name]["source"] == f"{home.file} [defaults]"


def test_init_can_name_the_image(home: Home) -> None:
    assert home.run("init", "--image=my/claude").code == 0

    assert home.settings()["image"] == {"value": "my/claude", "source": f"{home.file} [defaults]"}
    assert home.run("init", "--image=--x", "--force").code == 2


def test_init_does_not_overwrite_unless_it_is_told_to(home: Home) -> None:
    home.operator("mine")

    done = home.run("init")
    assert (done.code, home.file.read_text()) == (2, "mine")
    assert done.err == f"container-runner: {home.file} is there already; --force replaces it.\n"
    assert home.run("init", "--force").code == 0
    assert "[defaults]" in home.file.read_text()
    assert [path.name for path in home.file.parent.iterdir()] == ["config.toml"]


def test_init_writes_where_it_is_told_to(home: Home) -> None:
    done = home.run("init", f"--config={home.folder}/deep/mine.toml", "--json")

    assert json.loads(done.out) == {"path": f"{home.folder}/deep/mine.toml"}
    assert (home.folder / "deep/mine.toml").is_file()
    assert not home.file.exists()


def test_init_for_a_workspace_has_only_what_may_stand_there(home: Home) -> None:
    done = home.run("init", "--workspace=.")

    assert done.code == 0
    text = home.local.read_text()
    names = {line.partition(" = ")[0] for line in uncommented(text)}
    assert tomllib.loads(text) == {}
    assert names == {*TIGHTENING, "labels", "tmpfs"}
    assert home.run("config").code == 0
    assert home.run("init", "--workspace=.", "--image=i").code == 2
    nowhere = home.run("init", "--workspace=nowhere")
    assert (nowhere.code, "a folder that exists" in nowhere.err) == (2, True)


def test_init_replaces_a_link_and_does_not_follow_it(home: Home) -> None:
    """The agent may have put one there, in the hope that we write elsewhere."""
    target = home.folder / "precious"
    target.write_text("mine")
    home.local.symlink_to(target)

    assert home.run("init", "--workspace=.").code == 2
    assert home.run("init", "--workspace=.", "--force").code == 0

    assert target.read_text() == "mine"
    assert home.local.is_file()
    assert not home.local.is_symlink()


def test_a_file_that_can_not_be_written_is_told(home: Home) -> None:
    (home.folder / "file").touch()

    done = home.run("init", f"--config={home.folder}/file/config.toml")

    assert done.code == 5
    assert f"{home.folder}/file" in done.err


def test_there_is_an_example_for_each_field_without_a_default() -> None:
    for name, text in EXAMPLES.items():
        assert name in FIELDS
        assert tomllib.loads(f"x = {text}")
    assert as_toml("memory", ContainerConfig(image="i").memory) == '"2g"'
