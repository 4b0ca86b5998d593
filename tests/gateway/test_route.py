"""What a route lets through."""

from __future__ import annotations

import pytest

from container_runner.gateway.headers import without_fetching
from container_runner.gateway.refused import Refused
from container_runner.gateway.route import Route

ROUTE = Route(name="model", upstream="https://api.test/base", headers={}, allowed=("GET /v1/models*",))


@pytest.mark.parametrize(
    "query", ["key=x", "a=1&KEY=x", "key", "key&b", "%6bey=x", "api%5fkey=x", "b=1;key=x", "a=;", "%4BEY"]
)
def test_no_key_is_in_the_query(query: str) -> None:
    with pytest.raises(Refused) as refused:
        ROUTE.target("GET", f"/v1/models?{query}")

    assert refused.value.status == 403


@pytest.mark.parametrize("query", ["", "?beta=true", "?pageSize=3&alt=sse", "?a=key", "?a=%3b", "?%256bey=x"])
def test_the_rest_of_a_query_goes_on_as_it_is(query: str) -> None:
    assert ROUTE.target("GET", f"/v1/models{query}") == f"/base/v1/models{query}"


def test_betas_by_which_the_api_would_connect_to_others_do_not_go_on() -> None:
    given = [
        (b"anthropic-beta", b"oauth-2025-04-20, mcp-client-2025-04-04,Web-Fetch-2025-09-10,code-execution-1"),
        (b"anthropic-beta", b"mcp-client-2025-11-20"),
        (b"x-other", b"mcp-client-1"),
    ]

    assert without_fetching(given) == [(b"anthropic-beta", b"oauth-2025-04-20,code-execution-1")]
