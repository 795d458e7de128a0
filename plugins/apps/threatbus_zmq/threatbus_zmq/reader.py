"""Reader: the connection of one SUB, with what it has asked for."""

from __future__ import annotations

from typing import Final

from threatbus_zmq.link import Accepted, Link
from threatbus_zmq.tcpinfo import tcp_info
from threatbus_zmq.zmtp import Frames

#: Bytes sent after which it is looked at how much the peer's machine takes.
LOOK_BYTES: Final = 64 * 1024


class Reader(Link):
    """One SUB. Belongs to the endpoint's loop."""

    def __init__(self, accepted: Accepted) -> None:
        super().__init__(accepted)
        #: By P2P topic: the prefixes that it has named, without the topic.
        self.wanted: dict[str, set[bytes]] = {}
        #: The most bytes that the peer's machine has ever offered to take, read by its app or not.
        self.widest = 0
        #: Bytes of prefixes that it named without an issued topic.
        self.stray_bytes = 0
        # Bytes that may be sent until the next look.
        self._until_look = 0

    def deliver(self, p2p: str, topic: bytes, frames: Frames, now: float) -> None:
        """Send what of `frames` it has asked for; what the kernel does not take at once waits."""
        suffixes = self.wanted[p2p]
        if b"" not in suffixes:
            frames = frames.beginning_with(suffixes)
        if not frames:
            return
        data = self.session.messages(topic, frames)
        self._until_look -= len(data)
        if self._until_look <= 0:
            self._until_look = LOOK_BYTES
            self.widest = max(self.widest, tcp_info(self.tcp).window)
        self.send(data, now, p2p, len(frames))
