"""What the agent is told of its network, in its system prompt, if the operator wants."""

from __future__ import annotations

from container_runner.config.container import ContainerConfig
from container_runner.config.hosts import PRESETS


def network_told(config: ContainerConfig, port: int) -> str:
    """What a box reaches, in words for its agent.

    Args:
        port: where the gateway is, on the box's 127.0.0.1.
    """
    if config.network == "none":
        return "Network: this container has none. Nothing can be reached or downloaded; do not try."
    hosts = [
        host for entry in config.allow_hosts for host in (PRESETS[entry[1:]] if entry.startswith("@") else [entry])
    ]
    told = [
        "Network: this container has none of its own. Connections go by the HTTP proxy of HTTP_PROXY and HTTPS_PROXY,"
        f" which lets through: {', '.join(dict.fromkeys(hosts)) or 'no host'}. Each other host is denied, with status"
        " 403 and the reason; do not try to get around it. Names are not resolved here, and ssh does not work."
    ]
    for host in dict.fromkeys(one.host for one in config.inject):
        told.append(
            f"http://{host}/ (by the proxy, or as http://127.0.0.1:{port}/{host}/) is allowed too: ask for it with http"
            " and without a key, for TLS and the key are added outside."
        )
    return " ".join(told)
