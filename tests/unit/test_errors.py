"""The one tree of errors."""

from __future__ import annotations

import importlib
import pkgutil

import threatbus
from threatbus import client, errors
from threatbus.errors import ConfigError, ThreatBusError


def test_every_error_stands_in_the_one_tree_and_in_its_drawing() -> None:
    for module in pkgutil.walk_packages(threatbus.__path__, "threatbus."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for error in _family(ThreatBusError):
        if error.__module__.startswith("threatbus."):
            assert error.__module__ == "threatbus.errors"
            assert f" {error.__name__} " in (errors.__doc__ or "").replace("\n", " ")


def test_a_message_about_a_setting_is_one_line_whatever_its_key_is() -> None:
    error = ConfigError("a\nb\x1b[2J\ud800", None, "a known key")
    assert str(error) == r"a\nb\x1b[2J\ud800: is missing, but it must be a known key"


def test_the_errors_of_a_client_are_found_beside_it() -> None:
    assert client.Refused is errors.Refused
    assert client.Undelivered is errors.Undelivered


def _family(error: type[ThreatBusError]) -> set[type[ThreatBusError]]:
    return {error}.union(*(_family(child) for child in error.__subclasses__()))
