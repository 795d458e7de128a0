"""A section against its schema: conversions, errors, and what is never shown."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest

from threatbus import config
from threatbus.config import (
    ByteSize,
    EnvText,
    Port,
    PositiveInt,
    Ratio,
    Seconds,
    Text,
    check_section,
    load,
    read,
    rule,
)
from threatbus.errors import ConfigError, InvalidConfig
from unit.configs import APPS, BACKBONES, RabbitConfig, ZmqConfig

pytestmark = pytest.mark.usefixtures("empty_surroundings")


def checked(value: object, schema: type[msgspec.Struct]) -> Any:
    result, errors = check_section(value, schema, "section")
    assert errors == []
    return result


def complaints(value: object, schema: type[msgspec.Struct], path: str = "section") -> list[str]:
    result, errors = check_section(value, schema, path)
    assert result is None
    assert errors
    return [str(error) for error in errors]


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


# Rules: what must hold between settings


class Lock(msgspec.Struct, frozen=True, kw_only=True):
    key: config.Secret = ""
    keyring: str = ""

    @rule
    def keyring_needs_a_key(self) -> None:
        if self.keyring and not self.key:
            raise ConfigError("key", None, "there too")


class Door(msgspec.Struct, frozen=True, kw_only=True):
    low: int = 0
    high: int = 9
    locks: dict[str, Lock] = {}
    lock: Lock = Lock()

    @property
    def is_open(self) -> bool:
        return not self.lock.key

    @rule
    def is_locked_when_low(self) -> None:
        if self.low < 0 and self.is_open:
            raise ConfigError("low", str(self.low), "0 or more without lock.key")

    @rule
    def low_is_not_above_high(self) -> None:
        if self.low > self.high:
            raise ValueError("low is above high")

    @rule
    def is_not_99(self) -> None:
        numbers = {"low": self.low, "high": self.high}
        errors = [ConfigError(key, "99", "no 99") for key, n in numbers.items() if n == 99]
        if errors:
            raise InvalidConfig(errors)


def keys_of(value: object) -> list[str]:
    return sorted(error.partition(":")[0] for error in complaints(value, Door))


def test_a_rule_may_compare_settings() -> None:
    [error] = complaints({"low": 10}, Door)
    assert error.startswith("section: is contradictory (low is above high)")


def test_a_rule_names_its_setting_by_the_place_of_its_section() -> None:
    assert complaints({"low": -1}, Door) == [
        "section.low: is -1, but it must be 0 or more without lock.key"
    ]
    assert keys_of({"locks": {"a": {"keyring": "x"}}}) == ["section.locks.a.key"]


def test_a_rule_may_name_several_settings() -> None:
    assert keys_of({"low": 99, "high": 99}) == ["section.high", "section.low"]


def test_every_rule_is_tried_although_another_one_is_broken() -> None:
    broken = {"low": -1, "high": 99, "lock": {"keyring": "x"}}
    assert keys_of(broken) == ["section.high", "section.lock.key", "section.low"]


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"hihg": 1}, "section.hihg"),
        ({"high": "x"}, "section.high"),
        ({"high": 1, "HIGH": 1}, "section.high"),
        ({"lock": {"kee": 1}}, "section.lock.kee"),
        ({"lock": {"keyring": 5.5}}, "section.lock.keyring"),
        ({"locks": {"a": {"kee": 1}}}, "section.locks.a.kee"),
    ],
)
def test_a_rule_is_tried_although_something_else_is_wrong(wrong: dict[str, Any], key: str) -> None:
    assert keys_of({"low": -1, **wrong}) == sorted([key, "section.low"])


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"lock": {"key": 5.5}}, "section.lock.key"),
        ({"lock": {"key": ["x"]}}, "section.lock.key"),
        ({"lock": {"key_file": "/nowhere"}}, "section.lock.key_file"),
        ({"lock": {"key": "x", "KEY": "x"}}, "section.lock.key"),
        ({"lock": {"key_file": "/nowhere", "keyring": "x"}}, "section.lock.key_file"),
        ({"lock": 5}, "section.lock"),
        ({"low": None, "LOW": -1}, "section.low"),
    ],
)
def test_a_rule_says_nothing_of_a_setting_that_is_itself_wrong(
    wrong: dict[str, Any], key: str
) -> None:
    assert keys_of({"low": -1, **wrong} if "low" not in wrong else wrong) == [key]


def test_a_bug_in_a_rule_is_no_error_of_the_configuration() -> None:
    class Buggy(msgspec.Struct):
        port: Port = 1

        @rule
        def reads_what_is_not_there(self) -> None:
            _ = self.prot  # type: ignore[attr-defined]

    with pytest.raises(AttributeError, match="prot"):
        check_section({"port": 0}, Buggy, "section")


class Built(msgspec.Struct, kw_only=True):
    high: int = 9

    def __post_init__(self) -> None:
        if self.high == 99:
            raise ValueError("99 is too high")


def test_what_a_schema_says_when_it_is_built_is_an_error_of_the_section() -> None:
    errors = complaints({"high": 99, "low": 1}, Built)
    assert [error.partition(":")[0] for error in errors] == ["section.low", "section"]
    assert "contradictory (99 is too high)" in errors[1]


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
