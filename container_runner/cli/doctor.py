"""`container-runner doctor`: whether a run would work, and what to type if it would not."""

from __future__ import annotations

import functools
import os
import sys
from contextlib import aclosing

import anyio
import attrs

from container_runner.cli.containers import EngineFlags, configured, print_json
from container_runner.cli.flags import ConfigFlags, RunFlags, prepare
from container_runner.cli.options import ExecuteFlags
from container_runner.cli.text import clean
from container_runner.doctor.checks import Check
from container_runner.errors import ConfigError

_MARKS = {"ok": ("✓", "32"), "warn": ("!", "33"), "fail": ("✗", "31")}


def doctor(
    *,
    on: str | None = None,
    flags: RunFlags | None = None,
    more: ExecuteFlags | None = None,
    box: ConfigFlags | None = None,
) -> int:
    """Check whether a run would work on this machine, and say what to type if it would not.

    Args:
        on: The fleet whose nodes are asked instead, as ray or ray:HOST:PORT.
    """
    flags = flags or RunFlags()
    return anyio.run(_doctor, flags, more, box) if on is None else anyio.run(_ask_nodes, on, flags, more, box)


async def _ask_nodes(on: str, flags: RunFlags, more: ExecuteFlags | None, box: ConfigFlags | None) -> int:
    from container_runner.cli.fleets import described, fleet_at, trouble_of
    from container_runner.fleet.job import Job

    fleet = fleet_at(on)
    runner, options = prepare("doctor", flags, more, box)
    job = Job(id="doctor", runner=runner, options=options)
    answers = await fleet.examine(job)
    troubles = {name: trouble_of(answer, job) for name, answer in answers.items()}
    if flags.json:
        rows = [
            {"node": name, "trouble": troubles[name]} | ({} if isinstance(answer, str) else attrs.asdict(answer))
            for name, answer in answers.items()
        ]
        print_json({"ok": not any(troubles.values()), "nodes": rows})
        return 1 if any(troubles.values()) else 0
    for name, answer in answers.items():
        told = troubles[name] or described(answer)
        print(_line(Check(name=name, status="fail" if troubles[name] else "ok", found=told)), flush=True)
    failed = [name for name, trouble in troubles.items() if trouble]
    print(f"\nA batch would not run on: {', '.join(failed)}." if failed else "\nA batch runs on every node.")
    return 1 if failed else 0


async def _doctor(flags: RunFlags, more: ExecuteFlags | None, box: ConfigFlags | None) -> int:
    from container_runner.doctor.doctor import examine

    checks: list[Check] = []
    in_question = functools.partial(prepare, "doctor", flags, more, box)
    async with aclosing(examine(in_question, engine=_engine(flags, box))) as found:
        async for check in found:
            checks.append(check)
            if not flags.json and check.status != "skip":
                print(_line(check), flush=True)
    failed = [check.name for check in checks if check.status == "fail"]
    if flags.json:
        print_json({"ok": not failed, "checks": [attrs.asdict(check) for check in checks]})
    else:
        if skipped := [check.name for check in checks if check.status == "skip"]:
            print(f"  not looked at, because of what failed above: {', '.join(skipped)}")
        print(f"\nA run would fail: {', '.join(failed)}." if failed else "\nA run works.")
    return 1 if failed else 0


def _engine(flags: RunFlags, box: ConfigFlags | None) -> str:
    """The engine to look at where the rest of the configuration is refused."""
    wanted: str | None = getattr(box, "engine", None)
    try:
        found = configured(EngineFlags(engine=wanted, config=flags.config, profile=flags.profile))
    except ConfigError:
        return wanted or "auto"
    return str(found.settings["engine"].value)


def _line(check: Check) -> str:
    mark, colour = _MARKS[check.status]
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb":
        mark = f"\033[{colour}m{mark}\033[0m"
    found = clean(check.found).replace("\n", f"\n{'':16}")
    fix = f"\n{'':16}→ {clean(check.fix)}" if check.fix else ""
    return f"{mark} {check.name:13} {found}{fix}"
