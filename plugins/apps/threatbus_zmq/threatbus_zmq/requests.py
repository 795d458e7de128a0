"""Requests: from apps' connections to the manager, and its replies back."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from threatbus.logger import RateLimited
from threatbus.rejects import RejectStore
from threatbus_zmq.door import Door, loss
from threatbus_zmq.keyring import KeyRing
from threatbus_zmq.limits import RateLimit
from threatbus_zmq.link import Link
from threatbus_zmq.manager import Manager
from threatbus_zmq.mapping import encode_reply
from threatbus_zmq.peers import Peer
from threatbus_zmq.zmtp import BrokenProtocol, Role, Session

logger = logging.getLogger("threatbus.zmq.requests")

#: Bytes of a request; a larger one closes the connection.
MAX_REQUEST_BYTES: Final = 1024 * 1024
ROLE: Final = Role("REP", ("REQ", "DEALER"), MAX_REQUEST_BYTES)
#: Frames that one turn of the loop reads, about: two of them make a request.
FRAMES: Final = 100
#: Bytes of what comes before a request, and goes back before its reply.
MAX_ENVELOPE_BYTES: Final = 1024
#: Seconds after which who does not read its replies is let go.
UNREAD_SECS: Final = 30.0
# Why a connection is not read: its replies wait.
_UNREAD: Final = "its replies wait"


class Requests:
    """The door to the manager. Belongs to the endpoint's loop.

    With a `ring` of keys, every app has one that is, or was, on it.
    """

    def __init__(
        self,
        manager: Manager,
        rejects: RejectStore,
        max_per_second: int,
        new_session: Callable[[Role, str], Session],
        ring: KeyRing | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._manager = manager
        self._rejects = rejects
        self._ring = ring
        self._clock = clock
        self._log = RateLimited(logger)
        self.rate = RateLimit(max_per_second, clock)
        #: Where apps connect.
        self.door = Door(ROLE, new_session, Link, self, clock)

    def take(self) -> None:
        """Read requests and answer them."""
        links = self.door.come()
        for link in links:
            limit = max(2, FRAMES // len(links))
            for message in self.door.read_messages(link, limit, len(links)):
                # The one before may have ended it.
                if link.open:
                    self._serve(link, message)
            if link.open and link.blocked:
                self.door.pause(link, _UNREAD)

    def keep_house(self, now: float) -> None:
        """Let go of those that do not read their replies."""
        for link in self.door.links:
            if link.blocked_since is not None and now - link.blocked_since > UNREAD_SECS:
                self.door.cut_off(link, "it does not read what it is answered")

    def _serve(self, link: Link, message: list[bytes]) -> None:
        """Answer a message.

        It begins with the way back (rfc.zeromq.org/spec/28): what the peer's socket needs to find
        who asked, and then an empty frame.
        """
        if b"" not in message:
            self.door.cut_off(link, "its requests have no empty frame in front")
            return
        body = message.index(b"") + 1
        envelope, parts = message[:body], message[body:]
        if sum(map(len, envelope)) > MAX_ENVELOPE_BYTES:
            self.door.cut_off(link, "what comes before its requests is too long")
            return
        reply, why_last = self._reply_to(link, parts)
        link.send(link.session.message(*envelope, reply), self._clock())
        if why_last is not None:
            self.door.cut_off(link, why_last)

    def _reply_to(self, link: Link, parts: list[bytes]) -> tuple[bytes, str | None]:
        """Answer a request, if whoever makes it may, and has not made too many.

        Gives also why this is the last one that is answered, if it is; empty if that is known.
        """
        client = None
        if self._ring is not None:
            client = self._ring.get(link.session.key or "")
            if client is None:
                why = "its key is no longer authorised"
                return encode_reply("error", reason=why.replace("its", "your")), why
        peer = Peer(client, link.host)
        # Many who have no keys come from one host, such as this machine.
        identity = peer.key or (link.host, link.port)
        if not self.rate.take(identity):
            self._log.log(
                peer.identity, logging.WARNING, "%s makes too many management requests", peer.name
            )
            limit = self.rate.per_second
            reply = encode_reply(
                "error", reason=f"more than {limit} requests a second (max_requests_per_second)"
            )
            return reply, "" if self.rate.is_flooding(identity) else None
        return self._manager.handle(parts[0] if len(parts) == 1 else b"", peer), None

    # What the door tells.

    def on_room(self, link: Link) -> None:
        """Hear its next requests, now that it reads its replies."""
        self.door.resume(link, _UNREAD)

    def on_end(self, link: Link, broken: BrokenProtocol | None) -> None:
        """Count what is lost when an app breaks the protocol."""
        if lost := loss(link, broken, f"a request of more than {MAX_REQUEST_BYTES} bytes"):
            self._rejects.add("zmq manage", lost, b"")
