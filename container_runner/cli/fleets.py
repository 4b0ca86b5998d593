"""Which fleet a command line means, and what its nodes say of themselves."""

from __future__ import annotations

from container_runner.errors import ConfigError
from container_runner.fleet.job import Job
from container_runner.fleet.ray import RayFleet
from container_runner.fleet.ray_node import Report


def fleet_at(on: str) -> RayFleet:
    """The fleet that --on names: ray, or ray:HOST:PORT.

    Raises:
        ConfigError: it names none.
    """
    kind, _, address = on.partition(":")
    if kind != "ray":
        raise ConfigError("--on", on, "ray, the Ray cluster of this machine, or ray:HOST:PORT")
    return RayFleet(on if address.startswith("//") else address or "auto")


def trouble_of(answer: Report | str, job: Job) -> str | None:
    """Why a job like this one would not run on a node; None if it would."""
    if isinstance(answer, str):
        return answer
    if answer.error is not None:
        return answer.error
    if not answer.is_alike:
        return f"it has container_runner {answer.version} and Python {answer.python}, which are others than here"
    if answer.unset:
        return f"its environment lacks {', '.join(answer.unset)}: set it where `ray start` runs"
    for image in answer.lacking([job.runner.config]):
        return f"the image {image} is not there: pull it, or say --pull=missing"
    return None


def described(answer: Report | str) -> str:
    """What a node has, in a line."""
    if isinstance(answer, str):
        return answer
    images = [f"image {known[:12]}" if known else f"{name} is to be fetched" for name, known in answer.images.items()]
    versions = f"container_runner {answer.version}, Python {answer.python}"
    return ", ".join([answer.engine, *images, versions, f"{answer.cpus} processors"])
