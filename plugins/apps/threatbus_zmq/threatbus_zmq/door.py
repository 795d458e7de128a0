"""Door: a port that peers connect to, and their connections.

ZeroMQ's own sockets would do, but each message to each subscriber would be a call and two copies
of its own there, what is under way could not be seen, nor a connection be told or ended, nor what
comes in be bounded in bytes. So a door speaks ZeroMQ's protocol itself (`zmtp`) over plain sockets:
what lies between it and the peer's machine are the kernels' buffers, and nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import time
from collections.abc import Callable, Mapping
from typing import Final, Generic, Protocol, TypeVar

from threatbus.logger import RateLimited
from threatbus.protected import addresses_of
from threatbus_zmq.link import Accepted, Ended, Link
from threatbus_zmq.tcpinfo import tcp_info
from threatbus_zmq.zmtp import BrokenProtocol, FrameTooLarge, Refused, Role, Session

logger = logging.getLogger("threatbus.zmq.door")

#: Connections with something new that one turn of the loop deals with.
LINKS_PER_TURN: Final = 100
#: Connections that may wait to be accepted.
BACKLOG: Final = 1024
#: Bytes of the kernel's send buffer; few, as what is in it is lost when a connection breaks.
SEND_BUFFER_BYTES: Final = 512 * 1024
#: Bytes read at once from all connections together, and from one at least.
READ_BYTES: Final = 240 * 1024
LEAST_READ_BYTES: Final = 4096
#: Bytes of messages that have not come whole, of all connections together: at least, and as many
#: of the largest frames. What is less than `LEAST_READ_BYTES` of a message is not counted.
BEGUN_BYTES: Final = 64 * 1024 * 1024
BEGUN_FRAMES: Final = 2
#: Seconds for which the rest of a large message may stay away while others wait for its place.
STALLED_SECS: Final = 10.0
#: Seconds that a peer has for greeting and handshake.
HANDSHAKE_SECS: Final = 30.0
#: Seconds after which a machine that has acknowledged nothing is taken for gone. One that is there,
#: but with a buffer full of what its app does not read, is asked by the kernel every two minutes.
GONE_SECS: Final = 150.0
#: Seconds between two looks for such machines.
LOOK_SECS: Final = 10.0
#: Seconds after which new connections are tried again when there was no descriptor for one.
EXHAUSTED_SECS: Final = 1.0

# Why a connection is not read: too many large messages have begun to come.
_CROWD: Final = "crowd"
_NO_DESCRIPTOR: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

T = TypeVar("T")
L = TypeVar("L", bound=Link)
L_contra = TypeVar("L_contra", bound=Link, contravariant=True)


class Hearer(Protocol[L_contra]):
    """Who is told what happens at a door."""

    def on_room(self, link: L_contra) -> None:
        """Hear that nothing waits to be sent over a connection any more."""

    def on_end(self, link: L_contra, broken: BrokenProtocol | None) -> None:
        """Hear that a connection is no more, and whether the peer has broken the protocol."""


class Door(Generic[L]):
    """Accepts peers and serves their connections. Belongs to the endpoint's loop.

    `new_session` makes the protocol's side of a connection from a host, for the `role` that the bus
    has here; `link_type` is what the door's owner knows of a connection.

    With those that have come to terms, the owner does everything: `come` gives the ones that have
    something to read, `read` or `read_messages` read it.
    """

    def __init__(
        self,
        role: Role,
        new_session: Callable[[Role, str], Session],
        link_type: type[L],
        hearer: Hearer[L],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.role = role
        self._new_session = new_session
        self._link_type = link_type
        self._hearer = hearer
        self._clock = clock
        self._log = RateLimited(logger)
        self._listener: socket.socket | None = None
        # For who comes and does not speak yet, and, inside of it, for who has come to terms.
        self._epoll: select.epoll | None = None
        self._speaking: select.epoll | None = None
        self._links: dict[int, L] = {}
        # Those that have come to terms and have something left to read.
        self._unread: dict[int, L] = {}
        # Bytes of a message that is not whole and of which much has come, by descriptor; the one
        # that was begun first is in front. And all of them together.
        self._begun: dict[int, int] = {}
        self._begun_bytes = 0
        # Those that are not read until there is room for what they have begun.
        self._crowded: dict[int, L] = {}
        self._most_begun = max(BEGUN_BYTES, BEGUN_FRAMES * role.max_frame)
        self._buffer = memoryview(bytearray(READ_BYTES))
        # Whether the descriptor says that somebody speaks, and whether somebody does.
        self._listening = True
        self._spoken = False
        # When to accept again; None while connections are accepted.
        self._accept_at: float | None = None
        self._next_look = 0.0

    @property
    def busy(self) -> bool:
        """Whether there is anything to keep house for."""
        return bool(self._links) or self._accept_at is not None

    @property
    def open(self) -> bool:
        """Whether it has been bound, and not been closed since."""
        return self._listener is not None

    @property
    def links(self) -> list[L]:
        """The connections that stand."""
        return list(self._links.values())

    @property
    def receiving(self) -> bool:
        """Whether a large message has come in part."""
        return bool(self._begun)

    @property
    def has_come(self) -> bool:
        """Whether `come` is to be called before anything is waited for."""
        return self._spoken or bool(self._unread)

    def bind(self, host: str, port: int) -> None:
        """Open the door at an address, a name, an interface or ``*``; raises `OSError`."""
        address = _address_of(host)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        with contextlib.ExitStack() as undo:
            undo.callback(listener.close)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Inherited by the connections.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            listener.bind((address, port))
            listener.listen(BACKLOG)
            epoll = select.epoll()
            undo.callback(epoll.close)
            speaking = select.epoll()
            undo.callback(speaking.close)
            epoll.register(listener, select.EPOLLIN)
            epoll.register(speaking, select.EPOLLIN)
            undo.pop_all()
        self._listener, self._epoll, self._speaking = listener, epoll, speaking
        self._listening = True

    def fileno(self) -> int:
        """Give a descriptor that can be read from when there is something to do; ValueError."""
        if self._epoll is None:
            raise ValueError("the door is not open")
        return self._epoll.fileno()

    def listen(self, wanted: bool) -> None:
        """Have the descriptor tell, or not tell, when somebody has something to say.

        Who connects meanwhile comes to terms as ever.
        """
        if wanted != self._listening and self._epoll is not None and self._speaking is not None:
            self._epoll.modify(self._speaking, select.EPOLLIN if wanted else 0)
            self._listening = wanted

    def serve(self) -> None:
        """Let in who has come; and see that who has come to terms is heard from now on."""
        epoll, listener = self._epoll, self._listener
        if epoll is None or listener is None:
            return
        for descriptor, events in epoll.poll(0, LINKS_PER_TURN):
            link = self._links.get(descriptor)
            if link is not None:
                self._come_to_terms(link, events)
            elif descriptor == listener.fileno():
                self._accept(listener, epoll)
            elif self._speaking is not None and descriptor == self._speaking.fileno():
                self._spoken = True

    def come(self) -> list[L]:
        """Give connections with something to read; sends what waits and has room by now."""
        self._spoken = False
        found = list(self._unread.values())
        now = self._clock()
        events_of = self._speaking.poll(0, LINKS_PER_TURN) if self._speaking is not None else ()
        for descriptor, events in events_of:
            link = self._links.get(descriptor)
            if link is None:
                continue
            if events & select.EPOLLOUT and link.go_on(now):
                self._hearer.on_room(link)
            if not events & ~select.EPOLLOUT or descriptor in self._unread:
                continue
            if link.paused_by:
                # It has ended; what it sent is read when it is its time.
                link.give_up_sending()
                self._hearer.on_room(link)
            else:
                found.append(link)
        return found

    def pause(self, link: L, why: str) -> None:
        """Read nothing of a connection until `resume` is called for the same reason."""
        link.paused_by.add(why)
        self._unread.pop(link.tcp.fileno(), None)
        self._watch(link)

    def resume(self, link: L, why: str) -> None:
        """Read a connection again, unless there is another reason not to. Idempotent."""
        if why not in link.paused_by:
            return
        link.paused_by.remove(why)
        if link.open and not link.paused_by:
            self._watch(link)
            if link.session.unread:
                self._unread[link.tcp.fileno()] = link

    def read(self, link: L, limit: int, among: int = 1) -> list[bytes]:
        """Read frames of a connection, at most `limit`; it is one `among` so many."""
        return self._read(link, among, lambda: link.session.read(limit))

    def read_messages(self, link: L, limit: int, among: int = 1) -> list[list[bytes]]:
        """Read whole messages, each with its frames, of at most `limit` frames; as `read`."""
        return self._read(link, among, lambda: link.session.read_messages(limit))

    def keep_house(self, now: float) -> None:
        """Look for peers that do not come to terms, and for machines that are gone."""
        if self._accept_at is not None and now >= self._accept_at:
            self._accept_at = None
            if self._epoll is not None and self._listener is not None:
                self._epoll.modify(self._listener, select.EPOLLIN)
        look = now >= self._next_look
        if look:
            self._next_look = now + LOOK_SECS
        for link in list(self._links.values()):
            if not link.session.ready:
                if now - link.since > HANDSHAKE_SECS:
                    self.cut_off(link, "it has not come to terms in time")
            elif look:
                info = tcp_info(link.tcp)
                if info.waiting and info.silent_secs > GONE_SECS:
                    self.cut_off(link, "its machine does not answer")
        oldest = self._oldest()
        if (
            self._crowded
            and oldest is not None
            and not oldest.paused_by
            and now - oldest.grew_at > STALLED_SECS
        ):
            stalled = BrokenProtocol("the rest of a large message stays away")
            self.cut_off(oldest, str(stalled), stalled)

    def cut_off(self, link: L, why: str = "", broken: BrokenProtocol | None = None) -> None:
        """End a connection; `why` is for the log, if there is anything to say."""
        descriptor = link.tcp.fileno()
        if self._links.pop(descriptor, None) is None:
            return
        self._unread.pop(descriptor, None)
        self._begun_bytes -= self._begun.pop(descriptor, 0)
        self._crowded.pop(descriptor, None)
        self._let_go_on()
        if link.watched:
            # Someone else may have a descriptor of it.
            with contextlib.suppress(OSError):
                self._epoll_of(link).unregister(descriptor)
        if why:
            peer = self.role.peers[0]
            self._log.log(
                link.host, logging.WARNING, "a %s of %s is cut off: %s", peer, link.host, why
            )
        link.close()
        self._hearer.on_end(link, broken)

    def cut_off_others(self, may_stay: Callable[[str], bool], why: str) -> None:
        """End the connections of the clients that may not stay, by their keys."""
        for link in list(self._links.values()):
            if link.session.key is not None and not may_stay(link.session.key):
                self.cut_off(link, why)

    def close(self, linger_secs: float = 0.0) -> None:
        """Close it and all connections; what has been sent has `linger_secs` to arrive. Idempotent.

        `on_end` is not called: whoever closes the door knows.
        """
        links, self._links = self._links, {}
        self._unread.clear()
        self._begun.clear()
        self._begun_bytes = 0
        self._crowded.clear()
        self._spoken = False
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._speaking is not None:
            speaking = {number: link for number, link in links.items() if link.session.ready}
            _wait_for_ends(self._speaking, speaking, self._clock() + linger_secs, self._clock)
            self._speaking.close()
            self._speaking = None
        if self._epoll is not None:
            self._epoll.close()
            self._epoll = None
        for link in links.values():
            link.close()
        self._accept_at = None

    # Inside.

    def _accept(self, listener: socket.socket, epoll: select.epoll) -> None:
        for _ in range(LINKS_PER_TURN):
            try:
                tcp, address = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NO_DESCRIPTOR:
                    self._pause_accepting(listener, epoll, error)
                    return
                # The peer has gone again.
                continue
            self._take_in(tcp, (str(address[0]).partition("%")[0], int(address[1])))

    def _take_in(self, tcp: socket.socket, address: tuple[str, int]) -> None:
        tcp.setblocking(False)
        now = self._clock()
        with contextlib.suppress(OSError):
            # A peer may be gone by now; the loop hears of it.
            tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _find_vanished_peer(tcp)
        session = self._new_session(self.role, address[0])
        link = self._link_type(Accepted(tcp, address, session, now, self._watch))
        try:
            self._watch(link)
        except OSError as error:
            self._say_unwatched(error)
            tcp.close()
            return
        self._links[tcp.fileno()] = link
        link.answer(now)

    def _say_unwatched(self, error: OSError) -> None:
        """Log that the kernel watches no more connections, of which it has a bound, too."""
        peer, why = self.role.peers[0], error.strerror
        self._log.log(error.errno, logging.ERROR, "a %s cannot be served: %s", peer, why)

    def _pause_accepting(
        self, listener: socket.socket, epoll: select.epoll, error: OSError
    ) -> None:
        self._log.log(
            "descriptors",
            logging.ERROR,
            "no further %s can connect for now: %s; allow the bus more descriptors (LimitNOFILE)",
            self.role.peers[0],
            error.strerror,
        )
        epoll.modify(listener, 0)
        self._accept_at = self._clock() + EXHAUSTED_SECS

    def _come_to_terms(self, link: L, events: int) -> None:
        """Go on with greeting and handshake."""
        if events & select.EPOLLOUT:
            link.go_on(self._clock())
        if events & ~select.EPOLLOUT:
            self._read(link, 1, lambda: self._shake_hands(link))

    def _shake_hands(self, link: L) -> list[bytes]:
        link.session.read(0)
        if link.session.ready and self._epoll is not None:
            self._epoll.unregister(link.tcp)
            link.watched = False
            try:
                self._watch(link)
            except OSError as error:
                self._say_unwatched(error)
                raise Ended from None
        return []

    def _read(self, link: L, among: int, read: Callable[[], list[T]]) -> list[T]:
        """Receive what has come, unless something is left to read; read, and answer."""
        session = link.session
        found: list[T] = []
        if not link.open:
            return found
        try:
            if not session.unread:
                link.receive(self._buffer[: max(READ_BYTES // among, LEAST_READ_BYTES)])
            found = read()
        except Ended:
            self.cut_off(link)
            return found
        except BrokenProtocol as error:
            # Who refuses a peer, says so; here it is told.
            link.answer(self._clock())
            self.cut_off(link, "" if isinstance(error, Refused) else str(error), error)
            return found
        link.answer(self._clock())
        self._note_left(link, whole=bool(found))
        return found

    def _note_left(self, link: L, *, whole: bool) -> None:
        """Note whether there is more to read, and what has only begun to come.

        `whole` says that a message has come whole, so that what has begun now is another one.
        """
        descriptor, session = link.tcp.fileno(), link.session
        # Those that were read come last.
        self._unread.pop(descriptor, None)
        if session.unread and session.ready:
            self._unread[descriptor] = link
        before = self._begun.get(descriptor, 0)
        begun = session.begun if session.begun > LEAST_READ_BYTES else 0
        if whole or not begun:
            self._begun.pop(descriptor, None)
        if begun:
            self._begun[descriptor] = begun
            link.grew_at = self._clock()
        self._begun_bytes += begun - before
        crowd = self._begun_bytes > self._most_begun
        if crowd and begun and link is not self._oldest():
            self._crowded[descriptor] = link
            self.pause(link, _CROWD)
        self._let_go_on()

    def _let_go_on(self) -> None:
        """Read those again that had to wait with what they have begun.

        All if there is room; else who began first, so that there will be room for the others.
        """
        if not self._crowded:
            return
        if self._begun_bytes <= self._most_begun:
            go_on = list(self._crowded.values())
            self._crowded.clear()
        else:
            oldest = self._oldest()
            go_on = [link for link in self._crowded.values() if link is oldest]
            self._crowded = {n: link for n, link in self._crowded.items() if link is not oldest}
        for link in go_on:
            self.resume(link, _CROWD)

    def _oldest(self) -> L | None:
        """Give the one whose large message began first, if any has begun."""
        first = next(iter(self._begun), None)
        return None if first is None else self._links[first]

    def _watch(self, link: Link) -> None:
        """Hear of a connection what there is to hear; `OSError` if the kernel has no room."""
        epoll = self._epoll_of(link)
        events = 0 if link.paused_by else select.EPOLLIN
        if link.blocked:
            events |= select.EPOLLOUT
        if events and link.watched:
            epoll.modify(link.tcp, events)
        elif events:
            epoll.register(link.tcp, events)
        elif link.watched:
            # Of one that is registered for nothing, its end would be told again and again.
            epoll.unregister(link.tcp)
        link.watched = bool(events)

    def _epoll_of(self, link: Link) -> select.epoll:
        epoll = self._speaking if link.session.ready else self._epoll
        if epoll is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return epoll


def loss(link: Link, broken: BrokenProtocol | None, too_large: str) -> str | None:
    """Give in words that a peer is cut off for breaking the protocol, and what it sent is lost.

    None if it is not, or had not come to terms; `too_large` says what is of a large frame.
    """
    if broken is None or not link.session.ready:
        return None
    large = isinstance(broken, FrameTooLarge)
    what = f"sent {too_large}" if large else f"broke the protocol: {broken}"
    return f"connection closed by the bus: {link.host} {what}; what it sent is lost"


def _address_of(host: str) -> str:
    """Give the address that ZeroMQ would bind for `host`: IPv6 only if it is written so."""
    for address in addresses_of(host):
        if (":" in address) == (":" in host):
            return address
    raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))


def _wait_for_ends(
    epoll: select.epoll, links: Mapping[int, Link], deadline: float, clock: Callable[[], float]
) -> None:
    """End sending, and wait until each peer has closed its side too; at most to `deadline`.

    Then it has got all. A connection that is closed at once, and over which the peer says
    something more, would be reset, and what is on its way with it.
    """
    left = set(links)
    for descriptor, link in links.items():
        link.end_sending()
        try:
            if link.watched:
                epoll.modify(descriptor, select.EPOLLIN)
            else:
                epoll.register(descriptor, select.EPOLLIN)
        except OSError:
            # Its end cannot be seen.
            left.discard(descriptor)
    while left and (rest := deadline - clock()) > 0:
        for descriptor, _ in epoll.poll(rest):
            if descriptor in left and links[descriptor].is_ended():
                left.remove(descriptor)
                epoll.unregister(descriptor)


def _find_vanished_peer(tcp: socket.socket) -> None:
    """Have the kernel notice a peer that vanished without closing.

    Pings of ZeroMQ's protocol would do so too, and more: libzmq up to 4.3.5 at least aborts its
    process when a connection ends while a ping waits for a reader that has paused.
    """
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
    tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
    tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
