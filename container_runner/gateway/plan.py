"""What the gateway of one run is to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import attrs

from container_runner.agents.runtime import Command, Credentials, Endpoint
from container_runner.config.container import ContainerConfig
from container_runner.config.values import MODEL, SERVERS, PortBinding
from container_runner.errors import ConfigError
from container_runner.gateway.inject import routes_of, secrets_of
from container_runner.gateway.offered import Hosted, plan_hosted
from container_runner.gateway.proxy import Proxy
from container_runner.gateway.route import Route, new_token
from container_runner.gateway.told import network_told
from container_runner.options import ExecuteOptions
from container_runner.session.codec import Reached
from container_runner.session.mcp import SERVER
from container_runner.session.tools import Toolbox

PORT: Final = 3128
"""Where an agent finds the gateway, on the 127.0.0.1 of an ephemeral container, whose network is its own."""

KEPT_PORTS: Final = range(20_000, 30_000)
"""Where it does in a kept one, in which other runs may have theirs. Below the ports that connections are given."""

TOOLS_URL: Final = "AGENT_TOOLS_URL"
"""Tells whoever is in the box where the MCP server is that the caller's functions are."""

TOOLS_TOKEN: Final = "AGENT_TOOLS_TOKEN"  # noqa: S105  it is a variable's name
"""Holds what that server wants to see, as `Authorization: Bearer ...`."""

MCP_URL: Final = "AGENT_MCP_URL"
"""Tells where the MCP servers of this machine are, as /NAME behind it. They want the same token."""


@attrs.frozen(kw_only=True)
class GatewayPlan:
    """What a run's gateway lets through, and what the agent is told of it."""

    run: str
    """Names the forwarder's lines on stderr."""

    port: int
    allow_hosts: tuple[str, ...]
    allow_addresses: tuple[str, ...]

    routes: tuple[Route, ...] = ()
    """The ways on which a key or another secret is added."""

    ports: tuple[PortBinding, ...] = ()
    """Ports of the box that are open on the host."""

    toolbox: Toolbox | None = None
    """The caller's functions, which it serves; None if there are none."""

    hosted: tuple[Hosted, ...] = ()
    """MCP servers of this machine."""

    proxy: Proxy | None = None
    """The operator's own way out."""

    env: Mapping[str, str]
    """The agent's variables that lead it here."""

    tokens: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    """What the agent gets in place of a key, by the key's variable. It is of use in this run alone."""

    secrets: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    """The real keys, by their variables."""

    @property
    def told(self) -> tuple[str, ...]:
        """What it does, for people."""
        told = [f"lets through {', '.join(self.allow_hosts) or 'nothing'}"] if self.proxies else []
        for route in self.routes:
            told.append(f"adds {', '.join(route.headers)} to {', '.join(route.allowed)} of {route.upstream}")
        told += [f"has the MCP server {server.name} of this machine" for server in self.hosted]
        return tuple(told)

    @property
    def servers(self) -> tuple[Reached, ...]:
        """The MCP servers behind it."""
        found = [] if self.toolbox is None else [Reached(SERVER, self.env[TOOLS_URL], self.tokens[TOOLS_TOKEN])]
        found += [Reached(one.name, f"{self.env[MCP_URL]}/{one.name}", one.token) for one in self.hosted]
        return tuple(found)

    @property
    def identity(self) -> str:
        """All that it allows, but for the words of one run. Only runs with the same may share a container."""
        routes = [(route.name, route.upstream, route.allowed, *route.headers) for route in self.routes]
        return repr((self.allow_hosts, self.allow_addresses, routes, [server.name for server in self.hosted]))

    @property
    def proxies(self) -> bool:
        """Whether it is the box's way to hosts, and not only to tools and ports."""
        return "HTTPS_PROXY" in self.env


def plan_gateway(
    config: ContainerConfig,
    describe: Callable[[ExecuteOptions], Command],
    options: ExecuteOptions,
    environ: Mapping[str, str],
    run_id: str,
    toolbox: Toolbox | None = None,
    offer: Callable[[ExecuteOptions, str, str, str], ExecuteOptions] = lambda options, *_: options,
    tell: Callable[[ExecuteOptions, str], ExecuteOptions] = lambda options, _: options,
) -> tuple[Command, GatewayPlan | None]:
    """What the agent runs, and what its gateway is to do; None for a run that has none.

    Args:
        offer: has the agent told of an MCP server, as `CommandLineRuntime.with_server`.
        tell: has it told something in its system prompt, as `CommandLineRuntime.with_words`.
        describe: the agent's command for a request. If its key is added on the way, it is led to the gateway as it is
            to any model API of one's own: by `Agent.base_url`.

    Raises:
        ConfigError: a key is to be added that is not there, or for an agent of which it is not known how; or what only
            a gateway can do is asked for, and the network is another.
    """
    port = PORT if config.ephemeral else KEPT_PORTS[int(run_id[:8], 16) % len(KEPT_PORTS)]
    here = f"http://127.0.0.1:{port}"
    env: dict[str, str] = {}
    tokens: dict[str, str] = {}
    tools_token = new_token() if toolbox is None else toolbox.token
    hosted, hosted_secrets = plan_hosted(config.host_mcp_servers, environ, tools_token)
    if toolbox is not None or hosted:
        if config.network == "host":
            raise ConfigError("network", "host", "another one with tools: all of this machine could reach them")
        tokens[TOOLS_TOKEN] = tools_token
    if toolbox is not None:
        env[TOOLS_URL] = f"{here}/{SERVERS}/{SERVER}"
        options = offer(options, SERVER, env[TOOLS_URL], TOOLS_TOKEN)
    for one in hosted:
        if one.name in options.agent.mcp_servers:
            raise ConfigError("host_mcp_servers", one.name, "a name that none of the agent's own mcp_servers has")
        env[MCP_URL] = f"{here}/{SERVERS}"
        options = offer(options, one.name, f"{env[MCP_URL]}/{one.name}", TOOLS_TOKEN)
    if config.tell_network:
        if config.network not in ("gateway", "none"):
            allowed = f'false with network = {config.network}, of which we know too little; or network = "gateway"'
            raise ConfigError("tell_network", True, allowed)
        options = tell(options, network_told(config, port))
    command = describe(options)
    if config.network != "gateway":
        for field in () if config.network == "none" else ("allow_hosts", "allow_addresses", "inject"):
            if value := getattr(config, field):
                allowed = f'none with network = {config.network}, which does not ask; or network = "gateway"'
                told = f'{field} needs network = "gateway": with {config.network} nothing is asked for leave'
                raise ConfigError(field, [getattr(one, "host", one) for one in value], allowed, told=told)
        if config.credentials == "inject":
            raise ConfigError("credentials", "inject", 'another one, or network = "gateway", which adds the key')
        ports = config.ports if config.network == "none" else ()
        if toolbox is None and not ports and not hosted:
            return command, None
        carried = GatewayPlan(
            run=run_id,
            port=port,
            allow_hosts=(),
            allow_addresses=(),
            ports=ports,
            env=env,
            tokens=tokens,
            toolbox=toolbox,
            hosted=hosted,
            secrets=hosted_secrets,
        )
        return command, carried
    env |= {
        **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"), here),
        **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost,::1"),
        "NODE_USE_ENV_PROXY": "1",  # without it, node's own fetch knows no proxy
    }
    routes: tuple[Route, ...] = ()
    secrets = dict(hosted_secrets)
    if found := _key(config, command, environ):
        name, endpoint = found
        base = f"{here}/{MODEL}"
        led = describe(attrs.evolve(options, agent=attrs.evolve(options.agent, base_url=base)))
        command = attrs.evolve(led, credentials=Credentials())  # the box gets none of them
        leading = [variable for variable, value in command.env.items() if value == base]
        own = next((config.env[variable] for variable in leading if variable in config.env), endpoint.upstream)
        header, _, shape = endpoint.headers[name].partition(": ")
        route = Route(
            name=MODEL,
            upstream=options.agent.base_url or own,
            headers={header: shape.format(environ[name].strip())},  # a newline at its end is nobody's intention
            allowed=endpoint.allowed,
            hidden=(environ[name].strip(),),
        )
        shown = name if name in led.credentials.names else led.credentials.names[0]  # where it looks by that base URL
        routes, secrets[name], tokens[shown] = (route,), environ[name], route.token
        env |= dict.fromkeys(leading, base)
    if injected := secrets_of(config.inject, environ):
        logins = command.credentials.names if config.credentials in ("auto", "env") else ()
        for name in injected:
            if name in (*tokens, *logins):
                allowed = "another variable than that of the agent's own login"
                raise ConfigError("inject", name, allowed)
        token = new_token()
        routes += routes_of(config.inject, injected, token)
        secrets, tokens = secrets | injected, tokens | dict.fromkeys(injected, token)
    plan = GatewayPlan(
        run=run_id,
        port=port,
        allow_hosts=config.allow_hosts,
        allow_addresses=config.allow_addresses,
        routes=routes,
        ports=config.ports,
        toolbox=toolbox,
        hosted=hosted,
        proxy=Proxy.of(environ),
        env=env,
        tokens=tokens,
        secrets=secrets,
    )
    return command, plan


def _key(config: ContainerConfig, command: Command, environ: Mapping[str, str]) -> tuple[str, Endpoint] | None:
    """The variable whose key is added on the way out, and where to; None if none is.

    Raises:
        ConfigError: one is to be, and can not.
    """
    credentials = command.credentials
    endpoint = credentials.endpoint if config.credentials in ("auto", "inject") else None
    if endpoint is not None:
        for name in credentials.names:
            if name in endpoint.headers and environ.get(name):
                return name, endpoint
    if config.credentials == "inject":
        allowed = f'"env", "file" or "none": no key of {command.argv[0]} can be added on the way'
        if endpoint is not None:
            names = " or ".join(endpoint.headers)
            allowed = f"a key that is set here: {names}. A login file can not be injected"
        raise ConfigError("credentials", "inject", allowed)
    return None
