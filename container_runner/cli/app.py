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
app.command("container_runner.cli.batch:batch", help="Run many prompts, some at a time, and keep their results.")
app.command("container_runner.cli.argv:argv", help="Print the exact commands of a run, without running anything.")
app.command("container_runner.cli.doctor:doctor", help="Check whether a run would work here, and say how to repair it.")
app.command("container_runner.cli.ps:ps", help="List the containers of your agents.")
app.command("container_runner.cli.stop:stop", help="End and remove containers at once.")
app.command("container_runner.cli.prune:prune", help="Remove the containers that nobody needs.")
app.command("container_runner.cli.shell:shell", help="Open a shell in an agent's kept container.")
app.command("container_runner.cli.completion:completion", help="Print the completion script of a shell.")
app.command("container_runner.cli.image:image", name="image", help="Build an image with an agent in it.")
app.command("container_runner.cli.config:app", name="config", help="Print the effective configuration and its sources.")
app.command("container_runner.cli.init:init", help="Write a configuration file in which every field is explained.")
