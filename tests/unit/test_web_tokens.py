"""The token of the web plugin: given, read, or made, and never a weak one."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from threatbus_web.config import WebConfig
from threatbus_web.tokens import FILE_NAME, token_of

from threatbus.config import check_section
from threatbus.errors import InvalidConfig

LONG = "0123456789abcdef"


def test_a_token_in_the_configuration_is_used(tmp_path: Path) -> None:
    assert token_of(WebConfig(token=LONG), tmp_path) == LONG
    assert not list(tmp_path.iterdir())


def test_a_token_may_come_from_a_file_like_every_secret(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(LONG + "\n")
    section, errors = check_section({"token_file": str(file)}, WebConfig, "plugins.apps.web")
    assert errors == []
    assert isinstance(section, WebConfig)
    assert token_of(section, tmp_path / "state") == LONG


def test_without_one_a_token_is_made_that_only_the_owner_reads(tmp_path: Path) -> None:
    made = token_of(WebConfig(), tmp_path / "state")
    file = tmp_path / "state" / FILE_NAME
    assert len(made) >= 32
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert token_of(WebConfig(), tmp_path / "state") == made, "the next start has the same"
    assert token_of(WebConfig(), tmp_path / "other") != made


@pytest.mark.parametrize("content", ["", "short", LONG + " with blanks", LONG + "\ntwo lines"])
def test_a_file_without_a_usable_token_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE_NAME).write_text(content)
    with pytest.raises(InvalidConfig, match=r"plugins\.apps\.web\.token: is missing, and .*web"):
        token_of(WebConfig(), tmp_path)


def test_a_state_directory_that_cannot_be_had_is_named() -> None:
    with pytest.raises(InvalidConfig, match=r"/proc/nowhere/web\.token is of no use"):
        token_of(WebConfig(), Path("/proc/nowhere"))


def test_a_weak_token_in_the_configuration_is_an_error_that_does_not_show_it() -> None:
    _, errors = check_section({"token": "letmein"}, WebConfig, "plugins.apps.web")
    (error,) = errors
    assert "plugins.apps.web" in str(error)
    assert "16 or more" in str(error)
    assert "letmein" not in str(error)
