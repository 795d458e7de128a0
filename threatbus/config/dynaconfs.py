"""Dynaconf: the objects that an embedder hands in, and the validators that old plugins bring.

Dynaconf itself is imported only when an object is made: it takes 170 ms and 12 MiB.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from threatbus.config.source import Place, variables
from threatbus.config.values import EnvText, match, plain
from threatbus.config.wording import describe, invalid, is_secret
from threatbus.errors import ConfigError

# What an embedder may say to Dynaconf and finds again among its settings.
_OPTIONS: Final = re.compile(
    r"LOAD_DOTENV|SETTINGS_MODULE|FRESH(_VARS)?|POST_HOOKS|FILTER_STRATEGY|DYNABOXIFY"
    r"|VALIDATE_(ONLY(_CURRENT_ENV)?|EXCLUDE)|.*_FOR_DYNACONF|DYNACONF_.*"
)


def make(content: Mapping[str, Any]) -> Any:
    """A Dynaconf object with exactly this content, which looks for nothing anywhere."""
    settings = importlib.import_module("dynaconf").Dynaconf(
        # Without this, PRELOAD_FOR_DYNACONF in the environment names a file to run.
        dynaconf_skip_loaders=True,
        load_dotenv=False,
        environments=False,
        dotted_lookup=True,  # a default that nobody has loaded
        auto_cast=False,  # else a password that begins with @ is taken for a command
    )
    for key, value in content.items():
        settings.set(key, value)
    return settings


def tree(settings: Any) -> dict[str, object]:
    """The content of somebody's object: keys as a file has them, variables marked as such."""
    try:
        content = plain(settings.as_dict())
        prefix = settings.get("ENVVAR_PREFIX_FOR_DYNACONF")
    except Exception as error:
        # Dynaconf loads only now, so this may be anything that its loaders raise.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise invalid("configuration", f"not loadable ({reason})", "valid") from error
    # As Dynaconf has it: None is no variable at all, False is every variable.
    prefixes = [] if prefix is None else [*str(prefix or "").split(","), "DYNACONF"]
    return _marked(content, variables(os.environ, dict.fromkeys(prefixes)))


def _marked(
    content: Mapping[str, object], found: Iterable[tuple[Place, EnvText]]
) -> dict[str, object]:
    marked: dict[str, object] = {
        key.lower(): value for key, value in content.items() if not _OPTIONS.fullmatch(key)
    }
    for place, text in found:
        _mark(marked, place, text)
    return marked


def _mark(content: dict[str, object], place: Place, text: EnvText) -> None:
    node: object = content
    for depth, part in enumerate(place):
        key = match(node, part) if isinstance(node, dict) else None
        if key is None or not isinstance(node, dict):
            return
        if key == part and key.isupper():  # nobody but the variable wrote it
            node[key.lower()] = node.pop(key)
            key = key.lower()
        # A value that was changed after loading is no longer the variable's.
        if depth == len(place) - 1 and node[key] in (text.guess(), str(text)):
            node[key] = text
        node = node[key]


# Validators: the defaults that they set and what they complain of.


def validate(
    content: Mapping[str, Any], validators: Iterable[Any]
) -> tuple[dict[str, Any], list[ConfigError]]:
    """The section `plugins` of the content with the validators' defaults, and what is wrong."""
    settings = make(content)
    # Each alone: `validate_all` is ended by an exception of its own kind only.
    errors = [_error_of(validator, settings) for validator in validators]
    return plain(settings.get("plugins")), [error for error in errors if error is not None]


def _error_of(validator: Any, settings: Any) -> ConfigError | None:
    try:
        validator.validate(settings)
    except Exception as error:  # noqa: BLE001 (a plugin's condition may raise anything)
        return _complaint(validator, settings, str(error) or type(error).__name__)
    return None


def _complaint(validator: Any, settings: Any, reason: str) -> ConfigError:
    names = _names(validator)
    found: str | None = None
    for name in names:
        value = _looked_up(settings, name)
        if value is None:
            continue
        found = describe(value, name)
        if is_secret(name):
            reason = reason.replace(repr(value), "***").replace(str(value), "***")
    key = ", ".join(names) or "plugins"
    return ConfigError(key, found, f"what its plugin accepts: {reason}")


def _names(validator: Any) -> list[str]:
    """The settings that a validator, or a combination of several, looks at."""
    parts = getattr(validator, "validators", None)
    if parts:
        return list(dict.fromkeys(name for part in parts for name in _names(part)))
    return [str(name) for name in validator.names]


def _looked_up(settings: Any, name: str) -> object:
    try:
        return plain(settings.get(name))
    except AttributeError:  # a step on the way is no mapping
        return None
