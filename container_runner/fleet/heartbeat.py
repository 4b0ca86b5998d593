"""Tells the actors of a fleet that this process is there: one that hears nothing ends, and its agents with it.

Ray itself takes a minute to see that a node is cut off, and that node's agents would work on meanwhile.

It takes a thread: what a caller does with a message may take its time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from container_runner.stream import beat


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
        """Beat no more. Behind it nothing of Ray's is called, which would start a cluster where there is none."""
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        import ray

        beats: dict[str, Any] = {}
        while True:
            with self._changing:
                for name, actor in self._actors.items():
                    with suppress(ray.exceptions.RayError):  # it is dead
                        # Never a second one on the way: a node that is cut off must not hear of us late.
                        if name in beats and not ray.wait([beats[name]], timeout=0)[0]:
                            continue
                        beats[name] = actor.beat.remote()
                        self._sent[name] = time.monotonic()
            if self._is_over.wait(beat.BEAT):
                return
