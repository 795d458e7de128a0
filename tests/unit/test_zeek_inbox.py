"""The hand-over from the thread that reads a WebSocket to the link's."""

from __future__ import annotations

import threading

import pytest
from helpers.waiting import eventually, finished
from threatbus_zeek import websocket_transport
from threatbus_zeek.transport import Arrived
from threatbus_zeek.websocket_transport import Inbox


def message(number: int) -> Arrived:
    return Arrived("topic", number)


def test_messages_come_out_in_order_and_all_at_once() -> None:
    inbox = Inbox()
    for number in range(5):
        inbox.put(message(number))
    assert inbox.take(None, reading=True) == [message(number) for number in range(5)]
    assert inbox.take(0, reading=True) == []


def test_a_wait_ends_when_somebody_wakes_it_before_or_meanwhile() -> None:
    inbox = Inbox()
    inbox.wake()
    assert inbox.take(None, reading=True) == []
    waiting = threading.Thread(target=inbox.take, args=(None,), kwargs={"reading": True})
    waiting.start()
    inbox.wake()
    finished(waiting)


def test_without_reading_messages_stay() -> None:
    inbox = Inbox()
    inbox.put(message(1))
    assert inbox.take(0, reading=False) == []
    assert inbox.take(0, reading=True) == [message(1)]


@pytest.mark.parametrize(("limit", "size"), [("MAX_WAITING", 0), ("MAX_WAITING_BYTES", 1)])
def test_who_puts_waits_while_it_is_full(
    monkeypatch: pytest.MonkeyPatch, limit: str, size: int
) -> None:
    monkeypatch.setattr(websocket_transport, limit, 3)
    inbox = Inbox()
    put: list[int] = []

    def fill() -> None:
        for number in range(4):
            inbox.put(message(number), size)
            put.append(number)

    filler = threading.Thread(target=fill)
    filler.start()
    eventually(lambda: len(put) == 3)
    assert filler.is_alive()
    assert len(inbox.take(0, reading=True)) == 3
    finished(filler)
    assert inbox.take(0, reading=True) == [message(3)]


def test_closing_lets_go_of_who_waits() -> None:
    inbox = Inbox()
    for number in range(websocket_transport.MAX_WAITING):
        inbox.put(message(number))
    filler = threading.Thread(target=inbox.put, args=(message(-1),))
    filler.start()
    inbox.close()
    finished(filler)
