"""`container-runner batch`: many prompts, some at a time."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import anyio
import attrs
import orjson
from cyclopts import Parameter

from container_runner.box.hints import hints_for
from container_runner.cli.flags import ConfigFlags, RunFlags, prepare
from container_runner.cli.options import ExecuteFlags, prompt_in, unreadable
from container_runner.cli.text import clean, job_line, line
from container_runner.cli.view import View, take_any_script, wants_live, watched
from container_runner.config.converter import parse_toml, structured
from container_runner.config.fields import AGENT, BOX, REQUEST, flag, parse
from container_runner.config.keys import refuse_key
from container_runner.config.laws import NOT_SHOWN, law, optional
from container_runner.errors import ConfigError, EngineError, cli_exit_code, error_class
from container_runner.fleet.batch import ResultFile, Watch, finished, run_batch
from container_runner.fleet.job import Job, JobResult
from container_runner.records.figures import duration, taken
from container_runner.runner import ContainerRunner
from container_runner.stream.messages import Message

if TYPE_CHECKING:
    from container_runner.cli.live import BatchView


def is_prompt(value: object) -> bool:
    """Whether *value* is text with something in it."""
    return isinstance(value, str) and bool(value.strip())


@attrs.frozen(kw_only=True)
class JobTable:
    """What a job says of itself. What it may say of the agent and of the request are the `FIELDS` of these."""

    id: str | None = None
    prompt: str | None = attrs.field(default=None, validator=optional(law("some text", is_prompt)))
    prompt_file: Path | None = None
    workspace: Path | None = None
    image: str | None = None
    agent: str | None = None
    resume: str | None = None
    fork: bool | None = None
    session_id: str | None = None


@attrs.frozen
class JobFile:
    """What stands at the top of a TOML file of jobs."""

    defaults: Mapping[str, Any] = attrs.field(factory=dict)
    job: tuple[Mapping[str, Any], ...] = ()


KEYS = (*attrs.fields_dict(JobTable), *AGENT, *(name for name in REQUEST if name != "include_partial_messages"))
"""What a job may say."""

_TOML_JOB = re.compile(rb"[ \t]*\[\[[ \t]*job[ \t]*\]\]")

MOST_FAILED = 10
"""Failed jobs that are listed at the end."""


def batch(
    file: Path,
    *,
    jobs: Annotated[int, Parameter(alias="-j")] = 2,
    results: Path | None = None,
    retry_failed: Annotated[bool, Parameter(negative=())] = False,
    retries: int = 0,
    total_budget_usd: float | None = None,
    live: bool | None = None,
    flags: RunFlags | None = None,
    more: ExecuteFlags | None = None,
    box: ConfigFlags | None = None,
) -> int:
    """Run many prompts, some at a time, and keep their results.

    Args:
        file: The jobs. "-": JSON lines from stdin.
        jobs: How many run at the same time.
        results: Where the results go. Default: beside FILE, as NAME.results.jsonl.
        retry_failed: Run those again that have failed before.
        retries: How often a job is started again after a failure that may pass: a busy engine or API.
        total_budget_usd: When the jobs together have cost this many US dollars, no more are started.
        live: Show the live view. Default: if stdout is a terminal.
    """
    flags, more = flags or RunFlags(), more or ExecuteFlags()
    is_stdin = str(file) == "-"
    if results is None and not is_stdin and file.name:  # "." has none, and is refused when it is read
        results = file.with_name(f"{file.stem}.results.jsonl")
    if results is None and is_stdin and not flags.json:
        raise ConfigError("--results", None, "a file, or --json: jobs from stdin have no name to make one of")
    listed = list(make_jobs(file, flags, more, box))
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
        limits = {"at_once": jobs, "retries": retries, "total_budget_usd": total_budget_usd}
        return anyio.run(_run, listed, kept, retry_failed, view, limits)


def make_jobs(file: Path, flags: Any, more: ExecuteFlags, box: Any) -> Iterator[Job]:
    """The jobs that a file asks for.

    Raises:
        ConfigError: it can not be read, or a job says what it can not; names the file and the line or the job.
    """
    folder = Path() if str(file) == "-" else file.parent
    runners: list[ContainerRunner] = []
    places: dict[str, str] = {}
    for number, (where, table) in enumerate(read_tables(file), 1):
        try:
            job = _make_job(table, where, str(number), folder, flags, more, box, runners)
            if (first := places.setdefault(job.id, where)) != where:
                raise ConfigError("id", job.id, f"an id that no other job has; {first} has this one")
        except ConfigError as error:
            raise error.with_source(where) from None
        yield job


def read_tables(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The tables in a file of jobs, each with the place that it came from.

    Raises:
        ConfigError: it can not be read, or holds something else.
    """
    try:
        data = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise unreadable("FILE", file, error) from None
    if file.suffix == ".toml":
        whole = structured(JobFile, parse_toml(data, str(file)), source=str(file))
        places = [f"{file}:{number}" for number, text in enumerate(data.splitlines(), 1) if _TOML_JOB.match(text)]
        if len(places) != len(whole.job):  # they are written otherwise, or a prompt has such a line
            places = [f"{file}, job {number}" for number in range(1, len(whole.job) + 1)]
        yield from ((place, {**whole.defaults, **table}) for place, table in zip(places, whole.job, strict=True))
        return
    for number, text in enumerate(data.splitlines(), 1):
        if not text.strip():
            continue
        try:
            table = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise ConfigError("line", NOT_SHOWN, f"a JSON object ({error})", source=f"{file}:{number}") from None
        if isinstance(table, str):
            table = {"prompt": table}
        if not isinstance(table, dict):
            raise ConfigError("line", NOT_SHOWN, "a JSON object, or a prompt as a string", source=f"{file}:{number}")
        yield f"{file}:{number}", table


def _make_job(
    table: Mapping[str, Any],
    where: str,
    number: str,
    folder: Path,
    flags: Any,
    more: ExecuteFlags,
    box: Any,
    runners: list[ContainerRunner],
) -> Job:
    for key in table:
        if key in BOX and key not in KEYS:
            raise ConfigError(key, NOT_SHOWN, f"a flag, as {flag(key)}: the box is given for all jobs")
        if key not in KEYS:
            refuse_key(key, KEYS, listed="`container-runner batch --help` tells of the others")
    job = structured(JobTable, table, strangers=True)
    if job.image is not None:
        box = attrs.evolve(box or ConfigFlags(), image=job.image)
    places = {} if job.workspace is None else {"workspace": folder / job.workspace.expanduser()}
    names = {} if job.agent is None else {"agent": job.agent}
    runner, options = prepare("…", attrs.evolve(flags, **places, **names), more, box)
    said = {name: parse(name, value, where) for name, value in table.items() if name in (*AGENT, *REQUEST)}
    said |= {name: table[name] for name in ("resume", "fork", "session_id") if name in table}
    agent = attrs.evolve(options.agent, **{name: said.pop(name) for name in AGENT if name in said})
    return Job(
        id=number if job.id is None else job.id,
        runner=_shared(runner, runners),
        options=attrs.evolve(options, agent=agent, prompt=_prompt(job, folder), **said),
        source=where,
    )


def _shared(runner: ContainerRunner, runners: list[ContainerRunner]) -> ContainerRunner:
    """The first runner with the same box, so that the engine is asked once."""

    def facts(runner: ContainerRunner) -> tuple[object, ...]:
        return runner.config, runner.state_dir, runner.records, type(runner.runtime), vars(runner.runtime)

    for known in runners:
        if facts(known) == facts(runner):
            return known
    runners.append(runner)
    return runner


def _prompt(job: JobTable, folder: Path) -> str:
    if (job.prompt_file is None) == (job.prompt is None):
        raise ConfigError("prompt", NOT_SHOWN, "either prompt or prompt_file")
    if job.prompt_file is None:
        return job.prompt or ""
    return prompt_in(folder / job.prompt_file.expanduser(), "prompt_file")


class _Json(View):
    """Each result as a line of JSON."""

    def started(self, job: Job) -> None:
        """A job has been started."""

    def said(self, job: Job, message: Message) -> None:
        """One more message of a job."""

    def ended(self, result: JobResult) -> None:
        """A job has ended."""
        sys.stdout.buffer.write(result.to_json() + b"\n")
        sys.stdout.buffer.flush()


class _Plain(_Json):
    """A line of text for each job."""

    def ended(self, result: JobResult) -> None:
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
        watch = Watch(started=view.started, said=view.said, ended=note_end, halted=halted.append)
        await run_batch(jobs, results=results, retry_failed=retry_failed, watch=watch, **limits)

    stopped = await watched(work, view, jobs[0].runner, stopping="stopping the agents")
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
        return cli_exit_code(not_run)
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
    tokens, dollars = sum(result.tokens for result in ended), sum(result.cost_usd or 0 for result in ended)
    took = [duration(seconds), *taken(tokens=tokens, cost_usd=dollars)]
    rows = [f"{'✗' if len(known) - len(failed) < len(jobs) else '✓'} {', '.join(facts)} ({', '.join(took)})"]
    rows += [f"    ✗ {clean(result.id)}: {line(result.message or '')}" for result in failed[:MOST_FAILED]]
    rows += [f"    and {len(failed) - MOST_FAILED} more"] * (len(failed) > MOST_FAILED)
    classes = {error_class(result.kind): None for result in failed if result.kind}  # in their order, each once
    rows += [f"  {known.advice}" for known in classes if issubclass(known, EngineError)]
    rows += [f"  Results: {clean(str(results.path))}"] if results is not None else []
    rows += ["  Run it again with --retry-failed to try again what failed."] if run else []
    return rows
