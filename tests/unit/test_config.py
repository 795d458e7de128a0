"""The configuration: reading, environment over file, checking, old plugins, foreign objects."""

from __future__ import annotations

import enum
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest
from dynaconf import Dynaconf, Validator
from hypothesis import given
from hypothesis import strategies as st

from threatbus import config
from threatbus.config import (
    ByteSize,
    Checked,
    CoreConfig,
    EnvText,
    Host,
    Port,
    PositiveInt,
    Ratio,
    Seconds,
    Source,
    Text,
    check_section,
    load,
    read,
)
from threatbus.errors import ConfigError, InvalidConfig


class ZmqConfig(msgspec.Struct, frozen=True, kw_only=True):
    host: Host = "127.0.0.1"
    manage: Port = 13370
    pub: Port = 13371
    sub: Port = 13372
    password: str | None = None
    topics: list[Text] = []


class QueueConfig(msgspec.Struct, frozen=True, kw_only=True):
    name_suffix: str = "a-host"
    durable: bool = True
    max_items: int = 0


class RabbitConfig(msgspec.Struct, frozen=True, kw_only=True):
    host: Host
    port: Port = 5672
    password: str = "guest"
    queue: QueueConfig = QueueConfig()


@dataclass
class Plugin:
    name: str
    schema: type[msgspec.Struct] | None = None
    validators: list[Any] = field(default_factory=list)


def named(*plugins: Plugin) -> dict[str, Plugin]:
    return {plugin.name: plugin for plugin in plugins}


APPS = named(Plugin("zmq", ZmqConfig), Plugin("zeek"))
BACKBONES = named(Plugin("inmem"), Plugin("rabbitmq", RabbitConfig))


@pytest.fixture(autouse=True)
def _empty_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty current directory, and no variable of the machine's own."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith(("THREATBUS", "DYNACONF")):
            monkeypatch.delenv(name)


def from_yaml(
    text: str,
    environ: Mapping[str, str] | None = None,
    apps: Mapping[str, Plugin] = APPS,
    backbones: Mapping[str, Plugin] = BACKBONES,
) -> Checked:
    file = Path("given.yaml")
    file.write_text(text, encoding="utf-8")
    return read(load(file, environ=dict(environ or {})), apps, backbones)


def from_environment(environ: Mapping[str, str], **installed: Any) -> Checked:
    return read(load(environ=dict(environ)), installed.get("apps", APPS), BACKBONES)


def errors_of(text: str, environ: Mapping[str, str] | None = None, **more: Any) -> list[str]:
    with pytest.raises(InvalidConfig) as caught:
        from_yaml(text, environ, **more)
    return [str(error) for error in caught.value.errors]


def checked(value: object, schema: type[msgspec.Struct]) -> Any:
    result, errors = check_section(value, schema, "section")
    assert errors == []
    return result


def complaints(value: object, schema: type[msgspec.Struct], path: str = "section") -> list[str]:
    result, errors = check_section(value, schema, path)
    assert result is None
    assert errors
    return [str(error) for error in errors]


MINIMAL = "plugins: {backbones: {inmem: }, apps: {zmq: }}\n"


# Which file is read


def test_config_yaml_in_the_current_directory_is_read_without_being_named() -> None:
    Path("config.yaml").write_text("snapshot_timeout: 7\n")
    assert load(environ={}).content == {"snapshot_timeout": 7}


def test_config_yml_is_read_where_there_is_no_config_yaml() -> None:
    Path("config.yml").write_text("snapshot_timeout: 8\n")
    assert load(environ={}).content == {"snapshot_timeout": 8}


def test_without_a_file_the_environment_alone_counts() -> None:
    source = load(environ={})
    assert source.content == {}
    assert source.file is None


def test_a_path_that_does_not_end_in_yaml_or_yml_is_refused() -> None:
    Path("config.toml").write_text("")
    with pytest.raises(InvalidConfig, match=r"config\.toml: .*yaml or yml"):
        load(Path("config.toml"))


def test_a_named_file_that_is_missing_is_one_error() -> None:
    with pytest.raises(InvalidConfig, match=r"nowhere\.yaml: is not there"):
        load("nowhere.yaml")


def test_a_directory_in_place_of_the_file_is_one_error() -> None:
    Path("config.d.yaml").mkdir()
    with pytest.raises(InvalidConfig, match="not readable"):
        load("config.d.yaml")


def test_broken_yaml_is_one_error_with_line_and_column() -> None:
    with pytest.raises(InvalidConfig, match="line 3, column 7") as caught:
        from_yaml("logging:\n  file: true\n  a: b: c\n")
    assert len(caught.value.errors) == 1


def test_an_unquoted_password_that_breaks_the_yaml_is_not_repeated() -> None:
    [error] = errors_of("password: *hunter2\n")
    assert "line 1, column 11" in error
    assert "hunter2" not in error


def test_a_file_that_is_not_utf8_is_one_error() -> None:
    Path("latin.yaml").write_bytes(b"a: \xff\n")
    with pytest.raises(InvalidConfig, match="not UTF-8"):
        load("latin.yaml")


def test_a_byte_order_mark_is_no_part_of_the_first_key() -> None:
    Path("bom.yaml").write_bytes(b"\xef\xbb\xbflogging: \n")
    assert load("bom.yaml", environ={}).content == {"logging": None}


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words\n", "5\n"])
def test_a_file_that_holds_no_mapping_is_one_error(text: str) -> None:
    [error] = errors_of(text)
    assert error.startswith("given.yaml: ")
    assert "a mapping of settings" in error


def test_a_yaml_tag_is_refused_and_nothing_runs() -> None:
    [error] = errors_of("a: !!python/object/apply:os.system ['touch ran']\n")
    assert "broken YAML at line 1" in error
    assert not Path("ran").exists()


def test_a_key_that_stands_twice_is_an_error_with_its_line() -> None:
    [error] = errors_of("plugins:\n  apps: {}\nlogging: {}\nplugins: {}\n")
    assert "'plugins' stands twice" in error
    assert "line 4" in error


def test_endless_nesting_is_an_error_and_no_crash() -> None:
    [error] = errors_of("a: &a [*a]\n")
    assert "given.yaml" in error


def test_two_sections_that_share_a_yaml_anchor_are_told_apart() -> None:
    text = "plugins: {backbones: {inmem: &x {a: 1}}, apps: {zeek: *x}}\n"
    result = from_yaml(text, {"THREATBUS_PLUGINS__APPS__ZEEK__A": "2"})
    assert result.plain_apps["zeek"]["a"] == 2
    assert result.plain_backbones["inmem"]["a"] == 1


def test_yes_and_leading_zeros_are_text_to_whom_text_is_due() -> None:
    text = "{host: h, password: 0123, queue: {durable: no, name_suffix: yes}}"
    rabbit = from_yaml(f"plugins: {{backbones: {{rabbitmq: {text}}}}}\n").backbones["rabbitmq"]
    assert isinstance(rabbit, RabbitConfig)
    assert rabbit.password == "0123"
    assert rabbit.queue.durable is False
    assert rabbit.queue.name_suffix == "yes"


# Values of the file are taken literally


LITERAL = [
    "@foo",
    "@int 5",
    "@bool true",
    "@format {this.logging}",
    "@format {env[HOME]}",
    "@jinja {{ 7 * 7 }}",
    "@json [1]",
    "@none",
    "@del",
    "@merge x=1",
    "@read_file /etc/hostname",
    "@get logging",
    "{braces}",
    "$HOME",
    "${HOME}",
    "%(x)s",
    "a@b",
]


@pytest.mark.parametrize("value", LITERAL)
def test_a_value_of_the_file_is_literal_in_a_section_with_a_schema(value: str) -> None:
    text = f"plugins: {{backbones: {{inmem: }}, apps: {{zmq: {{password: '{value}'}}}}}}\n"
    zmq = from_yaml(text).apps["zmq"]
    assert isinstance(zmq, ZmqConfig)
    assert zmq.password == value


@pytest.mark.parametrize("value", LITERAL)
def test_a_value_of_the_file_is_literal_for_an_old_plugin_with_validators(value: str) -> None:
    zeek = Plugin(
        "zeek",
        None,
        [
            Validator("plugins.apps.zeek.secret", is_type_of=str, must_exist=True),
            Validator("plugins.apps.zeek.port", default=47761),
        ],
    )
    text = f"plugins: {{backbones: {{inmem: }}, apps: {{zeek: {{secret: '{value}'}}}}}}\n"
    result = from_yaml(text, apps=named(zeek))
    assert result.plain_apps["zeek"]["secret"] == value
    assert result.plain_apps["zeek"]["port"] == 47761


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["C"])))
def test_any_text_of_a_mapping_reaches_an_old_plugin_unchanged(value: str) -> None:
    zeek = Plugin("zeek", None, [Validator("plugins.apps.zeek.x", must_exist=True)])
    content = {"plugins": {"backbones": {"inmem": None}, "apps": {"zeek": {"x": value}}}}
    assert read(content, named(zeek), BACKBONES).plain_apps["zeek"]["x"] == value


def test_dynaconfs_own_keys_include_no_file() -> None:
    Path("other.yaml").write_text("snapshot_timeout: 1\n")
    text = MINIMAL + "dynaconf_include: other.yaml\n"
    assert any(error.startswith("dynaconf_include: ") for error in errors_of(text))


def test_files_with_special_names_beside_the_file_are_not_read() -> None:
    for name in ("given.local.yaml", "settings.toml", ".secrets.yaml", "settings.yaml"):
        Path(name).write_text("snapshot_timeout = 1" if "toml" in name else "snapshot_timeout: 1")
    assert from_yaml(MINIMAL).core.snapshot_timeout == 300


# The environment


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


# .env


def test_what_dotenv_sets_counts_as_environment() -> None:
    Path("config.yaml").write_text(MINIMAL)
    Path(".env").write_text("export THREATBUS_SNAPSHOT_TIMEOUT='9' # seconds\nOTHER=x\n")
    environ: dict[str, str] = {}
    assert read(load(environ=environ), APPS, BACKBONES).core.snapshot_timeout == 9
    assert environ["OTHER"] == "x"


def test_a_byte_order_mark_is_no_part_of_a_name_in_dotenv() -> None:
    Path(".env").write_bytes(b"\xef\xbb\xbfNAME=x\n")
    assert load(environ={}).environ == {"NAME": "x"}


def test_a_real_variable_wins_over_dotenv() -> None:
    Path("config.yaml").write_text(MINIMAL)
    Path(".env").write_text("THREATBUS_SNAPSHOT_TIMEOUT=9\n")
    source = load(environ={"THREATBUS_SNAPSHOT_TIMEOUT": "3"})
    assert read(source, APPS, BACKBONES).core.snapshot_timeout == 3


def test_dotenv_reaches_the_process_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THREATBUS_DRAIN_TIMEOUT", "to be put back")
    monkeypatch.delenv("THREATBUS_DRAIN_TIMEOUT")
    Path("config.yaml").write_text(MINIMAL)
    Path(".env").write_text("THREATBUS_DRAIN_TIMEOUT=4\n")
    assert read(load(), APPS, BACKBONES).core.drain_timeout == 4
    assert os.environ["THREATBUS_DRAIN_TIMEOUT"] == "4"


def test_a_dotenv_file_further_up_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(".env").write_text("THREATBUS_SNAPSHOT_TIMEOUT=9\n")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert "THREATBUS_SNAPSHOT_TIMEOUT" not in load(environ={}).environ


def test_a_dotenv_file_that_is_not_utf8_is_one_error() -> None:
    Path(".env").write_bytes(b"A=\xff\n")
    with pytest.raises(InvalidConfig, match=r"\.env: is not UTF-8"):
        load(environ={})


# Checking a section


class Kind(enum.Enum):
    NATIVE = "native"
    WEBSOCKET = "websocket"


class Tls(msgspec.Struct, frozen=True, kw_only=True):
    ca: Text
    verify: bool = True


class Everything(msgspec.Struct, frozen=True, kw_only=True):
    port: Port = 1
    seconds: Seconds = 1.0
    count: PositiveInt = 1
    size: ByteSize = 1
    share: Ratio = 0.5
    flag: bool = False
    text: str = "t"
    kind: Kind = Kind.NATIVE
    level: Literal["low", "high"] = "low"
    names: str | list[str] = "n"
    maybe: int | None = 3
    tls: Tls | None = None
    peers: list[Tls] = []
    by_name: dict[str, Tls] = {}
    few: Annotated[list[int], msgspec.Meta(min_length=1, max_length=2)] | None = None
    limit: Annotated[int, msgspec.Meta(ge=3, lt=9)] = 3
    anything: object = None


def test_what_is_missing_has_its_default() -> None:
    assert checked({}, Everything) == Everything()


@pytest.mark.parametrize("value", [None, {}, EnvText("", "V"), EnvText("{}", "V")])
def test_a_null_section_is_all_defaults(value: object) -> None:
    assert checked(value, Everything) == Everything()


def test_a_null_value_is_the_default() -> None:
    assert checked({"port": None, "text": None, "peers": None}, Everything) == Everything()


def test_a_null_value_is_null_where_the_schema_admits_it() -> None:
    assert checked({"maybe": None}, Everything).maybe is None


@pytest.mark.parametrize(
    ("key", "value", "result"),
    [
        ("port", "13370", 13370),
        ("port", EnvText(" 13370 ", "V"), 13370),
        ("port", EnvText("'13370'", "V"), 13370),
        ("seconds", "1.5", 1.5),
        ("seconds", 2, 2.0),
        ("share", EnvText("1", "V"), 1.0),
        ("flag", "true", True),
        ("flag", "No", False),
        ("flag", EnvText("1", "V"), True),
        ("flag", EnvText("False", "V"), False),
        ("text", 5, "5"),
        ("kind", "WebSocket", Kind.WEBSOCKET),
        ("level", " HIGH ", "high"),
        ("names", "a", "a"),
        ("names", ["a"], ["a"]),
        ("names", EnvText('["a"]', "V"), ["a"]),
        ("names", EnvText("5", "V"), "5"),
        ("maybe", "4", 4),
        ("tls", {"ca": "x", "verify": "no"}, Tls(ca="x", verify=False)),
        ("peers", [{"ca": "x"}], [Tls(ca="x")]),
        ("by_name", {"a": {"ca": "x"}}, {"a": Tls(ca="x")}),
        ("anything", {"a": [EnvText("1", "V")]}, {"a": [1]}),
        ("PORT", 5, 5),
    ],
)
def test_values_are_converted(key: str, value: object, result: object) -> None:
    converted = getattr(checked({key: value}, Everything), key.lower())
    assert converted == result
    assert isinstance(converted, type(result))


@pytest.mark.parametrize(
    ("written", "size"),
    [
        (65536, 65536),
        ("65536", 65536),
        ("64k", 64_000),
        ("64 kB", 64_000),
        ("64KiB", 65_536),
        ("256 MiB", 256 * 1024**2),
        ("256MB", 256_000_000),
        ("1.5 GiB", 3 * 1024**3 // 2),
        ("1 tib", 1024**4),
        ("7 B", 7),
        (EnvText("1 MiB", "V"), 1024**2),
    ],
)
def test_sizes_may_have_units(written: object, size: int) -> None:
    assert checked({"size": written}, Everything).size == size


@pytest.mark.parametrize(
    ("key", "value", "found", "what"),
    [
        ("port", 0, "the number 0", "a port between 1 and 65535"),
        ("port", 65536, "the number 65536", "a port between 1 and 65535"),
        ("port", 10**30, "the number 1000", "a port between 1 and 65535"),
        ("port", 1.5, "the number 1.5", "a port between 1 and 65535"),
        ("port", 1.0, "the number 1.0", "a port between 1 and 65535"),
        ("port", True, "the boolean true", "a port between 1 and 65535"),
        ("port", "1.5", "the text '1.5'", "a port between 1 and 65535"),
        ("port", "9" * 5000, "the text '999", "a port between 1 and 65535"),
        ("port", [1], "a list", "a port between 1 and 65535"),
        ("port", {"a": 1}, "a mapping", "a port between 1 and 65535"),
        ("seconds", 0, "the number 0", "a number of seconds above 0"),
        ("seconds", float("inf"), "the number inf", "a number of seconds above 0"),
        ("seconds", float("nan"), "the number nan", "a number of seconds above 0"),
        ("seconds", True, "the boolean true", "a number of seconds above 0"),
        ("seconds", "soon", "the text 'soon'", "a number of seconds above 0"),
        ("size", 0, "the number 0", "a number of bytes above 0"),
        ("size", "many", "the text 'many'", "a number of bytes above 0"),
        ("size", "5 iB", "the text '5 iB'", "a number of bytes above 0"),
        ("size", -1, "the number -1", "a number of bytes above 0"),
        ("share", 1.1, "the number 1.1", "a number between 0 and 1"),
        ("flag", 1, "the number 1", "true or false"),
        ("flag", "perhaps", "the text 'perhaps'", "true or false"),
        ("text", True, "the boolean true", "text; text that looks like something else"),
        ("text", 1.10, "the number 1.1", "needs quotes"),
        ("kind", "smoke", "the text 'smoke'", "one of native, websocket"),
        ("level", 5, "the number 5", "one of low, high"),
        ("names", 5.5, "the number 5.5", "text or a list of text"),
        ("maybe", "x", "the text 'x'", "a whole number"),
        ("tls", 5, "the number 5", "a section with any of the keys ca, verify"),
        ("peers", {}, "a mapping", "a list of a section with any of the keys ca, verify"),
        ("by_name", [], "a list", "a mapping"),
        ("few", [1, 2, 3], "a list", "a list of a whole number"),
        ("limit", 9, "the number 9", "a whole number of at least 3 and below 9"),
    ],
)
def test_a_wrong_value_is_told_with_what_is_allowed(
    key: str, value: object, found: str, what: str
) -> None:
    [error] = complaints({key: value}, Everything)
    assert error.startswith(f"section.{key}: is {found}")
    assert what in error


def test_a_long_value_is_cut_short_in_the_message() -> None:
    [error] = complaints({"kind": "x" * 10_000}, Everything)
    assert len(error) < 300


def test_errors_deep_inside_name_their_place() -> None:
    value = {"tls": {"verify": 7}, "peers": [{"ca": "x"}, {"ca": ""}], "by_name": {"a": {"b": 1}}}
    keys = [error.partition(":")[0] for error in complaints(value, Everything)]
    assert sorted(keys) == [
        "section.by_name.a.b",
        "section.by_name.a.ca",
        "section.peers[1].ca",
        "section.tls.ca",
        "section.tls.verify",
    ]


def test_a_member_of_a_union_that_has_the_values_shape_names_the_very_place() -> None:
    [error] = complaints({"names": ["a", True]}, Everything)
    assert error.startswith("section.names[1]: ")


def test_an_unknown_key_names_the_nearest_known_one() -> None:
    [error] = complaints({"pubb": 1}, ZmqConfig)
    assert error.startswith("section.pubb: is not a known key")
    assert error.endswith("one of host, manage, pub, sub, password, topics; did you mean pub?")


def test_a_dash_for_an_underscore_is_near_enough() -> None:
    [error] = complaints({"console-verbosity": "x"}, config.LoggingConfig)
    assert "did you mean console_verbosity?" in error


def test_an_unknown_key_like_no_other_names_none() -> None:
    [error] = complaints({"zzzzzz": 1}, ZmqConfig)
    assert "did you mean" not in error


@pytest.mark.parametrize("key", [5, None, True, 1.5])
def test_a_key_that_is_no_text_is_an_unknown_key(key: object) -> None:
    [error] = complaints({key: 1}, ZmqConfig)
    assert error.startswith(f"section.{key}: is not a known key")


def test_a_missing_key_says_what_belongs_there() -> None:
    [error] = complaints({}, RabbitConfig)
    assert error == "section.host: is missing, but it must be a host name or an address"


def test_a_key_in_two_cases_is_ambiguous() -> None:
    [error] = complaints({"pub": 1, "PUB": 2}, ZmqConfig)
    assert error == "section.pub: is there twice, also as PUB, but it must be there once"


def test_unknown_keys_of_variables_go_to_the_warnings() -> None:
    warnings: list[str] = []
    value = {"pubb": EnvText("1", "THREATBUS_X__PUBB")}
    result, errors = check_section(value, ZmqConfig, "x", warnings)
    assert (result, errors) == (ZmqConfig(), [])
    assert warnings == [
        "THREATBUS_X__PUBB: x.pubb is not a known key, the variable has no effect; "
        "did you mean x.pub?"
    ]


class Renamed(msgspec.Struct, rename="kebab", kw_only=True):
    first_key: int


def test_the_key_is_the_name_that_the_schema_gives_it() -> None:
    assert checked({"first-key": 1}, Renamed) == Renamed(first_key=1)


class Agreeing(msgspec.Struct, kw_only=True):
    low: int = 0
    high: int = 9

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("low is above high")
        if self.high == 99:
            raise ConfigError("section.high", "the number 99", "anything else")


def test_a_schema_may_compare_its_settings() -> None:
    [error] = complaints({"low": 10}, Agreeing)
    assert error.startswith("section: is contradictory (low is above high)")


def test_a_schema_may_name_the_setting_itself() -> None:
    assert complaints({"high": 99}, Agreeing) == [
        "section.high: is the number 99, but it must be anything else"
    ]


# Secrets


class Secrets(msgspec.Struct, kw_only=True):
    password: Port = 1
    api_key: Port = 1
    key: Port = 1
    secret_key: Port = 1
    auth_token: Port = 1
    credentials: dict[str, Port] = {}


@pytest.mark.parametrize("name", ["password", "api_key", "key", "secret_key", "auth_token"])
@pytest.mark.parametrize("value", ["hunter2", EnvText("hunter2", "THREATBUS_X")])
def test_the_value_of_a_secret_is_never_shown(name: str, value: str) -> None:
    [error] = complaints({name: value}, Secrets)
    assert error.startswith(f"section.{name}: is a text that is not shown")
    assert "hunter2" not in error


def test_what_lies_below_a_secret_is_secret_too() -> None:
    [error] = complaints({"credentials": {"alice": "hunter2"}}, Secrets)
    assert "hunter2" not in error


def test_a_number_as_secret_is_not_shown() -> None:
    [error] = complaints({"password": 424242}, Secrets)
    assert "424242" not in error


def test_the_password_in_an_address_is_not_shown() -> None:
    [error] = complaints({"port": "amqp://user:hunter2@host/"}, Everything)
    assert "amqp://***@host/" in error
    assert "hunter2" not in error


def test_neither_what_was_read_nor_what_was_checked_prints_a_secret() -> None:
    text = "plugins: {backbones: {inmem: }, apps: {zmq: {password: hunter2}}}\n"
    Path("config.yaml").write_text(text)
    source = load(environ={"THREATBUS_SERVICE_TOKEN": "hunter2"})
    assert "hunter2" not in repr(source) + repr(read(source, APPS, BACKBONES))


@pytest.mark.parametrize("name", ["host", "keyboard", "monkey", "compass", "key_file"])
def test_names_that_only_resemble_secrets_are_none(name: str) -> None:
    assert not config.is_secret(f"plugins.apps.x.{name}")


# The whole


def test_the_core_has_defaults_for_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", "/state")
    core = from_yaml(MINIMAL).core
    assert core.logging == config.LoggingConfig()
    assert core.queues.outq_messages == 1_000_000
    assert core.queues.outq_bytes == 256 * 1024**2
    assert core.queues.inq_messages == 100_000
    assert core.queues.overflow == "disconnect"
    assert (core.snapshot_timeout, core.drain_timeout) == (300, 10)
    assert core.rejected.bytes == 16 * 1024**2
    assert core.state_directory == "/state"


def test_the_state_directory_is_systemds_first_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/threatbus:/other")
    assert config.default_state_directory() == "/var/lib/threatbus"


def test_the_state_directory_is_else_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", "/xdg")
    assert config.default_state_directory() == "/xdg/threatbus"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/alice")
    assert config.default_state_directory() == "/home/alice/.local/state/threatbus"


def test_a_user_without_a_home_still_has_a_state_directory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def homeless() -> Path:
        raise RuntimeError

    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert config.default_state_directory() == "/var/lib/threatbus"


def test_every_error_is_told_at_once() -> None:
    text = """
logging: {console_verbosity: loud, consol: true}
snapshot_timeout: -1
plugin: {}
plugins:
  backbones:
    inmem:
    rabbitmq: {port: x}
  apps:
    zmq: {pub: 0, pubb: 1}
    misp:
"""
    keys = [error.partition(":")[0] for error in errors_of(text)]
    assert sorted(keys) == [
        "logging.consol",
        "logging.console_verbosity",
        "plugin",
        "plugins.apps.misp",
        "plugins.apps.zmq.pub",
        "plugins.apps.zmq.pubb",
        "plugins.backbones.rabbitmq.host",
        "plugins.backbones.rabbitmq.port",
        "snapshot_timeout",
    ]


def test_a_plugin_that_is_not_installed_says_how_to_get_it() -> None:
    [error] = errors_of("plugins: {backbones: {inmem: }, apps: {zek: {port: 1}}}\n")
    assert error == (
        "plugins.apps.zek: is a plugin that is not installed, but it must be one of the "
        "installed ones (zeek, zmq); try `pip install threatbus-zek`; "
        "did you mean plugins.apps.zeek?"
    )


def test_a_backbone_among_the_apps_is_sent_to_its_place() -> None:
    error = errors_of("plugins: {backbones: {inmem: }, apps: {rabbitmq: {}}}\n")[0]
    assert "did you mean plugins.backbones.rabbitmq?" in error
    assert "pip install" not in error


@pytest.mark.parametrize("text", ["plugins: {apps: {zmq: }}\n", "plugins: \n", "{}\n", ""])
def test_a_backbone_is_needed_and_the_error_names_one(text: str) -> None:
    [error] = errors_of(text)
    assert error.startswith("plugins.backbones: is missing, but it must be at least one backbone")
    assert "`inmem:`" in error


def test_without_any_file_the_error_says_that_there_is_none() -> None:
    with pytest.raises(InvalidConfig, match=r"no config\.yaml or config\.yml"):
        from_environment({})


def test_no_app_is_a_warning() -> None:
    [warning] = from_yaml("plugins: {backbones: {inmem: }}\n").warnings
    assert warning.startswith("plugins.apps: no app plugin is configured")


@pytest.mark.parametrize("group", ["apps", "backbones"])
@pytest.mark.parametrize("text", ["[]", "5", "zmq"])
def test_a_group_that_is_no_mapping_is_one_error(group: str, text: str) -> None:
    other = "apps: {zmq: }" if group == "backbones" else "backbones: {inmem: }"
    [error] = errors_of(f"plugins: {{{other}, {group}: {text}}}\n")
    assert error.startswith(f"plugins.{group}: is ")


@pytest.mark.parametrize("name", ["zmq", "zeek"])
def test_a_section_that_is_no_mapping_is_one_error(name: str) -> None:
    [error] = errors_of(f"plugins: {{backbones: {{inmem: }}, apps: {{{name}: false}}}}\n")
    assert error.startswith(f"plugins.apps.{name}: is the boolean false")


def test_a_null_section_stays_configured_for_old_and_new_plugins() -> None:
    result = from_yaml("plugins: {backbones: {inmem: }, apps: {zmq: , zeek: }}\n")
    assert result.apps == {"zmq": ZmqConfig(), "zeek": None}
    assert result.plain_apps["zeek"] == {}
    assert result.backbones == {"inmem": None}


def test_the_name_of_a_section_is_the_installed_one() -> None:
    result = from_yaml("plugins: {backbones: {INMEM: }, apps: {ZMQ: }}\n")
    assert list(result.apps) == ["zmq"]
    assert list(result.plain_backbones) == ["inmem"]


def test_a_plugin_in_two_cases_is_ambiguous() -> None:
    [error] = errors_of("plugins: {backbones: {inmem: }, apps: {zmq: , ZMQ: }}\n")
    assert error.startswith("plugins.apps.ZMQ: is there twice, also as zmq")


def test_a_name_with_capitals_is_found_from_a_variable() -> None:
    apps = named(Plugin("MyApp"))
    environ = {
        "THREATBUS_PLUGINS__APPS__MYAPP__KEY": "1",
        "THREATBUS_PLUGINS__BACKBONES__INMEM": "",
    }
    assert from_environment(environ, apps=apps).plain_apps["MyApp"] == {"key": 1}


# What plugins are handed


def test_new_plugins_are_handed_the_checked_values_with_defaults() -> None:
    text = "plugins: {backbones: {rabbitmq: {host: h, port: '5'}}, apps: {zmq: }}\n"
    plain = from_yaml(text).plain_backbones
    assert plain["rabbitmq"]["port"] == 5
    assert plain.rabbitmq.queue.max_items == 0  # type: ignore[attr-defined]
    assert plain.get("inmem") is None


def test_old_plugins_find_items_and_attributes_in_any_case() -> None:
    text = "plugins: {backbones: {inmem: }, apps: {zeek: {host: h, Sub: {x: [1, {y: 2}]}}}}\n"
    plain: Any = from_yaml(text).plain_apps
    assert plain["zeek"]["host"] == plain.zeek.host == plain.get("zeek").get("host") == "h"
    assert plain.zeek.HOST == "h"
    assert list(plain["zeek"]) == ["host", "Sub"]
    assert plain.zeek.sub.x[1]["y"] == 2
    assert "zeek" in plain
    with pytest.raises(AttributeError):
        _ = plain.zeek.missing


def test_an_unknown_attribute_of_a_section_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        _ = from_yaml(MINIMAL).plain_apps.nothing  # type: ignore[attr-defined]


# Old plugins' validators


def zeek_with(*validators: Any) -> dict[str, Plugin]:
    return named(Plugin("zeek", None, list(validators)))


ZEEK = "plugins: {backbones: {inmem: }, apps: {zeek: {port: 47761, secret_key: hunter2}}}\n"


def test_a_default_of_an_old_validator_reaches_the_plugin() -> None:
    apps = zeek_with(Validator("plugins.apps.zeek.host", default="127.0.0.1"))
    text = "plugins: {backbones: {inmem: }, apps: {zeek: }}\n"
    assert from_yaml(text, apps=apps).plain_apps == {"zeek": {"host": "127.0.0.1"}}


def test_a_default_does_not_switch_on_another_plugin() -> None:
    apps = zeek_with(Validator("plugins.apps.zmq.port", default=1)) | named(APPS["zmq"])
    result = from_yaml(ZEEK, apps=apps)
    assert list(result.apps) == list(result.plain_apps) == ["zeek"]


def test_validators_of_a_plugin_that_is_not_configured_do_not_run() -> None:
    apps = zeek_with(Validator("plugins.apps.zeek.port", must_exist=True))
    result = from_yaml(MINIMAL, apps=apps | named(APPS["zmq"]))
    assert list(result.apps) == ["zmq"]


def test_every_failing_validator_is_an_error_with_its_key() -> None:
    apps = zeek_with(
        Validator("plugins.apps.zeek.port", is_type_of=int, lt=1024),
        Validator("plugins.apps.zeek.host", must_exist=True),
    )
    first, second = errors_of(ZEEK, apps=apps)
    assert first.startswith("plugins.apps.zeek.port: is the number 47761, but it must be what")
    assert "must lt 1024" in first
    assert second.startswith("plugins.apps.zeek.host: is missing")


def test_a_validators_message_does_not_show_a_secret() -> None:
    apps = zeek_with(Validator("plugins.apps.zeek.secret_key", is_type_of=int))
    [error] = errors_of(ZEEK, apps=apps)
    assert error.startswith("plugins.apps.zeek.secret_key: is a text that is not shown")
    assert "hunter2" not in error


def test_a_condition_that_raises_is_an_error_of_its_key() -> None:
    def condition(value: int) -> bool:
        raise KeyError("x")

    apps = zeek_with(Validator("plugins.apps.zeek.port", condition=condition))
    [error] = errors_of(ZEEK, apps=apps)
    assert error.startswith("plugins.apps.zeek.port: ")


def test_combined_validators_name_the_keys_of_both() -> None:
    apps = zeek_with(
        Validator("plugins.apps.zeek.port", eq=1)
        | Validator("plugins.apps.zeek.host", must_exist=True)
    )
    [error] = errors_of(ZEEK, apps=apps)
    assert error.startswith("plugins.apps.zeek.port, plugins.apps.zeek.host: ")


def test_a_validator_sees_the_whole_configuration() -> None:
    apps = zeek_with(
        Validator("plugins.apps.zeek.tls", must_exist=True, when=Validator("logging.file", eq=True))
    )
    assert from_yaml(ZEEK, apps=apps)
    [error] = errors_of("logging: {file: true}\n" + ZEEK, apps=apps)
    assert error.startswith("plugins.apps.zeek.tls: is missing")


@pytest.mark.parametrize("variable", ["SETTINGS_FILE", "PRELOAD", "INCLUDES", "SECRETS"])
@pytest.mark.parametrize("file", ["other.yaml", "run.py"])
def test_validators_read_no_file_that_a_variable_names(
    variable: str, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("other.yaml").write_text("plugins: {apps: {zeek: {host: h}}}\n")
    Path("run.py").write_text("open('ran', 'w')\n")
    monkeypatch.setenv(f"{variable}_FOR_DYNACONF", file)
    apps = zeek_with(Validator("plugins.apps.zeek.host", must_exist=False))
    assert from_yaml(ZEEK, apps=apps).plain_apps["zeek"]["port"] == 47761
    assert not Path("ran").exists()


def test_validators_see_no_variable_but_the_buses_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYNACONF_FOO", "1")
    monkeypatch.setenv("FOO", "1")
    apps = zeek_with(Validator("foo", must_exist=False))
    assert from_yaml(ZEEK, apps=apps)


# Dynaconf objects that others built


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


# Cost


def test_a_configuration_of_new_plugins_never_imports_dynaconf() -> None:
    program = """
import sys
from types import SimpleNamespace
from threatbus.config import CoreConfig, LoggingConfig, load, read
plugin = SimpleNamespace(name="p", schema=LoggingConfig, validators=[])
read(load(environ={}), {"p": plugin}, {"p": plugin})
sys.exit("dynaconf" in sys.modules)
"""
    Path("config.yaml").write_text("plugins: {apps: {p: }, backbones: {p: }}\n")
    root = Path(config.__file__).parent.parent
    environ = {**os.environ, "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", program], check=True, env=environ)


def test_the_core_schema_is_its_own_documentation() -> None:
    schema = msgspec.json.schema(CoreConfig)
    assert "a number of seconds above 0" in str(schema)
