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
from collections.abc import Callable
from typing import Final

from threatbus.logger import RateLimited
from threatbus.protected import addresses_of
from threatbus_zmq.link import Ended, Link
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
#: Seconds of silence after which a peer is asked for a sign of life; seconds it has to give one.
#: The latter are many, since a reader that pauses gives none and must not be taken for one that
#: is gone.
SILENCE_SECS: Final = 15.0
ANSWER_SECS: Final = 60.0
#: Seconds after which new connections are tried again when there was no descriptor for one.
EXHAUSTED_SECS: Final = 1.0

_NO_DESCRIPTOR: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Door:
    """Accepts SUBs and serves their connections. Belongs to the endpoint's loop.

    `new_session` makes the protocol's side of a connection. `changed` hears of each change of a
    subscription, `has_room` of a connection for which nothing waits any more, and `ended` of one
    that is no more.
    """

    def __init__(
        self,
        new_session: Callable[[str], Session],
        changed: Callable[[Link, Change], None],
        has_room: Callable[[Link], None],
        ended: Callable[[Link], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._new_session = new_session
        self._changed = changed
        self._has_room = has_room
        self._ended = ended
        self._clock = clock
        self._log = RateLimited(logger)
        self._listener: socket.socket | None = None
        self._epoll: select.epoll | None = None
        self._links: dict[int, Link] = {}
        # When to accept again; None while connections are accepted.
        self._accept_at: float | None = None

    @property
    def open(self) -> bool:
        """Whether it is bound."""
        return self._listener is not None

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
            self._epoll = select.epoll()
            self._epoll.register(listener, select.EPOLLIN)
        except OSError:
            listener.close()
            raise
        self._listener = listener

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
        """Look for peers that do not come to terms, or that give no sign of life."""
        if self._accept_at is not None and now >= self._accept_at:
            self._accept_at = None
            if self._epoll is not None and self._listener is not None:
                self._epoll.modify(self._listener, select.EPOLLIN)
        for link in list(self._links.values()):
            if not link.session.ready:
                if now - link.since > HANDSHAKE_SECS:
                    self.cut_off(link, "it has not come to terms in time")
            elif link.pinged_at is not None:
                if now - link.pinged_at > ANSWER_SECS:
                    self.cut_off(link, "it gives no sign of life")
            elif now - link.last_heard > SILENCE_SECS:
                link.ask_for_sign(now)

    def cut_off(self, link: Link, why: str = "") -> None:
        """End a connection."""
        if self._links.pop(link.tcp.fileno(), None) is None:
            return
        if why:
            self._log.log(
                (link.host, why), logging.WARNING, "a SUB of %s is cut off: %s", link.host, why
            )
        link.close()
        self._ended(link)

    def close(self, linger_secs: float = 0.0) -> None:
        """Close it and all connections; what has been sent has `linger_secs` to arrive. Idempotent.

        `ended` is not called: whoever closes the door knows.
        """
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for link in self._links.values():
            link.end_sending()
        deadline = self._clock() + linger_secs
        links, self._links = self._links, {}
        if self._epoll is not None:
            _wait_for_ends(self._epoll, dict(links), deadline, self._clock)
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
                if link.open:
                    self._changed(link, change)
        if events & select.EPOLLOUT and link.open and link.go_on(now):
            self._has_room(link)

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
    epoll: select.epoll, links: dict[int, Link], deadline: float, clock: Callable[[], float]
) -> None:
    """Wait until each peer has closed its side too, so that it has got all; at most to `deadline`.

    Closed at once, a connection over which the peer says something more would be reset, and what
    is on its way with it.
    """
    while links and (left := deadline - clock()) > 0:
        for descriptor, _ in epoll.poll(left):
            link = links.get(descriptor)
            if link is None:
                continue
            try:
                link.receive(clock())
            except Ended:
                del links[descriptor]
                epoll.unregister(descriptor)


def _find_vanished_peer(tcp: socket.socket) -> None:
    """Have the kernel notice a peer that vanished without closing."""
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
    tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
    tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
