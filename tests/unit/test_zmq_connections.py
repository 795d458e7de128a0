"""Which connection a frame came over, now that its descriptor may be another's."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import zmq
from helpers.descriptors import OWN, descriptors_of
from threatbus_zmq.connections import (
    Connection,
    duplicate,
    hang_up,
    port_of,
    source_of,
)
from threatbus_zmq.monitor import Monitor


class OldFrame:
    """A frame that is read after its connection was closed: it has the descriptor and the host."""

    def __init__(self, descriptor: int, host: str = "127.0.0.1") -> None:
        self._known = {zmq.SRCFD: descriptor, "Peer-Address": host}

    def get(self, option: int | str) -> Any:
        return self._known[option]


class Neighbour:
    """Somebody whose connection has got the descriptor since."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.door: int = self.listener.getsockname()[1]
        self.far = socket.create_connection(("127.0.0.1", self.door))
        self.near, _ = self.listener.accept()
        self.frame = cast("zmq.Frame", OldFrame(self.near.fileno()))

    def close(self) -> None:
        for each in (self.far, self.near, self.listener):
            each.close()


@pytest.fixture
def neighbour() -> Iterator[Neighbour]:
    made = Neighbour()
    yield made
    made.close()


def test_a_frame_of_this_door_comes_from_the_connection_with_its_descriptor(
    neighbour: Neighbour,
) -> None:
    source = source_of(neighbour.frame, neighbour.door)
    assert source is not None
    assert source.port == neighbour.far.getsockname()[1]


def test_a_neighbour_at_another_door_is_not_cut_off_for_a_frame_that_is_not_its_own(
    neighbour: Neighbour,
) -> None:
    hang_up(source_of(neighbour.frame, neighbour.door + 1))
    neighbour.far.sendall(b"still here")
    assert neighbour.near.recv(100) == b"still here"


def test_a_neighbour_of_another_host_is_not_taken_for_the_sender(neighbour: Neighbour) -> None:
    frame = cast("zmq.Frame", OldFrame(neighbour.near.fileno(), "192.0.2.1"))
    assert source_of(frame, neighbour.door) is None


@pytest.mark.parametrize("kind", ["a file", "a control socket", "a socket for notes"])
def test_a_descriptor_that_is_something_else_by_now_is_no_connection(
    kind: str, neighbour: Neighbour
) -> None:
    with _opened(kind) as other:
        descriptor = other.fileno()
        assert source_of(cast("zmq.Frame", OldFrame(descriptor)), neighbour.door) is None
        hang_up(Connection(descriptor, "127.0.0.1", 1))
        with pytest.raises(OSError, match="socket"):
            duplicate(descriptor)
        assert descriptors_of(OWN / str(descriptor)) == 1


def _opened(kind: str) -> Any:
    if kind == "a file":
        return Path("/proc/self/stat").open()
    if kind == "a control socket":
        return socket.socketpair()[0]
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)


def test_a_frame_of_no_connection_at_all_has_no_source(neighbour: Neighbour) -> None:
    neighbour.near.close()
    assert source_of(neighbour.frame, neighbour.door) is None


def test_the_door_is_the_port_that_a_socket_is_bound_to() -> None:
    with zmq.Context() as context, context.socket(zmq.XPUB) as bound:
        port = bound.bind_to_random_port("tcp://127.0.0.1")
        assert port_of(bound) == port


def test_a_connection_at_another_door_is_not_watched_for_one_that_is_gone(
    neighbour: Neighbour,
) -> None:
    cut: list[str] = []
    with zmq.Context() as context, context.socket(zmq.SUB) as bound:
        monitor = Monitor(bound, cut.append)
        bound.bind_to_random_port("tcp://127.0.0.1")
        monitor._watch(neighbour.near.fileno())
        monitor._on_end(neighbour.near.fileno())
        monitor.close()
    assert cut == []
