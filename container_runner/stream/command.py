"""Commands that are run to their end: the engine's short ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import anyio
import attrs

from container_runner.errors import EngineTimeoutError
from container_runner.stream.process import TERM_GRACE, Process, settle

OUTPUT_LIMIT: Final = 64 * 1024**2
"""How many bytes of a command's stdout are kept by `run`. Thousands of containers fit; a `sh` of a hostile image that
never stops talking does not."""


@attrs.frozen(kw_only=True)
class Completed:
    """A process that has ended."""

    returncode: int
    """Its exit code, -N if signal N ended it."""

    stdout: bytes
    stderr: str

    @property
    def text(self) -> str:
        return self.stdout.decode("utf-8", "replace")


async def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
    timeout: float,
    stdin: bytes = b"",
    patience: float | None = None,
) -> Completed:
    """Run *argv* to its end, and to an orderly end also when we are cancelled or it takes too long.

    Args:
        timeout: seconds until it gets TERM, and KILL `TERM_GRACE` seconds later.
        patience: seconds that a cancelled caller waits for the command to end by itself; only then it gets TERM, and
            KILL after as long again. Default: `TERM_GRACE`, because a container engine's client must not be cut off
            in the middle of a start.

    Raises:
        EngineTimeoutError: it took longer than *timeout* seconds.
        OSError: see `Process.start`.
    """
    process = await Process.start(argv, env=env, cwd=cwd, stdin=stdin, line_limit=OUTPUT_LIMIT)
    patience = grace = TERM_GRACE if patience is None else patience
    try:
        with anyio.fail_after(timeout):  # around all of it: one that talks all the time never lets a read time out
            stdout = await process.read_all(OUTPUT_LIMIT)
            returncode = await process.wait()
    except TimeoutError:
        patience, grace = 0.0, TERM_GRACE
        msg = f"`{' '.join([Path(argv[0]).name, *argv[1:2]])}` took longer than {timeout:g} seconds."
        raise EngineTimeoutError(msg, stderr=process.stderr.decode("utf-8", "replace")) from None
    finally:
        try:
            await settle(lambda: _end(process, patience, grace))
        finally:
            process.close()
    return Completed(returncode=returncode, stdout=stdout, stderr=process.stderr.decode("utf-8", "replace"))


async def _end(process: Process, patience: float, grace: float) -> None:
    with anyio.move_on_after(patience):
        while await process.read():
            pass
        await process.wait()
    await process.terminate(grace)
