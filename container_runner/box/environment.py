"""Variables: for the agent, and for the engine's client."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import attrs

from container_runner.agents.claude import ClaudeRuntime
from container_runner.agents.runtime import Command
from container_runner.config import paths
from container_runner.config.container import ContainerConfig
from container_runner.config.laws import refuse_unset
from container_runner.gateway.plan import GatewayPlan
from container_runner.options import Agent, ExecuteOptions

ENGINE_VARIABLE: Final = "CONTAINER_RUNNER_ENGINE"
"""Names the engine when the configuration says "auto"."""

_CLIENT_VARIABLE: Final = re.compile(
    r"PATH|HOME|USER|LOGNAME|TMPDIR|SSH_AUTH_SOCK|SSL_CERT_FILE|SSL_CERT_DIR|REGISTRY_AUTH_FILE|GODEBUG"
    r"|LANG|LC_[A-Z]+|XDG_[A-Z_]+|DBUS_SESSION_BUS_ADDRESS|(DOCKER|CONTAINER|CONTAINERS|PODMAN|STORAGE|BUILDAH)_\w+"
    r"|_CONTAINERS_\w+|LD_\w+|DYLD_\w+|[A-Za-z]+_(proxy|PROXY)"
)
"""What the engine's client itself reads. Its environment holds these, what the agent is given by name, and no
more: a secret of yours that nobody asked for is not in it."""


SELINUX: Final = Path("/sys/fs/selinux/enforce")


def selinux_enforces() -> bool:
    """Whether this machine's kernel lets no container at files that are not labelled for containers."""
    try:
        return SELINUX.read_text("ascii").strip() == "1"
    except OSError:
        return False


def host_environment() -> Mapping[str, str]:
    """This process's environment, as it is now."""
    return os.environ


@attrs.frozen(kw_only=True)
class ContainerEnv:
    """The agent's variables, in the two ways that they take."""

    spelled: tuple[str, ...]
    """NAME=VALUE, for values that may be seen: ours, and those whose name would change the client itself."""

    named: tuple[str, ...]
    """Names alone; their values travel on stdin, or for a person's shell in the environment of the engine's client."""

    values: Mapping[str, str] = attrs.field(repr=False)
    """The values of `named`."""

    def __iter__(self) -> Iterator[str]:
        """What follows `--env` for each of them: NAME=VALUE, or the name alone. No secret's value is among it."""
        yield from (*self.spelled, *self.named)


def build_container_env(
    agent: Agent,
    config: ContainerConfig | None = None,
    *,
    command: Command | None = None,
    environ: Mapping[str, str] | None = None,
    credentials: bool | None = None,
    gateway: GatewayPlan | None = None,
) -> ContainerEnv:
    """The agent's variables: HOME, LANG and TERM, the runtime's, the configured ones, the secrets, the credentials.

    Later ones win: a configured variable replaces the runtime's, and a secret replaces both.

    Args:
        config: None: nothing is configured.
        command: what the runtime runs. None: what claude runs for *agent*.
        environ: where the values of secrets come from. None: this process's environment.
        credentials: whether those of the command that are variables are passed. None: if `config.credentials` says so.
        gateway: what leads the agent to its gateway, which wins over all of them. None: there is none.

    Raises:
        ConfigError: a secret that is not optional is not set.
    """
    environ = host_environment() if environ is None else environ
    if command is None:
        command = ClaudeRuntime().command(ExecuteOptions(prompt="", agent=agent), contained=True)
    if credentials is None:
        credentials = config is None or config.credentials in ("auto", "env")
    configured = {} if config is None else config.env
    secrets = () if config is None else (*config.secrets, *config.optional_secrets)
    for index, name in enumerate(() if config is None else config.secrets):
        if name not in environ:
            refuse_unset(f"secrets[{index}]", name, more=f", or name it with --optional-secret={name}")
    spelled = {"HOME": paths.HOME, "LANG": "C.UTF-8", "TERM": "xterm-256color", **command.env}
    values: dict[str, str] = {}
    for name, value in configured.items():
        spelled.pop(name, None)
        if _CLIENT_VARIABLE.fullmatch(name):
            spelled[name] = value
        else:
            values[name] = value
    logins = [name for name in command.credentials.names if environ.get(name)] if credentials else []
    for name in (*logins, *secrets):
        if name in environ:  # an engine would pass on the name alone, and podman take a pattern for a list of names
            spelled.pop(name, None)
            values[name] = environ[name]
    if gateway is not None:
        spelled |= gateway.env
        values = {name: value for name, value in values.items() if name not in gateway.env} | dict(gateway.tokens)
    return ContainerEnv(
        spelled=tuple(f"{name}={value}" for name, value in spelled.items()),
        named=tuple(values),
        values=values,
    )


def client_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of the engine's client: what it needs of *environ*, and English messages."""
    kept = {name: value for name, value in environ.items() if _CLIENT_VARIABLE.fullmatch(name)}
    return {**kept, "LC_ALL": "C"}
