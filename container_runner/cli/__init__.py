"""The `container-runner` command."""

from __future__ import annotations

import os
import sys

from container_runner.errors import ContainerRunnerError


def main(words: list[str] | None = None) -> None:
    """Run the command and exit with its code: 0 for success, or the `cli_exit_code` of the error.

    Args:
        words: the command line without the program's name. None: that of this process.
    """
    words = sys.argv[1:] if words is None else words
    if words == ["--version"]:  # the one thing that scripts ask before anything else
        from container_runner import __version__

        print(__version__)
        sys.exit(0)
    from container_runner.cli.app import app

    # Scripts may say that nobody is there to answer. Nothing here ever asks.
    words = [word for number, word in enumerate(words) if word != "--no-input" or "--" in words[:number]]
    if words[:1] in (["run"], ["argv"], ["batch"]):  # the parser takes a lone dash for an option without a name
        name = "file" if words[0] == "batch" else "prompt"
        words = [f"--{name}=-" if word == "-" else word for word in words]
    try:
        result = app(words, exit_on_error=False, print_error=True, result_action="return_value")
    except ContainerRunnerError as error:
        print(f"container-runner: {error}", file=sys.stderr)
        sys.exit(error.cli_exit_code)
    except (BrokenPipeError, BaseExceptionGroup) as error:
        if isinstance(error, BaseExceptionGroup) and error.split(BrokenPipeError)[1] is not None:
            raise
        # Whoever read our output has left. Python would complain once more when it flushes at its end.
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115
        sys.exit(141)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if type(error).__module__.startswith("cyclopts"):  # it has printed what is wrong with the command line
            sys.exit(2)
        raise
    sys.exit(result or 0)
