"""The configuration of vast-threatbus: its file, its documentation, and what is wrong with it."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any, Final

import pytest
from vast_threatbus.config import MetricsConfig, VastConfig, read

from threatbus.client import Endpoint
from threatbus.config import LoggingConfig, check_section, yaml12
from threatbus.errors import InvalidConfig
from threatbus.keyfiles import ClientKeys, client_file

HERE: Final = Path(__file__).parents[2] / "apps" / "vast"


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """All programs are installed, as far as these tests are concerned."""
    monkeypatch.setattr(shutil, "which", lambda name, **_: f"/bin/{name}")


def errors(**given: Any) -> dict[str, str]:
    _, found = check_section(given, VastConfig, "")
    return {error.key: str(error) for error in found}


def test_nothing_has_to_be_configured() -> None:
    found = VastConfig()
    assert found.node == Endpoint("localhost", 5158)
    assert found.bus == Endpoint("localhost", 13370)


def test_a_configuration_of_old_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "logging: {console: true, console_verbosity: DEBUG, file: false}\n"
        "vast: localhost:42000\n"
        "vast_binary: tenzir\n"
        "threatbus: localhost:13370\n"
        "snapshot: 30\n"
        "live_match: false\n"
        "retro_match: true\n"
        "retro_match_max_events: 0\n"
        "retro_match_timeout: 5.0\n"
        "max_background_tasks: 100\n"
        "metrics: {interval: 10, filename: metrics.log}\n"
        "transform_context: fever alertify --alert-prefix 'MY PREFIX' --ioc '%ioc'\n"
        "sink: STDOUT\n"
    )
    found, warnings = read(str(path))
    assert (found.retro_match_timeout, found.live_match, found.sink) == (5.0, False, "STDOUT")
    assert found.metrics == MetricsConfig(interval=10, filename="metrics.log")
    assert warnings == []


def test_variables_win_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("live_match: true\n")
    monkeypatch.setenv("VAST_THREATBUS_LIVE_MATCH", "false")
    monkeypatch.setenv("VAST_THREATBUS_LOGGING__CONSOLE_VERBOSITY", "ERROR")
    # Those of a bus on the same machine are none of its business.
    monkeypatch.setenv("THREATBUS_PLUGINS__APPS__ZMQ__PUB", "1")
    found, warnings = read(str(path))
    assert not found.live_match
    assert found.logging.console_verbosity == "ERROR"
    assert warnings == []


def test_keys_are_for_the_bus_alone(tmp_path: Path) -> None:
    path = tmp_path / "client.key"
    keys = ClientKeys(public_key="x" * 40, secret_key="y" * 40, server_key="z" * 40)
    path.write_text(client_file(keys, "vast"))
    found = VastConfig(key_file=str(path))
    assert found.bus.keys == keys
    assert found.node.keys is None
    assert "cannot be read" in errors(key_file=str(tmp_path / "none"))["key_file"]


def test_everything_that_is_wrong_with_a_file_is_said_at_once(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("vast: a:b:c\nsnapshot: -1\nmetrics: {interval: x}\nsink: a 'b\n")
    with pytest.raises(InvalidConfig) as caught:
        read(str(path))
    assert [error.key for error in caught.value.errors] == [
        "snapshot",
        "metrics.interval",
        "vast",
        "sink",
    ]


def test_everything_that_is_wrong_is_said_at_once() -> None:
    found = errors(vast="a:b:c", threatbus="", live_match=False, retro_match=False)
    assert "threatbus" in found
    found = errors(vast="http://x", transform_context="a 'b", sink="", live_match="maybe")
    assert {"sink", "live_match"} <= set(found)
    found = errors(vast="tcp://a/b", transform_context="a 'b")
    assert set(found) == {"vast", "transform_context"}
    assert "quoted as for a shell" in found["transform_context"]
    assert "must be true" in errors(live_match=False, retro_match=False)["retro_match"]


def test_who_asks_for_no_snapshot_cannot_forget_what_none_names() -> None:
    assert "snapshot is 0" in errors(snapshot=0, forget_unnamed_after=1)["forget_unnamed_after"]


def test_a_key_with_a_typo_is_named_with_the_nearest_one() -> None:
    assert "did you mean retro_match?" in errors(retro_macth=True)["retro_macth"]


@pytest.mark.parametrize("name", ["", 'a"b', "a b", "a\n", "ü"])
def test_the_name_of_a_table_is_plain(name: str) -> None:
    assert "table" in errors(table=name)


def test_the_program_vast_is_said_to_be_another_one() -> None:
    assert "tenzir" in errors(vast_binary="/opt/bin/vast")["vast_binary"]


def test_programs_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    found = errors(transform_context="fever alertify", sink="logger -t x")
    assert set(found) == {"vast_binary", "transform_context", "sink"}
    assert "pip install" in found["vast_binary"]


def test_the_program_beside_this_command_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    beside = str(Path(sys.executable).parent / "tenzir")
    monkeypatch.setattr(shutil, "which", lambda name, **_: name if name == beside else None)
    assert VastConfig().program == beside


# The example and the documentation.


def sections() -> dict[str, Any]:
    return {"": VastConfig(metrics=MetricsConfig()), "metrics": MetricsConfig()}


def example() -> dict[str, Any]:
    text = (HERE / "config.yaml.example").read_text(encoding="utf-8")
    return yaml12.parse(re.sub(r"(?m)^( *)#(?=\S|  )", r"\1", text), "example")


OPTIONAL: Final = {"key_file", "transform_context", "sink"}


def test_the_example_has_every_key_with_its_default() -> None:
    written = example()
    assert list(written) == list(VastConfig.__struct_fields__)
    for key in OPTIONAL:
        assert written.pop(key)
    found, wrong = check_section(written, VastConfig, "")
    assert wrong == []
    assert found == VastConfig(metrics=MetricsConfig(), logging=LoggingConfig())


@pytest.mark.parametrize("path", ["", "metrics"])
def test_the_documentation_lists_every_key_with_its_default(path: str) -> None:
    text = (HERE / "README.md").read_text(encoding="utf-8")
    text = text.partition("\n## Configuration\n")[2].partition("\n## ")[0]
    prefix = f"{path}." if path else ""
    rows = re.findall(r"^\| `([\w.]+)` \| ([^|]*) \|", text, re.MULTILINE)
    documented = {
        name.removeprefix(prefix): cell.strip()
        for name, cell in rows
        if name.rpartition(".")[0] == path
    }
    section = sections()[path]
    keys = [name for name in section.__struct_fields__ if name not in ("logging", "metrics")]
    assert list(documented) == keys
    for key in keys:
        if key not in OPTIONAL:
            default = yaml12.parse(f"x: {documented[key].strip('`')}", key)["x"]
            assert default == getattr(section, key), key
