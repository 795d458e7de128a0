"""What `threatbus doctor` looks at: the three ports, and the keys if there are any."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from threatbus.client.connection import Connections, Manage
from threatbus.client.endpoint import Endpoint
from threatbus.client.silence import refusal
from threatbus.doctor import Check, check_port
from threatbus.errors import BusUnreachable, CheckFailed, InvalidConfig
from threatbus.keyfiles import CLIENT_SUFFIX, ClientRights, read_file
from threatbus_zmq.config import SECTION, CurveConfig, ZmqConfig

#: Seconds that the bus has to answer on its manage port.
ANSWER_SECS: Final = 3.0


def checks(config: ZmqConfig, bus_pid: int | None) -> Iterator[Check]:
    """Give the checks of this section."""

    def port(key: str, number: int) -> Check:
        return Check(
            f"{key} port", lambda: check_port(config.host, number, SECTION, bus_pid, key=key)
        )

    yield port("manage", config.manage)
    yield port("pub", config.pub)
    yield port("sub", config.sub)
    if bus_pid is not None:
        yield Check("answer", lambda: _check_answer(config))
    if config.curve.secret_key:
        yield Check("keys", lambda: _check_keys(config.curve))


def _check_answer(config: ZmqConfig) -> str:
    """Ask for the sign of life of a subscription that nobody has: the bus says no."""
    endpoint = Endpoint.of_bound(config.host, config.manage)
    # The bus's secret key is not a client's: it can be seen that keys are asked for, no more.
    if asks_for_key := refusal(endpoint):
        if config.curve.secret_key:
            return f"the bus at {endpoint} answers, and asks for a key"
        raise CheckFailed(asks_for_key, "start the bus again with this configuration")
    connections = None
    try:
        connections = Connections(endpoint)
        Manage(connections).heartbeat(ANSWER_SECS, "doctor")
    except BusUnreachable as error:
        raise CheckFailed(
            str(error).partition("\n")[0], "look in the log of the bus what its endpoint does"
        ) from None
    finally:
        if connections is not None:
            connections.close()
    if config.curve.secret_key:
        raise CheckFailed(
            f"the bus at {endpoint} asks for no key, although {SECTION}.curve is set",
            "start the bus again with this configuration",
        )
    return f"the bus at {endpoint} answers"


def _check_keys(curve: CurveConfig) -> str:
    directory = Path(curve.clients)
    try:
        files = sorted(file for file in directory.iterdir() if file.suffix == CLIENT_SUFFIX)
    except OSError as error:
        raise CheckFailed(
            f"{directory} cannot be read ({error.strerror})",
            f"give the bus's user the right to read it, or correct {SECTION}.curve.clients",
        ) from None
    for file in files:
        try:
            read_file(file, ClientRights)
        except InvalidConfig as error:
            raise CheckFailed(
                f"{file.name} lets nobody in: {error}",
                "correct the file, or make it anew with `threatbus keys client`",
            ) from None
        except OSError as error:
            raise CheckFailed(
                f"{file} cannot be read ({error.strerror})", "give the bus's user the right to"
            ) from None
    if not files:
        raise CheckFailed(
            f"no client may take part: {directory} holds no file",
            "make keys for one with `threatbus keys client`",
        )
    return f"may take part: {', '.join(file.stem for file in files)}"
