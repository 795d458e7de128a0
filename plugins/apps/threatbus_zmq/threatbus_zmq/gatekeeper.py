"""Who gets in: CURVE at the three doors, and whether a key may."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from threatbus.logger import RateLimited
from threatbus_zmq.config import CurveConfig
from threatbus_zmq.keyring import KeyRing
from threatbus_zmq.zmtp import Role, Session

logger = logging.getLogger("threatbus.zmq.keys")

#: The types of the bus's sockets from which clients read, and to which they write.
_READ: Final = "XPUB"
_WRITTEN: Final = "SUB"


class Gatekeeper:
    """Lets in whose key is on the ring. Belongs to the endpoint's loop."""

    def __init__(self, config: CurveConfig, clock: Callable[[], float]) -> None:
        from threatbus_zmq.curve import (  # noqa: PLC0415 (20 ms: only who asks for keys pays)
            Curve,
            ServerKeys,
        )

        self._curve = Curve
        self._keys = ServerKeys(config.secret_key)
        self.public_key = self._keys.public_text
        self.ring = KeyRing(Path(config.clients), clock)
        self._log = RateLimited(logger)
        # Connections that were refused.
        self.refused = 0

    def new_session(self, role: Role, host: str) -> Session:
        """Give a session that asks its peer at `host` for a key."""
        return Session(
            self._curve(self._keys, role, lambda key: self.objection(key, role, host)), role
        )

    def objection(self, key: str, role: Role, host: str) -> str:
        """Say why the owner of `key` does not get in, and log it; empty if it does."""
        client = self.ring.find(key)
        if client is None:
            why = f"its key {key} is not authorised"
        elif role.kind == _READ and not client.reads:
            why = f"{client.name} may not read"
        elif role.kind == _WRITTEN and not client.writes:
            why = f"{client.name} may not write"
        else:
            return ""
        self.refused += 1
        self._log.log(
            (host, key), logging.WARNING, "a %s of %s is refused: %s", role.peers[0], host, why
        )
        return why

    def may_read(self, key: str) -> bool:
        """Say whether the owner of `key` may read anything."""
        client = self.ring.get(key)
        return client is not None and bool(client.reads)
