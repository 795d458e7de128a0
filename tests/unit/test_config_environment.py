"""Variables over the file: what they mean, and those that are no settings."""

from __future__ import annotations

import pytest

from threatbus.config import Source, read
from threatbus.errors import InvalidConfig
from unit.configs import APPS, BACKBONES, MINIMAL, ZmqConfig, errors_of, from_environment, from_yaml

pytestmark = pytest.mark.usefixtures("empty_surroundings")


def test_a_variable_wins_over_the_file() -> None:
    text = "plugins: {backbones: {inmem: }, apps: {zmq: {pub: 1, host: h}}}\n"
    result = from_yaml(text, {"THREATBUS_PLUGINS__APPS__ZMQ__PUB": "9999"})
    assert result.apps["zmq"] == ZmqConfig(host="h", pub=9999)
    assert result.plain_apps["zmq"]["pub"] == 9999


def test_variables_alone_are_a_configuration() -> None:
    result = from_environment(
        {
            "THREATBUS_PLUGINS__APPS__ZMQ__PUB": "9999",
            "THREATBUS_PLUGINS__BACKBONES__INMEM": "",
            "THREATBUS_LOGGING__CONSOLE_VERBOSITY": "debug",
            "THREATBUS_SNAPSHOT_TIMEOUT": "2.5",
        }
    )
    assert result.apps["zmq"] == ZmqConfig(pub=9999)
    assert result.backbones == {"inmem": None}
    assert result.core.logging.console_verbosity == "DEBUG"
    assert result.core.snapshot_timeout == 2.5


@pytest.mark.parametrize("text", ["", "{}", "null", "@none"])
def test_a_variable_switches_a_plugin_on(text: str) -> None:
    result = from_environment({"THREATBUS_PLUGINS__BACKBONES__INMEM": text})
    assert list(result.backbones) == ["inmem"]


def test_an_empty_variable_does_not_empty_a_section_that_the_file_fills() -> None:
    text = "plugins: {backbones: {inmem: }, apps: {zmq: {pub: 5}}}\n"
    result = from_yaml(text, {"THREATBUS_PLUGINS__APPS__ZMQ": ""})
    assert result.apps["zmq"] == ZmqConfig(pub=5)


def test_a_variable_reaches_into_a_section_that_is_null_in_the_file() -> None:
    result = from_yaml(MINIMAL, {"THREATBUS_PLUGINS__APPS__ZMQ__SUB": "7"})
    assert result.apps["zmq"] == ZmqConfig(sub=7)


def test_a_variable_finds_the_key_whatever_case_the_file_uses() -> None:
    text = "Plugins: {backbones: {InMem: }, apps: {Zmq: {PUB: 1}}}\n"
    result = from_yaml(text, {"THREATBUS_PLUGINS__APPS__ZMQ__PUB": "2"})
    assert result.apps["zmq"] == ZmqConfig(pub=2)
    assert list(result.backbones) == ["inmem"]


def test_a_variable_may_hold_a_whole_section() -> None:
    environ = {
        "THREATBUS_PLUGINS__APPS__ZMQ": "{manage=5, host='h'}",
        "THREATBUS_PLUGINS__APPS__ZMQ__PUB": "6",
        "THREATBUS_PLUGINS__BACKBONES__INMEM": "",
    }
    assert from_environment(environ).apps["zmq"] == ZmqConfig(host="h", manage=5, pub=6)


@pytest.mark.parametrize(
    "text",
    ["0123", "12345", "1e5", "true", "null", "1_000", "2024-01-01", "@foo", "@int 5", "@jinja x"],
)
def test_text_from_a_variable_is_literal_where_the_schema_says_text(text: str) -> None:
    result = from_yaml(MINIMAL, {"THREATBUS_PLUGINS__APPS__ZMQ__PASSWORD": text})
    assert result.apps["zmq"] == ZmqConfig(password=text)


@pytest.mark.parametrize("text", ['"12345"', "'12345'", "@str 12345"])
def test_dynaconfs_ways_to_mark_text_in_a_variable_are_understood(text: str) -> None:
    result = from_yaml(MINIMAL, {"THREATBUS_PLUGINS__APPS__ZMQ__PASSWORD": text})
    assert result.apps["zmq"] == ZmqConfig(password="12345")


@pytest.mark.parametrize("text", ['["a", "b"]', '@json ["a", "b"]'])
def test_a_list_may_come_from_a_variable(text: str) -> None:
    result = from_yaml(MINIMAL, {"THREATBUS_PLUGINS__APPS__ZMQ__TOPICS": text})
    assert result.apps["zmq"] == ZmqConfig(topics=["a", "b"])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("1.5", 1.5),
        ("True", True),
        ("false", False),
        ("words", "words"),
        ("@int 5", 5),
        ("@bool yes", True),
        ("@foo", "@foo"),
        ("@format {this.x}", "@format {this.x}"),
        ('{a=1, b=["x"]}', {"a": 1, "b": ["x"]}),
        ("1\nother = 2", "1\nother = 2"),
        ("@int x", "@int x"),
    ],
)
def test_without_a_schema_a_variable_is_read_as_dynaconf_reads_it(text: str, value: object) -> None:
    text_of_file = "plugins: {backbones: {inmem: }, apps: {zeek: }}\n"
    result = from_yaml(text_of_file, {"THREATBUS_PLUGINS__APPS__ZEEK__KEY": text})
    assert result.plain_apps["zeek"]["key"] == value


def test_variables_that_kubernetes_sets_are_one_warning() -> None:
    environ = {
        "THREATBUS_SERVICE_HOST": "10.0.0.1",
        "THREATBUS_SERVICE_PORT": "13370",
        "THREATBUS_SERVICE_PORT_MANAGE": "13370",
        "THREATBUS_PORT": "tcp://10.0.0.1:13370",
        "THREATBUS_PORT_13370_TCP": "tcp://10.0.0.1:13370",
        "THREATBUS_PORT_13370_TCP_ADDR": "10.0.0.1",
    }
    [warning] = from_yaml(MINIMAL, environ).warnings
    assert all(name in warning for name in environ)
    assert "10.0.0.1" not in warning


def test_a_mistyped_variable_is_a_warning_that_names_the_nearest_key() -> None:
    [warning] = from_yaml(MINIMAL, {"THREATBUS_PLUGINS__APPS__ZMQ__PUBB": "1"}).warnings
    assert warning.startswith("THREATBUS_PLUGINS__APPS__ZMQ__PUBB: ")
    assert "did you mean plugins.apps.zmq.pub?" in warning


def test_a_mistyped_variable_that_ends_like_those_of_kubernetes_has_its_own_warning() -> None:
    [warning] = from_yaml(MINIMAL, {"THREATBUS_PLUGINS__APPS__ZMQ__PORT": "1"}).warnings
    assert warning.startswith("THREATBUS_PLUGINS__APPS__ZMQ__PORT: ")


@pytest.mark.parametrize("name", ["THREATBUS_PLUGINS", "THREATBUS_PLUGINS__APPS"])
def test_text_where_sections_belong_is_an_error_that_names_the_variable(name: str) -> None:
    file = {"plugins": {"backbones": {"inmem": None}}}
    with pytest.raises(InvalidConfig) as caught:
        read(Source(content=file, environ={name: "tcp://10.0.0.1:1"}), APPS, BACKBONES)
    [error] = caught.value.errors
    assert name in str(error)


def test_a_mistyped_section_in_variables_warns_for_each_variable() -> None:
    environ = {"THREATBUS_LOGING__FILE": "true", "THREATBUS_LOGING__CONSOLE": "true"}
    warnings = from_yaml(MINIMAL, environ).warnings
    assert sorted(warning.partition(":")[0] for warning in warnings) == sorted(environ)


def test_a_wrong_value_from_a_variable_is_an_error_that_names_the_variable() -> None:
    [error] = errors_of(MINIMAL, {"THREATBUS_PLUGINS__APPS__ZMQ__PUB": "tcp://1.2.3.4:5"})
    assert error.startswith("plugins.apps.zmq.pub: is the text 'tcp://1.2.3.4:5'")
    assert "THREATBUS_PLUGINS__APPS__ZMQ__PUB" in error
    assert "a port between 1 and 65535" in error


def test_a_plugin_that_only_variables_configure_must_be_installed_too() -> None:
    [error] = errors_of(MINIMAL, {"THREATBUS_PLUGINS__APPS__ZEKE__PORT": "1"})
    assert "THREATBUS_PLUGINS__APPS__ZEKE__PORT" in error
    assert "did you mean plugins.apps.zeek?" in error


def test_names_with_an_empty_level_are_no_settings() -> None:
    assert from_yaml(MINIMAL, {"THREATBUS_": "1", "THREATBUS___X": "1"}).warnings == ()
