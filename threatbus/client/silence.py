"""Why nothing answers at an endpoint."""

from __future__ import annotations

import contextlib
import socket
import sys
from typing import TYPE_CHECKING, Final

from threatbus.client.endpoint import Endpoint, needs_ipv6
from threatbus.config.source import KEY_FILE_VARIABLE
from threatbus.errors import BusUnreachable, Refused
from threatbus.keyfiles import ClientKeys

if TYPE_CHECKING:
    import zmq

# A ZMTP greeting as far as its major version, 3; and how long a whole one is.
_GREETING: Final = b"\xff" + bytes(8) + b"\x7f\x03"
_GREETING_BYTES: Final = 64
#: Seconds that one way of finding out why nothing answers may take; there are three.
PROBE_SECS: Final = 1.0


def silence(
    endpoint: Endpoint, timeout: float, socket_type: str = "REQ", what: str = ""
) -> BusUnreachable | Refused:
    """Give the error for an endpoint at which nothing has answered for `timeout` seconds.

    `Refused` if it is for want of the right keys. `what` is said first. A door of the bus lets in
    one type of ZeroMQ socket only.
    """
    why = refusal(endpoint, socket_type)
    return Refused(why) if why else BusUnreachable(what + explain_silence(endpoint, timeout))


def explain_silence(endpoint: Endpoint, timeout: float) -> str:
    """Say what was tried, what was found, and what to check. Looks at the endpoint to find out."""
    return (
        f"no Threat Bus answers at {endpoint} (waited {timeout:g} s): {_probe(endpoint)}\n"
        "Check that the bus is running, that plugins.apps.zmq is in its configuration, and that "
        "host and port are those of its `manage` endpoint."
    )


def _probe(endpoint: Endpoint) -> str:
    """Find out why nothing answers, by an ordinary connection."""
    try:
        with socket.create_connection((endpoint.host, endpoint.port), PROBE_SECS) as connection:
            connection.settimeout(PROBE_SECS)
            greeting = connection.recv(1)
    except ConnectionRefusedError:
        return "the connection was refused, so nothing listens there."
    except TimeoutError:
        return "nothing reacts to a connection there, or what does says nothing."
    except OSError as error:
        return f"{error.strerror or error}."
    # Every ZMTP peer begins with this byte, before it has been told anything.
    if greeting == b"\xff":
        return (
            "a ZeroMQ socket listens there, but does not reply. It may be another port of the bus "
            "(`pub` or `sub`), or a bus that hangs."
        )
    return "something listens there, but it does not speak ZeroMQ."


def refusal(endpoint: Endpoint, socket_type: str = "REQ") -> str:
    """Say which keys are missing or wrong; empty if the bus objects to none, or is not there."""
    keys, found = endpoint.keys, mechanism(endpoint)
    if found == b"CURVE" and keys is None:
        return (
            f"the bus at {endpoint} asks for a key: give the file that `threatbus keys client` "
            f"made for you, as --key-file or in {KEY_FILE_VARIABLE}"
        )
    if found == b"NULL" and keys is not None:
        return f"the bus at {endpoint} asks for no keys: leave the key file out"
    return _failed_handshake(endpoint, keys, socket_type) if found and keys is not None else ""


def mechanism(endpoint: Endpoint) -> bytes:
    """Give the security mechanism of what listens; empty if it does not speak ZMTP 3.

    It is in the greeting that each peer begins with (rfc.zeromq.org/spec/23), and comes as soon
    as ours has said that far which version it is of.
    """
    try:
        with socket.create_connection((endpoint.host, endpoint.port), PROBE_SECS) as connection:
            connection.sendall(_GREETING)
            with connection.makefile("rb") as stream:
                greeting = stream.read(_GREETING_BYTES)
    except OSError:
        return b""
    return greeting[12:32].rstrip(b"\0") if greeting[:1] == b"\xff" else b""


def _failed_handshake(endpoint: Endpoint, keys: ClientKeys, socket_type: str) -> str:
    """Say why the bus does not want these keys, which ZeroMQ tells its monitors only."""
    import zmq  # noqa: PLC0415

    ends = (
        zmq.EVENT_HANDSHAKE_SUCCEEDED
        | zmq.EVENT_HANDSHAKE_FAILED_AUTH
        | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        | zmq.EVENT_CONNECT_RETRIED
    )
    with zmq.Context() as context, context.socket(getattr(zmq, socket_type)) as probe:
        probe.setsockopt(zmq.LINGER, 0)
        probe.setsockopt(zmq.IPV6, needs_ipv6(endpoint))
        endpoint.secure(probe)
        monitor: zmq.Socket[bytes] = probe.get_monitor_socket(int(ends))
        with contextlib.closing(monitor):
            probe.connect(endpoint.address())
            event = event_of(monitor) if monitor.poll(int(PROBE_SECS * 1000)) else 0
            probe.disable_monitor()
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        return (
            f"the bus at {endpoint} does not let this client in: its key {keys.public_key} is not "
            "among those that the bus authorises (plugins.apps.zmq.curve.clients), or may not do "
            "this; the log of the bus says which"
        )
    if event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
        return (
            f"what listens at {endpoint} closes the connection: most likely it has another key "
            f"than the server_key of the key file, {keys.server_key}"
        )
    return ""


def event_of(monitor: zmq.Socket[bytes]) -> int:
    """Read the next event of a monitor that has one: the number comes first, in two bytes.

    pyzmq's own reader (zmq_socket_monitor(3)) imports asyncio.
    """
    return int.from_bytes(monitor.recv_multipart()[0][:2], sys.byteorder)
