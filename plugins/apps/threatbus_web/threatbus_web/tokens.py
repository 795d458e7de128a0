"""The token that clients have to show: the configured one, or one made at the first start."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from pathlib import Path
from typing import Final

from threatbus.config.secrets import SecretFileError, read
from threatbus.errors import ConfigError, InvalidConfig
from threatbus_web.config import ALLOWED_TOKEN, SECTION, WebConfig, is_usable_token

logger = logging.getLogger("threatbus.web")

#: The file in the state directory that is made where the configuration has no token.
FILE_NAME: Final = "web.token"


def token_of(config: WebConfig, state_directory: Path) -> str:
    """Give the token; raises `InvalidConfig` if it cannot be had, or is of no use."""
    if config.token:
        return config.token
    path = state_directory / FILE_NAME
    try:
        _make(path)
        token = read(str(path))
    except (OSError, SecretFileError) as error:
        reason = getattr(error, "strerror", None) or error
        found = f"missing, and {path} is of no use: {reason}"
        raise InvalidConfig([ConfigError(f"{SECTION}.token", found, ALLOWED_TOKEN)]) from None
    if not is_usable_token(token):
        found = f"missing, and {path} holds {len(token)} characters"
        raise InvalidConfig([ConfigError(f"{SECTION}.token", found, ALLOWED_TOKEN)])
    logger.info("clients show the token that is in %s", path)
    return token


def _make(path: Path) -> None:
    """Make the file with a new token, unless it is there."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
