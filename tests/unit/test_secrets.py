"""Secrets: from files, and never shown."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import msgspec
import pytest
import zmq
from helpers.buses import Buses
from helpers.waiting import eventually

from testbed.ports import Doors, free_port
from threatbus import config
from threatbus.cli import main
from threatbus.config import Secret, SecretSettings, check_section
from threatbus.config.annotations import is_marked
from threatbus.errors import ConfigError
from threatbus.hookspecs import APP_GROUP, BACKBONE_GROUP
from threatbus.plugins import InstalledPlugin, installed

MARKER = "hunter2-this-must-not-be-seen"


class Login(msgspec.Struct, frozen=True, kw_only=True):
    user: str = "me"
    password: Secret = "guest"
    library: SecretSettings = {}


def check(**section: Any) -> tuple[Login | None, list[ConfigError], list[str]]:
    warnings: list[str] = []
    login, errors = check_section(section, Login, "login", warnings)
    return login, errors, warnings


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text(MARKER + "\n")
    path.chmod(0o600)
    return path


# From files.


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_secret_is_what_is_in_the_file_without_the_end_of_the_line(
    secret: Path, end: str
) -> None:
    secret.write_bytes(f" {MARKER} ".encode() + end.encode())
    login, errors, warnings = check(password_file=str(secret))
    assert errors == []
    assert warnings == []
    assert login == Login(password=f" {MARKER} ")


def test_only_secrets_come_from_files(secret: Path) -> None:
    _, errors, _ = check(user_file=str(secret))
    assert [error.key for error in errors] == ["login.user_file"]


def test_an_empty_name_of_a_file_is_none_at_all() -> None:
    assert check(password_file=None)[0] == Login()
    assert check(password_file=None, password="x")[0] == Login(password="x")


def test_a_secret_and_its_file_at_once_are_an_error(secret: Path) -> None:
    _, (error,), _ = check(password=MARKER, password_file=str(secret))
    assert error.key == "login.password"
    assert "also as password_file" in str(error)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "not there"),
        (b"\n", "empty"),
        (b"\xff\xfe", "not UTF-8"),
        (b"x" * 100_000, "too large"),
    ],
)
def test_a_file_without_a_secret_is_an_error_that_does_not_say_which_file(
    secret: Path, content: bytes | None, said: str
) -> None:
    # Somebody may have written the password itself where its file belongs.
    secret.unlink()
    if content is not None:
        secret.write_bytes(content)
    _, (error,), _ = check(password_file=str(secret))
    assert error.key == "login.password_file"
    assert said in str(error)
    assert str(secret) not in str(error)


def test_a_file_that_everybody_can_read_is_a_warning(secret: Path) -> None:
    secret.chmod(0o644)
    login, errors, (warning,) = check(password_file=str(secret))
    assert login is not None
    assert errors == []
    assert warning.startswith("login.password_file: every user")


def test_the_passwords_among_a_librarys_settings_come_from_files_too(secret: Path) -> None:
    settings = {"sasl.password_file": str(secret), "client.id": "x", "log_file": "/dev/null"}
    login, errors, _ = check(library=settings)
    assert errors == []
    assert login is not None
    assert login.library == {"sasl.password": MARKER, "client.id": "x", "log_file": "/dev/null"}


def test_a_variable_names_the_file_as_well(tmp_path: Path, secret: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("plugins: {backbones: {rabbitmq: }}")
    environ = {"THREATBUS_PLUGINS__BACKBONES__RABBITMQ__PASSWORD_FILE": str(secret)}
    checked = config.read(config.load(file, environ=environ), {}, installed(BACKBONE_GROUP))
    assert msgspec.to_builtins(checked.backbones["rabbitmq"])["password"] == MARKER


# Never shown.


def secrets_of(schema: type[msgspec.Struct], path: str) -> Iterator[str]:
    """Where the secrets of a section and those inside it stand."""
    for each in msgspec.structs.fields(schema):
        where = f"{path}.{each.encode_name}"
        if is_marked(each.type, "secret"):
            yield where
        for kind in (each.type, *(() if get_origin(each.type) is dict else get_args(each.type))):
            if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
                yield from secrets_of(kind, where)


def all_plugins() -> Iterator[tuple[str, InstalledPlugin]]:
    for group, entry_points in (("apps", APP_GROUP), ("backbones", BACKBONE_GROUP)):
        for name, plugin in installed(entry_points).items():
            yield f"plugins.{group}.{name}", plugin


def every_secret() -> list[str]:
    return [
        path
        for section, plugin in all_plugins()
        if plugin.schema is not None
        for path in secrets_of(plugin.schema, section)
    ]


def nested(path: str, value: object) -> dict[str, Any]:
    head, _, rest = path.partition(".")
    return {head: nested(rest, value) if rest else value}


def test_every_secret_that_a_name_gives_away_is_marked_as_one() -> None:
    """What is called a password has to be hidden, and has to have its file."""
    assert {
        "plugins.apps.misp.api.key",
        "plugins.apps.misp.zmq.password",
        "plugins.apps.web.token",
        "plugins.apps.zmq.curve.secret_key",
        "plugins.backbones.rabbitmq.password",
    } <= set(every_secret())


@pytest.mark.parametrize("path", every_secret())
@pytest.mark.parametrize("wrong", [[MARKER], {"a": MARKER}, MARKER, 86531.25])
def test_no_error_about_a_secret_shows_it(
    path: str, wrong: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    for key in (path, f"{path}_file"):
        tree = nested(key, wrong)
        tree["plugins"].setdefault("backbones", {"inmem": None})
        file.write_bytes(msgspec.yaml.encode(tree))
        main(["check", "-c", str(file)])
        main(["plugins", "-c", str(file)])
    said = capsys.readouterr()
    for shown in (MARKER, "86531.25"):
        assert shown not in said.out + said.err
    assert said.err


@pytest.fixture
def everything(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """A bus with every plugin that holds a secret, each of which is the marker."""
    (tmp_path / "clients").mkdir()
    login = f"user:{MARKER}@"
    return {
        "apps": {
            "misp": {
                "api": {"host": f"http://{login}127.0.0.1:1", "key": MARKER},
                "zmq": {"host": "127.0.0.1", "port": 1, "username": "u", "password": MARKER},
            },
            "zeek": {"broker": False, "websockets": [f"ws://{login}127.0.0.1:1/?x={MARKER}"]},
            "web": {"port": free_port(), "token": MARKER},
            "zmq": {
                **Doors.free().section,
                "curve": {
                    "secret_key": zmq.curve_keypair()[1].decode(),
                    "clients": str(tmp_path / "clients"),
                },
            },
        },
        "backbones": {
            "inmem": None,
            "rabbitmq": {"host": "127.0.0.1", "port": 1, "password": MARKER},
        },
    }


def test_nothing_that_a_bus_logs_or_says_of_itself_shows_a_secret(
    start_bus: Buses,
    everything: dict[str, dict[str, Any]],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with caplog.at_level(logging.DEBUG):
        bus = start_bus(**everything, drain_timeout=0.1)
        shown = ("only clients with authorised keys", "RabbitMQ", "connection to Zeek", "MISP at")
        eventually(lambda: all(part in caplog.text for part in shown))
        said = [repr(bus.status()), repr(bus.stats()), repr(bus.checked), repr(bus)]
        start_bus.close()
    out, err = capfd.readouterr()
    for secret in (MARKER, everything["apps"]["zmq"]["curve"]["secret_key"]):
        for text in (caplog.text, out, err, *said):
            assert secret not in text


def test_what_the_commands_print_of_a_whole_configuration_shows_no_secret(
    everything: dict[str, dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes(msgspec.yaml.encode({"plugins": everything}))
    assert main(["check", "-c", str(file)]) == 0
    assert main(["plugins", "-c", str(file)]) == 0
    assert main(["doctor", "-c", str(file)]) == 1
    everything["apps"]["zeek"]["websockets"] = [f"http://u:{MARKER}@127.0.0.1:1"]
    file.write_bytes(msgspec.yaml.encode({"plugins": everything}))
    assert main(["check", "-c", str(file)]) == 2
    said = capsys.readouterr()
    assert "127.0.0.1:1" in said.err
    assert MARKER not in said.out + said.err
