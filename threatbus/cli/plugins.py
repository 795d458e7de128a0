"""``threatbus plugins``: lists what is installed, and what of it is configured."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Final

from threatbus import config
from threatbus.cli.options import add_command, add_config
from threatbus.cli.outcome import OK, say
from threatbus.cli.text import table
from threatbus.errors import InvalidConfig, PluginError, ThreatBusError
from threatbus.hookspecs import APP_GROUP, BACKBONE_GROUP
from threatbus.plugins import InstalledPlugin, installed

if TYPE_CHECKING:
    from threatbus.cli.options import Commands

DETAILS = """\
Works with a broken configuration, and with none. A plugin that cannot be loaded is listed
with the reason.
"""
GROUPS: Final = {"backbones": BACKBONE_GROUP, "apps": APP_GROUP}
HEADING: Final = ("KIND", "NAME", "CONFIGURED", "DISTRIBUTION", "HOOKS")

#: The names of configured plugins by "apps" and "backbones"; None: there is no configuration.
Configured = Mapping[str, Collection[str]]


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "plugins", "list the plugins that are installed", DETAILS)
    add_config(parser)
    parser.set_defaults(command=command)


def command(arguments: argparse.Namespace) -> int:
    """Print the table."""
    found = {group: installed(entry_points) for group, entry_points in GROUPS.items()}
    configured = _configured(arguments.config, found)
    rows = [HEADING, *(row for group in GROUPS for row in _rows(group, found[group], configured))]
    sys.stdout.write(table(rows))
    if len(rows) == 1:
        say("no plugin is installed; try `pip install threatbus-inmem threatbus-zmq`")
    return OK


def _rows(
    group: str, found: Mapping[str, InstalledPlugin], configured: Configured | None
) -> Iterator[tuple[str, ...]]:
    kind = group.removesuffix("s")
    names = set() if configured is None else {name.lower() for name in configured[group]}
    for name, plugin in sorted(found.items()):
        mark = "-" if configured is None else "yes" if name.lower() in names else "no"
        yield kind, name, mark, plugin.distribution, _hooks(plugin)
    for name in sorted(names - {name.lower() for name in found}):
        yield kind, name, "yes", "not installed", ""


def _hooks(plugin: InstalledPlugin) -> str:
    try:
        return ", ".join(plugin.loaded.hooks)
    except PluginError as error:
        return f"ERROR: {error}"


def _configured(
    path: str | None, found: Mapping[str, Mapping[str, InstalledPlugin]]
) -> Configured | None:
    """Find out which plugins are configured; what is wrong with a configuration is only said."""
    try:
        source = config.load(path)
    except InvalidConfig as error:
        say(f"{error}\nThe list does not say what is configured.")
        return None
    try:
        checked = config.read(source, found["apps"], found["backbones"])
    except ThreatBusError as error:
        if source.file is None and not _names(source.content, "backbones"):
            return None
        say(f"the configuration is not valid, see `threatbus check`:\n{error}")
        return {group: _names(source.content, group) for group in GROUPS}
    return {"apps": checked.apps, "backbones": checked.backbones}


def _names(content: Mapping[str, object], group: str) -> Collection[str]:
    """Read the names of plugins from a file that may be wrong in any way."""
    plugins = content.get("plugins")
    section = plugins.get(group) if isinstance(plugins, Mapping) else None
    return {str(name) for name in section} if isinstance(section, Mapping) else set()
