"""The control socket: who may use it, what it answers, and what is left by buses that died."""

from __future__ import annotations

import os
import socket
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from helpers.waiting import finished, in_threads

from threatbus import control
from threatbus.control import ControlSocket, ask
from threatbus.errors import BusUnreachable, ControlError, Refused

Open = Callable[..., ControlSocket]


def echo(request: Mapping[str, Any]) -> Any:
    return request["text"]


def refuse(_: Mapping[str, Any]) -> Any:
    raise Refused("not today")


def fail(_: Mapping[str, Any]) -> Any:
    raise ZeroDivisionError


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Open]:
    """Opens and starts a control socket in a directory of its own, and ends it."""
    running: list[ControlSocket] = []

    def start(directory: Path = tmp_path / "state") -> ControlSocket:
        served = ControlSocket(directory, {"echo": echo, "refuse": refuse, "fail": fail})
        served.open()
        served.start()
        running.append(served)
        return served

    yield start
    for each in running:
        end(each)


def end(served: ControlSocket) -> None:
    served.stop()
    finished(served)
    served.close()


def raw(path: Path, data: bytes) -> bytes:
    """Send bytes as they are; gives all that comes back."""
    with socket.socket(socket.AF_UNIX) as channel:
        channel.settimeout(10)
        channel.connect(str(path))
        channel.sendall(data)
        return channel.makefile("rb").read()


# What it answers


def test_a_command_gets_its_answer_in_one_line(serve: Open) -> None:
    path = serve().path
    assert ask(path, "echo", text="ü\n") == "ü\n"
    assert raw(path, b'{"command":"echo","text":[1]}\n') == b'{"ok":true,"answer":[1]}\n'


def test_a_large_answer_arrives_whole(tmp_path: Path) -> None:
    large = "x" * 5_000_000
    served = ControlSocket(tmp_path, {"large": lambda _: large})
    served.open()
    served.start()
    assert ask(served.path, "large") == large
    end(served)


def test_who_asks_is_told_why_not(serve: Open) -> None:
    path = serve().path
    with pytest.raises(Refused, match="not today"):
        ask(path, "refuse")
    with pytest.raises(Refused, match="no such command: 'dance'; there is echo, refuse, fail"):
        ask(path, "dance")


@pytest.mark.parametrize(
    "line",
    [b"\n", b"[]\n", b"{\n", b"\xff\n", b"[" * 60_000 + b"\n", b'{"command":["echo"]}\n'],
    ids=["empty", "list", "cut off", "no text", "deep", "no name"],
)
def test_what_is_no_request_is_refused_and_the_next_one_answered(serve: Open, line: bytes) -> None:
    path = serve().path
    assert raw(path, line).startswith(b'{"ok":false,"error":')
    assert ask(path, "echo", text=1) == 1


def test_a_request_that_does_not_end_is_cut_off(serve: Open) -> None:
    path = serve().path
    answer = raw(path, b"x" * (control.MAX_REQUEST_BYTES + 1))
    assert b"65536 bytes at most" in answer


def test_a_command_that_fails_is_logged_and_the_next_one_answered(
    serve: Open, caplog: pytest.LogCaptureFixture
) -> None:
    path = serve().path
    with pytest.raises(Refused, match="fail fails inside the bus"):
        ask(path, "fail")
    assert "ZeroDivisionError" in caplog.text
    assert ask(path, "echo", text=1) == 1


def test_a_client_that_says_nothing_holds_up_the_others_for_a_moment_only(
    serve: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "CONNECTION_SECS", 0.05)
    path = serve().path
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(path))
        assert ask(path, "echo", text=1) == 1


def test_stopping_does_not_wait_for_a_client_that_says_nothing(
    serve: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "CONNECTION_SECS", 3600.0)
    served = serve()
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(served.path))
        end(served)


# Who may use it, and what is left


def test_only_its_owner_may_connect_whatever_the_umask(serve: Open) -> None:
    old_mask = os.umask(0)
    try:
        path = serve().path
    finally:
        os.umask(old_mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_the_socket_goes_with_the_bus(serve: Open) -> None:
    served = serve()
    end(served)
    assert not served.path.exists()
    with pytest.raises(BusUnreachable, match="there is no socket"):
        ask(served.path, "echo")


def test_the_socket_of_a_dead_bus_is_said_to_be_one_and_is_replaced(
    serve: Open, tmp_path: Path
) -> None:
    path = tmp_path / "state" / "control.sock"
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(BusUnreachable, match="has ended without removing it"):
        ask(path, "echo")
    assert ask(serve().path, "echo", text=1) == 1


def test_the_socket_of_a_living_bus_is_respected(serve: Open) -> None:
    first = serve()
    second = ControlSocket(first.path.parent, {})
    with pytest.raises(ControlError, match=rf"another bus that is running \(process {os.getpid()}"):
        second.open()
    second.close()
    assert ask(first.path, "echo", text=1) == 1, "closing the second one left the first alone"


def test_a_file_of_somebody_elses_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    path.write_text("precious")
    with pytest.raises(ControlError, match="is there and no socket"):
        ControlSocket(tmp_path, {}).open()
    with pytest.raises(BusUnreachable, match="it is no socket"):
        ask(path, "echo")
    assert path.read_text() == "precious"


def test_a_path_that_is_too_long_for_a_socket_is_said_to_be(tmp_path: Path) -> None:
    directory = tmp_path / ("x" * 100)
    with pytest.raises(ControlError, match="give the bus a shorter state_directory"):
        ControlSocket(directory, {}).open()
    with pytest.raises(BusUnreachable, match="a socket's path has 107 bytes at most"):
        ask(directory / "control.sock", "echo")


def test_a_directory_that_cannot_be_made_is_named() -> None:
    with pytest.raises(ControlError, match=r"control\.sock cannot be made"):
        ControlSocket(Path("/proc/nowhere"), {}).open()


# What the one who asks hears


def answering(path: Path, answer: bytes) -> Callable[[], None]:
    """Give a function that answers one connection with what is no Threat Bus."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve_once() -> None:
        with listener, listener.accept()[0] as connection:
            connection.recv(1000)
            connection.sendall(answer)

    return serve_once


@pytest.mark.parametrize(
    ("answer", "what"), [(b"", "it is stopping"), (b"HTTP/1.1 400", "no Threat Bus")]
)
def test_an_answer_that_is_none_is_an_error(tmp_path: Path, answer: bytes, what: str) -> None:
    path = tmp_path / "socket"
    serve_once = answering(path, answer)

    def ask_it() -> None:
        with pytest.raises(BusUnreachable, match=what):
            ask(path, "echo")

    in_threads(serve_once, ask_it)


def test_a_bus_that_does_not_answer_is_waited_for_no_longer_than_told(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        began = time.monotonic()
        with pytest.raises(BusUnreachable, match="does not answer in time"):
            ask(path, "echo", timeout=0.05)
        assert time.monotonic() - began < 5
