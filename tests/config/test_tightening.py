"""A workspace's own file may tighten the box and nothing else, whatever stands in it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from container_runner.config.container import ContainerConfig
from container_runner.config.fields import FIELDS
from container_runner.config.tiers import Effective
from container_runner.config.tightening import LABEL_COUNT, TIGHTENING, TMPFS_COUNT, TMPFS_PLACES
from container_runner.config.values import Mount, PortBinding, Tmpfs
from container_runner.quantities import GIB, MIB
from tests.config.places import Place

BOX = [field.name for field in attrs.fields(ContainerConfig)]


@pytest.mark.parametrize(
    ("operator", "local", "expected"),
    [
        ("", 'memory = "1g"', {"memory": GIB}),
        ("", "cpu_shares = 2\npids_limit = 16\nmax_containers = 1", {"cpu_shares": 2, "pids_limit": 16}),
        ("", "cpus = 0.5", {"cpus": 0.5}),
        ("cpus = 2", "cpus = 2", {"cpus": 2}),
        ("", "cpu_quota = 5000\ncpu_period = 100_000", {"cpu_quota": 5000}),
        ("", 'network = "none"', {"network": "none"}),
        ('network = "host"', 'network = "bridge"', {"network": "bridge"}),
        ('network = "mine"', 'network = "mine"', {"network": "mine"}),
        ("", 'workspace_mode = "ro"', {"workspace_mode": "ro"}),
        ("", 'workspace_mode = "carried"', {"workspace_mode": "carried"}),
        ('workspace_mode = "carried"', 'workspace_mode = "ro"', {"workspace_mode": "ro"}),
        ("", 'carry = "stream"', {"carry": "stream"}),
        ("history = 5", "history = 4", {"history": 4}),
        ("ephemeral = false\nread_only = false", "ephemeral = true\nread_only = true", {"ephemeral": True}),
        ('pull = "always"', 'pull = "never"', {"pull": "never"}),
        ("", 'credentials = "none"', {"credentials": "none"}),
        ('secrets = ["A", "B"]', 'secrets = ["B"]', {"secrets": ("B",)}),
        ('ports = ["80", "81"]', 'ports = ["81"]', {"ports": (PortBinding(81, 81),)}),
        ('volumes = ["/a:/b"]', 'volumes = ["/a:/b:ro"]', {"volumes": (Mount("/a", "/b", True),)}),
        ('volumes = ["/a:/b"]', "volumes = []", {"volumes": ()}),
        ('unprotected = [".envrc"]', "unprotected = []", {"unprotected": ()}),
        ('protected = ["a", "b"]', 'protected = ["c", "a"]', {"protected": ("a", "b", "c")}),
        ("", 'shm_size = "64m"', {"shm_size": 64 * MIB}),
        ("", 'time_limit = "1h"', {"time_limit": 3600}),
        ('labels = {a = "1"}', 'labels = {b = "2"}', {"labels": {"a": "1", "b": "2"}}),
        ('tmpfs = ["/x:exec"]', 'tmpfs = ["/cache"]', {"tmpfs": (Tmpfs("/x", executable=True), Tmpfs("/cache"))}),
        ("", "", {}),
    ],
)
def test_a_workspace_may_tighten(place: Place, operator: str, local: str, expected: dict[str, Any]) -> None:
    found = place.ask(f'[defaults]\nimage = "i"\n{operator}', local)

    for name, value in expected.items():
        assert getattr(found.config, name) == value
        assert found.settings[name].source == str(place.local)


@pytest.mark.parametrize(
    ("operator", "local"),
    [
        ("", 'memory = "2049m"'),
        ('memory = "512m"', 'memory = "513m"'),
        ("", "cpu_shares = 513"),
        ("", "pids_limit = 513"),
        ("", "max_containers = 6"),
        ("cpus = 1", "cpus = 1.1"),
        ("cpu_quota = 5000", "cpu_quota = 5001"),
        ("cpu_quota = 5000", "cpu_period = 99_999"),
        ("", 'network = "host"'),
        ('network = "none"', 'network = "bridge"'),
        ("", 'network = "mine"'),
        ('network = "mine"', 'network = "gateway"'),
        ('network = "gateway"', 'network = "bridge"'),
        ('network = "gateway"\nallow_hosts = ["a.test"]', 'allow_hosts = ["b.test"]'),
        ('network = "gateway"', 'allow_addresses = ["10.0.0.0/8"]'),
        ('inject = ["a.test x KEY"]', 'inject = ["a.test x OTHER"]'),
        ('workspace_mode = "ro"', 'workspace_mode = "rw"'),
        ('workspace_mode = "ro"', 'workspace_mode = "carried"'),
        ('workspace_mode = "carried"', 'workspace_mode = "rw"'),
        ("", 'carry = "overlay"'),
        ('carry = "stream"', 'carry = "auto"'),
        ("", 'carry_ignored = [".env"]'),
        ("history = 5", "history = 6"),
        ("history = 5", 'history = "all"'),
        ("", "ephemeral = false"),
        ("", "read_only = false"),
        ("", 'pull = "missing"'),
        ("", 'credentials = "file"'),
        ('credentials = "none"', 'credentials = "auto"'),
        ('secrets = ["A"]', 'secrets = ["B"]'),
        ("", 'ports = ["80"]'),
        ('ports = ["80"]', 'ports = ["0.0.0.0:80:80"]'),
        ("", 'volumes = ["/a:/b:ro"]'),
        ('volumes = ["/a:/b:ro"]', 'volumes = ["/a:/b"]'),
        ('volumes = ["/a:/b"]', 'volumes = ["/a:/c"]'),
        ("", 'unprotected = [".envrc"]'),
        ("", 'shm_size = "65m"'),
        ("", 'add_host = ["x:host-gateway"]'),
        ("", 'devices = ["/dev/fuse"]'),
        ("", 'time_limit = "2d"'),
        ("", "pool = 1"),
    ],
)
def test_a_workspace_may_not_loosen(place: Place, operator: str, local: str) -> None:
    name = local.partition(" ")[0]

    refused = place.refusal(f"[defaults]\n{operator}", local)

    assert refused.field == name
    assert refused.source == str(place.local)
    assert "tighten" in refused.allowed
    assert f"--{name.replace('_', '-')}" in refused.allowed
    assert str(place.file) in refused.allowed


VALUES: Mapping[str, str] = {
    "image": '"other"',
    "engine": '"/tmp/evil"',
    "user": '"root"',
    "env": '{ TOKEN = "hunter2" }',
    "ulimits": '["nofile=1:1"]',
    "gpus": '"all"',
    "extra_args": '["--privileged=hunter2"]',
    "command": '"evil"',
    "model": '"x"',
    "allowed_tools": '["Bash"]',
    "mcp_servers": '{ x = { env = { TOKEN = "hunter2" } } }',
    "host_mcp_servers": '{ x = { command = "x", env = { TOKEN = "hunter2" } } }',
    "args": '["--token=hunter2"]',
    "timeout": "1",
    "grace": "1",
}


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in {*TIGHTENING, "labels", "tmpfs"}])
def test_everything_else_is_refused_there_with_the_reason_and_the_place(place: Place, name: str) -> None:
    refused = place.refusal("", f"{name} = {VALUES.get(name, '1')}")

    assert refused.field == name
    assert refused.source == str(place.local)
    assert refused.allowed.startswith("nothing here, because the agent can write this file and ")
    assert str(place.file) in refused.allowed
    assert f"--{name.replace('_', '-')}" in refused.allowed
    assert "hunter2" not in str(refused)


@pytest.mark.parametrize("table", ["defaults", "agents.bot", "profiles.x"])
def test_the_operators_tables_do_not_stand_there(place: Place, table: str) -> None:
    assert place.refusal("", f"[{table}]\nmemory = 1").field == table.partition(".")[0]


@pytest.mark.parametrize(
    ("local", "field", "says"),
    [
        ('tmpfs = ["/cache:exec"]', "tmpfs[0]", "without exec"),
        ('tmpfs = ["/cache", "/usr/bin"]', "tmpfs[1]", "below"),
        ('tmpfs = ["/workspace/x"]', "tmpfs[0]", "below"),
        ('tmpfs = ["/cached"]', "tmpfs[0]", "below"),
        ('tmpfs = ["/mnt/x"]', "tmpfs[0]", "none yet"),
        ('tmpfs = ["/mnt/data/x"]', "tmpfs[0]", "volume"),
        ('tmpfs = ["/cache:size=513m"]', "tmpfs[0]", "512m in all"),
        ('tmpfs = ["/cache:size=300m", "/tmp/x:size=300m"]', "tmpfs[1]", "512m in all"),
        ('tmpfs = ["/cache:size=65m"]\nmemory = "256m"', "tmpfs[0]", "64m in all"),
        (f"tmpfs = {[f'/tmp/{i}:size=1m' for i in range(9)]}", "tmpfs[8]", "at most 8"),
        ('labels = {"traefik.enable" = "true"}', "labels.traefik.enable", "without a dot"),
        ('labels = {ours = "2"}', "labels.ours", "no other value"),
        (f"labels = {{ {', '.join(f'l{i} = {i!r}' for i in map(str, range(33)))} }}", "labels.l0", "at most 32"),
    ],
)
def test_tmpfs_and_labels_have_limits_there(place: Place, local: str, field: str, says: str) -> None:
    operator = '[defaults]\ntmpfs = ["/mnt/x"]\nvolumes = ["/data:/mnt/data"]\nlabels = {ours = "1"}'

    refused = place.refusal(operator, local)

    assert (refused.field, refused.source) == (field, str(place.local))
    assert says in refused.allowed


def test_a_clash_is_laid_on_the_workspaces_file_if_it_came_with_it(place: Place) -> None:
    refused = place.refusal('[defaults]\nports = ["80/udp"]', 'network = "none"')

    assert (refused.field, refused.source) == ("ports[0]", str(place.local))


def link_to_a_file(place: Place) -> None:
    (place.folder / "elsewhere").write_text("")
    place.local.symlink_to(place.folder / "elsewhere")


def loop(place: Place) -> None:
    place.local.symlink_to(place.local)


def pipe(place: Place) -> None:
    os.mkfifo(place.local)


def folder(place: Place) -> None:
    place.local.mkdir()


def too_long(place: Place) -> None:
    place.local.write_text("#" * (64 * 1024 + 1))


def not_utf8(place: Place) -> None:
    place.local.write_bytes(b"labels = { a = '\xff' }")


def deep(place: Place) -> None:
    place.local.write_text(f"a = {'[' * 30_000}")


def huge(place: Place) -> None:
    place.local.write_text(f"memory = {'9' * 60_000}")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("make", [link_to_a_file, loop, pipe, folder, too_long, not_utf8, deep, huge])
def test_a_file_that_is_none_is_refused_and_never_followed(place: Place, make: Callable[[Place], None]) -> None:
    make(place)

    assert place.refusal().source == str(place.local)


def test_no_workspace_no_file(place: Place) -> None:
    assert place.ask(workspace=place.folder / "gone").settings["memory"].source == "default"


def test_an_unknown_key_can_not_speak_to_the_terminal(place: Place) -> None:
    refused = place.refusal("", '"\\u001b[31m\\u202e" = 1')

    assert "\033" not in str(refused)
    assert "\u202e" not in str(refused)


# The law of it all

SIZES = st.integers(6 * MIB, 8 * GIB)
MOUNTS = st.sampled_from(["/a:/a", "/a:/a:ro", "/b:/b", "/c:/cache", "/c:/mnt:ro"])
SPOKEN: dict[str, st.SearchStrategy[Any]] = {
    "ephemeral": st.booleans(),
    "network": st.sampled_from(["none", "gateway", "bridge", "host", "mine", "theirs"]),
    "allow_hosts": st.lists(st.sampled_from(["a.test", "b.test:22", "@npm"]), max_size=2),
    "inject": st.lists(st.sampled_from(["a.test x-key KEY", "b.test x-key KEY"]), max_size=2, unique=True),
    "allow_addresses": st.lists(st.sampled_from(["10.0.0.0/8", "::1"]), max_size=2),
    "memory": SIZES | st.sampled_from(["6m", "1g", "2g", "3g"]),
    "cpu_shares": st.integers(2, 2000),
    "cpus": st.floats(0.01, 8),
    "cpu_period": st.integers(1_000, 1_000_000),
    "cpu_quota": st.integers(1_000, 1_000_000),
    "pids_limit": st.integers(16, 2000),
    "max_containers": st.integers(1, 20),
    "pool": st.integers(0, 5),
    "volumes": st.lists(MOUNTS, max_size=3, unique=True),
    "protected": st.lists(st.sampled_from(["a", "b/c"]), max_size=2),
    "workspace_mode": st.sampled_from(["rw", "ro", "carried"]),
    "workspace_target": st.sampled_from(["/workspace", "same"]),
    "carry": st.sampled_from(["auto", "overlay", "stream"]),
    "carry_ignored": st.lists(st.sampled_from([".env", "*.db"]), max_size=2),
    "history": st.sampled_from([0, 3, "all"]),
    "unprotected": st.lists(st.sampled_from([".git", ".git/hooks", ".envrc"]), max_size=2),
    "credentials": st.sampled_from(["auto", "env", "file", "inject", "none"]),
    "secrets": st.lists(st.sampled_from("ABC"), max_size=3),
    "optional_secrets": st.lists(st.sampled_from("ABC"), max_size=3),
    "ports": st.lists(st.sampled_from(["80", "81", "0.0.0.0:80:80"]), max_size=2, unique=True),
    "tmpfs": st.lists(
        st.builds(
            "{}:size={}m{}".format,
            st.sampled_from(["/cache", "/tmp/x", "/usr", "/workspace/x", "/b/x", "/mnt/y", "/cache/z"]),
            st.integers(1, 700),
            st.sampled_from(["", "", ",exec"]),
        ),
        max_size=10,
    ),
    "labels": st.dictionaries(st.sampled_from(["a", "b", "c.d"]), st.sampled_from("12")),
    "read_only": st.booleans(),
    "pull": st.sampled_from(["never", "missing", "always"]),
    "disk_limit": SIZES,
    "shm_size": SIZES,
    "add_host": st.lists(st.sampled_from(["x:host-gateway", "y:10.0.0.1"]), max_size=2, unique=True),
    "devices": st.lists(st.sampled_from(["/dev/fuse", "/dev/kvm"]), max_size=2, unique=True),
    "time_limit": st.integers(60, 200_000),
    "image": st.sampled_from(["i", "j"]),
    "engine": st.sampled_from(["docker", "/x"]),
    "user": st.sampled_from(["1000", "root"]),
    "env": st.dictionaries(st.sampled_from("XY"), st.sampled_from("12")),
    "ulimits": st.lists(st.sampled_from(["nofile=1:1", "nproc=9:9"]), max_size=2),
    "gpus": st.just("all"),
    "host_mcp_servers": st.dictionaries(st.sampled_from("ab"), st.sampled_from(["x", "http://y.test/"]), max_size=1),
    "tell_network": st.booleans(),
    "extra_args": st.lists(st.sampled_from(["--privileged", "--runtime=runsc"]), max_size=2),
}


def tables(most: int) -> st.SearchStrategy[dict[str, Any]]:
    return st.lists(st.sampled_from(list(SPOKEN)), max_size=most, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: SPOKEN[name] for name in names})
    )


def spelled(table: Mapping[str, Any]) -> str:
    def one(value: Any) -> str:
        if isinstance(value, dict):
            return f"{{ {', '.join(f'{one(key)} = {one(item)}' for key, item in value.items())} }}"
        if isinstance(value, bool):
            return str(value).lower()
        return repr(value) if isinstance(value, list | str) else f"{value}"

    return "".join(f"{name} = {one(value)}\n" for name, value in table.items())


NOT_MORE = {
    "disk_limit",
    "memory",
    "cpu_shares",
    "cpus",
    "cpu_quota",
    "pids_limit",
    "max_containers",
    "pool",
    "time_limit",
}
SAME = {"image", "engine", "user", "env", "ulimits", "gpus", "extra_args", "host_mcp_servers", "tell_network"}
WITHIN = {
    "allow_hosts",
    "allow_addresses",
    "inject",
    "unprotected",
    "carry_ignored",
    "secrets",
    "optional_secrets",
    "ports",
    "add_host",
    "devices",
}
RANKS: dict[str, list[Any]] = {
    "ephemeral": [True, False],
    "read_only": [True, False],
    "workspace_mode": ["ro", "carried", "rw"],
    "workspace_target": ["/workspace", "same"],
    "history": [0, 3, "all"],
    "pull": ["never", "missing", "always"],
}


def is_as_tight(name: str, new: ContainerConfig, old: ContainerConfig) -> bool:
    """Whether the field gives the agent no more than before, told here independently of how it is decided."""
    value, was = getattr(new, name), getattr(old, name)
    if name in SAME or value == was:
        return bool(value == was)
    if name in NOT_MORE:
        return bool(was is None or value <= was)
    if name in WITHIN:
        return {*value} <= {*was}
    if name == "protected":
        return {*was} <= {*value}
    if name in RANKS:
        return RANKS[name].index(value) <= RANKS[name].index(was)
    match name:
        case "network":
            order = ["none", "gateway", "bridge", "host"]
            return value == "none" or (value in order and was in order[2:] and order.index(value) < order.index(was))
        case "credentials":
            return bool(value == "none")
        case "carry":
            return bool(value == "stream")
        case "cpu_period":
            return bool(value >= (was or 100_000))
        case "shm_size":
            return bool(value <= (was or 64 * MIB))
        case "volumes":
            writable = {(mount.source, mount.target): not mount.read_only for mount in was}
            return all(
                mount.read_only or writable[mount.source, mount.target]
                for mount in value
                if (mount.source, mount.target) in writable
            ) and {(mount.source, mount.target) for mount in value} <= {*writable}
        case "labels":
            more = value.keys() - was.keys()
            return value.items() >= was.items() and len(more) <= LABEL_COUNT and not any("." in key for key in more)
        case "tmpfs":
            more = value[len(was) :]
            return (
                value[: len(was)] == was
                and len(more) <= TMPFS_COUNT
                and sum(folder.size for folder in more) <= new.memory // 4
                and not any(folder.executable for folder in more)
                and all(folder.target.startswith(TMPFS_PLACES) for folder in more)
            )
        case _:
            raise AssertionError(name)


def test_the_law_speaks_of_every_field() -> None:
    assert SPOKEN.keys() == {*BOX}


@settings(max_examples=600)
@example({"memory": "1g"}, {"memory": 2**30 + 1})
@example({"volumes": ["/a:/a:ro"]}, {"volumes": ["/a:/a"]})
@example({"cpu_quota": 1000}, {"cpu_period": 50_000})
@given(tables(8), tables(4))
def test_whatever_a_workspace_says_the_box_is_as_tight_or_it_is_refused(
    operator: dict[str, Any], local: dict[str, Any]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        place = Place(Path(name))
        place.workspace.mkdir()
        said = spelled({"image": "i", **operator})
        before = place.attempt(f"[defaults]\n{said}")
        if not isinstance(before, Effective):
            return  # an operator's mistake
        after = place.attempt(f"[defaults]\n{said}", spelled(local))
    if not isinstance(after, Effective):
        assert after == str(place.local)
        return
    for field in BOX:
        assert is_as_tight(field, after.config, before.config), field
        source = after.settings[field].source
        assert (source == str(place.local)) is (field in local)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_file_makes_it_fail_otherwise(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        place = Place(Path(name))
        place.workspace.mkdir()
        place.local.write_bytes(content)
        found = place.attempt()
    sources = {s.source for s in found.settings.values()} if isinstance(found, Effective) else {found}
    assert sources <= {"default", str(place.local)}
