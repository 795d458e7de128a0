"""Old plugins' Dynaconf validators: the defaults that they set and what they complain of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from threatbus.config import dynaconfs
from threatbus.config.values import plain
from threatbus.config.wording import describe, is_secret
from threatbus.errors import ConfigError


def validate(
    content: Mapping[str, Any], validators: Iterable[Any]
) -> tuple[dict[str, Any], list[ConfigError]]:
    """The section `plugins` of the content with the validators' defaults, and what is wrong."""
    settings = dynaconfs.make(content)
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
