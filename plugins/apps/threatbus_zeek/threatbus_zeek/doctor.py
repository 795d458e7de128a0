"""What `threatbus doctor` looks at: Broker's module and port, and each Zeek's WebSocket."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from threatbus.doctor import Check, check_port, reach
from threatbus.errors import CheckFailed, InvalidConfig
from threatbus_zeek import wire
from threatbus_zeek.broker_transport import load
from threatbus_zeek.config import SECTION, ZeekConfig, checked_url, without_secrets
from threatbus_zeek.websocket_transport import APPLICATION, connect_to, explain, tls_context

#: Seconds for a WebSocket's handshake, and again for Zeek's answer to the list of topics.
OPEN_SECS: Final = 5.0
#: A topic that nobody publishes to, so that a check gets none of the bus's messages.
TOPIC: Final = "threatbus/doctor"
_SETTING: Final = f"{SECTION}.websockets"
_HOW_TO_CORRECT: Final = f"correct {_SETTING}, or look into the log of that Zeek"


def checks(config: ZeekConfig, bus_pid: int | None) -> Iterator[Check]:
    """Give the checks of this section."""
    if config.broker:
        yield Check("Broker's module", _check_module)
        yield Check("port", lambda: check_port(config.host, config.port, SECTION, bus_pid))
        if config.tls.ca and not config.disable_ssl:
            yield Check("certificates", lambda: _check_certificates(config))
    for url in dict.fromkeys(config.websockets):
        yield _websocket(url, config)


def _check_module() -> str:
    try:
        load()
    except InvalidConfig as error:
        found = error.errors[0]
        raise CheckFailed(
            f"it cannot be imported ({found.found})", f"set {found.key}: {found.allowed}"
        ) from None
    return "it can be imported"


def _check_certificates(config: ZeekConfig) -> str:
    tls = config.tls
    try:
        ssl.create_default_context(cafile=tls.ca).load_cert_chain(tls.cert, tls.key)
    except (OSError, ssl.SSLError) as error:
        raise CheckFailed(
            f"they cannot be used ({error.strerror or error})",
            f"{SECTION}.tls wants PEM files: ca, cert, and the key of cert",
        ) from None
    return "they can be read, and the key fits"


def _websocket(url: str, config: ZeekConfig) -> Check:
    address = without_secrets(checked_url(url))
    return Check(f"WebSocket {address}", lambda: _check_websocket(checked_url(url), config))


def _check_websocket(url: str, config: ZeekConfig) -> str:
    from websockets.exceptions import WebSocketException  # noqa: PLC0415 (who has one pays)

    parts = urlsplit(url)
    reach(str(parts.hostname), parts.port or _port_of(parts.scheme), _SETTING)
    try:
        with connect_to(
            url,
            tls_context(url, config),
            f"{APPLICATION}-doctor",
            open_secs=OPEN_SECS,
            close_secs=OPEN_SECS,
        ) as connection:
            connection.send(wire.encode_topics([TOPIC]))
            frame = wire.decode_frame(connection.recv(timeout=OPEN_SECS, decode=False))
    except ssl.SSLError as error:
        raise CheckFailed(
            f"TLS fails: {explain(error)}", f"set {SECTION}.ca_file, or mend the certificate"
        ) from None
    except (TimeoutError, EOFError):
        raise CheckFailed(
            f"what listens there does not answer as Zeek does within {OPEN_SECS:g} s",
            f"look whether that Zeek has a cluster backend; or {_HOW_TO_CORRECT}",
        ) from None
    except (OSError, WebSocketException, wire.BadFrame) as error:
        raise CheckFailed(f"it is no Zeek: {explain(error)}", _HOW_TO_CORRECT) from None
    if not isinstance(frame, wire.Ack):
        raise CheckFailed("it refuses a list of topics", _HOW_TO_CORRECT)
    return f"Zeek {frame.version} answers"


def _port_of(scheme: str) -> int:
    return 443 if scheme == "wss" else 80
