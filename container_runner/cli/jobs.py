"""A file of jobs, and the jobs that it asks for."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import orjson

from container_runner.cli.flags import ConfigFlags, prepare
from container_runner.cli.options import ExecuteFlags, prompt_in, unreadable
from container_runner.config.converter import parse_toml, structured
from container_runner.config.fields import AGENT, BOX, REQUEST, flag, parse
from container_runner.config.keys import refuse_key
from container_runner.config.laws import NOT_SHOWN, law, optional
from container_runner.errors import ConfigError
from container_runner.fleet.job import Job
from container_runner.fleet.shard import Shard
from container_runner.runner import ContainerRunner


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
    agent_kind: str | None = None
    resume: str | None = None
    fork: bool | None = None
    from_run: str | None = None
    session_id: str | None = None


@attrs.frozen
class JobFile:
    """What stands at the top of a TOML file of jobs."""

    defaults: Mapping[str, Any] = attrs.field(factory=dict)
    job: tuple[Mapping[str, Any], ...] = ()


KEYS = (*attrs.fields_dict(JobTable), *AGENT, *(name for name in REQUEST if name != "include_partial_messages"))
"""What a job may say."""

_TOML_JOB = re.compile(rb"[ \t]*\[\[[ \t]*job[ \t]*\]\]")


def branch_of(job: Job, pattern: str, *, several: bool) -> str:
    """The branch of a job, of which there are *several*.

    Raises:
        ConfigError: the pattern is none.
    """
    if re.search(r"\{(?!name\})|(?<!\{name)\}", pattern) or (several and "{name}" not in pattern):
        raise ConfigError("--branch", pattern, "a name with {name} in it, which is each job's id, as agent/{name}")
    return pattern.replace("{name}", re.sub(r"[^A-Za-z0-9._-]+", "-", job.id).strip("-."))


def make_jobs(file: Path, flags: Any, more: ExecuteFlags, box: Any, shard: Shard | None = None) -> Iterator[Job]:
    """The jobs that a file asks for, or those of them that are in the shard.

    Raises:
        ConfigError: it can not be read, or a job says what it can not; names the file and the line or the job.
    """
    folder = Path() if str(file) == "-" else file.parent
    runners: list[ContainerRunner] = []
    places: dict[str, str] = {}
    for number, (where, table) in enumerate(read_tables(file), 1):
        try:
            name = table.get("id") or str(number)
            if isinstance(name, str) and (first := places.setdefault(name, where)) != where:
                raise ConfigError("id", name, f"an id that no other job has; {first} has this one")
            if shard is not None and not shard.has(number):
                continue
            job = _make_job(table, where, str(number), folder, flags, more, box, runners)
        except ConfigError as error:
            # A flag or a file that holds for every job is called by its own name.
            is_own = error.source is None and not error.field.startswith("--")
            raise (error.called(error.field, source=where) if is_own else error) from None
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
        if isinstance(table, list):
            allowed = "one job a line, and no list of them; `jq -c '.[]' FILE` makes lines of its items"
            raise ConfigError("line", NOT_SHOWN, allowed, source=f"{file}:{number}")
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
        box = attrs.evolve(box or ConfigFlags(), image=parse("image", job.image, where))
    places = {} if job.workspace is None else {"workspace": folder / job.workspace.expanduser()}
    named = {"agent": job.agent, "agent_kind": job.agent_kind}
    names = {name: value for name, value in named.items() if value is not None}
    runner, options = prepare("…", attrs.evolve(flags, **places, **names), more, box)
    said = {name: parse(name, value, where) for name, value in table.items() if name in (*AGENT, *REQUEST)}
    said |= {name: table[name] for name in ("resume", "fork", "from_run", "session_id") if name in table}
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
