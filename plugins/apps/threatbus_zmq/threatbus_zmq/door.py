"""Door: the port that SUBs connect to, and their connections.

ZeroMQ's own socket would do, but each message to each subscriber would be a call and two copies of
its own there, what is under way could not be seen, nor a connection be told or ended. So this
door speaks ZeroMQ's protocol itself (`zmtp`) over plain sockets: a batch is one copy and one
call, and the kernel's buffer is all that lies between an outq and the subscriber's machine.
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
from typing import Final, Protocol

from threatbus.logger import RateLimited
from threatbus.protected import addresses_of
from threatbus_zmq.link import Ended, Link
from threatbus_zmq.tcpinfo import tcp_info
from threatbus_zmq.zmtp import Change, Session

logger = logging.getLogger("threatbus.zmq.door")

#: Connections that one turn of the loop deals with.
LINKS_PER_TURN: Final = 100
#: Connections that may wait to be accepted.
BACKLOG: Final = 1024
#: Bytes of the kernel's send buffer; few, as what is in it is lost when a connection breaks.
SEND_BUFFER_BYTES: Final = 512 * 1024
#: Seconds that a peer has for greeting and handshake.
HANDSHAKE_SECS: Final = 30.0
#: Seconds after which a machine that has acknowledged nothing is taken for gone. One that is there,
#: but with a buffer full of what its app does not read, is asked by the kernel every two minutes.
GONE_SECS: Final = 150.0
#: Seconds between two looks for such machines.
LOOK_SECS: Final = 10.0
#: Seconds after which new connections are tried again when there was no descriptor for one.
EXHAUSTED_SECS: Final = 1.0

_NO_DESCRIPTOR: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Hearer(Protocol):
    """Who is told what happens at the door: the publisher."""

    def on_change(self, link: Link, change: Change) -> None:
        """Hear that a peer has subscribed to something, or unsubscribed."""

    def on_room(self, link: Link) -> None:
        """Hear that nothing waits to be sent over a connection any more."""

    def on_end(self, link: Link) -> None:
        """Hear that a connection is no more."""


class Door:
    """Accepts SUBs and serves their connections. Belongs to the endpoint's loop.

    `new_session` makes the protocol's side of a connection from a host.
    """

    def __init__(
        self,
        new_session: Callable[[str], Session],
        hearer: Hearer,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._new_session = new_session
        self._hearer = hearer
        self._clock = clock
        self._log = RateLimited(logger)
        self._listener: socket.socket | None = None
        self._epoll: select.epoll | None = None
        self._links: dict[int, Link] = {}
        # When to accept again; None while connections are accepted.
        self._accept_at: float | None = None
        self._next_look = 0.0

    @property
    def busy(self) -> bool:
        """Whether there is anything to keep house for."""
        return bool(self._links) or self._accept_at is not None

    def bind(self, host: str, port: int) -> None:
        """Open the door at an address, a name, an interface or ``*``; raises `OSError`."""
        address = _address_of(host)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Inherited by the connections.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            listener.bind((address, port))
            listener.listen(BACKLOG)
            epoll = select.epoll()
        except OSError:
            listener.close()
            raise
        self._listener, self._epoll = listener, epoll
        epoll.register(listener, select.EPOLLIN)

    def fileno(self) -> int:
        """Give a descriptor that can be read from when there is something to do; ValueError."""
        if self._epoll is None:
            raise ValueError("the door is not open")
        return self._epoll.fileno()

    def serve(self) -> None:
        """Deal with who has come, has said something, has room, or is gone."""
        epoll, listener = self._epoll, self._listener
        if epoll is None or listener is None:
            return
        for descriptor, events in epoll.poll(0, LINKS_PER_TURN):
            link = self._links.get(descriptor)
            if link is not None:
                self._serve(link, events)
            elif descriptor == listener.fileno():
                self._accept(listener, epoll)

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
            elif look and tcp_info(link.tcp).silent_secs > GONE_SECS:
                self.cut_off(link, "its machine does not answer")

    def cut_off(self, link: Link, why: str = "") -> None:
        """End a connection."""
        if self._links.pop(link.tcp.fileno(), None) is None:
            return
        if why:
            self._log.log(link.host, logging.WARNING, "a SUB of %s is cut off: %s", link.host, why)
        link.close()
        self._hearer.on_end(link)

    def cut_off_others(self, may_stay: Callable[[str], bool]) -> None:
        """End the connections of the clients that may not stay, by their keys."""
        for link in list(self._links.values()):
            if link.session.key is not None and not may_stay(link.session.key):
                self.cut_off(link, "its key may not read any more")

    def close(self, linger_secs: float = 0.0) -> None:
        """Close it and all connections; what has been sent has `linger_secs` to arrive. Idempotent.

        `on_end` is not called: whoever closes the door knows.
        """
        links, self._links = self._links, {}
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._epoll is not None:
            _wait_for_ends(self._epoll, links, self._clock() + linger_secs, self._clock)
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
            self._take_in(tcp, str(address[0]).partition("%")[0], epoll)

    def _take_in(self, tcp: socket.socket, host: str, epoll: select.epoll) -> None:
        tcp.setblocking(False)
        now = self._clock()
        with contextlib.suppress(OSError):
            # A peer may be gone by now; the loop hears of it.
            tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _find_vanished_peer(tcp)
        link = Link(tcp, host, self._new_session(host), now, self._watch_room)
        try:
            epoll.register(tcp, select.EPOLLIN)
        except OSError as error:
            # The kernel has a bound for what is watched, too.
            self._log.log(error.errno, logging.ERROR, "a SUB cannot be served: %s", error.strerror)
            tcp.close()
            return
        self._links[tcp.fileno()] = link
        link.answer(now)

    def _pause_accepting(
        self, listener: socket.socket, epoll: select.epoll, error: OSError
    ) -> None:
        self._log.log(
            "descriptors",
            logging.ERROR,
            "no further SUB can connect for now: %s; allow the bus more descriptors (LimitNOFILE)",
            error.strerror,
        )
        epoll.modify(listener, 0)
        self._accept_at = self._clock() + EXHAUSTED_SECS

    def _serve(self, link: Link, events: int) -> None:
        now = self._clock()
        if events & ~select.EPOLLOUT:
            try:
                changes = link.receive(now)
            except Ended as end:
                self.cut_off(link, str(end))
                return
            for change in changes:
                # The one before may have ended it.
                if not link.open:
                    return
                self._hearer.on_change(link, change)
        if events & select.EPOLLOUT and link.open and link.go_on(now):
            self._hearer.on_room(link)

    def _watch_room(self, link: Link, wanted: bool) -> None:
        if self._epoll is not None:
            events = select.EPOLLIN | select.EPOLLOUT if wanted else select.EPOLLIN
            self._epoll.modify(link.tcp, events)


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
    for descriptor in links:
        epoll.modify(descriptor, select.EPOLLIN)
        links[descriptor].end_sending()
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
