"""The whole configuration: the core's settings and every plugin's section, checked together."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast

import msgspec

from threatbus.config.check import Checker, check_section
from threatbus.config.schema import CoreConfig
from threatbus.config.source import Source, summed_up
from threatbus.config.values import as_mapping, match, plain, same_key, variables_of
from threatbus.config.wording import nearest
from threatbus.errors import ConfigError, InvalidConfig, PluginError


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


class _Configured(NamedTuple):
    """A plugin that has a section: what stands there, and what the plugin says may stand there."""

    section: object
    schema: type[msgspec.Struct] | None
    validators: Sequence[Any]


_Installed = Mapping[str, Mapping[str, PluginInfo]]
"""The installed plugins by the group in which their sections stand, and by name."""


def read(
    source: Any,
    installed_apps: Mapping[str, PluginInfo],
    installed_backbones: Mapping[str, PluginInfo],
) -> Checked:
    """Check a whole configuration against the core's schema and those of the installed plugins.

    `source` comes from `load`, or is a Dynaconf object that someone else built, or a mapping.
    Raises InvalidConfig with every error at once.
    """
    checked, checker = _examine(source, installed_apps, installed_backbones)
    if checked is None or checker.errors:
        raise InvalidConfig(checker.errors, tuple(summed_up(checker.warnings)))
    return checked


def survey(
    source: Any,
    installed_apps: Mapping[str, PluginInfo],
    installed_backbones: Mapping[str, PluginInfo],
) -> tuple[Checked | None, Sequence[ConfigError]]:
    """Give what is right in a configuration beside all that is wrong, for whoever looks into it.

    Plugins with a wrong section are left out of what is right; None if the core's own settings are
    wrong.
    """
    checked, checker = _examine(source, installed_apps, installed_backbones)
    return checked, checker.errors


def _examine(
    source: Any,
    installed_apps: Mapping[str, PluginInfo],
    installed_backbones: Mapping[str, PluginInfo],
) -> tuple[Checked | None, Checker]:
    """What is right, and the checker with all errors and warnings."""
    tree = _tree(source)
    checker = Checker()
    core = checker.section(tree, CoreConfig, "")
    installed = {"apps": installed_apps, "backbones": installed_backbones}
    # Which plugins are configured is settled here: a validator's default, further down, can
    # create the section of a plugin that nobody asked for.
    given = {group: _configured(tree, group, installed, checker) for group in installed}
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
    if _group_in(tree, "backbones") == {}:
        checker.errors.append(_no_backbone(source))
    if _group_in(tree, "apps") == {}:
        checker.warnings.append("plugins.apps: no app plugin is configured, nobody can take part")
    if core is None:
        return None, checker
    right = {
        group: {
            name: struct
            for name, struct in found.items()
            # Without a Struct although there is a schema, or with an error of its validators.
            if (struct is not None or given[group][name].schema is None)
            and not _is_wrong(f"plugins.{group}.{name}", checker.errors)
        }
        for group, found in structs.items()
    }
    checked = Checked(
        core=core,
        apps=right["apps"],
        backbones=right["backbones"],
        plain_apps=_for_run(written["apps"], right["apps"]),
        plain_backbones=_for_run(written["backbones"], right["backbones"]),
        warnings=tuple(summed_up(checker.warnings)),
    )
    return checked, checker


def _is_wrong(section: str, errors: Sequence[ConfigError]) -> bool:
    return any(f"{error.key}.".startswith(f"{section}.") for error in errors)


def read_core(source: Any) -> CoreConfig:
    """Check the core's settings alone, for commands that run no plugin; raises InvalidConfig."""
    core, errors = check_section(_tree(source), CoreConfig, "", [])
    if core is None:
        raise InvalidConfig(errors)
    return core


def _tree(source: Any) -> dict[str, object]:
    """The content of any kind of source, with variables marked as such."""
    kind = type(source)  # `isinstance` would make a Dynaconf object load, too early to catch it
    if issubclass(kind, Source):
        return cast("Source", source).tree()
    if issubclass(kind, Mapping):
        return cast("dict[str, object]", plain(source))
    from threatbus.config import dynaconfs  # noqa: PLC0415 (for embedders only)

    return dynaconfs.tree(source)


def _group_in(tree: Mapping[str, object], group: str) -> dict[str, object] | None:
    """The sections of a group; None if what stands there is no mapping."""
    plugins = as_mapping(tree.get(same_key(tree, "plugins")))
    return None if plugins is None else as_mapping(plugins.get(same_key(plugins, group)))


def _configured(
    tree: Mapping[str, object], group: str, installed: _Installed, checker: Checker
) -> dict[str, _Configured]:
    """The configured plugins of a group under their proper names; notes those that are not
    installed or broken.
    """
    found: dict[str, _Configured] = {}
    for key, value in (_group_in(tree, group) or {}).items():
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
                found[name] = _Configured(value, plugin.schema, plugin.validators)
            except PluginError as error:
                broken = f"a broken plugin{_origin(value)} ({' '.join(str(error).split())})"
                checker.errors.append(ConfigError(where, broken, "one that can be loaded"))
    return found


def _origin(section: object) -> str:
    variables = variables_of(section)
    return f" (set by {', '.join(variables)})" if variables else ""


def _not_installed(name: str, group: str, installed: _Installed, value: object) -> ConfigError:
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


def _with_defaults_of_validators(
    given: Mapping[str, Mapping[str, _Configured]], core: CoreConfig | None, checker: Checker
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
    from threatbus.config import dynaconfs  # noqa: PLC0415 (for old plugins only)

    # A validator may look at what the core's settings are, too.
    others = {} if core is None else msgspec.to_builtins(core)
    written, errors = dynaconfs.validate({**others, "plugins": written}, validators)
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
