"""Receiving: a subscription that is kept up."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

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
from threatbus.client.silence import event_of, refusal
from threatbus.errors import BusUnreachable
from threatbus.messages import (
    INDICATOR,
    SIGHTING,
    SNAPSHOT_ENVELOPE,
    SNAPSHOT_REQUEST,
    Message,
)
from threatbus.workers import Backoff

if TYPE_CHECKING:
    import zmq

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
        self._read_ahead = read_ahead
        self._on_change = on_change
        # Threat Bus 2022.5.16 knows whole days only.
        days = int(snapshot) if snapshot == int(snapshot) else snapshot
        self._wish: dict[str, Any] = {"snapshot": days} | ({"name": name} if name else {})
        self._topics = list(topics)
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
        # Where frames come from, what tells of its connection, and the port it is connected to.
        self._sub: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._pub_port = 0
        # Whether ZeroMQ has given up the connection of the SUB, since the bus refused its key.
        self._sub_is_dead = False
        # What was read from a SUB that had to be closed.
        self._left_over: list[Message] = []
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
            messages = self._take()
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
            self._close_sub()
            self._connections.close()

    # Messages.

    def _take(self) -> list[Message]:
        import zmq  # noqa: PLC0415

        messages, self._left_over = self._left_over, []
        if self._sub is None:
            return messages
        recv = self._sub.recv
        with contextlib.suppress(zmq.Again):
            while len(messages) < BATCH:
                messages.append(self._message(recv(zmq.NOBLOCK)))
        return messages

    def _message(self, frame: bytes) -> Message:
        head, _, data = frame.partition(b" ")
        # P2P topics of one bus are of one length, the earlier one of this subscriber too.
        kind = head[len(self._p2p or "") :]
        return Message(_TOPIC_OF_KIND.get(kind) or kind.decode("latin-1"), data)

    def _wait(self, deadline: Deadline, watch: int | None, *, reading: bool = True) -> bool:
        """Wait for anything to do; True if `watch` is closed."""
        import zmq  # noqa: PLC0415

        poller = zmq.Poller()
        for socket in (self._manage.socket, self._sub if reading else None, self._monitor):
            if socket is not None:
                poller.register(socket, zmq.POLLIN)
        if watch is not None:
            poller.register(watch, zmq.POLLERR)
        seconds = max(0.0, self._due - time.monotonic())
        remaining = deadline.remaining()
        if remaining is not None:
            seconds = min(seconds, remaining)
        ready = dict(poller.poll(int(seconds * 1000) + 1))
        if self._monitor in ready:
            self._on_connection_change()
        return watch in ready

    # The subscription.

    def _connect(self, reply: Reply) -> None:
        """Receive under the P2P topic that the bus has given."""
        import zmq  # noqa: PLC0415

        if self._sub is not None and (reply.pub_port != self._pub_port or self._sub_is_dead):
            while messages := self._take():
                self._left_over = [*messages, *self._left_over]
            self._close_sub()
        if self._sub is None:
            self._sub = self._connections.open(zmq.SUB, reply.pub_port, RCVHWM=self._read_ahead)
            refused = zmq.Event.HANDSHAKE_FAILED_AUTH | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
            changes = zmq.Event.CONNECTED | zmq.Event.DISCONNECTED | refused
            self._monitor = self._sub.get_monitor_socket(changes)
            self._pub_port = reply.pub_port
            self._sub_is_dead = False
        # The earlier topic stays, for what is still on its way.
        self._sub.subscribe(reply.topic)
        self._p2p = reply.topic
        self._answered()

    def _close_sub(self) -> None:
        if self._sub is not None and not self._sub.closed:
            self._sub.disable_monitor()
            self._sub.close(0)
        self._sub = self._monitor = None

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
            if not reply.success or self._sub_is_dead:
                # The bus is another one than before, or it has ended the subscription.
                self._p2p = None
                self._request()
            else:
                if self._told:
                    self._on_change(f"{self._endpoint} answers again")
                self._answered()
        elif reply.grants_subscription:
            self._connect(reply)
            self._on_change(
                f"subscribed again at {self._endpoint}: the bus was restarted or had ended the "
                "subscription, what was published in between may be missing"
            )
        else:
            self._failed(explain_refusal(self._endpoint, reply))

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
        import zmq  # noqa: PLC0415

        while self._monitor is not None and self._monitor.poll(0):
            if event_of(self._monitor) not in (zmq.EVENT_CONNECTED, zmq.EVENT_DISCONNECTED):
                self._sub_is_dead = True
        if self._manage.waiting:
            # The request may have gone down with the connection.
            self._manage.give_up()
        self._due = 0.0
