"""The whole configuration: every error at once, which plugins count, what they are handed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from threatbus import config
from threatbus.errors import InvalidConfig
from unit.configs import (
    APPS,
    MINIMAL,
    BrokenPlugin,
    Plugin,
    ZmqConfig,
    errors_of,
    from_environment,
    from_yaml,
    named,
)

pytestmark = pytest.mark.usefixtures("empty_surroundings")


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
    broken: {a: 1}
"""
    found = errors_of(text, apps=APPS | named(BrokenPlugin("broken")))
    keys = [error.partition(":")[0] for error in found]
    assert sorted(keys) == [
        "logging.consol",
        "logging.console_verbosity",
        "plugin",
        "plugins.apps.broken",
        "plugins.apps.misp",
        "plugins.apps.zmq.pub",
        "plugins.apps.zmq.pubb",
        "plugins.backbones.rabbitmq.host",
        "plugins.backbones.rabbitmq.port",
        "snapshot_timeout",
    ]


def test_a_plugin_that_is_not_installed_says_how_to_get_it() -> None:
    [error] = errors_of("plugins: {backbones: {inmem: }, apps: {misp: {port: 1}}}\n")
    assert error == (
        "plugins.apps.misp: is a plugin that is not installed, but it must be one of the "
        "installed ones (zeek, zmq); try `pip install threatbus-misp`"
    )


def test_a_mistyped_plugin_names_the_installed_one_and_nothing_to_install() -> None:
    [error] = errors_of("plugins: {backbones: {inmem: }, apps: {zek: {port: 1}}}\n")
    assert error == (
        "plugins.apps.zek: is a plugin that is not installed, but it must be one of the "
        "installed ones (zeek, zmq); did you mean plugins.apps.zeek?"
    )


def test_a_plugin_that_cannot_be_loaded_says_why_in_one_line() -> None:
    broken = named(BrokenPlugin("broken"))
    [error] = errors_of("plugins: {backbones: {inmem: }, apps: {BROKEN: }}\n", apps=broken)
    assert error == (
        "plugins.apps.BROKEN: is a broken plugin (plugin broken cannot be loaded: "
        "there is no kafka), but it must be one that can be loaded"
    )


def test_a_plugin_that_cannot_be_loaded_names_the_variable_that_switches_it_on() -> None:
    environ = {"THREATBUS_PLUGINS__APPS__BROKEN": ""}
    [error] = errors_of(MINIMAL, environ, apps=APPS | named(BrokenPlugin("broken")))
    assert "is a broken plugin (set by THREATBUS_PLUGINS__APPS__BROKEN) (plugin" in error


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
    plain: Any = from_yaml(text).plain_backbones
    assert plain["rabbitmq"]["port"] == 5
    assert plain.rabbitmq.queue.max_items == 0
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
    plain: Any = from_yaml(MINIMAL).plain_apps
    with pytest.raises(AttributeError, match="nothing"):
        _ = plain.nothing


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
    root = Path(config.__file__).parents[2]
    environ = {**os.environ, "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", program], check=True, env=environ)
