"""`container-runner policy`: what a run has asked its gateway for."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import App, Parameter

from container_runner.cli import text
from container_runner.cli.containers import JsonFlag, print_json, state_folder
from container_runner.cli.logs import AgentFlags, agent_of, last, local_time, read

app = App(name="policy")


@app.command
def log(
    run: str = "",
    *,
    denied: Annotated[bool, Parameter(negative=())] = False,
    json: JsonFlag = False,
    flags: AgentFlags | None = None,
) -> None:
    """List the connections of a run with network = "gateway", in the order in which they ended.

    Args:
        run: The id of a run, of any agent, or its beginning. Default: the agent's last run.
        denied: Only those that were denied.
        json: Print a JSON list for programs instead of lines for people.
    """
    from container_runner.records.records import Records
    from container_runner.records.transcript import parse_record

    flags = flags or AgentFlags()
    records = Records(state_folder(flags.state_dir))
    record = records.find(run, flags.agent) if run else last(records, agent_of(flags))
    found: list[dict[str, Any]] = []
    lines: list[str] = []
    for line in read(records, record, follow=False):
        entry = parse_record(line)
        if entry is None or entry.source != "runner" or entry.message.to_dict().get("type") != "connection":
            continue
        told = entry.message.to_dict()
        if not denied or told.get("verdict") == "denied":
            found.append(told)
            when = "" if entry.time is None else f"{local_time(entry.time)}  "
            lines.append(f"{when}{text.line(_told(told), 300)}")
    if json:
        print_json(found)
    elif lines:
        print("\n".join(lines))
    else:
        word = "denied to" if denied else "told of"
        print(f"No connection was {word} run {record.run_id[:12]}.")


def _told(connection: dict[str, Any]) -> str:
    """A connection on one line."""
    where = connection.get("host", "")
    if port := connection.get("port"):
        where = f"{where}:{port}"
    asked = " ".join(str(word) for word in (connection.get("method"), where, connection.get("path")) if word)
    reason = f": {connection['reason']}" if connection.get("reason") else ""
    size = f" ({connection.get('sent', 0)} bytes out, {connection.get('received', 0)} in)"
    times = f" {count} times" if (count := connection.get("count", 1)) != 1 else ""
    return f"{connection.get('verdict', '?')}{times} {asked or 'what is no request'}{reason or size}"
