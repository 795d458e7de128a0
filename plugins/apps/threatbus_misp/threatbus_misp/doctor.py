"""What `threatbus doctor` looks at, of each MISP: REST and key, ZeroMQ, Kafka and its topics."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from functools import partial
from typing import Final
from urllib.parse import urlsplit

from threatbus.client import Endpoint
from threatbus.client.silence import event_of, mechanism
from threatbus.doctor import Check, reach
from threatbus.errors import CheckFailed
from threatbus_misp.config import ApiConfig, InstanceConfig, KafkaConfig, MispConfig, ZmqConfig
from threatbus_misp.rest import MispApi
from threatbus_misp.rest_errors import MispDenied, MispError

#: Seconds that MISP may take for an answer over REST.
REST_SECS: Final = 10.0
#: Seconds within which MISP's publisher is heard: it gives a sign of life every 10 s.
SIGN_OF_LIFE_SECS: Final = 12.0
#: Seconds that a handshake with it may take.
HANDSHAKE_SECS: Final = 5.0
#: Seconds that Kafka may take to name its topics.
METADATA_SECS: Final = 8.0


def checks(config: MispConfig) -> Iterator[Check]:
    """Give the checks of all instances."""
    for name, each in config.by_name.items():
        of = f" of {name}" if config.instances else ""
        yield from _checks_of(each, config.path_of(name), of)


def _checks_of(config: InstanceConfig, section: str, of: str) -> Iterator[Check]:
    if config.api.key:
        yield Check(f"REST{of}", partial(_check_rest, config.api, f"{section}.api"))
    if config.zmq is not None:
        probe = partial(_check_zmq, config.zmq, f"{section}.zmq")
        yield Check(f"ZeroMQ{of}", probe, 3 * HANDSHAKE_SECS + SIGN_OF_LIFE_SECS)
    if config.kafka is not None:
        yield Check(f"Kafka{of}", partial(_check_kafka, config.kafka, f"{section}.kafka"))


def _check_rest(config: ApiConfig, section: str) -> str:
    _check_address(config.host, f"{section}.host")
    try:
        api = MispApi(config.host, config.key, config.ssl, timeout=(REST_SECS / 2, REST_SECS / 2))
        version = api.connect()
    except ValueError as error:
        raise CheckFailed(str(error), f"correct {section}.key") from None
    except ImportError as error:
        raise _no_module(error, "pymisp") from None
    except MispDenied as error:
        raise CheckFailed(
            f"the key is refused: {error.reason}",
            f"correct {section}.key: a key of a user whose role may read, and add sightings",
        ) from None
    except MispError as error:
        raise CheckFailed(error.reason, _next_step_of_rest(error.reason, section)) from None
    return f"MISP {version} answers and knows the key"


def _check_address(address: str, key: str) -> None:
    """Connect to where MISP is, unless that is for a proxy to do; raises `CheckFailed`."""
    try:
        from requests.utils import get_environ_proxies  # noqa: PLC0415 (comes with PyMISP)
    except ImportError as error:
        raise _no_module(error, "pymisp") from None
    url = urlsplit(address)
    port = url.port or (443 if url.scheme == "https" else 80)
    if not get_environ_proxies(address):
        reach(url.hostname or address, port, key)


def _next_step_of_rest(reason: str, section: str) -> str:
    if "certificate" in reason:
        return f"name the certificates that are trusted in {section}.ssl"
    return f"look whether {section}.host is the address of MISP itself, and into MISP's log"


def _check_zmq(config: ZmqConfig, section: str) -> str:
    reach(config.host, config.port, f"{section}.host and {section}.port")
    _check_mechanism(config, section)
    import zmq  # noqa: PLC0415 (who has it pays)

    from threatbus_misp.receiver_zmq import HANDSHAKE_REFUSED, address_of  # noqa: PLC0415

    ends = zmq.EVENT_HANDSHAKE_SUCCEEDED | HANDSHAKE_REFUSED
    with zmq.Context() as context, context.socket(zmq.SUB) as sub:
        sub.setsockopt(zmq.LINGER, 0)
        sub.setsockopt(zmq.IPV6, 1)
        if config.username:
            sub.setsockopt_string(zmq.PLAIN_USERNAME, config.username)
            sub.setsockopt_string(zmq.PLAIN_PASSWORD, config.password)
        sub.setsockopt(zmq.SUBSCRIBE, b"misp_json")
        monitor = sub.get_monitor_socket(int(ends))
        with contextlib.closing(monitor):
            sub.connect(address_of(config))
            event = event_of(monitor) if monitor.poll(int(HANDSHAKE_SECS * 1000)) else 0
            sub.disable_monitor()
        if event & HANDSHAKE_REFUSED:
            raise CheckFailed(
                "username or password are refused",
                f"set {section}.username and {section}.password as MISP's "
                "Plugin.ZeroMQ_username and ZeroMQ_password are",
            )
        if not event:
            raise CheckFailed(
                f"no handshake within {HANDSHAKE_SECS:g} s",
                f"look whether MISP's ZeroMQ server hangs, and whether {section}.port is its port",
            )
        if not sub.poll(int(SIGN_OF_LIFE_SECS * 1000)):
            raise CheckFailed(
                f"connected, but nothing was heard for {SIGN_OF_LIFE_SECS:g} s, not even the sign "
                "of life that MISP gives every 10 s",
                f"look whether MISP's ZeroMQ server runs, and whether {section}.port is its port",
            )
        topic = sub.recv().partition(b" ")[0].decode(errors="replace")
    return f"MISP is heard ({topic[:40]})"


def _check_mechanism(config: ZmqConfig, section: str) -> None:
    """Raise `CheckFailed` if what listens is no ZeroMQ, or wants to be greeted otherwise."""
    found = mechanism(Endpoint(config.host, config.port)).decode("ascii", "replace")
    if not found:
        raise CheckFailed(
            "what listens there does not speak ZeroMQ",
            f"correct {section}.port: MISP's Plugin.ZeroMQ_port",
        )
    wanted = "PLAIN" if config.username else "NULL"
    if found != wanted:
        asks = "asks for" if found == "PLAIN" else "does not want"
        raise CheckFailed(
            f"what listens there {asks} a user name and a password ({found!r})",
            f"set {section}.username and {section}.password as MISP's Plugin.ZeroMQ_username "
            "and ZeroMQ_password are",
        )


def _check_kafka(config: KafkaConfig, section: str) -> str:
    try:
        import confluent_kafka  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise _no_module(error, "confluent-kafka") from None
    quiet = logging.getLogger("threatbus.misp.doctor")
    quiet.setLevel(logging.CRITICAL)
    settings = {"group.id": "threatbus", **config.config, "enable.auto.commit": False}
    why: list[str] = []
    settings["error_cb"] = lambda error: why.append(error.str())
    try:
        consumer = confluent_kafka.Consumer(settings, logger=quiet)
    except confluent_kafka.KafkaException as error:
        raise CheckFailed(
            f"librdkafka does not take the settings: {error.args[0].str()}",
            f"correct {section}.config",
        ) from None
    began = time.monotonic()
    try:
        # It subscribes to nothing, so it takes no part in the group.
        known = consumer.list_topics(timeout=METADATA_SECS).topics
    except confluent_kafka.KafkaException as error:
        reason = why[0] if why else error.args[0].str()
        raise CheckFailed(
            f"no broker answers ({reason}; waited {time.monotonic() - began:.0f} s)",
            f"correct bootstrap.servers or what belongs to it in {section}.config",
        ) from None
    finally:
        consumer.close()
    if missing := [topic for topic in config.topics if topic not in known]:
        there = ", ".join(sorted(name for name in known if not name.startswith("__"))) or "none"
        raise CheckFailed(
            f"there is no topic {', '.join(missing)}; there are: {there}",
            f"correct {section}.topics, or enable them in MISP (Plugin.Kafka_…)",
        )
    return f"{len(config.topics)} topics are there"


def _no_module(error: ImportError, package: str) -> CheckFailed:
    return CheckFailed(f"a module is missing ({error})", f"pip install {package}")
