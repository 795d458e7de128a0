"""Workers: supervision, ending, and the odd ways in which old plugins use them."""

from __future__ import annotations

import queue
import threading
import time
from typing import Any

import pytest
from helpers.waiting import eventually, finished, wait_for

import threatbus
from threatbus import workers
from threatbus.workers import Backoff, StoppableWorker


class Failing(StoppableWorker):
    """Raises as often as it is told, then runs until stopped."""

    def __init__(self, times: int, error: BaseException | None = None) -> None:
        super().__init__(name="failing")
        self.left = times
        self.error = error or RuntimeError("no luck")
        self.steady = threading.Event()

    def run(self) -> None:
        if self.left:
            self.left -= 1
            raise self.error
        self.steady.set()
        self._stop_asked.wait()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let workers wait no time before they begin again."""
    monkeypatch.setattr(Backoff, "next", lambda _: 0.0)


# Delays.


def test_delays_double_up_to_the_cap_with_jitter() -> None:
    backoff = Backoff(first=1, cap=5)
    for step in (1, 2, 4, 5, 5, 5):
        delay = backoff.next()
        assert step / 2 <= delay <= step


def test_delays_of_two_workers_differ() -> None:
    assert len({Backoff().next() for _ in range(20)}) > 1


def test_after_a_reset_the_delays_begin_anew() -> None:
    backoff = Backoff(first=1, cap=100)
    for _ in range(5):
        backoff.next()
    backoff.reset()
    assert backoff.next() <= 1


def test_the_first_delay_is_no_longer_than_the_cap_either() -> None:
    backoff = Backoff(first=10, cap=2)
    assert backoff.next() <= 2
    backoff.reset()
    assert backoff.next() <= 2


# Supervision.


@pytest.mark.usefixtures("quick")
def test_a_worker_that_raises_is_logged_with_its_traceback_and_begins_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = Failing(3)
    worker.start()
    wait_for(worker.steady)
    assert worker.failures == 3
    assert "worker failing failed (3 so far)" in caplog.text
    assert "raise self.error\nRuntimeError: no luck" in caplog.text
    worker.stop()
    finished(worker)


@pytest.mark.usefixtures("quick")
def test_a_worker_that_asks_for_the_end_of_the_process_begins_again_as_well(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = Failing(1, SystemExit(1))
    worker.start()
    wait_for(worker.steady)
    assert "SystemExit" in caplog.text
    worker.stop()
    finished(worker)


def test_the_delay_grows_with_each_failure() -> None:
    delays: list[float] = []

    class Impatient(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            if timeout is not None:
                delays.append(timeout)
                return False
            return super().wait(timeout)

    worker = Failing(6)
    worker._stop_asked = Impatient()
    worker.start()
    wait_for(worker.steady)
    for number, delay in enumerate(delays):
        assert 0.05 * 2**number <= delay <= 0.1 * 2**number
    worker.stop()
    finished(worker)


def test_a_worker_that_ran_well_for_long_begins_with_the_first_delay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers, "HEALTHY_AFTER_SECS", 0.0)
    worker = Failing(3)
    began = time.monotonic()
    worker.start()
    wait_for(worker.steady)
    assert time.monotonic() - began < 0.6
    assert worker._backoff.next() <= 0.2
    worker.stop()
    finished(worker)


def test_stopping_ends_the_wait_before_the_next_attempt_at_once() -> None:
    worker = Failing(1000)
    worker._backoff = Backoff(first=60, cap=60)
    worker.start()
    eventually(lambda: worker.failures == 1)
    began = time.monotonic()
    worker.stop()
    finished(worker)
    assert time.monotonic() - began < 5


def test_what_a_worker_raises_at_its_end_is_logged_and_not_repeated(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Untidy(StoppableWorker):
        def run(self) -> None:
            self._stop_asked.wait()
            raise RuntimeError("cannot close")

    worker = Untidy()
    worker.start()
    worker.stop()
    finished(worker)
    assert "cannot close" in caplog.text
    assert worker.failures == 1


def test_a_worker_whose_run_returns_has_ended() -> None:
    class Brief(StoppableWorker):
        def run(self) -> None:
            return

    worker = Brief()
    worker.start()
    finished(worker)
    assert worker.failures == 0


# The ways of old plugins.


class OldWorker(threatbus.StoppableWorker):
    """As plugins for 2022.5.16 have it."""

    def __init__(self, outq: Any, got: list[Any]) -> None:
        super(OldWorker, self).__init__()  # noqa: UP008 (as it was written)
        self.outq = outq
        self.got = got

    def run(self) -> None:
        while self._running():
            try:
                msg = self.outq.get(block=True, timeout=0.01)
            except queue.Empty:
                continue
            self.got.append(msg)
            self.outq.task_done()


def test_an_old_worker_runs_until_it_is_stopped() -> None:
    q: queue.Queue[Any] = queue.Queue()
    got: list[Any] = []
    worker = OldWorker(q, got)
    assert worker.daemon
    worker.start()
    q.put("message")
    q.join()
    assert got == ["message"]
    assert worker.is_alive()
    worker.stop()
    worker.stop()
    finished(worker)


def test_a_worker_that_was_stopped_before_its_start_ends_at_once() -> None:
    worker = OldWorker(queue.Queue(), [])
    worker.stop()
    worker.start()
    finished(worker)


@pytest.mark.usefixtures("quick")
def test_a_second_start_is_refused_and_does_no_harm() -> None:
    worker = Failing(0)
    worker.start()
    with pytest.raises(RuntimeError, match="only be started once"):
        worker.start()
    wait_for(worker.steady)
    worker.stop()
    finished(worker)
    again = Failing(2)
    again.start()
    with pytest.raises(RuntimeError):
        again.start()
    wait_for(again.steady)
    assert again.failures == 2
    again.stop()
    finished(again)


def test_a_subclass_may_have_a_stop_of_its_own_and_be_no_daemon() -> None:
    class Careful(threatbus.StoppableWorker):
        def __init__(self) -> None:
            super().__init__(daemon=False)
            self.name = "careful"
            self.closed = False

        def run(self) -> None:
            while self._running():
                self._stop_asked.wait()

        def stop(self) -> None:
            self.closed = True
            super().stop()
            self.join()

    worker = Careful()
    assert not worker.daemon
    worker.start()
    worker.stop()
    assert worker.closed
    assert not worker.is_alive()
