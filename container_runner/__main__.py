"""`python -m container_runner` is `container-runner`."""

from container_runner.cli import main

main()
