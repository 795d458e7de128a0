"""The core's own settings and their defaults."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from threatbus import config
from threatbus.config import CoreConfig
from unit.configs import MINIMAL, from_yaml

pytestmark = pytest.mark.usefixtures("empty_surroundings")


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


def test_the_core_schema_is_its_own_documentation() -> None:
    schema = msgspec.json.schema(CoreConfig)
    assert "a number of seconds above 0" in str(schema)
