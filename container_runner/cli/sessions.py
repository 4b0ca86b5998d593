"""`container-runner sessions`: an agent's sessions, listed, shown and exported."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from container_runner.cli import text
from container_runner.cli.containers import JsonFlag, print_json, state_folder
from container_runner.cli.logs import AgentFlags, agent_of, local_time, print_table
from container_runner.errors import ConfigError
from container_runner.records import figures

if TYPE_CHECKING:
    from container_runner.records.sessions import Session, Sessions

app = App(name="sessions")


@app.command(name="list")
def list_(*, json: JsonFlag = False, flags: AgentFlags | None = None) -> None:
    """List an agent's sessions in a folder, the one used last at the end.

    Those of which no record says in which folder they were, are in the list of each. With --all it has those of all
    agents and folders.

    Args:
        json: Print a JSON list for programs instead of a table for people.
    """
    flags = flags or AgentFlags()
    sessions, agent = _sessions(flags)
    found = _by_use(sessions, agent)
    if not flags.all_agents:
        place = str(flags.workspace.expanduser().absolute())
        found = [session for session in found if place in (session.places or (place,))]
    if json:
        print_json([_facts(session) for session in found])
        return
    rows = [
        {
            "SESSION": session.id,
            "AGENT": session.agent,
            "FOLDER": text.line(", ".join(session.places), 60),
            "USED": local_time(session.used),
            "RUNS": str(len(session.runs) or ""),
            "TURNS": "" if session.turns is None else str(session.turns),
            "COST": "" if session.cost_usd is None else figures.cost(session.cost_usd),
            "PROMPT": text.line(session.title, 60),
        }
        for session in found
    ]
    print_table("sessions", rows, agent)


@app.command
def show(
    session: str = "", *, html: Path | None = None, json: JsonFlag = False, flags: AgentFlags | None = None
) -> None:
    """Show a session: what was asked, said and done, with the changes to files.

    Args:
        session: The session's id, of any agent, or its beginning. Default: the agent's last one.
        html: Write one HTML page to this file instead, which needs nothing else to be read. --html=- writes to stdout.
        json: Print JSON for programs instead of text for people.
    """
    from container_runner.cli import show as shown

    sessions, found = _find(session, flags)
    parts = sessions.parts(found)
    if html is not None:
        from container_runner.records.page import render_page

        _write(html, render_page(parts, agent=found.agent, session_id=found.id).encode("utf-8", "replace"))
    elif json:
        print_json({**_facts(found), "parts": [shown.to_dict(part) for part in parts]})
    elif sys.stdout.isatty():
        shown.print_rich(parts)
    else:
        for row in shown.plain(parts):
            print(row)


@app.command
def export(
    session: str = "",
    *,
    format: Literal["jsonl", "markdown"] = "jsonl",  # noqa: A002  the flag's name
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    json: JsonFlag = False,
    flags: AgentFlags | None = None,
) -> None:
    """Write a session's transcript, as its lines of JSON or as Markdown.

    Args:
        session: The session's id, of any agent, or its beginning. Default: the agent's last one.
        format: jsonl: the lines as they were recorded. markdown: a text to read.
        output: The file to write. Default: stdout.
        json: Print a JSON object: the session, and the file that was written, or else the text.
    """
    from container_runner.cli import show as shown

    sessions, found = _find(session, flags)
    if format == "jsonl":
        data = b"".join(line + b"\n" for line in sessions.lines(found))
    else:
        data = "\n".join(shown.markdown(sessions.parts(found))).encode("utf-8", "replace")
    to_file = output is not None and str(output) != "-"
    if to_file or not json:
        _write(output or Path("-"), data)
    if json:
        written = {"file": str(output)} if to_file else {"text": data.decode("utf-8", "replace")}
        print_json({"session_id": found.id, "agent": found.agent, "format": format, **written})


def _sessions(flags: AgentFlags | None) -> tuple[Sessions, str | None]:
    from container_runner.records.sessions import Sessions

    flags = flags or AgentFlags()
    return Sessions(state_folder(flags.state_dir)), agent_of(flags)


def _by_use(sessions: Sessions, agent: str | None) -> list[Session]:
    """An agent's sessions, or those of all, the one used last at the end."""
    names = sessions.agents() if agent is None else [agent]
    return sorted((one for name in names for one in sessions.of(name)), key=lambda one: one.used)


def _find(session: str, flags: AgentFlags | None) -> tuple[Sessions, Session]:
    """The session that is named, or the agent's last."""
    sessions, agent = _sessions(flags)
    if session:
        return sessions, sessions.find(session, None if flags is None else flags.agent)
    if found := _by_use(sessions, agent):
        return sessions, found[-1]
    allowed = "an agent that has sessions, or a folder that one works on"
    raise ConfigError("--agent", agent, f"{allowed}; `container-runner sessions list --all` has them")


def _facts(session: Session) -> dict[str, Any]:
    return {
        "session_id": session.id,
        "agent": session.agent,
        "used": session.used,
        "title": session.title,
        "turns": session.turns,
        "cost_usd": session.cost_usd,
        "can_resume": session.has_file,
        "runs": [run.summary.to_dict() for run in session.runs],
    }


def _write(path: Path, data: bytes) -> None:
    if str(path) == "-":
        sys.stdout.buffer.write(data)
        return
    try:
        path.write_bytes(data)
    except OSError as error:
        raise ConfigError("file", str(path), f"a file that can be written ({error.strerror})") from None
    print(f"Wrote {path}", file=sys.stderr)
