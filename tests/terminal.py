"""A terminal in memory: a command runs in it as at a person's, and a test or a recording looks at the screen."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import pyte

DIM = 2
GREY = 90
PLAIN = 39


class Screen(pyte.HistoryScreen):
    """pyte's screen, with dim text shown in grey, which pyte itself leaves out."""

    def select_graphic_rendition(self, *attrs: int, private: bool = False) -> None:
        if not private:  # a keyboard's setting, which pyte does not know
            super().select_graphic_rendition(*(GREY if number == DIM else number for number in attrs))

    def report_device_status(self, *modes: int, **_: Any) -> None:
        """Nobody answers."""


class Terminal(contextlib.AbstractContextManager["Terminal"]):
    """One command in a terminal of its own, which leads its own session and is ended with the block."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        columns: int = 90,
        rows: int = 24,
    ) -> None:
        self.raw = bytearray()
        """All that was written to the terminal."""
        self.screen = Screen(columns, rows, history=10_000)
        self._stream = pyte.ByteStream(self.screen)
        self._master, slave = pty.openpty()
        self.resize(columns, rows)
        environ = {**os.environ, "TERM": "xterm-256color", "LANG": "C.UTF-8", **(env or {})}
        for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "COLORTERM"):
            if name not in (env or {}):
                environ.pop(name, None)
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env=environ,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that ^C is a signal
        )
        os.close(slave)

    def __exit__(self, *_: object) -> None:
        self.hang_up()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def resize(self, columns: int, rows: int) -> None:
        self.screen.resize(rows, columns)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        """What a person types; "\\x03" is Ctrl-C."""
        os.write(self._master, text.encode())

    def hang_up(self) -> None:
        """Close the terminal, as when its window is closed."""
        if self._master >= 0:
            os.close(self._master)
            self._master = -1

    def read(self, seconds: float = 0.05) -> bool:
        """Take in what comes within *seconds*; False once the command has closed its side."""
        if not select.select([self._master], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self._master, 65536)
        except OSError:  # Linux says EIO here
            return False
        self.raw += data
        self._stream.feed(data)
        return bool(data)

    def show(self, text: str) -> None:
        """Put text on the screen, as if the command had written it."""
        self._stream.feed(text.encode())

    def wait_for(self, seen: Callable[[str], object] | str, seconds: float = 20) -> str:
        """Read until the screen shows it.

        Returns:
            The screen.
        """
        test = seen if callable(seen) else lambda text: seen in text
        ends_at = time.monotonic() + seconds
        while not test(self.text):
            if time.monotonic() > ends_at or not self.read():
                message = f"the terminal never showed it, but:\n{self.text}"
                raise AssertionError(message)
        return self.text

    def finish(self, seconds: float = 100) -> int:
        """Read to the end; the exit code."""
        ends_at = time.monotonic() + seconds
        while self.read():
            assert time.monotonic() < ends_at, f"the command did not end:\n{self.text}"
        return self.process.wait(5)

    @property
    def text(self) -> str:
        """The screen's rows, without the empty ones at its end."""
        return "\n".join(row.rstrip() for row in self.screen.display).rstrip()

    @property
    def all_text(self) -> str:
        """The same, with what has scrolled away before it."""
        gone = ("".join(row[column].data for column in range(self.screen.columns)) for row in self.screen.history.top)
        return "\n".join([*(row.rstrip() for row in gone), self.text])
