"""The engine's command lines, word by word."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from container_runner.box import argv, environment, script
from container_runner.box.argv import DOCKER, PODMAN, PODMAN_ROOTLESS, Dialect
from container_runner.box.environment import ContainerEnv
from container_runner.box.mounts import TMP_SIZE, ContainerMounts
from container_runner.box.user import User
from container_runner.config.container import ContainerConfig
from container_runner.config.values import Mount, PortBinding, Tmpfs
from container_runner.errors import ConfigError

USER = User(1000, 1001)
OUR_TMPFS = (
    Tmpfs("/tmp", size=TMP_SIZE, executable=True),
    Tmpfs("/container-runner/home", size=TMP_SIZE, executable=True),
    Tmpfs("/container-runner/run", size=52 * 1024 * 1024, executable=True),
)
ENV = ContainerEnv(spelled=("HOME=/h", "TERM=x"), named=("TOKEN",), values={"TOKEN": "secret"})


def mounted(*mounts: Mount, tmpfs: tuple[Tmpfs, ...] = OUR_TMPFS) -> ContainerMounts:
    return ContainerMounts(mounts=mounts, tmpfs=tmpfs, credentials_by_name=False)


WORKSPACE = mounted(Mount("/src", "/workspace"))

HEAD = ["--name=NAME", "--label=container-runner.run=r", "--pull=never", "--entrypoint=sh"]
BOX = [
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--ipc=private",
    "--read-only",
    "--log-driver=none",
    "--no-healthcheck",
    "--network=bridge",
    "--memory=2147483648",
    "--memory-swap=2147483648",
    "--cpu-shares=512",
    "--pids-limit=512",
    "--tmpfs=/tmp:rw,nosuid,nodev,exec,size=536870912,mode=1777",
    "--tmpfs=/container-runner/home:rw,nosuid,nodev,exec,size=536870912,mode=1777",
    "--tmpfs=/container-runner/run:rw,nosuid,nodev,exec,size=54525952,mode=1777",
    "--mount=type=bind,src=/src,dst=/workspace",
]
AGENT = ["--env=HOME=/h", "--env=TERM=x"]
MORE = {"docker": [], "podman": ["--http-proxy=false", "--read-only-tmpfs=false"]}


def run_argv(
    dialect: Dialect = DOCKER,
    mounts: ContainerMounts = WORKSPACE,
    command: tuple[str, ...] = ("claude", "-p"),
    variables: ContainerEnv = ENV,
    **config: Any,
) -> list[str]:
    return argv.run_argv(
        dialect.name,
        dialect,
        ContainerConfig(**{"image": "my/claude", **config}),
        name="NAME",
        user=USER,
        mounts=mounts,
        labels={"container-runner.run": "r"},
        env=variables,
        run_id="RUN",
        command=command,
    )


def added(**config: Any) -> tuple[list[str], list[str]]:
    """The flags that a configuration adds to the default ones, and those that it takes away."""
    default, given_ = run_argv(), run_argv(**config)
    return [word for word in given_ if word not in default], [word for word in default if word not in given_]


# The whole list


DIALECTS = pytest.mark.parametrize(
    ("dialect", "mapping"),
    [(DOCKER, []), (PODMAN, []), (PODMAN_ROOTLESS, ["--userns=keep-id"])],
    ids=["docker", "podman", "podman-rootless"],
)


def box(dialect: Dialect) -> list[str]:
    if dialect is DOCKER:
        return [*BOX, *(f"--env={name}=" for name in script.PROXIES)]
    # podman would copy what the image has there.
    return [f"{word},notmpcopyup" if word.startswith("--tmpfs=") else word for word in BOX]


@DIALECTS
def test_an_ephemeral_run_is_one_command_from_the_container_to_the_agent(dialect: Dialect, mapping: list[str]) -> None:
    assert run_argv(dialect) == [
        *(dialect.name, "run", "--rm", "--interactive"),
        *HEAD,
        *("--user=1000:1001", *mapping, "--workdir=/"),
        *box(dialect),
        *AGENT,
        *MORE[dialect.name],
        *("--", "my/claude", "-c", script.SEAL, "RUN", script.GUEST, "86400", "claude", "-p"),
    ]


@DIALECTS
def test_a_container_of_a_pool_is_that_command_without_the_agents(dialect: Dialect, mapping: list[str]) -> None:
    assert run_argv(dialect, command=()) == run_argv(dialect)[:-2]


@DIALECTS
def test_a_kept_container_has_another_user_and_nothing_of_the_agents(dialect: Dialect, mapping: list[str]) -> None:
    assert run_argv(dialect, command=(), ephemeral=False) == [
        *(dialect.name, "run", "--detach"),
        *HEAD,
        *("--user=65534:65534", *mapping, "--workdir=/"),
        *box(dialect),
        *MORE[dialect.name],
        *("--", "my/claude", "-c", script.KEEPER, "sh", "86400"),
    ]


def test_run_with_everything_on() -> None:
    words = run_argv(
        PODMAN,
        mounted(
            Mount("/a", "/workspace", True),
            Mount("/b,c", "/data"),
            tmpfs=(Tmpfs("/tmp", size=4096), Tmpfs("/cache", size=1024 * 1024, executable=True, mode=0o700)),
        ),
        (),
        ephemeral=False,
        network="net",
        memory="512m",
        cpu_shares=100,
        cpu_period=50_000,
        cpu_quota=25_000,
        pids_limit=99,
        labels={"team": "blue"},
        read_only=False,
        pull="missing",
        ulimits=["nofile=1024:2048"],
        gpus="device=0,1",
        shm_size="64m",
        add_host=["db:10.0.0.1"],
        devices=["/dev/fuse"],
        ports=["8080:80", "[::1]:53:5353/udp"],
        extra_args=["--runtime=runsc"],
        time_limit=60,
    )

    assert words == [
        "podman",
        "run",
        "--detach",
        "--name=NAME",
        "--label=team=blue",
        "--label=container-runner.run=r",
        "--pull=missing",
        "--entrypoint=sh",
        "--user=65534:65534",
        "--workdir=/",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
        "--ipc=private",
        "--log-driver=none",
        "--no-healthcheck",
        "--network=net",
        "--memory=536870912",
        "--memory-swap=536870912",
        "--cpu-shares=100",
        "--cpu-period=50000",
        "--cpu-quota=25000",
        "--pids-limit=99",
        "--ulimit=nofile=1024:2048",
        "--shm-size=67108864",
        "--device=nvidia.com/gpu=0",
        "--device=nvidia.com/gpu=1",
        "--device=/dev/fuse",
        "--add-host=db:10.0.0.1",
        "--publish=127.0.0.1:8080:80/tcp",
        "--publish=[::1]:53:5353/udp",
        "--tmpfs=/tmp:rw,nosuid,nodev,noexec,size=4096,mode=1777,notmpcopyup",
        "--tmpfs=/cache:rw,nosuid,nodev,exec,size=1048576,mode=700,notmpcopyup",
        "--mount=type=bind,src=/a,dst=/workspace,readonly",
        '--mount=type=bind,"src=/b,c",dst=/data',
        "--http-proxy=false",
        "--read-only-tmpfs=false",
        "--runtime=runsc",
        "--",
        "my/claude",
        "-c",
        script.KEEPER,
        "sh",
        "60",
    ]


@pytest.mark.parametrize(
    ("config", "there", "gone"),
    [
        (
            {"ephemeral": False},
            ["--detach", "--user=65534:65534", script.KEEPER, "sh"],
            [
                "--rm",
                "--interactive",
                "--user=1000:1001",
                *AGENT,
                script.SEAL,
                "RUN",
                script.GUEST,
            ],
        ),
        ({"labels": {"a": "b"}}, ["--label=a=b"], []),
        ({"pull": "always"}, ["--pull=always"], ["--pull=never"]),
        ({"read_only": False}, [], ["--read-only"]),
        ({"network": "none"}, ["--network=none"], ["--network=bridge"]),
        (
            {"memory": "6m"},
            ["--memory=6291456", "--memory-swap=6291456"],
            ["--memory=2147483648", "--memory-swap=2147483648"],
        ),
        ({"cpu_shares": 2}, ["--cpu-shares=2"], ["--cpu-shares=512"]),
        ({"cpus": 1.5}, ["--cpus=1.5"], []),
        ({"cpus": 2}, ["--cpus=2"], []),
        ({"cpu_period": 1000}, ["--cpu-period=1000"], []),
        ({"cpu_quota": 1000}, ["--cpu-quota=1000"], []),
        ({"pids_limit": 16}, ["--pids-limit=16"], ["--pids-limit=512"]),
        ({"ulimits": ["nproc=5"]}, ["--ulimit=nproc=5"], []),
        ({"shm_size": "1g"}, ["--shm-size=1073741824"], []),
        ({"gpus": "all"}, ["--gpus=all"], []),
        ({"devices": ["/dev/a:/dev/b:r"]}, ["--device=/dev/a:/dev/b:r"], []),
        ({"add_host": ["h:host-gateway"]}, ["--add-host=h:host-gateway"], []),
        ({"ports": [PortBinding(80, 8080, "::1")]}, ["--publish=[::1]:8080:80/tcp"], []),
        ({"network": "none", "ports": ["80"]}, ["--network=none"], ["--network=bridge"]),
        ({"extra_args": ["--hostname=h", "-h"]}, ["--hostname=h", "-h"], []),
        ({"time_limit": "2m"}, ["120"], ["86400"]),
        # What concerns who the agent is, its variables, the mounts, or us alone is given as values of its own.
        ({"user": "5:6", "tmpfs": ["/x"]}, [], []),
        ({"env": {"A": "B"}, "secrets": ["C"], "optional_secrets": ["D"]}, [], []),
        (
            {"network": "gateway", "allow_hosts": ["a.test"], "allow_addresses": ["::1"]},
            ["--network=none"],
            ["--network=bridge"],
        ),
        (
            {
                "network": "gateway",
                "inject": ["a.test x-key KEY"],
                "host_mcp_servers": {"x": "y"},
                "tell_network": True,
            },
            ["--network=none"],
            ["--network=bridge"],
        ),
        ({"pool": 3, "unprotected": [".envrc"], "disk_limit": "1g"}, [], []),
        ({"carry": "stream", "carry_ignored": [".env"], "history": 3, "protected": ["x"]}, [], []),
        ({"max_containers": 9, "credentials": "none", "workspace_mode": "ro", "engine": "x"}, [], []),
        ({"workspace_target": "same"}, [], []),
    ],
    ids=str,
)
def test_each_field_has_its_flag_and_touches_no_other(
    config: dict[str, Any], there: list[str], gone: list[str]
) -> None:
    more, less = added(**config)

    assert (set(more), set(less)) == (set(there), set(gone))


def test_every_field_of_the_configuration_is_in_a_test_above() -> None:
    table = next(
        mark for mark in test_each_field_has_its_flag_and_touches_no_other.pytestmark if mark.name == "parametrize"
    )
    tested = {name for config, *_ in table.args[1] for name in config}

    assert {field.name for field in attrs.fields(ContainerConfig)} - tested == {"image", "volumes"}


@pytest.mark.parametrize(("uid", "pid1"), [(0, 65534), (1000, 65534), (65533, 65534), (65534, 65533)])
def test_pid_1_is_never_the_agents_user(uid: int, pid1: int) -> None:
    assert User(uid, uid).for_pid1 == User(pid1, pid1)


def test_our_labels_win_over_the_configured_ones() -> None:
    labels = [word for word in run_argv(labels={"b": "1", "a": "2"}) if word.startswith("--label=")]

    assert labels == ["--label=b=1", "--label=a=2", "--label=container-runner.run=r"]


# The other verbs


def test_exec() -> None:
    words = argv.exec_argv(
        "docker",
        name="NAME",
        user=USER,
        env=ENV,
        run_id="RUN",
        time_limit=60,
        command=["claude", "-p", "--", "-x"],
    )

    assert words == [
        "docker",
        "exec",
        "--interactive",
        "--user=1000:1001",
        "--workdir=/workspace",
        "--env=HOME=/h",
        "--env=TERM=x",
        "--",
        "NAME",
        "sh",
        "-c",
        script.JOIN,
        "RUN",
        script.GUEST,
        "60",
        "claude",
        "-p",
        "--",
        "-x",
    ]


@pytest.mark.parametrize("ephemeral", [True, False])
def test_a_variable_that_travels_on_stdin_is_on_no_command_line(ephemeral: bool) -> None:
    exec_ = argv.exec_argv("docker", name="NAME", user=USER, env=ENV, run_id="RUN", time_limit=60, command=["agent"])

    for words in (run_argv(ephemeral=ephemeral), exec_):
        flags = words[: words.index("--")]
        assert not [word for word in flags if "TOKEN" in word or "secret" in word]


def test_events() -> None:
    assert argv.events_argv("docker", name="N", event="oom", since=1.5, until=2.0004) == [
        *("docker", "events", "--since=1.500", "--until=2.000", "--filter=container=N", "--filter=event=oom")
    ]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (argv.remove_argv("docker", DOCKER, name="N"), ["docker", "rm", "--force", "--volumes", "--", "N"]),
        (
            argv.remove_argv("podman", PODMAN_ROOTLESS, name="N"),
            ["podman", "rm", "--force", "--volumes", "--time=0", "--", "N"],
        ),
        (
            argv.list_argv("docker", {"a.b": "", "c": "d"}),
            ["docker", "ps", "--all", "--quiet", "--no-trunc", "--filter=label=a.b", "--filter=label=c=d"],
        ),
        (argv.inspect_argv("docker", ["A", "B"]), ["docker", "inspect", "--type=container", "--", "A", "B"]),
        (argv.info_argv("docker"), ["docker", "info", "--format={{json .}}"]),
        (argv.version_argv("docker"), ["docker", "version", "--format={{json .}}"]),
        (argv.image_argv("docker", "i:1"), ["docker", "image", "inspect", "--format={{.Id}}", "--", "i:1"]),
        (
            argv.build_argv("docker", tag="t", arguments={"A": "b"}, inherited=["https_proxy"], pull=True, cache=False),
            [
                *("docker", "build", "--tag=t", "--pull", "--no-cache"),
                *("--build-arg=A=b", "--build-arg=https_proxy", "-"),
            ],
        ),
        (
            argv.build_argv("docker", tag="t", arguments={}, inherited=[], pull=False, cache=True),
            ["docker", "build", "--tag=t", "-"],
        ),
        (
            argv.import_argv("docker", tag="t", changes=["USER 1000"]),
            ["docker", "import", "--change=USER 1000", "-", "t"],
        ),
    ],
    ids=lambda value: "" if isinstance(value[0], list) else " ".join(value[:2]),
)
def test_the_other_verbs(words: list[str], expected: list[str]) -> None:
    assert words == expected


@pytest.mark.parametrize("terminal", [True, False])
def test_a_persons_command_gets_the_same_variables_and_a_terminal_if_there_is_one(terminal: bool) -> None:
    assert argv.shell_argv("docker", name="N", user=USER, env=ENV, terminal=terminal, command=["bash", "-l"]) == [
        *("docker", "exec", "--interactive"),
        *(["--tty", "--detach-keys=ctrl-@,ctrl-_"] if terminal else []),
        *("--user=1000:1001", "--workdir=/workspace", *AGENT, "--env=TOKEN", "--", "N", "bash", "-l"),
    ]


def test_a_trial_of_an_image_has_no_network_no_rights_and_nothing_of_the_host() -> None:
    words = argv.try_argv("docker", image="i", program="claude", arguments=["--version"])

    assert words[words.index("--") :] == ["--", "i", "--version"]
    assert {"--rm", "--pull=never", "--entrypoint=claude", "--network=none", "--read-only", "--cap-drop=ALL"} <= {
        *words
    }
    assert not [word for word in words if word.startswith(("--mount", "--volume", "-v", "--privileged"))]


# Quoting

ANY_PATH = st.text(st.characters(blacklist_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1).map(
    lambda text: "/" + text
)


@pytest.mark.parametrize(("gpus", "devices"), [("all", ["all"]), ("2", ["0", "1"]), ("device=GPU-1,3", ["GPU-1", "3"])])
def test_a_gpu_of_podmans_is_a_device(gpus: str, devices: list[str]) -> None:
    """podman 4 takes --gpus and does nothing."""
    words = run_argv(PODMAN, gpus=gpus)

    assert [word for word in words if "gpu" in word] == [f"--device=nvidia.com/gpu={device}" for device in devices]


@DIALECTS
def test_where_selinux_enforces_the_box_has_no_label_unless_it_is_given_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dialect: Dialect, mapping: list[str]
) -> None:
    enforce, disabled, own = tmp_path / "enforce", "--security-opt=label=disable", "--security-opt=label=type:my_t"
    monkeypatch.setattr(environment, "SELINUX", enforce)
    assert disabled not in run_argv(dialect)
    enforce.write_text("0")
    assert disabled not in run_argv(dialect)
    enforce.write_text("1")
    assert disabled in run_argv(dialect)
    assert disabled not in run_argv(dialect, extra_args=[own])


def test_docker_takes_no_proxy_from_its_own_configuration() -> None:
    words = run_argv(DOCKER, variables=ContainerEnv(spelled=("HTTPS_PROXY=http://mine:1",), named=(), values={}))

    given = {word.partition("=")[2] for word in words if word.startswith("--env=")}
    assert {"http_proxy=", "https_proxy=", "HTTP_PROXY=", "no_proxy=", "all_proxy=", "FTP_PROXY="} < given
    assert words.index("--env=HTTPS_PROXY=") < words.index("--env=HTTPS_PROXY=http://mine:1")  # the last one counts


def fields_of(word: str) -> list[str]:
    """What an engine reads in a --mount word."""
    (row,) = csv.reader([word.removeprefix("--mount=")], strict=True)
    return row


@pytest.mark.parametrize("path", ["/a,b", '/a"b', '/"', "/a b", "/a:b", "/ä€😀", "/a=b", "/a,readonly", "/a\\b", "/'"])
def test_a_mount_reads_back_as_it_was_meant(path: str) -> None:
    mounts = mounted(Mount(path, path, True))
    (bind,) = [word for word in run_argv(mounts=mounts) if word.startswith("--mount=")]

    assert fields_of(bind) == ["type=bind", f"src={path}", f"dst={path}", "readonly"]


def test_a_newline_in_a_path_stays_inside_its_field() -> None:
    # A resolved source may hold one, though no configured path may.
    assert next(csv.reader(argv.csv("src=/a\nb", "dst=/c").splitlines(keepends=True))) == ["src=/a\nb", "dst=/c"]


@given(source=ANY_PATH, target=ANY_PATH, read_only=st.booleans())
def test_every_accepted_mount_reads_back(source: str, target: str, read_only: bool) -> None:
    try:
        mount = Mount(source, target, read_only)
    except ConfigError:
        return
    mounts = mounted(mount)
    (word,) = [word for word in run_argv(mounts=mounts) if word.startswith("--mount=")]

    expected = ["type=bind", f"src={source}", f"dst={mount.target}", *(["readonly"] if read_only else [])]
    assert fields_of(word) == expected
