"""The operator's own way out."""

from __future__ import annotations

import ssl

import anyio
import anyio.abc
import pytest
import trustme
from anyio.streams.tls import TLSStream

from container_runner.errors import ConfigError
from container_runner.gateway.proxy import Proxy
from container_runner.gateway.upstream import connect_by


@pytest.mark.parametrize("environ", [{}, {"HTTPS_PROXY": ""}, {"NO_PROXY": "*"}])
def test_no_proxy(environ: dict[str, str]) -> None:
    assert Proxy.of(environ) is None


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("socks5://me:secret@localhost:1", "a socks5 proxy"),
        ("http://me:secret@localhost:port", "no URL"),
        ("http://", "no URL"),
    ],
)
def test_one_that_does_not_speak_http_is_not_passed_by(value: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        Proxy.of({"HTTPS_PROXY": value})
    assert error.value.field == "HTTPS_PROXY"
    assert "secret" not in f"{error.value} {error.value.next_step}"


@pytest.mark.parametrize(
    ("value", "port", "is_tls"),
    [("https://p.test", 443, True), ("p.test:3128", 3128, False), ("http://p.test", 80, False)],
)
def test_what_speaks_http(value: str, port: int, is_tls: bool) -> None:
    proxy = Proxy.of({"HTTPS_PROXY": value})
    assert proxy is not None
    assert (proxy.host, proxy.port, proxy.is_tls) == ("p.test", port, is_tls)


@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "TLS"])
async def test_what_a_service_says_right_behind_the_proxys_answer_is_not_lost(is_tls: bool) -> None:
    authority = trustme.CA()
    theirs, ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(theirs)
    authority.configure_trust(ours)

    async def serve(plain: anyio.abc.SocketStream) -> None:
        stream = await TLSStream.wrap(plain, ssl_context=theirs, server_side=True) if is_tls else plain
        async with stream:
            await stream.receive()
            await stream.send(b"HTTP/1.1 200 fine\r\n\r\n220 mail.test greets you\r\n")
            await stream.send(await stream.receive())

    async with await anyio.create_tcp_listener(local_host="localhost") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        stream = await connect_by(Proxy("localhost", port, is_tls=is_tls), "mail.test", 25, ours)
        async with stream:
            assert await stream.receive() == b"220 mail.test greets you\r\n"
            await stream.send(b"HELO")
            assert await stream.receive() == b"HELO"
        tasks.cancel_scope.cancel()
