"""Link: one TCP connection at a door: what has come over it, and what is still to be sent."""

from __future__ import annotations

import contextlib
import socket
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from threatbus_zmq.zmtp import Session, count_unsent

#: Bytes read at once where a peer is only waited for to end.
_LITTLE: Final = 2048


class Ended(Exception):
    """The connection is no more, since the peer or the network has ended it."""


class _Piece(NamedTuple):
    """What is to be sent: messages to `p2p`, or none and something of the protocol's own."""

    data: bytes
    p2p: str = ""
    messages: int = 0


class Accepted(NamedTuple):
    """What a door knows of a connection that it has just accepted."""

    tcp: socket.socket
    #: The peer's host and port.
    address: tuple[str, int]
    session: Session
    at: float
    #: Is called when something waits for room in the kernel's buffer, or no longer does.
    watch_room: Callable[[Link], None]


class Link:
    """One connection. Belongs to the endpoint's loop; nothing in it waits."""

    def __init__(self, accepted: Accepted) -> None:
        self.tcp = accepted.tcp
        #: The peer's address.
        self.host, self.port = accepted.address
        self.session = accepted.session
        self.since = accepted.at
        #: When the kernel's buffer last took something of what waits; None while nothing does.
        self.blocked_since: float | None = None
        #: Why nothing is read of it for now.
        self.paused_by: set[str] = set()
        #: Whether the loop hears of it.
        self.watched = False
        #: When more of a message came that is not whole yet.
        self.grew_at = accepted.at
        self._watch_room = accepted.watch_room
        # What the kernel's buffer did not take yet, and how much of the first piece it has.
        self._unsent: deque[_Piece] = deque()
        self._sent_of_first = 0

    @property
    def open(self) -> bool:
        """Whether it has not been closed by the bus."""
        return self.tcp.fileno() >= 0

    @property
    def blocked(self) -> bool:
        """Whether something waits for room in the kernel's buffer."""
        return bool(self._unsent)

    def unsent(self, p2p: str) -> int:
        """Count the messages for `p2p` of which the kernel has not taken all; any thread."""
        pieces, sent = tuple(self._unsent), self._sent_of_first
        return sum(
            count_unsent(piece.data, sent) if at == 0 else piece.messages
            for at, piece in enumerate(pieces)
            if piece.p2p == p2p
        )

    def receive(self, room: memoryview) -> None:
        """Take in what has come, as much as there is `room` for; raises `Ended`."""
        try:
            count = self.tcp.recv_into(room)
        except BlockingIOError:
            return
        except OSError:
            raise Ended from None
        if not count:
            raise Ended
        self.session.receive(room[:count])

    def answer(self, now: float) -> None:
        """Send what the protocol wants sent, unless something else waits."""
        if not self.blocked and (replies := self.session.take_replies()):
            self.send(replies, now)

    def send(self, data: bytes, now: float, p2p: str = "", messages: int = 0) -> None:
        """Send `data`, which is so many messages to `p2p`; what the kernel does not take waits."""
        taken = 0 if self._unsent else self._offer(data)
        if taken < len(data):
            if not self._unsent:
                self._sent_of_first = taken
                self.blocked_since = now
                self._unsent.append(_Piece(data, p2p, messages))
                self._watch_room(self)
                return
            self._unsent.append(_Piece(data, p2p, messages))

    def go_on(self, now: float) -> bool:
        """Send more of what waits, now that there is room; says whether nothing waits any more."""
        while self._unsent:
            rest = memoryview(self._unsent[0].data)[self._sent_of_first :]
            taken = self._offer(rest)
            if taken:
                self.blocked_since = now
            if taken < len(rest):
                self._sent_of_first += taken
                return False
            self._unsent.popleft()
            self._sent_of_first = 0
        self.blocked_since = None
        self._watch_room(self)
        self.answer(now)
        return not self.blocked

    def give_up_sending(self) -> None:
        """Forget what waits: the peer takes nothing more. What it sent can still be read."""
        self._unsent.clear()
        self._sent_of_first = 0
        self.blocked_since = None
        self._watch_room(self)

    def end_sending(self) -> None:
        """Tell the peer that nothing more comes, after what it has not got yet."""
        with contextlib.suppress(OSError):
            self.tcp.shutdown(socket.SHUT_WR)

    def is_ended(self) -> bool:
        """Say whether the peer has closed its side; what it says instead is not heard."""
        try:
            return not self.tcp.recv(_LITTLE)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        """End the connection, whoever else may have a descriptor of it."""
        with contextlib.suppress(OSError):
            self.tcp.shutdown(socket.SHUT_RDWR)
        self.tcp.close()

    def _offer(self, data: bytes | memoryview) -> int:
        """Give the kernel what it takes; a connection that has ended takes nothing more."""
        try:
            return self.tcp.send(data)
        except OSError:
            # No room; or it has ended, which the loop hears of by itself.
            return 0
