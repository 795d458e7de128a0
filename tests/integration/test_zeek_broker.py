"""Zeeks over native Broker: real peers, with the script of 2022.5.16 and with our own."""

from __future__ import annotations

import contextlib
import os
import resource
import threading
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from helpers.documents import encode, envelope_message, indicator, timestamp
from helpers.waiting import eventually, in_threads
from helpers.zeeks import MANAGE, SIGHTINGS, BrokerZeek, OldScript, OurScript, subscribed

from integration.zeek_helpers import ZeekBus, Zeeks
from testbed.ports import free_port
from threatbus.data import MessageType
from threatbus.messages import INDICATOR, Message

UNKNOWN_ID = "indicator--8e2e2d2b-17d4-4cbf-938f-98ee46b3cd3f"

PATTERNS = [
    ("[ipv4-addr:value = '198.51.100.7']", "ADDR", "198.51.100.7"),
    ("[ipv6-addr:value = '2001:db8::7']", "ADDR", "2001:db8::7"),
    ("[ipv4-addr:value = '198.51.100.0/24']", "SUBNET", "198.51.100.0/24"),
    ("[ipv6-addr:value = '2001:db8::/32']", "SUBNET", "2001:db8::/32"),
    ("[domain-name:value = 'evil.example']", "DOMAIN", "evil.example"),
    ("[url:value = 'http://evil.example:8080/a/b?c=d']", "URL", "evil.example:8080/a/b?c=d"),
    ("[url:value = 'evil.example/a']", "URL", "evil.example/a"),
    ("[email-addr:value = 'spam@evil.example']", "EMAIL", "spam@evil.example"),
    ("[file:name = 'evil.exe']", "FILE_NAME", "evil.exe"),
    (f"[file:hashes.MD5 = '{'a' * 32}']", "FILE_HASH", "a" * 32),
    (f"[file:hashes.'SHA-1' = '{'b' * 40}']", "FILE_HASH", "b" * 40),
    (f"[file:hashes.'SHA-256' = '{'c' * 64}']", "FILE_HASH", "c" * 64),
    (f"[file:hashes.'SHA-512' = '{'d' * 128}']", "FILE_HASH", "d" * 128),
    (f"[x509-certificate:hashes.'SHA-1' = '{'e' * 40}']", "CERT_HASH", "e" * 40),
    ("[user-account:user_id = 'root']", "USER_NAME", "root"),
    ("[user-account:account_login = 'mallory']", "USER_NAME", "mallory"),
    ("[software:name = 'nmap']", "SOFTWARE", "nmap"),
]


def domains(count: int, first: int = 0) -> list[dict[str, Any]]:
    return [indicator(f"[domain-name:value = '{n}.example']") for n in range(first, first + count)]


def names(zeek: BrokerZeek) -> list[str]:
    """The ids of what our script was told of, in order."""
    return [change[1] for change in zeek.script.changes]


# Indicators.


def test_every_pattern_type_is_added_and_removed_with_the_old_script(zeeks: Zeeks) -> None:
    bus = zeeks.bus()
    zeek = zeeks.old(bus)
    documents = [indicator(pattern) for pattern, *_ in PATTERNS]
    bus.publish(*documents, *({**each, "revoked": True} for each in documents))
    eventually(lambda: len(zeek.script.intel) == 2 * len(PATTERNS))
    items = [(kind, value) for _, kind, value in PATTERNS]
    assert zeek.script.items() == [
        *(("ADD", *item) for item in items),
        *(("REMOVE", *item) for item in items),
    ]
    assert [record[1] for record in zeek.script.intel] == [each["id"] for each in documents] * 2
    assert zeek.script.intel[0][0] == datetime.fromisoformat(documents[0]["modified"])


def test_every_pattern_type_is_added_and_removed_with_our_script(zeeks: Zeeks) -> None:
    bus = zeeks.bus()
    zeek = zeeks.ours(bus)
    documents = [indicator(pattern, name="evil", confidence=7) for pattern, *_ in PATTERNS]
    bus.publish(*documents)
    eventually(lambda: len(zeek.script.intel) == len(PATTERNS))
    for document, (_, kind, value) in zip(documents, PATTERNS, strict=True):
        assert zeek.script.intel[document["id"]] == ((kind, value),)
    _, _, _, source, description, confidence = zeek.script.changes[0]
    assert (source, description, confidence.value) == ("", "evil", 7)
    bus.publish(*({**each, "x_threatbus_update": "REMOVE"} for each in documents))
    eventually(lambda: not zeek.script.intel)


def test_an_indicator_is_there_within_milliseconds(zeeks: Zeeks) -> None:
    bus = zeeks.bus()
    zeek = zeeks.ours(bus)
    latencies = []
    for number, document in enumerate(domains(20)):
        began = datetime.now(UTC)
        bus.publish(document)
        eventually(lambda: len(zeek.script.changes) > number)
        latencies.append(datetime.now(UTC) - began)
    assert sorted(latencies)[10] < timedelta(milliseconds=50)


@pytest.mark.parametrize(
    "change",
    [
        {"revoked": True},
        {"x_threatbus_update": "REMOVE"},
        {"valid_from": "2020-01-01T00:00:00Z", "valid_until": "2020-01-02T00:00:00Z"},
    ],
)
def test_a_withdrawn_or_expired_indicator_is_removed(zeeks: Zeeks, change: dict[str, Any]) -> None:
    bus = zeeks.bus()
    old, ours = zeeks.old(bus), zeeks.ours(bus)
    document = indicator()
    bus.publish(document, {**document, **change})
    eventually(lambda: len(old.script.intel) == 2 and len(ours.script.changes) == 2)
    assert [operation for operation, *_ in old.script.items()] == ["ADD", "REMOVE"]
    assert ours.script.intel == {}


def test_an_update_with_another_pattern_removes_the_old_item(zeeks: Zeeks) -> None:
    bus = zeeks.bus()
    old, ours = zeeks.old(bus), zeeks.ours(bus)
    document = indicator("[domain-name:value = 'a.example' OR domain-name:value = 'b.example']")
    bus.publish(document, {**document, "pattern": "[ipv4-addr:value = '192.0.2.1']"})
    eventually(lambda: len(old.script.intel) == 5)
    assert old.script.items()[2:] == [
        ("REMOVE", "DOMAIN", "a.example"),
        ("REMOVE", "DOMAIN", "b.example"),
        ("ADD", "ADDR", "192.0.2.1"),
    ]
    eventually(lambda: len(ours.script.changes) == 2)
    assert ours.script.intel == {document["id"]: (("ADDR", "192.0.2.1"),)}


def test_a_value_of_two_indicators_stays_until_both_are_withdrawn(zeeks: Zeeks) -> None:
    bus = zeeks.bus()
    old, ours = zeeks.old(bus), zeeks.ours(bus)
    first, second, last = indicator(), indicator(), indicator("[domain-name:value = 'z']")
    bus.publish(first, second, {**first, "revoked": True}, last)
    eventually(lambda: len(old.script.intel) == 3 and len(ours.script.changes) == 4)
    assert [operation for operation, *_ in old.script.items()] == ["ADD"] * 3
    assert set(ours.script.intel) == {second["id"], last["id"]}
    bus.publish({**second, "revoked": True})
    eventually(lambda: len(old.script.intel) == 4)
    assert old.script.items()[3] == ("REMOVE", "DOMAIN", "example.com")


def test_what_zeek_cannot_match_is_counted_and_nothing_else(
    zeeks: Zeeks, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "threatbus.zeek")
    bus = zeeks.bus()
    zeek = zeeks.old(bus)
    document = indicator("[process:name = 'x']")
    bus.publish(document, indicator())
    eventually(lambda: len(zeek.script.intel) == 1)
    assert f"{document['id']} has no counterpart" in caplog.text
    assert "1 indicators so far have no counterpart in Zeek" in caplog.text
    assert bus.bus.stats()["rejected"] == {}


def test_an_address_with_a_port_comes_by_option(zeeks: Zeeks) -> None:
    document = indicator("[ipv4-addr:value = '192.0.2.1' AND network-traffic:dst_port = 443]")
    bus = zeeks.bus(reduce_ip_port=True)
    zeek = zeeks.old(bus)
    bus.publish(document)
    eventually(lambda: zeek.script.items() == [("ADD", "ADDR", "192.0.2.1")])


# Subscriptions.


def test_a_subscription_gets_ten_letters_and_ends_when_zeek_says_so(zeeks: Zeeks) -> None:
    bus = zeeks.bus()
    zeek = zeeks.old(bus)
    suffix = zeek.script.p2p.removeprefix("stix2/indicator")
    assert len(suffix) == 10
    assert suffix.isalpha()
    assert suffix.islower()
    assert len(bus.subscribers()) == 1
    zeek.script.end()
    eventually(lambda: bus.subscribers() == [])


def test_nothing_is_missed_from_the_acknowledgement_on(zeeks: Zeeks) -> None:
    """The subscription is registered before Zeek hears of it, and Zeek is given time to listen."""
    bus = zeeks.bus()
    documents = domains(50)

    class EagerScript(OldScript):
        def handle(self, name: str, args: tuple[Any, ...]) -> None:
            if name.endswith("subscription_acknowledged"):
                bus.publish(*documents)
            super().handle(name, args)

    zeek = subscribed(zeeks.starting(bus, EagerScript))
    eventually(lambda: len(zeek.script.intel) == 50)


@pytest.mark.parametrize("days", [30, -30])
@pytest.mark.parametrize("script", [OldScript, OurScript])
def test_a_snapshot_is_asked_for_with_either_sign(zeeks: Zeeks, script: Any, days: int) -> None:
    bus = zeeks.bus()
    history = domains(250)
    asked: list[Any] = []

    def answer(request: Any, result_q: Any) -> None:
        asked.append(request)
        for body in history:
            result_q.put(envelope_message(request.snapshot_id, body))

    bus.app.answer = answer
    zeek = subscribed(zeeks.starting(bus, partial(script, snapshot=timedelta(days=days))))
    told = zeek.script.intel if script is OldScript else zeek.script.changes
    eventually(lambda: len(told) == 250)
    assert [record[1] for record in told] == [body["id"] for body in history]
    (request,) = asked
    assert (request.snapshot_type, request.snapshot) == (MessageType.INDICATOR, timedelta(days=30))


def test_without_a_span_no_snapshot_is_asked_for(zeeks: Zeeks) -> None:
    bus = zeeks.bus()
    zeeks.old(bus)
    zeeks.ours(bus)
    assert "snapshot" not in bus.app.calls


def test_two_zeeks_that_join_at_the_same_moment_have_a_topic_each(zeeks: Zeeks) -> None:
    """An acknowledgement cannot be taken by another Zeek."""
    bus = zeeks.bus()
    both: list[BrokerZeek] = []
    start = partial(zeeks.starting, bus, OurScript)
    in_threads(lambda: both.append(start()), lambda: both.append(start()))
    for zeek in both:
        subscribed(zeek)
    assert len(bus.subscribers()) == 2
    assert both[0].script.p2p != both[1].script.p2p
    documents = domains(300)
    bus.publish(*documents)
    for zeek in both:
        eventually(lambda: len(zeek.script.changes) == 300)
        assert names(zeek) == [each["id"] for each in documents]


def test_a_zeek_that_vanishes_is_let_go_after_the_grace_time(zeeks: Zeeks) -> None:
    bus = zeeks.bus(grace=2)
    stays, goes, also_goes = zeeks.old(bus), zeeks.old(bus), zeeks.ours(bus)
    goes.vanish()
    also_goes.vanish()
    bus.publish(*domains(10))
    eventually(lambda: len(bus.subscribers()) == 1)
    # Broker 1.4 breaks the other connections, too; what was on its way comes again.
    eventually(lambda: len({record[1] for record in stays.script.intel}) == 10)


def test_a_connection_that_breaks_costs_nothing(zeeks: Zeeks) -> None:
    """With TLS, Broker 1.4 breaks all connections when one Zeek goes; the others come back."""
    bus = zeeks.bus()
    old, ours, goes = zeeks.old(bus), zeeks.ours(bus), zeeks.old(bus)
    topics = old.script.p2p, ours.script.p2p
    goes.vanish()
    for number in range(100):
        bus.publish(*domains(1, number))
    eventually(lambda: old.begun == 2 or ours.begun == 2)
    bus.publish(*domains(100, 100))
    for told in (old.script.intel, ours.script.changes):
        eventually(lambda: len({record[1] for record in told}) == 200)
    assert [change[1] for change in ours.script.changes] == list(ours.script.intel)
    assert (old.script.p2p, ours.script.p2p) == topics


def test_a_zeek_of_ours_stays_by_its_signs_of_life(zeeks: Zeeks) -> None:
    bus = zeeks.bus(grace=1.5)
    zeek = zeeks.ours(bus)
    gone = zeeks.ours(bus)
    gone.script.silent = True
    eventually(lambda: len(bus.subscribers()) == 1)
    assert zeek.script.joined
    bus.publish(indicator())
    eventually(lambda: len(zeek.script.changes) == 1)


def test_a_restarted_zeek_is_served_again(zeeks: Zeeks) -> None:
    bus = zeeks.bus()
    for make in (zeeks.old, zeeks.ours):
        make(bus).vanish()
        again = make(bus)
        document = indicator()
        bus.publish(document)
        eventually(lambda: again.script.intel)


def test_a_restarted_bus_is_found_again(zeeks: Zeeks) -> None:
    bus = zeeks.bus()
    old, ours = zeeks.old(bus), zeeks.ours(bus)
    old_topic, our_topic = old.script.p2p, ours.script.p2p
    bus.bus.stop()
    old.script.p2p = None
    bus = zeeks.bus(port=bus.port)
    eventually(lambda: len(bus.subscribers()) == 2)
    eventually(lambda: ours.script.joined and old.script.p2p)
    assert ours.script.p2p != our_topic
    assert old.script.p2p != old_topic
    bus.publish(indicator())
    eventually(lambda: old.script.intel and ours.script.intel)


def test_a_slow_zeek_of_ours_is_waited_for(zeeks: Zeeks) -> None:
    bus = zeeks.bus()
    zeek = zeeks.ours(bus)
    zeek.script.silent = True
    documents = domains(3000)
    bus.publish(*documents)
    eventually(lambda: len(zeek.script.numbers) == 8)
    # No more is on its way than Zeek's queue takes; the rest waits where it is bounded.
    (stats,) = (v for k, v in bus.bus.stats()["subscribers"].items() if k != "watcher")
    assert stats["messages"] == 2200
    zeek.script.silent = False
    zeek.script.tick()
    eventually(lambda: len(zeek.script.changes) == 3000)
    assert names(zeek) == [each["id"] for each in documents]


def test_a_zeek_whose_outq_was_full_is_told_and_asks_again(zeeks: Zeeks) -> None:
    bus = zeeks.bus(core={"queues": {"outq_messages": 1000}})
    zeek = zeeks.ours(bus)
    topic = zeek.script.p2p
    zeek.script.silent = True
    for start in range(0, 3000, 500):
        bus.publish(*domains(500, start))
    eventually(lambda: zeek.script.p2p != topic and zeek.script.joined)
    zeek.script.silent = False
    document = indicator()
    bus.publish(document)
    eventually(lambda: document["id"] in zeek.script.intel)


def test_an_old_script_whose_outq_was_full_goes_on(zeeks: Zeeks) -> None:
    bus = zeeks.bus(core={"queues": {"outq_messages": 1000}})
    zeek = zeeks.old(bus)
    bus.publish(*domains(1001))
    bus.publish(indicator(), indicator("[domain-name:value = 'last.example']"))

    def is_served() -> bool:
        bus.publish(indicator("[domain-name:value = 'more.example']"))
        return ("ADD", "DOMAIN", "more.example") in zeek.script.items()

    eventually(is_served)
    assert len(bus.subscribers()) == 1


def test_there_is_a_limit_to_subscriptions(zeeks: Zeeks) -> None:
    bus = zeeks.bus(max_subscribers=2)
    zeek = zeeks.old(bus)
    for _ in range(3):
        zeek.script.begin()
    eventually(lambda: bus.rejected("max_subscribers") == 2)
    assert len(bus.subscribers()) == 2


# Sightings.


def test_a_sighting_names_its_indicator_and_brings_its_context(zeeks: Zeeks) -> None:
    bus = zeeks.bus()
    zeek = zeeks.old(bus)
    document = indicator()
    bus.publish(document)
    eventually(lambda: zeek.script.intel)
    moment = datetime(2026, 11, 24, 1, 2, 3, 456000, tzinfo=UTC)
    context = {
        "noisy": True,
        "string": "text",
        "count": zeek.broker.Count(5),
        "table": {"a": zeek.broker.Count(1)},
        "vector": [1, "two", True],
        "double": 0.25,
    }
    zeek.sight(zeek.script.intel[0][1], context, time=moment)
    (sighting,) = bus.sightings(1)
    assert sighting["sighting_of_ref"] == document["id"]
    assert sighting["first_seen"] == sighting["last_seen"] == "2026-11-24T01:02:03.456Z"
    assert sighting["count"] == 1
    assert sighting["x_threatbus_sighting_context"] == {
        "noisy": True,
        "string": "text",
        "count": 5,
        "table": {"a": 1},
        "vector": [1, "two", True],
        "double": 0.25,
    }


def test_a_sighting_of_what_was_never_sent_is_carried(zeeks: Zeeks) -> None:
    bus = zeeks.bus()
    zeeks.old(bus).sight(UNKNOWN_ID)
    assert bus.sightings(1)[0]["sighting_of_ref"] == UNKNOWN_ID


def test_a_sighting_without_a_stix_id_is_rejected(zeeks: Zeeks) -> None:
    bus = zeeks.bus()
    zeek = zeeks.old(bus)
    zeek.sight("my own intelligence")
    zeek.sight(UNKNOWN_ID)
    assert bus.rejected("no STIX id") == 1
    assert len(bus.sightings(1)) == 1


def test_sightings_keep_their_order(zeeks: Zeeks) -> None:
    bus = zeeks.bus()
    zeek = zeeks.old(bus)
    ids = [indicator()["id"] for _ in range(300)]
    for each in ids:
        zeek.sight(each)
    assert [each["sighting_of_ref"] for each in bus.sightings(300)] == ids


def test_sightings_wait_while_the_bus_is_full(zeeks: Zeeks) -> None:
    bus = zeeks.bus()
    zeek = zeeks.ours(bus)
    gate = bus.bus.intake.gate
    gate.shut("test")
    for _ in range(100):
        zeek.sight(UNKNOWN_ID)
    # Meanwhile Zeek's other events are dealt with: what it acknowledges may be what opens the gate.
    zeek.script.end()
    eventually(lambda: bus.subscribers() == [])
    before = bus.bus.intake.accepted
    gate.open("test")
    gate.announce()
    bus.sightings(100)
    assert before == 0


# What goes wrong.


def test_it_works_with_more_descriptors_than_select_can_watch(zeeks: Zeeks) -> None:
    """Select() ends at descriptor 1,023."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    with contextlib.ExitStack() as held:
        held.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        while (descriptor := os.dup(0)) < 1100:
            held.callback(os.close, descriptor)
        held.callback(os.close, descriptor)
        port = free_port()
        websocket = zeeks.listening(port, OurScript)
        bus = zeeks.bus(websockets=[f"ws://127.0.0.1:{port}"])
        native = zeeks.ours(bus)
        eventually(lambda: websocket.script.joined)
        bus.publish(indicator())
        for zeek in (native, websocket):
            eventually(lambda: zeek.script.changes)
            zeek.sight(UNKNOWN_ID)
        bus.sightings(2)
        zeeks.close()
        bus.bus.stop()


def test_an_event_that_is_wrong_is_rejected_and_nothing_else(
    zeeks: Zeeks, subtests: pytest.Subtests
) -> None:
    bus = zeeks.bus()
    zeek = zeeks.old(bus)
    wrong: list[tuple[str, tuple[Any, ...], str]] = [
        (MANAGE, ("Other::subscribe", "stix2", timedelta(0)), "namespace Tenzir"),
        (MANAGE, ("Tenzir::subscribe",), "subscribe with wrong arguments"),
        (MANAGE, ("Tenzir::subscribe", "stix2", 30), "subscribe with wrong arguments"),
        (MANAGE, ("Tenzir::subscribe", "t" * 1_000_000, timedelta(0)), "a topic of more than"),
        (MANAGE, ("Tenzir::subscribe", "threatbus/manage", timedelta(0)), "bus's own"),
        (MANAGE, ("Tenzir::unsubscribe", "never heard of"), "unknown topic"),
        (MANAGE, ("Tenzir::unsubscribe", "t" * 1_000_000), "than any subscription has"),
        (MANAGE, ("Tenzir::received", "t" * 1_000_000, 1), "than any subscription has"),
        (MANAGE, ("Tenzir::unheard_of", 1, 2, 3), "unknown event"),
        (SIGHTINGS, ("Tenzir::sighting", "now", "id", {}), "sighting with wrong arguments"),
        (SIGHTINGS, ("Tenzir::sighting",), "sighting with wrong arguments"),
        (SIGHTINGS, ("x" * 1_000_000,), "namespace Tenzir"),
    ]
    for number, (topic, event, reason) in enumerate(wrong, 1):
        with subtests.test(event=event[0][:40], reason=reason):
            zeek.publish(topic, *event)
            assert bus.rejected(reason)
            eventually(lambda: bus.bus.rejects.total == number)
    _is_well(bus, zeek)


def test_nothing_that_broker_can_carry_ends_the_worker(zeeks: Zeeks) -> None:
    bus = zeeks.bus()
    zeek = zeeks.old(bus)
    count = zeek.broker.Count
    hostile: list[Any] = [
        None,
        5,
        "text",
        [],
        [1, 2],
        [count(1), count(1), []],
        [count(1), count(1), ["Tenzir::subscribe", "no vector"]],
        [count(1), count(1), [b"\xff\xfe", []]],
        [count(9), count(9), ["Tenzir::subscribe", ["\xff", None]]],
        # Python cannot hold a table as the key of a table.
        zeek.broker.Data({zeek.broker.Data({"a": 1}): 1}),
    ]
    for value in hostile:
        zeek.publish_raw(MANAGE, value)
        zeek.publish_raw(f"{SIGHTINGS}/and/more", value)
    zeek.publish_raw("threatbus/manage" + "t" * 1_000_000, "text")
    eventually(lambda: sum(bus.bus.stats()["rejected"].values()) >= 2 * len(hostile))
    _is_well(bus, zeek)


def test_a_context_that_is_no_json_is_rejected(zeeks: Zeeks) -> None:
    bus = zeeks.bus()
    zeek = zeeks.old(bus)
    deep: Any = 1
    for _ in range(200):
        deep = [deep]
    zeek.sight(UNKNOWN_ID, {"deep": deep})
    assert bus.rejected("nested")
    _is_well(bus, zeek)


def test_another_namespace_is_served_when_it_is_configured(zeeks: Zeeks) -> None:
    bus = zeeks.bus(module_namespace="Site")
    zeek = zeeks.old(bus, namespace="Site")
    bus.publish(indicator())
    eventually(lambda: len(zeek.script.intel) == 1)


def _is_well(bus: ZeekBus, zeek: BrokerZeek) -> None:
    """The Zeek that sent nonsense is still served, by the worker that read it."""
    bus.publish(indicator())
    eventually(lambda: len(zeek.script.intel) == 1)
    zeek.sight(UNKNOWN_ID)
    bus.sightings(1)
    worker = next(t for t in threading.enumerate() if t.name == "link of zeek broker")
    assert getattr(worker, "failures", None) == 0


# The end.


def test_stopping_delivers_what_waits_and_is_quick(zeeks: Zeeks) -> None:
    bus = zeeks.bus()
    old, ours = zeeks.old(bus), zeeks.ours(bus)
    bus.publish(*domains(1000))
    bus.bus.stop()
    eventually(lambda: len(old.script.intel) == 1000 and len(ours.script.changes) == 1000)


def test_stopping_does_not_wait_for_a_zeek_that_is_silent(zeeks: Zeeks) -> None:
    bus = zeeks.bus(core={"drain_timeout": 30})
    zeek = zeeks.ours(bus)
    zeek.script.silent = True
    bus.publish(*domains(1000))
    eventually(lambda: zeek.script.numbers)
    began = datetime.now(UTC)
    bus.bus.stop()
    assert datetime.now(UTC) - began < timedelta(seconds=10)


def test_an_idle_bus_stops_at_once(zeeks: Zeeks) -> None:
    bus = zeeks.bus()
    began = datetime.now(UTC)
    bus.bus.stop()
    assert datetime.now(UTC) - began < timedelta(seconds=1)


def test_sightings_that_have_come_are_delivered_at_the_end(zeeks: Zeeks) -> None:
    bus = zeeks.bus()
    zeek = zeeks.old(bus)
    for _ in range(50):
        zeek.sight(UNKNOWN_ID)
    eventually(lambda: bus.bus.intake.accepted >= 50)
    bus.bus.stop()
    assert bus.bus.intake.accepted == 50


def test_two_buses_in_one_process_do_not_meet(zeeks: Zeeks) -> None:
    one, other = zeeks.bus(), zeeks.bus()
    first, second = zeeks.old(one), zeeks.old(other)
    one.publish(indicator("[domain-name:value = 'one.example']"))
    other.publish(indicator("[domain-name:value = 'other.example']"))
    eventually(lambda: first.script.intel and second.script.intel)
    assert first.script.items() == [("ADD", "DOMAIN", "one.example")]
    assert second.script.items() == [("ADD", "DOMAIN", "other.example")]


def test_a_message_that_is_no_indicator_is_passed_over(zeeks: Zeeks) -> None:
    bus = zeeks.bus()
    zeek = zeeks.old(bus, topic="stix2")
    zeek.sight(UNKNOWN_ID)
    bus.sightings(1)
    bus.bus.intake.put_many([Message(INDICATOR, encode(indicator(modified=timestamp(1))))])
    eventually(lambda: len(zeek.script.intel) == 1)
