"""The client without a peer: how endpoints are read, and what its import costs."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
from helpers.waiting import eventually

from threatbus.client import Endpoint, Undelivered
from threatbus.client.connection import Connections, Deadline, Manage, Reply
from threatbus.errors import ThreatBusError


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("tcp://127.0.0.1:13370", "127.0.0.1", 13370),
        ("tcp://bus.example.com:1", "bus.example.com", 1),
        ("bus.example.com:2000", "bus.example.com", 2000),
        ("bus", "bus", 13370),
        ("tcp://[::1]:5", "::1", 5),
        ("[2001:db8::1]", "2001:db8::1", 13370),
        ("::1", "::1", 13370),
    ],
)
def test_an_endpoint_may_be_written_in_several_ways(text: str, host: str, port: int) -> None:
    assert Endpoint.parse(text) == Endpoint(host, port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tcp://",
        ":13370",
        "tcp://host:0",
        "tcp://host:70000",
        "tcp://host:port",
        "http://host:80",
        "tcp://host:1/path",
        "tcp://[::1:5",
        "tcp://host:1?x",
    ],
)
def test_what_is_no_endpoint_is_quoted_in_the_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"tcp://HOST:PORT") as caught:
        Endpoint.parse(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("text", ["tcp://127.0.0.1:13370", "tcp://[::1]:5"])
def test_an_endpoint_is_written_as_zeromq_reads_it(text: str) -> None:
    assert str(Endpoint.parse(text)) == text


@pytest.mark.parametrize(
    ("host", "written"),
    [
        ("127.0.0.1", "tcp://127.0.0.1:5"),
        ("localhost", "tcp://127.0.0.1:5"),
        ("*", "tcp://127.0.0.1:5"),
        ("0.0.0.0", "tcp://127.0.0.1:5"),
        ("lo", "tcp://127.0.0.1:5"),
        ("::", "tcp://[::1]:5"),
        ("[::]", "tcp://[::1]:5"),
        ("[::1]", "tcp://[::1]:5"),
        ("bus.example.com", "tcp://bus.example.com:5"),
    ],
)
def test_what_is_bound_to_an_address_is_reached_at_one_that_can_be_pasted(
    host: str, written: str
) -> None:
    endpoint = Endpoint.of_bound(host, 5)
    assert str(endpoint) == written
    assert Endpoint.parse(written) == endpoint


def test_other_ports_are_on_the_same_host() -> None:
    assert Endpoint("::1").address(13371) == "tcp://[::1]:13371"


def test_a_deadline_passes_and_never_is_never() -> None:
    soon, never = Deadline(0.01), Deadline(None)
    assert soon.remaining()
    eventually(lambda: soon.over)
    assert soon.remaining() == 0
    assert never.remaining() is None
    assert not never.over


def test_a_reply_without_topic_or_ports_grants_nothing() -> None:
    assert Reply("success", "a" * 32, 1, 2).grants_subscription
    assert not Reply("success", "", 1, 2).grants_subscription
    assert not Reply("success", "a" * 32, 0, 2).grants_subscription
    assert not Reply("error", "a" * 32, 1, 2).grants_subscription


def test_a_request_does_not_wait_for_a_connection_that_the_bus_has_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # ZeroMQ lets go of such a connection for good: what is left is a socket with no pipe.
    monkeypatch.setattr(
        Connections, "open", lambda connections, kind: connections._context.socket(kind)
    )
    connections = Connections(Endpoint.parse("tcp://127.0.0.1:1"))
    manage = Manage(connections)
    sending = threading.Thread(target=lambda: manage.send("heartbeat", "p2p"), daemon=True)
    sending.start()
    sending.join(5)
    assert not sending.is_alive()
    assert manage.waiting
    assert manage.take_reply() is None
    connections.close()


def test_an_undelivered_publication_says_how_far_it_came() -> None:
    error = Undelivered("the connection was lost", 1234)
    assert isinstance(error, ThreatBusError)
    assert str(error).startswith("the connection was lost; 1,234 objects were handed over")


def test_importing_the_client_and_the_commands_loads_no_heavy_library() -> None:
    heavy = ["zmq", "stix2", "dynaconf", "asyncio", "yaml"]
    imports = "import sys, threatbus.client, threatbus.cli"
    code = f"{imports}; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=10
    )
    assert found.stdout.strip() == "[]"
