"""Link: the TCP connection of one SUB, with what it has asked for and what is still to be sent."""

from __future__ import annotations

import contextlib
import socket
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from threatbus_zmq.tcpinfo import tcp_info
from threatbus_zmq.zmtp import (
    BrokenProtocol,
    Change,
    Frames,
    Refused,
    Session,
    count_unsent,
)

#: Bytes read from a connection at once: what a SUB sends is small, and a flood is to take turns.
READ_BYTES: Final = 2048
#: Bytes sent after which it is looked at how much the peer's machine takes.
LOOK_BYTES: Final = 64 * 1024


class Ended(Exception):
    """The connection is no more; says why, empty if the peer or the network has ended it."""


class _Piece(NamedTuple):
    """Frames to be sent: messages for `p2p`, or none and something of the protocol's own."""

    data: bytes
    p2p: str = ""
    messages: int = 0


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
        self.since = now
        #: When the kernel's buffer last took something of what waits; None while nothing does.
        self.blocked_since: float | None = None
        #: By P2P topic: the prefixes that it has named, without the topic.
        self.wanted: dict[str, set[bytes]] = {}
        #: The most bytes that the peer's machine has ever offered to take, read by its app or not.
        self.widest = 0
        #: Bytes of prefixes that it named without an issued topic.
        self.stray_bytes = 0
        # Has the loop told, or not told, when the kernel's buffer has room again.
        self._watch_room = watch_room
        # What the kernel's buffer did not take yet, and how much of the first piece it has.
        self._unsent: deque[_Piece] = deque()
        self._sent_of_first = 0
        # Bytes that may be sent until the next look.
        self._until_look = 0

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
        """Send what the protocol wants sent, unless something else waits."""
        if not self.blocked and (replies := self.session.take_replies()):
            self._send(_Piece(replies), now)

    def send(self, p2p: str, topic: bytes, frames: Frames, now: float) -> None:
        """Send what of `frames` it has asked for; what the kernel does not take at once waits."""
        suffixes = self.wanted[p2p]
        if b"" not in suffixes:
            frames = frames.beginning_with(suffixes)
        if frames:
            self._send(_Piece(self.session.messages(topic, frames), p2p, len(frames)), now)

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
        self._watch_room(self, False)
        self.answer(now)
        return not self.blocked

    def end_sending(self) -> None:
        """Tell the peer that nothing more comes, after what it has not got yet."""
        with contextlib.suppress(OSError):
            self.tcp.shutdown(socket.SHUT_WR)

    def is_ended(self) -> bool:
        """Say whether the peer has closed its side; what it says instead is not heard."""
        try:
            return not self.tcp.recv(READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        """End the connection, whoever else may have a descriptor of it."""
        with contextlib.suppress(OSError):
            self.tcp.shutdown(socket.SHUT_RDWR)
        self.tcp.close()

    def _send(self, piece: _Piece, now: float) -> None:
        self._until_look -= len(piece.data)
        if self._until_look <= 0:
            self._until_look = LOOK_BYTES
            self.widest = max(self.widest, tcp_info(self.tcp).window)
        taken = 0 if self._unsent else self._offer(piece.data)
        if taken < len(piece.data):
            if not self._unsent:
                self._sent_of_first = taken
                self.blocked_since = now
                self._watch_room(self, True)
            self._unsent.append(piece)

    def _offer(self, data: bytes | memoryview) -> int:
        """Give the kernel what it takes; a connection that has ended takes nothing more."""
        try:
            return self.tcp.send(data)
        except OSError:
            # No room; or it has ended, which the loop hears of by itself.
            return 0
