"""The branches that the jobs of a batch end in: one a job, checked before the first is started."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from container_runner.errors import ConfigError
from container_runner.fleet.job import Job
from container_runner.workspace.branch import check_name
from container_runner.workspace.changes import Changes
from container_runner.workspace.shadow import Shadow


async def check_branches(jobs: Iterable[Job]) -> None:
    """Make sure that each job that is to end in a branch can.

    Raises:
        ConfigError: a name is none, is there already, or is that of two jobs; or a workspace is not carried, or no
            repository.
    """
    shadows: dict[str, Shadow] = {}
    taken: dict[str, dict[str, str]] = {}
    for job in jobs:
        if job.branch is None:
            continue
        carry = job.runner.plan(job.options).carry
        if carry is None:
            raise _refused(job, 'one for a job whose workspace is carried: --carried, or workspace_mode="carried"')
        shadow = shadows.get(carry.workspace)
        if shadow is None:
            shadow = shadows[carry.workspace] = await Shadow.open(Path(carry.workspace), job.runner.state_dir)
            taken[carry.workspace] = dict.fromkeys(await _branches(shadow), "there already")
        if not shadow.is_repository:
            raise _refused(job, f"one for a job in a repository, which {carry.workspace} is not")
        try:
            await check_name(shadow, job.branch)
        except ConfigError as error:
            raise _refused(job, error.allowed) from None
        names = taken[carry.workspace]
        for name, whose in names.items():
            if name == job.branch or name.startswith(f"{job.branch}/") or job.branch.startswith(f"{name}/"):
                raise _refused(job, f"another name: {name} is {whose}")
        names[job.branch] = f"the branch of job {job.id}"


async def make_branch(job: Job, changes: Changes | None) -> str | None:
    """The branch of a job that has ended, which this makes; None if it is to have none, or did nothing.

    Raises:
        ConflictError: somebody else made it meanwhile.
        WorkspaceError: git failed.
    """
    if job.branch is None or changes is None or not (changes.files or changes.commits):
        return None
    return (await changes.branch(job.branch)).name


async def _branches(shadow: Shadow) -> list[str]:
    said = await shadow.user_git("for-each-ref", "--format=%(refname:lstrip=2)", "refs/heads")
    return said.decode("utf-8", "surrogateescape").splitlines()


def _refused(job: Job, allowed: str) -> ConfigError:
    return ConfigError("branch", job.branch, allowed, source=job.source or f"job {job.id}")
