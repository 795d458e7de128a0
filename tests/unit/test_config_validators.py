"""Old plugins, which have Dynaconf validators in place of a schema."""

from __future__ import annotations

from pathlib import Path

import pytest
from dynaconf import Validator

from unit.configs import APPS, MINIMAL, ZEEK, errors_of, from_yaml, named, zeek_with

pytestmark = pytest.mark.usefixtures("empty_surroundings")


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
