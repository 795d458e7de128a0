"""Who gets in: CURVE at the three doors, and whether a key may.

At manage and sub, ZeroMQ asks over a socket inside the process (ZAP, rfc.zeromq.org/spec/27), once
per connection. The endpoint's loop answers. From then on each frame bears the public key of its
sender as User-Id. At pub the session of each connection asks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import zmq
from zmq.utils import z85

from threatbus.logger import RateLimited
from threatbus_zmq.config import CurveConfig
from threatbus_zmq.keyring import Client, KeyRing
from threatbus_zmq.zmtp import Session

logger = logging.getLogger("threatbus.zmq.keys")

#: Where ZeroMQ asks.
_ZAP: Final = "inproc://zeromq.zap.01"
_USER_ID: Final = "User-Id"
#: Questions that one turn of the loop answers.
ANSWERS_PER_TURN: Final = 100


class Gatekeeper:
    """Lets in whose key is on the ring. Belongs to the endpoint's loop.

    Its socket is open for as long as the context: ZeroMQ lets in nobody while there is no answer.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        config: CurveConfig,
        clock: Callable[[], float],
    ) -> None:
        from threatbus_zmq.curve import Curve  # noqa: PLC0415 (10 ms: only who asks for keys pays)

        self._secret_key = config.secret_key.encode()
        public_key = zmq.curve_public(self._secret_key)
        self.public_key = public_key.decode()
        self._curve = partial(Curve, z85.decode(self._secret_key), z85.decode(public_key))
        self.ring = KeyRing(Path(config.clients), clock)
        self._log = RateLimited(logger)
        # Connections that were refused.
        self.refused = 0
        self.socket: zmq.Socket[bytes] = context.socket(zmq.REP)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(_ZAP)

    def guard(self, socket: zmq.Socket[bytes], door: str) -> None:
        """Have `socket`, which is yet to be bound, ask for keys; `door` is manage or sub."""
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self._secret_key)
        socket.setsockopt(zmq.ZAP_DOMAIN, door.encode())
        # Without a gatekeeper nobody gets in, rather than anybody.
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)

    def answer(self) -> None:
        """Answer what ZeroMQ asks."""
        for _ in range(ANSWERS_PER_TURN):
            try:
                _, number, domain, address, _, mechanism, *credentials = self.socket.recv_multipart(
                    zmq.NOBLOCK
                )
            except zmq.Again:
                return
            key = z85.encode(credentials[0]).decode() if mechanism == b"CURVE" else ""
            why = self.objection(key, domain.decode(), address.decode(errors="replace"))
            status = (b"400", why.encode(), b"") if why else (b"200", b"", key.encode())
            self.socket.send_multipart([b"1.0", number, *status, b""])

    def client_of(self, frame: zmq.Frame) -> Client | None:
        """Give the client that sent a frame; None if its key is no longer on the ring."""
        return self.ring.get(user_of(frame))

    def objection(self, key: str, door: str, host: str) -> str:
        """Say why the owner of `key` does not get in by `door`, and log it; empty if it does."""
        client = self.ring.find(key)
        if client is None:
            why = f"its key {key} is not authorised"
        elif door == "pub" and not client.reads:
            why = f"{client.name} may not read"
        elif door == "sub" and not client.writes:
            why = f"{client.name} may not write"
        else:
            return ""
        self.refused += 1
        self._log.log((host, key), logging.WARNING, "%s at %s is refused: %s", host, door, why)
        return why

    def may_read(self, key: str) -> bool:
        """Say whether the owner of `key` may read anything."""
        client = self.ring.get(key)
        return client is not None and bool(client.reads)

    def new_session(self, host: str) -> Session:
        """Give a session of the pub door that asks its peer at `host` for a key."""
        return Session(self._curve(lambda key: self.objection(key, "pub", host)))

    def close(self) -> None:
        """Close the socket."""
        self.socket.close(0)


def user_of(frame: zmq.Frame) -> str:
    """Give the public key of who sent a frame; empty if ZeroMQ does not know."""
    try:
        return str(frame.get(_USER_ID))
    except zmq.ZMQError:
        return ""
