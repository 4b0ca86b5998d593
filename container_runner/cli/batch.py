"""`container-runner batch`: many prompts, some at a time."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import anyio
import attrs
from cyclopts import App, Parameter

from container_runner.box.hints import hints_for
from container_runner.cli.containers import JsonFlag
from container_runner.cli.flags import ConfigFlags, RunFlags
from container_runner.cli.fleets import fleet_at
from container_runner.cli.image import fetch
from container_runner.cli.jobs import branch_of, make_jobs
from container_runner.cli.options import ExecuteFlags
from container_runner.cli.text import clean, job_line, line
from container_runner.cli.view import NOTHING_YET, QUIET, View, check_live, take_any_script, wants_live, watched
from container_runner.errors import (
    ConfigError,
    EngineError,
    ImageNotFoundError,
    PullFailedError,
    error_class,
)
from container_runner.fleet.batch import Watch, finished, run_batch
from container_runner.fleet.job import Job, JobResult
from container_runner.fleet.results import ResultFile
from container_runner.fleet.results import merge as merged
from container_runner.fleet.shard import Shard
from container_runner.records.figures import duration, taken
from container_runner.records.transcript import retry_told
from container_runner.stream.messages import ApiRetryMessage, Message

if TYPE_CHECKING:
    from container_runner.cli.live import BatchView


MOST_FAILED = 10
"""Failed jobs that are listed at the end."""

app = App(name="batch")


@app.default
def batch(
    file: Path,
    *,
    on: str | None = None,
    jobs: Annotated[int, Parameter(alias="-j")] = 2,
    results: Path | None = None,
    shard: str | None = None,
    retry_failed: Annotated[bool, Parameter(negative=())] = False,
    retries: int = 0,
    total_budget_usd: float | None = None,
    branch: str | None = None,
    live: bool | None = None,
    flags: RunFlags | None = None,
    more: ExecuteFlags | None = None,
    box: ConfigFlags | None = None,
) -> int:
    """Run many prompts, some at a time, and keep their results.

    Args:
        file: The jobs. "-": JSON lines from stdin.
        on: The fleet that runs them, as ray or ray:HOST:PORT. Default: this machine.
        jobs: How many run at the same time; on a fleet, on each node.
        results: Where the results go. Default: beside FILE, as NAME.results.jsonl, or NAME.3-of-20.results.jsonl.
        shard: Run a part of the jobs alone, as 3/20: every twentieth, beginning with the third. Other machines run
            the others, and `batch merge` makes one file of their results.
        retry_failed: Run those again that have failed before.
        retries: How often a job is started again after a failure that may pass: a busy engine, API or folder.
        total_budget_usd: When the jobs together have cost this many US dollars, no more are started.
        branch: The branch that the work of each job becomes, as agent/{name}, where {name} is the job's id. Their
            workspaces must be carried, as with --carried.
        live: Show the live view. Default: if stdout is a terminal.
    """
    flags, more = flags or RunFlags(), more or ExecuteFlags()
    check_live(live, is_json=flags.json)
    is_stdin = str(file) == "-"
    fleet = None if on is None else fleet_at(on)
    part = None if shard is None else Shard.parse(shard)
    if results is None and not is_stdin and file.name:  # "." has none, and is refused when it is read
        results = file.with_name(f"{file.stem}{'' if part is None else f'.{part.number}-of-{part.of}'}.results.jsonl")
    if results is None and is_stdin and not flags.json:
        raise ConfigError("--results", None, "a file, or --json: jobs from stdin have no name to make one of")
    listed = list(make_jobs(file, flags, more, box, part))
    if branch is not None:
        several = len(listed) > 1 or part is not None
        listed = [attrs.evolve(job, branch=branch_of(job, branch, several=several)) for job in listed]
    if not listed and part is not None and part.number > 1:  # more shards than jobs
        View().note(f"· Shard {shard} has no job.")
        return 0
    if not listed:  # whatever made the file has most likely failed
        raise ConfigError("FILE", str(file), "a file with at least one job: this one has none")
    for job in {(str(job.options.agent.workspace), id(job.runner)): job for job in listed}.values():
        for hint in hints_for(job.options.agent, job.runner.config):
            View().note(f"! {clean(f'{job.options.agent.workspace}: {hint}')}")
    with ExitStack() as stack:
        kept = None if results is None else stack.enter_context(ResultFile(results))
        view: _Json | BatchView
        if flags.json:
            view = _Json()
        else:
            take_any_script()
            if wants_live(live):
                from container_runner.cli.live import BatchView  # rich takes a while to import

                view = BatchView(listed, finished(listed, kept, retry_failed=retry_failed))
            else:
                view = _Plain()
        limits = {"on": fleet, "at_once": jobs, "retries": retries, "total_budget_usd": total_budget_usd}
        return anyio.run(_run, listed, kept, retry_failed, view, limits)


@app.command
def merge(*files: Path, json: JsonFlag = True) -> int:
    """Print the results of several shards as those of one batch.

    With their output as --results, `batch` runs what is missing. Of a job that several files have, the first one that
    succeeded counts.

    Args:
        files: The results files of the shards.
        json: It prints nothing else.
    """
    del json
    if not files:
        raise ConfigError("FILE", None, "the results files of the shards")
    found = merged(files)
    for result in found.results:
        sys.stdout.buffer.write(result.to_json() + b"\n")
    sys.stdout.buffer.flush()
    for name in found.twice[:MOST_FAILED]:
        View().note(f"! {clean(name)}: several files have a result")
    if len(found.twice) > MOST_FAILED:
        View().note(f"  and {len(found.twice) - MOST_FAILED} more")
    return 0


class _Json(View):
    """Each result as a line of JSON."""

    def started(self, job: Job) -> None:
        """A job has been started."""

    def agent_at_work(self, job: Job) -> None:
        """A job's agent has started."""

    def said(self, job: Job, message: Message) -> None:
        """One more message of a job."""

    def ended(self, result: JobResult) -> None:
        """A job has ended."""
        sys.stdout.buffer.write(result.to_json() + b"\n")
        sys.stdout.buffer.flush()


class _Plain(_Json):
    """A line of text for each job, and for what keeps one waiting."""

    def __init__(self) -> None:
        self._silent: dict[str, float] = {}
        """When the agents started that have said nothing yet, by their jobs' ids."""

    async def beside(self) -> None:
        """Wonder at agents that say nothing."""
        while True:
            await anyio.sleep(1)
            for name in [name for name, since in self._silent.items() if time.monotonic() >= since + QUIET]:
                del self._silent[name]
                self.note(f"· {clean(name)}: {NOTHING_YET}")

    def agent_at_work(self, job: Job) -> None:
        self._silent[job.id] = time.monotonic()

    def said(self, job: Job, message: Message) -> None:
        self._silent.pop(job.id, None)
        if isinstance(message, ApiRetryMessage):
            self.note(f"· {clean(job.id)}: {line(retry_told(message))}")

    def ended(self, result: JobResult) -> None:
        self._silent.pop(result.id, None)
        print(job_line(result), flush=True)


async def _run(
    jobs: list[Job], results: ResultFile | None, retry_failed: bool, view: _Json | BatchView, limits: dict[str, Any]
) -> int:
    before = finished(jobs, results, retry_failed=retry_failed)
    ended: list[JobResult] = []
    halted: list[str] = []
    began = time.monotonic()

    def note_end(_: Job, result: JobResult) -> None:
        ended.append(result)
        view.ended(result)

    async def work() -> None:
        watch = Watch(
            started=view.started, at_work=view.agent_at_work, said=view.said, ended=note_end, halted=halted.append
        )
        await run_batch(jobs, results=results, retry_failed=retry_failed, watch=watch, **limits)

    todo = jobs if limits["on"] is None else []
    for runner in dict.fromkeys(job.runner for job in todo if job.id not in before):
        with suppress(ImageNotFoundError, PullFailedError):  # each job with that image tells of it
            await fetch(runner)
    runner_here = jobs[0].runner if limits["on"] is None else None
    stopped = await watched(work, view, runner_here, stopping="stopping the agents")
    for reason in halted:
        view.note(f"! {line(reason)}")
    known = [*before.values(), *ended]
    if type(view) is not _Json:
        rows = ending(jobs, before, ended, time.monotonic() - began, results)
        rows += [f"  {stopped.left}"] if stopped else []
        is_over = len(known) == len(jobs) and all(result.was_run for result in known)
        view.end(rows if is_over else [*rows, "  Run it again to go on."])
    elif stopped:
        view.note(stopped.left)
    if stopped:
        return stopped.code
    not_run = next((result.kind for result in ended if not result.was_run), None)
    if not_run is not None:
        return error_class(not_run).cli_exit_code
    return 0 if len(known) == len(jobs) and all(result.succeeded for result in known) else 1


def ending(
    jobs: list[Job], before: Mapping[str, JobResult], ended: list[JobResult], seconds: float, results: ResultFile | None
) -> list[str]:
    """The lines at the end of a batch."""
    known = [*before.values(), *ended]
    failed = [result for result in known if not result.succeeded]
    facts = [f"{len(known) - len(failed)} of {len(jobs)} jobs succeeded"]
    run, not_run = (sum(result.was_run is was for result in failed) for was in (True, False))
    facts += [f"{run} failed"] * bool(run) + [f"{not_run} could not start"] * bool(not_run)
    facts += [f"{len(jobs) - len(known)} did not end"] * (len(jobs) > len(known))
    facts += [f"{len(before)} done before"] * bool(before)
    tokens, dollars = sum(result.tokens or 0 for result in ended), sum(result.cost_usd or 0 for result in ended)
    took = [duration(seconds), *taken(tokens=tokens, cost_usd=dollars)]
    rows = [f"{'✗' if len(known) - len(failed) < len(jobs) else '✓'} {', '.join(facts)} ({', '.join(took)})"]
    rows += [f"    ✗ {clean(result.id)}: {line(result.message or '')}" for result in failed[:MOST_FAILED]]
    rows += [f"    and {len(failed) - MOST_FAILED} more"] * (len(failed) > MOST_FAILED)
    classes = {error_class(result.kind): None for result in failed if result.kind}  # in their order, each once
    rows += [f"  {known.advice}" for known in classes if issubclass(known, EngineError)]
    rows += [f"  Results: {clean(str(results.path))}"] if results is not None else []
    rows += [
        f"  ! {clean(result.id)}: {len(result.findings)} to look at first: container-runner changes {result.run[:12]}"
        for result in ended
        if result.findings
    ][:MOST_FAILED]
    rows += ["  Run it again with --retry-failed to try again what failed."] if run else []
    return rows
