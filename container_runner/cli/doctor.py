"""`container-runner doctor`: whether a run would work, and what to type if it would not."""

from __future__ import annotations

import os
import sys
from contextlib import aclosing
from typing import TYPE_CHECKING

import anyio
import orjson

from container_runner.cli.flags import ConfigFlags, RunFlags, prepare
from container_runner.cli.text import clean

if TYPE_CHECKING:
    from container_runner.doctor import Check

_MARKS = {"ok": ("✓", "32"), "warn": ("!", "33"), "fail": ("✗", "31"), "skip": ("·", "2")}


def doctor(*, flags: RunFlags | None = None, box: ConfigFlags | None = None) -> int:
    """Check whether a run would work on this machine, and say what to type if it would not.

    Give it the flags of the run in question. The exit code is 0 if that run would work, and 1 if not.
    """
    return anyio.run(_doctor, flags or RunFlags(), box)


async def _doctor(flags: RunFlags, box: ConfigFlags | None) -> int:
    from container_runner.doctor import examine

    checks: list[Check] = []
    engine = getattr(box, "engine", None) or "auto"
    async with aclosing(examine(lambda: prepare("doctor", flags, box), engine=engine)) as found:
        async for check in found:
            checks.append(check)
            if not flags.json:
                print(_line(check), flush=True)
    works = all(check.status != "fail" for check in checks)
    if flags.json:
        import attrs

        answer = {"ok": works, "checks": [attrs.asdict(check) for check in checks]}
        sys.stdout.buffer.write(orjson.dumps(answer) + b"\n")
    else:
        print(f"\n{'A run works.' if works else 'A run would fail.'}")
    return 0 if works else 1


def _line(check: Check) -> str:
    mark, colour = _MARKS[check.status]
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb":
        mark = f"\033[{colour}m{mark}\033[0m"
    found = clean(check.found).replace("\n", f"\n{'':16}")
    fix = f"\n{'':16}→ {clean(check.fix)}" if check.fix else ""
    return f"{mark} {check.name:13} {found}{fix}"
