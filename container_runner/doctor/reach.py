"""Whether what a gateway lets through can be had from this machine."""

from __future__ import annotations

from urllib.parse import urlsplit

import anyio

from container_runner.agents import Credentials
from container_runner.box.plan import Plan
from container_runner.doctor.checks import Check, passed
from container_runner.gateway.plan import GatewayPlan
from container_runner.gateway.policy import Policy, addresses_of
from container_runner.gateway.refused import Refused
from container_runner.gateway.route import Route

_HTTPS = 443


def login_host(credentials: Credentials, plan: Plan) -> str:
    """The host of the API for which a login file is in the box; "" if none is, or it is not known."""
    is_there = any(mount.target == credentials.target for mount in plan.mounts)
    return urlsplit(credentials.endpoint.upstream).hostname or "" if is_there and credentials.endpoint else ""


async def check_reach(plan: GatewayPlan, login: str = "") -> Check:
    """Whether the names resolve that are allowed, and that of the model's API. A proxy resolves them by itself.

    Args:
        login: the host that a login file in the box is for, to which the agent goes by itself; "" for none.
    """
    policy = Policy(plan.allow_hosts, plan.allow_addresses)
    if login and not any(rule.allows(login, _HTTPS) for rule in policy.rules):
        found = f"gateway, and the login in the box is for {login}, which is not among allow_hosts"
        return Check(name="network", status="fail", found=found, fix=f"container-runner run --allow-host={login} …")
    named = sorted({rule.host for rule in policy.rules if not rule.below})
    lost: dict[str, str] = {}
    unreached: list[str] = []

    async def look(host: str) -> None:
        try:
            await policy.resolve(host, _HTTPS)
        except Refused as refused:
            lost[host] = refused.reason

    async def look_for(route: Route) -> None:
        try:
            await addresses_of(route.host, route.port)
        except Refused as refused:
            unreached.append(refused.reason)

    async with anyio.create_task_group() as tasks:
        for host in named:
            if plan.proxy is None or not plan.proxy.serves(host):
                tasks.start_soon(look, host)
        for route in plan.routes:
            if plan.proxy is None or not plan.proxy.serves(route.host):
                tasks.start_soon(look_for, route)
    if unreached:
        found = f"gateway, but the model's API is out of reach: {'; '.join(unreached)}"
        return Check(
            name="network", status="fail", found=found, fix="container-runner run --base-url=…    # or your DNS"
        )
    if lost:
        found = f"gateway, and of what is allowed: {'; '.join(lost[host] for host in sorted(lost))}"
        fix = "container-runner run --allow-host=… --allow-address=…    # as your network has it"
        return Check(name="network", status="warn", found=found, fix=fix)
    through = "" if plan.proxy is None else f", through the proxy {plan.proxy.host}:{plan.proxy.port}"
    allowed = ", ".join(plan.allow_hosts) or "nothing"
    return passed("network", f"gateway{through}; beside the model's API it lets through {allowed}")
