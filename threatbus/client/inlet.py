"""The SUB of a subscriber: frames, and how its connection is."""

from __future__ import annotations

import contextlib
import math
import time
from typing import TYPE_CHECKING

from threatbus.client.connection import Connections
from threatbus.client.silence import event_of

if TYPE_CHECKING:
    import zmq


class Inlet:
    """One SUB at a time. What was read from one that had to be closed comes before the next's."""

    def __init__(self, connections: Connections, read_ahead: int) -> None:
        self._connections = connections
        self._read_ahead = read_ahead
        self._left_over: list[bytes] = []
        #: Where frames come from, and what tells of its connection; None before `open`.
        self.socket: zmq.Socket[bytes] | None = None
        self.monitor: zmq.Socket[bytes] | None = None
        #: The port that it is connected to.
        self.port = 0
        #: Whether the connection stands.
        self.connected = False
        #: Whether ZeroMQ has given it up, as it does when the bus has refused the key.
        self.refused = False
        # When the connection was last there, or was first wanted.
        self._connected_at = 0.0

    def open(self, port: int) -> None:
        """Connect a SUB to `port`, in place of the one before."""
        import zmq  # noqa: PLC0415

        # After a refusal nobody waits in hope.
        self._connected_at = -math.inf if self.refused else time.monotonic()
        if self.socket is not None:
            self._left_over += self._read(self.socket, None)
        self.close()
        refusals = zmq.Event.HANDSHAKE_FAILED_AUTH | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
        changes = zmq.Event.HANDSHAKE_SUCCEEDED | zmq.Event.DISCONNECTED | refusals
        self.socket, self.monitor = self._connections.open_watched(
            zmq.SUB, port, changes, RCVHWM=self._read_ahead
        )
        self.port = port
        self.connected = self.refused = False

    def listen(self, topic: str) -> None:
        """Receive what begins with `topic`, besides what it receives already."""
        assert self.socket is not None
        self.socket.subscribe(topic)

    def take(self, limit: int) -> list[bytes]:
        """Give up to `limit` frames that have come; does not wait."""
        frames, self._left_over = self._left_over[:limit], self._left_over[limit:]
        if self.socket is not None and len(frames) < limit:
            frames += self._read(self.socket, limit - len(frames))
        return frames

    @property
    def down_secs(self) -> float:
        """For how long the connection has not stood; 0.0 if it does."""
        return 0.0 if self.connected else time.monotonic() - self._connected_at

    def notice(self) -> bool:
        """Look what the monitor tells; True if the connection has come, gone, or been refused."""
        import zmq  # noqa: PLC0415

        before = self.connected, self.refused
        while self.monitor is not None and self.monitor.poll(0):
            event = event_of(self.monitor)
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self.connected = True
            elif event != zmq.EVENT_DISCONNECTED:
                self.refused = True
            elif self.connected:
                # Otherwise it is one more attempt that has failed.
                self.connected = False
                self._connected_at = time.monotonic()
        return before != (self.connected, self.refused)

    def close(self) -> None:
        """Close the SUB. Idempotent."""
        if self.socket is not None and not self.socket.closed:
            self.socket.disable_monitor()
            self.socket.close(0)
        self.socket = self.monitor = None

    @staticmethod
    def _read(socket: zmq.Socket[bytes], limit: int | None) -> list[bytes]:
        import zmq  # noqa: PLC0415

        recv, frames = socket.recv, list[bytes]()
        with contextlib.suppress(zmq.Again):
            while limit is None or len(frames) < limit:
                frames.append(recv(zmq.NOBLOCK))
        return frames
