"""Which variable travels how: spelled on the command line, by name, or not at all."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container_runner.agents.runtime import Command, Credentials
from container_runner.box.environment import build_container_env, client_environment
from container_runner.config.container import ContainerConfig
from container_runner.errors import ConfigError
from container_runner.options import Agent

COMMAND = Command(
    argv=("agent",), env={"RUNTIME": "r"}, credentials=Credentials(names=("API_KEY", "OAUTH_TOKEN"), file="~/x")
)

AGENT = Agent(name="bot")


def config(**fields: object) -> ContainerConfig:
    return ContainerConfig(image="i", **fields)  # type: ignore[arg-type]  # the fields vary


def test_ours_and_the_runtimes_variables_are_spelled() -> None:
    env = build_container_env(AGENT, config(), command=COMMAND, environ={}, credentials=False)

    assert env.spelled == ("HOME=/container-runner/home", "LANG=C.UTF-8", "TERM=xterm-256color", "RUNTIME=r")
    assert env.named == ()


def test_a_configured_variable_travels_by_name() -> None:
    env = build_container_env(AGENT, config(env={"TOKEN": "s3cr3t"}), command=COMMAND, environ={}, credentials=False)

    assert env.named == ("TOKEN",)
    assert dict(env.values) == {"TOKEN": "s3cr3t"}
    assert "s3cr3t" not in " ".join((*env.spelled, *env.named))


CLIENT_VARIABLES = [
    "PATH",
    "HOME",
    "DOCKER_HOST",
    "DOCKER_CONFIG",
    "CONTAINER_HOST",
    "CONTAINERS_CONF",
    "STORAGE_DRIVER",
    "XDG_RUNTIME_DIR",
    "LD_PRELOAD",
    "DYLD_INSERT_LIBRARIES",
    "HTTP_PROXY",
    "https_proxy",
    "LC_ALL",
    "SSH_AUTH_SOCK",
    "GODEBUG",
    "_CONTAINERS_USERNS_CONFIGURED",
]


@pytest.mark.parametrize("name", CLIENT_VARIABLES)
def test_a_variable_that_would_change_the_client_is_spelled(name: str) -> None:
    env = build_container_env(AGENT, config(env={name: "value"}), command=COMMAND, environ={}, credentials=False)

    assert f"{name}=value" in env.spelled
    assert name not in env.named
    assert name not in env.values


@pytest.mark.parametrize("name", ["MY_PATH", "PATHS", "MYHOME", "TOKEN", "LC_", "PROXY", "OPENAI_API_KEY"])
def test_a_variable_that_only_looks_like_the_clients_travels_by_name(name: str) -> None:
    env = build_container_env(AGENT, config(env={name: "value"}), command=COMMAND, environ={}, credentials=False)

    assert env.named == (name,)


def test_a_secret_that_is_not_set_is_refused_with_the_line_to_type() -> None:
    with pytest.raises(ConfigError) as caught:
        build_container_env(AGENT, config(secrets=("THERE", "MISSING")), command=COMMAND, environ={"THERE": "t"})

    assert caught.value.field == "secrets[1]"
    assert "export MISSING=VALUE" in caught.value.next_step
    assert "--optional-secret=MISSING" in caught.value.next_step


@pytest.mark.parametrize("token", ["ghp_0123456789abcdef", "xoxb_AbCdEfGhIjKl"])
def test_a_token_in_the_place_of_its_name_is_not_shown(token: str) -> None:
    with pytest.raises(ConfigError, match="without its value") as caught:
        build_container_env(AGENT, config(secrets=[token]), command=COMMAND, environ={})

    assert token not in str(caught.value) + caught.value.next_step + repr(caught.value)


def test_secrets_take_their_values_from_this_process_and_unset_ones_are_dropped() -> None:
    given_ = config(secrets=("THERE",), optional_secrets=("EMPTY", "NOT_THERE"))

    env = build_container_env(
        AGENT, given_, command=COMMAND, environ={"THERE": "t", "EMPTY": "", "OTHER": "o"}, credentials=False
    )

    assert env.named == ("THERE", "EMPTY")
    assert dict(env.values) == {"THERE": "t", "EMPTY": ""}


@pytest.mark.parametrize(
    ("credentials", "environ", "named"),
    [
        (True, {"API_KEY": "k", "OAUTH_TOKEN": "t"}, ("API_KEY", "OAUTH_TOKEN")),
        (True, {"OAUTH_TOKEN": "t"}, ("OAUTH_TOKEN",)),
        (True, {}, ()),
        (False, {"API_KEY": "k"}, ()),
    ],
)
def test_credentials_are_passed_by_name_if_they_are_wanted_and_set(
    credentials: bool, environ: dict[str, str], named: tuple[str, ...]
) -> None:
    env = build_container_env(AGENT, config(), command=COMMAND, environ=environ, credentials=credentials)

    assert env.named == named


def test_a_configured_variable_replaces_ours_and_a_secret_replaces_the_runtimes() -> None:
    given_ = config(env={"TERM": "dumb", "HOME": "/elsewhere"}, secrets=("RUNTIME",))

    env = build_container_env(AGENT, given_, command=COMMAND, environ={"RUNTIME": "from here"}, credentials=False)

    assert env.spelled == ("LANG=C.UTF-8", "HOME=/elsewhere")
    assert dict(env.values) == {"TERM": "dumb", "RUNTIME": "from here"}


def test_the_client_gets_what_it_needs_and_no_secret() -> None:
    environ = {"PATH": "/bin", "DOCKER_HOST": "unix:///x", "ANTHROPIC_API_KEY": "k", "LC_ALL": "de_DE", "RANDOM": "1"}

    assert client_environment(environ) == {"PATH": "/bin", "DOCKER_HOST": "unix:///x", "LC_ALL": "C"}


def test_values_are_in_no_repr() -> None:
    env = build_container_env(AGENT, config(env={"TOKEN": "s3cr3t"}), command=COMMAND, environ={}, credentials=False)

    assert "s3cr3t" not in repr(env)


NAMES = st.text(string.ascii_letters + "_", min_size=1, max_size=12)
TEXT = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"))


@given(
    configured=st.dictionaries(NAMES, TEXT, max_size=5), secrets=st.lists(NAMES, max_size=5, unique=True), there=TEXT
)
def test_every_variable_travels_exactly_once_with_its_value(
    configured: dict[str, str], secrets: list[str], there: str
) -> None:
    secrets = [name for name in secrets if name not in configured]
    environ = dict.fromkeys(secrets[1:], there)

    env = build_container_env(
        AGENT,
        config(env=configured, secrets=tuple(secrets[1:]), optional_secrets=tuple(secrets[:1])),
        command=COMMAND,
        environ=environ,
        credentials=False,
    )

    spelled = dict(word.split("=", 1) for word in env.spelled)
    assert not set(spelled) & set(env.named)
    assert set(env.named) == set(env.values)
    assert len(set(env.named)) == len(env.named)
    arrives = {**spelled, **env.values}
    assert {name: arrives[name] for name in configured} == configured
    assert {name: arrives[name] for name in environ} == environ
    assert not any("=" in name for name in env.named)


def test_an_agent_alone_gives_claudes_variables_and_its_key_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "s3cr3t")
    monkeypatch.delenv("CLAUDE_CODE_OAUTH_TOKEN", raising=False)

    env = build_container_env(AGENT)

    assert list(env) == [*env.spelled, "ANTHROPIC_API_KEY"]
    assert {"TERM=xterm-256color", "HOME=/container-runner/home"} <= {*env}
    assert env.values == {"ANTHROPIC_API_KEY": "s3cr3t"}
    assert "s3cr3t" not in " ".join([repr(env), *env])


@pytest.mark.parametrize(("said", "named"), [("auto", True), ("env", True), ("file", False), ("none", False)])
def test_the_configuration_says_whether_a_key_is_passed(
    said: str, named: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "s3cr3t")

    assert ("ANTHROPIC_API_KEY" in build_container_env(AGENT, config(credentials=said))) is named
