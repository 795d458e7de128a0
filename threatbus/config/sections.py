"""The plugins' sections: which there are, and what each plugin says may stand in its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from threatbus.config.check import Checker
from threatbus.config.values import as_mapping, match, same_key, variables_of
from threatbus.config.wording import nearest
from threatbus.errors import ConfigError, PluginError


class PluginInfo(Protocol):
    """What `read` needs to know of an installed plugin; `PluginError` where it cannot be used."""

    @property
    def name(self) -> str:
        """The name of its entry point, which is that of its section."""

    @property
    def schema(self) -> type[msgspec.Struct] | None:
        """What may stand in its section; None: an old plugin, which has validators at most."""

    @property
    def validators(self) -> Sequence[Any]:
        """Dynaconf validators of the plugin, with full names (``plugins.apps.zeek.port``)."""


class Configured(NamedTuple):
    """A plugin that has a section: what stands there, and what the plugin says may stand there."""

    section: object
    schema: type[msgspec.Struct] | None
    validators: Sequence[Any]


Installed = Mapping[str, Mapping[str, PluginInfo]]
"""The installed plugins by the group in which their sections stand, and by name."""


def group_in(tree: Mapping[str, object], group: str) -> dict[str, object] | None:
    """The sections of a group; None if what stands there is no mapping."""
    plugins = as_mapping(tree.get(same_key(tree, "plugins")))
    return None if plugins is None else as_mapping(plugins.get(same_key(plugins, group)))


def configured(
    tree: Mapping[str, object], group: str, installed: Installed, checker: Checker
) -> dict[str, Configured]:
    """The configured plugins of a group under their proper names; notes those that are not
    installed or broken.
    """
    found: dict[str, Configured] = {}
    for key, value in (group_in(tree, group) or {}).items():
        name = match(installed[group], key)
        where = f"plugins.{group}.{key}"
        if name is None:
            checker.errors.append(_not_installed(str(key), group, installed, value))
        elif name in found:
            checker.errors.append(ConfigError(where, f"there twice, also as {name}", "there once"))
        elif as_mapping(value) is None:
            checker.wrong(value, "a section of settings, or empty for the defaults", where)
        else:
            try:
                plugin = installed[group][name]
                found[name] = Configured(value, plugin.schema, plugin.validators)
            except PluginError as error:
                broken = f"a broken plugin{_origin(value)} ({' '.join(str(error).split())})"
                checker.errors.append(ConfigError(where, broken, "one that can be loaded"))
    return found


def _origin(section: object) -> str:
    variables = variables_of(section)
    return f" (set by {', '.join(variables)})" if variables else ""


def _not_installed(name: str, group: str, installed: Installed, value: object) -> ConfigError:
    where = f"plugins.{group}.{name}"
    origin = _origin(value)
    for other in installed:
        if other != group and match(installed[other], name):
            found, place = f"none of the {group}{origin}", f"plugins.{other}.{name}"
            return ConfigError(where, found, "in its own place", place)
    known = sorted(installed[group])
    allowed = f"one of the installed ones ({', '.join(known)})" if known else "installed"
    close = nearest(name, known)
    if close is None:
        # No typo, so a plugin that is yet to be installed.
        allowed += f"; try `pip install threatbus-{name}`"
    hint = f"plugins.{group}.{close}" if close else None
    return ConfigError(where, f"a plugin that is not installed{origin}", allowed, hint)
