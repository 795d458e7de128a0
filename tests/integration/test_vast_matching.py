"""vast-threatbus on a real node: what is found, live and in what is stored, and what no longer."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from helpers.documents import encode, indicator
from helpers.services import tenzir_node
from helpers.waiting import eventually

from integration.vast_helpers import SECONDS, Stage, domain, host, stage, url
from testbed.tenzir import TenzirNode
from threatbus.client import Sighting
from threatbus.data import MessageType

ROOT = Path(__file__).parents[2]
README = ROOT / "apps" / "vast" / "README.md"


@pytest.fixture(scope="module")
def node() -> Iterator[TenzirNode]:
    with tenzir_node() as node:
        yield node


@pytest.fixture(scope="module")
def running(node: TenzirNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A wrapper that all tests share which do not need one of their own."""
    with stage(tmp_path_factory.mktemp("vast"), node) as running:
        running.matches_live()
        yield running


def five_kinds() -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """An indicator of each kind, and an event in which it is to be found."""
    name, number = uuid.uuid4().hex, uuid.uuid4().int
    address = f"10.{number % 250}.{number // 256 % 250}.{number // 65536 % 250}"
    sha256 = uuid.uuid4().hex * 2
    v6 = f"2001:db8::{number % 60000 + 4096:x}"
    return {
        "domain": (
            indicator(f"[domain-name:value = 'Evil.{name}.example']"),
            {"event_type": "dns", "dns": {"rrname": f"evil.{name}.EXAMPLE"}},
        ),
        "IPv4": (
            indicator(f"[ipv4-addr:value = '{address}']"),
            {"id": {"orig_h": "192.0.2.7", "resp_h": address}, "uid": "CXWv6p3"},
        ),
        "IPv6": (
            indicator(f"[ipv6-addr:value = '{v6.upper()}']"),
            {"src_ip": v6, "dest_port": 443},
        ),
        "URL": (
            url(f"http://{name}.example/a?b='c'&d=\"e\""),
            {"http": [{"url": f"http://{name}.example/a?b='c'&d=\"e\""}]},
        ),
        "hash": (
            indicator(f"[file:hashes.'SHA-256' = '{sha256.upper()}']"),
            {"fileinfo": {"sha256": sha256, "size": 1}},
        ),
    }


def contexts(sightings: list[Sighting]) -> list[Any]:
    return [sighting.x_threatbus_sighting_context for sighting in sightings]


def test_every_kind_is_found_in_stored_and_in_new_events_and_no_more_once_withdrawn(
    running: Stage,
) -> None:
    kinds = five_kinds()
    documents = [document for document, _ in kinds.values()]
    events = {kind: event for kind, (_, event) in kinds.items()}
    running.node.import_events(events.values())
    running.platform.publish(*documents)
    for kind, (document, _) in kinds.items():
        (found,) = running.platform.awaits(document, "RETRO")
        assert found.x_threatbus_sighting_context == events[kind]
        assert found.x_threatbus_indicator_value in document["pattern"].replace("\\", "")
    running.written()
    running.searched()
    running.node.import_events(events.values())
    for kind, (document, _) in kinds.items():
        (found,) = running.platform.awaits(document, "LIVE")
        assert found.x_threatbus_sighting_context == events[kind]
    running.platform.withdraw(*documents)
    name = host()
    running.platform.publish(other := domain(name))
    running.forgotten(*documents)
    running.written(name)
    assert set(running.table()) == {name}
    running.node.import_events([*events.values(), {"q": name}])
    running.platform.awaits(other, "LIVE")
    running.platform.withdraw(other)
    for document in documents:
        assert len(running.platform.seen(document)) == 2, "one before, one after, none since"


def test_an_event_says_when_the_sighting_was(running: Stage) -> None:
    name = host()
    running.node.import_events([{"timestamp": "2026-11-01T10:00:00.25Z", "q": name}])
    running.platform.publish(document := domain(name))
    (found,) = running.platform.awaits(document)
    assert found.last_seen == datetime(2026, 11, 1, 10, 0, 0, 250_000, tzinfo=UTC)


def test_two_indicators_of_one_value_are_both_seen_until_each_is_withdrawn(
    running: Stage,
) -> None:
    name = host()
    first, second = domain(name), domain(name)
    running.platform.publish(first, second)
    running.written(name)
    running.searched()
    running.node.import_events([{"q": name, "n": 1}])
    running.platform.awaits(first, "LIVE")
    running.platform.awaits(second, "LIVE")
    running.platform.withdraw(first)
    eventually(lambda: running.wrapper.registry.ids(name) == [second["id"]])
    running.node.import_events([{"q": name, "n": 2}])
    running.platform.awaits(second, "LIVE", 2)
    assert contexts(running.platform.seen(first)) == [{"q": name, "n": 1}]
    running.platform.publish(third := domain(name))
    running.platform.awaits(third, "RETRO", 2)
    running.searched()
    assert len(running.platform.seen(second)) == 2, "what is stored was looked at for the third one"


def test_an_edited_indicator_is_looked_for_by_its_new_value_alone(running: Stage) -> None:
    old, new = host(), host()
    document = domain(old)
    running.platform.publish(document)
    running.written(old)
    running.platform.publish(edited := {**domain(new), "id": document["id"]})
    running.written(new)
    assert old not in running.table()
    running.searched()
    running.node.import_events([{"q": old}, {"q": new}])
    running.platform.awaits(edited, "LIVE")
    assert contexts(running.platform.seen(document)) == [{"q": new}]


def test_a_url_matters_in_upper_and_lower_case(running: Stage) -> None:
    address = f"http://{host()}/Path"
    running.platform.publish(document := url(address))
    running.written(address.lower())
    running.searched()
    running.node.import_events([{"url": address.lower()}, {"url": address}])
    running.platform.awaits(document, "LIVE")
    assert contexts(running.platform.seen(document)) == [{"url": address}]


def test_what_a_lookup_cannot_find_is_left_out_and_counted(running: Stage) -> None:
    before = running.wrapper.counters["indicators_left_out"]
    running.platform.publish(
        indicator("[file:name = 'a.exe']"),
        indicator("[ipv4-addr:value = '10.0.0.0/8']"),
        indicator("[domain-name:value = 'a' AND domain-name:value = 'b']"),
    )
    eventually(lambda: running.wrapper.counters["indicators_left_out"] == before + 3)


def test_the_first_success_of_the_readme_is_one(running: Stage) -> None:
    (commands,) = re.findall(r"^```sh\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    # What of them starts programs, this stage has done.
    assert "threatbus publish examples/indicators.json\necho" in commands
    bundle = json.loads((ROOT / "examples" / "indicators.json").read_text())
    document = next(each for each in bundle["objects"] if "update.bin" in each.get("pattern", ""))
    running.platform.publish(document)
    running.written("http://files.example.net/update.bin")
    subprocess.run(
        commands[commands.index("echo") :],
        shell=True,
        env={**os.environ, **running.node.client_environment},
        check=True,
        timeout=SECONDS,
    )
    (found,) = running.platform.awaits(document, "LIVE")
    assert found.x_threatbus_sighting_context == {
        "http": {"url": "http://files.example.net/update.bin"}
    }


HOSTILE = (
    "' || true",
    '" | export | write_ndjson',
    '"\ncontext_reset "threatbus"\n//',
    "\\",
    '\\"',
    "$(touch CANARY)",
    "`touch CANARY`",
    "; touch CANARY;",
    "%ioc %matchtype %s {0}",
    "a\nb\rc\td",
    "{{key}}",
    "|| 1 == 1",
    "../../etc/passwd",
    "\u202e\u0000\u001b[2J",
    "ключ 🦠 \u2028",
    "--help",
)


def test_values_in_the_languages_of_pipeline_and_shell_are_values(
    running: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mark = uuid.uuid4().hex
    values = [f"{text}{mark}" for text in HOSTILE]
    documents = {value: url(value) for value in values}
    running.node.import_events({"before": value} for value in values)
    running.platform.publish(*documents.values())
    for value, document in documents.items():
        (found,) = running.platform.awaits(document, "RETRO")
        assert found.x_threatbus_indicator_value == value
        assert found.x_threatbus_sighting_context == {"before": value}
    running.written(*(value.lower() for value in values))
    assert {value.lower() for value in values} <= set(running.table())
    running.node.import_events({"after": value} for value in values)
    for value, document in documents.items():
        (found,) = running.platform.awaits(document, "LIVE")
        assert found.x_threatbus_sighting_context == {"after": value}
    running.platform.withdraw(*documents.values())
    running.forgotten(*documents.values())
    assert not {value.lower() for value in values} & set(running.table())
    assert list(tmp_path.iterdir()) == []


def test_after_a_restart_the_table_holds_what_is_current_and_nothing_else(
    node: TenzirNode, tmp_path: Path
) -> None:
    names = {name: domain(name) for name in (host(), host(), host())}
    stays, goes, comes = names
    current = [stays, goes]

    def answer(request: Any) -> list[bytes]:
        indicators = request.snapshot_type is MessageType.INDICATOR
        return [encode(names[name]) for name in current if indicators]

    with stage(tmp_path, node, answer, snapshot=30, retro_match=False) as running:
        running.written(stays, goes)
        running.wrapper.stop()
        # Nobody tells the wrapper, which is away.
        current[:] = [stays, comes]
        running.start()
        running.written(stays, comes)
        assert set(running.table()) == {stays, comes}

        def matched() -> bool:
            node.import_events({"q": name} for name in names)
            seen = running.platform.seen
            return bool(seen(names[stays]) and seen(names[comes]))

        eventually(matched, SECONDS)
        assert running.platform.seen(names[goes]) == []


def test_ten_thousand_indicators_take_a_few_processes(node: TenzirNode, tmp_path: Path) -> None:
    with stage(tmp_path, node, retro_match=False) as running:
        running.written()
        before = running.wrapper.engine.started
        began = time.monotonic()
        running.platform.publish(*(domain(f"host{n}.example") for n in range(10_000)))
        eventually(lambda: len(running.wrapper.registry) == 10_000, SECONDS)
        running.written()
        seconds = time.monotonic() - began
        assert len(running.table()) == 10_000
        # Mostly one; a few on a machine on which they come slowly.
        assert running.wrapper.engine.started - before <= 10
        assert seconds < SECONDS


def test_no_more_events_are_reported_for_an_indicator_than_is_allowed(
    node: TenzirNode, tmp_path: Path
) -> None:
    name, other = host(), host()
    node.import_events([*({"q": name, "n": n} for n in range(20)), {"q": other}])
    with stage(tmp_path, node, live_match=False, retro_match_max_events=3) as running:
        running.platform.publish(many := domain(name), one := domain(other))
        running.platform.awaits(many, "RETRO", 3)
        running.platform.awaits(one, "RETRO")
        running.searched()
        assert len(running.platform.seen(many)) == 3
