"""docs/reference/errors.md, from the tree of errors."""

from __future__ import annotations

from collections.abc import Iterator

from container_runner import errors
from container_runner.errors import AgentError, ContainerRunnerError, EngineError

HEAD = """
<!-- Written by `python -m scripts.reference` from container_runner/errors.py: change that. -->

# Errors and exit codes

`ContainerRunner.execute` raises `ConfigError` and `UnsupportedRuntimeError` before anything is started,
and `EngineNotFoundError` if the configuration names a program that is not there.
Everything else that fails is one last `ErrorMessage`, whose `kind` is in this table.
`container_runner.run`, `ContainerRunner.run`, `ContainerManager` and `Engine` raise the errors themselves.
`container-runner` prints the error with its next step, and exits with the code.

More exit codes: 0 is success, 2 also a command line that can not be understood, 130 and 143 an end by Ctrl-C or TERM,
141 an output that nobody reads any more.
"""


def rows(kind: type[ContainerRunnerError]) -> Iterator[str]:
    for error in kind.__subclasses__():
        yield f"| `{error.kind}` | `{error.__name__}` | {error.cli_exit_code} | {error.advice} |"
        yield from rows(error)


def page() -> str:
    everything = list(rows(ContainerRunnerError))
    engine, agent = list(rows(EngineError)), list(rows(AgentError))
    others = [row for row in everything if row not in engine and row not in agent]
    parts = [HEAD.strip()]
    for heading, table in (
        ("The request, or the state folder", others),
        ("The engine failed; the agent is not to blame", engine),
        ("The agent failed; the box worked", agent),
    ):
        parts.append(f"## {heading}")
        parts.append("\n".join(["| kind | class | exit code | next step |", "|---|---|---|---|", *table]))
    parts += ["## The tree", f"```\n{tree()}\n```"]
    return "\n\n".join(parts) + "\n"


def tree() -> str:
    """The drawing in the module's docstring."""
    lines = (errors.__doc__ or "").splitlines()
    return "\n".join(line[4:] for line in lines if line.startswith("    "))
