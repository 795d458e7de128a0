"""The plugin host: finds, loads and calls plugins, and keeps their failures apart.

Plugins are looked up among the installed distributions by entry point. Only those that the
configuration names are loaded; each is called on its own, so that one that fails is named and
costs the others nothing.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import inspect
import logging
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pluggy

from threatbus.errors import PluginError, ThreatBusError
from threatbus.hookspecs import APP_GROUP, BACKBONE_GROUP, AppSpec, BackboneSpec

logger = logging.getLogger("threatbus.plugins")

#: Seconds after which it is said that a plugin's `run` has not returned yet.
SLOW_START_SECS = 5.0

_SPECS: Mapping[str, type] = {APP_GROUP: AppSpec, BACKBONE_GROUP: BackboneSpec}


@dataclass(frozen=True)
class InstalledPlugin:
    """A name under which an installed distribution offers an entry point, or several do."""

    name: str
    group: str
    entry_points: Sequence[importlib.metadata.EntryPoint]

    @property
    def distribution(self) -> str:
        """Name and version of the distribution it comes from."""
        found = [point.dist for point in self.entry_points]
        return " and ".join(f"{each.name} {each.version}" if each else "unknown" for each in found)

    @cached_property
    def loaded(self) -> Plugin:
        """The plugin itself, loaded when first asked for; raises `PluginError`."""
        if len(self.entry_points) > 1:
            raise PluginError(
                f"plugin {self.name} is there twice, from {self.distribution}: "
                "uninstall what is not wanted"
            )
        return Plugin.load(self)

    @property
    def schema(self) -> Any:
        """The schema of its section, or None; raises `PluginError`."""
        return self._ask("config_schema")

    @property
    def validators(self) -> Sequence[Any]:
        """The dynaconf validators of an old-style plugin; raises `PluginError`."""
        return list(self._ask("config_validators") or ())

    def _ask(self, hook: str) -> Any:
        try:
            return self.loaded.call(hook)
        except PluginError:
            raise
        # Foreign code, as when it is loaded.
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"plugin {self.name} ({self.distribution}) fails in {hook}(): "
                f"{type(error).__name__}: {error}"
            ) from error


def installed(group: str) -> dict[str, InstalledPlugin]:
    """Find the plugins that are installed for `group`, by name."""
    points: dict[str, list[importlib.metadata.EntryPoint]] = {}
    for point in importlib.metadata.entry_points(group=group):
        points.setdefault(point.name, []).append(point)
    return {name: InstalledPlugin(name, group, found) for name, found in points.items()}


class Plugin:
    """One loaded plugin and its hooks."""

    def __init__(self, name: str, group: str, implementation: object) -> None:
        self.name = name
        self.group = group
        # One manager per plugin: hooks are called one plugin at a time, never in a chain in
        # which the first exception would keep the others from being called.
        self._manager = pluggy.PluginManager(group)
        self._manager.add_hookspecs(_SPECS[group])
        try:
            self._manager.register(implementation, name)
            self._manager.check_pending()
        except pluggy.PluginValidationError as error:
            raise PluginError(f"plugin {name}: {self._explain(error)}") from error
        if not self.hooks:
            raise PluginError(
                f"plugin {name} implements no hook: mark its functions with "
                f"@threatbus.{'app' if group == APP_GROUP else 'backbone'}"
            )

    @classmethod
    def load(cls, found: InstalledPlugin) -> Plugin:
        """Import a plugin and make its object; raises `PluginError` that says what went wrong."""
        try:
            implementation = found.entry_points[0].load()
            if inspect.isclass(implementation):
                implementation = implementation()
        # Importing runs foreign code, which may raise anything, or ask for the end of the process.
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"plugin {found.name} ({found.distribution}) cannot be loaded: "
                f"{type(error).__name__}: {error}"
            ) from error
        return cls(found.name, found.group, implementation)

    @property
    def hooks(self) -> list[str]:
        """The names of the hooks that it implements."""
        return sorted(name for name in self._spec_names() if self.has(name))

    def has(self, hook: str) -> bool:
        """Say whether the plugin implements `hook`."""
        return bool(getattr(self._manager.hook, hook).get_hookimpls())

    def call(self, hook: str, **arguments: object) -> Any:
        """Call one hook; gives its result, or None if the plugin does not have it."""
        results = getattr(self._manager.hook, hook)(**arguments)
        return results[0] if results else None

    def call_safely(self, hook: str, **arguments: object) -> Any:
        """Call one hook; what it raises is logged under the plugin's name, and gives None."""
        try:
            return self.call(hook, **arguments)
        # A plugin's failure must cost the others nothing.
        except (Exception, SystemExit):
            logger.exception("plugin %s failed in %s()", self.name, hook)
            return None

    def _spec_names(self) -> Iterator[str]:
        return (name for name in vars(_SPECS[self.group]) if not name.startswith("_"))

    def _explain(self, error: pluggy.PluginValidationError) -> str:
        text = str(error).replace("\n", " ")
        unknown = re.match(r"unknown hook '(\w+)'", text)
        if unknown is None:
            return text
        known = list(self._spec_names())
        close = difflib.get_close_matches(unknown[1], known, 1)
        hint = f"did you mean {close[0]}()?" if close else f"its hooks are {', '.join(known)}"
        return f"{unknown[1]}() is no hook of {self.group}; {hint}"

    def __repr__(self) -> str:
        return f"<{self.group} plugin {self.name}>"


def start(plugin: Plugin, **arguments: object) -> bool:
    """Call a plugin's `run` and say whether it runs.

    A `ThreatBusError` is the plugin's word that the bus must not start without it, and passes;
    anything else is logged, and the bus does without the plugin. SystemExit passes, too, and is
    logged, for it says nothing itself.
    """
    # Nothing can be done about a run() that hangs, but that it does should be known.
    watch = threading.Timer(
        SLOW_START_SECS,
        logger.warning,
        ("plugin %s has not started yet, and the bus waits for its run()", plugin.name),
    )
    watch.daemon = True
    watch.start()
    try:
        plugin.call("run", **arguments)
    except ThreatBusError:
        raise
    except SystemExit:
        logger.exception("plugin %s asks for the end of the process", plugin.name)
        raise
    # Its failure is its own; what the bus is to do about it, the docstring says.
    except Exception:
        logger.exception("plugin %s does not start; the bus goes on without it", plugin.name)
        return False
    finally:
        watch.cancel()
        watch.join()
    return True
