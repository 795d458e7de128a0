"""Dynaconf objects that embedders built, and the one that a source becomes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from dynaconf import Dynaconf, Validator

from threatbus.config import Source, read
from threatbus.errors import InvalidConfig
from unit.configs import APPS, BACKBONES, MINIMAL, ZEEK, ZmqConfig, zeek_with

pytestmark = pytest.mark.usefixtures("empty_surroundings")


def foreign(text: str, **options: Any) -> Any:
    Path("foreign.yaml").write_text(text)
    return Dynaconf(settings_files=["foreign.yaml"], **options)


def test_a_plain_dynaconf_object_is_a_configuration() -> None:
    text = "plugins: {backbones: {inmem: }, apps: {zmq: {pub: 5}, zeek: {Key: 1}}}\n"
    result = read(foreign(text), APPS, BACKBONES)
    assert result.apps == {"zmq": ZmqConfig(pub=5), "zeek": None}
    assert result.plain_apps["zeek"] == {"Key": 1}
    assert result.warnings == ()


def test_the_options_of_a_dynaconf_object_are_no_settings() -> None:
    options = {"load_dotenv": True, "envvar_prefix": "THREATBUS", "merge_enabled": True}
    settings = foreign(MINIMAL, **options, fresh_vars=["x"], validate_only=["plugins"])
    assert list(read(settings, APPS, BACKBONES).apps) == ["zmq"]


def test_settings_given_to_dynaconf_in_code_count() -> None:
    settings = Dynaconf(plugins={"backbones": {"inmem": None}, "apps": {"zmq": {"pub": 5}}})
    assert read(settings, APPS, BACKBONES).apps["zmq"] == ZmqConfig(pub=5)


def test_variables_that_a_dynaconf_object_read_are_told_from_its_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("THREATBUS_PLUGINS__APPS__ZMQ__PASSWORD", "0123")
    monkeypatch.setenv("THREATBUS_PLUGINS__APPS__ZMQ__PUBB", "1")
    monkeypatch.setenv("THREATBUS_SERVICE_HOST", "10.0.0.1")
    result = read(foreign(MINIMAL, envvar_prefix="THREATBUS"), APPS, BACKBONES)
    assert result.apps["zmq"] == ZmqConfig(password="0123")
    assert len(result.warnings) == 2


def test_a_dynaconf_object_may_live_on_variables_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THREATBUS_PLUGINS__APPS__ZMQ__PUB", "9999")
    monkeypatch.setenv("THREATBUS_PLUGINS__APPS__ZEEK__HOST", "h")
    monkeypatch.setenv("THREATBUS_PLUGINS__BACKBONES__INMEM", "{}")
    result = read(Dynaconf(envvar_prefix="THREATBUS"), APPS, BACKBONES)
    assert result.apps["zmq"] == ZmqConfig(pub=9999)
    assert result.plain_apps["zeek"] == {"host": "h"}


def test_variables_that_a_dynaconf_object_does_not_read_do_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("THREATBUS_PLUGINS__APPS__ZMQ__PUB", "9999")
    result = read(foreign(MINIMAL, envvar_prefix=None), APPS, BACKBONES)
    assert result.apps["zmq"] == ZmqConfig()


def test_a_typo_in_the_file_is_not_excused_by_a_variable_that_was_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("THREATBUS_PLUGINS__APPS__ZMQ__PUBB", "5")
    text = "plugins: {backbones: {inmem: }, apps: {zmq: {pubb: 5}}}\n"
    with pytest.raises(InvalidConfig, match="did you mean pub"):
        read(foreign(text, envvar_prefix=None), APPS, BACKBONES)


def test_a_value_set_after_loading_wins_over_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THREATBUS_PLUGINS__APPS__ZMQ__PUB", "9999")
    settings = foreign(MINIMAL, envvar_prefix="THREATBUS")
    settings.set("plugins.apps.zmq.pub", 4)
    assert read(settings, APPS, BACKBONES).apps["zmq"] == ZmqConfig(pub=4)


def test_a_typo_in_the_file_of_a_dynaconf_object_is_an_error() -> None:
    settings = foreign("plugins: {backbones: {inmem: }, apps: {zmq: {pubb: 5}}}\n")
    with pytest.raises(InvalidConfig, match="did you mean pub"):
        read(settings, APPS, BACKBONES)


def test_an_error_at_the_top_of_a_dynaconf_object_names_the_key_as_written() -> None:
    with pytest.raises(InvalidConfig, match=r"^plugin: is not a known key"):
        read(foreign(MINIMAL + "plugin: 1\n"), APPS, BACKBONES)


def test_a_dynaconf_object_that_cannot_load_is_one_error() -> None:
    with pytest.raises(InvalidConfig, match="configuration: is not loadable"):
        read(foreign("a: b: c\n"), APPS, BACKBONES)


def test_checking_leaves_a_dynaconf_object_as_it_was() -> None:
    settings = foreign(ZEEK)
    before = settings.as_dict()
    read(settings, zeek_with(Validator("plugins.apps.zeek.more", default=1)), BACKBONES)
    assert settings.as_dict() == before


def test_a_source_can_be_had_as_a_dynaconf_object() -> None:
    environ = {"THREATBUS_PLUGINS__APPS__ZMQ__PUB": "9999"}
    content = {"plugins": {"apps": {"zmq": {"password": "@int 5"}}}}
    settings = Source(content=content, environ=environ).to_dynaconf()
    assert settings.plugins.apps.zmq == {"password": "@int 5", "pub": 9999}
