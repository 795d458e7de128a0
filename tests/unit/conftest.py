"""Fixtures for unit tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture
def empty_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty current directory, and no variable of the machine's own."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith(("THREATBUS", "DYNACONF")):
            monkeypatch.delenv(name)
