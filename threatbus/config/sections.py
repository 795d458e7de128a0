"""The plugins' sections: which there are, and what is wrong with one that nothing installed has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

from threatbus.config.check import Checker
from threatbus.config.values import as_mapping, match, same_key, variables_of
from threatbus.config.wording import nearest
from threatbus.errors import ConfigError


class PluginInfo(Protocol):
    """What `read` needs to know of an installed plugin."""

    @property
    def name(self) -> str:
        """The name of its entry point, which is that of its section."""

    @property
    def schema(self) -> type[msgspec.Struct] | None:
        """What may stand in its section; None: an old plugin, which has validators at most."""

    @property
    def validators(self) -> Sequence[Any]:
        """Dynaconf validators of the plugin, with full names (``plugins.apps.zeek.port``)."""


Installed = Mapping[str, Mapping[str, PluginInfo]]
"""The installed plugins by the group in which their sections stand, and by name."""


def group_in(tree: Mapping[str, object], group: str) -> dict[str, object] | None:
    """The sections of a group; None if what stands there is no mapping."""
    plugins = as_mapping(tree.get(same_key(tree, "plugins")))
    return None if plugins is None else as_mapping(plugins.get(same_key(plugins, group)))


def configured(
    tree: Mapping[str, object], group: str, installed: Installed, checker: Checker
) -> dict[str, object]:
    """The configured plugins of a group under their proper names; notes those not installed."""
    found: dict[str, object] = {}
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
            found[name] = value
    return found


def _not_installed(name: str, group: str, installed: Installed, value: object) -> ConfigError:
    where = f"plugins.{group}.{name}"
    variables = variables_of(value)
    origin = f" (set by {', '.join(variables)})" if variables else ""
    for other in installed:
        if other != group and match(installed[other], name):
            found, place = f"none of the {group}{origin}", f"plugins.{other}.{name}"
            return ConfigError(where, found, "in its own place", place)
    known = sorted(installed[group])
    choice = f"one of the installed ones ({', '.join(known)})" if known else "installed"
    close = nearest(name, known)
    return ConfigError(
        where,
        f"a plugin that is not installed{origin}",
        f"{choice}; try `pip install threatbus-{name}`",
        f"plugins.{group}.{close}" if close else None,
    )


def checked(
    value: object, plugin: PluginInfo, path: str, checker: Checker
) -> msgspec.Struct | None:
    """The section as its plugin's schema has it; None if there is no schema, or an error."""
    schema = plugin.schema  # asked for once: the answer may come from a hook
    return None if schema is None else checker.section(value, schema, path)
