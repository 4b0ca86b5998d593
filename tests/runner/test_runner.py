"""Plans, and whole runs against a fake engine."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shlex
import string
import subprocess
import textwrap
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import attrs
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pytest_subprocess import FakeProcess

from container_runner.agents import ClaudeRuntime, CommandRuntime
from container_runner.agents.acp import AcpRuntime
from container_runner.box import script
from container_runner.box.argv import DOCKER, PODMAN, PODMAN_ROOTLESS
from container_runner.box.mounts import mount_table
from container_runner.box.plan import Plan
from container_runner.config.container import ContainerConfig
from container_runner.engine.engine import Engine
from container_runner.errors import AgentFailedError, ConfigError, TotalTimeoutError
from container_runner.options import Agent, ExecuteOptions
from container_runner.records.sessions import Sessions
from container_runner.runner import ContainerRunner, diagnosis
from container_runner.runner import run as run_module
from container_runner.stream import command as command_module
from container_runner.stream.command import Completed
from container_runner.stream.messages import ApiRetryMessage, AssistantMessage, ErrorMessage, Message, ResultMessage
from container_runner.stream.process import Process
from container_runner.stream.stream import total_timeout
from container_runner.testing import Call, FakeEngine
from container_runner.testing.stdin import Stdin

ENGINES = [Engine(binary=dialect.name, dialect=dialect, environ={}) for dialect in (DOCKER, PODMAN, PODMAN_ROOTLESS)]


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test depends on who runs it."""
    for name in ("ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def runner(tmp_path: Path, **config: Any) -> ContainerRunner:
    return ContainerRunner(ClaudeRuntime(), ContainerConfig(**{"image": "my/claude", **config}), tmp_path / "state")


def options(prompt: str = "Hello", **others: Any) -> ExecuteOptions:
    return ExecuteOptions(prompt=prompt, **{"agent": Agent(name="bot"), **others})


async def all_of(runner: ContainerRunner, given_: ExecuteOptions) -> list[Message]:
    return [message async for message in runner.execute(given_)]


async def failure(runner: ContainerRunner, given_: ExecuteOptions | None = None) -> ErrorMessage:
    last = (await all_of(runner, given_ or options()))[-1]
    assert isinstance(last, ErrorMessage)
    return last


# Plans


def without_ids(plan: Plan) -> str:
    text = "\n".join(map(shlex.join, plan.commands)).replace(plan.run_id, "RUN").replace(plan.container, "NAME")
    return re.sub(r"container-runner\.deadline=\d+", "container-runner.deadline=N", text)


@pytest.mark.parametrize("ephemeral", [True, False])
def test_a_plan_is_the_same_each_time_but_for_its_ids(tmp_path: Path, ephemeral: bool) -> None:
    one, two = (runner(tmp_path, ephemeral=ephemeral).plan(options(), engine=ENGINES[0]) for _ in range(2))

    assert one.run_id != two.run_id
    assert one.container != two.container
    assert re.fullmatch("[0-9a-f]{32}", one.run_id)
    assert without_ids(one) == without_ids(two)
    assert one.reuse_labels == two.reuse_labels


def test_planning_changes_nothing(tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))

    runner(tmp_path).plan(options(), engine=ENGINES[0])

    assert sorted(tmp_path.rglob("*")) == before


def test_an_ephemeral_run_is_one_command(tmp_path: Path) -> None:
    plan = runner(tmp_path).plan(options(), engine=ENGINES[0])

    assert plan.commands == (plan.run,)
    assert plan.run[1:4] == ("run", "--rm", "--interactive")
    assert plan.run[-len(plan.command) :] == plan.command
    assert plan.run == (*plan.waiting, *plan.command)
    assert plan.exec == ()


def test_the_commands_of_a_persistent_run(tmp_path: Path) -> None:
    plan = runner(tmp_path, ephemeral=False).plan(options(), engine=ENGINES[0])

    assert [command[1] for command in plan.commands] == ["ps", "run", "exec"]
    assert plan.commands[1:] == (plan.run, plan.exec)
    assert plan.waiting == ()
    assert plan.exec[-len(plan.command) :] == plan.command
    filters = {word.removeprefix("--filter=label=") for word in plan.commands[0] if word.startswith("--filter")}
    labels = {word.removeprefix("--label=") for word in plan.run if word.startswith("--label")}
    assert len(filters) == 4
    assert filters <= labels  # or it would never be found again


def test_an_exec_can_be_turned_to_a_container_that_was_found(tmp_path: Path) -> None:
    plan = runner(tmp_path, ephemeral=False).plan(options(), engine=ENGINES[0])

    found = plan.exec_in("another")

    assert [word for word in found if word not in plan.exec] == ["another"]
    assert len(found) == len(plan.exec)
    assert plan.exec_in(plan.container) == plan.exec


def test_a_session_in_a_container_of_a_pool_is_told_things_by_the_name_of_who_made_it(tmp_path: Path) -> None:
    """The script in there was started for the pool, and its FIFO has that id."""
    goose = ContainerRunner(AcpRuntime("goose", "acp"), ContainerConfig(image="i", engine="docker"), tmp_path)
    live = ExecuteOptions(prompt="", agent=Agent(name="bot"))
    waiting, plan = goose.plan(live), goose.plan(live)

    taken = plan.taken_by(waiting)

    assert plan.digest == waiting.digest
    assert taken.feed[-1] == waiting.run_id != plan.run_id
    assert taken.container == waiting.container
    assert taken.run_id == plan.run_id


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({}, True),
        ({"env": {"A": "b", "HTTPS_PROXY": "http://x"}, "max_containers": 2}, True),  # what concerns the exec, or us
        ({"memory": "1g"}, False),
        ({"image": "other"}, False),
        ({"network": "none"}, False),
        ({"labels": {"a": "b"}}, False),
        ({"read_only": False}, False),
    ],
)
def test_another_box_is_another_container(tmp_path: Path, change: dict[str, Any], same: bool) -> None:
    first = runner(tmp_path, ephemeral=False).plan(options(), engine=ENGINES[0])
    second = runner(tmp_path, **{"ephemeral": False, **change}).plan(options(), engine=ENGINES[0])

    assert (first.reuse_labels == second.reuse_labels) is same


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"env": {"A": "b"}, "secrets": ["PWD"]}, True),  # what comes on stdin
        ({"env": {"HTTPS_PROXY": "http://x"}}, False),  # what is spelled
        ({"memory": "1g"}, False),
        ({"time_limit": "1h"}, False),
    ],
)
def test_a_container_of_a_pool_serves_whatever_run_brings_the_rest_on_stdin(
    tmp_path: Path, change: dict[str, Any], same: bool
) -> None:
    first = runner(tmp_path).plan(options("one"), engine=ENGINES[0])
    agent = Agent(name="bot", model="opus", system_prompt="Be brief.")
    second = runner(tmp_path, **change).plan(options("two", agent=agent), engine=ENGINES[0])

    assert first.command != second.command
    assert (first.digest == second.digest) is same


@pytest.mark.parametrize(
    ("flag", "others"),
    [
        ("--mount=type=bind,src=/a,dst=/b", True),
        ("--volume=/a:/b", True),
        ("--volumes-from=x", True),
        ("-v/a:/b", True),
        ("--tmpfs=/x", True),
        ("--runtime=runsc", False),
        ("--env=A=--mount", False),
    ],
)
def test_the_mounts_of_extra_args_are_let_be(tmp_path: Path, flag: str, others: bool) -> None:
    plan = runner(tmp_path, extra_args=[flag]).plan(options(), engine=ENGINES[0])

    assert plan.other_mounts is others
    assert Stdin.of(plan.stdin()).fields["others"] == ("yes" if others else "")
    assert not runner(tmp_path).plan(options(), engine=ENGINES[0]).other_mounts


def test_what_an_agents_container_is_told_on_stdin(tmp_path: Path) -> None:
    plan = runner(tmp_path, env={"A": "it's\nme"}).plan(options("2 + 2?", grace=7), engine=ENGINES[0])

    told = Stdin.of(plan.stdin())

    assert told.prompt == b"2 + 2?"
    assert told.variables == {"A": "it's\nme"}
    assert (told.fields["token"], told.fields["grace"], told.fields["size"]) == (plan.token, "7", "6")
    assert told.fields["kernel"] == mount_table()[1]
    assert told.fields["mounts"].strip("\n").split("\n") == plan.mounted.in_kernel(mount_table()[0])
    assert not re.search(rb"\nset -- ", plan.stdin())
    assert b"\nset -- claude -p " in plan.stdin(with_command=True)


def test_a_setup_and_a_check_travel_on_stdin_and_are_shown(tmp_path: Path) -> None:
    plan = runner(tmp_path).plan(options("2 + 2?", setup="echo 'a\nb'", check="make test"), engine=ENGINES[0])

    told = Stdin.of(plan.stdin()).fields

    assert (told["setup"], told["check"]) == ("echo 'a\nb'", "make test")
    assert not any("make test" in word for command in plan.commands for word in command)
    assert plan.told_on_stdin.splitlines()[:2] == [
        "# before the agent: sh -c \"echo 'a\\nb'\"",
        '# after the agent: sh -c "make test"',
    ]


@pytest.mark.parametrize(
    ("fields", "is_told"),
    [
        ({"network": "none"}, False),
        ({"network": "gateway"}, True),
        ({"workspace_mode": "carried"}, True),
        ({"network": "gateway", "ephemeral": False}, False),  # the exec has it
    ],
)
def test_a_command_that_travels_on_stdin_is_told(tmp_path: Path, fields: dict[str, Any], is_told: bool) -> None:
    words = ["my agent", "two\nlines", "it's", f"--key={SECRET}", json.dumps({"key": f'"{SECRET}"'})]
    box = {"credentials": "none", "env": {"TOKEN": f'"{SECRET}"', "KEY": SECRET}, "user": "root", **fields}
    config = ContainerConfig(image="i", **box)
    (tmp_path / "work").mkdir(mode=0o777)
    agent = Agent(name="bot", workspace=tmp_path / "work")
    plan = ContainerRunner(CommandRuntime(words), config, tmp_path / "state").plan(
        options(agent=agent), engine=ENGINES[0]
    )

    told = [line for line in plan.to_shell().splitlines() if line.startswith("# the agent")]

    shown = """# the agent, in the header: 'my agent' "two\\nlines" 'it'"'"'s' '--key=[KEY]' '{"key": "[TOKEN]"}'"""
    assert told == ([shown] if is_told else [])
    assert ("my agent" in {word for command in plan.commands for word in command}) != is_told
    assert shlex.split(plan.to_shell(), comments=True) == [word for command in plan.commands for word in command]


@pytest.mark.parametrize(("size", "fits"), [(128 * 1024, True), (128 * 1024 + 1, False)])
def test_a_variable_that_the_kernel_would_not_take_is_refused(tmp_path: Path, size: int, fits: bool) -> None:
    value = "ä" + "x" * (size - len(b"NAME=\xc3\xa4\0"))
    plan = runner(tmp_path, env={"NAME": value}).plan(options(), engine=ENGINES[0])

    if fits:
        environ = {"PATH": os.environ["PATH"], **Stdin.of(plan.stdin()).variables}
        assert subprocess.run(["true"], env=environ, check=False).returncode == 0
        with pytest.raises(OSError, match="too long"):
            subprocess.run(["true"], env={**environ, "NAME": f"{value}x"}, check=False)
        return
    with pytest.raises(ConfigError) as caught:
        plan.stdin()
    assert (caught.value.field, caught.value.value) == ("env.NAME", f"{128 * 1024 + 1} bytes")
    assert "xxx" not in str(caught.value)


def test_other_agents_workspaces_and_state_folders_have_other_containers(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir(mode=0o777)
    config = ContainerConfig(image="i", ephemeral=False, user="root")
    plans = [
        ContainerRunner(ClaudeRuntime(), config, tmp_path / state).plan(
            options(agent=Agent(name=name, workspace=workspace)), engine=ENGINES[0]
        )
        for state, name, workspace in [
            ("s", "a", None),
            ("s", "b", None),
            ("t", "a", None),
            ("s", "a", tmp_path / "work"),
        ]
    ]

    assert len({tuple(sorted(plan.reuse_labels.items())) for plan in plans}) == 4


SECRET = "s3cr3t-v4lue"


def test_no_secret_is_in_a_plan_that_can_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SECRET", SECRET)
    monkeypatch.setenv("ANTHROPIC_API_KEY", SECRET + "-key")
    config = {"env": {"TOKEN": SECRET + "-env"}, "secrets": ["MY_SECRET"]}

    plan = runner(tmp_path, **config).plan(options(SECRET + "-prompt"), engine=ENGINES[0])

    assert SECRET not in plan.to_shell()
    assert SECRET not in repr(plan)
    assert SECRET not in repr(plan.commands)
    assert SECRET not in repr(ContainerConfig(image="i", **config))  # type: ignore[arg-type]  # the fields vary
    assert set(plan.variables) == {"ANTHROPIC_API_KEY", "TOKEN", "MY_SECRET"}
    assert Stdin.of(plan.stdin()).variables == plan.values
    assert plan.values["MY_SECRET"] == SECRET


def test_a_plan_can_be_pasted(tmp_path: Path) -> None:
    (tmp_path / "it's a folder").mkdir()
    config = {"volumes": [f"{tmp_path}/it's a folder:/data"]}

    plan = runner(tmp_path, **config).plan(options(), engine=ENGINES[0])

    pasted = shlex.split(plan.to_shell(), comments=True)
    assert pasted == [word for command in plan.commands for word in command]


def test_a_prompt_that_is_too_long_is_refused_before_anything_is_started(tmp_path: Path, fp: FakeProcess) -> None:
    with pytest.raises(ConfigError) as caught:
        runner(tmp_path).execute(options("x" * (script.PROMPT_LIMIT + 1)))

    assert caught.value.field == "prompt"
    assert not fp.calls


@pytest.mark.parametrize("workspace", ["/etc", "/nowhere/at/all"])
def test_a_workspace_that_is_refused_is_refused_when_execute_is_called(tmp_path: Path, workspace: str) -> None:
    with pytest.raises(ConfigError):
        runner(tmp_path).execute(options(agent=Agent(name="bot", workspace=workspace)))


# No word of ours can be turned into another flag

TEXT = st.text(st.characters(blacklist_categories=["Cs"]), max_size=30)
WORD = TEXT | st.sampled_from(["--privileged", "-v=/:/x", "--", "-", "--user=0", "--mount=x"])
NAME = WORD | st.text(string.ascii_letters + "_-=.:", min_size=1, max_size=10)


def hostile(good: Any, others: st.SearchStrategy[Any] = NAME) -> st.SearchStrategy[Any]:
    """Mostly what is good, so that a hostile value in one place meets good ones in the others."""
    return st.integers(0, 9).flatmap(lambda n: others if n == 0 else st.just(good))


def hostile_list(good: str) -> st.SearchStrategy[list[str]]:
    return st.lists(hostile(good), max_size=1)


CONFIGS = st.fixed_dictionaries(
    {
        "image": hostile("my/image"),
        "network": hostile("bridge"),
        "env": st.dictionaries(hostile("A"), WORD, max_size=2),
        "labels": st.dictionaries(hostile("a"), hostile("b"), max_size=2),
        "add_host": hostile_list("a:1.2.3.4"),
        "devices": hostile_list("/dev/null"),
        "ulimits": hostile_list("nofile=5"),
        "volumes": hostile_list("/tmp:/data:ro"),
        "tmpfs": hostile_list("/cache:size=1m"),
        "ports": hostile_list("80"),
        "user": hostile("1:2"),
        "memory": hostile("1g"),
    }
)
AGENTS = st.fixed_dictionaries(
    {
        "name": hostile("bot"),
        "model": st.none() | WORD,
        "system_prompt": st.none() | WORD,
        "allowed_tools": st.lists(WORD, max_size=2),
        "args": st.lists(WORD, max_size=2),
    }
)


def flags(command: Sequence[str]) -> Sequence[str]:
    """The engine's own flags, each of which is one word."""
    return command[2 : command.index("--")]


def shape(command: Sequence[str]) -> Counter[str]:
    """How often each flag is there."""
    return Counter(word.partition("=")[0] for word in flags(command))


def values(command: Sequence[str], flag: str) -> list[str]:
    return [word.removeprefix(f"{flag}=") for word in flags(command) if word.startswith(f"{flag}=")]


def fixed(command: Sequence[str], *others: str) -> list[str]:
    """The flags that nothing of what is varied here may change, with their values."""
    varied = {*others, "--name", "--user", "--network", "--memory", "--memory-swap"}
    return [word for word in flags(command) if word.partition("=")[0] not in varied]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(
    engine=st.sampled_from(ENGINES),
    prompt=WORD,
    config=CONFIGS,
    ephemeral=st.booleans(),
    agent=AGENTS,
    resume=st.none() | hostile("abc-def"),
)
def test_whatever_is_given_is_refused_or_changes_no_flag(
    tmp_path: Path,
    engine: Engine,
    prompt: str,
    config: dict[str, Any],
    ephemeral: bool,
    agent: dict[str, Any],
    resume: str | None,
) -> None:
    try:
        given_ = options(prompt, agent=Agent(**agent), resume=resume)
        plan = runner(tmp_path, ephemeral=ephemeral, **config).plan(given_, engine=engine)
    except ConfigError:
        return

    plain = runner(tmp_path, ephemeral=ephemeral).plan(options(), engine=engine)
    asked = {"--label": "labels", "--add-host": "add_host", "--device": "devices", "--ulimit": "ulimits",
             "--mount": "volumes", "--tmpfs": "tmpfs", "--publish": "ports"}  # fmt: skip
    assert shape(plan.run) == shape(plain.run) + Counter({flag: len(config[key]) for flag, key in asked.items()})
    assert fixed(plan.run, *asked) == fixed(plain.run, *asked)
    assert values(plan.run, "--network") == [config["network"]]
    assert {f"{key}={value}" for key, value in config["labels"].items()} <= {*values(plan.run, "--label")}
    runs_agent = plan.run if ephemeral else plan.exec
    if not ephemeral:
        assert values(plan.run, "--user") == ["65534:65534"]
        assert fixed(plan.exec) == fixed(plain.exec)
        assert plan.exec[plan.exec.index("--") + 1] == plan.container
    assert values(runs_agent, "--user") == [config["user"]]
    assert values(runs_agent, "--env") == values(plain.run if ephemeral else plain.exec, "--env")
    assert not [word for command in (plan.run, plan.exec) for word in command if "\0" in word]
    assert [word for word in runs_agent if word.startswith("--resume")] == ([f"--resume={resume}"] if resume else [])
    assert plan.run[plan.run.index("--") + 1] == config["image"]
    told = Stdin.of(plan.stdin(with_command=True))
    assert (told.prompt, told.variables) == (prompt.encode(), config["env"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.text(string.ascii_letters + string.digits + " -\n", min_size=12))
def test_a_prompt_is_on_no_command_line(tmp_path: Path, prompt: str) -> None:
    assert f"Q{prompt}Q" not in runner(tmp_path).plan(options(f"Q{prompt}Q"), engine=ENGINES[0]).to_shell()


# Whole runs


async def test_messages_come_as_the_agent_says_them(fake_engine: FakeEngine, tmp_path: Path) -> None:
    fake_engine.reply("It is 4.")

    messages = await all_of(runner(tmp_path), options("2 + 2?"))

    assert isinstance(messages[1], AssistantMessage)
    assert isinstance(messages[2], ResultMessage)
    assert len(messages) == 3


@pytest.mark.parametrize("ephemeral", [True, False])
async def test_what_is_run_is_what_was_planned(fake_engine: FakeEngine, tmp_path: Path, ephemeral: bool) -> None:
    fake_engine.reply("Hello.")
    subject = runner(tmp_path, ephemeral=ephemeral)
    await all_of(subject, options())

    plan = subject.plan(options())

    ran = [call.argv for call in fake_engine.calls if call.argv[1] in ("run", "exec")]
    planned = plan.commands[-len(ran) :]
    assert [len(words) for words in ran] == [len(words) for words in planned]
    assert len(ran) == (1 if ephemeral else 2)
    labels = [word for word in ran[0] if word.startswith("--label=container-runner.run=")]
    run_id = labels[0].rpartition("=")[2]
    name = next(word for word in ran[0] if word.startswith("--name=")).removeprefix("--name=")
    shown = "\n".join(shlex.join(words) for words in ran).replace(run_id, "RUN").replace(name, "NAME")
    shown = re.sub(r"container-runner\.deadline=\d+", "container-runner.deadline=N", shown)
    assert without_ids(plan).endswith(shown)


async def test_an_ephemeral_run_that_goes_well_is_one_call(fake_engine: FakeEngine, tmp_path: Path) -> None:
    fake_engine.reply("Hello.")
    subject = runner(tmp_path)
    await all_of(subject, options())
    del fake_engine.calls[:]  # the first run asks the engine what it is, and looks for what others left
    fake_engine.reply("Again.")

    await all_of(subject, options())

    assert [call.argv[1] for call in fake_engine.calls] == ["run"]


async def test_the_folders_that_the_first_run_makes_do_not_make_the_second_another_box(
    fake_engine: FakeEngine, tmp_path: Path
) -> None:
    (tmp_path / "work/.git/refs").mkdir(parents=True)
    (tmp_path / "work/.git/objects").mkdir()
    (tmp_path / "work/.git/HEAD").touch()
    (tmp_path / "work").chmod(0o777)  # for any user
    config = ContainerConfig(image="my/claude", ephemeral=False)
    runner = ContainerRunner(ClaudeRuntime(), config, tmp_path / "work/.container-runner", records=False)
    given_ = options(agent=Agent(name="bot", workspace=tmp_path / "work"))
    before = runner.plan(given_).digest
    fake_engine.reply("Hi")

    await all_of(runner, given_)

    assert (tmp_path / "work/.git/hooks").is_dir()
    after = runner.plan(given_).digest
    assert before != after
    assert f"--label=container-runner.config={after}" in fake_engine.run_argv


@pytest.mark.parametrize("ephemeral", [True, False])
async def test_a_secret_goes_to_the_agents_stdin_alone_and_is_scrubbed_from_what_it_writes(
    fake_engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ephemeral: bool
) -> None:
    monkeypatch.setenv("MY_SECRET", SECRET)
    monkeypatch.setenv("ANTHROPIC_API_KEY", f"{SECRET}-key")
    fake_engine.messages([], exit_code=1, stderr=f"invalid key {SECRET}!")
    config = {"ephemeral": ephemeral, "secrets": ["MY_SECRET"], "env": {"TOKEN": f"{SECRET}-env"}}

    error = await failure(runner(tmp_path, **config))

    assert error.stderr.strip() == "invalid key [MY_SECRET]!"
    told = [call for call in fake_engine.calls if SECRET.encode() in call.stdin]
    assert [call.argv for call in told] == [fake_engine.agent_argv]
    assert fake_engine.variables["MY_SECRET"] == SECRET
    assert fake_engine.variables["ANTHROPIC_API_KEY"] == f"{SECRET}-key"
    for call in fake_engine.calls:
        assert SECRET not in " ".join([*call.argv, *call.env, *call.env.values()])


async def test_an_error_says_no_secret_in_whatever_form_the_agent_said_it(
    fake_engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem = "-----BEGIN KEY-----\nMIIEowIBAAKCAQEA0Z3VS5JJ\n-----END KEY-----\n"
    for name, value in {"MY_SECRET": SECRET, "PEM": pem}.items():
        monkeypatch.setenv(name, value)
    said = [SECRET, json.dumps(pem), base64.b64encode(f"user:{SECRET}".encode()).decode(), textwrap.indent(pem, "  ")]
    failed = {"type": "result", "subtype": "success", "is_error": True, "result": " ".join(said[:3])}
    fake_engine.messages([failed], exit_code=1, stderr="\n".join(said))
    work = runner(tmp_path, secrets=["MY_SECRET", "PEM"])

    *_, error = await all_of(work, options())
    fake_engine.messages([failed], exit_code=1, stderr="\n".join(said))
    with pytest.raises(AgentFailedError) as raised:
        await work.run(options())

    for shown in (repr(error), error.to_json().decode(), str(raised.value), repr(raised.value), *raised.value.args):
        assert not [word for word in (SECRET, "MIIEow", said[2][8:24]) if word in shown]
    assert isinstance(error, ErrorMessage)
    assert error.message.startswith("claude failed: [MY_SECRET] ")


# Why an agent was not started

ID = "ab" * 16
"""The id of a run, and its token too, where a test says what they are."""


@pytest.fixture
def known_id(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("secrets.token_hex", lambda _: ID)
    monkeypatch.setattr(run_module, "TRANSIENT", ())  # one attempt
    return ID


def inspected(status: str, **state: Any) -> bytes:
    return orjson.dumps([{"Id": "f" * 64, "Name": "/x", "State": {"Status": status, **state}}] if status else [])


NOT_STARTED = [
    # code, stderr, kind, what the message names
    (125, "docker: Error response from daemon: No such image: my/claude", "image_not_found", "image"),
    (125, "docker: invalid reference format", "engine_argument", "argument"),
    (1, "Cannot connect to the Docker daemon at unix:///x. Is it running?", "engine_unreachable", "daemon"),
    (125, "docker: Error response from daemon: context deadline exceeded", "engine_busy", "just now"),
    (127, 'docker: Error response from daemon: exec: "sh": executable file not found in $PATH: unknown.',
     "image_unsuitable", "shell"),
    (69, "container-runner: missing ID mkfifo wc", "image_unsuitable", "mkfifo, wc"),
    (69, "container-runner: other-sh ID other-sh", "image_unsuitable", "ksh or zsh"),
    (69, "container-runner: unsealed ID unsealed", "image_unsuitable", "my/claude"),
    (69, "container-runner: mounts ID /workspace", "mount", "/workspace"),
    (69, "container-runner: mounts ID", "mount", "a planned place"),
    (71, "container-runner: no-command ID", "command_not_found", "claude"),
    (71, "", "command_not_found", "claude"),
    (72, "container-runner: not-executable ID", "command_not_executable", "claude"),
    (72, "", "command_not_executable", "claude"),
    (69, "container-runner: prompt-lost ID", "engine_busy", "no room"),
    (69, "container-runner: no-command not-the-ID", "container_gone", "ended while"),
    (125, "?", "engine", "failed with code 125"),
    (126, "?", "engine", "failed with code 126"),
    (127, "?", "engine", "failed with code 127"),
    (0, "", "container_gone", "ended while"),
    (70, "", "container_gone", "ended while"),
    (137, "", "container_gone", "ended while"),
    (143, "Terminated", "container_gone", "ended while"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "stderr", "kind", "told"), NOT_STARTED, ids=[f"{code} {stderr[:40]}" for code, stderr, *_ in NOT_STARTED]
)
async def test_a_start_that_fails_is_one_error_and_leaves_nothing(
    fake_engine: FakeEngine,
    fp: FakeProcess,
    tmp_path: Path,
    known_id: str,
    code: int,
    stderr: str,
    kind: str,
    told: str,
) -> None:
    fp.register(["docker", "run", fp.any()], returncode=code, stderr=stderr.replace(" ID", f" {known_id}") + "\n")
    fake_engine.reply("never said")

    (error,) = await all_of(runner(tmp_path), options())

    assert isinstance(error, ErrorMessage)
    as_a_shell = {"command_not_found": 127, "command_not_executable": 126}
    assert (error.kind, error.exit_code) == (kind, as_a_shell.get(kind, code))
    assert told in error.message
    assert [call.argv[1] for call in fake_engine.calls].count("run") == 1
    assert (fake_engine.calls[-1].argv[1] == "rm") is (code == 125)  # else its end was in order, and --rm did it


@pytest.mark.parametrize(
    ("status", "code", "stderr", "kind"),
    [
        ("running", 126, "?", "engine"),
        ("exited", 126, "?", "container_gone"),
        ("", 126, "?", "container_gone"),
        ("running", 69, f"container-runner: mounts {ID} /workspace", "mount"),
        ("running", 71, f"container-runner: no-command {ID}", "command_not_found"),
        ("running", 71, "", "command_not_found"),
        ("exited", 255, "Error: cannot exec in a stopped state: unknown", "container_gone"),
    ],
)
async def test_an_agent_that_is_not_started_in_a_kept_container(
    fake_engine: FakeEngine,
    fp: FakeProcess,
    tmp_path: Path,
    known_id: str,
    status: str,
    code: int,
    stderr: str,
    kind: str,
) -> None:
    """It may be that its container ended at that moment, in words that nobody knows."""
    fp.register(["docker", "exec", "--interactive", fp.any()], returncode=code, stderr=f"{stderr}\n")
    fp.register(["docker", "inspect", fp.any()], stdout=inspected(status), occurrences=9)
    fake_engine.reply("never said")

    error = await failure(runner(tmp_path, ephemeral=False))

    as_a_shell = {"command_not_found": 127, "command_not_executable": 126}
    assert (error.kind, error.exit_code) == (kind, as_a_shell.get(kind, code))
    # One that refused a command is as good as before.
    assert [call.argv[1] for call in fake_engine.calls].count("rm") == (kind != "command_not_found")


# Why nobody said how an agent ended

LOST = [
    # how the engine's client ended, what the engine says of the container, what its events say, kind
    (-9, "", "", "exec_lost"),
    (-15, "", "", "exec_lost"),
    (125, "", "", "engine_unreachable"),
    (137, "", "2026-01-01 container oom abc", "out_of_memory"),
    (137, "", "", "container_gone"),
    (137, "exited", "", "container_gone"),
    (137, "exited and out of memory", "", "out_of_memory"),
    (137, "running", "", "agent_killed"),
    (script.EXIT_LOST, "", "", "agent_killed"),
    (script.EXIT_LOST, "running", "", "agent_killed"),
    (143, "", "2026-01-01 container oom abc", "container_gone"),  # it was not killed
    (143, "", "", "container_gone"),
    (255, "", "", "container_gone"),
]


@pytest.mark.parametrize(("code", "status", "events", "kind"), LOST)
@pytest.mark.parametrize("ephemeral", [True, False])
async def test_an_agent_of_whose_end_nobody_tells(
    fake_engine: FakeEngine,
    fp: FakeProcess,
    tmp_path: Path,
    known_id: str,
    ephemeral: bool,
    code: int,
    status: str,
    events: str,
    kind: str,
) -> None:
    start: list[Any] = ["docker", *(["run", "--rm"] if ephemeral else ["exec"]), fp.any()]
    fp.register(start, returncode=code, stderr=f"container-runner: started {known_id}\nits own words\n")
    answer = inspected(status.partition(" ")[0], OOMKilled="memory" in status)
    fp.register(["docker", "inspect", fp.any()], stdout=answer, occurrences=9)
    fp.register(["docker", "events", fp.any()], stdout=events)
    fake_engine.reply("never said")

    error = await failure(runner(tmp_path, ephemeral=ephemeral))

    assert (error.kind, error.exit_code, error.stderr.strip()) == (kind, code, "its own words")
    # Whatever its client made of it: nobody has seen the end.
    assert [call.argv[1] for call in fake_engine.calls].count("rm") == 1


@pytest.mark.parametrize("ephemeral", [True, False])
async def test_an_end_that_was_told_on_stdout_alone_was_told(
    fake_engine: FakeEngine, fp: FakeProcess, tmp_path: Path, known_id: str, ephemeral: bool
) -> None:
    start: list[Any] = ["docker", *(["run", "--rm"] if ephemeral else ["exec"]), fp.any()]
    result = '{"type": "result", "subtype": "success", "is_error": false}'
    stdout = f"{result}\n\ncontainer-runner: ended {known_id} 0\n"
    fp.register(start, stdout=stdout, stderr=f"container-runner: started {known_id}\n")
    fake_engine.reply("never said")

    (said,) = await all_of(runner(tmp_path, ephemeral=ephemeral), options())

    assert isinstance(said, ResultMessage)


async def test_podman_can_not_tell_of_memory_what_is_gone(
    fake_engine: FakeEngine, fp: FakeProcess, tmp_path: Path, known_id: str
) -> None:
    fp.register(["podman", "run", fp.any()], returncode=137, stderr=f"container-runner: started {known_id}\n")
    fake_engine.reply("never said")

    assert (await failure(runner(tmp_path, engine="podman"))).kind == "container_gone"


async def test_an_engine_that_does_not_answer_about_a_lost_agent_is_the_error(
    fake_engine: FakeEngine, fp: FakeProcess, tmp_path: Path, known_id: str
) -> None:
    fp.register(["docker", "run", fp.any()], returncode=1, stderr=f"container-runner: started {known_id}\n")
    down = "Cannot connect to the Docker daemon at unix:///x"
    fp.register(["docker", "inspect", fp.any()], returncode=1, stderr=down, occurrences=9)
    fake_engine.reply("never said")

    assert (await failure(runner(tmp_path))).kind == "engine_unreachable"


async def test_an_agent_whose_container_ends_with_its_time_is_told_of_the_limit(
    fake_engine: FakeEngine, fp: FakeProcess, tmp_path: Path, known_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fp.register(["docker", "run", fp.any()], returncode=143, stderr=f"container-runner: started {known_id}\n")
    fake_engine.reply("never said")
    for module in (run_module, diagnosis):
        monkeypatch.setattr(module, "is_overdue", lambda _: True)

    error = await failure(runner(tmp_path, time_limit="1m"))

    assert error.kind == "container_gone"
    assert "60 seconds" in error.message
    assert "--time-limit" in error.next_step


async def test_the_total_clock_runs_also_while_the_agent_is_started(
    fake_engine: FakeEngine, fp: FakeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_over = threading.Event()

    def told(given: ExecuteOptions) -> TotalTimeoutError:
        is_over.set()
        return total_timeout(given)

    monkeypatch.setattr(run_module, "total_timeout", told)
    fp.register(["docker", "run", fp.any()], callback=lambda _: is_over.wait(30), occurrences=9)
    fake_engine.reply("never said")
    timeout = 0.1
    clients: list[Call] = []
    while not clients:  # on a busy machine a short time may be over before the client is there
        timeout *= 2
        is_over.clear()
        assert (await failure(runner(tmp_path), options(timeout=timeout))).kind == "total_timeout"
        clients = [call for call in fake_engine.calls if call.argv[:2] == ("docker", "run")]

    assert is_over.is_set()
    assert clients[0].returncode == 0, "it was not cut off"


async def test_a_start_that_failed_in_passing_is_tried_again_under_another_name(
    fake_engine: FakeEngine, fp: FakeProcess, tmp_path: Path
) -> None:
    busy = "docker: Error response from daemon: context deadline exceeded"
    fp.register(["docker", "run", fp.any()], returncode=125, stderr=busy)
    fake_engine.reply("At last.")

    last = (await all_of(runner(tmp_path), options()))[-1]

    assert isinstance(last, ResultMessage)
    names = [word for call in fake_engine.calls for word in call.argv if word.startswith("--name=")]
    assert len(set(names)) == 2


async def test_the_tries_are_at_random_times(
    fake_engine: FakeEngine, fp: FakeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or all that failed together would fail together again."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    busy = "docker: Error response from daemon: context deadline exceeded"
    fp.register(["docker", "run", fp.any()], returncode=125, stderr=busy, occurrences=12)
    fake_engine.reply("never said")
    monkeypatch.setattr(anyio, "sleep", sleep)
    monkeypatch.setattr(run_module, "START_ATTEMPTS", 12)

    error = await failure(runner(tmp_path))

    assert error.kind == "engine_busy"
    assert len(waits) == len({*waits}) == 10
    assert all(0 <= wait <= 2 for wait in waits)


async def test_no_more_control_commands_run_at_once_than_the_machine_bears(monkeypatch: pytest.MonkeyPatch) -> None:
    now = most = 0

    async def run(*_: object, **__: object) -> Completed:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await anyio.sleep(0.01)
        now -= 1
        return Completed(returncode=0, stdout=b"", stderr="")

    monkeypatch.setattr(command_module, "run", run)
    async with anyio.create_task_group() as tasks:
        for _ in range(50):
            tasks.start_soon(ENGINES[0].run, ["docker", "ps"])

    assert most == 2 * (os.cpu_count() or 1)


async def test_a_start_that_fails_for_good_is_not_tried_again(
    fake_engine: FakeEngine, fp: FakeProcess, tmp_path: Path
) -> None:
    fp.register(["docker", "run", fp.any()], returncode=125, stderr="docker: invalid reference format")
    fake_engine.reply("never said")

    await failure(runner(tmp_path))

    assert [call.argv[1] for call in fake_engine.calls].count("run") == 1


async def test_a_start_is_not_tried_for_ever(fake_engine: FakeEngine, fp: FakeProcess, tmp_path: Path) -> None:
    fp.register(["docker", "run", fp.any()], returncode=125, stderr="Error: database is locked", occurrences=10)
    fake_engine.reply("never said")

    assert (await failure(runner(tmp_path))).kind == "engine_busy"
    assert [call.argv[1] for call in fake_engine.calls].count("run") == 3


@pytest.mark.parametrize(("code", "kind"), [(0, "cleanup"), (3, "agent_failed")])
async def test_what_could_not_be_removed_is_an_error_with_its_name_unless_the_agent_failed(
    fake_engine: FakeEngine, fp: FakeProcess, tmp_path: Path, known_id: str, code: int, kind: str
) -> None:
    """The daemon was lost when the agent had ended, so that nobody has seen to --rm."""
    result = b'{"type": "result", "subtype": "success", "is_error": false, "result": "4"}\n'
    ended = f"container-runner: ended {known_id} {code}\n"
    fp.register(
        ["docker", "run", fp.any()],
        stdout=(result if code == 0 else b"") + f"\n{ended}".encode(),
        stderr=f"container-runner: started {known_id}\n{ended}",
        returncode=125,
    )
    fp.register(["docker", "rm", fp.any()], returncode=1, stderr="Error: device is stuck", occurrences=10)
    fake_engine.reply("never said")

    error = await failure(runner(tmp_path))

    assert error.kind == kind
    assert ("container-runner-bot-" in error.message) is (kind == "cleanup")


@pytest.mark.parametrize("how", ["break", "raise", "cancel"])
@pytest.mark.parametrize("ephemeral", [True, False])
async def test_however_a_reader_leaves_the_agent_is_stopped_by_its_lease(
    fake_engine: FakeEngine, tmp_path: Path, how: str, ephemeral: bool
) -> None:
    fake_engine.messages([{"type": "system", "subtype": "init"}], hang=True)

    with contextlib.suppress(ZeroDivisionError), anyio.move_on_after(60) as scope:
        async with aclosing(runner(tmp_path, ephemeral=ephemeral).execute(options())) as messages:
            async for _ in messages:
                if how == "cancel":
                    scope.cancel()
                if how == "break":
                    break
                if how == "raise":
                    raise ZeroDivisionError

    client = next(call for call in fake_engine.calls if call.argv == fake_engine.agent_argv)
    assert client.returncode == 0
    assert "rm" not in [call.argv[1] for call in fake_engine.calls]  # --rm has done it, or it waits for its next run


@pytest.mark.parametrize(("code", "kind"), [(137, "agent_killed"), (139, "agent_killed"), (1, "agent_failed")])
async def test_how_an_agent_ended(fake_engine: FakeEngine, tmp_path: Path, code: int, kind: str) -> None:
    fake_engine.messages([], exit_code=code)

    error = await failure(runner(tmp_path))

    as_a_shell = {"command_not_found": 127, "command_not_executable": 126}
    assert (error.kind, error.exit_code) == (kind, as_a_shell.get(kind, code))


async def test_an_agent_that_ends_without_a_result_is_incomplete(fake_engine: FakeEngine, tmp_path: Path) -> None:
    fake_engine.messages([{"type": "system", "subtype": "init"}])

    assert (await failure(runner(tmp_path))).kind == "incomplete"


async def test_runs_at_the_same_time_keep_apart(fake_engine: FakeEngine, tmp_path: Path) -> None:
    for n in range(8):
        fake_engine.reply(f"reply {n}")
    subject = ContainerRunner(ClaudeRuntime(), ContainerConfig(image="i"), tmp_path / "state")
    results: list[str] = []

    async def one() -> None:
        last = (await all_of(subject, options()))[-1]
        assert isinstance(last, ResultMessage)
        results.append(last.result)

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(one)

    assert sorted(results) == [f"reply {n}" for n in range(8)]


async def test_a_persistent_agent_finds_its_container_again(
    fake_engine: FakeEngine, fp: FakeProcess, tmp_path: Path
) -> None:
    subject = runner(tmp_path, ephemeral=False)
    labels = {"container-runner.run": "r", "container-runner.name": "found", **subject.plan(options()).reuse_labels}
    fp.register(["docker", "ps", fp.any()], stdout=["f" * 64], occurrences=10)
    raw = {"Id": "f" * 64, "Name": "/found", "Config": {"Labels": labels}, "State": {"Status": "running"}}
    fp.register(["docker", "inspect", fp.any()], stdout=orjson.dumps([raw]), occurrences=10)
    fake_engine.reply("Still here.")

    last = (await all_of(subject, options()))[-1]

    assert isinstance(last, ResultMessage)
    assert "found" in fake_engine.agent_argv
    assert not {call.argv[1] for call in fake_engine.calls} & {"run", "rm"}


async def test_a_command_in_the_place_of_claude(fake_engine: FakeEngine, tmp_path: Path) -> None:
    fake_engine.messages(["one", '{"type": "status"}'])
    subject = ContainerRunner(CommandRuntime(["agent", "--fast"]), ContainerConfig(image="i"), tmp_path)

    assert len(await all_of(subject, options())) == 2
    assert fake_engine.agent_argv[-2:] == ("agent", "--fast")


def test_a_plans_values_and_prompt_are_in_no_repr() -> None:
    hidden = {field.name for field in attrs.fields(Plan) if field.repr is False}

    assert {"values", "hidden", "prompt", "token"} <= hidden


async def test_a_start_that_takes_too_long_says_so(
    fake_engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(_: Process, timeout: float) -> bool:
        raise TimeoutError

    monkeypatch.setattr(Process, "wait_for_gate", never)
    fake_engine.messages(["hello"])

    error = await failure(runner(tmp_path))

    assert (error.kind, error.message) == ("engine_timeout", "The agent had not started in time.")


async def test_a_shell_that_floods_instead_of_starting_the_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "STOP_SLACK", 0.5)
    engine = tmp_path / "docker"
    engine.write_text("""\
#!/bin/sh
case $1 in
  --version) echo "Docker version 28.2.2, build e6534b4" ;;
  run) exec 2>&-; exec yes No such container ;;
esac
""")
    engine.chmod(0o755)

    error = await failure(runner(tmp_path, engine=str(engine)))

    assert error.kind == "engine_timeout"
    assert "did not end" in error.message


async def test_the_total_clock_runs_also_while_the_engine_is_asked_what_it_is(tmp_path: Path) -> None:
    engine = tmp_path / "docker"
    engine.write_text("#!/bin/sh\nsleep 1000\n")
    engine.chmod(0o755)

    with anyio.fail_after(20):
        error = await failure(runner(tmp_path, engine=str(engine)), options(timeout=0.3))

    assert error.kind == "total_timeout"


# What the API refuses


def refusal(attempt: int) -> ApiRetryMessage:
    facts: dict[str, Any] = {"error": "authentication_failed", "error_status": 401, "max_retries": 10}
    return ApiRetryMessage(subtype="api_retry", attempt=attempt, **facts)


DONE = {"type": "result", "subtype": "success", "is_error": False, "result": "ok"}


async def test_a_login_that_is_refused_ends_the_run_at_once(fake_engine: FakeEngine, tmp_path: Path) -> None:
    fake_engine.messages(map(refusal, range(1, 4)), hang=True)

    *said, error = await all_of(runner(tmp_path), options())

    assert [type(message) for message in said] == [ApiRetryMessage] * 3
    assert isinstance(error, ErrorMessage)
    assert error.kind == "auth"
    assert "3 times (HTTP 401)" in error.message


@pytest.mark.parametrize(
    ("attempts", "more"),
    [(2, {}), (9, {"wait_for_login": True})],
    ids=["a login that was renewed meanwhile", "one that is waited for"],
)
async def test_a_login_that_is_refused_may_be_renewed(
    attempts: int, more: dict[str, Any], fake_engine: FakeEngine, tmp_path: Path
) -> None:
    fake_engine.messages([*map(refusal, range(1, attempts + 1)), DONE])

    *_, last = await all_of(runner(tmp_path), options(**more))

    assert isinstance(last, ResultMessage)


async def test_a_session_that_is_not_there_is_told_and_never_listed(fake_engine: FakeEngine, tmp_path: Path) -> None:
    stream = Path(__file__).parents[1] / "data" / "streams" / "unknown-session.jsonl"
    fake_engine.transcript(stream, exit_code=1)

    error = await failure(runner(tmp_path), options(resume="00000000-0000-4000-8000-000000000000"))

    assert error.kind == "session_not_found"
    assert "sessions list" in error.next_step
    assert Sessions(tmp_path / "state").of("bot") == []


@pytest.mark.parametrize("error", [ValueError("embedded null byte"), AgentFailedError("It is odd.")])
async def test_an_end_that_goes_wrong_leaves_no_agent(
    fake_engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def stop(_: object) -> list[Message]:
        raise error

    fake_engine.messages([{"type": "system", "subtype": "init"}], hang=True)
    monkeypatch.setattr(run_module.Run, "stop", stop)
    with anyio.CancelScope() as scope:
        async with aclosing(runner(tmp_path, credentials="none").execute(options())) as messages:
            async for _ in messages:
                scope.cancel()

    assert scope.cancelled_caught
    assert "rm" in [call.argv[1] for call in fake_engine.calls]
    assert all(call.returncode is not None for call in fake_engine.calls)
