"""CURVE at the doors of the ZeroMQ endpoint: who gets in, what each may do, and who does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
from helpers.documents import encode, indicator, indicator_bytes, sighting
from helpers.keys import Keys, endpoint
from helpers.waiting import SOON, eventually

from integration.zmq_helpers import Apps, ZmqBus, number_of, numbered
from threatbus.cli import main
from threatbus.client import App as ClientApp
from threatbus.client import Endpoint, Message, Publisher, Subscriber, silence
from threatbus.client import subscriber as subscriber_module
from threatbus.client.silence import refusal
from threatbus.data import MessageType
from threatbus.errors import Refused
from threatbus.keyfiles import ClientKeys

DOORS = {"manage": zmq.REQ, "pub": zmq.SUB, "sub": zmq.PUB}


@pytest.fixture(autouse=True)
def patient_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let clients find out why they are refused, however long the bus takes to say so."""
    monkeypatch.setattr(silence, "PROBE_SECS", SOON)


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "keys")


@pytest.fixture
def bus(zmq_apps: Apps, keys: Keys) -> ZmqBus:
    return zmq_apps.bus(curve=keys.section)


def at(bus: ZmqBus, keys: ClientKeys | None) -> Endpoint:
    return endpoint(bus.manage, keys)


def strangers_keys(keys: ClientKeys) -> ClientKeys:
    """Keys that are good, but that nobody has authorised."""
    public, secret = (key.decode() for key in zmq.curve_keypair())
    return msgspec.structs.replace(keys, public_key=public, secret_key=secret)


# Who gets in.


def test_a_client_with_an_authorised_key_subscribes_publishes_and_receives(
    zmq_apps: Apps, bus: ZmqBus, keys: Keys
) -> None:
    app = zmq_apps.app(bus, keys=keys.client("vast"))
    app.subscribe("stix2").connect().connected()
    app.publish_numbered(0, 100)
    assert app.receive_until(99) == list(range(100))
    assert app.heartbeat() == "success"


@pytest.mark.parametrize("door", DOORS)
def test_without_a_key_nobody_gets_in(zmq_apps: Apps, bus: ZmqBus, keys: Keys, door: str) -> None:
    assert zmq_apps.app(bus).is_refused(door, DOORS[door])
    assert not zmq_apps.app(bus, keys=keys.client("vast")).is_refused(door, DOORS[door])


@pytest.mark.parametrize("door", DOORS)
def test_a_key_that_is_not_authorised_does_not_get_in_and_the_log_says_which(
    zmq_apps: Apps, bus: ZmqBus, keys: Keys, door: str, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = strangers_keys(keys.client("vast"))
    assert zmq_apps.app(bus, keys=stranger).is_refused(door, DOORS[door])
    assert f"its key {stranger.public_key} is not authorised" in caplog.text


def test_a_client_does_not_speak_to_a_bus_with_another_key(
    zmq_apps: Apps, bus: ZmqBus, keys: Keys
) -> None:
    other = msgspec.structs.replace(keys.client("vast"), server_key=zmq.curve_keypair()[0].decode())
    assert zmq_apps.app(bus, keys=other).is_refused("manage", zmq.REQ)


def test_a_key_that_is_added_gets_in_without_a_restart(
    zmq_apps: Apps, bus: ZmqBus, keys: Keys
) -> None:
    assert zmq_apps.app(bus).is_refused("manage", zmq.REQ)
    client = keys.client("late")
    eventually(lambda: not zmq_apps.app(bus, keys=client).is_refused("manage", zmq.REQ))


def test_a_file_that_cannot_be_read_authorises_nobody_and_costs_nobody_else_anything(
    zmq_apps: Apps, bus: ZmqBus, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = keys.client("good"), keys.client("bad")
    keys.rewrite("bad", keys.known("bad").read_text().replace("read:", "raed:"))
    eventually(lambda: not zmq_apps.app(bus, keys=good).is_refused("manage", zmq.REQ))
    assert zmq_apps.app(bus, keys=bad).is_refused("manage", zmq.REQ)
    assert "did you mean" in caplog.text
    assert "bad.yaml.raed" in caplog.text


# What each may do.


def test_who_may_read_indicators_subscribes_to_nothing_else(
    zmq_apps: Apps, bus: ZmqBus, keys: Keys
) -> None:
    app = zmq_apps.app(bus, keys=keys.client("reader", read=["stix2/indicator"], write=[]))
    for topic in ("stix2/sighting", "stix2/", "stix2", "", ["stix2/indicator", "stix2/sighting"]):
        reply = app.ask(action="subscribe", topic=topic)
        assert reply["status"] == "error"
        assert "reader may not read" in reply["reason"]
    app.subscribe("stix2/indicator").connect().connected()
    writer = zmq_apps.app(bus, keys=keys.client("writer"))
    eventually(lambda: not writer.is_refused("sub", zmq.PUB))
    writer.publish("stix2/sighting", sighting())
    writer.publish_numbered(7, 1)
    assert app.receive_until(7) == [7]
    assert app.is_refused("sub", zmq.PUB)


def test_who_may_only_write_finds_the_ports_and_receives_nothing(
    zmq_apps: Apps, bus: ZmqBus, keys: Keys
) -> None:
    writer = keys.client("writer", read=[])
    app = zmq_apps.app(bus, keys=writer)
    assert app.is_refused("pub", zmq.SUB)
    with Publisher(at(bus, writer)) as publisher:
        publisher.publish("stix2/indicator", numbered(1))
        publisher.finish()
    bus.accepted(1)


def envelope(body: dict[str, Any]) -> bytes:
    kind = MessageType.INDICATOR if body["type"] == "indicator" else MessageType.SIGHTING
    return encode(
        {
            "type": "snapshotenvelope",
            "snapshot_type": kind.value,
            "snapshot_id": "3b1f7b6e-1b5c-4a5e-8b0e-0c7e6f0f6a11",
            "body": body,
        }
    )


@pytest.mark.parametrize(
    ("topic", "document"),
    [
        ("stix2/indicator", indicator_bytes()),
        ("stix2/sighting", indicator_bytes()),
        # What the fast path leaves to the library.
        ("stix2/sighting", encode(indicator(pattern="[a:b = 'c' OR a:b = 'd']"))),
        ("stix2/bundle", encode({"type": "bundle", "objects": [indicator()]})),
        ("threatbus/snapshotenvelope", envelope(indicator())),
    ],
    ids=["plainly", "under another topic", "slowly", "in a bundle", "as an answer"],
)
def test_who_may_write_sightings_publishes_no_indicator_however_it_is_sent(
    zmq_apps: Apps, bus: ZmqBus, keys: Keys, topic: str, document: bytes
) -> None:
    reader = zmq_apps.app(bus, keys=keys.client("reader", write=[]))
    sensor = zmq_apps.app(bus, keys=keys.client("sensor", read=[], write=["stix2/sighting"]))
    eventually(lambda: not sensor.is_refused("sub", zmq.PUB))
    reader.subscribe("stix2").connect().connected()
    sensor.publish(topic, document)
    sensor.publish("stix2/sighting", sighting())
    assert b'"sighting"' in reader.receive()
    counts = {("zmq sub from sensor", "it may not write stix2/indicator"): 1}
    eventually(lambda: bus.bus.rejects.counts == counts)
    assert bus.bus.intake.accepted == 1


# What one client gets, another does not.


def test_the_topic_of_another_client_brings_nothing_even_to_who_knows_it(
    zmq_apps: Apps, bus: ZmqBus, keys: Keys
) -> None:
    owner = zmq_apps.app(bus, keys=keys.client("owner"))
    thief = zmq_apps.app(bus, keys=keys.client("thief"))
    eventually(lambda: not thief.is_refused("pub", zmq.SUB))
    owner.subscribe("stix2")
    thief.p2p = owner.p2p
    thief.connect()
    eventually(lambda: bus.endpoint.publisher.refused == 1)
    owner.publish_numbered(0, 10)
    eventually(lambda: owner.delivery().waiting == 10)
    owner.connect().connected()
    assert owner.receive_until(9) == list(range(10))
    thief.receives_nothing()


def test_the_subscription_of_another_client_cannot_be_ended_or_held_up(
    zmq_apps: Apps, bus: ZmqBus, keys: Keys
) -> None:
    owner = zmq_apps.app(bus, keys=keys.client("owner"))
    thief = zmq_apps.app(bus, keys=keys.client("thief"))
    eventually(lambda: not thief.is_refused("manage", zmq.REQ))
    owner.subscribe("stix2").connect().connected()
    for action in ("unsubscribe", "heartbeat"):
        assert thief.ask(action=action, topic=owner.p2p)["status"] == "error"
    xsub = thief.socket(zmq.XSUB, bus.address("pub"))
    xsub.send(b"\x00" + owner.p2p.encode())
    eventually(lambda: thief.is_in_use() or True)
    owner.publish_numbered(0, 10)
    assert owner.receive_until(9) == list(range(10))
    assert owner.heartbeat() == "success"


# Keys that are taken away.


def test_a_subscriber_whose_key_is_revoked_gets_nothing_more(
    zmq_apps: Apps, bus: ZmqBus, keys: Keys
) -> None:
    writer = zmq_apps.app(bus, keys=keys.client("writer"))
    reader_keys = keys.client("reader")
    reader = zmq_apps.app(bus, keys=reader_keys)
    eventually(lambda: not reader.is_refused("manage", zmq.REQ))
    reader.subscribe("stix2").connect().connected()
    assert reader.sub is not None
    ends = reader.ends_of(reader.sub)
    writer.publish_numbered(0, 1)
    assert reader.receive_until(0) == [0]
    keys.revoke("reader")
    assert ends.poll(10_000), "it is still connected"
    eventually(lambda: bus.endpoint.publisher._deliveries == {})
    writer.publish_numbered(1, 1)
    bus.accepted(2)
    reader.receives_nothing()
    for door, kind in DOORS.items():
        assert reader.is_refused(door, kind)


def test_a_revoked_client_keeps_no_connection_even_without_a_subscription(
    zmq_apps: Apps, bus: ZmqBus, keys: Keys
) -> None:
    reader = zmq_apps.app(bus, keys=keys.client("reader"))
    eventually(lambda: not reader.is_refused("manage", zmq.REQ))
    sub = reader.socket(zmq.SUB)
    ends = reader.ends_of(sub)
    sub.connect(bus.address("pub"))
    eventually(lambda: len(bus.endpoint.publisher.door._links) == 1)
    keys.revoke("reader")
    assert ends.poll(10_000), "it is still connected"


def test_a_revoked_client_that_is_still_connected_is_told_so_and_cut_off(
    zmq_apps: Apps, bus: ZmqBus, keys: Keys
) -> None:
    app = zmq_apps.app(bus, keys=keys.client("app"))
    eventually(lambda: not app.is_refused("manage", zmq.REQ))
    request = [b"", b'{"action": "subscribe", "topic": "stix2"}']
    dealer = app.socket(zmq.DEALER, bus.address("manage"))
    ends = app.ends_of(dealer)
    dealer.send_multipart(request)
    assert dealer.poll(int(SOON * 1000))
    assert b"success" in dealer.recv_multipart()[1]
    keys.revoke("app")
    bus.time_passes(2)
    eventually(lambda: bus.endpoint.publisher._deliveries == {})
    dealer.send_multipart(request)
    assert dealer.poll(int(SOON * 1000))
    assert b"your key is no longer authorised" in dealer.recv_multipart()[1]
    assert ends.poll(10_000), "it is still connected"
    assert bus.endpoint.publisher._deliveries == {}


def test_a_publisher_whose_key_is_revoked_is_cut_off_at_its_next_message(
    zmq_apps: Apps, bus: ZmqBus, keys: Keys
) -> None:
    other = zmq_apps.app(bus, keys=keys.client("other"))
    writer = zmq_apps.app(bus, keys=keys.client("writer"))
    eventually(lambda: not writer.is_refused("sub", zmq.PUB))
    writer.publish_numbered(0, 1)
    bus.accepted(1)
    ends = writer.ends_of(writer.pub)
    keys.revoke("writer")
    bus.time_passes(2)
    writer.publish_numbered(1, 1)
    assert ends.poll(10_000), "it is still connected"
    eventually(lambda: bus.rejected("may not write any more") == 1)
    other.publish_numbered(2, 1)
    bus.accepted(2)


def test_a_publisher_that_may_write_no_longer_is_cut_off_at_its_next_message(
    zmq_apps: Apps, bus: ZmqBus, keys: Keys
) -> None:
    writer = zmq_apps.app(bus, keys=keys.client("writer"))
    eventually(lambda: not writer.is_refused("sub", zmq.PUB))
    writer.publish_numbered(0, 1)
    bus.accepted(1)
    ends = writer.ends_of(writer.pub)
    content = keys.known("writer").read_text()
    keys.rewrite("writer", content.replace('write: ["stix2/"]', "write: []"))
    assert "write: []" in keys.known("writer").read_text()
    bus.time_passes(2)
    writer.publish_numbered(1, 1)
    assert ends.poll(10_000), "it is still connected"
    eventually(lambda: bus.rejected("may not write any more") == 1)


def test_a_new_key_under_the_same_name_ends_the_old_one(
    zmq_apps: Apps, bus: ZmqBus, keys: Keys
) -> None:
    old = zmq_apps.app(bus, keys=keys.client("app"))
    old.subscribe("stix2")
    keys.revoke("app")
    Path(keys.secret_file("app")).unlink()
    new = zmq_apps.app(bus, keys=keys.client("app"))
    eventually(lambda: not new.is_refused("manage", zmq.REQ))
    assert old.is_refused("manage", zmq.REQ)
    assert new.ask(action="heartbeat", topic=old.p2p)["status"] == "error"


def test_fewer_rights_end_what_they_no_longer_cover_and_nothing_else(
    zmq_apps: Apps, bus: ZmqBus, keys: Keys
) -> None:
    app = zmq_apps.app(bus, keys=keys.client("app"))
    wide = app.subscribe("stix2").p2p
    narrow = app.subscribe("stix2/indicator").p2p
    content = keys.known("app").read_text()
    keys.rewrite("app", content.replace('read: ["stix2/"]', 'read: ["stix2/indicator"]'))
    eventually(lambda: app.ask(action="heartbeat", topic=wide)["status"] == "error")
    assert app.ask(action="heartbeat", topic=narrow)["status"] == "success"


def test_a_directory_that_is_gone_lets_nobody_in(
    zmq_apps: Apps, bus: ZmqBus, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    app = zmq_apps.app(bus, keys=keys.client("app"))
    app.subscribe("stix2")
    Path(keys.section["clients"]).rename(keys.directory / "elsewhere")
    eventually(lambda: app.is_refused("manage", zmq.REQ))
    assert "nobody gets in" in caplog.text


# The client library and the commands.


def test_an_app_of_the_library_takes_part_and_comes_back_when_its_key_does(
    bus: ZmqBus, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriber_module, "HEARTBEAT_SECS", 0.2)
    looks: list[Endpoint] = []

    def first_in_vain(endpoint: Endpoint) -> str:
        """Find no reason at first, as where much else is going on."""
        looks.append(endpoint)
        return refusal(endpoint) if len(looks) > 1 else ""

    monkeypatch.setattr(subscriber_module, "refusal", first_in_vain)
    told: list[str] = []
    client = keys.client("app")
    with ClientApp(
        at(bus, client), ["stix2/indicator"], name="app", timeout=0.5, on_change=told.append
    ) as app:
        eventually(lambda: app.connected)
        app.publish_indicator(numbered(1))
        (first,) = app.receive(timeout=10)
        assert number_of(first.data) == 1
        content = keys.revoke("app")
        eventually(lambda: any("does not let this client in" in line for line in told))
        assert sum("nothing answers" in line for line in told) == 1
        keys.rewrite("app", content)
        eventually(lambda: any("subscribed again" in line for line in told))
        app.publish_indicator(numbered(2))
        found: list[Message] = []

        def has_come() -> bool:
            found.extend(app.receive(timeout=0.1))
            return any(number_of(message.data) == 2 for message in found)

        eventually(has_come)


def test_each_way_in_which_keys_do_not_fit_is_told_apart(
    zmq_apps: Apps, bus: ZmqBus, keys: Keys
) -> None:
    client = keys.client("app")
    open_bus = zmq_apps.bus()
    wrong_bus = msgspec.structs.replace(client, server_key=zmq.curve_keypair()[0].decode())
    for where, said in (
        (at(bus, None), "asks for a key: give the file"),
        (at(bus, strangers_keys(client)), "does not let this client in: its key"),
        (at(bus, wrong_bus), "another key than the server_key"),
        (at(open_bus, client), "asks for no keys"),
    ):
        with pytest.raises(Refused, match=said):
            Subscriber(where, ["stix2"], timeout=0.2)


def test_a_publisher_that_may_only_read_is_told_so(bus: ZmqBus, keys: Keys) -> None:
    with pytest.raises(Refused, match="may not do this"):
        Publisher(at(bus, keys.client("reader", write=[])), timeout=0.2)


@pytest.mark.parametrize("by", ["option", "variable"])
def test_commands_take_their_keys_from_an_option_or_the_environment(
    bus: ZmqBus, keys: Keys, by: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keys.client("cli")
    document = tmp_path / "indicator.json"
    document.write_bytes(indicator_bytes())
    address = f"tcp://127.0.0.1:{bus.manage}"
    option = []
    if by == "option":
        option = ["--key-file", keys.secret_file("cli")]
    else:
        monkeypatch.setenv("THREATBUS_KEY_FILE", keys.secret_file("cli"))
        assert Endpoint.parse(address).keys is not None
    assert main(["publish", "--endpoint", address, *option, str(document)]) == 0
    bus.accepted(1)


def test_the_command_says_what_its_key_may_not_publish(
    bus: ZmqBus, keys: Keys, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    keys.client("sensor", write=["stix2/sighting"])
    document = tmp_path / "both.json"
    document.write_bytes(encode([indicator(), sighting()]))
    options = ["--endpoint", f"tcp://127.0.0.1:{bus.manage}"]
    options += ["--key-file", keys.secret_file("sensor")]
    assert main(["publish", *options, str(document)]) == 1
    said = capsys.readouterr().err
    assert "line 1, object 1: rejected: the bus takes no stix2/indicator from this key" in said
    assert "published 1 object" in said
    bus.accepted(1)


def test_a_command_without_a_key_says_what_is_missing(
    bus: ZmqBus, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    document = tmp_path / "indicator.json"
    document.write_bytes(indicator_bytes())
    address = f"tcp://127.0.0.1:{bus.manage}"
    code = main(["publish", "--endpoint", address, "--timeout", "0.2", str(document)])
    assert code == 1
    assert "--key-file" in capsys.readouterr().err
