"""MispApi and Outbox against a server that answers as MISP does, through PyMISP."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from helpers.waiting import SCALE, SOON, eventually, finished, in_threads
from threatbus_misp.outbox import Outbox
from threatbus_misp.outbox_store import OutgoingSighting
from threatbus_misp.rest import AttributeFilter, MispApi
from threatbus_misp.rest_errors import (
    MispDenied,
    MispError,
    MispInterrupted,
    MispRefusal,
    MispUnreachable,
)

from integration.misp_server import Attribute, Event, Misp, MispServer
from testbed.ports import free_port
from threatbus.workers import Backoff

#: A simulated clock begins here.
START = 1_795_486_800
NO_UUID = "00000000-1111-4222-8333-444444444444"
#: Calls of every kind, none of which needs anything to be there.
CALLS: dict[str, Callable[[MispApi], object]] = {
    "attributes": lambda api: list(api.attributes_changed(0)),
    "events": lambda api: list(api.events()),
    "event": lambda api: api.event("1"),
    "sightings": lambda api: list(api.sightings(START)),
    "add sighting": lambda api: api.add_sighting(attribute=NO_UUID),
    "find sightings": lambda api: api.find_sightings(attribute=NO_UUID, seen=1),
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.time = float(START)

    def __call__(self) -> float:
        return self.time

    def tick(self, seconds: float = 1) -> int:
        self.time += seconds
        return int(self.time)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server(clock: Clock) -> Iterator[MispServer]:
    with MispServer(Misp(clock)) as server:
        yield server


@pytest.fixture
def misp(server: MispServer) -> Misp:
    return server.misp


@pytest.fixture
def api(server: MispServer, clock: Clock) -> MispApi:
    return api_of(server, clock=clock)


@pytest.fixture
def event(misp: Misp) -> Event:
    return misp.add_event("campaign")


@pytest.fixture
def attribute(misp: Misp, event: Event) -> Attribute:
    return misp.add_attribute(event, "ip-dst", "198.51.100.7")


def api_of(server: MispServer, **more: Any) -> MispApi:
    return MispApi(server.url, server.key, **{"timeout": (1.0, 5.0), "page_size": 3, **more})


def changed(api: MispApi, since: int = 0, **more: Any) -> list[str]:
    """Give the values of all pages."""
    pages = api.attributes_changed(since, **more)
    return [attribute["value"] for page in pages for attribute in page]


def only(**fields: Any) -> dict[str, Any]:
    return {"only": AttributeFilter(**fields)}


# Connecting.


def test_nothing_is_sent_before_the_first_call(server: MispServer) -> None:
    api = api_of(server)
    assert server.requests == []
    assert api.version is None
    assert api.connect() == "2.5.1"
    assert api.version == "2.5.1"


def test_pymisp_is_imported_on_first_use_only() -> None:
    code = (
        "import sys, threatbus_misp.rest, threatbus_misp.outbox;"
        "threatbus_misp.rest.MispApi('http://x', 'k');"
        "sys.exit(bool({'pymisp', 'requests', 'urllib3'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_one_connection_serves_many_calls(server: MispServer, api: MispApi) -> None:
    for _ in range(5):
        list(api.events())
    assert server.paths().count("/users/view/me") == 1


def test_a_misp_in_a_subdirectory_is_asked_there(server: MispServer) -> None:
    with pytest.raises(MispError):
        MispApi(f"{server.url}/misp", server.key).connect()
    assert server.paths()[0] == "/misp/servers/getVersion"


@pytest.mark.parametrize(
    ("url", "key"), [("", "k"), ("http://misp", " "), ("http://misp", "k\r\nx"), ("http://m", "ä")]
)
def test_an_instance_needs_a_url_and_a_key_that_can_be_one(url: str, key: str) -> None:
    with pytest.raises(ValueError, match="key") as error:
        MispApi(url, key)
    assert "k\\r" not in str(error.value)


def test_no_netrc_takes_the_place_of_the_key(
    server: MispServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else")
    monkeypatch.setenv("NETRC", str(netrc))
    assert api_of(server).connect() == "2.5.1"


def test_a_proxy_in_front_of_misp_gets_user_and_password_of_the_url(server: MispServer) -> None:
    url = server.url.replace("http://", "http://user:hidden@")
    assert MispApi(url, server.key).connect() == "2.5.1"
    assert server.authorizations[-1].startswith("Basic ")


def test_several_threads_share_one_instance(api: MispApi, misp: Misp, attribute: Attribute) -> None:
    def read() -> None:
        for _ in range(5):
            assert changed(api) == ["198.51.100.7"]

    in_threads(*[read] * 4)


# Reading attributes.


def test_pages_are_asked_for_one_by_one_and_give_all(
    server: MispServer, api: MispApi, misp: Misp, event: Event
) -> None:
    values = [f"198.51.100.{n}" for n in range(8)]
    for value in values:
        misp.add_attribute(event, "ip-dst", value)
    pages = api.attributes_changed(0)
    first = next(pages)
    assert len(first) == 3
    assert server.paths().count("/attributes/restSearch") == 1
    rest = [attribute["value"] for page in pages for attribute in page]
    assert [attribute["value"] for attribute in first] + rest == values


def test_attributes_are_found_from_the_second_of_their_last_edit_on(
    api: MispApi, misp: Misp, event: Event, clock: Clock
) -> None:
    old = misp.add_attribute(event, "ip-dst", "198.51.100.1")
    since = clock.tick()
    misp.add_attribute(event, "ip-dst", "198.51.100.2")
    clock.tick()
    misp.add_attribute(event, "ip-dst", "198.51.100.3")
    clock.tick()
    assert changed(api, since) == ["198.51.100.2", "198.51.100.3"]
    assert changed(api, since + 1) == ["198.51.100.3"]
    misp.edit_attribute(old, to_ids=False)
    assert changed(api, clock.tick(0)) == ["198.51.100.1"]


def test_deleted_ones_are_not_found_until_they_are_restored(
    api: MispApi, misp: Misp, event: Event, attribute: Attribute
) -> None:
    misp.hard_delete(misp.add_attribute(event, "domain", "evil.example"))
    misp.soft_delete(attribute)
    assert changed(api) == []
    misp.undelete(attribute)
    assert changed(api) == [attribute.value]


def test_an_attribute_comes_with_its_event_and_the_tags_of_both(api: MispApi, misp: Misp) -> None:
    event = misp.add_event("campaign", tags=["tlp:amber"], threat_level_id=2)
    misp.add_attribute(event, "ip-dst", "198.51.100.7", tags=["apt"])
    misp.publish(event)
    ((found,),) = api.attributes_changed(0)
    assert found["event_uuid"] == found["Event"]["uuid"] == event.uuid
    assert found["Event"]["published"] is True
    assert found["Event"]["threat_level_id"] == "2"
    assert found["Event"]["Orgc"]["uuid"] == event.org.uuid
    assert [(tag["name"], bool(tag.get("inherited"))) for tag in found["Tag"]] == [
        ("apt", False),
        ("tlp:amber", True),
    ]


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({}, ["1", "2", "3", "4"]),
        ({"to_ids": True}, ["1", "2", "4"]),
        ({"to_ids": False}, ["3"]),
        ({"published": True}, ["4"]),
        ({"published": False}, ["1", "2", "3"]),
        ({"enforce_warninglist": True}, ["2", "3", "4"]),
        ({"published": True, "to_ids": True}, ["4"]),
    ],
    ids=str,
)
def test_filters_are_misps(
    api: MispApi, misp: Misp, fields: dict[str, Any], found: list[str]
) -> None:
    draft = misp.add_event("draft")
    misp.add_attribute(draft, "ip-dst", "1")
    misp.add_attribute(draft, "domain", "2", tags=["apt"])
    misp.add_attribute(draft, "md5", "3", to_ids=False)
    published = misp.add_event("published", tags=["apt", "event"], org=misp.orgs[1])
    misp.add_attribute(published, "ip-src", "4")
    misp.publish(published)
    misp.warninglist.add("1")
    assert changed(api, **only(**fields)) == found


def test_a_page_that_a_warninglist_has_emptied_is_not_the_last(
    api: MispApi, misp: Misp, event: Event
) -> None:
    """MISP takes out what is listed after it has counted the page."""
    for n in range(10):
        misp.add_attribute(event, "ip-dst", f"{n}")
    misp.warninglist |= {"1", "3", "4", "5", "8"}
    assert changed(api, **only(enforce_warninglist=True)) == ["0", "2", "6", "7", "9"]


# Reading events.


def test_publication_is_seen_although_it_moves_no_attributes_timestamp(
    api: MispApi, misp: Misp, event: Event, attribute: Attribute, clock: Clock
) -> None:
    since = clock.tick()
    assert list(api.events(published_since=since)) == []
    misp.publish(event)
    assert changed(api, since) == []
    ((found,),) = api.events(published_since=since)
    assert found["uuid"] == event.uuid
    assert "Attribute" not in found
    # An edit unpublishes, but the publication has been.
    misp.edit_attribute(attribute, comment="edited")
    ((found,),) = api.events(published_since=since)
    assert found["published"] is False


def test_a_hard_deletion_is_seen_as_a_change_of_its_event(
    api: MispApi, misp: Misp, event: Event, attribute: Attribute, clock: Clock
) -> None:
    since = clock.tick()
    misp.add_attribute(misp.add_event("another"), "md5", "0" * 32)
    clock.tick()
    misp.hard_delete(attribute)
    found = [e["uuid"] for page in api.events(changed_since=clock.tick(0)) for e in page]
    assert found == [event.uuid]
    assert len([e for page in api.events(changed_since=since) for e in page]) == 2


def test_all_events_come_page_by_page(api: MispApi, misp: Misp) -> None:
    events = [misp.add_event(f"{n}") for n in range(7)]
    pages = list(api.events())
    assert [len(page) for page in pages] == [3, 3, 1]
    assert [e["uuid"] for page in pages for e in page] == [e.uuid for e in events]


def test_a_full_event_holds_objects_and_tags(api: MispApi, misp: Misp, event: Event) -> None:
    found = misp.add_object(event, "domain-ip")
    misp.add_attribute(event, "domain", "evil.example", in_object=found)
    misp.tag(event, "tlp:green")
    for full in (api.event(event.uuid), api.event(str(event.id))):
        assert full is not None
        assert full["Object"][0]["Attribute"][0]["value"] == "evil.example"
        assert full["Tag"][0]["name"] == "tlp:green"


def test_an_event_comes_without_what_is_deleted_and_without_sightings(
    api: MispApi, misp: Misp, event: Event, attribute: Attribute
) -> None:
    misp.add_sighting(attribute)
    shown = api.event(event.uuid)
    assert shown is not None
    assert "Sighting" not in shown["Attribute"][0]
    misp.soft_delete(attribute)
    shown = api.event(event.uuid)
    assert shown is not None
    assert shown["Attribute"] == []


def test_an_event_that_is_gone_is_none(api: MispApi, misp: Misp, event: Event) -> None:
    misp.delete_event(event)
    assert api.event(event.uuid) is None


# Sightings.


def test_a_sighting_is_added_with_all_its_fields(
    api: MispApi, misp: Misp, attribute: Attribute
) -> None:
    """The time it was seen, its source, and the attribute by UUID."""
    added = api.add_sighting(attribute=attribute.uuid, kind="1", source="zeek", seen=START - 5)
    (found,) = misp.sightings_of(attribute)
    assert (found.type, found.source, found.date_sighting) == ("1", "zeek", START - 5)
    assert added["uuid"] == found.uuid


def test_a_sighting_of_a_value_goes_to_all_its_attributes(
    api: MispApi, misp: Misp, event: Event, attribute: Attribute
) -> None:
    composite = misp.add_attribute(event, "domain|ip", f"evil.example|{attribute.value}")
    other = misp.add_attribute(event, "ip-dst", "198.51.100.70")
    api.add_sighting(value=attribute.value, source="zeek", seen=START)
    assert len(misp.sightings_of(attribute)) == len(misp.sightings_of(composite)) == 1
    assert misp.sightings_of(other) == []
    found = api.find_sightings(value=attribute.value, source="zeek", seen=START)
    assert {each["attribute_id"] for each in found} == {str(attribute.id), str(composite.id)}


def test_a_refused_sighting_raises_misps_reason_although_the_status_is_200(api: MispApi) -> None:
    """PyMISP gives such an answer as if all were well."""
    with pytest.raises(MispRefusal, match="No valid attributes found") as refused:
        api.add_sighting(attribute=NO_UUID)
    assert refused.value.status == 200


def test_a_source_that_is_too_long_for_misp_is_cut(
    api: MispApi, misp: Misp, attribute: Attribute
) -> None:
    arguments: dict[str, Any] = {"attribute": attribute.uuid, "source": " x" * 200, "seen": START}
    api.add_sighting(**arguments)
    assert len(misp.sightings_of(attribute)[0].source) <= 255
    assert len(api.find_sightings(**arguments)) == 1


def test_a_sighting_is_found_by_exactly_what_it_was_added_with(
    api: MispApi, misp: Misp, event: Event, attribute: Attribute, clock: Clock
) -> None:
    other = misp.add_attribute(event, "ip-dst", "198.51.100.8")
    # Longer ago than MISP looks back by itself.
    what: dict[str, Any] = {
        "attribute": attribute.uuid,
        "source": "zeek",
        "seen": START - 90 * 86_400,
        "kind": "0",
    }
    assert api.find_sightings(**what) == []
    api.add_sighting(**what)
    assert len(api.find_sightings(**what)) == 1
    for changes in (
        {"attribute": other.uuid},
        {"source": ""},
        {"seen": what["seen"] + 1},
        {"kind": "1"},
    ):
        assert api.find_sightings(**{**what, **changes}) == [], changes


def test_sightings_of_a_long_time_come_in_order_and_once(
    server: MispServer, api: MispApi, misp: Misp, attribute: Attribute
) -> None:
    since = START - 400 * 86_400
    dates = list(range(since, START + 1, 5 * 86_400))
    for date in dates:
        misp.add_sighting(attribute, seen=date)
    misp.add_sighting(attribute, seen=since - 1)
    pages = list(api.sightings(since))
    found = [int(each["date_sighting"]) for page in pages for each in page]
    assert found == dates
    assert len(pages) > 1
    assert len(server.paths()) < 30
    assert pages[0][0]["Attribute"]["uuid"] == attribute.uuid


def test_the_span_of_sightings_shrinks_where_there_are_many(
    server: MispServer, api: MispApi, misp: Misp, attribute: Attribute, monkeypatch: Any
) -> None:
    monkeypatch.setattr("threatbus_misp.rest._FEW_SIGHTINGS", 2)
    monkeypatch.setattr("threatbus_misp.rest._MANY_SIGHTINGS", 10)
    for n in range(200):
        misp.add_sighting(attribute, seen=START - n * 3600)
    pages = list(api.sightings(START - 10 * 86_400))
    assert sum(map(len, pages)) == 200
    assert max(map(len, pages[3:])) < 24


# What goes wrong.


@every_call
def test_nobody_listening_is_unreachable_and_nothing_was_sent(
    call: Callable[[MispApi], object],
) -> None:
    api = MispApi(f"http://127.0.0.1:{free_port()}", "k" * 40)
    with pytest.raises(MispUnreachable, match="Connection refused") as error:
        call(api)
    assert not error.value.maybe_done


@pytest.mark.parametrize("call", [CALLS["attributes"], CALLS["add sighting"]], ids=["read", "add"])
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"status": 500}, "An Internal Error Has Occurred"),
        ({"status": 502, "body": "<html>Bad\nGateway"}, "server error: <html>Bad Gateway"),
        ({"status": 404, "body": "<html>nginx"}, "404, but not as MISP does"),
        ({"status": 429, "body": {"message": "Rate limit exceeded."}}, "Rate limit exceeded."),
        ({"status": 200, "body": "<html>Log in"}, "cannot be read"),
        ({"status": 200, "body": ""}, "cannot be read"),
        ({"status": 200, "body": {"response": 7}}, "cannot be read"),
        ({"status": 200, "body": "[" * 100_000}, "cannot be read"),
        ({"cut_after": 0}, "Remote end closed connection"),
        ({"cut_after": 7}, "7 bytes read"),
        ({"delay": 60.0}, "timed out"),
        ({"drip": 0.05}, "no complete answer within"),
    ],
    ids=lambda given: str(given)[:60],
)
def test_what_may_pass_is_unreachable_and_the_next_call_works(
    server: MispServer, call: Callable[[MispApi], object], fault: dict[str, Any], reason: str
) -> None:
    # Where MISP answers at once, a busy machine has time to.
    read_secs = 0.5 if "delay" in fault else SOON
    api = api_of(server, timeout=(SOON, read_secs), deadline=0.5 if "drip" in fault else SOON)
    for connected in (False, True):
        if connected:
            api.connect()
        else:
            api.close()
        with server.fault(**fault), pytest.raises(MispUnreachable, match=reason) as error:
            call(api)
        # Only a request that was made can have had an effect.
        assert error.value.maybe_done <= connected
        assert "Traceback" not in str(error.value)
        assert len(str(error.value)) < 500
    assert list(api.events()) == []


@every_call
def test_a_redirection_that_would_lose_the_request_is_named_and_not_followed(
    server: MispServer, api: MispApi, call: Callable[[MispApi], object]
) -> None:
    """A POST that is redirected becomes a GET without its body: it would ask for everything."""
    there = "https://misp.example/there"
    for connected in (False, True):
        if connected:
            api.connect()
        with (
            server.fault(status=301, location=there),
            pytest.raises(MispUnreachable, match=f"redirects to {there}.* api.host"),
        ):
            call(api)


@every_call
def test_every_call_tells_errors_from_answers(
    server: MispServer, api: MispApi, call: Callable[[MispApi], object]
) -> None:
    api.connect()
    with server.fault(status=200, body={"response": 7}), pytest.raises(MispUnreachable):
        call(api)
    api.connect()
    refusal = {"errors": {"value": ["no"]}}
    with server.fault(status=200, body=refusal), pytest.raises(MispRefusal, match="no"):
        call(api)


@pytest.mark.parametrize(
    ("fault", "maybe"),
    [
        ({"status": 500}, True),
        ({"cut_after": 0}, True),
        ({"cut_after": 7, "done": True}, True),
        ({"delay": 60.0, "done": True}, True),
        ({"status": 200, "body": "?"}, True),
        ({"status": 429, "body": {"message": "Rate limit exceeded."}}, False),
    ],
    ids=str,
)
def test_a_sighting_that_may_have_arrived_is_said_to_be_so(
    server: MispServer, attribute: Attribute, fault: dict[str, Any], maybe: bool
) -> None:
    api = api_of(server, timeout=(1.0, 0.2))
    api.connect()
    with server.fault("/sightings", **fault), pytest.raises(MispUnreachable) as error:
        api.add_sighting(attribute=attribute.uuid)
    assert error.value.maybe_done is maybe


@every_call
def test_a_key_that_misp_does_not_know_is_denied_until_it_is_renewed(
    server: MispServer, call: Callable[[MispApi], object]
) -> None:
    api = api_of(server)
    for connected in (False, True):
        if connected:
            api.connect()
        server.expire_key()
        with pytest.raises(MispDenied, match="Authentication failed") as error:
            call(api)
        assert error.value.status == 403
        server.renew_key()
    assert api.connect()


def test_a_key_that_may_only_read_reads(
    server: MispServer, misp: Misp, attribute: Attribute
) -> None:
    api = MispApi(server.url, server.read_only_key)
    assert changed(api) == [attribute.value]
    with pytest.raises(MispDenied, match="You do not have permission"):
        api.add_sighting(attribute=attribute.uuid)


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (405, {"name": "Invalid attribute", "message": "Invalid attribute"}, "Invalid attribute"),
        (200, {"saved": False, "errors": "value: already exists"}, "already exists"),
        (200, {"message": "Could not"}, "Could not"),
        (400, {"errors": ["one", "two"]}, "one"),
    ],
)
def test_a_no_of_any_form_is_a_refusal_in_misps_words(
    server: MispServer, api: MispApi, status: int, body: dict[str, Any], reason: str
) -> None:
    api.connect()
    with (
        server.fault("/sightings", status=status, body=body),
        pytest.raises(MispRefusal, match=reason) as error,
    ):
        api.add_sighting(attribute=NO_UUID)
    assert not isinstance(error.value, MispDenied)
    assert error.value.status == status


def test_the_connection_is_made_anew_after_misp_was_away(
    server: MispServer, api: MispApi, attribute: Attribute
) -> None:
    assert changed(api) == [attribute.value]
    server.down()
    with pytest.raises(MispUnreachable):
        changed(api)
    server.up()
    assert changed(api) == [attribute.value]


def test_what_finds_misp_gone_was_not_sent(server: MispServer, api: MispApi) -> None:
    api.connect()
    server.down()
    with pytest.raises(MispUnreachable) as error:
        api.add_sighting(attribute=NO_UUID)
    assert not error.value.maybe_done


def test_pages_end_with_an_error_not_early_when_misp_goes_away(
    server: MispServer, api: MispApi, misp: Misp, event: Event
) -> None:
    for n in range(7):
        misp.add_attribute(event, "ip-dst", f"{n}")
    pages = api.attributes_changed(0)
    next(pages)
    server.down()
    with pytest.raises(MispUnreachable):
        list(pages)


# The key.


@pytest.mark.parametrize(
    "fault",
    [{"status": 500}, {"status": 403, "body": {"message": "the key is " + "k" * 40}}, {}],
    ids=str,
)
def test_the_key_is_nowhere_to_be_seen(
    server: MispServer,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    fault: dict[str, Any],
) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("pymisp").setLevel(logging.DEBUG)
    url = server.url.replace("http://", "http://user:hidden@")
    shown = []
    api = MispApi(url, server.key)
    for connected in (False, True):
        with server.fault(times=None if fault else 0, **fault):
            try:
                list(api.events())
            except MispError as error:
                logging.getLogger("test").exception("failed")
                shown.append(repr(error))
        if not connected:
            api.connect()
        shown += [repr(api), api.name]
    out, err = capfd.readouterr()
    seen = "\n".join([caplog.text, out, err, *shown])
    assert "k" * 40 not in seen
    assert "hidden" not in seen


# Stopping.


@every_call
def test_a_call_that_waits_for_misp_is_interrupted(
    server: MispServer, api: MispApi, call: Callable[[MispApi], object]
) -> None:
    running = threading.Event()
    running.set()
    raised: list[Exception] = []

    class Bound:
        """The API with `running` in every call."""

        def __getattr__(self, name: str) -> Any:
            method = getattr(api, name)
            return lambda *args, **more: method(*args, **more, running=running.is_set)

    def work() -> None:
        try:
            call(Bound())  # type: ignore[arg-type]
        except MispError as error:
            raised.append(error)

    with server.fault("/", delay=60.0) as fault:
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        eventually(lambda: fault.seen)
        running.clear()
        # Long before MISP's answer would come.
        finished(thread)
    assert isinstance(raised[0], MispInterrupted)


def test_no_page_is_asked_for_after_the_stop(
    server: MispServer, api: MispApi, misp: Misp, event: Event
) -> None:
    for n in range(7):
        misp.add_attribute(event, "ip-dst", f"{n}")
    running = [True]
    pages = api.attributes_changed(0, running=lambda: running[0])
    next(pages)
    asked = len(server.requests)
    running[0] = False
    with pytest.raises(MispInterrupted):
        next(pages)
    assert len(server.requests) == asked


def test_calls_that_hang_do_not_pile_up(server: MispServer) -> None:
    api = api_of(server, timeout=(1.0, 60.0), deadline=0.05)
    with server.fault("/", delay=60.0):
        reasons = []
        for _ in range(8):
            with pytest.raises(MispUnreachable) as error:
                api.connect()
            reasons.append(error.value.reason)
        mine = [t for t in threading.enumerate() if t.name == "MISP request"]
        assert len(mine) <= 4
        assert "earlier requests still wait" in reasons[-1]
    eventually(lambda: all(thread.name != "MISP request" for thread in threading.enumerate()))
    assert MispApi(server.url, server.key).connect()


# The stand-in is like the real one.

CAPTURES = Path(__file__).parents[1] / "data" / "misp" / "rest"


def shape(value: Any) -> Any:
    """Give keys and types of an answer; a list is all that its elements have."""
    if isinstance(value, dict):
        return {key: shape(each) for key, each in value.items()}
    if isinstance(value, list):
        shapes: list[Any] = []
        for each in map(shape, value):
            if each not in shapes:
                shapes.append(each)
        return sorted(shapes, key=repr)
    return type(value).__name__


def as_captured(*, sighted: bool) -> tuple[Misp, dict[str, str]]:
    """Give the model that the captures were taken of, and the UUIDs' counterparts."""
    misp = Misp(lambda: 1_795_486_815)
    event = misp.add_event("published event")
    first = misp.add_attribute(event, "ip-dst", "198.51.100.10", tags=["tlp:green"])
    for n in (1, 2, 3):
        gone = misp.add_attribute(event, "ip-dst", f"198.51.100.1{n}")
    misp.soft_delete(gone)
    misp.add_attribute(event, "ip-dst", "198.51.100.14", to_ids=False)
    misp.add_attribute(event, "domain", "a.example")
    draft = misp.add_event("unpublished event")
    misp.add_attribute(draft, "ip-dst", "198.51.100.200")
    misp.add_attribute(draft, "ip-dst", "198.51.100.201", to_ids=False)
    own = misp.add_event("org-only published")
    misp.add_attribute(own, "ip-dst", "198.51.100.90")
    misp.publish(event)
    misp.publish(own)
    if sighted:
        misp.add_sighting(first, source="threatbus")
    return misp, {"7244142f-8768-4c5e-baaa-48f718925c56": first.uuid}


@pytest.mark.parametrize("capture", sorted(CAPTURES.glob("*.json")), ids=lambda path: path.stem)
def test_the_stand_in_answers_in_the_form_of_a_running_misp(capture: Path) -> None:
    import requests  # noqa: PLC0415

    taken = msgspec.json.decode(capture.read_bytes())
    asked, answered = taken["request"], taken["response"]
    misp, counterparts = as_captured(sighted="restSearch_attribute" in capture.stem)
    with MispServer(misp) as server:
        keys = {"<admin key>": server.key, "<readonly key>": server.read_only_key}
        key = keys.get(asked["headers"]["Authorization"], "x" * 40)
        body = msgspec.json.encode(asked["body"]).decode() if asked["body"] else None
        for theirs, ours in counterparts.items():
            body = body and body.replace(theirs, ours)
        answer = requests.request(
            asked["method"],
            server.url + asked["path"],
            data=body,
            headers={**asked["headers"], "Authorization": key},
            timeout=10,
        )
    assert answer.status_code == answered["status"]
    assert shape(answer.json()) == shape(answered["json"])
    for name in ("Content-Type", "X-Result-Count", "X-Response-Format"):
        assert answer.headers.get(name) == answered["headers"].get(name), name
    if answered["status"] >= 400:
        assert answer.json() == answered["json"]


# The outbox, with a real API.


@pytest.fixture
def outbox(server: MispServer, tmp_path: Path) -> Iterator[Outbox]:
    api = api_of(server, timeout=(1.0, 0.3))
    box = Outbox(tmp_path / "state", api, settle=0.05, backoff=Backoff(0.01, 0.05))
    box.start()
    yield box
    box.stop()
    finished(box, 3.0)
    box.close()


def emptied(box: Outbox) -> None:
    eventually(lambda: box.counts.waiting == 0, what="an empty outbox")


@pytest.mark.parametrize(
    "fault",
    [
        {"cut_after": 0, "done": True},
        {"cut_after": 9, "done": True},
        {"delay": 60.0, "done": True},
        {"status": 504, "done": True},
        {"cut_after": 0},
        {"status": 500},
        {"status": 503, "body": "<html>maintenance"},
        {"delay": 60.0, "status": 500},
    ],
    ids=str,
)
def test_a_sighting_counts_once_whatever_happens_to_its_answer(
    server: MispServer,
    misp: Misp,
    attribute: Attribute,
    outbox: Outbox,
    fault: dict[str, Any],
) -> None:
    with server.fault("/sightings/add", times=2, **fault) as happened:
        for seen in range(3):
            outbox.put(OutgoingSighting(attribute.uuid, START + seen, source="zeek"))
        emptied(outbox)
    assert happened.seen == 2
    dates = [each.date_sighting for each in misp.sightings_of(attribute)]
    assert dates == [START, START + 1, START + 2]
    assert outbox.counts.sent == 3


def test_sightings_by_value_count_once_too(
    server: MispServer, misp: Misp, event: Event, attribute: Attribute, outbox: Outbox
) -> None:
    twin = misp.add_attribute(event, "ip-src", attribute.value)
    with server.fault("/sightings/add", times=1, cut_after=0, done=True):
        outbox.put(OutgoingSighting(NO_UUID, START, value=attribute.value, source="zeek"))
        outbox.put(OutgoingSighting(None, START, value=attribute.value, source="zeek"))
        emptied(outbox)
    assert len(misp.sightings_of(attribute)) == len(misp.sightings_of(twin)) == 2


def test_sightings_outlast_an_outage(
    server: MispServer, misp: Misp, attribute: Attribute, outbox: Outbox
) -> None:
    """A failed call ends neither the worker nor anybody's wait."""
    server.down()
    for seen in range(10):
        started = time.monotonic()
        assert outbox.put(OutgoingSighting(attribute.uuid, START + seen))
        assert time.monotonic() - started < 0.5 * SCALE
    server.up()
    emptied(outbox)
    dates = [each.date_sighting for each in misp.sightings_of(attribute)]
    assert dates == [START + n for n in range(10)]
    assert outbox.failures == 0


def test_a_refused_sighting_is_named_in_the_log(
    server: MispServer, outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    """Errors that PyMISP gives as answers were logged as success."""
    outbox.put(OutgoingSighting(NO_UUID, START))
    eventually(lambda: outbox.counts.refused == 1)
    emptied(outbox)
    eventually(lambda: NO_UUID in caplog.text)
    assert "No valid attributes found" in caplog.text


def test_an_expired_key_keeps_the_sightings(
    server: MispServer, misp: Misp, attribute: Attribute, outbox: Outbox
) -> None:
    server.expire_key()
    outbox.put(OutgoingSighting(attribute.uuid, START))
    eventually(lambda: len(server.requests) > 6)
    server.renew_key()
    emptied(outbox)
    assert len(misp.sightings_of(attribute)) == 1


#: Sends sightings of one attribute until it is killed.
SENDER = """
import sys
from pathlib import Path
from threatbus_misp.outbox import Outbox
from threatbus_misp.outbox_store import OutgoingSighting
from threatbus_misp.rest import MispApi
url, key, directory, attribute, first, count = sys.argv[1:]
box = Outbox(Path(directory), MispApi(url, key), settle=0.2)
for n in range(int(count)):
    assert box.put(OutgoingSighting(attribute, int(first) + n, source="zeek"))
box.start()
box.join()
"""


@pytest.mark.parametrize(
    "fault",
    [{"done": True}, {}, {"status": 500}],
    ids=["MISP has it before", "MISP takes it after", "MISP never takes it"],
)
def test_a_bus_that_is_killed_loses_no_sighting_and_sends_none_twice(
    server: MispServer, misp: Misp, attribute: Attribute, tmp_path: Path, fault: dict[str, Any]
) -> None:
    arguments = [server.url, server.key, str(tmp_path / "state"), attribute.uuid]

    def sender(first: int, count: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", SENDER, *arguments, str(first), str(count)]
        return subprocess.Popen(command)

    with server.fault("/sightings/add", delay=60.0, times=1, **fault) as happened:
        killed = sender(START, 5)
        try:
            eventually(lambda: happened.seen, 20 * SCALE, "the first request")
            if "done" in fault:
                eventually(lambda: misp.sightings_of(attribute))
        finally:
            killed.kill()
            killed.wait(10)
    again = sender(START + 5, 5)
    try:
        last = START + 9
        eventually(
            lambda: last in [s.date_sighting for s in misp.sightings_of(attribute)], 20 * SCALE
        )
    finally:
        again.kill()
        again.wait(10)
    dates = [each.date_sighting for each in misp.sightings_of(attribute)]
    assert dates == [START + n for n in range(10)]
