"""How the cost grows: with the stream, the line, the number of runs, and other people's containers."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import anyio

from tests.benchmarks.bench import Bench, assistant, child, consume, write_stream
from tests.benchmarks.measure import Point, Row

MEGABYTE = 1024**2


def stream_points(bench: Bench) -> tuple[list[Row], list[Point]]:
    """Streams of a tenth, once and ten times the length, read on the host; 1 GB may take 30 MB more than 10 MB."""
    piece, points = bench.folder / "piece", []
    write_stream(piece, bench.lines // 9)
    for times in (1, 10, 100):
        path = bench.folder / "long.jsonl"
        _repeat(piece, path, times)
        points.append(_read(path, "length of the stream", path.stat().st_size / MEGABYTE, "MB"))
    small, large = points[0], points[-1]
    assert small.megabytes is not None and large.megabytes is not None  # noqa: PT018  one condition for the type checker
    row = Row.of(
        "peak memory in MB", "none", f"{large.amount:,.0f} MB streamed", [large.megabytes],
        f"{small.amount:,.0f} MB streamed", [small.megabytes], (small.megabytes + 30) / small.megabytes,
    )  # fmt: skip
    return [row], points


def line_points(bench: Bench) -> list[Point]:
    """As many bytes in ever longer lines."""
    points = []
    for size in (1_000, 100_000, 10_000_000):
        piece, path = bench.folder / "piece", bench.folder / "long.jsonl"
        write_stream(piece, 2, text=2 * size - 2 * len(str(assistant(0, 0))))
        _repeat(piece, path, max(1, bench.lines * 250 // size))
        points.append(_read(path, f"size of the line, {size:,} bytes", path.stat().st_size / MEGABYTE, "MB"))
    return points


def _repeat(piece: Path, path: Path, times: int) -> None:
    content = piece.read_bytes()
    with path.open("wb") as file:
        for _ in range(times):
            file.write(content)


def _read(path: Path, what: str, amount: float, unit: str) -> Point:
    measured = child("stream", path=path)
    path.unlink()
    return Point(
        what=what, engine="none", amount=round(amount, 1), unit=unit, seconds=measured["seconds"],
        megabytes=measured["peak"], note=f"{amount / measured['seconds']:.0f} MB/s",
    )  # fmt: skip


def run_points(bench: Bench, counts: tuple[int, ...]) -> tuple[list[Row], list[Point]]:
    """Queued runs, four at a time on two processors."""
    points = []
    for count in counts:
        measured = child("batch", count=count, **_place(bench))
        points.append(
            Point(
                what="queued runs", engine=bench.engine.name, amount=count, unit="runs", seconds=measured["seconds"],
                megabytes=measured["peak"], note=f"{measured['cpu'] / count * 1000:.1f} ms of our own for each",
            )
        )  # fmt: skip
    few, most = points[-2:]
    assert few.megabytes is not None and most.megabytes is not None  # noqa: PT018  one condition for the type checker
    row = Row.of(
        "peak memory in MB", bench.engine.name, f"{counts[-1]:,} queued runs", [most.megabytes],
        f"{counts[-2]:,} queued runs", [few.megabytes], 1.1,
    )  # fmt: skip
    return [row], points


def idle_rows(bench: Bench, count: int, seconds: float) -> list[Row]:
    """Persistent agents that do nothing: memory, processor time, and how often we wake up."""
    rows = []
    for running, shown in ((False, "kept"), (True, "in a silent run")):
        measured = child("idle", count=count, seconds=seconds, running=running, **_place(bench))
        what, agents = f"{count} persistent agents", f"{count} {shown}"
        bench.remove_ours()
        rows += [
            Row.of(f"{what}, memory in MB", bench.engine.name, agents, [measured["megabytes"]], "60 MB", [60.0], 1.0),
            Row.of(
                f"{what}, processor seconds in {seconds:g} s", bench.engine.name,
                f"{agents}, woken {measured['woken']:g} times",
                [measured["own"] + measured["clients"]], "one processor", [seconds], None if running else 0.001,
            ),
        ]  # fmt: skip
    return rows


def stranger_points(bench: Bench, counts: tuple[int, ...]) -> list[Point]:
    """The first message with other people's containers on the engine, and the bare client's beside it."""
    kept, cold = bench.runner("echo", "hello", ephemeral=False), bench.runner("echo", "hello")
    names: list[str] = []
    points: list[Point] = []
    bench.keep("bench-crowd")

    async def first(*, is_kept: bool) -> float:
        return (await consume(kept if is_kept else cold, bench.options))[0]

    try:
        for count in counts:
            while len(names) < count:
                names.append(f"bench-stranger-{len(names)}")
                bench.engine.run("create", f"--name={names[-1]}", "--network=none", "--", bench.image, "true")
            took: dict[str, list[float]] = {"cold": [], "kept": [], "looked for": [], "bare exec": []}
            for _ in range(2 * bench.runs + 1):
                took["cold"].append(anyio.run(lambda: first(is_kept=False)))
                took["kept"].append(anyio.run(lambda: first(is_kept=True)))
                took["bare exec"].append(bench.bare_first_line("exec", "bench-crowd", "echo", "hello"))
                start = time.perf_counter()
                bench.bare("ps", "--all", "--quiet", "--filter=label=container-runner.run")
                took["looked for"].append(time.perf_counter() - start)
            points += [
                Point(
                    what=f"first message, {what}", engine=bench.engine.name, amount=count, unit="strangers",
                    seconds=statistics.median(seconds),
                )
                for what, seconds in took.items()
            ]  # fmt: skip
        return points
    finally:
        if names:
            bench.engine.run("rm", "--force", *names, timeout=600)
        bench.engine.remove("bench-crowd")
        bench.remove_ours()


def _place(bench: Bench) -> dict[str, str]:
    return {
        "engine": bench.engine.binary,
        "image": bench.image,
        "workspace": str(bench.workspace),
        "state": str(bench.state),
    }
