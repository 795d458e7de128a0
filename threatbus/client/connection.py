"""The connection of one client: its sockets, and the requests it makes on the manage socket."""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final, Self

import msgspec

from threatbus.client.endpoint import Endpoint, needs_ipv6
from threatbus.client.silence import silence
from threatbus.errors import BusUnreachable, Refused

if TYPE_CHECKING:
    import zmq

#: Seconds in which a bus has to answer.
DEFAULT_TIMEOUT_SECS: Final = 3.0
#: Seconds that saying good-bye may take.
UNSUBSCRIBE_SECS: Final = 1.0


class Deadline:
    """A moment in the future; None for never."""

    def __init__(self, seconds: float | None) -> None:
        self._at = None if seconds is None else time.monotonic() + seconds

    def remaining(self) -> float | None:
        """Give the seconds until then, 0 if it is over."""
        return None if self._at is None else max(0.0, self._at - time.monotonic())

    @property
    def over(self) -> bool:
        """Whether it has passed."""
        return self.remaining() == 0.0


class Reply(msgspec.Struct):
    """What a bus answers on its manage socket."""

    status: str
    topic: str = ""
    pub_port: int = 0
    sub_port: int = 0
    reason: str | None = None
    #: Prefixes of the topics that this client may publish; None where nobody is asked for a key.
    write: list[str] | None = None

    @property
    def success(self) -> bool:
        """Whether the bus did what it was asked for."""
        return self.status == "success"

    @property
    def grants_subscription(self) -> bool:
        """Whether it is the reply to a subscribe, with all that an app needs."""
        return self.success and bool(self.topic and self.pub_port and self.sub_port)


class Connections:
    """The ZeroMQ context of one client, and the only place that opens sockets."""

    def __init__(self, endpoint: Endpoint) -> None:
        import zmq  # noqa: PLC0415 (only who talks to a bus pays)

        self.endpoint = endpoint
        self._ipv6 = needs_ipv6(endpoint)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()

    def open(self, kind: int, port: int | None = None, **options: int) -> zmq.Socket[bytes]:
        """Open a socket to `port` of the host; `options` by their ZeroMQ names."""
        import zmq  # noqa: PLC0415

        socket = self._context.socket(kind)
        options = {"LINGER": 0, "IPV6": self._ipv6, "RECONNECT_IVL_MAX": 1000, **options}
        for name, value in options.items():
            socket.setsockopt(getattr(zmq, name), value)
        self.endpoint.secure(socket)
        socket.connect(self.endpoint.address(port))
        return socket

    def close(self, linger_secs: float = 0.0) -> None:
        """Close all sockets; what they still hold has `linger_secs` to leave. Idempotent."""
        self._context.destroy(linger=int(linger_secs * 1000))


class Manage:
    """The REQ socket: one request at a time, each with a reply or given up.

    A REQ that waits for a reply takes no other request, so giving up means a new socket.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self.endpoint = connections.endpoint
        self.socket = self._open()
        #: Whether a request is under way.
        self.waiting = False

    def send(self, action: str, topic: object, **more: object) -> None:
        """Send a request, which never blocks. None may be under way."""
        request = msgspec.json.encode({"action": action, "topic": topic, **more})
        if not self._sent(request):
            # ZeroMQ has given up the connection, as it does when the bus has refused the key.
            self.give_up()
            # The new one may be refused before this: then no reply comes, as to any other.
            self._sent(request)
        self.waiting = True

    def take_reply(self) -> Reply | None:
        """Give the reply if it has come; `BusUnreachable` if no bus can have sent it."""
        if not self.socket.poll(0):
            return None
        frame = self.socket.recv()
        self.waiting = False
        try:
            return msgspec.json.decode(frame, type=Reply, strict=False)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise BusUnreachable(
                f"something answers at {self.endpoint}, but it is no Threat Bus: "
                f"it said {frame[:60]!r}"
            ) from None

    def give_up(self) -> None:
        """Forget the request that is under way."""
        self.socket.close(0)
        self.socket = self._open()
        self.waiting = False

    def ask(self, timeout: float, action: str, topic: object, **more: object) -> Reply:
        """Send a request and wait for its reply.

        `BusUnreachable` if none comes in time, `Refused` if that is for want of the right keys.
        """
        reply = self._await_reply(timeout, action, topic, **more)
        if reply is None:
            raise silence(self.endpoint, timeout)
        return reply

    def subscribe(self, timeout: float, topics: object, **more: object) -> Reply:
        """Ask for a subscription; `Refused` if the bus does not grant it."""
        reply = self.ask(timeout, "subscribe", topics, **more)
        if not reply.grants_subscription:
            raise Refused(explain_refusal(self.endpoint, reply))
        return reply

    def heartbeat(self, timeout: float, p2p: str) -> bool:
        """Show a sign of life; False if the bus does not know the subscription."""
        return self.ask(timeout, "heartbeat", p2p).success

    def unsubscribe(self, p2p: str) -> bool:
        """End a subscription; False if the bus did not know it or does not answer."""
        with contextlib.suppress(BusUnreachable):
            reply = self._await_reply(UNSUBSCRIBE_SECS, "unsubscribe", p2p)
            return reply is not None and reply.success
        return False

    def _await_reply(
        self, timeout: float, action: str, topic: object, **more: object
    ) -> Reply | None:
        if self.waiting:
            self.give_up()
        self.send(action, topic, **more)
        self.socket.poll(int(timeout * 1000))
        reply = self.take_reply()
        if reply is None:
            self.give_up()
        return reply

    def _sent(self, request: bytes) -> bool:
        import zmq  # noqa: PLC0415

        try:
            self.socket.send(request, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def _open(self) -> zmq.Socket[bytes]:
        import zmq  # noqa: PLC0415

        return self._connections.open(zmq.REQ)


class Session(ABC):
    """What stands for the length of a ``with`` block."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """End it; called again, do nothing."""


def explain_refusal(endpoint: Endpoint, reply: Reply) -> str:
    """Say why a reply to a subscribe is no subscription."""
    if reply.success:
        return f"what answers at {endpoint} grants a subscription without topic or ports"
    return f"the bus at {endpoint} refuses the subscription: {reply.reason or reply.status}"
