"""What the gateway costs, against a bridge network: the same client and the same service, by a tunnel and without."""

from __future__ import annotations

import contextlib
import json
import resource
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import anyio
import attrs

from container_runner import CommandRuntime, ContainerConfig, ContainerRunner, ErrorMessage
from tests.benchmarks.bench import Bench, consume
from tests.benchmarks.measure import Row, Timed, compare
from tests.integration.images import Unavailable

FIRST_BYTE: float = 2.0
"""Milliseconds that the first byte may come later than by the bridge."""

PACE: float = 100.0
"""Megabytes that one stream carries in a second at least."""

START: float = 0.040
"""Seconds that a run may begin later than with a bridge, with Docker."""

SERVICE = """\
import socket, sys, threading
def serve(sock):
    with sock:
        left = int(sock.makefile("rb").readline())
        part = bytes(1 << 20)
        while left > 0:
            sock.sendall(part[:left])
            left -= len(part)
with socket.create_server((sys.argv[1], 0), backlog=64) as server:
    print(server.getsockname()[1], flush=True)
    while True:
        threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
"""
"""Sends as many zeros as it is asked for on a line."""

CLIENT = """\
import json, os, socket, sys, time
port, times, size = map(int, sys.argv[1:])
proxy = os.environ.get("HTTP_PROXY")
def connect():
    if not proxy:
        route = next(line.split() for line in open("/proc/net/route") if line.split()[1] == "00000000")
        return socket.create_connection((socket.inet_ntoa(bytes.fromhex(route[2])[::-1]), port))
    host, _, at = proxy.removeprefix("http://").partition(":")
    sock = socket.create_connection((host, int(at)))
    sock.sendall(b"CONNECT 127.0.0.2:%d HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n" % port)
    head = b""
    while b"\\r\\n\\r\\n" not in head:
        head += sock.recv(4096)
    assert b" 200 " in head, head
    return sock
def ask(count):
    began = time.perf_counter()
    with connect() as sock:
        sock.sendall(b"%d\\n" % count)
        left, first = count, 0.0
        while left:
            left -= len(sock.recv(1 << 18))
            first = first or time.perf_counter() - began
    return first, time.perf_counter() - began
ask(1)
firsts = [ask(1)[0] for _ in range(times)]
print(json.dumps({"type": "figures", "first": sorted(firsts)[times // 2], "whole": ask(size)[1] if size else 0}))
"""


@attrs.frozen
class Figures:
    """What one run has measured, in seconds, and our own processor time in it."""

    first: float
    whole: float
    spent: float


def gateway_rows(bench: Bench, *, short: bool) -> list[Row]:
    """First byte, one stream, our processor time for it, and the start of a run, beside what the bare client takes."""
    try:
        images = bench.engine.images
        image = images.python if short else images.claude  # which has a perl too
    except Unavailable as reason:
        print(f"the gateway is left out: {reason}", file=sys.stderr)
        return []
    times, size, turns = (5, 10**6, 1) if short else (50, 200 * 10**6, bench.runs)
    ours: list[Figures] = []
    theirs: list[Figures] = []
    daemon = bench.engine.daemon
    with service() as here, service(None if daemon is None else daemon.pid) as there:
        for turn in range(turns + 1):
            for network, port, found in (("gateway", here, ours), ("bridge", there, theirs)):
                figures = measured(bench, network, port, times, size, image=image)
                if turn:
                    found.append(figures)
    engine, megabytes = bench.engine.name, size / 10**6
    bridge_first = statistics.median(1000 * one.first for one in theirs)
    bridge_whole = statistics.median(one.whole for one in theirs)
    rows = [
        Row.of(
            "gateway, first byte in ms", engine, "gateway", [1000 * one.first for one in ours],
            "bridge", [1000 * one.first for one in theirs], 1 + FIRST_BYTE / bridge_first,
        ),
        Row.of(
            f"gateway, one stream of {megabytes:g} MB", engine, "gateway", [one.whole for one in ours],
            "bridge", [one.whole for one in theirs], megabytes / PACE / bridge_whole,
        ),
        Row.of(
            f"gateway, our processor seconds for {megabytes:g} MB", engine, "gateway", [one.spent for one in ours],
            "bridge", [one.spent for one in theirs],
        ),
    ]  # fmt: skip
    starts = {one: runner(bench, one, "echo", "hello", image=image) for one in ("gateway", "bridge", "none")}

    def first(one: ContainerRunner) -> float:
        return anyio.run(lambda: consume(one, bench.options))[0]

    contenders: dict[str, Timed] = {network: partial(first, one) for network, one in starts.items()}
    for row in compare("gateway, first message", engine, contenders, ["gateway"], 2 * turns, {}):
        is_promised = engine == "docker" and row.theirs == "bridge"
        rows.append(attrs.evolve(row, target=1 + START / row.figures[1] if is_promised else None))
    bare: dict[str, Timed] = {
        "none and an exec": partial(bare_start, bench, "none", image=image, beside=BESIDE_SHORT if short else BESIDE),
        **{network: partial(bare_start, bench, network, image=image) for network in ("bridge", "none")},
    }
    return [*rows, *compare("bare CLI, first byte", engine, bare, ["none and an exec"], 2 * turns, {})]


BESIDE = ("sh", "-c", 'exec /usr/bin/perl -MSocket -MFcntl -e "$1"', "sh", 'print STDERR "up\\n"; <STDIN>')
"""What starts beside it: less than a forwarder, and nothing that carries bytes by an exec can start sooner."""

BESIDE_SHORT = ("python3", "-S", "-c", 'import sys; print("up", file=sys.stderr, flush=True); sys.stdin.read()')
"""The same in the small image, which has no perl."""


def bare_start(bench: Bench, network: str, *, image: str, beside: tuple[str, ...] = ()) -> float:
    """The seconds until a container says something by the bare client, which it does once what is *beside* has."""
    name = f"bare-{secrets.token_hex(6)}"
    run = bench.bare_run(name, "sh", "-c", "echo up >&2; read line; echo said")
    words = [f"--network={network}" if word == "--network=none" else word for word in run]
    words[words.index(bench.image)] = image
    began = time.perf_counter()
    with contextlib.ExitStack() as stack:

        def start(*command: str) -> subprocess.Popen[bytes]:
            pipe = subprocess.PIPE
            called = [bench.engine.binary, *command]
            return stack.enter_context(subprocess.Popen(called, stdin=pipe, stdout=pipe, stderr=pipe))

        process = start(*words)
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stderr.readline() == b"up\n"
        if beside:
            forwarder = start("exec", "--interactive", "--user=65533", "--", name, *beside)
            assert forwarder.stderr is not None
            assert forwarder.stderr.readline() == b"up\n"
        process.stdin.write(b"go\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"said\n"
        return time.perf_counter() - began


def runner(bench: Bench, network: str, *command: str, image: str, port: int | None = None) -> ContainerRunner:
    more: dict[str, Any] = {}
    if port is not None and network == "gateway":
        more = {"allow_hosts": [f"127.0.0.2:{port}"], "allow_addresses": ["127.0.0.2"]}
    box = ContainerConfig(image=image, engine=bench.engine.binary, network=network, credentials="none", **more)
    return ContainerRunner(CommandRuntime(command), box, state_dir=bench.state, records=False)


def measured(bench: Bench, network: str, port: int, times: int, size: int, *, image: str) -> Figures:
    """What the client in a box measures."""
    words = ("python3", "-c", CLIENT, str(port), str(times), str(size))
    made = runner(bench, network, *words, image=image, port=port)
    before = spent()

    async def figures() -> dict[str, float]:
        found: dict[str, float] = {}
        async for message in made.execute(bench.options):
            if isinstance(message, ErrorMessage):
                raise AssertionError(message.message)  # noqa: TRY004  the run failed, not its type
            raw = json.loads(message.to_json())
            found |= raw if raw.get("type") == "figures" else {}
        return found

    found = anyio.run(figures)
    return Figures(first=found["first"], whole=found["whole"], spent=spent() - before)


def spent() -> float:
    """Seconds of processor time of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


@contextlib.contextmanager
def service(beside: int | None = None, host: str = "0.0.0.0") -> Iterator[int]:
    """A service on this machine, as its port: where a bridge leads to, which is the network of the daemon's process."""
    entered = [] if beside is None else ["nsenter", f"--target={beside}", "--net"]
    with subprocess.Popen([*entered, sys.executable, "-c", SERVICE, host], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()
