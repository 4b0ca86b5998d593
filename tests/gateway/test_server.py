"""The proxy and the routes, through real forwarders on this machine."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.abc
import attrs
import pytest
import trustme

from container_runner.gateway import server as servers
from container_runner.gateway.forwarder import MOST_CHANNELS
from container_runner.gateway.policy import Policy
from container_runner.gateway.proxy import Proxy
from container_runner.gateway.route import Route
from tests.gateway.box import INTERPRETERS, box, free_port, read_all

each_forwarder = pytest.mark.parametrize("name", INTERPRETERS)


@attrs.define
class Origin:
    """A service on this machine: it answers with what it was asked, or as `answer` says."""

    port: int
    heads: list[bytes] = attrs.field(factory=list)
    connections: int = 0
    answer: Callable[[Origin, anyio.abc.SocketStream, bytes, bytes], Awaitable[None]] | None = None

    @property
    def policy(self) -> Policy:
        return Policy((f"localhost:{self.port}",), ("127.0.0.0/8", "::1"))

    @property
    def url(self) -> str:
        return f"http://localhost:{self.port}"

    async def serve(self, stream: anyio.abc.SocketStream) -> None:
        self.connections += 1
        held = b""
        async with stream:
            try:
                while True:
                    while b"\r\n\r\n" not in held:
                        held += await stream.receive()
                    head, _, held = held.partition(b"\r\n\r\n")
                    self.heads.append(head)
                    if self.answer is not None:
                        return await self.answer(self, stream, head, held)
                    body = head
                    await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return None


@asynccontextmanager
async def origin(answer: Any = None) -> AsyncIterator[Origin]:
    listener = await anyio.create_tcp_listener(local_host="localhost")
    served = Origin(listener.extra(anyio.abc.SocketAttribute.local_port), answer=answer)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, served.serve)
        yield served
        tasks.cancel_scope.cancel()
    await listener.aclose()


@each_forwarder
async def test_a_request_is_made_anew_from_its_parts(name: str) -> None:
    async with origin() as there, box(name, there.policy) as inside:
        said = await inside.ask(
            f"GET {there.url}/a?b=1 HTTP/1.1\r\nHost: elsewhere.test\r\nProxy-Authorization: x\r\n"
            "Connection: X-Hop, close\r\nX-Hop: 1\r\nX-Kept: 2\r\n\r\n"
        )
        told = await inside.last()

    assert said.startswith(b"HTTP/1.1 200 OK\r\n")
    assert there.heads[0].lower().split(b"\r\n") == [
        b"get /a?b=1 http/1.1",
        b"host: localhost:%d" % there.port,
        b"connection: close",
        b"x-kept: 2",
    ]
    assert (told.kind, told.verdict, told.host, told.port, told.path, told.status) == (
        "http", "allowed", "localhost", there.port, "/a", 200,
    )  # fmt: skip
    assert told.received == len(said)


@each_forwarder
async def test_a_tunnel_carries_bytes_both_ways_and_half_closes(name: str) -> None:
    sent = bytes(range(256)) * 4096 * 3

    async def digest(_: Origin, stream: anyio.abc.SocketStream, head: bytes, held: bytes) -> None:
        assert head == b"go"
        await stream.send(hashlib.sha256(held + await read_all(stream)).digest() * 50_000)

    async with origin(digest) as there, box(name, there.policy) as inside, await inside.connect() as stream:
        await stream.send(b"CONNECT localhost:%d HTTP/1.1\r\nHost: a\r\n\r\n" % there.port)
        assert await stream.receive() == b"HTTP/1.1 200 Connection established\r\n\r\n"
        await stream.send(b"go\r\n\r\n" + sent)
        await stream.send_eof()
        said = await read_all(stream)
        told = await inside.last()

    assert said == hashlib.sha256(sent).digest() * 50_000
    assert (told.kind, told.verdict, told.port) == ("connect", "allowed", there.port)
    assert told.sent >= len(sent)


async def test_what_is_not_allowed_is_answered_in_words() -> None:
    async with origin() as there, box("perl", Policy(("github.com",))) as inside:
        plain = await inside.ask("GET http://evil.test/secret?x=1 HTTP/1.1\r\nHost: evil.test\r\n\r\n")
        first = await inside.last()
        tunnel = await inside.ask(f"CONNECT localhost:{there.port} HTTP/1.1\r\nHost: a\r\n\r\n")
        second = await inside.last()

    assert plain.startswith(b"HTTP/1.1 403 Forbidden: evil.test:80 is not in allow_hosts\r\n")
    assert plain.endswith(b"\r\n\r\ncontainer-runner: evil.test:80 is not in allow_hosts\n")
    assert (first.kind, first.verdict, first.host, first.path, first.status) == (
        "http", "denied", "evil.test", "/secret", 403,
    )  # fmt: skip
    assert tunnel.startswith(b"HTTP/1.1 403 Forbidden: localhost:")
    assert second.verdict == "denied"
    assert there.connections == 0


async def test_a_private_address_behind_an_allowed_name_is_denied() -> None:
    async with origin() as there, box("perl", Policy((f"localhost:{there.port}",))) as inside:
        said = await inside.ask(f"GET {there.url}/ HTTP/1.1\r\nHost: x\r\n\r\n")

    assert b"which is private and not in allow_addresses" in said
    assert there.connections == 0


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\n\r\n", 400),  # no Host
        ("GET ftp://github.com/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET http://ok@evil.test/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET http://github.com:80:22/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("POST http://github.com/ HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", 404),
        ("GET /model/v1/messages HTTP/1.1\r\nHost: a\r\n\r\n", 404),
        ("CONNECT github.com HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("CONNECT a@b:80:90 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("CONNECT [::1]:22 HTTP/1.1\r\nHost: a\r\n\r\n", 403),
        ("CONNECT 2130706433:22 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("CONNECT github.com:99999 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (f"GET http://github.com/ HTTP/1.1\r\nX: {'x' * 100_000}", 431),
    ],
)
async def test_odd_requests_are_refused(head: str, status: int) -> None:
    async with box("perl", Policy(("github.com:443",))) as inside:
        said = await inside.ask(head)
        told = await inside.last()

    assert said.startswith(b"HTTP/1.1 %d " % status), said[:200]
    assert (told.verdict, told.status) == ("denied", status)
    assert len(told.reason) < 400


async def test_who_says_nothing_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "HEAD_TIMEOUT", 0.05)
    async with box("perl", Policy(())) as inside:
        with anyio.fail_after(30):
            said = await inside.ask("GET / HTTP/1.1\r\nHost")
        told = await inside.last()

    assert said.startswith(b"HTTP/1.1 408 ")
    assert (told.verdict, told.status) == ("failed", 408)


def route(there: Origin, **more: Any) -> Route:
    return Route(
        **{
            "name": "model",
            "upstream": f"{there.url}/base/",
            "headers": {"x-api-key": "the real key"},
            "allowed": ("POST /v1/messages", "GET /v1/models*"),
            "token": "token-of-this-run",
            **more,
        }
    )


ASK = "POST /model/v1/messages?beta=true HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2\r\n{headers}\r\nhi"


async def test_a_route_adds_the_key_and_drops_what_the_box_has_shown() -> None:
    async with origin() as there, box("perl", routes=[route(there)]) as inside:
        shown = "Authorization: Bearer token-of-this-run\r\nCookie: a=b\r\nX-Goog-Api-Key: y\r\nX-Kept: 1\r\n"
        shown += "Anthropic-Beta: kept-1, mcp-client-2025-11-20\r\n"
        said = await inside.ask(ASK.format(headers=shown))
        told = await inside.last()

    assert there.heads[0].lower().split(b"\r\n") == [
        b"post /base/v1/messages?beta=true http/1.1",
        b"host: localhost:%d" % there.port,
        b"x-api-key: the real key",
        b"anthropic-beta: kept-1",
        b"content-length: 2",
        b"x-kept: 1",
    ]
    assert said.startswith(b"HTTP/1.1 200 OK\r\n")
    assert (told.kind, told.verdict, told.path) == ("route", "allowed", "/model/v1/messages")
    assert "real key" not in repr(route(there))


@pytest.mark.parametrize(
    ("start", "headers", "status"),
    [
        ("POST /model/v1/messages", "", 401),
        ("POST /model/v1/messages", "X-Api-Key: a key of somebody else's\r\n", 401),
        ("POST /model/v1/files", "X-Api-Key: token-of-this-run\r\n", 403),
        ("GET /model/v1/messages", "X-Api-Key: token-of-this-run\r\n", 403),
        ("GET /model/v1/models/../messages", "X-Api-Key: token-of-this-run\r\n", 403),
        ("GET /model/v1/models/%2e%2e/files", "X-Api-Key: token-of-this-run\r\n", 403),
        ("GET /model/v1/models/..%2Ffiles", "X-Api-Key: token-of-this-run\r\n", 403),
        ("GET /model//v1/models", "X-Api-Key: token-of-this-run\r\n", 403),
        ("GET /other/v1/models", "X-Api-Key: token-of-this-run\r\n", 404),
    ],
)
async def test_a_route_lets_through_what_the_agent_needs_of_it(start: str, headers: str, status: int) -> None:
    async with origin() as there, box("perl", routes=[route(there)]) as inside:
        said = await inside.ask(f"{start} HTTP/1.1\r\nHost: a\r\n{headers}\r\n")

    assert said.startswith(b"HTTP/1.1 %d " % status), said[:200]
    assert there.connections == 0


async def test_a_connection_that_can_not_be_served_ends_no_other(caplog: pytest.LogCaptureFixture) -> None:
    async with origin() as there, box("perl", routes=[route(there, headers={"x-api-key": None})]) as inside:
        async with await inside.connect() as stream:
            await stream.send(b"GET /model/v1/models HTTP/1.1\r\nHost: a\r\nX-Api-Key: token-of-this-run\r\n\r\n")
            with pytest.raises((anyio.BrokenResourceError, anyio.EndOfStream)):
                await stream.receive()
        told = await inside.last()
        assert (await inside.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n")).startswith(b"HTTP/1.1 404 ")

    assert (told.verdict, told.reason) == ("failed", "it could not be served: AttributeError")
    assert "could not be served" in caplog.text


async def test_of_two_lengths_one_goes_on_and_no_trailer_does() -> None:
    head = (
        "POST /model/v1/messages HTTP/1.1\r\nHost: a\r\nX-Api-Key: token-of-this-run\r\nX-HTTP-Method-Override: GET\r\n"
    )
    async with origin() as there, box("perl", routes=[route(there)]) as inside:
        body = "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-Api-Key: t\r\n\r\n"
        await inside.ask(head + body)
        refused = await inside.ask(
            "GET /model/v1/models?key=mine HTTP/1.1\r\nHost: a\r\nX-Api-Key: token-of-this-run\r\n\r\n"
        )

    assert b"content-length" not in there.heads[0].lower()
    assert b"override" not in there.heads[0].lower()
    assert not any(b"X-Api-Key: t\r" in head for head in there.heads)
    assert refused.startswith(b"HTTP/1.1 403 ")


async def test_a_route_is_found_by_a_client_that_takes_us_for_its_proxy() -> None:
    async with origin() as there, box("perl", routes=[route(there)]) as inside:
        said = await inside.ask(
            f"GET http://127.0.0.1:{inside.port}/model/v1/models HTTP/1.1\r\n"
            "Host: a\r\nX-Api-Key: token-of-this-run\r\n\r\n"
        )

    assert said.startswith(b"HTTP/1.1 200 OK\r\n")


async def test_connections_to_the_service_are_used_again() -> None:
    async with origin() as there, box("perl", routes=[route(there)]) as inside:
        for _ in range(3):
            await inside.ask("GET /model/v1/models HTTP/1.1\r\nHost: a\r\nX-Api-Key: token-of-this-run\r\n\r\n")

    assert (len(there.heads), there.connections) == (3, 1)


async def test_a_service_that_hung_up_meanwhile_is_connected_to_again() -> None:
    async def once(_: Origin, stream: anyio.abc.SocketStream, head: bytes, held: bytes) -> None:
        await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with origin(once) as there, box("perl", routes=[route(there)]) as inside:
        for _ in range(3):
            said = await inside.ask("GET /model/v1/models HTTP/1.1\r\nHost: a\r\nX-Api-Key: token-of-this-run\r\n\r\n")
            assert said.endswith(b"ok")
            await anyio.sleep(0.05)

    assert there.connections == 3


async def test_an_answer_is_carried_as_it_comes() -> None:
    async def slowly(_: Origin, stream: anyio.abc.SocketStream, head: bytes, held: bytes) -> None:
        await stream.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for letter in (b"a", b"b", b"c"):
            await stream.send(b"1\r\n" + letter + b"\r\n")
            await heard.wait()
        await stream.send(b"0\r\n\r\n")

    async with origin(slowly) as there, box("perl", there.policy) as inside, await inside.connect() as stream:
        heard = anyio.Event()
        await stream.send(f"GET {there.url}/ HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        said = b""
        with anyio.fail_after(20):
            while b"a" not in said.partition(b"\r\n\r\n")[2]:
                said += await stream.receive()
        heard.set()  # only now the rest is sent
        said += await read_all(stream)

    assert said.endswith(b"1\r\na\r\n1\r\nb\r\n1\r\nc\r\n0\r\n\r\n")


async def test_an_upgrade_that_the_service_takes_is_carried_through() -> None:
    async def upgraded(_: Origin, stream: anyio.abc.SocketStream, head: bytes, held: bytes) -> None:
        assert b"upgrade: websocket" in head.lower()
        await stream.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhi")
        await stream.send((await stream.receive()).upper())

    async with (
        origin(upgraded) as there,
        box("perl", routes=[route(there)]) as inside,
        await inside.connect() as stream,
    ):
        await stream.send(
            b"GET /model/v1/models HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"X-Api-Key: token-of-this-run\r\n\r\n"
        )
        said = b""
        while not said.endswith(b"hi"):
            said += await stream.receive()
        await stream.send(b"frames")
        assert await read_all(stream) == b"FRAMES"

    assert said.startswith(b"HTTP/1.1 101 ")


async def test_a_service_that_is_not_there_is_told_as_such() -> None:
    port = free_port()
    async with box("perl", Policy((f"localhost:{port}",), ("127.0.0.0/8", "::1"))) as inside:
        said = await inside.ask(f"CONNECT localhost:{port} HTTP/1.1\r\nHost: a\r\n\r\n")
        told = await inside.last()

    assert said.startswith(b"HTTP/1.1 502 Bad Gateway: there is no connection to ")
    assert (told.verdict, told.status) == ("failed", 502)


async def test_a_certificate_that_nobody_vouches_for_is_refused() -> None:
    import ssl

    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    listener = await anyio.create_tcp_listener(local_host="localhost")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)

    async def serve(stream: anyio.abc.ByteStream) -> None:
        from anyio.streams.tls import TLSStream

        try:
            async with await TLSStream.wrap(stream, ssl_context=context, server_side=True):
                raise AssertionError
        except (ssl.SSLError, anyio.BrokenResourceError, anyio.EndOfStream):
            await anyio.aclose_forcefully(stream)

    https = Route(name="model", upstream=f"https://localhost:{port}", headers={}, token="t")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        async with box("perl", routes=[https]) as inside:
            said = await inside.ask("GET /model/ HTTP/1.1\r\nHost: a\r\nX-Api-Key: t\r\n\r\n")
        tasks.cancel_scope.cancel()
    await listener.aclose()

    assert said.startswith(b"HTTP/1.1 502 Bad Gateway: TLS with localhost failed: ")


@each_forwarder
async def test_a_reset_is_seen_on_the_other_side(name: str) -> None:
    resets: list[bytes] = []

    async def wait(_: Origin, stream: anyio.abc.SocketStream, head: bytes, held: bytes) -> None:
        if head == b"reset me":
            raw = stream.extra(anyio.abc.SocketAttribute.raw_socket)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            return
        heard.set()
        try:
            await read_all(stream)
        except anyio.BrokenResourceError:
            resets.append(head)

    async with origin(wait) as there, box(name, there.policy) as inside:
        heard = anyio.Event()
        for word in (b"reset me", b"I reset"):
            stream = await inside.connect()
            await stream.send(b"CONNECT localhost:%d HTTP/1.1\r\nHost: a\r\n\r\n" % there.port)
            await stream.receive()
            await stream.send(word + b"\r\n\r\n")
            if word == b"reset me":
                with pytest.raises((anyio.BrokenResourceError, anyio.EndOfStream)):
                    await stream.receive()
            else:
                await heard.wait()  # a reset may overtake what was sent before it
                raw = stream.extra(anyio.abc.SocketAttribute.raw_socket)
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            await stream.aclose()
            await inside.last()
        with anyio.fail_after(10):
            while not resets:
                await anyio.sleep(0.01)

    assert resets == [b"I reset"]


@each_forwarder
async def test_many_at_once_and_a_slow_one_that_holds_nobody_up(name: str) -> None:
    async def flood(_: Origin, stream: anyio.abc.SocketStream, head: bytes, held: bytes) -> None:
        if head.startswith(b"GET /flood"):
            await stream.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
            while True:
                await stream.send(b"x" * 65536)
        await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with origin(flood) as there, box(name, there.policy) as inside, await inside.connect() as slow:
        await slow.send(f"GET {there.url}/flood HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await slow.receive(10)
        answers = []

        async def ask() -> None:
            answers.append(await inside.ask(f"GET {there.url}/ HTTP/1.1\r\nHost: x\r\n\r\n"))

        async with anyio.create_task_group() as tasks:
            for _ in range(MOST_CHANNELS + 20):
                tasks.start_soon(ask)

    assert len(answers) == MOST_CHANNELS + 20
    assert {answer[-2:] for answer in answers} == {b"ok"}


async def test_the_operators_own_proxy_is_used() -> None:
    heads = []

    async def serve(_: Origin, stream: anyio.abc.SocketStream, head: bytes, held: bytes) -> None:
        heads.append(head)
        async with await anyio.connect_tcp("localhost", there.port) as further:
            await stream.send(b"HTTP/1.1 200 fine\r\n\r\n")
            await further.send(await stream.receive())
            await stream.send(await further.receive())

    async with origin() as there, origin(serve) as proxy:
        own = Proxy.of({"https_proxy": f"http://me:pass@localhost:{proxy.port}", "no_proxy": "intern.test,.b.test,"})
        assert own is not None
        assert "pass" not in repr(own)
        assert [own.serves(host) for host in ("a.test", "intern.test", "x.b.test")] == [True, False, False]
        async with box("perl", Policy(("far.test",)), proxy=own) as inside, await inside.connect() as stream:
            await stream.send(b"CONNECT far.test:443 HTTP/1.1\r\nHost: a\r\n\r\n")
            assert (await stream.receive()).startswith(b"HTTP/1.1 200 ")
            await stream.send(b"GET / HTTP/1.1\r\nHost: far.test\r\n\r\n")
            assert (await stream.receive()).startswith(b"HTTP/1.1 200 OK")
            assert (await inside.ask("CONNECT other.test:443 HTTP/1.1\r\nHost: a\r\n\r\n")).startswith(b"HTTP/1.1 403 ")

    assert heads[0].split(b"\r\n") == [
        b"CONNECT far.test:443 HTTP/1.1",
        b"host: far.test:443",
        b"proxy-authorization: Basic bWU6cGFzcw==",
    ]
