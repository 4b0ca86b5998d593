"""docs/reference/configuration.md, from the fields of `ContainerConfig` and what its docstring says of them."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from container_runner.cli.config import as_toml, explanations
from container_runner.cli.flags import field_help
from container_runner.config.container import ContainerConfig
from container_runner.config.fields import FIELDS, defaults
from container_runner.config.servers import HostServer
from container_runner.config.values import Injection, Mount, PortBinding, Tmpfs

HEAD = """\
<!-- Written by `python -m scripts.reference` from the docstrings in container_runner: change those. -->

# Configuration

The keys of a configuration file are the arguments of `ContainerConfig`:

```toml
# file: container.toml
image = "my-agent:latest"
memory = "4g"
volumes = ["~/data:/data:ro"]
secrets = ["GITHUB_TOKEN"]
```

```python
from container_runner import ContainerConfig

ContainerConfig.load("container.toml")
ContainerConfig(image="my-agent:latest", memory="4g", secrets=["GITHUB_TOKEN"])
```

A size is "512m", "2g", "1.5g" or a number of bytes.
A time is "90s", "30m", "4h", "1d" or a number of seconds.
A key that is not on this page is refused, and so is a value that its entry does not allow.
"""

MORE = """\
## More keys of your own file

The tables of [your own file](../how-to/configuration.md) take these as well.
They are about the agent, a request, and the records of runs.
In Python they are arguments of `Agent`, `ExecuteOptions` and `RecordLimits`, and `command` makes a `CommandRuntime`.
A timeout of 0 stands for no limit.
"""


def default(field: attrs.Attribute[object]) -> str:
    """The default of *field*, as a configuration file spells it."""
    value = field.default
    match value:
        case attrs.NOTHING:
            return "required"
        case attrs.Factory():  # type: ignore[misc]  # a class, though its stub says a function
            return "`{}`"
        case None:
            return "none"
        case bool():
            return f"`{str(value).lower()}`"
        case int() if field.name == "mode":
            return f'`"{value:o}"`'
        case int() if value >= 2**30 and value % 2**30 == 0:
            return f'`"{value >> 30}g"`'
        case int() if value >= 2**20 and value % 2**20 == 0:
            return f'`"{value >> 20}m"`'
        case int() if field.name == "time_limit":
            return f'`"{value // 86_400}d"`'
        case tuple():
            return f"`[{', '.join(quoted(item) for item in value)}]`"
        case _:
            return f"`{quoted(value)}`"


def quoted(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def entries(kind: type[attrs.AttrsInstance], heading: str) -> Iterator[str]:
    docs = field_help(kind)
    for field in attrs.fields(kind):
        yield f"{heading} `{field.name}`"
        # Not field.type: once cattrs has seen the class, that is no longer what is written in the code.
        yield f"Type: `{kind.__annotations__[field.name]}`. Default: {default(field)}."
        yield docs[field.name]


def more_entries() -> Iterator[str]:
    for name in FIELDS:
        if name not in attrs.fields_dict(ContainerConfig):
            value = defaults()[name]
            yield f"### `{name}`"
            yield f"Default: {'none' if value is None else f'`{as_toml(name, value)}`'}."
            yield explanations()[name]


def page() -> str:
    parts = [HEAD.strip(), *entries(ContainerConfig, "##"), MORE.strip(), *more_entries()]
    parts += ["## Tables", "What a table in `volumes`, `ports`, `tmpfs`, `inject` or `host_mcp_servers` holds."]
    for key, kind in (
        ("volumes", Mount),
        ("ports", PortBinding),
        ("tmpfs", Tmpfs),
        ("inject", Injection),
        ("host_mcp_servers", HostServer),
    ):
        parts += [f"### An item of `{key}`: `{kind.__name__}`", f"As a string: {kind.FORMS}."]
        parts += entries(kind, "####")
    return "\n\n".join(parts) + "\n"
