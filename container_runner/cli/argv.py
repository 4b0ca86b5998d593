"""`container-runner argv`: what a run would do."""

from __future__ import annotations

from pathlib import Path

from container_runner.cli.containers import print_json
from container_runner.cli.flags import ConfigFlags, RunFlags, prepare
from container_runner.cli.options import ExecuteFlags, read_prompt


def argv(
    prompt: str | None = None,
    *,
    prompt_file: Path | None = None,
    flags: RunFlags | None = None,
    more: ExecuteFlags | None = None,
    box: ConfigFlags | None = None,
) -> None:
    """Print the exact commands of a run, without running anything.

    Secrets are in none of them: the agent's variables travel on stdin.

    Args:
        prompt: What to do. "-": read it from stdin.
        prompt_file: A file that holds the prompt.
    """
    flags = flags or RunFlags()
    runner, options = prepare(read_prompt(prompt, prompt_file), flags, more, box)
    plan = runner.plan(options)
    if flags.json:
        print_json(plan.commands)
    else:
        print(plan.to_shell())
