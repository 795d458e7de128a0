"""Waiting with a deadline, so that a test that fails says for what it waited in vain."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: A slow machine sets this to more than 1; all deadlines of tests are multiplied by it.
SCALE = float(os.environ.get("TEST_TIME_SCALE", "1"))
#: Seconds that something which takes milliseconds may take on a busy machine.
SOON = 10.0 * SCALE


def eventually(condition: Callable[[], T], timeout: float = SOON, what: str = "") -> T:
    """Wait until `condition` gives something true and return that; fails after `timeout` seconds.

    What `condition` asserts may fail until then; the last failure is in the message.
    """
    deadline = time.monotonic() + timeout
    pause = 0.001
    while True:
        failure: AssertionError | None = None
        try:
            found = condition()
            if found:
                return found
            shown = repr(found)
        except AssertionError as error:
            failure, shown = error, str(error)
        if time.monotonic() >= deadline:
            name = what or getattr(condition, "__name__", repr(condition))
            raise AssertionError(f"not within {timeout:.1f} s: {name}; last: {shown}") from failure
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)


class Clock:
    """A clock that goes when a test says so: ``clock.now += 60``."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def wait_for(event: threading.Event, what: str = "the event", timeout: float = SOON) -> None:
    """Wait for `event`; fails after `timeout` seconds."""
    assert event.wait(timeout), f"not within {timeout:.1f} s: {what}"


def finished(thread: threading.Thread, timeout: float = SOON) -> None:
    """Wait for the end of `thread`; fails after `timeout` seconds."""
    thread.join(timeout)
    assert not thread.is_alive(), f"thread {thread.name} has not ended within {timeout:.1f} s"


def in_threads(*functions: Callable[[], object], timeout: float = SOON) -> None:
    """Run `functions` at the same time, each in a thread; raises what one of them raised."""
    barrier = threading.Barrier(len(functions))
    raised: list[BaseException] = []

    def run(function: Callable[[], object]) -> None:
        try:
            barrier.wait(timeout)
            function()
        except BaseException as error:  # noqa: BLE001 (raised again in the test's own thread)
            raised.append(error)

    threads = [threading.Thread(target=run, args=(each,), daemon=True) for each in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        finished(thread, timeout)
    if raised:
        raise raised[0]
