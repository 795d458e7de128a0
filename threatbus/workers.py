"""Threads of the bus: each is a `StoppableWorker`, supervised and interruptible."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Any

logger = logging.getLogger("threatbus.workers")

#: A worker that ran this long before it raised starts again at the first delay.
HEALTHY_AFTER_SECS = 30.0


class Backoff:
    """Delays between attempts: doubling from `first` to `cap` seconds, with jitter."""

    def __init__(self, first: float = 0.1, cap: float = 30.0) -> None:
        self._first = first
        self._cap = cap
        self._next = min(first, cap)

    def next(self) -> float:
        """Give the next delay in seconds: between half and all of the current step."""
        delay = self._next * random.uniform(0.5, 1.0)
        self._next = min(self._next * 2, self._cap)
        return delay

    def reset(self) -> None:
        """Begin at the first delay again: the last attempt went well."""
        self._next = min(self._first, self._cap)


class StoppableWorker(threading.Thread):
    """A thread that ends when asked to, and that begins again when it raises.

    A subclass overrides `run` and loops ``while self._running()``. What it raises is logged
    with its traceback, and `run` is called anew after a delay that grows from 0.1 to 30 s; the
    wait ends at once when `stop` is called. `run` must therefore set up what it needs itself.

    The thread is a daemon: one that hangs in a foreign call cannot keep the process alive.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("daemon", True)
        super().__init__(*args, **kwargs)
        # Set by stop(), from any thread; every wait of a worker watches it.
        self._stop_asked = threading.Event()
        # How often run() has raised; written by this thread alone.
        self.failures = 0
        # What the subclass put into run(); start() puts the supervision around it.
        self._supervised: Callable[[], None] = self.run
        self._backoff = Backoff()

    def start(self) -> None:
        """Start the thread; what a subclass put into `run` is supervised from here on."""
        if self.ident is None:  # a thread that was started before refuses below
            self._supervised = self.run
            self.run = self._supervise  # type: ignore[method-assign]
        super().start()

    def stop(self) -> None:
        """Ask the worker to end. Does not wait; may be called from any thread, and again."""
        self._stop_asked.set()

    @property
    def lost(self) -> bool:
        """Whether it has ended although nobody asked it to."""
        return self.ident is not None and not self.is_alive() and self._running()

    def _running(self) -> bool:
        """Say whether the worker is to go on."""
        return not self._stop_asked.is_set()

    def _supervise(self) -> None:
        """Call `run` until it returns. Ends: run() returned, or it raised after stop()."""
        while True:
            started = time.monotonic()
            try:
                self._supervised()
            # Whatever a worker raises, the bus goes on and tries again. That it asks for the end
            # of the process (sys.exit) would end this thread alone, in silence.
            except (Exception, SystemExit) as error:
                self.failures += 1
                if not self._running():
                    logger.warning("worker %s failed at its end", self.name, exc_info=error)
                    return
                self._after(error, time.monotonic() - started)
            else:
                return
            if not self._running():
                return

    def _after(self, error: BaseException, ran_secs: float) -> None:
        if ran_secs >= HEALTHY_AFTER_SECS:
            self._backoff.reset()
        delay = self._backoff.next()
        logger.error(
            "worker %s failed (%d so far) and is started again in %.1f s",
            self.name,
            self.failures,
            delay,
            exc_info=error,
        )
        self._stop_asked.wait(delay)
