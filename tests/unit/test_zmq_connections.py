"""Which connection a frame came over, now that its descriptor may be another's."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any, cast

import pytest
import zmq
from threatbus_zmq.connections import hang_up, port_of, source_of, stands


class OldFrame:
    """A frame that is read after its connection was closed: all it has is the descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def get(self, option: int) -> Any:
        assert option == zmq.SRCFD
        return self._descriptor


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
    assert stands(source)
    assert source.port == neighbour.far.getsockname()[1]


def test_a_neighbour_at_another_door_is_not_cut_off_for_a_frame_that_is_not_its_own(
    neighbour: Neighbour,
) -> None:
    hang_up(source_of(neighbour.frame, neighbour.door + 1))
    neighbour.far.sendall(b"still here")
    assert neighbour.near.recv(100) == b"still here"


def test_a_frame_of_no_connection_at_all_has_no_source(neighbour: Neighbour) -> None:
    neighbour.near.close()
    assert source_of(neighbour.frame, neighbour.door) is None


def test_the_door_is_the_port_that_a_socket_is_bound_to() -> None:
    with zmq.Context() as context, context.socket(zmq.XPUB) as bound:
        port = bound.bind_to_random_port("tcp://127.0.0.1")
        assert port_of(bound) == port
