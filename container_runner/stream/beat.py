"""A lease over a network: its holder says now and then that it is there.

A line that is cut says nothing: neither side's pipe ends, for minutes or for hours. So whoever holds the lease of an
agent on another machine writes an empty line every few seconds, and the script there ends when none has come.

It takes a thread: a `Process` does nothing while nobody reads it, and a reader may take its time.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import Final

import attrs

from container_runner.stream.process import Process

BEAT: Final = 5.0
"""Seconds between two lines."""

PATIENCE: Final = 30
"""Seconds without one after which an agent ends."""


class Beat:
    """Writes an empty line to a pipe every `BEAT` seconds, from now on until `stop`.

    Args:
        fd: the pipe, which does not block. Nothing but single lines may be written to it by others.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._is_over = threading.Event()
        self.thread = threading.Thread(target=self._run, name="container-runner beat", daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """Write no more: the descriptor may be closed, and be another file's then."""
        self._is_over.set()
        self.thread.join()

    def _run(self) -> None:
        while not self._is_over.wait(BEAT):
            with suppress(OSError):  # it is full, or nobody reads it any more
                os.write(self._fd, b"\n")


@attrs.define(eq=False, repr=False, slots=False)
class BeatingProcess(Process):
    """A client of an engine on another machine."""

    _beat: Beat | None = attrs.field(default=None, init=False)

    def begin_to_beat(self) -> None:
        """Say from now on that we are there: all that its stdin is to get has been sent."""
        if "stdin" in self._fds:
            self._beat = Beat(self._fds["stdin"])

    def _close(self, name: str) -> None:
        if name == "stdin" and self._beat is not None:
            self._beat.stop()
        super()._close(name)
