"""The whole configuration: the core's settings and every plugin's section, checked together."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec

from threatbus.config import sections
from threatbus.config.check import Checker
from threatbus.config.core import CoreConfig
from threatbus.config.environment import summed_up
from threatbus.config.sections import Configured, PluginInfo
from threatbus.config.source import Source
from threatbus.config.values import as_mapping, plain
from threatbus.errors import ConfigError, InvalidConfig


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration in which nothing is wrong; holds passwords, so nothing of it is printed."""

    core: CoreConfig

    apps: Mapping[str, msgspec.Struct | None]
    """Per configured app plugin its section as a Struct; None: an old plugin without schema."""

    backbones: Mapping[str, msgspec.Struct | None]
    """The same for backbones."""

    plain_apps: Mapping[str, Any]
    """All of plugins.apps as `run(config, …)` takes it: items and attributes, defaults filled in.

    If an old plugin is among them this is Dynaconf's own kind of mapping, else a `Section`.
    """

    plain_backbones: Mapping[str, Any]
    """The same for backbones."""

    warnings: Sequence[str]
    """What the operator should know although it stops nothing, one line each."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} configuration>"


class Section(dict[str, Any]):
    """A mapping whose keys are also attributes, at every level."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        super().__init__({key: _as_sections(value) for key, value in content.items()})

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def _as_sections(value: Any) -> Any:
    if isinstance(value, Mapping):
        return Section(value)
    if isinstance(value, list):
        return [_as_sections(item) for item in value]
    return value


def read(
    source: Any,
    installed_apps: Mapping[str, PluginInfo],
    installed_backbones: Mapping[str, PluginInfo],
) -> Checked:
    """Check a whole configuration against the core's schema and those of the installed plugins.

    `source` comes from `load`, or is a Dynaconf object that someone else built, or a mapping.
    Raises InvalidConfig with every error at once.
    """
    tree = _tree(source)
    checker = Checker()
    core = checker.section(tree, CoreConfig, "")
    installed = {"apps": installed_apps, "backbones": installed_backbones}
    # Which plugins are configured is settled here: a validator's default, further down, can
    # create the section of a plugin that nobody asked for.
    given = {group: sections.configured(tree, group, installed, checker) for group in installed}
    structs = {
        group: {
            name: checker.section(plugin.section, plugin.schema, f"plugins.{group}.{name}")
            if plugin.schema is not None
            else None
            for name, plugin in found.items()
        }
        for group, found in given.items()
    }
    written = _with_defaults_of_validators(given, core, checker)
    if sections.group_in(tree, "backbones") == {}:
        checker.errors.append(_no_backbone(source))
    if sections.group_in(tree, "apps") == {}:
        checker.warnings.append("plugins.apps: no app plugin is configured, nobody can take part")
    if checker.errors or core is None:
        raise InvalidConfig(checker.errors)
    return Checked(
        core=core,
        apps=structs["apps"],
        backbones=structs["backbones"],
        plain_apps=_for_run(written["apps"], structs["apps"]),
        plain_backbones=_for_run(written["backbones"], structs["backbones"]),
        warnings=tuple(summed_up(checker.warnings)),
    )


def _tree(source: Any) -> dict[str, object]:
    """The content of any kind of source, with variables marked as such."""
    kind = type(source)  # `isinstance` would make a Dynaconf object load, too early to catch it
    if issubclass(kind, Source):
        return cast("Source", source).tree()
    if issubclass(kind, Mapping):
        return cast("dict[str, object]", plain(source))
    from threatbus.config import dynaconfs  # noqa: PLC0415 (for embedders only)

    return dynaconfs.tree(source)


def _with_defaults_of_validators(
    given: Mapping[str, Mapping[str, Configured]], core: CoreConfig | None, checker: Checker
) -> dict[str, dict[str, Any]]:
    """The sections as they were written, with the defaults that old plugins' validators set."""
    written: dict[str, dict[str, Any]] = {
        group: {name: plain(as_mapping(plugin.section)) for name, plugin in found.items()}
        for group, found in given.items()
    }
    validators = [
        validator
        for found in given.values()
        for plugin in found.values()
        for validator in plugin.validators
    ]
    if not validators:
        return written
    from threatbus.config.validators import validate  # noqa: PLC0415 (for old plugins only)

    # A validator may look at what the core's settings are, too.
    others = {} if core is None else msgspec.to_builtins(core)
    written, errors = validate({**others, "plugins": written}, validators)
    checker.errors.extend(errors)
    return written


def _no_backbone(source: object) -> ConfigError:
    what = "at least one backbone; `inmem:` is the one for a bus on one machine"
    if isinstance(source, Source) and source.file is None and not source.content:
        what += " (there is no config.yaml or config.yml in the current directory)"
    return ConfigError("plugins.backbones", None, what)


def _for_run(
    written: Mapping[str, Any], structs: Mapping[str, msgspec.Struct | None]
) -> Mapping[str, Any]:
    """What plugins are handed: of new ones the checked values, of old ones what they wrote."""
    content = {
        name: written[name] if struct is None else msgspec.to_builtins(struct)
        for name, struct in structs.items()
    }
    if None not in structs.values():
        return Section(content)
    # An old plugin has most likely imported it anyway.
    return cast("Mapping[str, Any]", importlib.import_module("dynaconf.nodes").DataDict(content))
