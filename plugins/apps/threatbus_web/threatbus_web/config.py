"""The section ``plugins.apps.web``."""

from __future__ import annotations

from typing import Final

import msgspec

from threatbus.config import ByteSize, Host, Port, PositiveInt, Secret, rule
from threatbus.errors import ConfigError

SECTION: Final = "plugins.apps.web"
#: Characters that a token has at least: fewer can be tried out.
MIN_TOKEN: Final = 16
ALLOWED_TOKEN: Final = f"{MIN_TOKEN} or more letters, digits and signs, without blanks"


def is_usable_token(token: str) -> bool:
    """Say whether a token is long enough, and fit for a header."""
    return len(token) >= MIN_TOKEN and token.isascii() and token.isprintable() and " " not in token


class WebConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Address, token and limits of the HTTP endpoint; every key has a default."""

    host: Host = "127.0.0.1"
    """Address to bind."""
    port: Port = 13373
    """Port to bind."""
    token: Secret = ""
    """What clients have to show; empty: ``web.token`` in the state directory, made if need be."""
    max_body: ByteSize = 10 * 1024 * 1024
    """Largest document that is taken for publishing."""
    max_connections: PositiveInt = 64
    """Connections at once; a quarter of them may be streams."""

    @rule
    def token_cannot_be_guessed(self) -> None:
        """Raise `ConfigError` for a token that is too short, or unfit for a header."""
        if self.token and not is_usable_token(self.token):
            found = f"text of {len(self.token)} characters"
            raise ConfigError("token", found, ALLOWED_TOKEN)
