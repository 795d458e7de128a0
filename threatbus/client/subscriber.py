"""Receiving: a subscription that is kept up."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from threatbus.client.connection import (
    DEFAULT_TIMEOUT_SECS,
    Connections,
    Deadline,
    Manage,
    Reply,
    Session,
    explain_refusal,
)
from threatbus.client.endpoint import Endpoint
from threatbus.client.inlet import Inlet
from threatbus.client.silence import refusal
from threatbus.errors import BusUnreachable
from threatbus.messages import (
    INDICATOR,
    SIGHTING,
    SNAPSHOT_ENVELOPE,
    SNAPSHOT_REQUEST,
    Message,
)
from threatbus.workers import Backoff

#: Seconds between two signs of life of a subscriber.
HEARTBEAT_SECS: Final = 5.0
#: Longest delay between two attempts to reach a bus that does not answer any more.
MAX_RETRY_SECS: Final = 2.0
#: Messages that one call of `Subscriber.receive` gives at most.
BATCH: Final = 500

_TOPIC_OF_KIND: Final = {
    b"indicator": INDICATOR,
    b"sighting": SIGHTING,
    b"snapshotrequest": SNAPSHOT_REQUEST,
    b"snapshotenvelope": SNAPSHOT_ENVELOPE,
}


class Subscriber(Session):
    """One subscription, kept up for as long as the ``with`` block lasts.

    It shows signs of life while `receive` waits. When the bus was restarted, or has ended the
    subscription, it subscribes again by itself; when nothing answers, it tries again until
    something does. `on_change` is told of each in one line. After a connection broke, messages
    may come twice; those that were published while there was no subscription are missed.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        topics: Sequence[str],
        *,
        snapshot: float = 0,
        name: str | None = None,
        timeout: float = DEFAULT_TIMEOUT_SECS,
        read_ahead: int = 0,
        on_change: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Subscribe; raises `BusUnreachable` or `Refused`. `snapshot` is in days.

        `read_ahead` frames are read before `receive` asks for them, 0: all that come. What there
        is no room for waits at the bus; the bus of old drops it.
        """
        self._endpoint = endpoint
        self._timeout = timeout
        self._on_change = on_change
        # Threat Bus 2022.5.16 knows whole days only.
        days = int(snapshot) if float(snapshot).is_integer() else snapshot
        self._wish: dict[str, Any] = {"snapshot": days} | ({"name": name} if name else {})
        self._topics = list(topics)
        #: How often the bus has granted a subscription.
        self.subscriptions = 0
        # What the bus knows of this subscriber; None while it knows nothing.
        self._p2p: str | None = None
        # When to do what comes next: a request, or giving up the one that is under way.
        self._due = 0.0
        # Why the bus is gone, as on_change was told; empty while it answers.
        self._told = ""
        # Which keys it objects to, once that is known.
        self._refusal = ""
        self._backoff = Backoff(0.1, MAX_RETRY_SECS)
        self._connections = Connections(endpoint)
        self._manage = Manage(self._connections)
        self._inlet = Inlet(self._connections, read_ahead)
        try:
            self._connect(self._manage.subscribe(timeout, self._topics, **self._wish))
        except BaseException:
            self._connections.close()
            raise

    @property
    def stands(self) -> bool:
        """Whether the bus has answered lately, and knows this subscriber."""
        return self._p2p is not None and not self._told

    def receive(self, timeout: float | None = None, watch: int | None = None) -> list[Message]:
        """Give the messages that have come, at least one unless `timeout` seconds are over.

        `watch` is a descriptor which ends the wait, with no messages, when its other end closes.
        """
        deadline = Deadline(timeout)
        while True:
            self._keep_up()
            messages = [self._message(frame) for frame in self._inlet.take(BATCH)]
            if messages or deadline.over or self._wait(deadline, watch):
                return messages

    def keep_up(self, timeout: float) -> None:
        """Show signs of life for `timeout` seconds and read nothing: for an app with no room."""
        deadline = Deadline(timeout)
        while True:
            self._keep_up()
            if deadline.over:
                return
            self._wait(deadline, None, reading=False)

    def close(self) -> None:
        """Unsubscribe, if the bus is there to hear it, and close the sockets. Idempotent."""
        p2p, self._p2p = self._p2p, None
        try:
            if p2p is not None and not self._told:
                self._manage.unsubscribe(p2p)
        finally:
            self._inlet.close()
            self._connections.close()

    # Messages.

    def _message(self, frame: bytes) -> Message:
        head, _, data = frame.partition(b" ")
        # P2P topics of one bus are of one length, the earlier one of this subscriber too.
        kind = head[len(self._p2p or "") :]
        return Message(_TOPIC_OF_KIND.get(kind) or kind.decode("latin-1"), data)

    def _wait(self, deadline: Deadline, watch: int | None, *, reading: bool = True) -> bool:
        """Wait for anything to do; True if `watch` is closed."""
        import zmq  # noqa: PLC0415

        poller = zmq.Poller()
        inlet = self._inlet
        for socket in (self._manage.socket, inlet.socket if reading else None, inlet.monitor):
            if socket is not None:
                poller.register(socket, zmq.POLLIN)
        if watch is not None:
            poller.register(watch, zmq.POLLERR)
        seconds = max(0.0, self._due - time.monotonic())
        remaining = deadline.remaining()
        if remaining is not None:
            seconds = min(seconds, remaining)
        ready = dict(poller.poll(int(seconds * 1000) + 1))
        if inlet.monitor in ready and inlet.notice():
            self._on_connection_change()
        return watch in ready

    # The subscription.

    def _connect(self, reply: Reply) -> None:
        """Receive under the P2P topic that the bus has given."""
        if reply.pub_port != self._inlet.port or self._inlet.refused:
            self._inlet.open(reply.pub_port)
        # The earlier topic stays, for what is still on its way.
        self._inlet.listen(reply.topic)
        self.subscriptions += 1
        self._p2p = reply.topic
        self._answered()

    def _keep_up(self) -> None:
        """Do what is due: show a sign of life, subscribe again, give up a request."""
        over = time.monotonic() >= self._due
        if self._manage.waiting:
            try:
                reply = self._manage.take_reply()
            except BusUnreachable as error:
                self._failed(str(error))
                return
            if reply is not None:
                self._on_reply(reply)
            elif over:
                self._manage.give_up()
                # Looked for until it is found: where much is going on, a look may be too short.
                self._refusal = self._refusal or refusal(self._endpoint)
                self._failed(self._refusal or f"nothing answers at {self._endpoint}")
        elif over:
            self._request()

    def _request(self) -> None:
        if self._p2p is None:
            self._manage.send("subscribe", self._topics, **self._wish)
        else:
            self._manage.send("heartbeat", self._p2p)
        self._due = time.monotonic() + self._timeout

    def _on_reply(self, reply: Reply) -> None:
        if self._p2p is not None:
            if reply.success:
                self._on_sign_of_life(self._p2p)
            else:
                # The bus is another one than before, or it has ended the subscription.
                self._p2p = None
                self._request()
        elif reply.grants_subscription:
            self._connect(reply)
            self._on_change(
                f"subscribed again at {self._endpoint}: the bus was restarted or had ended the "
                "subscription, what was published in between may be missing"
            )
        else:
            self._failed(explain_refusal(self._endpoint, reply))

    def _on_sign_of_life(self, p2p: str) -> None:
        """The bus knows this subscriber; see whether messages can come, too."""
        inlet = self._inlet
        if inlet.down_secs < self._timeout and not inlet.refused:
            if self._told:
                self._on_change(f"{self._endpoint} answers again")
            self._answered()
            return
        what = "does not let this client in" if inlet.refused else "does not"
        self._failed(f"{self._endpoint} answers, but its port for messages, {inlet.port}, {what}")
        if inlet.refused:
            inlet.open(inlet.port)
            inlet.listen(p2p)

    def _answered(self) -> None:
        self._told = self._refusal = ""
        self._backoff.reset()
        self._due = time.monotonic() + HEARTBEAT_SECS

    def _failed(self, why: str) -> None:
        if why != self._told:
            self._told = why
            self._on_change(f"{why}; trying again until it does")
        self._due = time.monotonic() + self._backoff.next()

    def _on_connection_change(self) -> None:
        """Ask at once how things stand when the connection has broken or is back."""
        if self._manage.waiting:
            if self._p2p is None:
                # Asked twice, the bus would give two subscriptions.
                return
            # The request may have gone down with the connection.
            self._manage.give_up()
        self._due = 0.0
