"""Link: the TCP connection of one SUB, with what it has asked for and what is still to be sent."""

from __future__ import annotations

import contextlib
import socket
from collections import deque
from collections.abc import Callable
from typing import Final

from threatbus_zmq.zmtp import BrokenProtocol, Change, Frames, Refused, Session, count_unsent

#: Bytes read from a connection at once: what a SUB sends is small.
READ_BYTES: Final = 16 * 1024
#: Answers, each to what was read at once, that a peer may let wait by not reading them.
MAX_UNREAD_ANSWERS: Final = 100


class Ended(Exception):
    """The connection is no more; says why, empty if the peer or the network has ended it."""


class Link:
    """One connection. Belongs to the endpoint's loop; nothing in it waits."""

    def __init__(
        self,
        tcp: socket.socket,
        host: str,
        session: Session,
        now: float,
        watch_room: Callable[[Link, bool], None],
    ) -> None:
        self.tcp = tcp
        #: The peer's address.
        self.host = host
        self.session = session
        self.since = self.last_heard = now
        #: When the peer was last asked for a sign of life; None if it has given one since.
        self.pinged_at: float | None = None
        #: Since when the kernel's buffer has taken nothing of what waits; None while nothing does.
        self.blocked_since: float | None = None
        #: By P2P topic: the prefixes that it has subscribed to, without the topic.
        self.wanted: dict[str, set[bytes]] = {}
        #: Bytes of prefixes that it named without an issued topic.
        self.stray_bytes = 0
        # Has the loop told, or not told, when the kernel's buffer has room again.
        self._watch_room = watch_room
        # What the kernel's buffer did not take yet: whole pieces, and how much of the first it has.
        self._unsent: deque[bytes] = deque()
        self._sent_of_first = 0

    @property
    def open(self) -> bool:
        """Whether it has not been closed by the bus."""
        return self.tcp.fileno() >= 0

    @property
    def blocked(self) -> bool:
        """Whether something waits for room in the kernel's buffer."""
        return bool(self._unsent)

    def unsent_frames(self) -> int:
        """Count the frames that wait, one that is sent in part included; from any thread."""
        pieces, sent = tuple(self._unsent), self._sent_of_first
        return sum(count_unsent(piece, 0 if at else sent) for at, piece in enumerate(pieces))

    def receive(self, now: float) -> list[Change]:
        """Read what has come, and answer it; raises `Ended`."""
        try:
            data = self.tcp.recv(READ_BYTES)
        except BlockingIOError:
            return []
        except OSError:
            raise Ended from None
        if not data:
            raise Ended
        self.last_heard = now
        self.pinged_at = None
        try:
            changes = list(self.session.receive(data))
        except Refused:
            # Who refuses it, says so; here it is told.
            self.answer(now)
            raise Ended from None
        except BrokenProtocol as error:
            raise Ended(str(error)) from None
        self.answer(now)
        return changes

    def answer(self, now: float) -> None:
        """Send what the protocol wants sent; raises `Ended`."""
        if replies := self.session.take_replies():
            if len(self._unsent) >= MAX_UNREAD_ANSWERS:
                raise Ended("it asks, and reads no answers")
            self._send(replies, now)

    def ask_for_sign(self, now: float) -> None:
        """Send a ping, unless something waits to be sent before it."""
        if not self.blocked:
            self.pinged_at = now
            self._send(self.session.ping(), now)

    def send(self, p2p: str, topic: bytes, frames: Frames, now: float) -> None:
        """Send what of `frames` it has asked for; what the kernel does not take at once waits."""
        wanted = self.wanted[p2p]
        if b"" not in wanted:
            frames = frames.beginning_with(wanted)
        if frames:
            self._send(self.session.messages(topic, frames), now)

    def go_on(self, now: float) -> bool:
        """Send more of what waits, now that there is room; says whether nothing waits any more."""
        while self._unsent:
            rest = memoryview(self._unsent[0])[self._sent_of_first :]
            taken = self._offer(rest)
            if taken:
                self.blocked_since = now
            if taken < len(rest):
                self._sent_of_first += taken
                return False
            self._unsent.popleft()
            self._sent_of_first = 0
        self.blocked_since = None
        self._watch_room(self, False)
        return True

    def end_sending(self) -> None:
        """Tell the peer that nothing more comes, after what it has not got yet."""
        with contextlib.suppress(OSError):
            self.tcp.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Give the connection back."""
        self.tcp.close()
        self._unsent.clear()

    def _send(self, data: bytes, now: float) -> None:
        taken = 0 if self._unsent else self._offer(data)
        if taken < len(data):
            if not self._unsent:
                self._sent_of_first = taken
                self.blocked_since = now
                self._watch_room(self, True)
            self._unsent.append(data)

    def _offer(self, data: bytes | memoryview) -> int:
        """Give the kernel what it takes; a connection that has ended takes nothing more."""
        try:
            return self.tcp.send(data)
        except OSError:
            # No room; or it has ended, which the loop hears of by itself.
            return 0
