"""The HTML page in a real browser, which has the last word on what is harmless."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import pytest

from container_runner.records.page import render_page
from container_runner.records.transcript import Part, converse, parse_record
from tests.hostile import PAYLOADS, PWN, everywhere

OFFLINE = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars", "--window-size=900,1200",
)  # fmt: skip
LIGHT, DARK = "preferredColorScheme=1", "preferredColorScheme=0"


@pytest.fixture(scope="module")
def browser() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if path := shutil.which(name):
            return path
    reason = "there is no chromium on this machine; on Debian: apt-get install chromium"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def chromium(browser: str, page: Path, *flags: str) -> str:
    """What the browser prints of a page, with a profile of its own."""
    profile = page.parent / "profile"
    command = [browser, *OFFLINE, f"--user-data-dir={profile}", *flags, page.as_uri()]
    environ = {"PATH": os.environ["PATH"], "HOME": str(page.parent), "XDG_CONFIG_HOME": str(page.parent)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=100, check=True)
    shutil.rmtree(profile, ignore_errors=True)
    return done.stdout


def write(tmp_path: Path, *payloads: str) -> Path:
    parts = [Part(conversation=converse(map(parse_record, everywhere(payload)))) for payload in payloads]
    path = tmp_path / "page.html"
    path.write_text(render_page(parts, agent="bot", session_id="s-1"), "utf-8")
    return path


def pixel(png: Path, x: int, y: int) -> tuple[int, ...]:
    """The colour of one pixel of a screenshot."""
    data, chunks, at = png.read_bytes(), b"", 8
    width, _, depth, kind = struct.unpack(">IIBB", data[16:26])
    assert depth == 8
    size = {2: 3, 6: 4}[kind]
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        if data[at + 4 : at + 8] == b"IDAT":
            chunks += data[at + 8 : at + 8 + length]
        at += 12 + length
    raw = zlib.decompress(chunks)
    stride = width * size
    above = bytes(stride)
    row = bytearray()
    for line in range(y + 1):
        start = line * (stride + 1)
        how, row = raw[start], bytearray(raw[start + 1 : start + 1 + stride])
        for i in range(stride):
            left = row[i - size] if i >= size else 0
            up, corner = above[i], above[i - size] if i >= size else 0
            nearest = min((left, up, corner), key=lambda value: abs(left + up - corner - value))
            row[i] = (row[i] + (0, left, up, (left + up) // 2, nearest)[how]) % 256
        above = bytes(row)
    return tuple(row[x * size : x * size + 3])


def test_a_script_would_be_seen_if_it_ran(browser: str, tmp_path: Path) -> None:
    """The measure itself: without our escaping and our policy, the payloads do what they are for."""
    path = tmp_path / "naive.html"
    path.write_text(f"<html><head><title>fine</title></head><body><script>{PWN}</script></body></html>")

    assert "<title>pwned</title>" in chromium(browser, path, "--dump-dom")


def test_no_payload_does_anything_in_a_browser(browser: str, tmp_path: Path) -> None:
    dom = chromium(browser, write(tmp_path, *PAYLOADS), "--dump-dom")

    assert "<title>pwned" not in dom
    assert not re.search(r'<html[^>]*class="pwned"', dom)
    assert not re.search(r"<(?:script|img|iframe|object|embed|base|link|form|math|video|audio)[\s>]", dom)
    assert not re.search(r"<[a-z]+\s[^>]*\son[a-z]+=", re.sub(r'"[^"]*"', '""', dom))
    assert dom.count("<style>") == 1
    assert "Made by container-runner" in dom


def test_the_policy_stops_what_escaping_let_through(browser: str, tmp_path: Path) -> None:
    """Both walls stand alone: here the first one is taken away."""
    path = write(tmp_path, "hello")
    hostile = f'<script>{PWN}</script><img src=x onerror="{PWN}"><style>body{{display:none}}</style>'
    path.write_text(path.read_text("utf-8").replace("<footer>", hostile + "<footer>"), "utf-8")

    assert "<title>pwned" not in chromium(browser, path, "--dump-dom")


def test_the_style_takes_effect_in_light_and_in_dark(browser: str, tmp_path: Path) -> None:
    path = write(tmp_path, "hello")
    colours = []
    for scheme in (LIGHT, DARK):
        chromium(browser, path, f"--blink-settings={scheme}", f"--screenshot={tmp_path / 'page.png'}")
        colours.append(pixel(tmp_path / "page.png", 3, 3))

    assert colours == [(0xFB, 0xFA, 0xF8), (0x16, 0x18, 0x1B)]
