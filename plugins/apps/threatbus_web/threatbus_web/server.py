"""The listening socket, and a thread for each connection."""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import threading
from typing import Final

from threatbus import StoppableWorker
from threatbus.logger import RateLimited
from threatbus.wakeup import Wakeup
from threatbus_web.config import WebConfig
from threatbus_web.handler import Handler
from threatbus_web.site import Site

logger = logging.getLogger("threatbus.web")

BACKLOG: Final = 16
#: Said to who comes when there are too many; nothing of the request is read.
BUSY: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\n\r\n"
    b"too many connections: close one, or raise plugins.apps.web.max_connections\n"
)
#: Seconds after which the listener is looked at again, when the system had no descriptor left.
EXHAUSTED_SECS: Final = 1.0


class Server(StoppableWorker):
    """Accepts connections, `max_connections` at once.

    Started by the plugin's `run`. It blocks in one poll on the listener and on the `Wakeup` that
    `stop` triggers, and ends after that. Each connection has a thread of its own, which blocks in
    reads and writes that have a time limit, and in a stream between two looks; `stop` breaks the
    connections and sets `stopping`, upon which all of them end.
    """

    def __init__(
        self, config: WebConfig, site: Site, stopping: threading.Event, listener: socket.socket
    ) -> None:
        super().__init__(name="web server")
        self.site = site
        self.max_body = config.max_body
        self.max_connections = config.max_connections
        self.max_streams = max(1, config.max_connections // 4)
        #: Streams that were ended since nobody read them.
        self.let_go = 0
        self._stopping = stopping
        self._listener = listener
        self._wake = Wakeup()
        self._log = RateLimited(logger)
        # Guards the two fields below.
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._streams = 0

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self._connections)

    @property
    def streams(self) -> int:
        """How many of them are streams."""
        return self._streams

    def run(self) -> None:
        """Accept until stopped."""
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._wake.fileno(), select.POLLIN)
        while self._running():
            poll.poll()
            if not self._running():
                return
            try:
                connection, address = self._listener.accept()
            except BlockingIOError:
                continue
            except OSError as error:
                self._log.log("accept", logging.ERROR, "no connection can be had: %s", error)
                self._stop_asked.wait(EXHAUSTED_SECS)
                continue
            self._take(connection, address)

    def stop(self) -> None:
        """Ask the worker to end and wake it; break all connections."""
        super().stop()
        self._stopping.set()
        self._wake()
        with self._lock:
            for connection in self._connections:
                _break(connection)

    def close(self) -> None:
        """Give the listener back; when the worker has ended."""
        self._listener.close()
        self._wake.close()

    def begin_stream(self) -> bool:
        """Count a stream; False if there are too many."""
        with self._lock:
            if self._streams >= self.max_streams:
                return False
            self._streams += 1
            return True

    def end_stream(self) -> None:
        """Count a stream no more."""
        with self._lock:
            self._streams -= 1

    def _take(self, connection: socket.socket, address: tuple[str, int]) -> None:
        with self._lock:
            has_room = len(self._connections) < self.max_connections and self._running()
            if has_room:
                self._connections.add(connection)
        if has_room:
            threading.Thread(
                target=self._serve, args=(connection, address), name="web connection", daemon=True
            ).start()
            return
        self._log.log(
            "busy", logging.WARNING, "there are %d connections already", self.max_connections
        )
        with connection, contextlib.suppress(OSError):
            connection.setblocking(False)
            connection.send(BUSY)
            connection.shutdown(socket.SHUT_WR)

    def _serve(self, connection: socket.socket, address: tuple[str, int]) -> None:
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            Handler(connection, address, self)  # type: ignore[arg-type]  # as Handler.server
        except OSError as error:
            logger.debug("a connection of %s ends: %s", address[0], error)
        # Whatever a client sets off, the others are served.
        except Exception:
            logger.exception("a connection fails")
        finally:
            with self._lock:
                self._connections.discard(connection)
            _break(connection)
            connection.close()


def _break(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
