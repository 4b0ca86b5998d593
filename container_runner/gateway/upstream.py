"""Connections from this machine to the world."""

from __future__ import annotations

import contextlib
import resource
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Final

import anyio
import anyio.abc
import attrs
import h11
from anyio.streams.buffered import BufferedByteStream
from anyio.streams.tls import TLSStream

from container_runner.gateway.proxy import Proxy
from container_runner.gateway.refused import Refused

CONNECT_TIMEOUT: Final = 10.0
"""Seconds that a connection may take, TLS included."""

IDLE: Final = 4.0
"""Seconds for which a connection that has served is kept for the next request."""

MOST_IDLE: Final = 8
"""How many connections are kept for one service."""

HEAD_LIMIT: Final = 64 * 1024

_open = 0
"""How many connections there are of all gateways of this process."""
_counting = threading.Lock()


@contextlib.contextmanager
def counted() -> Iterator[None]:
    """Count one connection more: half of what this process may have open is for what boxes ask for.

    Raises:
        Refused: there are as many.
    """
    global _open
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    with _counting:
        if 0 <= most // 2 <= _open:
            reason = f"there are {_open} connections of all boxes, half of the files that may be open (ulimit -n)"
            raise Refused(503, reason)
        _open += 1
    try:
        yield
    finally:
        with _counting:
            _open -= 1


async def connect(addresses: Sequence[str], port: int) -> anyio.abc.ByteStream:
    """A connection to the first address that takes one.

    Raises:
        Refused: none does.
    """
    reason = "it has no address"
    for address in addresses:
        try:
            with anyio.fail_after(CONNECT_TIMEOUT):
                return await anyio.connect_tcp(address, port)
        except TimeoutError:
            reason = f"no answer in {CONNECT_TIMEOUT:g} seconds"
        except OSError as error:
            cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
            reason = cause.strerror or str(cause)
    raise Refused(502, f"there is no connection to {addresses[0] if addresses else 'it'}:{port}: {reason}")


async def connect_by(proxy: Proxy, host: str, port: int, context: ssl.SSLContext) -> anyio.abc.ByteStream:
    """A connection to a host, through a proxy, which resolves the name.

    Raises:
        Refused: the proxy is not there, or does not let it through.
    """
    try:
        with anyio.fail_after(CONNECT_TIMEOUT):
            stream: anyio.abc.ByteStream = await anyio.connect_tcp(proxy.host, proxy.port)
    except (OSError, TimeoutError):
        raise Refused(502, f"the proxy {proxy.host}:{proxy.port} does not answer") from None
    if proxy.is_tls:
        stream = await secure(stream, proxy.host, context)
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    login = [("proxy-authorization", proxy.login)] if proxy.login else []
    client = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_LIMIT)
    head = client.send(h11.Request(method="CONNECT", target=where, headers=[("host", where), *login]))
    said = ""
    try:
        with anyio.fail_after(CONNECT_TIMEOUT):
            await stream.send(head or b"")
            while (event := client.next_event()) is h11.NEED_DATA or isinstance(event, h11.InformationalResponse):
                client.receive_data(await stream.receive(4096))
        if isinstance(event, h11.Response):
            if event.status_code == 200:
                ahead = BufferedByteStream(stream)
                ahead.feed_data(client.trailing_data[0])  # a service that speaks first, close behind the proxy's answer
                return ahead if client.trailing_data[0] else stream
            said = f" ({event.status_code})"
    except (OSError, TimeoutError, h11.RemoteProtocolError, anyio.EndOfStream, anyio.BrokenResourceError):
        pass
    await anyio.aclose_forcefully(stream)
    raise Refused(502, f"the proxy {proxy.host}:{proxy.port} does not connect to {where}{said}")


async def secure(stream: anyio.abc.ByteStream, host: str, context: ssl.SSLContext) -> anyio.abc.ByteStream:
    """TLS over a connection, with the host's certificate verified.

    Raises:
        Refused: it is not what it says, or speaks no TLS.
    """
    reason = f"no answer in {CONNECT_TIMEOUT:g} seconds"
    try:
        with anyio.fail_after(CONNECT_TIMEOUT):
            return await TLSStream.wrap(stream, hostname=host, ssl_context=context, standard_compatible=False)
    except ssl.SSLCertVerificationError as error:
        reason = error.verify_message
    except (ssl.SSLError, OSError, anyio.EndOfStream, anyio.BrokenResourceError) as error:
        reason = str(error) or "it hung up"
    except TimeoutError:
        pass
    await anyio.aclose_forcefully(stream)
    raise Refused(502, f"TLS with {host} failed: {reason}")


def reset(stream: anyio.abc.ByteStream) -> None:
    """Have a connection end with a reset when it is closed, so that the other side knows that something was lost."""
    raw = stream.extra(anyio.abc.SocketAttribute.raw_socket)  # noqa: S610  it is no query
    with contextlib.suppress(OSError):  # it is closed already
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@attrs.define(eq=False)
class Link:
    """A connection on which requests are made, one after another."""

    stream: anyio.abc.ByteStream
    http: h11.Connection = attrs.field(factory=lambda: h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_LIMIT))
    since: float = attrs.field(factory=time.monotonic)
    """Since when it has been idle."""
    has_served: bool = False
    """Whether it was kept after a request, so that the service may have ended it by now."""

    async def close(self) -> None:
        """Hang up."""
        await anyio.aclose_forcefully(self.stream)


@attrs.define(eq=False)
class Links:
    """Connections to services that have served, and may serve again."""

    _idle: dict[tuple[str, int], list[Link]] = attrs.field(factory=dict)

    async def take(self, host: str, port: int) -> Link | None:
        """One that is still open; None if there is none."""
        idle = self._idle.get((host, port), [])
        while idle:
            link = idle.pop()
            if time.monotonic() - link.since < IDLE and _is_quiet(link.stream):
                return link
            await link.close()
        return None

    async def give(self, host: str, port: int, link: Link) -> None:
        """Keep one for the next request, if it can serve it."""
        http = link.http
        idle = self._idle.setdefault((host, port), [])
        is_done = http.our_state is h11.DONE and http.their_state is h11.DONE and not http.trailing_data[0]
        if is_done and len(idle) < MOST_IDLE:
            http.start_next_cycle()
            link.since, link.has_served = time.monotonic(), True
            idle.append(link)
        else:
            await link.close()

    async def close(self) -> None:
        """Close them all."""
        for idle in self._idle.values():
            for link in idle:
                await link.close()
        self._idle.clear()


def _is_quiet(stream: anyio.abc.ByteStream) -> bool:
    """Whether nothing has come on an idle connection; what comes is its end, or nothing that was asked for."""
    descriptor = stream.extra(anyio.abc.SocketAttribute.raw_socket).fileno()  # noqa: S610  it is no query
    if descriptor < 0:  # the event loop has closed it already
        return False
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return not poll.poll(0)
