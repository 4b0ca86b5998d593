"""`container-runner logs`: what was said in an agent's runs, while they go on and afterwards."""

from __future__ import annotations

import datetime as dt
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import attrs
from cyclopts import Parameter

from container_runner.cli import text
from container_runner.cli.containers import JsonFlag, print_json, state_folder
from container_runner.errors import ConfigError
from container_runner.records import figures

if TYPE_CHECKING:
    from container_runner.records.records import Records, RunRecord
    from container_runner.records.summary import RunSummary

POLL: Final = 0.1
"""Seconds between two looks at a transcript that is followed."""


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class AgentFlags:
    """Whose records are meant.

    Attributes:
        agent: The agent's name. Default: the one that `run` would give the folder.
        workspace: The folder that the agent works on.
        all_agents: Those of all agents of the state folder.
        state_dir: Where sessions and records are kept. Default: the folder for such things in your home.
    """

    agent: str | None = None
    workspace: Annotated[Path, Parameter(alias="-w")] = Path()
    all_agents: Annotated[bool, Parameter(name=["--all", "-a"], negative=())] = False
    state_dir: Path | None = None


def agent_of(flags: AgentFlags) -> str | None:
    """The name of the agent that is meant; None for all."""
    from container_runner.cli.flags import _agent_name
    from container_runner.records.sessions import AGENT_NAME

    if flags.agent is not None and not AGENT_NAME.fullmatch(flags.agent):
        raise ConfigError("--agent", flags.agent, "the name of an agent; `container-runner logs --list --all` has them")
    if flags.all_agents:
        return None
    return flags.agent or _agent_name(flags.workspace)


def logs(
    run: str = "",
    *,
    follow: Annotated[bool, Parameter(alias="-f", negative=())] = False,
    list_: Annotated[bool, Parameter(name=["--list", "-l"], negative=())] = False,
    json: JsonFlag = False,
    flags: AgentFlags | None = None,
) -> None:
    """Show what was said in an agent's last run, or in the run that is named.

    Args:
        run: The id of a run, of any agent, or its beginning. Default: the agent's last run.
        follow: Go on until the run ends.
        list_: List the runs instead, oldest first.
        json: Print the transcript as it is, a line of JSON a message; with --list, a JSON list of summaries.
    """
    from container_runner.records.records import Records

    flags = flags or AgentFlags()
    agent = agent_of(flags)
    records = Records(state_folder(flags.state_dir))
    if list_:
        _list([found.summary for found in records.runs(agent)], agent, json)
        return
    record = records.find(run, flags.agent) if run else last(records, agent)
    lines = read(records, record, follow=follow)
    if json:
        for line in lines:
            sys.stdout.buffer.write(line + b"\n")
            if follow:
                sys.stdout.buffer.flush()
        return
    shown_end = False
    print(f"· run {record.run_id[:12]} of {record.summary.agent}, {local_time(record.summary.started)}")
    for line in lines:
        if shown := _entry(line, record.summary.workspace):
            print(shown, flush=follow)
            shown_end = shown.startswith("✗")
    for summary in (found.summary for found in records.runs(record.agent) if found.run_id == record.run_id):
        if not (shown_end and summary.kind):
            print(_tail(summary))


def print_table(what: str, rows: Sequence[Mapping[str, str]], agent: str | None) -> None:
    """Print rows under a head, or that there are none of *what*. Those of one agent do without its name."""
    if rows:
        heads = [head for head in rows[0] if agent is None or head not in ("AGENT", "FOLDER")]
        print(columns([heads, *([row[head] for head in heads] for row in rows)]))
    else:
        others = f" of {agent}; --all lists the others." if agent else "."
        print(f"There are no {what}{others}", file=sys.stderr)


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows with their cells aligned, by the width that a terminal gives them."""
    from rich.cells import cell_len

    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def local_time(moment: dt.datetime) -> str:
    """A moment in the time zone of this machine, to the second."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"


def read(records: Records, record: RunRecord, *, follow: bool) -> Iterator[bytes]:
    """The lines of a transcript; *follow*: and those that are written while we read, until its run has ended."""
    from container_runner.records.transcript import CHUNK, read_lines

    rest = b""
    with records.open(record) as fd:
        if not follow:
            yield from read_lines(fd)
            return
        while True:
            running = records.is_running(record)  # asked before the read: what is written before the end is read
            while chunk := os.read(fd, CHUNK):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from lines
            if not running:
                return
            time.sleep(POLL)


def _list(summaries: Sequence[RunSummary], agent: str | None, json: bool) -> None:
    if json:
        print_json([summary.to_dict() for summary in summaries])
        return
    rows = [
        {
            "RUN": summary.run_id[:12],
            "AGENT": summary.agent,
            "STARTED": local_time(summary.started),
            "OUTCOME": text.clean(summary.kind or summary.outcome),
            "DURATION": "" if summary.duration is None else figures.duration(summary.duration),
            "TURNS": "" if summary.turns is None else str(summary.turns),
            "COST": "" if summary.cost_usd is None else figures.cost(summary.cost_usd),
            "PROMPT": text.line(summary.prompt or "", 60),
        }
        for summary in summaries
    ]
    print_table("runs", rows, agent)


def last(records: Records, agent: str | None) -> RunRecord:
    """The last run of an agent, or of all.

    Raises:
        ConfigError: there is none.
    """
    if runs := records.runs(agent):
        return runs[-1]
    allowed = "an agent that has run here, or a folder that one works on"
    raise ConfigError("--agent", agent, f"{allowed}; `container-runner logs --list --all` has them")


def _entry(line: bytes, workspace: str | None) -> str | None:
    """A line of a transcript for people, with paths in the *workspace* as they are here."""
    from container_runner.box.translator import Place, Translator
    from container_runner.config import paths
    from container_runner.records.transcript import parse_record
    from container_runner.stream.messages import AgentMessage

    entry = parse_record(line)
    if entry is None:
        return None
    if entry.source == "agent":
        return text.render(Translator((Place(workspace, paths.WORKSPACE),)).shown(entry.message))
    raw = entry.message.raw if isinstance(entry.message, AgentMessage) else {}
    match raw.get("type"):
        case "start":
            return "\n".join(f"> {line}" for line in text.clean(str(raw.get("prompt", ""))).splitlines())
        case "restart":
            return f"· the start was tried again: {text.clean(str(raw.get('message', '')))}"
        case "error":
            said = [f"✗ {raw.get('message', '')}", str(raw.get("stderr", "")).rstrip(), f"  {raw.get('next_step', '')}"]
            return text.clean("\n".join(filter(None, said)))
        case _:
            return None


def _tail(summary: RunSummary) -> str:
    """How the run ended, or that it has not."""
    from container_runner.records.sessions import SESSION_ID

    if summary.outcome == "running":
        return "· it still runs; --follow waits for more"
    if summary.outcome == "interrupted":
        return "✗ interrupted: the process that ran it was killed, or could not write how it ended"
    facts = [summary.kind or summary.outcome]
    facts += [figures.duration(summary.duration)] if summary.duration is not None else []
    tokens = None if summary.tokens is None else summary.tokens.total
    facts += figures.taken(summary.turns, tokens, summary.cost_usd)
    facts += [f"resume with --resume={summary.session_id}"] if SESSION_ID.fullmatch(summary.session_id or "") else []
    facts += [] if summary.complete else ["the transcript is incomplete"]
    return f"{'✓' if summary.outcome == 'succeeded' else '✗'} {text.clean(', '.join(facts))}"
