"""How a thread that waits in a poll on sockets is woken by others."""

from __future__ import annotations

import os
import threading


class Wakeup:
    """Lets other threads end the loop's wait: an event counter that a poller can watch."""

    def __init__(self) -> None:
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        # Guards the descriptor against being written to after close(): outqs outlive the loop.
        self._lock = threading.Lock()
        self._closed = False
        # The loop's thread, which need not wake itself.
        self._owner = 0

    def fileno(self) -> int:
        """Give the descriptor to poll."""
        return self._descriptor

    def own(self) -> None:
        """Make the calling thread the one that waits."""
        self._owner = threading.get_ident()

    def __call__(self) -> None:
        """Wake the loop, from any thread."""
        if threading.get_ident() == self._owner:
            return
        with self._lock:
            if not self._closed:
                os.eventfd_write(self._descriptor, 1)

    def clear(self) -> None:
        """Be ready to be woken again."""
        try:
            os.eventfd_read(self._descriptor)
        except BlockingIOError:
            return

    def close(self) -> None:
        """Give the descriptor back; from now on there is nothing to wake. Idempotent."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._descriptor)
