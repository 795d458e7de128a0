"""Where MISP's messages come from, and what keeps them from coming: passwords, topics, disks."""

from __future__ import annotations

import json
import logging
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import confluent_kafka
import pytest
import yaml
import zmq
from helpers.buses import Buses, OpenApp
from helpers.waiting import SOON, eventually, finished
from threatbus_misp import receiver_kafka
from threatbus_misp.config import KafkaConfig
from threatbus_misp.missing import Missing
from threatbus_misp.receiver_kafka import KafkaSource
from zmq.auth.thread import ThreadAuthenticator

from integration.cli_helpers import run as run_command
from integration.misp_helpers import (
    KafkaStream,
    MispBus,
    ZmqStream,
    attribute_message,
    captured,
    shown,
)
from integration.misp_server import MispServer
from threatbus.errors import InvalidConfig

IP = "[ipv4-addr:value = '198.51.100.7']"

Start = Callable[..., MispBus]


@pytest.fixture
def start(start_bus: Buses, open_app: OpenApp) -> Start:
    """Starts a bus with this section of MISP."""

    def started(section: dict[str, Any], **core: Any) -> MispBus:
        return MispBus(start_bus, open_app, section, **core)

    return started


# ZeroMQ with user name and password, as MISP's publisher asks for them.


class PlainStream(ZmqStream):
    """MISP's publisher with ``ZeroMQ_username`` and ``ZeroMQ_password``."""

    def __init__(self) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._authenticator = ThreadAuthenticator(self.context)
        self._authenticator.start()
        self._authenticator.configure_plain(domain="*", passwords={"misp": "correct horse"})
        super().__init__(context=self.context, plain=True)

    def close(self) -> None:
        """Close the sockets and end the authenticator."""
        self._authenticator.stop()
        super().close()


@pytest.fixture
def guarded() -> Iterator[PlainStream]:
    stream = PlainStream()
    yield stream
    stream.close()


def test_user_name_and_password_are_shown_to_a_misp_that_asks_for_them(
    guarded: PlainStream, start: Start
) -> None:
    """The receiver could not authenticate, although MISP asks for it."""
    login = {"username": "misp", "password": "correct horse"}
    bus = start({"zmq": {**guarded.section["zmq"], **login}})
    guarded.send("misp_json_attribute", captured("attribute_add"))
    assert shown(bus.receive()) == [(IP, False)]


@pytest.mark.parametrize(
    "login",
    [
        {"username": "misp", "password": "battery staple"},
        {"username": "nobody", "password": "battery staple"},
        {},
    ],
    ids=["wrong password", "wrong user", "none"],
)
def test_a_login_that_misp_refuses_is_said_with_what_to_do_and_not_shown(
    guarded: PlainStream, start: Start, caplog: pytest.LogCaptureFixture, login: dict[str, str]
) -> None:
    """And so nobody was told, either."""
    start({"zmq": {**guarded.section["zmq"], **login}})
    eventually(lambda: "zmq.username or zmq.password is wrong" in caplog.text)
    assert "battery staple" not in caplog.text


def test_a_login_that_misp_does_not_want_is_said(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    stream = ZmqStream()
    login = {"username": "misp", "password": "battery staple"}
    start({"zmq": {**stream.section["zmq"], **login}})
    eventually(lambda: "or MISP wants none" in caplog.text)
    stream.close()


# Kafka.


@pytest.fixture
def kafka() -> Iterator[KafkaStream]:
    stream = KafkaStream()
    yield stream
    stream.close()


def test_a_topic_that_does_not_exist_is_named_beside_those_that_do(
    kafka: KafkaStream, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    section = {"kafka": {**kafka.section["kafka"], "topics": ["misp_attribute", "stix2/indicator"]}}
    start(section)
    eventually(lambda: "stix2/indicator does not exist" in caplog.text)
    assert "misp_attribute does not exist" not in caplog.text
    assert "Kafka has: misp_attribute, misp_event" in caplog.text


@pytest.mark.usefixtures("long_patience")
def test_a_kafka_that_is_away_is_named_and_the_bus_stops_all_the_same(
    start: Start, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiver_kafka, "METADATA_SECS", 1)
    servers = "127.0.0.1:9"
    bus = start({"kafka": {"topics": ["a"], "config": {"bootstrap.servers": servers}}})
    eventually(lambda: servers in caplog.text)
    began = time.monotonic()
    bus.bus.stop()
    assert time.monotonic() - began < SOON


@pytest.mark.parametrize("harm", [{"no.such.setting": 1}, {"session.timeout.ms": "soon"}])
def test_a_setting_that_librdkafka_does_not_take_is_named(
    kafka: KafkaStream, start: Start, caplog: pytest.LogCaptureFixture, harm: dict[str, Any]
) -> None:
    section = dict(kafka.section["kafka"])
    start({"kafka": {**section, "config": {**section["config"], **harm}}})
    eventually(lambda: "its settings do not work" in caplog.text)
    assert next(iter(harm)) in caplog.text


class Taken:
    """Takes documents; refuses the first batches with the one that it is told to refuse."""

    def __init__(self, refused: bytes = b"", times: int = 0) -> None:
        self.documents: list[bytes] = []
        self._refused = refused
        self.left = times

    def __call__(self, documents: Sequence[bytes]) -> None:
        if self.left and self._refused in documents:
            self.left -= 1
            raise OSError("the bus cannot keep it")
        self.documents += documents


@pytest.fixture
def read(kafka: KafkaStream) -> Iterator[Callable[[Taken], KafkaSource]]:
    """Starts a source that reads what MISP writes of attributes."""
    sources = []

    def started(take: Taken) -> KafkaSource:
        section = kafka.section["kafka"] | {"topics": ["misp_attribute"]}
        config = KafkaConfig(**section)
        sources.append(KafkaSource("misp", config, take, Missing(can_ask=False)))
        sources[-1].start()
        return sources[-1]

    yield started
    for source in sources:
        source.stop()
        finished(source)


def committed(kafka: KafkaStream) -> int:
    """Give the offset that is committed, negative for none."""
    config = {"bootstrap.servers": kafka.servers, "group.id": "threatbus"}
    consumer = confluent_kafka.Consumer(config)
    try:
        partition = confluent_kafka.TopicPartition("misp_attribute", 0)
        (found,) = consumer.committed([partition], timeout=SOON)
        return int(found.offset)
    finally:
        consumer.close()


def test_offsets_are_committed_once_the_bus_has_taken_what_they_stand_for(
    kafka: KafkaStream, read: Callable[[Taken], KafkaSource]
) -> None:
    kafka.send("misp_json_attribute", b'{"one": 1}')
    taken = Taken(b'{"two": 2}', times=1_000)
    source = read(taken)
    eventually(lambda: b'{"one": 1}' in taken.documents)
    eventually(lambda: committed(kafka) == 2, what="the first one is committed")
    kafka.send("misp_json_attribute", b'{"two": 2}')
    eventually(lambda: taken.left < 1_000, what="the second one is refused")
    source.stop()
    finished(source)
    assert committed(kafka) == 2
    again = Taken()
    read(again)
    eventually(lambda: again.documents == [b'{"two": 2}'], what="it comes again")
    eventually(lambda: committed(kafka) == 3, what="it is committed")


def test_what_the_bus_could_not_take_comes_again_without_a_restart_of_the_bus(
    kafka: KafkaStream, read: Callable[[Taken], KafkaSource]
) -> None:
    kafka.send("misp_json_attribute", b'{"one": 1}')
    taken = Taken(b'{"one": 1}', times=1)
    read(taken)
    eventually(lambda: b'{"one": 1}' in taken.documents, 2 * SOON)


# Configurations of 2022.5.16.

OLD_ZMQ = """
    misp:
      api:
        host: {host}
        ssl: false
        key: {key}
      filter: # filter are optional. you can omit the entire section.
        - orgs: # creator_org IDs
          - "1"
          - "25"
          tags: # attribute tags
          - "TLP:AMBER"
          - "TLP:RED"
          types: # MISP attribute types
          - ip-src
          - ip-dst
        - orgs:
          - "2"
      zmq:
        host: 127.0.0.1
        port: {port}
"""
OLD_KAFKA = """
    misp:
      api:
        host: {host}
        ssl: false
        key: {key}
      kafka:
        topics:
        - misp_attribute
        poll_interval: 1.0
        # All config entries are passed as-is to librdkafka
        config:
          bootstrap.servers: "{servers}"
          group.id: "threatbus"
          auto.offset.reset: "earliest"
"""


def old_section(text: str, **values: Any) -> dict[str, Any]:
    section: dict[str, Any] = yaml.safe_load(text.format(**values))["misp"]
    return section


def test_a_zmq_section_of_2022_works_unchanged(start: Start) -> None:
    stream = ZmqStream()
    with MispServer() as server:
        bus = start(old_section(OLD_ZMQ, host=server.url, key=server.key, port=stream.port))
        bus.healed()
        tagged = captured("attribute_tag", "misp_json_attribute")
        tagged["Attribute"]["Tag"] = [{"id": "1", "name": "tlp:amber"}]
        event = server.misp.add_event("capture event one", event_uuid=tagged["Event"]["uuid"])
        tagged["Event"]["id"] = str(event.id)
        untagged = attribute_message(value="192.0.2.1")
        untagged["Event"]["id"] = str(event.id)
        for message, misp_type in ((untagged, "ip-dst"), (tagged, "ip-dst")):
            made = server.misp.add_attribute(
                event,
                misp_type,
                message["Attribute"]["value"],
                attribute_uuid=message["Attribute"]["uuid"],
            )
            for tag in message["Attribute"].get("Tag", ()):
                server.misp.tag(made, tag["name"])
            stream.send("misp_json_attribute", message)
        (found,) = bus.receive()
        assert found["id"] == f"indicator--{tagged['Attribute']['uuid']}"
    stream.close()


def test_a_kafka_section_of_2022_works_unchanged(start: Start, kafka: KafkaStream) -> None:
    with MispServer() as server:
        values = {"host": server.url, "key": server.key, "servers": kafka.servers}
        bus = start(old_section(OLD_KAFKA, **values))
        kafka.send("misp_json_attribute", captured("attribute_add"))
        assert shown(bus.receive()) == [(IP, False)]


@pytest.mark.parametrize("text", [OLD_ZMQ, OLD_KAFKA], ids=["zmq", "kafka"])
def test_a_file_of_2022_is_valid(tmp_path: Path, text: str) -> None:
    section = text.format(host="https://localhost", key="k" * 40, port=50000, servers="localhost:1")
    config = f"plugins:\n  backbones:\n    inmem:\n  apps:{section}"
    (tmp_path / "config.yaml").write_text(config)
    ended = run_command("check", cwd=tmp_path)
    assert ended.stdout == b"config.yaml is valid: backbones inmem; apps misp\n"
    assert (ended.returncode, ended.stderr) == (0, b"")


@pytest.mark.parametrize(
    "host", ["misp.example", "https:/u:hidden@misp", "ftp://misp", "https://m:port", " https://m"]
)
def test_an_address_that_is_none_stops_the_start(start_bus: Buses, host: str) -> None:
    with pytest.raises(InvalidConfig) as raised:
        start_bus({"misp": {"api": {"host": host, "key": "k"}}})
    assert str(raised.value) == (
        "plugins.apps.misp.api.host: is no address of the web, but it must be http:// or https:// "
        "and the name of a host"
    )


@pytest.mark.parametrize(
    ("module", "key", "package"),
    [("pymisp", "api.key", "pymisp"), ("confluent_kafka", "kafka", "confluent-kafka")],
)
def test_a_module_that_a_section_needs_is_asked_for_at_the_start(
    module: str, key: str, package: str, start_bus: Buses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    section = {
        "api": {"host": "http://127.0.0.1:9", "key": "k"},
        "kafka": {"topics": ["misp_attribute"]},
    }
    with pytest.raises(InvalidConfig) as raised:
        start_bus({"misp": {"instances": {"one": section}}})
    assert str(raised.value) == (
        f"plugins.apps.misp.instances.one.{key}: is there, and the Python module {module} is not, "
        f"but it must be left out, or the module installed: pip install {package}"
    )


# Secrets.

SECRETS = {"api.key": "S3CRETA" * 6, "zmq.password": "S3CRETB", "sasl.password": "S3CRETC"}


def secretive(servers: str, port: int) -> dict[str, Any]:
    return {
        "api": {"host": "http://127.0.0.1:9", "key": SECRETS["api.key"]},
        "zmq": {
            "host": "127.0.0.1",
            "port": port,
            "username": "misp",
            "password": SECRETS["zmq.password"],
        },
        "kafka": {
            "topics": ["nothing"],
            "config": {"bootstrap.servers": servers, "sasl.password": SECRETS["sasl.password"]},
        },
    }


def test_no_secret_is_in_the_log_or_in_the_status_whatever_goes_wrong(
    start: Start, kafka: KafkaStream, guarded: PlainStream, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    bus = start(secretive(kafka.servers, guarded.port))
    for trouble in ("zmq.password is wrong", "nothing does not exist", "127.0.0.1:9"):
        eventually(lambda trouble=trouble: trouble in caplog.text, what=trouble)  # type: ignore[misc]
    told = caplog.text + json.dumps(bus.bus.status()) + repr(bus.instance.api)
    for name, secret in SECRETS.items():
        assert secret not in told, name


@pytest.mark.parametrize("harm", ["", "unknown", "wrong type"])
def test_no_secret_is_in_what_check_says(tmp_path: Path, harm: str) -> None:
    section = secretive("localhost:1", 50000)
    if harm == "unknown":
        section["api"]["kye"] = SECRETS["api.key"]
        section["zmq"]["passwrod"] = SECRETS["zmq.password"]
    elif harm == "wrong type":
        section["api"]["key"] = [SECRETS["api.key"]]
        section["zmq"]["password"] = {"a": SECRETS["zmq.password"]}
        section["kafka"]["config"] = [SECRETS["sasl.password"]]
    config = {"plugins": {"backbones": {"inmem": None}, "apps": {"misp": section}}}
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    ended = run_command("check", cwd=tmp_path)
    assert ended.returncode == (2 if harm else 0)
    for name, secret in SECRETS.items():
        assert secret.encode() not in ended.stdout + ended.stderr, name


# Disks.


@pytest.fixture
def stream() -> Iterator[ZmqStream]:
    made = ZmqStream()
    yield made
    made.close()


def test_a_full_disk_costs_a_line_in_the_log_and_no_message(
    start: Start, stream: ZmqStream, caplog: pytest.LogCaptureFixture
) -> None:
    bus = start(stream.section)
    stream.heard()
    db = bus.instance.index._db
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    db.execute(f"PRAGMA max_page_count = {pages}")
    documents = [attribute_message(value=f"192.0.2.{n}", comment="x" * 4000) for n in range(50)]
    for document in documents:
        stream.send("misp_json_attribute", document)
    eventually(lambda: "cannot be written: database or disk is full; tried again in" in caplog.text)
    assert "Traceback" not in caplog.text
    # What has nothing to do with MISP goes on.
    assert all(thread.is_alive() for thread in bus.instance._sources)
    db.execute("PRAGMA max_page_count = 1000000")
    found = {each["name"] for each in bus.receive(50)}
    assert found == {document["Attribute"]["value"] for document in documents}


@pytest.mark.usefixtures("long_patience")
def test_a_bus_stops_quickly_while_its_disk_is_full(
    start: Start, stream: ZmqStream, caplog: pytest.LogCaptureFixture
) -> None:
    bus = start(stream.section)
    stream.heard()
    db = bus.instance.index._db
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    db.execute(f"PRAGMA max_page_count = {pages}")
    stream.send("misp_json_attribute", attribute_message(comment="x" * 100_000))
    stream.send("misp_json_attribute", attribute_message(comment="y" * 100_000, value="192.0.2.9"))
    for _ in range(100):
        stream.send("misp_json_attribute", attribute_message(comment="z" * 4_000))
    eventually(lambda: "database or disk is full" in caplog.text)
    began = time.monotonic()
    bus.bus.stop()
    assert time.monotonic() - began < SOON


def test_a_disk_that_fails_at_the_end_leaves_nothing_open(
    start: Start,
    stream: ZmqStream,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bus = start(stream.section)
    instance = bus.instance
    # Which would settle what has been passed on.
    instance.healer.stop()
    finished(instance.healer)
    stream.send("misp_json_attribute", captured("attribute_add"))
    bus.receive()

    def fail(_: int) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(instance.index, "settle", fail)
    bus.bus.stop()
    assert "disk I/O error; the next start may repeat messages" in caplog.text
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        instance.index.events()


def test_a_directory_that_cannot_be_written_costs_misp_and_not_the_bus(
    start_bus: Buses, open_app: OpenApp, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = tmp_path / "state"
    state.mkdir()
    # A file where MISP's directory would be: a read-only one does not stop root.
    (state / "misp").write_text("")
    section = {"zmq": {"host": "127.0.0.1", "port": 50000}}
    bus = start_bus({"open": None, "misp": section}, state_directory=str(state))
    assert bus.lost_parts == ["misp"]
    assert f"the index {state}/misp/misp/index.sqlite cannot be opened" in caplog.text
    outq = open_app.services.outq("reader")
    open_app.subscribe("stix2", outq)
    finished(open_app.source(1))
    eventually(lambda: outq.qsize() == 1)


@pytest.mark.parametrize("corrupt", ["at the start", "while it runs"])
def test_an_index_that_cannot_be_read_is_put_aside_and_filled_with_what_misp_has(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture, corrupt: str
) -> None:
    with MispServer() as server:
        event = server.misp.add_event("one")
        gone, kept = (server.misp.add_attribute(event, "ip-dst", f"192.0.2.{n}") for n in (1, 2))
        section = {"api": {"host": server.url, "key": server.key}, "backfill": 1}
        core = {"state_directory": str(tmp_path / "state")}
        index = tmp_path / "state" / "misp" / "misp" / "index.sqlite"
        bus = start(section, **core)
        before = {found["id"]: found["modified"] for found in bus.receive(2)}
        bus.healed()
        if corrupt == "at the start":
            bus.bus.stop()
            index.write_bytes(b"\x00 nonsense" * 5000)
            # Without history to publish: what there is comes all the same, to be sure of it.
            bus = start({**section, "backfill": 0}, **core)
        else:
            db = bus.instance.index

            def broken(*_: object) -> None:
                error = sqlite3.DatabaseError("database disk image is malformed")
                error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
                raise error

            db.put_event = broken
            bus.instance.missing.event(event.uuid)
            server.misp.tag(event, "tlp:red")
            eventually(lambda: "is put aside" in caplog.text)
            del db.put_event
        assert index.with_name("index.sqlite.broken").exists()
        again = bus.receive(2)
        assert {found["id"] for found in again} == before.keys()
        # Later than anything the lost index may have known.
        assert all(found["modified"] > before[found["id"]] for found in again)
        server.misp.hard_delete(gone)
        bus.instance.missing.gap("to look again")
        assert shown(bus.receive()) == [("[ipv4-addr:value = '192.0.2.1']", True)]
        assert kept.uuid in {found["id"].removeprefix("indicator--") for found in again}
