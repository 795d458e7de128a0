"""RabbitMQ over TLS, with certificates of a private authority."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme
from helpers.buses import Buses, OpenApp
from helpers.documents import indicators
from helpers.services import rabbit_node
from helpers.waiting import eventually

from testbed.ports import free_port
from threatbus.errors import InvalidConfig

APPS = {"open": None}


@dataclass
class TlsBroker:
    """A broker that speaks TLS only with clients whose certificate its authority has signed."""

    port: int
    directory: Path

    def file(self, name: str) -> str:
        return str(self.directory / f"{name}.pem")

    def backbones(self, **tls: Any) -> dict[str, Any]:
        return {
            "rabbitmq": {"host": "localhost", "port": self.port, "tls": {"enabled": True} | tls}
        }


@pytest.fixture(scope="module")
def tls_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsBroker]:
    directory = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    for name, issuer in (("ca", authority), ("stranger", trustme.CA())):
        issuer.cert_pem.write_to_path(str(directory / f"{name}.pem"))
    for name in ("server", "client"):
        issued = authority.issue_cert("localhost")
        issued.private_key_and_cert_chain_pem.write_to_path(str(directory / f"{name}.pem"))
    port = free_port()
    with rabbit_node(
        f"listeners.ssl.1 = 127.0.0.1:{port}\n"
        f"ssl_options.cacertfile = {directory}/ca.pem\n"
        f"ssl_options.certfile = {directory}/server.pem\n"
        f"ssl_options.keyfile = {directory}/server.pem\n"
        "ssl_options.verify = verify_peer\n"
        "ssl_options.fail_if_no_peer_cert = true\n",
        port,
    ):
        yield TlsBroker(port, directory)


def test_messages_pass_when_each_side_trusts_the_other(
    start_bus: Buses, open_app: OpenApp, tls_broker: TlsBroker
) -> None:
    files = {"ca": tls_broker.file("ca"), "cert": tls_broker.file("client")}
    start_bus(APPS, tls_broker.backbones(**files))
    outq = open_app.services.outq("reader")
    open_app.subscribe("stix2", outq)
    batch = indicators(10)
    open_app.inq.put_many(batch)
    eventually(lambda: outq.qsize() == 10)


@pytest.mark.parametrize(
    ("ca", "cert", "reason"),
    [("stranger", "client", "certificate verify failed"), ("ca", "", "")],
    ids=["a broker that is not trusted", "a bus that is not trusted"],
)
def test_without_trust_there_is_no_connection_and_the_log_says_why(
    start_bus: Buses,
    open_app: OpenApp,
    tls_broker: TlsBroker,
    caplog: pytest.LogCaptureFixture,
    ca: str,
    cert: str,
    reason: str,
) -> None:
    files = {"ca": tls_broker.file(ca), "cert": tls_broker.file(cert) if cert else ""}
    with caplog.at_level(logging.WARNING):
        start_bus(APPS, tls_broker.backbones(**files), drain_timeout=0.1)
        eventually(lambda: "no connection to localhost" in caplog.text)
    assert reason in caplog.text


def test_who_turns_verification_off_gets_a_connection_to_anybody(
    start_bus: Buses, open_app: OpenApp, tls_broker: TlsBroker, caplog: pytest.LogCaptureFixture
) -> None:
    files = {"ca": tls_broker.file("stranger"), "cert": tls_broker.file("client")}
    with caplog.at_level(logging.INFO):
        start_bus(APPS, tls_broker.backbones(**files, verify=False))
        eventually(lambda: "is connected to localhost" in caplog.text)


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_file_that_cannot_be_used_stops_the_start_and_is_named(
    start_bus: Buses,
    open_app: OpenApp,
    tls_broker: TlsBroker,
    tmp_path: Path,
    content: str | None,
) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InvalidConfig, match=r"plugins\.backbones\.rabbitmq\.tls\.ca: is .*ca\.pem"):
        start_bus(APPS, tls_broker.backbones(ca=str(path)))
