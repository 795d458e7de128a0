"""TLS towards MISP, Zeek and RabbitMQ: whom the bus trusts, and whom it does not.

Each server shows a real certificate; which one, and which authority the bus is told to trust, is
what differs. What RabbitMQ itself has to say is in test_rabbitmq_tls.py.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from helpers.buses import Buses, OpenApp
from helpers.certificates import HOST, Certificates
from helpers.waiting import eventually
from helpers.zeeks import OurScript
from threatbus_misp.rest import MispApi
from threatbus_misp.rest_errors import MispUnreachable

from integration.misp_server import MispServer
from integration.zeek_helpers import Zeeks
from testbed.ports import free_port
from threatbus.errors import InvalidConfig

#: The certificate that a server shows, the authority that the bus trusts, what the bus then says.
REFUSED = [
    pytest.param("server", "stranger", "unable to get local issuer", id="of an unknown authority"),
    pytest.param("server", "", "unable to get local issuer", id="of none the system knows"),
    pytest.param("expired", "ca", "certificate has expired", id="that has expired"),
    pytest.param("other_host", "ca", "Hostname mismatch", id="of another host"),
]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


def trusted(certificates: Certificates, authority: str) -> str:
    return certificates.file(authority) if authority else ""


# MISP.


@pytest.fixture
def misp() -> Iterator[MispServer]:
    with MispServer() as server:
        yield server


def api(misp: MispServer, trusts: str | bool) -> MispApi:
    url = misp.url.replace("http://127.0.0.1", f"https://{HOST}")
    return MispApi(url, misp.key, trusts, timeout=(1.0, 5.0))


def test_misp_is_spoken_to_when_its_authority_is_named(
    misp: MispServer, certificates: Certificates
) -> None:
    misp.speak_tls(certificates.server())
    assert api(misp, certificates.file("ca")).connect() == misp.version


@pytest.mark.parametrize(("shown", "authority", "said"), REFUSED)
def test_a_misp_with_a_certificate_gets_no_key(
    misp: MispServer, certificates: Certificates, shown: str, authority: str, said: str
) -> None:
    misp.speak_tls(certificates.server(shown))
    with pytest.raises(MispUnreachable, match=said) as raised:
        api(misp, trusted(certificates, authority) or True).connect()
    assert "api.ssl names the certificates that are trusted" in str(raised.value)
    assert misp.authorizations == []


def test_misp_is_spoken_to_whatever_it_shows_if_the_operator_says_so(
    misp: MispServer, certificates: Certificates
) -> None:
    misp.speak_tls(certificates.server("strangers_server"))
    assert api(misp, False).connect() == misp.version


def test_a_file_of_authorities_that_is_not_there_stops_the_start(start_bus: Buses) -> None:
    section = {"api": {"key": "k", "ssl": "/nowhere/ca.pem"}}
    with pytest.raises(InvalidConfig, match=r"plugins\.apps\.misp\.api\.ssl: is '/nowhere/ca.pem'"):
        start_bus(apps={"misp": section})


# Zeek over WebSocket.


def websocket_bus(zeeks: Zeeks, port: int, ca_file: str) -> None:
    zeeks.bus(broker=False, websockets=[f"wss://{HOST}:{port}"], ca_file=ca_file)


def test_a_websocket_is_opened_when_its_authority_is_named(
    zeeks: Zeeks, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    zeeks.listening(port, OurScript, tls=certificates.server())
    with caplog.at_level(logging.INFO):
        websocket_bus(zeeks, port, certificates.file("ca"))
        eventually(lambda: "connected to Zeek" in caplog.text)


@pytest.mark.parametrize(("shown", "authority", "said"), REFUSED)
def test_a_websocket_with_a_certificate_is_not_used(
    zeeks: Zeeks,
    certificates: Certificates,
    caplog: pytest.LogCaptureFixture,
    shown: str,
    authority: str,
    said: str,
) -> None:
    port = free_port()
    zeeks.listening(port, OurScript, tls=certificates.server(shown))
    with caplog.at_level(logging.INFO):
        websocket_bus(zeeks, port, trusted(certificates, authority))
        eventually(lambda: said in caplog.text)
    assert "plugins.apps.zeek.ca_file names the certificates that are trusted" in caplog.text
    assert "connected to Zeek" not in caplog.text


# Zeek over Broker.


def broker_tls(certificates: Certificates, own: str, authority: str = "ca") -> dict[str, str]:
    file = certificates.file(own)
    return {"ca": certificates.file(authority), "cert": file, "key": file}


def test_a_zeek_with_a_certificate_of_the_authority_takes_part(
    zeeks: Zeeks, certificates: Certificates
) -> None:
    bus = zeeks.bus(tls=broker_tls(certificates, "server"))
    zeek = zeeks.ours(bus, tls=broker_tls(certificates, "client"))
    assert zeek.begun == 1


@pytest.mark.parametrize("shown", ["nothing", "strangers_server", "expired"])
def test_a_zeek_without_a_good_certificate_takes_no_part(
    zeeks: Zeeks, certificates: Certificates, shown: str
) -> None:
    bus = zeeks.bus(tls=broker_tls(certificates, "server"))
    tls = None if shown == "nothing" else broker_tls(certificates, shown)
    stranger = zeeks.starting(bus, OurScript, tls=tls)
    eventually(lambda: "unable to connect to remote peer" in str(stranger.errors))
    assert stranger.begun == 0
    assert bus.subscribers() == []


@pytest.mark.parametrize("missing", ["ca", "cert", "key"])
def test_half_of_what_broker_needs_is_an_error_that_names_the_rest(
    start_bus: Buses, certificates: Certificates, missing: str
) -> None:
    tls = {**broker_tls(certificates, "server"), missing: ""}
    with pytest.raises(InvalidConfig, match=rf"plugins\.apps\.zeek\.tls\.{missing}: is missing"):
        start_bus(apps={"zeek": {"port": free_port(), "tls": tls}})


# RabbitMQ: what is refused is refused before anything of AMQP is said, so any server will do.


@contextlib.contextmanager
def tls_server(context: ssl.SSLContext) -> Iterator[int]:
    """A server that shows its certificate and says nothing; gives its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        wrapped = context.wrap_socket(listener, server_side=True)

        def serve() -> None:
            while True:
                try:
                    wrapped.accept()[0].close()
                except ssl.SSLError:
                    continue
                except OSError:
                    return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield wrapped.getsockname()[1]
        finally:
            with contextlib.suppress(OSError):
                wrapped.shutdown(socket.SHUT_RDWR)
            wrapped.close()
            thread.join()


@pytest.mark.parametrize(("shown", "authority", "said"), REFUSED)
def test_a_rabbitmq_with_a_certificate_gets_no_password(
    start_bus: Buses,
    open_app: OpenApp,
    certificates: Certificates,
    caplog: pytest.LogCaptureFixture,
    shown: str,
    authority: str,
    said: str,
) -> None:
    with tls_server(certificates.server(shown)) as port, caplog.at_level(logging.WARNING):
        section: dict[str, Any] = {
            "host": HOST,
            "port": port,
            "tls": {"enabled": True, "ca": trusted(certificates, authority)},
        }
        start_bus({"open": None}, {"rabbitmq": section}, drain_timeout=0.1)
        eventually(lambda: said in caplog.text)
        start_bus.close()
    assert "plugins.backbones.rabbitmq.tls.ca names the certificates" in caplog.text
