"""Secrets beside the model's key: added on the way to one host, and to no other."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.abc
import attrs
import pytest
import trustme
from anyio.streams.tls import TLSStream

from container_runner.config.values import Injection
from container_runner.errors import ConfigError
from container_runner.gateway.inject import routes_of, secrets_of
from container_runner.gateway.policy import Policy
from tests.gateway.box import Box, box
from tests.gateway.test_plan import planned

SECRET = "the-real-secret-0123"
TOKEN = "the-word-of-this-run"


@attrs.define
class Service:
    """What answers by TLS as localhost."""

    port: int
    heads: list[bytes] = attrs.field(factory=list)
    answer: bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

    async def serve(self, stream: anyio.abc.ByteStream) -> None:
        while True:
            head = b""
            while b"\r\n\r\n" not in head:
                head += await stream.receive()
            self.heads.append(head)
            for part in (self.answer[at : at + 7] for at in range(0, len(self.answer), 7)):  # cut in odd places
                await stream.send(part)
            if b"Connection: close" in self.answer:
                return


@asynccontextmanager
async def served(*headers: str, secret: str = SECRET, **more: Any) -> AsyncIterator[tuple[Service, Box]]:
    """A service, and a box whose gateway adds the secret to what is asked of it."""
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    listener = await anyio.create_tcp_listener(local_host="localhost")
    service = Service(listener.extra(anyio.abc.SocketAttribute.local_port))

    async def serve(stream: anyio.abc.SocketStream) -> None:
        try:
            async with await TLSStream.wrap(stream, ssl_context=context, server_side=True) as secured:
                await service.serve(secured)
        except (ssl.SSLError, anyio.BrokenResourceError, anyio.EndOfStream, anyio.ClosedResourceError):
            await anyio.aclose_forcefully(stream)

    injections = [Injection(f"localhost:{service.port}", header, "KEY", **more) for header in headers]
    routes = routes_of(injections, {"KEY": secret}, TOKEN)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        async with box("perl", Policy((), ("127.0.0.0/8",)), routes=routes, tls=trusting) as inside:
            yield service, inside
        tasks.cancel_scope.cancel()


async def test_both_ways_lead_to_the_host_with_the_secret() -> None:
    async with served("Authorization: Bearer {}", "X-Api-Key") as (service, inside):
        where = f"localhost:{service.port}"
        by_proxy = await inside.ask(
            f"GET http://{where}/v1/a%2Fb?x=1 HTTP/1.1\r\nHost: evil.test\r\nCookie: a=b\r\n\r\n"
        )
        told = await inside.last()
        by_path = await inside.ask(
            f"GET /{where}/v1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nRange: bytes=0-3\r\n"
            f"X_Api_Key: {TOKEN}\r\nConnection: authorization, x-api-key\r\nAccept-Encoding: gzip\r\n\r\n"
        )

    assert by_proxy.startswith(b"HTTP/1.1 200 ")
    assert by_path.startswith(b"HTTP/1.1 200 ")
    head = (
        f"host: {where}\r\nauthorization: Bearer {SECRET}\r\nx-api-key: {SECRET}\r\naccept-encoding: identity\r\n\r\n"
    ).encode()
    assert [part.lower() for part in service.heads] == [
        b"get /v1/a%2fb?x=1 http/1.1\r\n" + head.lower(),
        b"get /v1 http/1.1\r\n" + head.lower(),
    ]
    assert (told.kind, told.verdict, told.host, told.path) == ("route", "allowed", "localhost", "/v1/a%2Fb")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ("GET http://localhost:{port}/ HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer another\r\n\r\n", 401),
        ("GET http://localhost:{port}/ HTTP/1.1\r\nHost: x\r\nauthorization: {token}x\r\n\r\n", 401),
        (
            "GET http://localhost:{port}/ HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\nAuthorization: x\r\n\r\n",
            401,
        ),
        ("GET http://localhost:{port}/ HTTP/1.1\r\nHost: x\r\nX_Key: another\r\nX-Key: {token}\r\n\r\n", 401),
        ("GET http://localhost:{port}/?access_token=mine HTTP/1.1\r\nHost: x\r\n\r\n", 403),
        ("TRACE http://localhost:{port}/ HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        ("GET http://localhost/ HTTP/1.1\r\nHost: x\r\n\r\n", 403),
        ("GET http://localhost.evil.test:{port}/ HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n", 403),
        ("GET http://127.0.0.1:{port}/ HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n", 403),
        ("GET http://localhost:{port}@evil.test/ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        ("GET https://localhost:{port}/ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        ("CONNECT localhost:{port} HTTP/1.1\r\nHost: x\r\n\r\n", 403),
        ("GET /localhost:{port}.evil.test/ HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        ("GET / HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n", 404),
    ],
)
async def test_nothing_else_gets_it(request_: str, status: int) -> None:
    async with served("Authorization: Bearer {}", "X-Key") as (service, inside):
        said = await inside.ask(request_.format(port=service.port, token=TOKEN))

    assert said[9:12] == b"%d" % status, said
    assert service.heads == []


async def test_a_path_that_is_not_allowed_is_refused() -> None:
    async with served("X-Api-Key", allowed=["GET /v1/*"]) as (service, inside):
        answers = [
            await inside.ask(f"{line} HTTP/1.1\r\nHost: x\r\n\r\n".replace("AT", f"http://localhost:{service.port}"))
            for line in ("GET AT/v1/a", "POST AT/v1/a", "GET AT/v1/../admin", "GET AT/v1/%2e%2e/admin", "GET AT/admin")
        ]

    assert [int(said[9:12]) for said in answers] == [200, 403, 403, 403, 403]


@pytest.mark.parametrize(
    "answer",
    [
        f"HTTP/1.1 200 {SECRET}\r\nX-Echo: a {SECRET}\r\nContent-Length: 40\r\n\r\n{{'you sent': '{SECRET}'}}       ",
        f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\n{SECRET[:8]}\r\nc\r\n{SECRET[8:]}\r\n0\r\n"
        f"X-Last: {SECRET}\r\n\r\n",
        f"HTTP/1.1 103 Early Hints\r\nLink: {SECRET}\r\n\r\nHTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{SECRET}",
    ],
    ids=["in a head and a body", "in chunks and a trailer", "in a hint and up to the end"],
)
async def test_a_service_that_tells_it_back_tells_it_to_us_alone(answer: str) -> None:
    async with served("Authorization: Bearer {}") as (service, inside):
        service.answer = answer.encode()
        async with await inside.connect() as stream:
            await stream.send(f"GET http://localhost:{service.port}/ HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            said = b""
            with anyio.move_on_after(30):
                try:
                    while said.count(b"*" * len(SECRET)) < 1 or not said.endswith((b" ", b"0\r\n\r\n")):
                        said += await stream.receive()
                except anyio.EndOfStream:
                    pass

    assert b" 200 " in said
    assert SECRET.encode() not in said
    assert SECRET[:8].encode() not in said
    assert b"*" * len(SECRET) in said


async def test_an_answer_in_which_nothing_can_be_found_is_refused() -> None:
    async with served("Authorization: Bearer {}") as (service, inside):
        service.answer = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nxx"
        said = await inside.ask(f"GET http://localhost:{service.port}/ HTTP/1.1\r\nHost: x\r\n\r\n")

    assert said.startswith(b"HTTP/1.1 502 Bad Gateway: the service packs its answer")


async def test_a_redirect_is_the_boxs_to_follow_without_the_secret() -> None:
    async with served("Authorization: Bearer {}") as (service, inside):
        service.answer = b"HTTP/1.1 302 Found\r\nLocation: http://evil.test/\r\nContent-Length: 0\r\n\r\n"
        said = await inside.ask(f"GET http://localhost:{service.port}/ HTTP/1.1\r\nHost: x\r\n\r\n")
        after = await inside.ask("GET http://evil.test/ HTTP/1.1\r\nHost: x\r\n\r\n")

    assert b"location: http://evil.test/" in said.lower()
    assert after.startswith(b"HTTP/1.1 403 ")
    assert len(service.heads) == 1


async def test_no_protocol_is_switched() -> None:
    async with served("Authorization: Bearer {}") as (service, inside):
        await inside.ask(
            f"GET http://localhost:{service.port}/ HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\n"
            "Upgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n"
        )

    assert b"upgrade" not in service.heads[0].lower()


async def test_another_service_at_the_hosts_address_gets_nothing() -> None:
    """Who can turn the name elsewhere has no certificate for it."""
    listener = await anyio.create_tcp_listener(local_host="localhost")
    port, heard = listener.extra(anyio.abc.SocketAttribute.local_port), b""

    async def serve(stream: anyio.abc.SocketStream) -> None:
        nonlocal heard
        async with stream:
            heard += await stream.receive()
            await stream.send(b"HTTP/1.1 200 OK\r\n\r\n")

    routes = routes_of([Injection(f"localhost:{port}", "x-key", "KEY")], {"KEY": SECRET}, TOKEN)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        async with box("perl", routes=routes) as inside:
            said = await inside.ask(f"GET http://localhost:{port}/ HTTP/1.1\r\nHost: x\r\n\r\n")
        tasks.cancel_scope.cancel()

    assert said.startswith(b"HTTP/1.1 502 Bad Gateway: TLS with localhost failed")
    assert SECRET.encode() not in heard


def test_the_plan_has_a_word_in_the_place_of_each() -> None:
    plan = planned(
        {"TOKEN": f"{SECRET}\n", "OTHER": "another-secret"},
        credentials="none",
        inject=["api.test Authorization: Bearer {} TOKEN", "b.test:8443 x-key OTHER"],
    )

    assert plan is not None
    assert [(route.name, route.upstream, dict(route.headers)) for route in plan.routes] == [
        ("api.test", "https://api.test", {"authorization": f"Bearer {SECRET}"}),
        ("b.test:8443", "https://b.test:8443", {"x-key": "another-secret"}),
    ]
    assert set(plan.tokens) == {"TOKEN", "OTHER"}
    assert plan.tokens["TOKEN"] not in (SECRET, "another-secret")
    assert plan.secrets == {"TOKEN": SECRET, "OTHER": "another-secret"}
    assert SECRET not in repr(plan)
    assert "adds authorization to * /* of https://api.test" in plan.told


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({}, "export TOKEN=VALUE"),
        ({"TOKEN": "seven77"}, "8 characters"),
        ({"TOKEN": "two\nlines of it"}, "on one line"),
    ],
)
def test_a_secret_that_can_not_be_added_is_refused_and_not_shown(environ: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        secrets_of([Injection("a.test", "x-key", "TOKEN")], environ)

    assert words in refused.value.allowed
    assert not environ or environ["TOKEN"] not in str(refused.value)

    with pytest.raises(ConfigError, match="without its value") as refused:
        secrets_of([Injection("a.test", "x-key", token := "ghp_0123456789abcdef")], environ)
    assert token not in str(refused.value)


@pytest.mark.parametrize(
    ("environ", "fields", "words"),
    [
        ({"TOKEN": SECRET}, {"network": "bridge"}, 'network = "gateway"'),
        ({"ANTHROPIC_API_KEY": SECRET}, {"inject": ["a.test x ANTHROPIC_API_KEY"]}, "the agent's own login"),
        (
            {"ANTHROPIC_API_KEY": SECRET},
            {"inject": ["a.test x ANTHROPIC_API_KEY"], "credentials": "env"},
            "the agent's own login",
        ),
    ],
)
def test_a_secret_is_not_in_the_box_in_another_way(environ: dict[str, str], fields: Any, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        planned(environ, **{"inject": ["a.test x TOKEN"], **fields})

    assert refused.value.field == "inject"
    assert words in refused.value.allowed


def test_a_port_that_is_named_is_part_of_the_host() -> None:
    (route,) = routes_of([Injection("a.test", "x", "KEY")], {"KEY": SECRET}, TOKEN)

    assert [route.serves("a.test", port) for port in (80, 443, 8080)] == [True, True, False]
    assert not route.serves("b.test", 80)


async def test_a_key_that_no_header_can_hold_is_in_no_answer_and_no_log(caplog: pytest.LogCaptureFixture) -> None:
    async with served("X-Key", secret="two\nlines-of-a-secret") as (service, inside):
        said = await inside.ask(f"GET /localhost:{service.port}/ HTTP/1.1\r\nHost: x\r\n\r\n")
        told = await inside.last()

    assert said.startswith(b"HTTP/1.1 502 Bad Gateway: a header that is added here can not be sent")
    assert "lines-of-a-secret" not in caplog.text + told.reason
    assert service.heads == []
