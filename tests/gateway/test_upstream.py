"""Connections that are kept for the next request, how many there may be, and how they end."""

from __future__ import annotations

import contextlib
import resource

import anyio
import anyio.abc
import h11
import pytest

from container_runner.gateway import frames, upstream
from container_runner.gateway.policy import Policy
from container_runner.gateway.refused import Refused
from container_runner.gateway.route import Route
from container_runner.gateway.upstream import Link, Links, counted
from tests.gateway.box import Box, box, read_all


async def whole(stream: anyio.abc.SocketStream) -> None:
    """Read a whole request."""
    said = b""
    while not said.endswith(b"hi" if said.startswith(b"POST") else b"\r\n\r\n"):
        said += await stream.receive()


async def ask_twice(method: str) -> tuple[list[bytes], int]:
    """Two requests of a service that ends its first connection when the second request comes on it; the answers' first
    lines, and how many requests it has read."""
    read = 0

    async def serve(stream: anyio.abc.SocketStream) -> None:
        nonlocal read
        async with stream:
            with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                await whole(stream)
                read += 1
                await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                await whole(stream)
                read += 1

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        route = Route(name="model", upstream=f"http://127.0.0.1:{port}", headers={})
        async with box("python", Policy(()), routes=(route,)) as inside:
            answers = [await ask(inside, method, route) for _ in range(2)]
        tasks.cancel_scope.cancel()
    return answers, read


async def ask(inside: Box, method: str, route: Route) -> bytes:
    body = "Content-Length: 2\r\n\r\nhi" if method == "POST" else "\r\n"
    said = await inside.ask(f"{method} /model/ HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {route.token}\r\n{body}")
    return said.partition(b"\r\n")[0]


async def test_what_changes_nothing_is_asked_again_on_a_new_connection() -> None:
    answers, read = await ask_twice("GET")
    assert answers == [b"HTTP/1.1 200 OK"] * 2
    assert read == 3


async def test_what_may_have_been_done_is_not_asked_again() -> None:
    answers, read = await ask_twice("POST")
    assert answers[0] == b"HTTP/1.1 200 OK"
    assert answers[1].startswith(b"HTTP/1.1 502 ")
    assert read == 2


def served() -> h11.Connection:
    """What a request was made with that is over, so that another may follow it."""
    http = h11.Connection(h11.CLIENT)
    http.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
    http.send(h11.EndOfMessage())
    http.receive_data(b"HTTP/1.1 204 No Content\r\n\r\n")
    assert isinstance(http.next_event(), h11.Response)
    assert isinstance(http.next_event(), h11.EndOfMessage)
    return http


async def test_the_connections_that_are_kept_for_a_service_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "MOST_IDLE", 2)
    monkeypatch.setattr(upstream, "IDLE", 1000.0)
    links = Links()
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        made = [Link(await anyio.connect_tcp("127.0.0.1", port), served()) for _ in range(4)]
        for link in made[:3]:
            await links.give("a.test", 80, link)
        await links.give("b.test", 80, made[3])
        with pytest.raises(anyio.ClosedResourceError):
            await made[2].stream.send(b"x")
        taken = [await links.take("a.test", 80) for _ in range(3)]
        other = await links.take("b.test", 80)
        for link in made:
            await link.close()

    assert taken == [made[1], made[0], None]
    assert other is made[3]


async def test_there_are_no_more_connections_than_half_of_the_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (4, 4))
    with counted(), counted():
        with pytest.raises(Refused, match="half of the files"), counted():
            pass
        async with box("python", Policy(("any.test",))) as inside:
            said = await inside.ask("CONNECT any.test:443 HTTP/1.1\r\nHost: a\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 503 ")
    with counted():
        pass


@pytest.mark.parametrize("name", ["perl", "python", "node"])
async def test_who_reads_late_gets_all_of_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "LAST_WORDS", 0.2)
    size = 200_000

    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await whole(stream)
            await stream.send(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode() + bytes(size))

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        where = f"127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}"
        async with box(name, Policy((where,), ("127.0.0.0/8",))) as inside, await inside.connect() as stream:
            await stream.send(f"GET http://{where}/ HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            await inside.last()
            await anyio.sleep(0.8)
            said = await read_all(stream)
        tasks.cancel_scope.cancel()
    assert said.endswith(b"\r\n\r\n" + bytes(size))
