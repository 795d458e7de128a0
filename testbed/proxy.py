"""A TCP proxy on the loopback interface that stands for the network between two parts."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Final

#: Bytes that the proxy takes at once, and about what either of its kernel buffers holds.
CHUNK: Final = 65536


class Proxy:
    """Passes bytes on to `port`, and can be told to do that badly.

    `cut` breaks all connections, `cut_after` once so many bytes have come through; `freeze` stops
    passing anything on over those that there are, as when a peer's machine has vanished, and with
    ``answers_only`` only what comes back. While `is_down`, new connections are broken at once.
    `delay` holds each chunk for so many seconds; `bytes_per_second` is for each direction of each
    connection. A thread accepts and one per direction passes on; they end with `close`, which
    closes what they read.
    """

    def __init__(self, port: int, listen_on: int = 0) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", listen_on))
        self.port: int = self._listener.getsockname()[1]
        self._ends: list[socket.socket] = []
        # Connections made before the last freeze() pass nothing on, or no answers.
        self._frozen = 0
        self._frozen_answers = 0
        self._bytes_left: int | None = None
        self.delay = 0.0
        self.bytes_per_second: float | None = None
        self.is_down = False
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def cut(self) -> None:
        """Break all connections."""
        while self._ends:
            # Wakes whoever reads from it or writes to it.
            with contextlib.suppress(OSError):
                self._ends.pop().shutdown(socket.SHUT_RDWR)
        self._frozen = self._frozen_answers = 0

    def cut_after(self, count: int) -> None:
        """Break all connections when `count` more bytes have come through, wherever that is."""
        self._bytes_left = count

    def freeze(self, *, answers_only: bool = False) -> None:
        """Pass nothing on over the connections that there are; new ones work."""
        self._frozen_answers = len(self._ends)
        if not answers_only:
            self._frozen = len(self._ends)

    def close(self) -> None:
        """End."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                if self.is_down:
                    raise ConnectionRefusedError
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                # Nobody is there at the moment; somebody may be later.
                near.close()
                continue
            number = len(self._ends)
            self._ends += (near, far)
            # What is under way in a proxy comes on top of what the bus reckons with.
            for end in (near, far):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, CHUNK)
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CHUNK)
            for source, target, back in ((near, far, False), (far, near, True)):
                threading.Thread(
                    target=self._pass_on, args=(number, source, target, back), daemon=True
                ).start()

    def _pass_on(
        self, number: int, source: socket.socket, target: socket.socket, back: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK):
                while number < (self._frozen_answers if back else self._frozen):
                    time.sleep(0.01)
                if self.delay or self.bytes_per_second:
                    time.sleep(self.delay + len(data) / (self.bytes_per_second or float("inf")))
                if self._bytes_left is not None:
                    self._bytes_left -= len(data)
                    if self._bytes_left < 0:
                        target.sendall(data[: self._bytes_left])
                        self._bytes_left = None
                        self.cut()
                        break
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)
        source.close()


@contextlib.contextmanager
def proxy(port: int, listen_on: int = 0) -> Iterator[Proxy]:
    """Give a proxy in front of `port`."""
    made = Proxy(port, listen_on)
    try:
        yield made
    finally:
        made.close()
