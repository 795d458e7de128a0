"""What `threatbus doctor` finds, by what it looked at, and peers that are not what it wants."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from typing import Any

import trustme
import zmq
import zmq.auth.thread

from testbed.ports import free_port
from threatbus.doctor.checkup import Finding, examine


class Findings:
    """What was found; every failed check must say what to do next."""

    def __init__(self, config: Any) -> None:
        self.all, self.valid = examine(config)
        for each in self.all:
            assert bool(each.next_step) is not each.ok, each

    def __call__(self, check: str, subject: str = "") -> Finding:
        """Give the one finding whose check begins so."""
        (found,) = [
            each
            for each in self.all
            if each.check.startswith(check) and each.subject.endswith(subject)
        ]
        return found

    @property
    def failed(self) -> list[str]:
        return [each.check for each in self.all if not each.ok]


@contextlib.contextmanager
def tls_server() -> Iterator[int]:
    """Listen with a certificate that nobody has reason to trust; gives the port."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("localhost", "127.0.0.1").configure_cert(context)
    with _server(context) as port:
        yield port


@contextlib.contextmanager
def plain_server(*, stays: bool = False) -> Iterator[int]:
    """Listen and say something that is no protocol of ours; gives the port."""
    with _server(None, stays=stays) as port:
        yield port


@contextlib.contextmanager
def _server(context: ssl.SSLContext | None, *, stays: bool = False) -> Iterator[int]:
    over = threading.Event()

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(5)
                if context is None:
                    connection.sendall(b"220 welcome\r\n" * 20)
                    if stays:
                        over.wait(5)
                else:
                    context.wrap_socket(connection, server_side=True).close()

    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        over.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


class MispPublisher:
    """MISP's ZeroMQ publisher, which asks for user name and password; each test lets it speak."""

    def __init__(self, *, password: str = "") -> None:
        self.port = free_port()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.XPUB)
        self._authenticator: zmq.auth.thread.ThreadAuthenticator | None = None
        if password:
            self._authenticator = zmq.auth.thread.ThreadAuthenticator(self._context)
            self._authenticator.start()
            self._authenticator.configure_plain(passwords={"misp": password})
            self._socket.setsockopt(zmq.PLAIN_SERVER, 1)
        self._socket.bind(f"tcp://127.0.0.1:{self.port}")
        self._speaker = threading.Thread(target=self._speak, daemon=True)

    def speaks(self) -> MispPublisher:
        """Give a sign of life to whoever subscribes, from now on."""
        self._speaker.start()
        return self

    def __enter__(self) -> MispPublisher:
        return self

    def __exit__(self, *_: object) -> None:
        if self._speaker.ident is not None:
            self._speaker.join()
        if self._authenticator is not None:
            self._authenticator.stop()
        self._context.destroy(linger=0)

    def _speak(self) -> None:
        if self._socket.poll(10_000):
            self._socket.recv()
            self._socket.send(b'misp_json_self {"status": "And when you\'re done"}')
