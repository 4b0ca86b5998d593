"""Bytes through a process: what it is given on stdin may be a stream, and what it says is one."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

from container_runner.stream.process import EXIT_GRACE, Process, settle


class Pipe:
    """A process that bytes run through; made by `open_pipe`. Iterate it once for its stdout, as it comes."""

    def __init__(self, process: Process, stdin: bytes | AsyncIterable[bytes]) -> None:
        self._process = process
        self._stdin = stdin

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Its stdout. The next bytes for its stdin are asked for when it has taken the last, so neither side piles up.

        Where they come from must not itself wait for what is read here.
        """
        if not isinstance(self._stdin, bytes):
            async for data in self._stdin:
                self._process.give(data)
                while not self._process.is_hungry:
                    for chunk in await self._process.turn():
                        yield cast("bytes", chunk)
            self._process.close_stdin()
        while chunks := await self._process.read():
            for chunk in chunks:
                yield cast("bytes", chunk)

    async def wait(self) -> int:
        """Wait for its end, and return its exit code, -N if signal N ended it. Read all of its stdout first."""
        return await self._process.wait()

    @property
    def stderr(self) -> str:
        """The end of what it has said on stderr."""
        return self._process.stderr.decode("utf-8", "replace")


@asynccontextmanager
async def open_pipe(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
    stdin: bytes | AsyncIterable[bytes] = b"",
    grace: float = EXIT_GRACE,
) -> AsyncIterator[Pipe]:
    """Start *argv*; who leaves the block before it has ended, ends it: TERM, and KILL *grace* seconds later.

    Args:
        env: the environment, all of it; None for ours.
        stdin: what it gets, which then ends. A process that does not want all of it is not a failure.

    Raises:
        OSError: see `Process.start`.
    """
    given = stdin if isinstance(stdin, bytes) else b""
    hold = not isinstance(stdin, bytes)
    process = await Process.start(argv, env=env, cwd=cwd, stdin=given, hold_stdin=hold, chunks=True)
    try:
        yield Pipe(process, stdin)
    finally:
        try:
            await settle(lambda: process.terminate(grace))
        finally:
            process.close()
