"""Publishing: knows whether the bus is connected, and waits rather than drops."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from threatbus.client.connection import (
    DEFAULT_TIMEOUT_SECS,
    UNSUBSCRIBE_SECS,
    Connections,
    Deadline,
    Manage,
    Session,
)
from threatbus.client.endpoint import Endpoint
from threatbus.client.silence import silence
from threatbus.errors import BusUnreachable, Refused, Undelivered

if TYPE_CHECKING:
    import zmq

#: Seconds for which the bus may take nothing of what is published.
MAX_STALL_SECS: Final = 60.0
#: Seconds that the last messages have to leave.
MAX_LINGER_SECS: Final = 30.0
#: Messages that may wait in the socket of a publisher, ordinary ones and large ones.
PIPE_MESSAGES: Final = 1000
PIPE_LARGE_MESSAGES: Final = 8
LARGE_BYTES: Final = 256 * 1024
#: What a bus takes in one frame, unless it is told otherwise (plugins.apps.zmq.max_message_size).
USUAL_FRAME_BYTES: Final = 10 * 1024 * 1024
#: Milliseconds that a bus has to close the connection at a frame that is larger.
VERDICT_MS: Final = 1000
#: Messages after which a publisher looks whether the bus is still connected.
LOOK_EVERY: Final = 64
#: Milliseconds of waiting for room after which it looks again.
SEND_TIMEOUT_MS: Final = 200
#: A topic that nobody publishes to: subscribing to it tells the ports and brings no messages.
NO_TOPIC: Final = "threatbus/none"


class Publisher(Session):
    """Publishes to a bus, and knows whether it is connected.

    The socket is an XPUB: the bus's own subscription arrives on it with the connection, and a
    full pipe makes `publish` wait instead of dropping. A lost connection ends the publishing with
    `Undelivered`, also if it is back at once, since nobody can say what was lost with it.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        name: str | None = None,
        timeout: float = DEFAULT_TIMEOUT_SECS,
        max_stall: float = MAX_STALL_SECS,
    ) -> None:
        """Connect; raises `BusUnreachable` or `Refused`."""
        import zmq  # noqa: PLC0415

        self._endpoint = endpoint
        self._timeout = timeout
        self._max_stall = max_stall
        self._wish = {"name": name} if name else {}
        #: Messages that were handed over while the bus was connected.
        self.handed_over = 0
        # What the bus's SUB is subscribed to, and the topics that are known to be covered by it.
        self._prefixes: list[str] = []
        self._wanted: set[str] = set()
        # A subscription to nothing, which tells the ports and later whether it is the same bus.
        self._p2p: str | None = None
        # What the bus lets this client publish; None where it asks for no keys.
        self._writes: tuple[str, ...] | None = None
        self._connections = Connections(endpoint)
        # A context of its own: when it ends, what was published has left.
        self._outlet = Connections(endpoint)
        self._manage = Manage(self._connections)
        # Has something to read once the connection has been lost; None before there was one.
        self._loss: zmq.Socket[bytes] | None = None
        try:
            self._xpub = self._open(self._subscribe())
            self._loss = self._xpub.get_monitor_socket(zmq.Event.DISCONNECTED)
        except BaseException:
            self.close(linger=0)
            raise

    def publish(self, topic: str, data: bytes) -> None:
        """Hand one document over; waits while the bus takes nothing. Raises `Undelivered`."""
        import zmq  # noqa: PLC0415

        if topic not in self._wanted:
            self._await_interest(topic)
        frame = b"%b %b" % (topic.encode(), data)
        if len(frame) > LARGE_BYTES:
            self._xpub.setsockopt(zmq.SNDHWM, PIPE_LARGE_MESSAGES)
        if self.handed_over % LOOK_EVERY == 0:
            self.check_connected()
        try:
            self._xpub.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            self._send_patiently(frame)
        self.handed_over += 1
        if len(frame) > USUAL_FRAME_BYTES and self._was_lost(within_ms=VERDICT_MS):
            raise self._undelivered(
                f"{self._endpoint} has closed the connection at an object of {len(data):,} bytes, "
                "which is probably more than its max_message_size"
            )

    def may_write(self, topic: str) -> bool:
        """Say whether the bus takes objects of `topic` from this client, as it said at the start.

        An answer to a snapshot request is subject to the topic of the object in it.
        """
        return self._writes is None or topic.startswith(self._writes)

    def settle(self) -> None:
        """End the subscription that told the ports: for a publisher that stands for long.

        Nothing reads what comes for it, and without signs of life the bus would complain of it.
        """
        p2p, self._p2p = self._p2p, None
        if p2p is not None:
            self._manage.unsubscribe(p2p)

    def check_connected(self) -> None:
        """Raise `Undelivered` if the connection was lost, also if it is back."""
        if self._was_lost():
            raise self._undelivered(f"the connection to {self._endpoint} was lost")

    def finish(self, linger: float = MAX_LINGER_SECS) -> None:
        """Wait until all has left, `linger` seconds at most; raises `Undelivered` if it has not.

        Last of all it ends its subscription: if the bus knows it, that is still the bus which
        was published to, and no other one has taken its place.
        """
        try:
            p2p = self._fresh_p2p()
        except (BusUnreachable, Refused) as error:
            raise self._undelivered(str(error).splitlines()[0]) from error
        self.check_connected()
        deadline = Deadline(linger)
        self._close_outlet(linger)
        if deadline.over:
            raise self._undelivered(f"{self._endpoint} did not take all within {linger:g} s")
        self._p2p = None
        if not self._manage.unsubscribe(p2p):
            raise self._undelivered(f"the bus at {self._endpoint} ended or was restarted")

    def close(self, linger: float = UNSUBSCRIBE_SECS) -> None:
        """Close the sockets; what is under way has `linger` seconds to leave. Idempotent."""
        p2p, self._p2p = self._p2p, None
        try:
            if p2p is not None:
                self._manage.unsubscribe(p2p)
        finally:
            self._connections.close()
            self._close_outlet(linger)

    def _close_outlet(self, linger: float) -> None:
        if self._loss is not None:
            self._xpub.disable_monitor()
            self._loss = None
        self._outlet.close(linger)

    def _subscribe(self) -> int:
        """Subscribe to nothing; gives the port to publish to."""
        reply = self._manage.subscribe(self._timeout, NO_TOPIC, snapshot=0, **self._wish)
        self._p2p = reply.topic
        self._writes = None if reply.write is None else tuple(reply.write)
        return reply.sub_port

    def _fresh_p2p(self) -> str:
        """Give a subscription that stands; the first one may have ended for lack of heartbeats."""
        if self._p2p is None or not self._manage.heartbeat(self._timeout, self._p2p):
            self._subscribe()
        return self._p2p or ""

    def _open(self, port: int) -> zmq.Socket[bytes]:
        import zmq  # noqa: PLC0415

        socket = self._outlet.open(zmq.XPUB, port, XPUB_NODROP=1, SNDHWM=PIPE_MESSAGES)
        if not socket.poll(int(self._timeout * 1000)):
            what = f"the bus at {self._endpoint} answers, but the port for publishing does not:\n"
            raise silence(replace(self._endpoint, port=port), self._timeout, "XPUB", what)
        return socket

    def _await_interest(self, topic: str) -> None:
        """Wait until the bus is known to take `topic`: what nobody takes, ZeroMQ drops.

        Its subscriptions come one by one; the bus of old has three.
        """
        deadline = Deadline(self._timeout)
        while not topic.startswith(tuple(self._prefixes)):
            self.check_connected()
            if not self._xpub.poll(int((deadline.remaining() or 0) * 1000)):
                raise self._undelivered(f"the bus at {self._endpoint} takes nothing on {topic}")
            frame = self._xpub.recv()
            if frame[:1] == b"\x01":
                self._prefixes.append(frame[1:].decode("latin-1"))
        self._wanted.add(topic)

    def _was_lost(self, within_ms: int = 0) -> bool:
        return self._loss is None or bool(self._loss.poll(within_ms))

    def _send_patiently(self, frame: bytes) -> None:
        """Wait for room in the pipe, looking every now and then whether the bus is still there."""
        import zmq  # noqa: PLC0415

        deadline = Deadline(self._max_stall)
        self._xpub.setsockopt(zmq.SNDTIMEO, SEND_TIMEOUT_MS)
        while True:
            self.check_connected()
            try:
                self._xpub.send(frame)
            except zmq.Again:
                if deadline.over:
                    raise self._undelivered(
                        f"{self._endpoint} has taken nothing for {self._max_stall:.0f} s"
                    ) from None
            else:
                return

    def _undelivered(self, reason: str) -> Undelivered:
        return Undelivered(reason, self.handed_over)
