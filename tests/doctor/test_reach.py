"""Whether what a gateway lets through can be had from this machine."""

from __future__ import annotations

from typing import Any

import pytest

from container_runner.doctor.reach import check_reach
from container_runner.gateway.plan import GatewayPlan
from container_runner.gateway.proxy import Proxy
from container_runner.gateway.refused import Refused
from container_runner.gateway.route import Route

ADDRESSES = {"good.test": ["8.8.8.8"], "inner.test": ["10.0.0.1"]}


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    async def addresses(name: str, port: int) -> list[str]:
        if name not in ADDRESSES:
            raise Refused(502, f"{name} can not be resolved: no such name")
        return ADDRESSES[name]

    monkeypatch.setattr("container_runner.gateway.policy.addresses_of", addresses)
    monkeypatch.setattr("container_runner.doctor.reach.addresses_of", addresses)


def plan(*hosts: str, **more: Any) -> GatewayPlan:
    return GatewayPlan(**{"run": "r", "port": 1, "allow_hosts": hosts, "allow_addresses": (), "env": {}, **more})


async def test_all_is_there() -> None:
    check = await check_reach(plan("good.test", "*.good.test", routes=(route("good.test"),)))
    assert (check.status, check.found) == (
        "ok", "gateway; beside the model's API it lets through good.test, *.good.test",
    )  # fmt: skip


async def test_what_is_allowed_and_not_there_is_told() -> None:
    check = await check_reach(plan("good.test", "inner.test", "lost.test"))
    assert check.status == "warn"
    assert "inner.test is at 10.0.0.1, which is private" in check.found
    assert "lost.test can not be resolved" in check.found
    assert (await check_reach(plan("inner.test", allow_addresses=("10.0.0.0/8",)))).status == "ok"


async def test_without_the_models_api_no_run_works() -> None:
    check = await check_reach(plan("good.test", routes=(route("lost.test"),)))
    assert (check.status, "the model's API is out of reach" in check.found) == ("fail", True)


async def test_a_proxy_resolves_by_itself() -> None:
    check = await check_reach(plan("lost.test", routes=(route("lost.test"),), proxy=Proxy("p.test", 3128)))
    assert check.status == "ok"
    assert "through the proxy p.test:3128" in check.found


async def test_a_login_of_which_the_api_is_not_allowed_is_of_no_use() -> None:
    check = await check_reach(plan("good.test"), "api.good.test")
    assert (check.status, check.fix) == ("fail", "container-runner run --allow-host=api.good.test …")
    assert (await check_reach(plan("good.test"), "good.test")).status == "ok"


def route(host: str) -> Route:
    return Route(name="model", upstream=f"https://{host}", headers={})
