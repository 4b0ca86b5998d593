"""Where configuration comes from: an operator's file, and a workspace with one of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest

from container_runner.config.tiers import Effective, effective
from container_runner.errors import ConfigError


@attrs.frozen
class Place:
    """The operator's file and the workspace."""

    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / "config.toml"

    @property
    def workspace(self) -> Path:
        return self.folder / "project"

    @property
    def local(self) -> Path:
        return self.workspace / ".container-runner.toml"

    def ask(self, operator: str = "", local: str | None = None, **more: Any) -> Effective:
        """What it all comes to."""
        self.file.write_text(operator)
        if local is not None:
            self.local.write_text(local)
        given: dict[str, Any] = {"agent": "bot", "workspace": self.workspace, "file": self.file, "environ": {}}
        return effective(**{**given, **more})

    def refusal(self, operator: str = "", local: str | None = None, **more: Any) -> ConfigError:
        with pytest.raises(ConfigError) as caught:
            self.ask(operator, local, **more)
        return caught.value

    def attempt(self, operator: str = "", local: str | None = None) -> Effective | str | None:
        """What it all comes to, or the source of what is refused."""
        try:
            return self.ask(operator, local)
        except ConfigError as error:
            return error.source
