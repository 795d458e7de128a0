"""Management: who is subscribed under which point-to-point topic; answers requests, no sockets."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Protocol

from threatbus.hookspecs import SubscribeCallback, UnsubscribeCallback
from threatbus.logger import RateLimited
from threatbus.queues import MessageQueue
from threatbus_zmq import mapping
from threatbus_zmq.keyring import KeyRing
from threatbus_zmq.peers import Peer

logger = logging.getLogger("threatbus.zmq.manager")

DAY: Final = timedelta(days=1)


class Receiver(Protocol):
    """What delivers to a subscriber; the publisher has one per subscription."""

    name: str
    outq: MessageQueue
    last_sign: float
    """Monotonic time of the last heartbeat, or of the last change of its connection."""

    @property
    def waiting(self) -> int:
        """How many messages wait for it."""


class Receivers(Protocol):
    """The publisher, as the manager sees it."""

    def add(self, p2p: str, name: str, label: str, key: str | None) -> Receiver:
        """Make ready to deliver to `p2p`, to who has `key` only, unless that is None.

        `label` is what monitoring calls it.
        """

    def remove(self, p2p: str) -> None:
        """Deliver to `p2p` no more."""

    def cut_off(self, p2p: str) -> None:
        """Break the connections over which `p2p` is delivered."""


@dataclass(frozen=True)
class Subscription:
    """What is known of one subscription."""

    topics: list[str]
    receiver: Receiver
    peer: Peer


class Manager:
    """All subscriptions of the endpoint. Belongs to the endpoint's loop."""

    def __init__(
        self,
        ports: tuple[int, int],
        max_subscribers: int,
        max_per_peer: int,
        receivers: Receivers,
        subscribe: SubscribeCallback,
        unsubscribe: UnsubscribeCallback,
        clock: Callable[[], float],
    ) -> None:
        self._ports = ports
        self._max_subscribers = max_subscribers
        self._max_per_peer = max_per_peer
        self._receivers = receivers
        self._subscribe = subscribe
        self._unsubscribe = unsubscribe
        self._clock = clock
        self._subscriptions: dict[str, Subscription] = {}
        # How many of them each peer has, by its identity.
        self._of_peer: Counter[str] = Counter()
        self._log = RateLimited(logger)
        # Every subscription gets the next one, so that a nameless app has something to go by.
        self._number = 0

    def __len__(self) -> int:
        return len(self._subscriptions)

    def handle(self, frame: bytes, peer: Peer) -> bytes:
        """Answer a request of `peer`. Raises nothing: whoever asks waits for it."""
        try:
            return self._serve(mapping.decode_request(frame), peer)
        except mapping.BadRequest as error:
            self._log.log(error.reason, logging.WARNING, "request refused: %s", error.reason)
            return mapping.encode_reply(error.status, reason=error.reason)
        # Whatever a request sets off, everyone else's next one must be answered.
        except Exception:
            logger.exception("a request could not be served")
            return mapping.encode_reply("error", reason="internal error, see the log of the bus")

    def end(self, p2p: str, why: str, *, wanted: bool = False) -> bool:
        """End a subscription, `wanted` by the subscriber or not; False if there is none."""
        found = self._subscriptions.pop(p2p, None)
        if found is None:
            return False
        self._of_peer[found.peer.identity] -= 1
        if not self._of_peer[found.peer.identity]:
            del self._of_peer[found.peer.identity]
        waiting = found.receiver.waiting
        try:
            self._unsubscribe(found.topics, found.receiver.outq)
        finally:
            found.receiver.outq.close()
            self._receivers.remove(p2p)
        # What waits for one who leaves of its own accord is missed by nobody.
        log = logger.warning if waiting and not wanted else logger.info
        log("%s is unsubscribed: %s; %d messages waited", found.receiver.name, why, waiting)
        return True

    def end_overflowed(self, p2p: str) -> None:
        """End a subscription whose outq has closed itself since it was full."""
        found = self._subscriptions.get(p2p)
        if found is not None:
            dropped = found.receiver.outq.stats().dropped
            self.end(p2p, f"it did not keep up, its outq was full and let go of {dropped} messages")

    def end_unauthorised(self, ring: KeyRing) -> None:
        """End the subscriptions of clients that are no longer, or may no longer read as much."""
        for p2p, found in list(self._subscriptions.items()):
            client = ring.get(found.peer.key or "")
            if client is None or not all(map(client.may_read, found.topics)):
                self._receivers.cut_off(p2p)
                self.end(p2p, f"{found.peer.name} may not read it any more")

    def _serve(self, request: mapping.Request, peer: Peer) -> bytes:
        if isinstance(request, mapping.Subscribe):
            return self._on_subscribe(request, peer)
        found = self._subscriptions.get(request.p2p)
        if found is None or found.peer.key != peer.key:
            raise mapping.BadRequest("error", "unknown topic: subscribe again")
        if isinstance(request, mapping.Unsubscribe):
            self.end(request.p2p, "as it asked", wanted=True)
        else:
            found.receiver.last_sign = self._clock()
        return mapping.encode_reply("success")

    def _on_subscribe(self, request: mapping.Subscribe, peer: Peer) -> bytes:
        if forbidden := [topic for topic in request.topics if not peer.may_read(topic)]:
            raise mapping.BadRequest(
                "error",
                f"{peer.name} may not read {forbidden[0]!r}, only {_listed(peer)} "
                "(the file of its key at the bus says so)",
            )
        if self._of_peer[peer.identity] >= self._max_per_peer:
            raise mapping.BadRequest(
                "error",
                f"{peer.name} has {self._max_per_peer} subscriptions already "
                "(max_subscribers_per_peer)",
            )
        if len(self._subscriptions) >= self._max_subscribers:
            raise mapping.BadRequest(
                "error", f"there are {self._max_subscribers} subscribers already (max_subscribers)"
            )
        p2p = mapping.new_p2p_topic()
        self._number += 1
        name = request.name or "subscriber"
        if peer.client is not None:
            name += f" of {peer.name}"
        receiver = self._receivers.add(p2p, f"{name} #{self._number}", name, peer.key)
        self._subscriptions[p2p] = Subscription(request.topics, receiver, peer)
        self._of_peer[peer.identity] += 1
        try:
            self._subscribe(request.topics, receiver.outq, request.snapshot)
        # Nothing half subscribed is left behind, whatever it was; handle() says it.
        except Exception:
            self.end(p2p, "it could not be subscribed")
            raise
        logger.info(
            "%s subscribes to %s%s",
            receiver.name,
            ", ".join(request.topics),
            f", with a snapshot of {request.snapshot / DAY:g} days" if request.snapshot else "",
        )
        pub_port, sub_port = self._ports
        fields: dict[str, object] = {"topic": p2p, "pub_port": pub_port, "sub_port": sub_port}
        if peer.client is not None:
            # What it publishes has no answer of its own.
            fields["write"] = peer.client.writes
        return mapping.encode_reply("success", **fields)


def _listed(peer: Peer) -> str:
    reads = peer.client.reads if peer.client is not None else ()
    return ", ".join(map(repr, reads)) or "nothing"
