"""Rules: what must hold between the settings of a section, which no type can say.

A rule is a method of the schema that raises an error whose key is relative to the section::

    class RangeConfig(msgspec.Struct, frozen=True, kw_only=True):
        low: int = 0
        high: int = 9

        @rule
        def low_is_below_high(self) -> None:
            if self.low >= self.high:
                raise ConfigError("low", str(self.low), f"below high ({self.high})")

Every rule is tried, whatever else is wrong with the section, so that all errors are told at once.
Only one that reads a setting that is itself wrong says nothing: what it holds, nobody knows.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeVar

import msgspec

from threatbus.config.values import join
from threatbus.errors import ConfigError, InvalidConfig

RuleT = TypeVar("RuleT", bound=Callable[[Any], None])

_MARK: Final = "_is_rule_of_a_schema"

#: Stands for a setting that has an error of its own.
WRONG: Final = object()


def rule(method: RuleT) -> RuleT:
    """Mark a method of a schema as one of its rules.

    It reads attributes of `self`, and raises `ConfigError`, `InvalidConfig` for several, or
    ValueError for an error of the whole section.
    """
    setattr(method, _MARK, True)
    return method


class Partial:
    """What is right of a section, as its rules see it: its attributes are those of the schema."""

    def __init__(self, schema: type[msgspec.Struct], settings: Mapping[str, object]) -> None:
        self._schema = schema
        self._settings = {**_defaults(schema), **settings}

    def __getattr__(self, name: str) -> Any:
        if name not in self._settings:
            # The schema's own properties and methods read from here as well.
            attribute = inspect.getattr_static(self._schema, name)
            bind = getattr(attribute, "__get__", None)
            return attribute if bind is None else bind(self, self._schema)
        if self._settings[name] is WRONG:
            raise _NotKnown
        return self._settings[name]

    def is_complete(self) -> bool:
        """Whether none of the settings is wrong, nor is any in a section of this one."""
        return not any(is_wrong(value) for value in self._settings.values())

    def broken_rules(self, path: str) -> Iterator[ConfigError]:
        """Try every rule of the section at `path`."""
        for name in dir(self._schema):
            if getattr(getattr(self._schema, name), _MARK, False):
                yield from errors_of(getattr(self, name), path)


class _NotKnown(Exception):
    """A rule has read a setting that is wrong."""


def is_wrong(value: object) -> bool:
    """Whether a converted value is not as it should be, or not all of it is."""
    return value is WRONG or isinstance(value, Partial)


def errors_of(check: Callable[[], object], path: str) -> list[ConfigError]:
    """What a check of the section at `path` raises, with full keys."""
    try:
        check()
    except _NotKnown:
        return []
    except ConfigError as error:
        return [_below(path, error)]
    except InvalidConfig as error:
        return [_below(path, each) for each in error.errors]
    except (ValueError, TypeError) as error:
        found = f"contradictory ({error})"
        return [ConfigError(path, found, "a section whose settings fit together")]
    return []


def _below(path: str, error: ConfigError) -> ConfigError:
    key = join(path, error.key) if error.key else path
    return ConfigError(key, error.found, error.allowed, error.hint)


def _defaults(schema: type[msgspec.Struct]) -> dict[str, object]:
    return {
        each.name: each.default
        if each.default_factory is msgspec.NODEFAULT
        else each.default_factory()
        for each in msgspec.structs.fields(schema)
    }
