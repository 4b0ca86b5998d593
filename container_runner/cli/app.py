"""The commands. Each lives in a module of its own, which is imported when it is called."""

from __future__ import annotations

import difflib
import functools
import os
import re
from typing import TYPE_CHECKING, Any

from cyclopts import (
    App,
    CycloptsError,
    MissingArgumentError,
    Parameter,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)

from container_runner import __version__
from container_runner.config.keys import ELSEWHERE, near

if TYPE_CHECKING:  # slow to import, and only a help is shown with it
    from cyclopts.help import DefaultFormatter, HelpPanel
    from rich.console import Console, ConsoleOptions


def _worth_showing(default: Any) -> str | None:
    """A default as the help shows it: what is off or empty goes without saying."""
    return str(default) if default or (isinstance(default, int | float) and default is not False) else None


USUAL = {
    "--agent", "--command", "--continue", "--image", "--jobs", "--json", "--live", "--memory", "--model", "--network",
    "--prompt", "--resume", "--results", "--secret", "--timeout", "--volume", "--workspace",
}  # fmt: skip
"""The flags of the commands with many that most people need."""


class _Help:
    """Shows of commands with many flags those that most people need, unless all are asked for."""

    shows_all = False

    @functools.cached_property
    def _usual(self) -> DefaultFormatter:
        from cyclopts.help import DefaultFormatter

        return DefaultFormatter()

    def render_usage(self, console: Console, options: ConsoleOptions, usage: object) -> None:
        """Show the usage line."""
        self._usual.render_usage(console, options, usage)

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        """Show one group of flags, or of commands."""
        entries = panel.entries
        if not _Help.shows_all and str(panel.title) in ("Agent", "Run", "Box"):
            panel.entries = [entry for entry in entries if USUAL & {*entry.positive_names}]
            left = len(entries) - len(panel.entries)
            panel.description = f"{left} more flags are shown by --help-all."
        self._usual(console, options, panel)


def show_all() -> None:
    """Let the help show every flag."""
    _Help.shows_all = True


COMMANDS = {
    "run:run": "Run an agent on a folder, and show what it does.\n\n"
    "At a terminal there is a live view; into a pipe go plain lines. At the end it says on stderr how it went, which "
    "files have changed, and the command that goes on with the session.\n\n"
    "Ctrl-C stops the agent and removes its container; a second one does not wait for that.",
    "chat:chat": "Talk with an agent, turn by turn: each line of stdin is a prompt.\n\n"
    "Ctrl-C interrupts a turn, a second one ends the session; Ctrl-D ends it too.",
    "attach:attach": "Use an agent on its own screen, in a box.\n\n"
    "It has what a run gives it: the box, its key, its sessions, and the folder. What you type is the agent's to read, "
    "Ctrl-C too. When you leave it, its container goes, or is kept with --no-ephemeral.",
    "batch:app": "Run many prompts, some at a time, and keep their results.\n\n"
    "FILE has a JSON object a line, or is TOML with a [[job]] for each. A job has a prompt, and may have an id and "
    "what else a run takes: workspace, agent, model, resume, timeout ...; the flags hold for the jobs that do not say "
    "otherwise.\n\n"
    "Results are added to a file as the jobs end, and a job that has a result there is not run again. The exit code is "
    "1 if any job has failed, now or before.",
    "changes:changes": "Show what a run has done to a carried workspace: files, commits, and what to look at first.\n\n"
    "The folder has nothing of it until `apply`.",
    "apply:apply": "Write what a run has done into its folder: all of it, or nothing.\n\n"
    "What you have changed meanwhile stays and is merged, and your index is not touched. Where you and the agent have "
    "changed the same, nothing is written and the exit code is 3. What programs of yours would obey by themselves, "
    "such as hooks, is left out until you name it.",
    "branch:branch": "Make a branch of what a run has done: container-runner branch [RUN] NAME\n\n"
    "It has the commits that were made in the box, and one of what was not committed. Nothing else of the repository "
    "changes, and none of its hooks run. A branch that is there is moved forward, or not at all.",
    "discard:discard": "Forget what a run has done. What was applied, or is in a branch, stays.",
    "demo:demo": "Show a run on this machine: neither an account nor a registry is needed.\n\n"
    "It makes the image container-runner/demo of files of this machine, and lets the scripted agent in it edit a file "
    "in a new folder. At the end it says what to type next.",
    "argv:argv": "Print the exact commands of a run, without running anything.",
    "doctor:doctor": "Check whether a run would work here, and say what to type if it would not.\n\n"
    "Give it the flags of the run in question. The exit code is 0 if that run would work, and 1 if not.",
    "ps:ps": "List the containers of your agents, oldest first.",
    "stop:stop": "End and remove containers at once, whatever runs in them.\n\n"
    "The agents' folders and sessions stay. To end a run more gently, press Ctrl-C where it runs.",
    "prune:prune": "Remove the containers that nobody needs, of all state folders.\n\n"
    "Those are the ones whose owner was killed before it could remove them, and kept ones that have ended. "
    "A kept one that runs stays, and so does whatever a living process uses.",
    "shell:shell": "Open a shell in an agent's kept container, as the agent's user and with its environment.\n\n"
    "Only an agent that runs with --no-ephemeral has one. Clean-up leaves it alone while you are in it. "
    "Piped input works too: echo ls | container-runner shell my-agent",
    "completion:completion": "Print the completion script of a shell.\n\n"
    "bash: container-runner completion bash > ~/.local/share/bash-completion/completions/container-runner\n\n"
    "zsh: container-runner completion zsh > _container-runner, in a folder of $fpath\n\n"
    "fish: container-runner completion fish > ~/.config/fish/completions/container-runner.fish",
    "image:image": "Build an image with an agent in it.",
    "shim:shim": "Write an executable that stands for claude's: container-runner shim claude --install DIR\n\n"
    "A program that starts claude, such as an SDK or an editor, is given its path, and gets a claude in a box: with "
    "the same streams, arguments, signals and exit code. Paths in the arguments become the box's, or are refused.",
    "acp:acp": "Be an agent for an editor, which speaks ACP by stdin and stdout: container-runner acp --agent-kind "
    "gemini\n\n"
    "The agent works in a box, on the folder in which the editor starts this command. What the editor would do for it "
    "outside of the box, reading files and running commands, is not offered.",
    "logs:logs": "Show what was said in an agent's runs.",
    "policy:app": "Show what the agents have asked their gateway for.",
    "sessions:app": "List, show and export the sessions of agents.",
    "config:app": "Print the effective configuration, with the source of each value."
    "\n\nIt takes the flags of run, so that you see what a run with them would get. Nothing is started.",
    "init:init": "Write a configuration file in which every field is explained.",
}
"""What each is for, by its module and its name there."""

app = App(
    name="container-runner",
    help="Run AI coding agents in locked-down containers, with nothing but docker or podman.\n\n"
    "First steps:\n\n"
    "- container-runner demo\n"
    "- container-runner image build\n"
    "- container-runner doctor --image=container-runner/claude\n"
    "- container-runner run 'Fix the failing test' --image=container-runner/claude",
    help_epilogue="Exit codes: 0 success, 1 the agent failed, 2 the command line or the configuration, "
    "3 no engine, or a conflict, 4 no image, 5 the engine failed, 6 a container was lost, 124 too slow, 130 Ctrl-C.",
    version=__version__,
    help_formatter=_Help(),
    default_parameter=Parameter(show_default=_worth_showing),
)
for _place, _help in COMMANDS.items():
    app.command(f"container_runner.cli.{_place}", name=_place.partition(":")[0], help=_help)


COMMANDS_ELSEWHERE = {
    "continue": "container-runner run --continue PROMPT",
    "exec": "container-runner shell AGENT -- COMMAND",
    "inspect": "container-runner ps --json",
    "kill": "container-runner stop NAME",
    "list": "container-runner ps",
    "ls": "container-runner ps",
    "pull": "container-runner image pull NAME",
    "resume": "container-runner run --resume=ID PROMPT",
    "rm": "container-runner stop NAME",
    "start": "container-runner run PROMPT",
    "version": "container-runner --version",
    "-V": "container-runner --version",
    "-v": "container-runner --version",
}
"""What other tools' commands are called here; `build` and the like are near enough to be found by their spelling."""


def refusal(error: CycloptsError) -> str:
    """What is wrong with a command line, and where to read on."""
    chain = error.command_chain or ()
    told = str(error)
    if isinstance(error, UnusedCliTokensError):
        # Words that nobody takes are shown without what may be a value.
        word = (error.unused_tokens or [""])[0].partition("=")[0]
        commands = [name for name in functools.reduce(App.__getitem__, chain, app) if not name.startswith("-")]
        told = f'Nothing takes the word "{word}".'
        if near := difflib.get_close_matches(word, commands, n=1):
            told += f' Did you mean "{near[0]}"?'
        elif chain[:1] in (("run",), ("chat",), ("argv",)):
            if os.path.isdir(word):  # noqa: PTH112  it may be any text
                told += f" A folder is given as --workspace={word}"
            else:
                told += " A prompt of several words stands in quotes."
        elif chain == ("config",):
            told += " To change a value, change the file that `container-runner init` writes."
    elif isinstance(error, MissingArgumentError) and error.argument is not None and error.keyword is None:
        if error.argument.field_info.is_positional and not error.argument.tokens:
            told = f"{error.argument.name.removeprefix('--').upper()} is missing."
    elif isinstance(error, UnknownCommandError):
        word = (error.unused_tokens or [""])[0]
        if not chain and (meant := COMMANDS_ELSEWHERE.get(word)):
            told = f'Unknown command "{word}". Here: {meant}.'
        elif " " in word:  # a prompt, which may hold anything
            told = "A command comes first, as in: container-runner run 'Fix the failing test'"
    elif isinstance(error, UnknownOptionError):
        told = _unknown(error)
        if chain in (("run",), ("chat",), ("argv",)) and " " in (error.token.keyword or error.token.value or ""):
            told += " A prompt that begins with a dash stands at the end, behind --"
        if chain == ("shell",):
            told += " Before a command that has flags stands --, as in: container-runner shell AGENT -- sh -c 'ls -l'"
    return f"{told}\nSee: {' '.join(('container-runner', *chain))} --help"


def _unknown(error: UnknownOptionError) -> str:
    """What is said to a flag that a command does not have: what it is called here, or which was meant."""
    word = (error.token.keyword or error.token.value or "").partition("=")[0]
    flags = {name for argument in error.argument_collection for name in argument.names}
    told = f"Unknown option: {word}."
    if meant := ELSEWHERE.get(word.lstrip("-").replace("-", "_")):
        name, sign, rest = re.split(r"(\W|$)", meant.removeprefix("--").replace(" on the command line", ""), maxsplit=1)
        spelled = {f"--{name.replace('_', '-')}", f"--{name.replace('_', '-').removesuffix('s')}"} & flags
        return f"{told} Here: {min(spelled, key=len) if spelled else name}{sign}{rest}."
    if word in flags:
        return f"Behind -- there is the prompt alone, in quotes if it has several words; {word} stands before it."
    if guess := near(word, sorted(flags)):
        told += f" Did you mean {guess}?"
    return told
