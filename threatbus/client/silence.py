"""Why nothing answers at an endpoint."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Any, Final

from threatbus.client.endpoint import Endpoint
from threatbus.config.source import KEY_FILE_VARIABLE
from threatbus.errors import BusUnreachable, Refused

if TYPE_CHECKING:
    import zmq

#: Seconds that one way of finding out why nothing answers may take; there are three.
PROBE_SECS: Final = 1.0


def silence(endpoint: Endpoint, timeout: float, what: str = "") -> BusUnreachable | Refused:
    """Give the error for an endpoint at which nothing has answered for `timeout` seconds.

    `Refused` if it is for want of the right keys. `what` is said first.
    """
    why = refusal(endpoint)
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


def refusal(endpoint: Endpoint) -> str:
    """Say which keys are missing or wrong; empty if the bus objects to none, or is not there.

    ZeroMQ says so to its monitors only.
    """
    import zmq  # noqa: PLC0415

    with zmq.Context() as context, context.socket(zmq.REQ) as probe:
        probe.setsockopt(zmq.LINGER, 0)
        probe.setsockopt(zmq.IPV6, int(":" in endpoint.host))
        endpoint.secure(probe)
        ends = (
            zmq.EVENT_HANDSHAKE_SUCCEEDED
            | zmq.EVENT_HANDSHAKE_FAILED_AUTH
            | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
            | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
            | zmq.EVENT_CONNECT_RETRIED
        )
        monitor: zmq.Socket[bytes] = probe.get_monitor_socket(int(ends))
        with contextlib.closing(monitor):
            probe.connect(endpoint.address())
            found = _next_event(monitor)
            probe.disable_monitor()
    return _explain_event(endpoint, found)


def _next_event(monitor: zmq.Socket[bytes]) -> dict[str, Any]:
    from zmq.utils.monitor import recv_monitor_message  # noqa: PLC0415 (it imports asyncio)

    if not monitor.poll(int(PROBE_SECS * 1000)):
        return {}
    return dict(recv_monitor_message(monitor))


def _explain_event(endpoint: Endpoint, found: dict[str, Any]) -> str:
    import zmq  # noqa: PLC0415

    event, keys = found.get("event", 0), endpoint.keys
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH and keys is not None:
        return (
            f"the bus at {endpoint} does not let this client in: its key {keys.public_key} is not "
            "among those that the bus authorises (plugins.apps.zmq.curve.clients), or may not do "
            "this; the log of the bus says which"
        )
    mismatch = zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH
    if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and found.get("value") == mismatch:
        if keys is None:
            return (
                f"the bus at {endpoint} asks for a key: give the file that `threatbus keys client` "
                f"made for you, as --key-file or in {KEY_FILE_VARIABLE}"
            )
        return f"the bus at {endpoint} asks for no keys: leave the key file out"
    if event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL and keys is not None:
        return (
            f"what listens at {endpoint} closes the connection: most likely it has another key "
            f"than the server_key of the key file, {keys.server_key}"
        )
    return ""
