"""What a command finds around it: its standard streams, its current folder, and what the system says of them."""

from __future__ import annotations

import os
import sys


def nameless() -> str:
    """What the system complains of if it names no file."""
    try:
        os.getcwd()  # noqa: PTH109  pathlib takes longer to import than the rest of what a command starts with
    except FileNotFoundError:
        return "The current folder"
    return "The output"


def open_what_is_closed() -> None:
    """Let nothing else have the descriptors of the standard streams, and nobody meet a stream that is None."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            nothing = os.open(os.devnull, os.O_RDWR)
            if nothing != fd:
                os.dup2(nothing, fd)
                os.close(nothing)
            setattr(sys, name, open(fd, "w" if fd else "r"))  # noqa: PTH123, SIM115  it stays open to the end


def what_was_met(error: BaseException) -> OSError | RecursionError | None:
    """What went wrong, alone or in groups, if it is of the system's kind; None if anything else did."""
    if isinstance(error, BaseExceptionGroup):
        found = [what_was_met(inner) for inner in error.exceptions]
        return None if None in found else found[0]
    return error if isinstance(error, OSError | RecursionError) else None
