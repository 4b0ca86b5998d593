"""Tests of code that uses this package, without docker or podman.

For pytest it is a plugin with the fixture `fake_engine`; install what that needs with
`pip install 'agent-container-runner[testing]'`. For anything else, `container-runner-fake-docker` is a program that
takes the place of docker.

pytest imports this module wherever the package is installed, so the rest of it waits until it is used.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from container_runner.box.golden import pretty as pretty
    from container_runner.box.golden import stable as stable
    from container_runner.testing.engine import FakeEngine as FakeEngine
    from container_runner.testing.plugin import fake_engine as fake_engine
    from container_runner.testing.process import Call as Call

pytest_plugins = ["container_runner.testing.plugin"]

_MODULES = {
    "Call": "testing.process",
    "FakeEngine": "testing.engine",
    "fake_engine": "testing.plugin",
    "pretty": "box.golden",
    "stable": "box.golden",
}

__all__ = ["Call", "FakeEngine", "fake_engine", "pretty", "stable"]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"container_runner.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
