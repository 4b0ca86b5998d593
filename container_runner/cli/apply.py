"""`container-runner apply`: write the work of a run into its folder."""

from __future__ import annotations

import os
import sys
from typing import Annotated

from cyclopts import Parameter

from container_runner.cli.changes import WorkFlags, counted, finding_rows, with_changes
from container_runner.cli.containers import JsonFlag, print_json
from container_runner.config.converter import unstructured
from container_runner.errors import ConfigError
from container_runner.workspace.changes import ALL, Applied, Changes, is_included


def apply(
    run: str = "",
    *,
    include: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    json: JsonFlag = False,
    flags: WorkFlags | None = None,
) -> None:
    """Write what a run has done into its folder: all of it, or nothing.

    Args:
        run: The id of a run, or its beginning. Default: the last one on this folder.
        include: A finding that is taken as well, by its path or that of a folder; "all": all of them. Can be given
            again.
        json: Print JSON for programs instead of text for people.
    """

    async def work(found: Changes) -> Applied:
        for name in include:
            if name != ALL and not any(is_included(finding.path, [os.fsencode(name)]) for finding in found.findings):
                raise ConfigError(
                    "--include", name, "the path of a finding, or all; `container-runner changes` has them"
                )
        return await found.apply(include)

    applied = with_changes(run, flags or WorkFlags(), work)
    if json:
        print_json(unstructured(applied))
        return
    if applied.paths:
        print(f"{counted(len(applied.paths), 'file is', 'files are')} applied.")
    elif applied.left_out:
        print("Nothing is applied: the folder has the rest.")
    else:
        print("There is nothing to apply: the folder has all of it.")
    for row in finding_rows(applied.left_out):
        print(row, file=sys.stderr)
