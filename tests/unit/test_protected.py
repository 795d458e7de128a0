"""Protected mode: an endpoint that asks for no key is for this machine alone."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from threatbus import config, protected
from threatbus.cli import main
from threatbus.errors import InvalidConfig
from threatbus.hookspecs import APP_GROUP, BACKBONE_GROUP
from threatbus.plugins import installed

PUBLIC = ["0.0.0.0", "*", "::", "[::]", "::%lo", "192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1"]
LOOPBACK = ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "::ffff:127.0.0.1", "localhost", "lo"]

#: What closes each plugin's endpoint to strangers; certificates are looked for.
CLOSED: dict[str, dict[str, Any]] = {
    "zmq": {"curve": {"secret_key": "k" * 40, "clients": "DIRECTORY"}},
    "zeek": {"tls": {"ca": "FILE", "cert": "FILE", "key": "FILE"}},
}


def read(app: str, **section: Any) -> list[str]:
    """The errors of a configuration with this section."""
    plugins = {"apps": {app: section}, "backbones": {"inmem": None}}
    try:
        config.read({"plugins": plugins}, installed(APP_GROUP), installed(BACKBONE_GROUP))
    except InvalidConfig as error:
        return [str(each) for each in error.errors]
    return []


@pytest.mark.parametrize("host", LOOPBACK)
def test_what_only_this_machine_can_reach_is_a_loopback_address(host: str) -> None:
    assert protected.is_loopback(host)


@pytest.mark.parametrize("host", [*PUBLIC, "", "host.invalid", "eth99", "1", "a" * 300, "é" * 80])
def test_what_others_can_reach_or_what_cannot_be_told_is_none(host: str) -> None:
    assert not protected.is_loopback(host)


def test_a_name_with_one_public_address_is_public(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(2, 1, 6, "", (address, 0)) for address in ("127.0.0.1", "192.0.2.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    assert not protected.is_loopback("both.example")


@pytest.mark.parametrize("host", PUBLIC)
@pytest.mark.parametrize("app", CLOSED)
def test_an_open_endpoint_on_a_public_address_is_an_error_that_names_the_way_out(
    app: str, host: str
) -> None:
    (error,) = read(app, host=host)
    assert error.startswith(f"plugins.apps.{app}.host: is '{host}'")
    assert f"plugins.apps.{app}.allow_insecure: true" in error


@pytest.mark.parametrize("app", CLOSED)
def test_a_name_that_nobody_knows_is_not_said_to_be_open(app: str) -> None:
    (error,) = read(app, host="host.invalid")
    assert error.startswith(
        f"plugins.apps.{app}.host: is 'host.invalid', which cannot be looked up"
    )


@pytest.mark.parametrize("app", CLOSED)
def test_who_says_so_gets_an_open_endpoint(app: str) -> None:
    assert read(app, host="0.0.0.0", allow_insecure=True) == []


@pytest.mark.parametrize("app", CLOSED)
def test_an_endpoint_that_asks_for_keys_may_be_public(app: str, tmp_path: Path) -> None:
    file = tmp_path / "file.pem"
    file.touch()
    paths = {"DIRECTORY": str(tmp_path), "FILE": str(file)}
    section = {
        name: {key: paths.get(value, value) for key, value in inner.items()}
        for name, inner in CLOSED[app].items()
    }
    assert read(app, host="0.0.0.0", **section) == []


@pytest.mark.parametrize("app", CLOSED)
def test_what_binds_nothing_or_to_this_machine_needs_no_key(app: str) -> None:
    assert read(app) == []


def test_tls_without_certificates_is_no_authentication() -> None:
    assert len(read("zeek", host="0.0.0.0", disable_ssl=False)) == 1


def test_a_zeek_plugin_that_does_not_listen_may_have_any_host() -> None:
    assert read("zeek", host="0.0.0.0", broker=False, websockets=["ws://127.0.0.1:1"]) == []


@pytest.mark.parametrize("app", CLOSED)
def test_an_open_endpoint_is_told_beside_whatever_else_is_wrong_with_its_section(app: str) -> None:
    errors = read(app, host="0.0.0.0", prot=1, grace=0, max_subscribers="many", Grace=1)
    assert sorted(error.partition(": ")[0] for error in errors) == [
        f"plugins.apps.{app}.{key}" for key in ("grace", "host", "max_subscribers", "prot")
    ]


@pytest.mark.parametrize("app", CLOSED)
@pytest.mark.parametrize("key", ["allow_insecure", "host"])
def test_whether_an_endpoint_is_open_is_left_open_where_its_keys_are_wrong(
    app: str, key: str
) -> None:
    errors = read(app, **{"host": "0.0.0.0", key: ["?"]})
    assert [error.partition(": ")[0] for error in errors] == [f"plugins.apps.{app}.{key}"]


def test_all_open_endpoints_are_told_at_once_with_everything_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        "logging: {consol: true}\n"
        "plugins:\n"
        "  backbones: {inmen: }\n"
        "  apps: {nozzle: , zmq: {host: 0.0.0.0, pubb: 1, sub: x},\n"
        "         zeek: {host: '*', tls: {cq: x}}}\n"
    )
    monkeypatch.setenv("THREATBUS_PLUGINS__APPS__ZEEK__ALLOW_INSECUR", "true")
    assert main(["check", "-c", str(file)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert sorted(line.split(": ")[1] for line in said) == [
        "logging.consol",
        "plugins.apps.nozzle",
        "plugins.apps.zeek.host",
        "plugins.apps.zeek.tls.cq",
        "plugins.apps.zmq.host",
        "plugins.apps.zmq.pubb",
        "plugins.apps.zmq.sub",
        "plugins.backbones.inmen",
        "warning",
    ]
    assert "did you mean plugins.apps.zeek.allow_insecure?" in said[-1]
