"""A configuration is right, or it is a ConfigError that says where and what would have been."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from container_runner.config.container import ContainerConfig
from container_runner.config.servers import HostServer
from container_runner.config.values import Injection, Mount, PortBinding, Tmpfs
from container_runner.errors import ConfigError
from container_runner.quantities import parse_duration, parse_size

FIELDS = [field.name for field in attrs.fields(ContainerConfig)]


def config(**fields: Any) -> ContainerConfig:
    return ContainerConfig(**{"image": "agent", **fields})


def refusal(make: Callable[..., object], *args: Any, **fields: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        make(*args, **fields)
    return caught.value


# --- sizes and times ---


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (2048, 2048),
        ("2048", 2048),
        ("2 GB", 2 * 1024**3),
        ("2Gi", 2 * 1024**3),
        ("1.5 MiB", 1_572_864),
        ("2048b", 2048),
        ("1024k", 1024**2),
        ("512m", 512 * 1024**2),
        ("2g", 2 * 1024**3),
        ("2G", 2 * 1024**3),
        ("2gb", 2 * 1024**3),
        ("64MiB", 64 * 1024**2),
        ("1.5g", 3 * 1024**3 // 2),
        ("1t", 1024**4),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_a_size_is_bytes_in_powers_of_1024(text: int | str, size: int) -> None:
    assert parse_size(text) == size


SIZE_TRAPS: list[Any] = [
    "",
    " ",
    "2  g",
    " 2g",
    "2g\n",
    "-1",
    "+1",
    "0",
    "0.1",
    0,
    -1,
    "2x",
    "g",
    ".5g",
    "5.g",
    "1e9",
    "1_000",
]
SIZE_TRAPS += ["\uff12g", "2\u212a", True, 2.0, float("nan"), None, [], 2**63, "9" * 5000, 10**5000]


@pytest.mark.parametrize("value", SIZE_TRAPS, ids=lambda value: ascii(value)[:20] if value != 10**5000 else "huge")
def test_what_is_no_size_is_refused(value: Any) -> None:
    assert refusal(parse_size, value, "memory").field == "memory"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (30, 30),
        (0.5, 0.5),
        ("30", 30),
        ("90s", 90),
        ("30m", 1800),
        ("4h", 14400),
        ("1d", 86400),
        ("1.5H", 5400),
        ("5min", 300),
        ("2 hours", 7200),
        ("1 day", 86400),
    ],
)
def test_a_duration_is_seconds(text: float | str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "value",
    [
        "",
        "0",
        0,
        -1,
        "-1s",
        "1w",
        "1m ",
        "1h\n",
        "\uff11s",
        True,
        None,
        float("inf"),
        float("nan"),
        10**400,
        "9" * 5000,
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_no_duration_is_refused(value: Any) -> None:
    assert refusal(parse_duration, value, "timeout").field == "timeout"


@pytest.mark.parametrize(("value", "seconds"), [("1m", 60), ("30d", 2_592_000), (90.9, 90)])
def test_the_time_limit_is_whole_seconds_of_a_minute_to_a_month(value: Any, seconds: int) -> None:
    limit = config(time_limit=value).time_limit
    assert limit == seconds
    assert type(limit) is int


@pytest.mark.parametrize("value", [59, "59s", "31d", "1s"])
def test_a_time_limit_out_of_bounds_is_refused_with_the_bounds(value: Any) -> None:
    assert "60 seconds to 30 days" in refusal(config, time_limit=value).allowed


# --- mounts ---


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ("/a:/b", Mount("/a", "/b")),
        ("/a:/b:rw", Mount("/a", "/b")),
        ("/a:/b:ro", Mount("/a", "/b", read_only=True)),
        ("~:/b", Mount("~", "/b")),
        ("~/x y:/b", Mount("~/x y", "/b")),
        ("/a:1:/b", Mount("/a:1", "/b")),
        ("/a:1:/b:ro", Mount("/a:1", "/b", read_only=True)),
        ("/a,b=\"c':/b", Mount("/a,b=\"c'", "/b")),
        ("/a:/b//c/./d/", Mount("/a", "/b/c/d")),
        ("/a://b", Mount("/a", "/b")),
    ],
)
def test_a_mount_is_split_from_the_right(text: str, mount: Mount) -> None:
    assert Mount.parse(text) == mount


MOUNT_TRAPS = ["", ":", "/a", "/a:", ":/b", "/a:ro", "/a:b", "/a:/b:z", "/a:/b:ro,z", "/a:/b:RO", "/a:/b:"]
MOUNT_TRAPS += ["/a:/b:/c", "/a:/x://b", "/a:/b ", " /a:/b", "/a:/b\n"]


@pytest.mark.parametrize("text", [*MOUNT_TRAPS, None, 3])
def test_a_mount_that_can_be_read_in_no_way_or_in_two_is_refused(text: Any) -> None:
    assert "a table with source, target and read_only" in refusal(Mount.parse, text).allowed


@pytest.mark.parametrize(
    "source", ["", "x", "./x", "../x", "a/b", "C:\\x", "\0", "/a\0", "/a\nb", "/\udc80", "/\x1b[0m", 3, None]
)
def test_a_source_that_is_relative_or_not_text_is_refused(source: Any) -> None:
    error = refusal(Mount, source, "/b")
    assert error.field == "source"
    assert "$PWD/data" in error.allowed
    assert "--extra-arg=--volume=NAME:/PATH" in error.allowed
    assert "socket" not in error.allowed


@pytest.mark.parametrize(
    "source",
    ["/var/run/docker.sock", "/run/podman/podman.sock/", "/x/containerd.sock", "~/crio.sock", "/a/./buildkitd.sock/."],
)
def test_the_socket_of_an_engine_is_never_mounted(source: str) -> None:
    assert "engine's socket" in refusal(Mount, source, "/b", read_only=True).allowed


TARGET_TRAPS: list[Any] = [
    "",
    "x",
    "/",
    "//",
    "/.",
    "/a/..",
    "/../a",
    "/proc",
    "/proc/1",
    "//sys",
    "/dev/shm/",
]
TARGET_TRAPS += ["/a\n", "/a\0", "/./proc", "~/x", None, 3, True, b"/a"]


@pytest.mark.parametrize("target", TARGET_TRAPS)
@pytest.mark.parametrize("make", [lambda target: Mount("/a", target), Tmpfs], ids=["Mount", "Tmpfs"])
def test_a_target_that_is_not_a_free_absolute_path_is_refused(make: Callable[[Any], object], target: Any) -> None:
    assert refusal(make, target).field == "target"


@pytest.mark.parametrize("target", ["/process", "/devel", "/container-runners", "/a..b", "/workspace/cache"])
def test_a_target_that_only_looks_like_a_reserved_one_is_taken(target: str) -> None:
    assert Mount("/a", target).target == target


# --- ports ---


@pytest.mark.parametrize(
    ("text", "port"),
    [
        ("80", PortBinding(80, 80)),
        ("8080:80", PortBinding(80, 8080)),
        ("8080:80/udp", PortBinding(80, 8080, protocol="udp")),
        ("80/tcp", PortBinding(80, 80)),
        ("0.0.0.0:8080:80", PortBinding(80, 8080, "0.0.0.0")),
        ("[::1]:8080:80", PortBinding(80, 8080, "::1")),
        ("[::]:8080:80/udp", PortBinding(80, 8080, "::", "udp")),
        ("1:65535", PortBinding(65535, 1)),
    ],
)
def test_a_port_is_open_to_this_machine_alone_unless_it_says_otherwise(text: str, port: PortBinding) -> None:
    assert PortBinding.parse(text) == port


PORT_TRAPS = ["", "abc", "99999999", "65536", "0", "0:80", "80:0", "::", ":", ":80", "80:", "80/", "80/sctp", "80/UDP"]
PORT_TRAPS += [
    "-1",
    "+80",
    " 80",
    "80\n",
    "\uff18\uff10",
    "8.0",
    "1.2.3:80:80",
    "256.0.0.1:80:80",
    "0.0.0.0:80",
    "[]:80:80",
]
PORT_TRAPS += ["::1:80:80", "[::1]80:80", "[::g]:80:80", "[fe80::1%eth0]:80:80", "localhost:80:80", "80-90:80-90"]


@pytest.mark.parametrize("text", [*PORT_TRAPS, None, True, 80, 80.0])
def test_what_is_no_port_is_refused(text: Any) -> None:
    refusal(PortBinding.parse, text)
    assert refusal(config, ports=[text]).field == "ports[0]"


@pytest.mark.parametrize("number", [0, -1, 65536, 99999999, True, 80.0, "80", None, float("nan")])
@pytest.mark.parametrize("field", ["container_port", "host_port"])
def test_a_port_is_a_whole_number_of_its_range(field: str, number: Any) -> None:
    assert refusal(PortBinding, **{"container_port": 1, "host_port": 1, field: number}).field == field


@pytest.mark.parametrize("address", ["", "localhost", "::1%eth0", "1.2.3", 2130706433, True, None, "::1\n"])
def test_the_address_of_a_port_is_an_ip_address(address: Any) -> None:
    assert refusal(PortBinding, 80, 80, address).field == "host_ip"


# --- tmpfs ---


@pytest.mark.parametrize(
    ("text", "tmpfs"),
    [
        ("/x", Tmpfs("/x")),
        ("/x/", Tmpfs("/x")),
        ("/x:size=1m", Tmpfs("/x", 1024**2)),
        ("/x:exec", Tmpfs("/x", executable=True)),
        ("/x:mode=700,exec,size=2k", Tmpfs("/x", 2048, executable=True, mode=0o700)),
        ("/x:mode=1777", Tmpfs("/x", mode=0o1777)),
    ],
)
def test_a_tmpfs_is_a_path_and_its_options(text: str, tmpfs: Tmpfs) -> None:
    assert Tmpfs.parse(text) == tmpfs


def test_a_tmpfs_is_small_and_runs_nothing_unless_it_says_otherwise() -> None:
    assert Tmpfs("/x") == Tmpfs("/x", 64 * 1024**2, False, 0o1777)


TMPFS_TRAPS = ["", "x", ":exec", "/x:", "/x:suid", "/x:exec=1", "/x:size", "/x:size=", "/x:size=0", "/x:,exec"]
TMPFS_TRAPS += ["/x:mode=9", "/x:mode=77", "/x:mode=77777", "/x:exec,exec", "/x:size=1m,size=2m", "/x:/y"]


@pytest.mark.parametrize("text", [*TMPFS_TRAPS, None, 3])
def test_what_is_no_tmpfs_is_refused(text: Any) -> None:
    refusal(Tmpfs.parse, text)


@pytest.mark.parametrize("mode", [-1, 0o10000, True, 7.0, None, "rwx"])
def test_the_mode_of_a_tmpfs_is_octal(mode: Any) -> None:
    assert refusal(Tmpfs, "/x", mode=mode).field == "mode"


# --- the configuration ---


def test_the_defaults_are_the_documented_ones() -> None:
    assert attrs.asdict(config(), filter=lambda field, _: field.name not in {"env", "labels"}) == {
        "image": "agent",
        "engine": "auto",
        "ephemeral": True,
        "network": "bridge",
        "allow_hosts": (),
        "allow_addresses": (),
        "inject": (),
        "tell_network": False,
        "host_mcp_servers": {},
        "memory": 2 * 1024**3,
        "cpu_shares": 512,
        "cpus": None,
        "cpu_period": None,
        "cpu_quota": None,
        "pids_limit": 512,
        "user": None,
        "max_containers": 5,
        "pool": 0,
        "volumes": (),
        "workspace_mode": "rw",
        "workspace_target": "/workspace",
        "carry": "auto",
        "carry_ignored": (),
        "history": "all",
        "unprotected": (),
        "protected": (),
        "credentials": "auto",
        "secrets": (),
        "optional_secrets": (),
        "ports": (),
        "tmpfs": (),
        "read_only": True,
        "pull": "never",
        "ulimits": (),
        "gpus": None,
        "disk_limit": None,
        "shm_size": None,
        "add_host": (),
        "devices": (),
        "extra_args": (),
        "time_limit": 86400,
    }
    assert config().env == {}
    assert config().labels == {}


DIGEST = "sha256:" + "0a" * 32


def words(text: str) -> list[str]:
    return text.split()


def alone(text: str) -> list[list[str]]:
    """A list for each word, with nothing else in it."""
    return [[word] for word in text.split()]


GOOD: dict[str, list[Any]] = {
    "image": [
        *words("a a:1 a/b localhost:5000/a/b:v1.2-x my--agent a__b [::1]:5000/a Registry.Example/a"),
        *words("python:3.12-slim"),
        *(f"a@{DIGEST}", f"ghcr.io/a/b:1@{DIGEST}", DIGEST),
    ],
    "engine": ["auto", "docker", "podman", "nerdctl", "/usr/bin/docker", "~/my bin/podman"],
    "ephemeral": [True, False],
    "network": ["gateway", "none", "bridge", "host", "my_net-1.x"],
    "allow_hosts": [[], ["github.com", "*.example.com", "db.test:5432", "@pypi"]],
    "allow_addresses": [[], ["10.1.0.0/16", "fd00::1"]],
    "inject": [
        *([], ["a.test x-api-key KEY"], ["a.test:8443 Authorization: Bearer {} KEY", "b.test X-Key: {} KEY"]),
        [{"host": "a.test", "header": "x-api-key", "secret": "KEY", "allowed": ["GET /v1/*", "* /x"]}],
        [Injection("a.test", "Authorization: token {}", "KEY"), Injection("a.test", "x-other", "OTHER")],
    ],
    "tell_network": [True, False],
    "host_mcp_servers": [
        *({}, {"files": "files-server /srv"}, {"a-b_C": {"url": "http://127.0.0.1:1/mcp", "type": "http"}}),
        {"a": {"command": "x", "args": ["-y"], "env": {"TOKEN": "${TOKEN}"}, "type": "stdio"}, "b": "https://b.test/"},
        {"a": HostServer(url="https://a.test/mcp", headers={"Authorization": "Bearer ${TOKEN}"})},
    ],
    "memory": ["6m", "2g", 6 * 1024**2],
    "cpu_shares": [2, 262144],
    "cpus": [None, 0.01, 1, 1.5],
    "cpu_period": [None, 1000, 1_000_000],
    "cpu_quota": [None, 1000],
    "pids_limit": [16, 4096],
    "user": [None, "1", "1000", "1000:1000", "1000:0", "root", "2147483647"],
    "max_containers": [1, 50],
    "pool": [0, 1, 100],
    "volumes": [[], (), [Mount("/a", "/b")], ["/a:/b:ro"], [{"source": "/a:1", "target": "/b", "read_only": True}]],
    "workspace_mode": ["rw", "ro", "carried"],
    "workspace_target": ["/workspace", "same"],
    "carry": ["auto", "overlay", "stream"],
    "carry_ignored": [[], [".env", "*.db", "a b/**"]],
    "history": ["all", 0, 1, 1000],
    "unprotected": [[], [".git/hooks", ".git/config"], [".git"]],
    "protected": [[], ["deploy.sh", "ops/hooks/", "\u00fc x"]],
    "credentials": ["auto", "env", "file", "inject", "none"],
    "env": [{}, {"A": "", "_b1": "two\nlines = 'x' \u00fc \U0001f600"}],
    "secrets": [[], ["GITHUB_TOKEN", "_x"]],
    "optional_secrets": [[], ["GITHUB_TOKEN", "_x"]],
    "ports": [[], ["80", "81:80"], [{"container_port": 80, "host_port": 80}], ["80", "80/udp"], [PortBinding(1, 1)]],
    "tmpfs": [[], ["/x", "/y:exec"], [{"target": "/x", "size": "1m", "mode": "700"}], [Tmpfs("/x")]],
    "labels": [{}, {"a.b-c_D": "", "container-runner": "x.y"}],
    "read_only": [True, False],
    "pull": ["never", "missing", "always"],
    "ulimits": [[], ["cpu=60"], ["nofile=1024:2048", "nproc=-1", "memlock=0:-1", "stack=-1:-1"]],
    "gpus": [None, "all", "2", "device=0", "device=0,GPU-3a/1:0"],
    "disk_limit": [None, "1g", "1m", 1024**2],
    "shm_size": [None, "1g", 4096],
    "add_host": [["db:10.0.0.1", "db.x:::1", "me:host-gateway"]],
    "devices": [["/dev/fuse", "/dev/a:/dev/b", "/dev/dri/card0:/dev/dri/card0:rw"]],
    "extra_args": [[], *alone("--runtime=runsc --privileged -eX=1 --userns=keep-id --tty-x --pids-x -P -hx")],
    "time_limit": ["60s", "30d", 3600],
}

TEXT: list[Any] = ["", " ", "\n", "\0", "\ud800", True, 3, 1.5, [], {}, b"x"]
LIST: list[Any] = [None, True, 3, "x", {"a": 1}, {"x"}, [None], [3], [[]], [""], ["\0"], ["\ud800"]]
CHOICE = [*TEXT, None, "RW", "rw ", "rw\n", ["rw"]]
WHOLE: list[Any] = [True, 1.0, "100", "", [], {}, float("nan"), float("inf"), -1, 0, -(10**30), 10**30, 10**5000]

BAD: dict[str, list[Any]] = {
    "image": [
        *(*TEXT, None, "a b", "a\n", "a" * 600, "a:" + "x" * 129),
        *words("-it --privileged A a: a:b:c /a a/ a//b a@sha256:0 docker-archive:/x ../a a._b ä"),
    ],
    "engine": [*TEXT, None, "-H", "--host=x", " docker", "docker ", "docker\n", "\u2028"],
    "ephemeral": ["true", "", 0, 1, None, []],
    "network": [*TEXT, None, "container:x", "ns:/proc/1/ns/net", "-x", "a b", "a\n", "slirp4netns:port", "x" * 300],
    "allow_hosts": [*LIST, *alone("http://a.test a.test/x a.test:0 * @nobody"), [None]],
    "allow_addresses": [*LIST, *alone("10.0.0.1/8 x a.test"), [None]],
    "inject": [
        *LIST,
        *(["a.test KEY"], ["a.test x-api-key"], ["http://a.test x KEY"], ["*.a.test x KEY"], ["a.test:* x KEY"]),
        *(["@npm x KEY"], ["model x KEY"], ["mcp x KEY"], ["a.test Host KEY"], ["a.test content-length KEY"]),
        *(["a.test x_y KEY"], ["a.test X: Bearer KEY"], ["a.test X: {}{} KEY"], ["a.test X:{} KEY"]),
        *(["a.test X: {}\n KEY"], ["a.test x K-Y"], ["a.test  KEY"]),
        [{"host": "a.test", "header": "x: {} ", "secret": "KEY"}],
        [{"host": "a.test", "header": "x", "secret": "KEY", "allowed": ["get /"]}],
        [{"host": "a.test", "header": "x", "secret": "KEY", "allowed": ["GET"]}],
        ["a.test x KEY", "a.test:443 X: {} OTHER"],
        ["a.test x KEY", {"host": "a.test", "header": "y", "secret": "KEY", "allowed": ["GET /*"]}],
    ],
    "tell_network": ["true", "", 0, 1, None, []],
    "host_mcp_servers": [
        *(None, 3, "x", [], ["a"], {"a": 3}, {"a": []}, {"a": ""}, {"a": "'"}, {"a": {}}, {3: "x"}, {"a": None}),
        *({"container_runner": "x"}, {"a b": "x"}, {"": "x"}, {"a" * 33: "x"}),
        *({"a": {"command": "x", **more}} for more in ({"url": "http://a"}, {"headers": {"a": "b"}}, {"type": "http"})),
        *({"a": {"command": "x", **more}} for more in ({"args": "y"}, {"env": {"A B": ""}}, {"timeout": 3})),
        *({"a": {"url": url}} for url in ("ftp://a", "http://u:p@a/", "http://a/ b", "a.test")),
        {"a": {"url": "http://a", "headers": {"a\nb": "c"}}},
        {"a": {"url": "http://a", "headers": {"a": "b\n"}}},
    ],
    "memory": [*SIZE_TRAPS, "5m", 1, "100"],
    "cpu_shares": [*WHOLE, None, 1, 262145],
    "cpus": [True, "1", "", 0, 0.001, -1, float("nan"), float("inf"), 10**400, [], {}],
    "cpu_period": [*WHOLE, 999, 1_000_001],
    "cpu_quota": [*WHOLE, 999],
    "pids_limit": [*WHOLE, None, 15],
    "user": [
        *(*TEXT, "1000\n", "1 ", 1000),
        *words("0 0:0 0:1000 00 01 -1 1: :1 1:-1 1:2:3 node Root root:root \uff11000 2147483648"),
        *words("1:2147483648"),
    ],
    "max_containers": [*WHOLE, None],
    "pool": [*(bad for bad in WHOLE if bad != 0 or isinstance(bad, bool)), None, -1, 101],
    "volumes": [
        *(*LIST, "/a:/b", ["x:/y"], [PortBinding(1, 1)], [{}], [{3: 4}], [{"source": "/a"}]),
        [{"source": "/a", "target": "/b", "x": 1}],
        [{"source": "/a", "target": "/b", "read_only": "true"}],
    ],
    "workspace_mode": CHOICE,
    "workspace_target": CHOICE,
    "carry": CHOICE,
    "carry_ignored": [*LIST, [" a"], ["a "], ["#a"], ["!a"], ["a\n"]],
    "history": [*(bad for bad in WHOLE if bad != 0 or isinstance(bad, bool)), None, -1, 2**31, "All"],
    "unprotected": [*LIST, *alone("git .git/ .GIT /etc"), [None]],
    "protected": [
        *LIST,
        *alone("/etc . .. a/../b a//b / .git sub/.GIT/hooks a/./b"),
        [None],
        [""],
        ["a\nb"],
        ["\ud800"],
    ],
    "credentials": CHOICE,
    "env": [
        *(None, True, 3, "A=1", ["A=1"], [], {3: "x"}),
        *({name: "x"} for name in ("", "A B", "A*", "1A", "A\n")),
        *({"A": value} for value in [*TEXT[3:], None]),
    ],
    "secrets": [*LIST[:3], "TOKEN", {"TOKEN": "x"}, *LIST[5:], ["A=b"], ["A*"], ["A\n"], ["-"], ["1A"]],
    "optional_secrets": [*LIST[:3], "TOKEN", {"TOKEN": "x"}, *LIST[5:], ["A=b"], ["A*"], ["A\n"], ["-"], ["1A"]],
    "ports": [*LIST, [80], "80", ["80", "80"], ["80", "127.0.0.1:80:90"], [{"container_port": True, "host_port": 1}]],
    "tmpfs": [*LIST, "/x", ["/x", "/x/"], [{"target": "/x", "size": 0}], [{"target": "/x", "size": True}]],
    "labels": [
        *(None, 3, "a=b", [], ["a"], {"a": "x,y"}, {"a": 1}, {"a": "x\n"}, {3: "x"}),
        *({key: "x"} for key in ("", "a b", "a=b", "container-runner.run", "a" * 300)),
    ],
    "read_only": ["false", 0, 1, None],
    "pull": CHOICE,
    "ulimits": [*LIST, "cpu=0", ["cpu=0\n"], *alone("core=0 cpu cpu= cpu=x x=1 nofile=2:1 nofile=-1:5")],
    "gpus": [*TEXT, "none", "0", "-1", "device=", "device=0,", "all\n", "2 ", 2],
    "disk_limit": [*(value for value in SIZE_TRAPS if value is not None), "1023k", 1],
    "shm_size": [value for value in SIZE_TRAPS if value is not None],
    "add_host": [*LIST, ["db:1.2.3.4\n"], ["d b:::1"], *alone("db db: :1.2.3.4 db:x -x:1.2.3.4 a:b:1.2.3.4")],
    "devices": [
        *(*LIST, "/dev/x", ["/dev/x\n"]),
        *alone("/etc/x /dev/ /dev/../etc /dev/x:/etc/y /dev/x:/dev/y:rx"),
    ],
    "extra_args": [
        *(*LIST, "--init", ["--runtime", "runsc"], ["-d\n"], ["-u" + "0" * 9999]),
        *alone("-- - --- word -d -it -Pit -t=1 -u0 -u=0 -a=stdout --rm --rm=false --detach --help --tty"),
        *alone("--interactive=true --user=0 --name=x --entrypoint=sh"),
        *alone("--init --init=false --pid=host --pid --workdir=/x --workdir -w -w/x -w=/x -Pw/x"),
        *alone("--env-file=./x -v../x:/y --mount=type=bind,src=./x,dst=/y"),
    ],
    "time_limit": [None, True, "", "1", 0, 59, "31d", float("nan"), float("inf"), 10**400, []],
}


def named(cases: dict[str, list[Any]]) -> list[Any]:
    return [
        pytest.param(field, value, id=f"{field}-{index}")
        for field, values in cases.items()
        for index, value in enumerate(values)
    ]


def test_the_tables_below_speak_of_every_field() -> None:
    assert list(GOOD) == FIELDS
    assert list(BAD) == FIELDS


@pytest.mark.parametrize(("field", "value"), named(GOOD))
def test_a_good_value_is_taken_from_python_and_from_a_table_alike(field: str, value: Any) -> None:
    made = config(**{field: value})
    assert ContainerConfig.from_mapping({"image": "agent", field: value}) == made
    assert attrs.evolve(made) == made
    assert hash(attrs.evolve(made)) == hash(made)


@pytest.mark.parametrize(("field", "value"), named(BAD))
def test_a_bad_value_is_refused_and_the_error_says_where(field: str, value: Any) -> None:
    error = refusal(config, **{field: value})
    assert error.field.startswith(field)
    assert error.allowed
    assert not error.allowed.endswith(".")
    assert len(str(error)) < 1000
    found = refusal(ContainerConfig.from_mapping, {"image": "agent", field: value}, source="my.toml")
    assert (found.field, found.allowed, found.source) == (error.field, error.allowed, "my.toml")
    assert str(found).startswith("my.toml: ")


@pytest.mark.parametrize(
    ("fields", "where", "shown"),
    [
        ({"memory": "5m"}, "memory", "a size of at least 6m, such as 512m or 2g"),
        ({"volumes": ["/a:/b", "x:/y"]}, "volumes[1]", "name of a volume"),
        ({"volumes": [{"source": "/a", "target": "/proc"}]}, "volumes[0].target", "/proc"),
        ({"volumes": [{"source": "/a"}]}, "volumes[0].target", "required"),
        ({"volumes": [{"source": "/a", "traget": "/b"}]}, "volumes[0].traget", "perhaps target"),
        ({"tmpfs": [{"target": "/x", "size": "x"}]}, "tmpfs[0].size", "a size"),
        ({"ports": [{"container_port": 80}]}, "ports[0].host_port", "required"),
        ({"env": {"FOO": 3}}, "env.FOO", "a string"),
        ({"labels": {"a": 3}}, "labels.a", "a string"),
        ({"ulimits": ["cpu=60", "x"]}, "ulimits[1]", "nofile=1024:2048"),
        ({"network": "container:x"}, "network", "another container's network"),
        ({"user": "0"}, "user", '"root"'),
        ({"user": "nobody"}, "user", "$(id -u nobody)"),
        ({"memroy": "2g"}, "memroy", "perhaps memory"),
        ({"zzz": 1}, "zzz", "the keys are image"),
        ({3: 1}, "a key", "the keys are image"),
        ({"a\nb": 1}, "a key", "the keys are image"),
    ],
)
def test_an_error_names_the_place_and_what_is_allowed(fields: dict[Any, Any], where: str, shown: str) -> None:
    error = refusal(ContainerConfig.from_mapping, {"image": "agent", **fields})
    assert error.field == where
    assert shown in error.allowed


def test_a_table_without_an_image_is_refused() -> None:
    assert refusal(ContainerConfig.from_mapping, {}).field == "image"


@pytest.mark.parametrize("mapping", [None, 3, "x", [], [("image", "a")]])
def test_what_is_no_table_is_refused(mapping: Any) -> None:
    refusal(ContainerConfig.from_mapping, mapping)


# --- fields together ---


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"cpus": 1, "cpu_quota": 5000}, "cpus"),
        ({"cpus": 1, "cpu_period": 5000}, "cpus"),
        ({"network": "none", "ports": ["80", "80/udp"]}, "ports[1]"),
        ({"network": "gateway", "ports": ["80/udp"]}, "ports[0]"),
        ({"network": "host", "ports": ["80"]}, "ports"),
        ({"ports": ["80", "80:81"]}, "ports[1]"),
        ({"volumes": ["/a:/x", "/b:/y", "/c:/x/"]}, "volumes[2]"),
        ({"volumes": ["/a:/x"], "tmpfs": ["/x//"]}, "tmpfs[0]"),
        ({"volumes": ["/a:/workspace/."]}, "volumes[0]"),
        ({"tmpfs": ["/tmp/"]}, "tmpfs[0]"),
        ({"env": {"A": "x"}, "secrets": ["B", "A"]}, "secrets[1]"),
        ({"workspace_mode": "carried", "ephemeral": False}, "ephemeral"),
        ({"workspace_mode": "carried", "pool": 1}, "pool"),
        ({"workspace_mode": "carried", "volumes": ["/a:/workspace/b"]}, "volumes[0]"),
        ({"workspace_mode": "carried", "tmpfs": ["/x", "/workspace/cache"]}, "tmpfs[1]"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(fields: dict[str, Any], where: str) -> None:
    assert refusal(config, **fields).field == where


@pytest.mark.parametrize(
    "fields",
    [
        {"cpu_period": 100_000, "cpu_quota": 50_000},
        {"network": "none", "ports": ["80"]},
        {"network": "gateway", "ports": ["80", "0.0.0.0:81:80"]},
        {"network": "mine", "ports": ["80", "80/udp", "0.0.0.0:81:80", "[::1]:80:80"]},
        {"volumes": ["/a:/x", "/a:/y", "/b:/x/z"], "tmpfs": ["/workspace/cache", "/tmp/x"]},
    ],
)
def test_fields_that_only_look_like_a_contradiction_are_taken(fields: dict[str, Any]) -> None:
    config(**fields)


@pytest.mark.parametrize(
    ("user", "ids"),
    [(None, None), ("root", (0, 0)), ("1000", (1000, 1000)), ("1000:0", (1000, 0)), ("1:2", (1, 2))],
)
def test_the_user_in_numbers(user: str | None, ids: tuple[int, int] | None) -> None:
    assert config(user=user).uid_gid == ids


# --- secrets ---

SECRET = "sk-ant-hunter2"


@pytest.mark.parametrize(
    "fields",
    [
        {"secrets": [f"TOKEN={SECRET}"]},
        {"secrets": [SECRET]},
        {"secrets": f"TOKEN={SECRET}"},
        {"secrets": {"TOKEN": SECRET}},
        {"env": f"TOKEN={SECRET}"},
        {"env": [f"TOKEN={SECRET}"]},
        {"env": {"TOKEN": SECRET + "\0"}},
        {"env": {"TOKEN": [SECRET]}},
        {"env": {f"TOKEN={SECRET}": "x"}},
        {"extra_args": ["--env", f"TOKEN={SECRET}"]},
        {"extra_args": [f"--env=TOKEN={SECRET}\0"]},
        {"extra_args": ["--env=A", SECRET]},
        {"api_key": SECRET},
        {"image": "agent", "environment": {"TOKEN": SECRET}},
    ],
)
def test_an_error_never_repeats_what_may_be_a_secret(fields: dict[str, Any]) -> None:
    error = refusal(ContainerConfig.from_mapping, {"image": "agent", **fields}, source="my.toml")
    assert "hunter2" not in f"{error} {error!r} {error.value!r}"
    assert error.__cause__ is None
    assert error.__suppress_context__


def test_a_configuration_shows_the_names_in_env_and_not_the_values() -> None:
    shown = repr(config(env={"A": SECRET, "B": SECRET}))
    assert "env={A, B}" in shown
    assert "hunter2" not in shown


# --- frozen ---


def test_a_configuration_can_not_be_changed() -> None:
    env = {"A": "1"}
    made = config(env=env, labels={"a": "b"})
    env["A"] = "2"
    assert made.env == {"A": "1"}
    with pytest.raises(TypeError):
        made.env["A"] = "2"  # type: ignore[index]  # what a frozen value refuses
    with pytest.raises(TypeError):
        made.labels["a"] = "2"  # type: ignore[index]  # what a frozen value refuses
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        made.memory = 1  # type: ignore[misc]  # what a frozen value refuses


def test_a_changed_copy_is_checked_again() -> None:
    made = config(memory="1g", env={"A": "1"}, user="root")
    assert attrs.evolve(made, memory="3g").memory == 3 * 1024**3
    assert refusal(attrs.evolve, made, memory="1k").field == "memory"
    assert refusal(attrs.evolve, made, secrets=["A"]).field == "secrets[0]"


def test_env_and_labels_tell_configurations_apart() -> None:
    assert config(env={"A": "1"}) != config(env={"A": "2"})
    assert config(labels={"a": "1"}) != config()


def test_the_values_can_be_pickled() -> None:
    values = (Mount("/a", "/b"), PortBinding(1, 2), Tmpfs("/x"))
    assert pickle.loads(pickle.dumps(values)) == values


# --- files ---


def test_a_file_holds_the_fields_at_its_top(tmp_path: Path) -> None:
    path = tmp_path / "box.toml"
    path.write_text(
        'image = "agent"\nmemory = "4g"\ncpus = 2\nports = ["80"]\n[env]\nA = "1"\n'
        '[[volumes]]\nsource = "/a:b"\ntarget = "/c"\n[[tmpfs]]\ntarget = "/d"\nmode = 0o700\n',
        "utf-8",
    )
    expected = config(
        memory="4g", cpus=2, ports=["80"], env={"A": "1"}, volumes=[Mount("/a:b", "/c")], tmpfs=["/d:mode=700"]
    )
    assert ContainerConfig.load(path) == expected
    assert ContainerConfig.load(str(path)) == expected


@pytest.mark.parametrize(
    ("content", "field", "said"),
    [
        (b'image = "agent"\nmemory = \n', "syntax", "box.toml:2:10: invalid value."),
        (b"image = 'agent'\nmemory = '\xff'\n", "syntax", "0xff"),
        (b"max_containers = " + b"9" * 5000, "syntax", "digits"),
        (b"image = 'agent'\nmax_containers = 0x" + b"f" * 5000, "max_containers", "whole number"),
        (b"image = 'agent'\nmemory = 2024-01-01", "memory", "2024"),
        (b"x = " + b"[" * 5000, "syntax", ""),
        (b"[default]\nimage = 'agent'", "default", "no key here"),
    ],
    ids=["line", "utf-8", "digits", "hex", "date", "deep", "table"],
)
def test_a_bad_file_is_refused_by_name(tmp_path: Path, content: bytes, field: str, said: str) -> None:
    path = tmp_path / "box.toml"
    path.write_bytes(content)
    error = refusal(ContainerConfig.load, path)
    assert error.field == field
    assert error.source == str(path)
    assert said in str(error)


@pytest.mark.parametrize("name", ["missing.toml", ".", "a\0b"])
def test_a_file_that_can_not_be_read_is_refused_by_name(tmp_path: Path, name: str) -> None:
    path = f"{tmp_path}/{name}"
    assert refusal(ContainerConfig.load, path).source == path


# --- anything at all ---

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NEAR = st.sampled_from([value for values in (*GOOD.values(), *BAD.values()) for value in values])
TABLES = st.fixed_dictionaries(
    {"image": st.just("agent") | ANYTHING},
    optional=dict.fromkeys([*FIELDS[1:], "other"], NEAR | ANYTHING),
)


def made_or_refused(make: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """What it makes, or the ConfigError; anything else is the test's failure."""
    try:
        return make(*args, **options)
    except ConfigError as error:
        return error


@given(TABLES | st.dictionaries(st.text(max_size=8), ANYTHING, max_size=3) | ANYTHING)
def test_any_table_gives_a_configuration_or_a_config_error(table: Any) -> None:
    made = made_or_refused(ContainerConfig.from_mapping, table, source="any")
    if isinstance(made, ConfigError):
        assert str(made).startswith("any: ")
    else:
        assert attrs.evolve(made) == made


@given(st.text() | st.from_regex(r"[/~a.:0-9rowudp,=gms\[\]]{0,24}", fullmatch=True))
@pytest.mark.parametrize("parse", [parse_size, parse_duration, Mount.parse, PortBinding.parse, Tmpfs.parse])
def test_any_text_gives_a_value_or_a_config_error(parse: Callable[[str], object], text: str) -> None:
    made = made_or_refused(parse, text)
    assert not isinstance(made, ConfigError) or made.allowed


@given(
    st.builds(
        Mount,
        st.from_regex(r"[/~][a-z,=\" .-]{0,9}", fullmatch=True),
        st.from_regex(r"/[a-z]{4,9}(/[a-z ]{1,9})?", fullmatch=True),
        st.booleans(),
    )
)
def test_a_mount_without_colons_survives_its_text(mount: Mount) -> None:
    text = f"{mount.source}:{mount.target}:{'ro' if mount.read_only else 'rw'}"
    assert Mount.parse(text) == mount


def test_a_number_in_quotes_is_told_from_one_that_is_too_large() -> None:
    def allowed(value: Any) -> str:
        with pytest.raises(ConfigError) as caught:
            ContainerConfig(image="agent", pids_limit=value)
        return caught.value.allowed

    assert allowed("512").endswith(", without quotes")
    assert not allowed("many").endswith("quotes")
    assert not allowed(2**40).endswith("quotes")
