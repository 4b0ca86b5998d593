"""The commands. Each lives in a module of its own, which is imported when it is called."""

from __future__ import annotations

from cyclopts import App

from container_runner import __version__

app = App(
    name="container-runner",
    help="Run AI coding agents in locked-down containers, with nothing but docker or podman.",
    version=__version__,
)
app.command("container_runner.cli.run:run", help="Run an agent on a folder, and show what it does.")
app.command("container_runner.cli.argv:argv", help="Print the exact commands of a run, without running anything.")
