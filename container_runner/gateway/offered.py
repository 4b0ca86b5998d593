"""Which MCP servers of this machine a run offers its box, with all that they are given."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

import attrs

from container_runner.config.laws import NOT_SHOWN, is_line, refuse_unset
from container_runner.config.servers import VARIABLE, HostServer
from container_runner.errors import ConfigError
from container_runner.gateway.route import Route

LEAST: Final = 8
"""How long a word of a header must be to be taken for a secret."""

_ENVIRONMENT: Final = frozenset(
    ("HOME", "LANG", "LC_ALL", "LC_CTYPE", "LOGNAME", "PATH", "SHELL", "TERM", "TMPDIR", "TZ", "USER")
)
"""Variables that every server gets."""


@attrs.frozen(kw_only=True)
class Hosted:
    """One server of a run's plan."""

    name: str
    argv: tuple[str, ...] = attrs.field(default=(), repr=False)
    """Its command; () for one that runs already."""

    env: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    """All of its variables."""

    route: Route | None = None
    """The way to one that runs already."""

    hidden: tuple[str, ...] = attrs.field(default=(), repr=False)
    """What no answer has in it for the box."""

    token: str = attrs.field(repr=False)
    """What the box has to show."""


def plan_hosted(
    servers: Mapping[str, HostServer], environ: Mapping[str, str], token: str
) -> tuple[tuple[Hosted, ...], dict[str, str]]:
    """The servers of a run, and the values in them that are secrets, by their variables.

    Raises:
        ConfigError: a variable is not set.
    """
    found: list[Hosted] = []
    secrets: dict[str, str] = {}
    for name, server in servers.items():
        for variable in server.variables:
            if not environ.get(variable):
                refuse_unset(f"host_mcp_servers.{name}", variable)
            secrets[variable] = environ[variable]

        def filled(value: str) -> str:
            return VARIABLE.sub(lambda match: environ[match[1]], value)

        hidden = tuple(environ[variable].strip() for variable in server.variables)
        if server.url is not None:
            headers = {key.lower(): filled(value).strip() for key, value in server.headers.items()}
            if any(not is_line(value) for value in headers.values()):
                raise ConfigError(f"host_mcp_servers.{name}.headers", NOT_SHOWN, "variables with a text on one line")
            hidden += tuple(word for word in (value.split(" ")[-1] for value in headers.values()) if len(word) >= LEAST)
            route = Route(name=f"mcp/{name}", upstream=server.url, headers=headers, token=token, hidden=hidden)
            found.append(Hosted(name=name, route=route, hidden=hidden, token=token))
            continue
        given = {key: value for key, value in environ.items() if key in _ENVIRONMENT}
        env = given | {key: filled(value) for key, value in server.env.items()}
        if "PATH" in env:  # what is found from the current folder may be the agent's
            env["PATH"] = ":".join(entry for entry in env["PATH"].split(":") if entry.startswith("/"))
        program = os.path.expanduser(server.command or "")  # noqa: PTH111  a name stays a name
        if "/" in program:
            program = os.path.abspath(program)  # noqa: PTH100  and a link stays a link, as a Python of a venv is one
        found.append(Hosted(name=name, argv=(program, *server.args), env=env, hidden=hidden, token=token))
    return tuple(found), secrets
