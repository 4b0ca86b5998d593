"""Bytes through a process: what it is given on stdin may be a stream, and what it says is one."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import anyio

from container_runner.stream.process import EXIT_GRACE, Process, settle


class Pipe:
    """A process that bytes run through; made by `open_pipe`. Iterate it for its stdout, as it comes.

    The next bytes for its stdin are asked for when it has taken the last, so neither side piles up; and no more are
    when it has closed its stdin. Where they come from must not itself wait for what is read here.
    """

    def __init__(self, process: Process, stdin: AsyncIterable[bytes] | None, patience: float | None = None) -> None:
        self._process = process
        self._patience = patience
        self._stdin = aiter(stdin) if stdin is not None else None
        self._ready: deque[bytes] = deque()

    def __aiter__(self) -> Pipe:
        return self

    async def __anext__(self) -> bytes:
        """Raises TimeoutError if it takes longer than our patience."""
        with anyio.fail_after(self._patience):
            return await self._next()

    async def _next(self) -> bytes:
        while not self._ready:
            if self._stdin is not None and self._process.is_hungry:
                data = await anext(self._stdin, None) if self._process.takes_more else None
                if data is None:
                    self._stdin = None
                    self._process.close_stdin()
                else:
                    self._process.give(data)
            elif self._stdin is not None:
                self._ready += cast("list[bytes]", await self._process.turn())
            elif chunks := await self._process.read():
                self._ready += cast("list[bytes]", chunks)
            else:
                raise StopAsyncIteration
        return self._ready.popleft()

    def send(self, data: bytes, *, last: bool = False) -> None:
        """Give it more, if `open_pipe` was given no stdin, which ends behind what is *last*.

        It goes while the stdout is read.
        """
        self._process.give(data, last=last)

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
    stdin: bytes | AsyncIterable[bytes] | None = b"",
    grace: float = EXIT_GRACE,
    patience: float | None = None,
) -> AsyncIterator[Pipe]:
    """Start *argv*; who leaves the block before it has ended, ends it: TERM, and KILL *grace* seconds later.

    Args:
        env: the environment, all of it; None for ours.
        stdin: what it gets, which then ends; None to `send` it. A process that does not want all of it is no failure.
        patience: seconds that it may be silent while it is read; None: any time.

    Raises:
        OSError: see `Process.start`.
    """
    given = stdin if isinstance(stdin, bytes) else None
    process = await Process.start(argv, env=env, cwd=cwd, stdin=given or b"", hold_stdin=given is None, chunks=True)
    try:
        yield Pipe(process, None if isinstance(stdin, bytes) else stdin, patience)
    finally:
        process.give_up_pipes()  # who waits for us to read, as an engine's client, does not end
        try:
            await settle(lambda: process.terminate(grace))
        finally:
            process.close()
