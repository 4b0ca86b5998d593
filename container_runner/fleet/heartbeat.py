"""Tells the actors of a fleet that this process is there: one that hears nothing ends, and its agents with it.

Ray itself takes a minute to see that a node is cut off, and that node's agents would work on meanwhile.

It takes a thread: what a caller does with a message may take its time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Final

from container_runner.stream import beat

_STOP: Final = 5.0
"""Seconds that `stop` waits for a call of Ray's that does not return."""


class Heartbeat:
    """Beats for these actors every `beat.BEAT` seconds, from now on until `stop`."""

    def __init__(self, actors: Mapping[str, Any]) -> None:
        self._actors = dict(actors)
        self._sent: dict[str, float] = {}
        self._changing = threading.Lock()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="container-runner heartbeat", daemon=True)
        self._thread.start()

    def give_up(self, name: str) -> float:
        """Beat for this one no more.

        Returns:
            The seconds after which it has ended, if it has not yet.
        """
        with self._changing:
            self._actors.pop(name, None)
            sent = self._sent.get(name, time.monotonic())
        return max(sent + beat.PATIENCE - time.monotonic(), 0.0)

    def stop(self) -> None:
        """Beat no more. Behind it nothing of Ray's is called, which would start a cluster where there is none.

        A call that does not return is waited for for 5 seconds, and no other comes after it.
        """
        self._is_over.set()
        self._thread.join(_STOP)

    def _run(self) -> None:
        import ray

        beats: dict[str, Future[Any]] = {}
        while True:
            with self._changing:
                for name, actor in self._actors.items():
                    if self._is_over.is_set():
                        return
                    # Never a second one on the way: a node that is cut off must not hear of us late.
                    if name in beats and not beats[name].done():
                        continue
                    with suppress(ray.exceptions.RayError):  # it is dead
                        beats[name] = actor.beat.remote().future()
                        self._sent[name] = time.monotonic()
            if self._is_over.wait(beat.BEAT):
                return
