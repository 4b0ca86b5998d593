"""What is done with one connection of the box: a proxy for HTTP and for tunnels, and the routes.

One request a connection. It is parsed, checked, and made anew from its parts: what we understood is what is sent. Bytes
pass unread only in a tunnel, behind our answer to CONNECT, and behind an upgrade that the service has agreed to.
"""

from __future__ import annotations

import logging
import re
import ssl
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Literal

import anyio
import anyio.abc
import attrs
import h11

from container_runner.config.hosts import host_name
from container_runner.config.values import SERVERS
from container_runner.gateway import mcp
from container_runner.gateway.frames import Channel, Gone
from container_runner.gateway.headers import Headers, passed_on, without_fetching
from container_runner.gateway.policy import Policy, addresses_of
from container_runner.gateway.proxy import Proxy
from container_runner.gateway.refused import Refused, Unsent
from container_runner.gateway.route import Route, shows
from container_runner.gateway.splice import CHUNK, LOST, splice
from container_runner.gateway.upstream import HEAD_LIMIT, Link, Links, connect, connect_by, counted, reset, secure
from container_runner.gateway.veil import Veil

HEAD_TIMEOUT: Final = 30.0
"""Seconds that the head of a request may take."""

_log = logging.getLogger(__name__)


@attrs.define(kw_only=True, eq=False)
class Connection:
    """What came of one connection of the box's. `reason` may hold what the box has said; it is bounded."""

    kind: Literal["connect", "http", "route", "mcp", "port", "garbage"] = "garbage"
    verdict: Literal["allowed", "denied", "failed"] = "failed"
    host: str = ""
    port: int = 0
    method: str = ""
    path: str = ""
    """Without its query, which may hold a secret."""
    status: int | None = None
    """Of the service's answer, or of ours."""
    reason: str = ""
    """Why it was not carried out, or broke off."""
    sent: int = 0
    """Bytes from the box."""
    received: int = 0
    """Bytes to the box."""
    seconds: float = 0.0
    count: int = 1
    """How many there were of which the same is to be told. Bytes and seconds are those of all."""

    def to_dict(self) -> dict[str, Any]:
        """What there is to tell."""
        told = {name: value for name, value in attrs.asdict(self).items() if value not in ("", None)}
        return told if self.count > 1 else {name: value for name, value in told.items() if name != "count"}


@attrs.define(eq=False)
class Server:
    """Serves the connections of one box."""

    policy: Policy
    port: int
    """Where the box finds us, on its 127.0.0.1."""
    routes: Sequence[Route] = ()
    servers: Mapping[str, mcp.McpServer] = attrs.field(factory=dict)
    """What is at /mcp/NAME."""
    hosted: Mapping[str, Route] = attrs.field(factory=dict)
    """What is there by HTTP: MCP servers that run already."""
    proxy: Proxy | None = None
    on_end: Callable[[Connection], None] = lambda _: None
    """Is told of each connection when it has ended."""
    _links: Links = attrs.field(factory=Links)
    _tls: ssl.SSLContext = attrs.field(factory=ssl.create_default_context)

    async def serve(self, channel: Channel) -> None:
        """Serve one connection to its end. Only a cancellation is raised."""
        began = time.monotonic()
        told = Connection()
        politely = False
        try:
            with channel.scope:
                await _Request(self, channel, told).run()
                politely = True
            told.reason = told.reason if politely else "the connection was lost"
        except Refused as refused:
            told.verdict = "denied" if refused.is_denial else "failed"
            told.status, told.reason = refused.status, refused.reason
            politely = await _say(channel, refused)
        except LOST as error:
            told.reason = told.reason or str(error)[:200] or "the connection was lost"
        except Exception as error:  # no connection may end the others
            told.verdict, told.reason = "failed", f"it could not be served: {type(error).__name__}"
            _log.warning("a connection of the box could not be served", exc_info=error)
        finally:
            told.sent, told.received = channel.received, channel.sent
            told.seconds = round(time.monotonic() - began, 4)
            self.on_end(told)
            await channel.close(politely=politely)

    async def close(self) -> None:
        """Close what was kept open."""
        await self._links.close()

    async def reach(self, host: str, port: int) -> anyio.abc.ByteStream:
        """A connection to a host that the box has named.

        Raises:
            Refused: it may not, or can not be had.
        """
        name = self.policy.check(host, port)
        if self.proxy is not None and self.proxy.serves(name):
            return await connect_by(self.proxy, name, port, self._tls)
        return await connect(await self.policy.resolve(name, port), port)

    def named(self, host: str, port: int) -> Route | None:
        """The route that a request for http://host:port/ takes; None if it takes none."""
        name = host_name(host)
        return next((route for route in self.routes if name is not None and route.serves(name, port)), None)

    async def link(self, route: Route) -> Link:
        """A connection to a route's service, which the operator has named, so that it may be anywhere.

        Raises:
            Refused: it can not be had.
        """
        if kept := await self._links.take(route.host, route.port):
            return kept
        if self.proxy is not None and self.proxy.serves(route.host):
            stream = await connect_by(self.proxy, route.host, route.port, self._tls)
        else:
            stream = await connect(await addresses_of(route.host, route.port), route.port)
        return Link(await secure(stream, route.host, self._tls) if route.is_tls else stream)

    async def give_back(self, route: Route, link: Link) -> None:
        """Keep a connection for the next request of a route, if it can serve it."""
        await self._links.give(route.host, route.port, link)


@attrs.define(eq=False)
class _Request:
    """One connection, from its first byte to its last."""

    _server: Server
    _channel: Channel
    _told: Connection
    _http: h11.Connection = attrs.field(
        factory=lambda: h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_LIMIT), init=False
    )

    async def run(self) -> None:
        try:
            with anyio.fail_after(HEAD_TIMEOUT):
                request = await self._event()
        except TimeoutError:
            raise Refused(408, f"no request came in {HEAD_TIMEOUT:g} seconds") from None
        if not isinstance(request, h11.Request):
            raise Gone
        method, target = request.method.decode("ascii"), request.target.decode("latin-1")
        self._told.method = method[:20]
        with counted():
            if method == "CONNECT":
                await self._tunnel(target)
            else:
                await self._forward(request, method, target)

    async def _tunnel(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        if not host or not re.fullmatch(r"[0-9]{1,5}", port):
            raise Refused(400, "CONNECT wants host:port")
        self._told.kind, self._told.host, self._told.port = "connect", host[:253], int(port)
        if self._server.named(host, int(port)) is not None and not self._server.policy.permits(host, int(port)):
            raise Refused(403, f"ask for http://{host[:253]}/ instead, to which a secret is added here")
        stream = await self._server.reach(host, int(port))
        self._told.verdict, self._told.status = "allowed", 200
        async with stream:
            await self._channel.send(
                self._http.send(h11.Response(status_code=200, headers=[], reason=b"Connection established")) or b""
            )
            try:
                await splice(self._channel, stream, self._http.trailing_data[0], b"")
            except BaseException:  # lost, or broken off
                reset(stream)
                raise

    async def _forward(self, request: h11.Request, method: str, target: str) -> None:
        absolute = re.fullmatch(r"(?i:http)://([^/?#@]+?)(?::([0-9]{1,5}))?((?:[/?].*)?)", target)
        if absolute is None and not target.startswith("/"):
            raise Refused(400, "the target is neither a path nor begins with http://")
        if absolute is not None:
            host, port, path = absolute[1], int(absolute[2] or 80), absolute[3] or "/"
            path = path if path.startswith("/") else f"/{path}"
            if (named := self._server.named(host, port)) is not None:
                return await self._ask_route(request, method, named, path)
            if (host, port) != ("127.0.0.1", self._server.port):
                return await self._ask_host(request, host, port, path)
            target = path  # what does not know our address by NO_PROXY asks us for ourselves
        name, slash, rest = target[1:].partition("/")
        name = name.partition("?")[0]
        self._told.kind, self._told.path = "route", target.partition("?")[0][:200]
        if name == SERVERS:
            return await self._ask_server(request, method, rest.partition("?")[0])
        route = next((route for route in self._server.routes if route.name == name), None)
        if route is None:
            raise Refused(404, f"there is no /{name[:100]} here")
        return await self._ask_route(request, method, route, f"/{rest}" if slash else "/")

    async def _ask_host(self, request: h11.Request, host: str, port: int, path: str) -> None:
        told = self._told
        told.kind, told.host, told.port, told.path = "http", host[:253], port, path.partition("?")[0][:200]
        link = Link(await self._server.reach(host, port))
        told.verdict = "allowed"
        where = host if port == 80 else f"{host}:{port}"
        try:
            await self._exchange(link, request, path, [(b"host", where.encode()), (b"connection", b"close")], {"host"})
        finally:
            await link.close()

    async def _ask_route(self, request: h11.Request, method: str, route: Route, path: str) -> None:
        told = self._told
        told.kind, told.path = "route", told.path or path.partition("?")[0][:200]
        told.host, told.port = route.host, route.port
        route.check_token(_texts(request.headers))
        asked = route.target(method, path)
        told.verdict = "allowed"
        await self._ask_service(request, route, asked, may_switch=not route.is_named)

    async def _ask_service(self, request: h11.Request, route: Route, asked: str, *, may_switch: bool) -> None:
        added = [*route.added, *without_fetching(request.headers)]
        veil = Veil(route.hidden) if route.hidden else None
        while True:
            link = await self._server.link(route)
            try:
                await self._exchange(link, request, asked, added, route.dropped, veil, may_switch=may_switch)
            except BaseException as error:
                await link.close()
                if not self._may_try_again(link, request, error):
                    raise
            else:
                return await self._server.give_back(route, link)

    def _may_try_again(self, link: Link, request: h11.Request, error: BaseException) -> bool:
        """Whether a service has only ended a connection that was kept, and can not have done what was asked."""
        if not link.has_served or self._told.status is not None or not isinstance(error, Refused):
            return False
        has_body = any(name in (b"content-length", b"transfer-encoding") for name, _ in request.headers)
        is_idle = request.method in (b"GET", b"HEAD") and not has_body
        return error.status == 502 and (isinstance(error, Unsent) or is_idle)

    async def _ask_server(self, request: h11.Request, method: str, name: str) -> None:
        told, server = self._told, self._server.servers.get(name)
        told.kind = "mcp"
        if (route := self._server.hosted.get(name)) is not None:
            told.host, told.port = route.host, route.port
            route.check_token(_texts(request.headers))
            if method not in ("GET", "POST", "DELETE"):
                raise Refused(405, f"{method} is not what an MCP server is asked")
            told.verdict = "allowed"
            return await self._ask_service(request, route, route.whole, may_switch=False)
        if server is None:
            raise Refused(404, f"there is no MCP server {name[:100]!r} here")
        if not shows(_texts(request.headers), server.token):
            raise Refused(401, f"/{SERVERS}/{name} wants the token that this run was given")
        told.verdict = "allowed"
        told.status = await mcp.serve(server, method, self._channel, self._http, self._event)
        return None

    async def _exchange(
        self,
        link: Link,
        request: h11.Request,
        path: str,
        added: Headers,
        dropped: Iterable[str],
        veil: Veil | None = None,
        *,
        may_switch: bool = True,
    ) -> None:
        """One request and its answer, whichever ends first; and what comes behind a switch of protocols."""
        switch = (b"upgrade", b"websocket")
        upgrade = [switch] if may_switch and switch in request.headers else []
        kept = passed_on(request.headers, dropped)
        if upgrade:
            added = [*(pair for pair in added if pair[0] != b"connection"), (b"connection", b"upgrade"), *upgrade]
        try:
            asked = h11.Request(method=request.method, target=path.encode("latin-1"), headers=[*added, *kept])
        except h11.LocalProtocolError:  # which says the value, and that may be a key
            raise Refused(502, "a header that is added here can not be sent") from None
        try:
            await link.stream.send(link.http.send(asked) or b"")
        except LOST:
            raise Unsent(502, "the service hung up") from None
        failure: list[BaseException] = []
        is_http = True
        async with anyio.create_task_group() as tasks:

            async def upload() -> None:
                try:
                    await self._upload(link)
                    # A half-close is no end; a reset is one, and the service need not go on.
                    while not upgrade and await self._channel.receive():
                        pass
                except (Gone, Refused, h11.LocalProtocolError) as error:
                    failure.append(error)
                    tasks.cancel_scope.cancel()

            tasks.start_soon(upload)
            try:
                is_http = await self._download(link, veil)
            except (*LOST, Refused, h11.LocalProtocolError) as error:
                failure.append(error)
            tasks.cancel_scope.cancel()
        if failure:
            self._told.reason = str(failure[0])[:200] or "it hung up"
            if self._told.status is None and not isinstance(failure[0], Gone):
                raise failure[0] if isinstance(failure[0], Refused) else Refused(502, self._told.reason)
            raise Gone(self._told.reason)
        if not is_http:
            async with link.stream:
                await splice(self._channel, link.stream, self._http.trailing_data[0], link.http.trailing_data[0])

    async def _upload(self, link: Link) -> None:
        """Carry the request's body, as far as the service wants it: it may answer, and read no more."""
        while True:
            event = await self._event()
            if not isinstance(event, h11.Data | h11.EndOfMessage):
                return
            said = h11.EndOfMessage() if isinstance(event, h11.EndOfMessage) else event  # without trailers
            if data := link.http.send(said):
                try:
                    await link.stream.send(data)
                except LOST:
                    return
            if isinstance(event, h11.EndOfMessage):
                return

    async def _download(self, link: Link, veil: Veil | None) -> bool:
        """Carry the answer; False if the protocol was switched, and the rest is no HTTP any more.

        Raises:
            Refused: it is packed, so that nothing can be looked for in it.
        """
        while (event := await _next(link)) is not None:
            if isinstance(event, h11.Response | h11.InformationalResponse):
                switched = event.status_code == 101
                head, reason = passed_on(event.headers, ()), event.reason
                if veil is not None:
                    if any(name == b"content-encoding" and value.lower() != b"identity" for name, value in head):
                        raise Refused(502, "the service packs its answer, so that no secret could be found in it")
                    head = [(veil.hide(name), veil.hide(value)) for name, value in head]
                    reason = veil.hide(reason)
                self._told.status = event.status_code
                if switched:
                    head += [(b"connection", b"upgrade"), *((n, v) for n, v in event.headers if n == b"upgrade")]
                elif isinstance(event, h11.Response):
                    head.append((b"connection", b"close"))
                kind = type(event)
                said = self._http.send(kind(status_code=event.status_code, reason=reason, headers=head))
                await self._channel.send(said or b"")
                if switched:
                    return False
            elif veil is not None:
                if isinstance(event, h11.Data):
                    await self._answer(veil.feed(event.data))
                else:
                    await self._answer(veil.rest())
                    await self._channel.send(self._http.send(h11.EndOfMessage()) or b"")
            elif data := self._http.send(event):
                await self._channel.send(data)
            if isinstance(event, h11.EndOfMessage):
                break
        return True

    async def _answer(self, data: bytes) -> None:
        if data:
            await self._channel.send(self._http.send(h11.Data(data=data)) or b"")

    async def _event(self) -> Any:
        """The next thing that the box has said."""
        while True:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as error:
                raise Refused(error.error_status_hint, f"that is no request: {error}"[:200]) from None
            if event is not h11.NEED_DATA:
                return event
            self._http.receive_data(await self._channel.receive())


async def _next(link: Link) -> Any:
    """The next thing that a service says; None when its answer is over.

    Raises:
        OSError: it broke off, or said what is no HTTP.
    """
    while True:
        try:
            event = link.http.next_event()
        except h11.RemoteProtocolError as error:
            # Its words may have the key in them.
            raise OSError(f"that is no answer in HTTP ({error.error_status_hint})") from None
        if event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
            return None
        if event is not h11.NEED_DATA:
            return event
        try:
            link.http.receive_data(await link.stream.receive(CHUNK))
        except anyio.EndOfStream:
            link.http.receive_data(b"")


def _texts(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    return [(name.decode("ascii"), value.decode("latin-1")) for name, value in headers]


async def _say(channel: Channel, refused: Refused) -> bool:
    """Tell the box why, in the reason phrase, which is all that many programs show of it, and in the body."""
    body = f"container-runner: {refused.reason}\n".encode()
    words = {403: "Forbidden: ", 502: "Bad Gateway: "}.get(refused.status, "")
    phrase = re.sub(r"[^ -~]", "?", words + refused.reason)[:200]
    head = (
        f"HTTP/1.1 {refused.status} {phrase}\r\ncontent-type: text/plain; charset=utf-8\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\nx-container-runner: refused\r\n\r\n"
    )
    try:
        await channel.send(head.encode("ascii") + body)
    except Gone:
        return False
    return True
