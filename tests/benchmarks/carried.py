"""What it costs to carry a workspace instead of mounting it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import anyio
import attrs

from tests.benchmarks.bench import Bench, child, consume
from tests.benchmarks.measure import Row, Timed, compare, timed

WORK = ("sh", "-c", "echo 1 >new; echo 2 >>0/0; rm -f 0/1")
"""An agent that makes, changes and deletes a file."""


def carried_rows(bench: Bench, *, short: bool) -> list[Row]:
    """An overlay and a stream, against a folder that is mounted to be written: seconds to the end, and memory.

    What is wanted are seconds and megabytes more than that run takes, not a ratio; the table shows the ratio of it.
    """
    small = make_repository(bench, "small", 239, 5_000_000)
    rows = _rows(bench, small, "carried, 5 MB", {"overlay": 0.25, "stream": 0.6})
    if not short:
        many = make_repository(bench, "many", 50_000, 50_000_000)
        rows += _rows(bench, many, "carried, 50,000 files", {"overlay": 0.8})
        rows.append(_memory(bench, many))
        rows += _rows(bench, make_history(bench, "history"), "carried, 1 GB of history", {"overlay": 0.25})
    return rows


def make_repository(bench: Bench, name: str, count: int, size: int) -> Path:
    """A repository of *count* files, a hundred in a folder, with *size* bytes in all, that the agent can write."""
    folder = bench.folder / name
    for number in range(count):
        path = folder / str(number // 100) / str(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d\n" % number * (size // count // len(f"{number}\n")))
    git = ("git", "-c", "gc.auto=0", "-c", "user.name=bench", "-c", "user.email=bench@localhost")
    for words in (("init", "--quiet"), ("add", "--all"), ("commit", "--quiet", "--message=first")):
        subprocess.run([*git, *words], cwd=folder, check=True)
    return _given(bench, folder)


def make_history(bench: Bench, name: str, count: int = 10, size: int = 100_000_000) -> Path:
    """A repository of one small file, which had *size* random bytes in each of *count* commits before."""
    folder = bench.folder / name
    (folder / "0").mkdir(parents=True)
    (folder / "0/1").write_bytes(b"1\n")
    git = ("git", "-c", "gc.auto=0", "-c", "core.compression=0", "-c", "core.bigFileThreshold=1m")
    subprocess.run([*git, "init", "--quiet"], cwd=folder, check=True)
    for number in range(count + 1):
        (folder / "0/0").write_bytes(os.urandom(size if number < count else 1000))
        subprocess.run([*git, "add", "--all"], cwd=folder, check=True)
        who = ("-c", "user.name=bench", "-c", "user.email=bench@localhost")
        subprocess.run([*git, *who, "commit", "--quiet", f"--message={number}"], cwd=folder, check=True)
    return _given(bench, folder)


def _given(bench: Bench, folder: Path) -> Path:
    """The folder, which belongs to the agent's user then."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, *bench.engine.owner)
    return folder


def _rows(bench: Bench, workspace: Path, what: str, more: dict[str, float]) -> list[Row]:
    def run(**config: Any) -> Timed:
        place = attrs.evolve(bench, workspace_name=workspace.name)
        runner = place.runner(*WORK, **config)
        return timed(lambda: anyio.run(lambda: consume(runner, place.options)))

    carried = {way: run(workspace_mode="carried", carry=way) for way in more}
    rows = compare(what, bench.engine.name, {**carried, "mounted": run()}, [*more], bench.runs, {})
    return [attrs.evolve(row, target=1 + more[row.ours] / row.figures[1]) for row in rows]


def _memory(bench: Bench, workspace: Path) -> Row:
    """The most memory of a process with one run."""
    place = {"engine": bench.engine.binary, "image": bench.image, "workspace": workspace, "state": bench.state}
    carried, mounted = (child("one", mode=mode, command=WORK, **place)["peak"] for mode in ("carried", "rw"))
    return Row.of(
        "carried, 50,000 files, peak memory in MB", bench.engine.name, "overlay", [carried],
        "mounted", [mounted], 1 + 60 / mounted,
    )  # fmt: skip
