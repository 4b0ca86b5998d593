"""One run, from its start to its end."""

from container_runner.runner.result import RunResult as RunResult
from container_runner.runner.runner import ContainerRunner as ContainerRunner
