"""What an ACP agent lets its client choose: the mode, the model, its own options, and the answers to what it asks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import attrs

from container_runner.session.asks import Allow, Decision
from container_runner.stream.blocks import as_text
from container_runner.stream.reader import part

Value: TypeAlias = str | bool


class NotOfferedError(Exception):
    """The agent has no such setting, or no such value of it; the text says what it has."""


@attrs.define(eq=False)
class Setting:
    """One thing that can be chosen."""

    method: str
    """The request that sets it."""

    params: dict[str, Value]
    """What says there which setting it is."""

    key: str
    """Where the value goes there."""

    names: Mapping[Value, str]
    """The values there are, and what each is called."""

    value: Value | None
    """The one that holds, as far as the agent has said; None while it has not."""

    def find(self, wanted: str) -> Value:
        """The value of that id or name.

        Raises:
            NotOfferedError: there is none.
        """
        for value, name in self.names.items():
            if wanted in (value, name) or (isinstance(value, bool) and wanted == str(value).lower()):
                return value
        if wanted == self.value:  # gemini does not list the one that it was told on its command line
            return wanted
        raise NotOfferedError(f"there is no {wanted!r} among {_listed(map(str, self.names))}")


class Settings:
    """All that can be chosen, by name: "mode" and "model", however the agent offers them, and else its option's id."""

    def __init__(self) -> None:
        self._found: dict[str, Setting] = {}
        self.first_model: str | None = None
        """The model that the session began with."""

    def take(self, said: Mapping[str, Any]) -> None:
        """Read what an answer, or an update, says of them."""
        for name, of, key in (("mode", "modes", "modeId"), ("model", "models", "modelId")):
            if (offer := part(said, of)) and not (name in self._found and "configId" in self._found[name].params):
                current = as_text(offer.get(f"current{key[0].upper()}{key[1:]}")) or None
                listed = _objects(offer.get(f"available{of.capitalize()}"))
                ids = ((as_text(one.get("id")) or as_text(one.get(key)), as_text(one.get("name"))) for one in listed)
                self._found[name] = Setting(f"session/set_{name}", {}, key, dict(ids), current)
        for option in _objects(said.get("configOptions")):
            if name := as_text(option.get("id")):
                setting = _of_option(name, option)
                self._found[name] = setting
                if (category := option.get("category")) in ("mode", "model"):
                    self._found[category] = setting
        if mode := as_text(said.get("currentModeId")):
            self._hold("mode", mode)
        if self.first_model is None:
            self.first_model = self.value("model")

    def value(self, name: str) -> str | None:
        """What holds; None if there is no such setting, or the agent has not said."""
        setting = self._found.get(name)
        return None if setting is None or setting.value is None else str(setting.value)

    def request(self, name: str, wanted: str) -> tuple[str, dict[str, Value]]:
        """The method and the parameters, without the session's id, that set it.

        Raises:
            NotOfferedError: there is no such setting, or no such value of it.
        """
        setting = self._found.get(name)
        if setting is None:
            raise NotOfferedError(f"there is no setting {name!r}")
        value = setting.find(wanted)
        kind = {"type": "boolean"} if isinstance(value, bool) else {}
        setting.value = None
        return setting.method, {**setting.params, **kind, setting.key: value}

    def confirm(self, name: str, wanted: str, answer: Mapping[str, Any]) -> bool:
        """Whether it is what it was set to, once the agent has answered.

        An answer that says nothing of it is a yes, unless an update has said otherwise meanwhile.
        """
        self.take(answer)
        setting = self._found[name]
        value = setting.find(wanted)
        if setting.value is None:
            setting.value = value
        return setting.value == value

    def _hold(self, name: str, value: str) -> None:
        if name in self._found:
            self._found[name].value = value


def option_of(raw: Mapping[str, Any], decision: Decision) -> str | None:
    """The option that a decision is; None if there is none, which cancels the request.

    Agents offer several of a kind; the first is taken. A yes for once is never made one for ever.
    """
    if isinstance(decision, Allow):
        kinds = ("allow_always", "allow_once") if decision.always else ("allow_once",)
    else:
        kinds = ("reject_once", "reject_always")
    listed = part(raw, "params").get("options")
    options = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    found = (as_text(one.get("optionId")) for kind in kinds for one in options if one.get("kind") == kind)
    return next((name for name in found if name), None)


def _of_option(name: str, option: Mapping[str, Any]) -> Setting:
    value = option.get("currentValue")
    names: dict[Value, str] = {
        each: as_text(one.get("name")) for one in _flat(option.get("options")) if (each := as_text(one.get("value")))
    }
    return Setting(
        "session/set_config_option",
        {"configId": name},
        "value",
        {True: "on", False: "off"} if option.get("type") == "boolean" else names,
        value if isinstance(value, str | bool) else None,
    )


def _flat(listed: object) -> Iterator[dict[str, Any]]:
    """Values, which may stand in groups."""
    for one in _objects(listed):
        if "options" in one:
            yield from _objects(one["options"])
        else:
            yield one


def _objects(listed: object) -> list[dict[str, Any]]:
    return [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []


def _listed(names: Iterator[str]) -> str:
    told = [name[:60] for name in names]
    return ", ".join(told[:12]) + (f" and {len(told) - 12} more" if len(told) > 12 else "") if told else "none"
