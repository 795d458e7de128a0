"""The token that clients have to show: the configuration's, or one made at the first start."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import stat
from pathlib import Path
from typing import Final

from threatbus.errors import ConfigError, InvalidConfig
from threatbus_web.config import ALLOWED_TOKEN, SECTION, WebConfig, is_usable_token

logger = logging.getLogger("threatbus.web")

#: The file in the state directory that is made where the configuration names none.
FILE_NAME: Final = "web.token"


def token_of(config: WebConfig, state_directory: Path) -> str:
    """Give the token; raises `InvalidConfig` if it cannot be had, or is of no use."""
    if config.token:
        return config.token
    path = state_directory / FILE_NAME
    try:
        _make(path)
        token = path.read_text(encoding="utf-8").strip()
        readable = path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        found = f"{path}, which cannot be used ({reason})"
        raise InvalidConfig(
            [ConfigError(f"{SECTION}.token", found, "given, or in a file that the bus can read")]
        ) from None
    if not is_usable_token(token):
        found = f"{path}, which holds {len(token)} characters"
        allowed = f"given, or in a file that holds {ALLOWED_TOKEN}"
        raise InvalidConfig([ConfigError(f"{SECTION}.token", found, allowed)])
    if readable:
        logger.warning("%s can be read by others than its owner: chmod 600", path)
    logger.info("clients show the token that is in %s", path)
    return token


def _make(path: Path) -> None:
    """Make the file with a new token, unless it is there."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
