"""Who gets in: CURVE on the three sockets, and the answers to ZeroMQ's question whether a key may.

ZeroMQ asks over a socket inside the process (ZAP, rfc.zeromq.org/spec/27), once per connection. The
endpoint's loop answers. From then on each frame bears the public key of its sender as User-Id.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

import zmq
import zmq.utils.z85

from threatbus.logger import RateLimited
from threatbus_zmq.config import CurveConfig
from threatbus_zmq.keyring import Client, KeyRing

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
        self._secret_key = config.secret_key.encode()
        self.public_key = zmq.curve_public(self._secret_key).decode()
        self.ring = KeyRing(Path(config.clients), clock)
        self._log = RateLimited(logger)
        # Connections that were refused.
        self.refused = 0
        self.socket: zmq.Socket[bytes] = context.socket(zmq.REP)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(_ZAP)

    def guard(self, socket: zmq.Socket[bytes], door: str) -> None:
        """Have `socket`, which is yet to be bound, ask for keys; `door` is manage, pub or sub."""
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
            key = zmq.utils.z85.encode(credentials[0]).decode() if mechanism == b"CURVE" else ""
            why = self._objection(key, domain.decode())
            if why:
                self.refused += 1
                host = address.decode(errors="replace")
                self._log.log(
                    (host, key),
                    logging.WARNING,
                    "%s at %s is refused: %s",
                    host,
                    domain.decode(),
                    why,
                )
            status = (b"400", why.encode(), b"") if why else (b"200", b"", key.encode())
            self.socket.send_multipart([b"1.0", number, *status, b""])

    def client_of(self, frame: zmq.Frame) -> Client | None:
        """Give the client that sent a frame; None if its key is no longer on the ring."""
        return self.ring.get(user_of(frame))

    def close(self) -> None:
        """Close the socket."""
        self.socket.close(0)

    def _objection(self, key: str, door: str) -> str:
        """Say why the owner of `key` does not get in by `door`; empty if it does."""
        client = self.ring.find(key)
        if client is None:
            return f"its key {key} is not authorised"
        if door == "pub" and not client.reads:
            return f"{client.name} may not read"
        if door == "sub" and not client.writes:
            return f"{client.name} may not write"
        return ""


def user_of(frame: zmq.Frame) -> str:
    """Give the public key of who sent a frame; empty if ZeroMQ does not know."""
    try:
        return str(frame.get(_USER_ID))
    except zmq.ZMQError:
        return ""
