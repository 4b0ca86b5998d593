"""Whether a box has this machine's folders: a file that was just made here must be there when its agent is to start.

A path of a bind is the engine's own, and the same path is another folder on another machine: nothing else tells, for a
socket may be forwarded from anywhere.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from container_runner.box.plan import PROOF, Plan
from container_runner.errors import StateError
from container_runner.folders import open_folder

OLD: Final = 3600.0
"""Seconds after which such a file is what a killed process has left."""


@contextmanager
def proving(plan: Plan) -> Iterator[None]:
    """Have the file there while the box of *plan* starts, which looks for it.

    Raises:
        StateError: it can not be made.
    """
    if plan.proof is None:
        yield
        return
    parts = Path(plan.proof.source).relative_to(plan.state_dir.resolve()).parts
    try:
        with open_folder(plan.state_dir, *parts) as folder:
            _remove_old(folder)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(plan.proof_name, flags, 0o600, dir_fd=folder))
    except OSError as error:
        raise StateError(f"The sessions folder {plan.proof.source} can not be written: {error.strerror}.") from None
    try:
        yield
    finally:
        with suppress(OSError), open_folder(plan.state_dir, *parts) as folder:
            os.unlink(plan.proof_name, dir_fd=folder)


def _remove_old(folder: int) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(PROOF) and not entry.is_dir(follow_symlinks=False):
                with suppress(OSError):
                    if entry.stat(follow_symlinks=False).st_mtime < time.time() - OLD:
                        os.unlink(entry.name, dir_fd=folder)
