"""One run of a hostile agent against its gateway: all that it can think of, and what is left of it.

SIZE is what is carried each way: 30 MB here, and what CONTAINER_RUNNER_TEST_MEGABYTES says, which was 300 by hand.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import attrs
import psutil
import pytest

from container_runner import CommandRuntime
from tests.integration.runs import ON_OWN_ROOTFUL, Box, collect, error_of

pytestmark = [pytest.mark.claude, ON_OWN_ROOTFUL]

SIZE = int(os.environ.get("CONTAINER_RUNNER_TEST_MEGABYTES", "30")) * 1_000_000

AGENT = r"""
import concurrent.futures as futures, hashlib, json, os, re, socket, struct, sys, threading, time
GATE, GOOD, SIZE = ("127.0.0.1", 3128), os.environ["GOOD"], int(os.environ["SIZE"])
found = {}

def connect():
    return socket.create_connection(GATE, timeout=120)

def read(sock):
    said = bytearray()
    try:
        while data := sock.recv(65536):
            said += data
    except OSError:
        pass
    return bytes(said)

def ask(raw):
    try:
        with connect() as sock:
            sock.sendall(raw)
            return read(sock)
    except OSError:
        return b""

def status(raw):
    said = ask(raw)
    return int(said[9:12]) if said[:5] == b"HTTP/" else said[:9].decode("latin-1")

def get(path, *headers):
    lines = "".join(h + "\r\n" for h in ("Host: x", *headers))
    return ("GET http://%s%s HTTP/1.1\r\n%s\r\n" % (GOOD, path, lines)).encode()

def tunnel():
    sock = connect()
    sock.sendall(("CONNECT %s HTTP/1.1\r\nHost: x\r\n\r\n" % GOOD).encode())
    head = b""
    while b"\r\n\r\n" not in head:
        head += sock.recv(1)
    assert b" 200 " in head, head
    return sock

def reset(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()

def all_of(count, work):
    with futures.ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda _: work(), range(count)))

# What is no request, and what leads elsewhere.
port = GOOD.rpartition(":")[2]
tries = {
    "frames": b"\x01\x00\x00\x00\x00\x00\x00\x01\x02\x00\x00\x05\x00\x00\x00\x01hello\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "long head": b"GET http://evil.test/ HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 1_000_000 + b"\r\n\r\n",
    "two lengths": get("/up", "Content-Length: 1", "Content-Length: 2"),
    "a host in front": ("GET http://%s@evil.test/ HTTP/1.1\r\nHost: %s\r\n\r\n" % (GOOD, GOOD)).encode(),
    "another host": ("GET http://evil.test/ HTTP/1.1\r\nHost: %s\r\n\r\n" % GOOD).encode(),
    "no host": ("GET / HTTP/1.1\r\nHost: %s\r\n\r\n" % GOOD).encode(),
    "a file": b"GET file:///etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
    "ftp": ("GET ftp://%s/ HTTP/1.1\r\nHost: x\r\n\r\n" % GOOD).encode(),
    "another model": b"GET /model/v1/files HTTP/1.1\r\nHost: x\r\n\r\n",
    "a foreign port": b"CONNECT 127.0.0.2:22 HTTP/1.1\r\nHost: x\r\n\r\n",
    "loopback": ("CONNECT 127.0.0.1:%s HTTP/1.1\r\nHost: x\r\n\r\n" % port).encode(),
    "localhost": ("CONNECT localhost:%s HTTP/1.1\r\nHost: x\r\n\r\n" % port).encode(),
    "v6": ("CONNECT [::ffff:127.0.0.2]:%s HTTP/1.1\r\nHost: x\r\n\r\n" % port).encode(),
    "a number": ("CONNECT 2130706434:%s HTTP/1.1\r\nHost: x\r\n\r\n" % port).encode(),
    "hex": ("CONNECT 0x7f000002:%s HTTP/1.1\r\nHost: x\r\n\r\n" % port).encode(),
    "octal": ("CONNECT 0177.0.0.2:%s HTTP/1.1\r\nHost: x\r\n\r\n" % port).encode(),
    "metadata": b"CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: x\r\n\r\n",
    "a line in a name": ("CONNECT %s\r\nX: y HTTP/1.1\r\nHost: x\r\n\r\n" % GOOD).encode(),
    "an end of text": b"CONNECT evil.test\x00.127.0.0.2:80 HTTP/1.1\r\nHost: x\r\n\r\n",
    "a long name": b"CONNECT " + b"a" * 5000 + b":80 HTTP/1.1\r\nHost: x\r\n\r\n",
}
found["tries"] = {name: status(raw) for name, raw in tries.items()}

# A second request behind the first is not carried out.
found["behind"] = ask(get("/there") + b"GET http://evil.test/behind HTTP/1.1\r\nHost: x\r\n\r\n").count(b"HTTP/1.1 ")

# The forwarder itself.
touched = []
for pid in filter(str.isdecimal, os.listdir("/proc")):
    if os.stat("/proc/" + pid).st_uid == os.getuid():
        continue
    for what in (lambda: os.kill(int(pid), 19), lambda: open("/proc/%s/fd/1" % pid, "wb"),
                 lambda: open("/proc/%s/environ" % pid).read(), lambda: open("/proc/%s/mem" % pid, "r+b")):
        try:
            what()
            touched.append(pid)
        except OSError:
            pass
found["touched"] = touched
try:
    socket.socket().bind(GATE)
    found["port"] = "taken"
except OSError:
    found["port"] = "held"

# 300 that say nothing, and half a request each from others; then they hang up.
silent = [connect() for _ in range(300)]
for sock in silent[:100]:
    sock.sendall(b"GET http://evil")
for sock in silent[::2]:
    reset(sock)
for sock in silent[1::2]:
    sock.close()
found["after the silent"] = status(get("/there"))

# A flood.
def flood():
    return [status(b"GET http://evil.test/%d HTTP/1.1\r\nHost: x\r\n\r\n" % n) for n in range(5)]
answers = [one for some in all_of(100, flood) for one in some]
found["flood"] = sorted({str(one) for one in answers if one})

# 200 tunnels at once, each with words of its own.
ready = threading.Barrier(200)
def talk():
    with tunnel() as sock:
        ready.wait(120)
        word = os.urandom(5000)
        sock.sendall(b"echo" + word)
        said = b""
        while len(said) < len(word) + 4:
            said += sock.recv(65536)
        return said == b"echo" + word
found["at once"] = all_of(200, talk).count(True)

# Resets, both ways.
sock = tunnel(); sock.sendall(b"wait for my reset"); time.sleep(0.5); reset(sock)
sock = tunnel(); sock.sendall(b"reset me")
try:
    found["reset"] = sock.recv(1).decode() or "an end"
except ConnectionResetError:
    found["reset"] = "reset"

# A protocol that is switched to.
with connect() as sock:
    sock.sendall(get("/switch", "Connection: Upgrade", "Upgrade: websocket"))
    said = b""
    while b"\r\n\r\n" not in said:
        said += sock.recv(1)
    sock.sendall(b"over to you")
    found["switch"] = [said[9:12].decode(), sock.recv(100).decode()]

# Who reads slowly, or not at all, holds up nobody; meanwhile much is carried both ways.
idle = []
for _ in range(5):
    sock = connect(); sock.sendall(get("/down")); idle.append(sock)
down = ask(get("/down")).partition(b"\r\n\r\n")[2]
found["down"] = [len(down), hashlib.sha256(down).hexdigest()]
del down
sent = hashlib.sha256()
with connect() as sock:
    sock.sendall(get("/up", "Content-Length: %d" % SIZE).replace(b"GET", b"POST", 1))
    left = SIZE
    while left:
        part = os.urandom(min(left, 1 << 20)); sent.update(part); sock.sendall(part); left -= len(part)
    found["up"] = read(sock).endswith(sent.hexdigest().encode())
for sock in idle:
    reset(sock)

found["still"] = status(get("/there"))
print(json.dumps({"found": found}))
"""


@attrs.define
class Service:
    """What the box may reach: it does what the path or the first word says."""

    resets: list[str] = attrs.field(factory=list)
    """The connections that it has seen reset."""
    asked: list[bytes] = attrs.field(factory=list)
    """The first lines of what came."""

    def serve(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            head = sock.recv(65536)
            self.asked.append(head.partition(b"\r\n")[0])
            if head.startswith(b"echo"):
                sock.sendall(head)
                while data := sock.recv(65536):
                    sock.sendall(data)
            elif head.startswith(b"wait"):
                try:
                    sock.recv(1)
                except ConnectionResetError:
                    self.resets.append("by the box")
            elif head.startswith(b"reset"):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif b" /switch " in head:
                sock.sendall(b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
                sock.sendall(sock.recv(100).upper())
            elif b" /down " in head:
                sock.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n".encode())
                for _ in range(SIZE // 1_000_000):
                    sock.sendall(DATA)
            elif b" /up " in head:
                body = head.partition(b"\r\n\r\n")[2]
                digest, left = hashlib.sha256(body), SIZE - len(body)
                while left > 0 and (data := sock.recv(1 << 20)):
                    digest.update(data)
                    left -= len(data)
                sock.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: 64\r\n\r\n{digest.hexdigest()}".encode())
            else:
                sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


DATA = bytes(range(250)) * 4000


@pytest.fixture
def service() -> Iterator[tuple[Service, str]]:
    served = Service()
    with socket.create_server(("127.0.0.2", 0), backlog=256) as server:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=served.serve, args=(server.accept()[0],), daemon=True).start()

        thread = threading.Thread(target=accept)
        thread.start()
        yield served, f"127.0.0.2:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_hostile_agent_gets_nothing_of_its_gateway(
    box: Box, claude_image: str, service: tuple[Service, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    served, where = service
    us = psutil.Process()
    before = us.memory_info().rss
    messages = collect(
        box.runner(
            CommandRuntime(["python3", "-c", AGENT]),
            image=box.engine.images.claude,
            network="gateway",
            allow_hosts=[where],
            allow_addresses=["127.0.0.2/32"],
            env={"GOOD": where, "SIZE": str(SIZE)},
        ),
        box.options("attack"),
    )
    after = us.memory_info().rss
    assert error_of(messages) is None, messages
    found: dict[str, Any] = next(
        json.loads(text)["found"]
        for message in messages
        if '{"found":' in (text := getattr(message, "text", "") or message.to_json().decode())
    )

    assert found == {
        "tries": {
            **dict.fromkeys(("frames", "tls", "two lengths", "a host in front", "a file", "ftp"), 400),
            **dict.fromkeys(("a number", "hex", "octal", "a line in a name", "an end of text", "a long name"), 400),
            **dict.fromkeys(("another host", "a foreign port", "loopback", "localhost", "v6", "metadata"), 403),
            "long head": 431,
            "no host": 404,
            "another model": 404,
        },
        "behind": 1,
        "touched": [],
        "port": "held",
        "after the silent": 200,
        "flood": ["403"],
        "at once": 200,
        "reset": "reset",
        "switch": ["101", "OVER TO YOU"],
        "down": [SIZE, hashlib.sha256(DATA * (SIZE // 1_000_000)).hexdigest()],
        "up": True,
        "still": 200,
    }
    assert served.resets == ["by the box"]
    assert not [line for line in served.asked if b"evil" in line]
    assert after - before < 150_000_000
    assert [thread.name for thread in threading.enumerate() if "gateway" in thread.name] == []
    assert box.containers() == []
