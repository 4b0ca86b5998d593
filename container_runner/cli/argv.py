"""`container-runner argv`: what a run would do."""

from __future__ import annotations

import sys

import orjson

from container_runner.cli.flags import ConfigFlags, RunFlags, prepare


def argv(prompt: str, *, flags: RunFlags | None = None, box: ConfigFlags | None = None) -> None:
    """Print the exact commands of a run, without running anything.

    Secrets are in none of them; they travel by name, in the environment of the engine's client.

    Parameters
    ----------
    prompt
        What to do. "-": read it from stdin.
    """
    flags = flags or RunFlags()
    runner, options = prepare(prompt, flags, box)
    plan = runner.plan(options)
    if flags.json:
        sys.stdout.buffer.write(orjson.dumps(plan.commands) + b"\n")
    else:
        print(plan.to_shell())
