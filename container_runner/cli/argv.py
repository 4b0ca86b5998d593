"""`container-runner argv`: what a run would do."""

from __future__ import annotations

import shlex
from pathlib import Path

import anyio
import attrs

from container_runner.box import golden
from container_runner.cli.carrying import choose
from container_runner.cli.containers import print_json
from container_runner.cli.flags import ConfigFlags, RunFlags, prepare
from container_runner.cli.options import ExecuteFlags, read_prompt
from container_runner.runner.start import find_start


def argv(
    prompt: str | None = None,
    *,
    prompt_file: Path | None = None,
    stable: bool = False,
    pretty: bool = False,
    flags: RunFlags | None = None,
    more: ExecuteFlags | None = None,
    box: ConfigFlags | None = None,
) -> None:
    """Print the exact commands of a run, without running anything.

    Secrets are in none of them: the agent's variables travel on stdin.

    Args:
        prompt: What to do. What is piped in is added to it, or is the prompt if there is no other.
        prompt_file: A file that holds the prompt.
        stable: Put a word in the place of all that differs between runs and machines, so that the text can be kept
            and compared. Scripts of ours become their names.
        pretty: Put each flag on a line of its own.
    """
    flags = flags or RunFlags()
    runner, options = prepare(read_prompt(prompt, prompt_file), flags, more, box)
    plan = choose(runner, options, flags, box).runner.plan(options)
    if plan.carry is not None:
        plan = plan.beginning_with(anyio.run(find_start, options, plan.carry, plan.state_dir))
    if stable:  # as where no names of an image are known
        plan = attrs.evolve(plan, passwd=None, command=golden.stable_words(plan.command))
    commands = tuple(map(golden.stable, plan.commands)) if stable else plan.commands
    if flags.json:
        print_json(commands)
        return
    *first, last = (golden.pretty(command) if pretty else shlex.join(command) for command in commands)
    print(*first, plan.told_on_stdin, last, sep="\n")
