"""The plugin host: finding, loading, naming what is wrong, keeping failures apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.buses import TestPlugins
from helpers.waiting import eventually

import threatbus
from threatbus import plugins as host
from threatbus.errors import ConfigError, InvalidConfig, PluginError
from threatbus.hookspecs import APP_GROUP, BACKBONE_GROUP
from threatbus.plugins import Plugin


class App:
    @threatbus.app
    def run(self, inq: object) -> None:
        if isinstance(inq, BaseException):
            raise inq

    @threatbus.app
    def drain(self) -> int:
        return 3

    @threatbus.app
    def stop(self) -> None:
        raise RuntimeError("cannot stop")


def test_a_plugin_is_found_by_its_entry_point_and_loaded_when_asked_for(
    plugins: TestPlugins,
) -> None:
    plugins.app("mine", App)
    found = host.installed(APP_GROUP)["mine"]
    assert found.distribution == "threatbus-test-plugins 1.0"
    assert "mine" not in host.installed(BACKBONE_GROUP)
    assert found.loaded.hooks == ["drain", "run", "stop"]
    assert found.loaded is found.loaded
    assert host.installed(APP_GROUP)["mine"].loaded is not found.loaded


def test_a_class_is_instantiated_anew_for_each_load(plugins: TestPlugins) -> None:
    made: list[object] = []

    class Counting(App):
        def __init__(self) -> None:
            made.append(self)

    plugins.app("mine", Counting)
    for _ in range(2):
        assert host.installed(APP_GROUP)["mine"].loaded
    assert len(made) == 2
    assert made[0] is not made[1]


def test_a_module_full_of_hook_functions_is_a_plugin(plugins: TestPlugins) -> None:
    module = plugins.module(
        "import threatbus\n@threatbus.app\ndef stop():\n    return None\ndef helper():\n    pass\n"
    )
    plugins.app("old", module)
    assert host.installed(APP_GROUP)["old"].loaded.hooks == ["stop"]


def test_of_two_distributions_with_a_plugin_of_one_name_neither_is_taken_by_chance(
    plugins: TestPlugins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugins.app("mine", App)
    info = tmp_path / "other_plugins-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-plugins\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text("[threatbus.app]\nmine = other.plugin\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = host.installed(APP_GROUP)["mine"]
    assert found.distribution == "other-plugins 2.0 and threatbus-test-plugins 1.0"
    with pytest.raises(PluginError, match=r"plugin mine is there twice, from other-plugins 2\.0"):
        _ = found.loaded


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import no_such_module_at_all", "ModuleNotFoundError: No module named 'no_such"),
        ("1 / 0", "ZeroDivisionError"),
        ("import sys\nsys.exit(3)", "SystemExit: 3"),
        ("def run(:", "SyntaxError"),
        ("def run(config, logging, inq): pass", "implements no hook: mark its functions with"),
    ],
)
def test_a_plugin_that_cannot_be_loaded_says_who_and_why(
    plugins: TestPlugins, source: str, expected: str
) -> None:
    plugins.app("broken", plugins.module(source))
    with pytest.raises(PluginError, match="plugin broken") as caught:
        _ = host.installed(APP_GROUP)["broken"].loaded
    assert expected in str(caught.value)


@pytest.mark.parametrize("error", [RuntimeError("no schema today"), SystemExit(3)])
@pytest.mark.parametrize("hook", ["config_schema", "config_validators"])
def test_a_plugin_that_cannot_say_what_its_section_is_says_who_and_why(
    plugins: TestPlugins, hook: str, error: BaseException
) -> None:
    def fails(self: object) -> None:
        raise error

    plugins.app("broken", type("Broken", (), {hook: threatbus.app(fails)}))
    found = host.installed(APP_GROUP)["broken"]
    with pytest.raises(PluginError) as caught:
        _ = (found.schema, found.validators)
    assert str(caught.value) == (
        f"plugin broken (threatbus-test-plugins 1.0) fails in {hook}(): "
        f"{type(error).__name__}: {error}"
    )


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("snapshots", "did you mean snapshot()?"),
        ("stop_intakes", "did you mean stop_intake()?"),
        ("config_validator", "did you mean config_validators()?"),
        ("start", "its hooks are"),
        ("xyz", "its hooks are config_schema, config_validators, run"),
    ],
)
def test_a_hook_name_with_a_typo_is_told_with_the_name_that_was_meant(name: str, hint: str) -> None:
    implementation = type("Typo", (), {name: threatbus.app(lambda self: None)})()
    with pytest.raises(PluginError) as caught:
        Plugin("snapshots-of-runs", APP_GROUP, implementation)
    assert f"plugin snapshots-of-runs: {name}() is no hook of threatbus.app; " in str(caught.value)
    assert hint in str(caught.value)


def test_a_hook_with_an_argument_that_does_not_exist_is_told_with_its_name() -> None:
    class Wrong:
        @threatbus.app
        def run(self, cfg: object) -> None:
            raise AssertionError

    with pytest.raises(PluginError, match="cfg"):
        Plugin("wrong", APP_GROUP, Wrong())


def test_a_plugin_marked_for_the_other_group_has_no_hooks() -> None:
    with pytest.raises(PluginError, match=r"@threatbus\.backbone"):
        Plugin("misplaced", BACKBONE_GROUP, App())


START: dict[str, Any] = {
    "config": {},
    "logging": {},
    "subscribe_callback": None,
    "unsubscribe_callback": None,
    "services": None,
}


def test_a_hook_is_called_with_the_arguments_it_takes_and_gives_its_result() -> None:
    plugin = Plugin("mine", APP_GROUP, App())
    assert plugin.call("drain", deadline=1.0) == 3
    assert plugin.call("stop_intake") is None
    assert plugin.has("drain")
    assert not plugin.has("snapshot")


@pytest.mark.parametrize("error", [RuntimeError("bug"), SystemExit(1)])
def test_what_a_hook_raises_is_logged_under_the_name_of_the_plugin(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    plugin = Plugin("mine", APP_GROUP, App())
    assert plugin.call_safely("run", inq=error, **START) is None
    assert "plugin mine failed in run()" in caplog.text
    assert type(error).__name__ in caplog.text


def test_a_plugin_that_does_not_start_is_done_without(caplog: pytest.LogCaptureFixture) -> None:
    plugin = Plugin("mine", APP_GROUP, App())
    assert host.start(plugin, inq=None, **START)
    assert not host.start(plugin, inq=RuntimeError("port in use"), **START)
    assert "plugin mine does not start; the bus goes on without it" in caplog.text
    assert "port in use" in caplog.text


def test_a_plugin_whose_start_takes_long_is_named_meanwhile(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "SLOW_START_SECS", 0.01)

    class Slow:
        @threatbus.app
        def run(self) -> None:
            eventually(lambda: "plugin mine has not started yet" in caplog.text)

    assert host.start(Plugin("mine", APP_GROUP, Slow()), inq=None, **START)


def test_a_plugin_that_says_that_the_bus_must_not_start_has_its_way() -> None:
    plugin = Plugin("mine", APP_GROUP, App())
    error = InvalidConfig([ConfigError("plugins.apps.mine.port", "80", "free")])
    with pytest.raises(InvalidConfig, match=r"plugins\.apps\.mine\.port"):
        host.start(plugin, inq=error, **START)
