"""A MISP for tests: a model of events and attributes, and the REST API in front of it.

`Misp` is the model: it changes the way a MISP 2.5 does (publishing moves no attribute's
timestamp, an edit unpublishes the event, hard deletion leaves nothing). `MispServer` answers what
PyMISP asks, in the form of the captured answers, and fails on demand::

    with MispServer() as server:
        event = server.misp.add_event("campaign")
        attribute = server.misp.add_attribute(event, "ip-dst", "198.51.100.7")
        server.misp.publish(event)
        with server.fault("/attributes/restSearch", status=500):
            ...

It knows what the bus asks for, and answers 404 to the rest.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Json = dict[str, Any]

#: What a key may do.
ADMIN, READ_ONLY = "admin", "read only"

_CATEGORIES = {"md5": "Payload delivery", "sha1": "Payload delivery", "sha256": "Payload delivery"}


# The model.


@dataclass
class Org:
    id: int
    name: str
    uuid: str = field(default_factory=lambda: str(uuid.uuid4()))

    def shown(self) -> Json:
        return {"id": str(self.id), "name": self.name, "uuid": self.uuid, "local": True}


@dataclass
class Tag:
    id: int
    name: str

    def brief(self, *, inherited: bool = False) -> Json:
        """As in the answer of a search for attributes."""
        shown: Json = {
            "id": str(self.id),
            "name": self.name,
            "colour": "#fa4c22",
            "numerical_value": None,
            "is_galaxy": False,
            "local": False,
        }
        return {**shown, "inherited": True} if inherited else shown

    def full(self) -> Json:
        """As in an event."""
        return {
            "id": str(self.id),
            "name": self.name,
            "colour": "#fa4c22",
            "exportable": True,
            "user_id": "0",
            "hide_tag": False,
            "numerical_value": None,
            "is_galaxy": False,
            "is_custom_galaxy": False,
            "local_only": False,
            "local": False,
            "relationship_type": None,
        }


@dataclass
class Event:
    id: int
    info: str
    uuid: str
    org: Org
    date: str
    timestamp: int
    published: bool = False
    publish_timestamp: int = 0
    threat_level_id: int = 4
    distribution: int = 1
    tags: list[Tag] = field(default_factory=list)


@dataclass
class MispObject:
    id: int
    event: Event
    name: str
    uuid: str
    timestamp: int
    deleted: bool = False


@dataclass
class Attribute:
    id: int
    event: Event
    type: str
    value: str
    uuid: str
    timestamp: int
    to_ids: bool = True
    category: str = "Network activity"
    comment: str = ""
    deleted: bool = False
    object: MispObject | None = None
    object_relation: str | None = None
    first_seen: str | None = None
    last_seen: str | None = None
    tags: list[Tag] = field(default_factory=list)

    @property
    def halves(self) -> list[str]:
        """What MISP keeps as value1 and value2."""
        return self.value.split("|", 1) if "|" in self.type else [self.value]


@dataclass
class Sighting:
    id: int
    attribute: Attribute
    type: str
    source: str
    date_sighting: int
    org: Org
    uuid: str

    def shown(self) -> Json:
        return {
            "id": str(self.id),
            "attribute_id": str(self.attribute.id),
            "event_id": str(self.attribute.event.id),
            "org_id": str(self.org.id),
            "date_sighting": str(self.date_sighting),
            "uuid": self.uuid,
            "source": self.source,
            "type": self.type,
        }


class Misp:
    """What a MISP holds, and what happens to it when somebody works with it.

    `clock` gives the time of every change; a test sets another one to simulate an outage.
    Changes may be made from any thread.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        # Guards all below; the server holds it while it looks for the answer.
        self.lock = threading.RLock()
        self.orgs = [Org(1, "ORGNAME"), Org(2, "OTHERORG")]
        self.events: dict[int, Event] = {}
        self.objects: dict[int, MispObject] = {}
        self.attributes: dict[int, Attribute] = {}
        self.sightings: dict[int, Sighting] = {}
        self.tags: dict[str, Tag] = {}
        # Values that `enforceWarninglist` takes out.
        self.warninglist: set[str] = set()
        self._ids = dict.fromkeys((Event, MispObject, Attribute, Sighting), 0)

    @property
    def now(self) -> int:
        return int(self.clock())

    def _id(self, kind: type) -> int:
        self._ids[kind] += 1
        return self._ids[kind]

    def _edited(self, event: Event) -> None:
        """Any change in an event moves its timestamp and unpublishes it."""
        event.timestamp = self.now
        event.published = False

    # Adding.

    def add_event(
        self,
        info: str,
        *,
        tags: Iterable[str] = (),
        published: bool = False,
        org: Org | None = None,
        threat_level_id: int = 4,
        date: str = "2026-11-24",
        event_uuid: str | None = None,
    ) -> Event:
        with self.lock:
            event = Event(
                self._id(Event),
                info,
                event_uuid or str(uuid.uuid4()),
                org or self.orgs[0],
                date,
                self.now,
                threat_level_id=threat_level_id,
                tags=[self._tag(name) for name in tags],
            )
            self.events[event.id] = event
            if published:
                self.publish(event)
            return event

    def add_object(self, event: Event, name: str) -> MispObject:
        with self.lock:
            added = MispObject(
                self._id(MispObject), event, name, str(uuid.uuid4()), timestamp=self.now
            )
            self.objects[added.id] = added
            self._edited(event)
            return added

    def add_attribute(
        self,
        event: Event,
        kind: str,
        value: str,
        *,
        to_ids: bool = True,
        tags: Iterable[str] = (),
        comment: str = "",
        category: str | None = None,
        in_object: MispObject | None = None,
        relation: str | None = None,
        attribute_uuid: str | None = None,
    ) -> Attribute:
        with self.lock:
            added = Attribute(
                self._id(Attribute),
                event,
                kind,
                value,
                attribute_uuid or str(uuid.uuid4()),
                self.now,
                to_ids=to_ids,
                category=category or _CATEGORIES.get(kind, "Network activity"),
                comment=comment,
                object=in_object,
                object_relation=relation or (kind if in_object else None),
                tags=[self._tag(name) for name in tags],
            )
            self.attributes[added.id] = added
            self._edited(event)
            return added

    # Changing.

    def edit_attribute(self, attribute: Attribute, **changes: Any) -> None:
        """Change fields of an attribute; its UUID stays, its timestamp moves."""
        with self.lock:
            for name, value in changes.items():
                assert hasattr(attribute, name), name
                setattr(attribute, name, value)
            attribute.timestamp = self.now
            self._edited(attribute.event)

    def soft_delete(self, attribute: Attribute, *, sanitise: bool = False) -> None:
        """Delete as MISP does by default; `sanitise` blanks it (a setting of MISP's)."""
        blank = {"type": "comment", "value": "deleted", "category": "Other", "to_ids": False}
        self.edit_attribute(attribute, deleted=True, **(blank if sanitise else {}))

    def undelete(self, attribute: Attribute) -> None:
        self.edit_attribute(attribute, deleted=False)

    def hard_delete(self, attribute: Attribute) -> None:
        """Delete an attribute and its sightings without a trace but the event's timestamp."""
        with self.lock:
            self._forget([attribute])
            self._edited(attribute.event)

    def delete_object(self, found: MispObject) -> None:
        """Soft-delete an object and all that is in it."""
        with self.lock:
            found.deleted, found.timestamp = True, self.now
            for attribute in self.attributes.values():
                if attribute.object is found:
                    self.soft_delete(attribute)

    def delete_event(self, event: Event) -> None:
        with self.lock:
            del self.events[event.id]
            self._forget([a for a in self.attributes.values() if a.event is event])
            self.objects = {i: o for i, o in self.objects.items() if o.event is not event}

    def publish(self, event: Event) -> None:
        """Publish: no timestamp moves but that of the publication."""
        with self.lock:
            event.published = True
            event.publish_timestamp = self.now

    def unpublish(self, event: Event) -> None:
        with self.lock:
            event.published = False
            event.timestamp = self.now

    def edit_event(self, event: Event, **changes: Any) -> None:
        with self.lock:
            for name, value in changes.items():
                assert hasattr(event, name), name
                setattr(event, name, value)
            self._edited(event)

    def tag(self, where: Event | Attribute, name: str) -> None:
        """Attach a tag; that of an event moves no attribute's timestamp."""
        with self.lock:
            if all(tag.name != name for tag in where.tags):
                where.tags.append(self._tag(name))
            self._tagged(where)

    def untag(self, where: Event | Attribute, name: str) -> None:
        with self.lock:
            where.tags = [tag for tag in where.tags if tag.name != name]
            self._tagged(where)

    def add_sighting(
        self,
        attribute: Attribute,
        kind: str = "0",
        source: str = "",
        seen: int | None = None,
        org: Org | None = None,
    ) -> Sighting:
        """Add a sighting; it neither moves a timestamp nor unpublishes. Twice is two."""
        with self.lock:
            org = org or self.orgs[0]
            if kind == "2":  # an organisation has one expiration for an attribute
                self.sightings = {
                    i: s
                    for i, s in self.sightings.items()
                    if not (s.attribute is attribute and s.type == "2" and s.org is org)
                }
            date = self.now if seen is None else seen
            added = Sighting(
                self._id(Sighting), attribute, kind, source, date, org, str(uuid.uuid4())
            )
            self.sightings[added.id] = added
            return added

    def delete_sighting(self, sighting: Sighting) -> None:
        with self.lock:
            del self.sightings[sighting.id]

    def sightings_of(self, attribute: Attribute) -> list[Sighting]:
        with self.lock:
            return [s for s in self.sightings.values() if s.attribute is attribute]

    def _tag(self, name: str) -> Tag:
        return self.tags.setdefault(name, Tag(len(self.tags) + 1, name))

    def _tagged(self, where: Event | Attribute) -> None:
        if isinstance(where, Attribute):
            where.timestamp = self.now
            self._edited(where.event)
        else:
            self._edited(where)

    def _forget(self, gone: Sequence[Attribute]) -> None:
        ids = {attribute.id for attribute in gone}
        self.attributes = {i: a for i, a in self.attributes.items() if i not in ids}
        self.sightings = {i: s for i, s in self.sightings.items() if s.attribute.id not in ids}

    # As JSON.

    def event_json(
        self, event: Event, *, deleted: bool = False, metadata: bool = False, sightings: bool = True
    ) -> Json:
        """Give an event as `events/view`, `events/restSearch` and `misp_json` have it."""
        inside = [
            a for a in self.attributes.values() if a.event is event and (deleted or not a.deleted)
        ]
        shown: Json = {
            "id": str(event.id),
            "orgc_id": str(event.org.id),
            "org_id": "1",
            "date": event.date,
            "threat_level_id": str(event.threat_level_id),
            "info": event.info,
            "published": event.published,
            "uuid": event.uuid,
            "attribute_count": str(len(inside)),
            "analysis": "0",
            "timestamp": str(event.timestamp),
            "distribution": str(event.distribution),
            "proposal_email_lock": False,
            "locked": False,
            "publish_timestamp": str(event.publish_timestamp),
            "sharing_group_id": "0",
            "disable_correlation": False,
            "extends_uuid": "",
            "protected": None,
            "event_creator_email": "admin@admin.test",
            "Org": self.orgs[0].shown(),
            "Orgc": event.org.shown(),
        }
        if not metadata:
            objects = [
                o for o in self.objects.values() if o.event is event and (deleted or not o.deleted)
            ]
            shown["Attribute"] = [
                self._attribute_of_event(a, sightings) for a in inside if a.object is None
            ]
            shown["ShadowAttribute"] = []
            shown["RelatedEvent"] = []
            shown["Galaxy"] = []
            shown["Object"] = [
                {
                    "id": str(o.id),
                    "name": o.name,
                    "meta-category": "network",
                    "description": "",
                    "template_uuid": "43b3b146-77eb-4931-b4cc-b66c60f28734",
                    "template_version": "9",
                    "event_id": str(event.id),
                    "uuid": o.uuid,
                    "timestamp": str(o.timestamp),
                    "distribution": "5",
                    "sharing_group_id": "0",
                    "comment": "",
                    "deleted": o.deleted,
                    "first_seen": None,
                    "last_seen": None,
                    "ObjectReference": [],
                    "Attribute": [
                        self._attribute_of_event(a, sightings) for a in inside if a.object is o
                    ],
                }
                for o in objects
            ]
            shown["EventReport"] = []
            shown["CryptographicKey"] = []
        if event.tags:
            shown["Tag"] = [tag.full() for tag in event.tags]
        return shown

    def _attribute_of_event(self, attribute: Attribute, sightings: bool) -> Json:
        shown = {
            "id": str(attribute.id),
            "type": attribute.type,
            "category": attribute.category,
            "to_ids": attribute.to_ids,
            "uuid": attribute.uuid,
            "event_id": str(attribute.event.id),
            "distribution": "5",
            "timestamp": str(attribute.timestamp),
            "comment": attribute.comment,
            "sharing_group_id": "0",
            "deleted": attribute.deleted,
            "disable_correlation": False,
            "object_id": str(attribute.object.id) if attribute.object else "0",
            "object_relation": attribute.object_relation,
            "first_seen": attribute.first_seen,
            "last_seen": attribute.last_seen,
            "value": attribute.value,
            "Galaxy": [],
            "ShadowAttribute": [],
        }
        if attribute.tags:
            shown["Tag"] = [tag.full() for tag in attribute.tags]
        if sightings and (seen := self.sightings_of(attribute)):
            shown["Sighting"] = [
                {
                    **s.shown(),
                    "attribute_uuid": attribute.uuid,
                    "Organisation": _organisation(s.org),
                }
                for s in seen
            ]
        return shown

    def attribute_json(
        self,
        attribute: Attribute,
        *,
        context: bool = False,
        event_tags: bool = False,
        event_uuid: bool = False,
    ) -> Json:
        """Give an attribute as `attributes/restSearch` has it."""
        event = attribute.event
        shown: Json = {
            "id": str(attribute.id),
            "event_id": str(event.id),
            "object_id": str(attribute.object.id) if attribute.object else "0",
            "object_relation": attribute.object_relation,
            "category": attribute.category,
            "type": attribute.type,
            "to_ids": attribute.to_ids,
            "uuid": attribute.uuid,
            "timestamp": str(attribute.timestamp),
            "distribution": "5",
            "sharing_group_id": "0",
            "comment": attribute.comment,
            "deleted": attribute.deleted,
            "disable_correlation": False,
            "first_seen": attribute.first_seen,
            "last_seen": attribute.last_seen,
            "value": attribute.value,
        }
        if event_uuid:
            shown["event_uuid"] = event.uuid
        if context:
            shown["Event"] = {
                "id": str(event.id),
                "orgc_id": str(event.org.id),
                "org_id": "1",
                "date": event.date,
                "threat_level_id": str(event.threat_level_id),
                "info": event.info,
                "published": event.published,
                "uuid": event.uuid,
                "analysis": "0",
                "timestamp": str(event.timestamp),
                "distribution": str(event.distribution),
                "publish_timestamp": str(event.publish_timestamp),
                "sharing_group_id": "0",
                "extends_uuid": "",
                "Tag": [tag.brief() for tag in event.tags],
                "Orgc": event.org.shown(),
            }
        else:
            shown["Event"] = {
                "org_id": "1",
                "distribution": str(event.distribution),
                "publish_timestamp": str(event.publish_timestamp),
                "id": str(event.id),
                "info": event.info,
                "orgc_id": str(event.org.id),
                "uuid": event.uuid,
            }
        tags = [tag.brief() for tag in attribute.tags]
        if event_tags:
            tags += [tag.brief(inherited=True) for tag in event.tags if tag not in attribute.tags]
        if tags:
            shown["Tag"] = tags
        return shown

    def sighting_json(
        self, sighting: Sighting, *, attribute: bool = False, event: bool = False
    ) -> Json:
        """Give a sighting as `sightings/restSearch` has it."""
        of = sighting.attribute
        shown = {
            **sighting.shown(),
            "value": of.value,
            "Organisation": _organisation(sighting.org),
        }
        if attribute:
            shown["Attribute"] = {
                "id": str(of.id),
                "uuid": of.uuid,
                "type": of.type,
                "category": of.category,
                "to_ids": of.to_ids,
                "value": of.value,
            }
        if event:
            shown["Event"] = {
                "id": str(of.event.id),
                "uuid": of.event.uuid,
                "orgc_id": str(of.event.org.id),
                "org_id": "1",
                "info": of.event.info,
                "Orgc": {"name": of.event.org.name},
            }
        return shown


def _organisation(org: Org) -> Json:
    return {"id": str(org.id), "uuid": org.uuid, "name": org.name}


# The filters of restSearch.


def _many(value: Any) -> list[Any]:
    """Give the alternatives of a filter: a list, or one string with "||" between them."""
    if isinstance(value, str) and "||" in value:
        return value.split("||")
    return value if isinstance(value, list) else [value]


def _matches(wanted: Any, found: Iterable[str]) -> bool:
    """Say whether one of `found` is among what a filter asks for; "!" in front excludes."""
    have = {str(each).lower() for each in found}
    if isinstance(wanted, dict):
        yes = [str(each) for each in wanted.get("OR", [])]
        all_of = [str(each) for each in wanted.get("AND", [])]
        no = [str(each) for each in wanted.get("NOT", [])]
    else:
        given = [str(each) for each in _many(wanted)]
        yes = [each for each in given if not each.startswith("!")]
        all_of, no = [], [each[1:] for each in given if each.startswith("!")]
    return (
        (not yes or any(each.lower() in have for each in yes))
        and all(each.lower() in have for each in all_of)
        and not any(each.lower() in have for each in no)
    )


def _bool(value: Any) -> bool:
    return value not in (0, "0", False, None, "", "false")


class _Times:
    """Points in time as restSearch takes them: an epoch, "1h", "7d", or two of these."""

    def __init__(self, now: int) -> None:
        self._now = now

    def within(self, wanted: Any, found: int) -> bool:
        if isinstance(wanted, list):
            first, last = sorted(self._point(each) for each in wanted)
            return (first == 0 or found >= first) and found <= last
        return found >= self._point(wanted)

    def _point(self, given: Any) -> int:
        with contextlib.suppress(TypeError, ValueError):
            return int(float(given))
        units = {"d": 86_400, "h": 3600, "m": 60, "s": 1}
        found = re.fullmatch(r"(\d+)([dhms])", str(given))
        # What MISP cannot read is a second from now: nothing is found, and nobody is told.
        return self._now - int(found[1]) * units[found[2]] if found else self._now + 1


# The server.


class Refused(Exception):
    """An answer with a status of 4xx or 5xx in MISP's form."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        self.message = message
        super().__init__(status, message)


@dataclass
class Fault:
    """Something that goes wrong for requests to paths that begin with `path`.

    A request is acted upon, unless there is a `status`: after the delay, or with `done` before.
    """

    path: str
    #: How often it still happens; None: until it is over.
    times: int | None = None
    #: Answer with this status …
    status: int | None = None
    #: … and this body: JSON, or text that no MISP would send.
    body: Json | str | None = None
    #: … and, for a status that redirects, to this address.
    location: str = ""
    #: The request is acted upon before anything else, and whatever the answer.
    done: bool = False
    #: Seconds that pass; the end of the fault ends them too.
    delay: float = 0.0
    #: The connection ends after so many bytes of the answer.
    cut_after: int | None = None
    #: Seconds between two bytes of the answer.
    drip: float = 0.0
    #: How often it has happened.
    seen: int = 0
    #: Set when the delay, if any, is to end.
    over: threading.Event = field(default_factory=threading.Event)


class MispServer:
    """The REST API of a `Misp` on a free port of the loopback interface."""

    def __init__(self, misp: Misp | None = None, *, key: str = "k" * 40) -> None:
        self.misp = misp or Misp()
        # What each key may do.
        self.keys: dict[str, str] = {key: ADMIN, "r" * 40: READ_ONLY}
        self.key = key
        self.read_only_key = "r" * 40
        self.version = "2.5.1"
        # Every request: method, path, body. Append only.
        self.requests: list[tuple[str, str, Json]] = []
        # The header Authorization of each request that was answered. Append only.
        self.authorizations: list[str] = []
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._port = 0
        self._httpd: _Httpd | None = None
        self.up()

    def __enter__(self) -> MispServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def up(self) -> None:
        """Listen, on the same port as before."""
        if self._httpd is None:
            self._httpd = _Httpd(self._port, self)
            self._port = self._httpd.server_address[1]

    def speak_tls(self, context: ssl.SSLContext) -> None:
        """Answer with TLS from now on."""
        assert self._httpd is not None
        self._httpd.socket = context.wrap_socket(
            self._httpd.socket, server_side=True, do_handshake_on_connect=False
        )

    def down(self) -> None:
        """Stop listening and cut all connections."""
        if self._httpd is not None:
            self._httpd.end()
            self._httpd = None

    def close(self) -> None:
        with self._lock:
            for fault in self._faults:
                fault.over.set()
        self.down()

    def expire_key(self, key: str | None = None) -> None:
        del self.keys[key or self.key]

    def renew_key(self, key: str | None = None) -> None:
        self.keys[key or self.key] = ADMIN

    @contextlib.contextmanager
    def fault(self, path: str = "/", **what: Any) -> Iterator[Fault]:
        """Let requests to `path` and below go wrong, for the first fault that fits, until then."""
        fault = Fault(path, **what)
        with self._lock:
            self._faults.append(fault)
        try:
            yield fault
        finally:
            with self._lock:
                self._faults.remove(fault)
            fault.over.set()

    def paths(self) -> list[str]:
        """Give the paths of all requests so far."""
        return [path for _, path, _ in self.requests]

    def take_fault(self, path: str) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if path.startswith(fault.path) and fault.times != 0:
                    fault.seen += 1
                    if fault.times is not None:
                        fault.times -= 1
                    return fault
        return None

    # Routes.

    def answer(self, method: str, path: str, key: str, body: Json) -> tuple[Json, dict[str, str]]:
        """Give the JSON and the headers of an answer; raises `Refused`."""
        if key not in self.keys:
            raise Refused(
                403,
                "Authentication failed. Please make sure you pass the API key of an API enabled"
                " user along in the Authorization header.",
            )
        body = body.get("request", body)
        with self.misp.lock:
            if path == "/servers/getVersion":
                return self._version(), {}
            if path == "/users/view/me":
                return self._me(key), {}
            if path == "/attributes/describeTypes.json":
                return {"result": _DESCRIBE_TYPES}, {}
            if path == "/attributes/restSearch":
                return self._search_attributes(body)
            if path == "/events/restSearch":
                return self._search_events(body)
            if found := re.fullmatch(r"/events/view/([^/]+)((?:/\w+:\w+)*)", path):
                return self._view_event(found[1], found[2], body), {}
            if found := re.fullmatch(r"/attributes/view/([^/]+)", path):
                return self._view_attribute(found[1]), {}
            if found := re.fullmatch(r"/sightings/add(?:/([^/]+))?", path):
                if self.keys[key] == READ_ONLY:
                    raise Refused(403, "You do not have permission to use this functionality.")
                return self._add_sighting(found[1], body), {}
            if found := re.fullmatch(r"/sightings/restSearch(?:/(\w+))?", path):
                return self._search_sightings(found[1], body)
        raise Refused(404, f"Controller for {method} {path} could not be found.")

    def _version(self) -> Json:
        return {
            "version": self.version,
            "pymisp_recommended_version": self.version,
            "perm_sync": True,
            "perm_sighting": True,
            "perm_galaxy_editor": True,
            "perm_analyst_data": True,
            "uuid": "5f2a8d1e-7c3b-4e9a-b6d4-1f0c2a3b4c5d",
            "request_encoding": ["gzip"],
            "filter_sightings": True,
        }

    def _me(self, key: str) -> Json:
        admin = self.keys[key] == ADMIN
        return {
            "User": {"id": "1", "org_id": "1", "email": "admin@admin.test", "role_id": "1"},
            "Role": {"id": "1", "name": self.keys[key], "perm_add": admin, "perm_sighting": admin},
            "UserSetting": [],
        }

    def _search_attributes(self, query: Json) -> tuple[Json, dict[str, str]]:
        found = [a for a in self.misp.attributes.values() if self._wanted(a, query)]
        page, limited = _page(found, query)
        if _bool(query.get("enforceWarninglist")):  # after the page was counted
            page = [a for a in page if not self.misp.warninglist.intersection(a.halves)]
        answer = [
            self.misp.attribute_json(
                attribute,
                context=_bool(query.get("includeContext")),
                event_tags=_bool(query.get("includeEventTags")),
                event_uuid=_bool(query.get("includeEventUuid")),
            )
            for attribute in page
        ]
        return {"response": {"Attribute": answer}}, _search_headers(len(page) + limited)

    def _wanted(self, attribute: Attribute, query: Json) -> bool:
        event, times = attribute.event, _Times(self.misp.now)
        asked = query.get("deleted", 0)
        deleted = [_bool(each) for each in _many(0 if asked is None else asked)]
        tests: dict[str, Callable[[Any], bool]] = {
            "timestamp": lambda value: times.within(value, attribute.timestamp),
            "to_ids": lambda value: attribute.to_ids == _bool(value),
            "type": lambda value: _matches(value, [attribute.type]),
            "category": lambda value: _matches(value, [attribute.category]),
            "value": lambda value: _matches(value, [*attribute.halves, attribute.value]),
            "uuid": lambda value: _matches(value, [attribute.uuid]),
            "tags": lambda value: _matches(
                value, [tag.name for tag in [*attribute.tags, *event.tags]]
            ),
        }
        return (
            attribute.deleted in deleted
            and self._event_wanted(event, {k: v for k, v in query.items() if k not in tests})
            and all(
                test(query[name]) for name, test in tests.items() if query.get(name) is not None
            )
        )

    def _event_wanted(self, event: Event, query: Json) -> bool:
        times = _Times(self.misp.now)
        tests: dict[str, Callable[[Any], bool]] = {
            "timestamp": lambda value: times.within(value, event.timestamp),
            "publish_timestamp": lambda value: times.within(value, event.publish_timestamp),
            "last": lambda value: times.within(value, event.publish_timestamp),
            "published": lambda value: event.published == _bool(value),
            "eventid": lambda value: _matches(value, [str(event.id), event.uuid]),
            "uuid": lambda value: _matches(value, [event.uuid]),
            "org": lambda value: _matches(
                value, [str(event.org.id), event.org.name, event.org.uuid]
            ),
            "tags": lambda value: _matches(value, [tag.name for tag in event.tags]),
            "from": lambda value: event.date >= str(value),
            "to": lambda value: event.date <= str(value),
        }
        return all(test(query[name]) for name, test in tests.items() if query.get(name) is not None)

    def _search_events(self, query: Json) -> tuple[Json, dict[str, str]]:
        found = [e for e in self.misp.events.values() if self._event_wanted(e, query)]
        page, limited = _page(found, query)
        metadata = _bool(query.get("metadata"))
        answer = [{"Event": self.misp.event_json(e, metadata=metadata)} for e in page]
        return {"response": answer}, _search_headers(len(page) + limited)

    def _view_event(self, which: str, named: str, body: Json) -> Json:
        for event in self.misp.events.values():
            if which in (str(event.id), event.uuid):
                deleted = any(_bool(each) for each in _many(body.get("deleted", 0)))
                sightings = "/noSightings:1" not in named
                return {"Event": self.misp.event_json(event, deleted=deleted, sightings=sightings)}
        raise Refused(404, "Invalid event")

    def _view_attribute(self, which: str) -> Json:
        for attribute in self.misp.attributes.values():
            if which in (str(attribute.id), attribute.uuid) and not attribute.deleted:
                return {"Attribute": self.misp.attribute_json(attribute)}
        raise Refused(405, "Invalid attribute")

    def _add_sighting(self, which: str | None, body: Json) -> Json:
        body = body.get("Sighting", body)
        kind, source = str(body.get("type", "0")), str(body.get("source", "")).strip()
        if kind not in ("0", "1", "2"):
            return _not_added("Invalid type, please change it before you POST 1000000 sightings.")
        if len(source) > 255:
            raise Refused(500, "An Internal Error Has Occurred.")
        which = which or body.get("uuid") or body.get("id")
        values = _many(body.get("values") or body.get("value") or [])
        if which:
            found = [a for a in self.misp.attributes.values() if str(which) in (str(a.id), a.uuid)]
        elif values:
            found = [a for a in self.misp.attributes.values() if set(values) & set(a.halves)]
            found = [
                a for a in found if self._wanted(a, body.get("filters") or {"deleted": [0, 1]})
            ]
        else:
            return _not_added("No valid attributes found.")
        if not found:
            return _not_added("No valid attributes found that match the criteria.")
        seen = int(float(body["timestamp"])) if body.get("timestamp") is not None else None
        added = [self.misp.add_sighting(a, kind, source, seen) for a in found]
        return {"Sighting": added[-1].shown()}

    def _search_sightings(self, context: str | None, query: Json) -> tuple[Json, dict[str, str]]:
        if context not in (None, "attribute", "event"):
            raise Refused(400, f"Invalid context {context}.")
        if context and query.get("id") is None and query.get("uuid") is None:
            raise Refused(400, "An ID or UUID must be provided if the context is set.")
        for each in _many(query.get("id") or []):
            if not isinstance(each, int):
                raise Refused(400, f"Invalid ID `{each}` provided.")
        if query.get("from") is not None and query.get("to") is not None:
            span: Any = [query["from"], query["to"]]
        else:  # one end alone is ignored
            span = query.get("last", "30d")
        times = _Times(self.misp.now)
        tests: dict[str, Callable[[Any, Sighting], bool]] = {
            "type": lambda value, s: _matches(value, [s.type]),
            "source": lambda value, s: s.source == value,
            "org_id": lambda value, s: _matches(value, [str(s.org.id), s.org.uuid]),
        }
        if context == "attribute":
            tests["id"] = lambda value, s: s.attribute.id in _many(value)
            tests["uuid"] = lambda value, s: s.attribute.uuid in _many(value)
        elif context == "event":
            tests["id"] = lambda value, s: s.attribute.event.id in _many(value)
            tests["uuid"] = lambda value, s: s.attribute.event.uuid in _many(value)
        found = [
            s
            for s in self.misp.sightings.values()
            if times.within(span, s.date_sighting)
            and all(test(query[k], s) for k, test in tests.items() if query.get(k) is not None)
        ]
        answer = [
            {
                "Sighting": self.misp.sighting_json(
                    s,
                    attribute=_bool(query.get("includeAttribute")),
                    event=_bool(query.get("includeEvent")),
                )
            }
            for s in found
        ]
        return {"response": answer}, _search_headers(0)


_DESCRIBE_TYPES: Json = {
    "sane_defaults": {},
    "types": [],
    "categories": [],
    "category_type_mappings": {},
}


def _not_added(reason: str) -> Json:
    return {"message": f"Could not add the Sighting. Reason: {reason}"}


def _page(found: list[Any], query: Json) -> tuple[list[Any], int]:
    """Give a page, and 1 if a limit was asked for; `page` alone means nothing to MISP."""
    limit = int(query.get("limit") or 0)
    if not limit:
        return found, 0
    first = (int(query.get("page") or 1) - 1) * limit
    return found[first : first + limit], 1


def _search_headers(count: int) -> dict[str, str]:
    return {
        "X-Result-Count": str(count),
        "X-Export-Module-Used": "json",
        "X-Response-Format": "json",
        "X-Skipped-Elements-Count": "0",
    }


class _Httpd(ThreadingHTTPServer):
    """Serves in threads of its own until `end`."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int, misp: MispServer) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.misp = misp
        # Open connections, so that they can be cut; guarded by the lock.
        self._connections: set[socket.socket] = set()
        self._connections_lock = threading.Lock()
        self._thread = threading.Thread(
            target=self.serve_forever, args=(0.02,), name="misp", daemon=True
        )
        self._thread.start()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._connections_lock:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._connections_lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients go away in the middle, as tests want them to."""

    def end(self) -> None:
        self.shutdown()
        self._thread.join()
        self.socket.close()
        with self._connections_lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body go out one after the other
    server: _Httpd

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        misp = self.server.misp
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or b"{}")
        misp.requests.append((self.command, self.path, body))
        fault = misp.take_fault(self.path)
        if fault is None:
            self._send(*self._answer(body))
            return
        if fault.done:
            answer = self._answer(body)
            fault.over.wait(fault.delay)
        else:
            fault.over.wait(fault.delay)
            # While it waited, the test may have ended.
            answer = (200, b"", {}) if fault.status else self._answer(body)
        status, content, headers = answer
        if fault.status:
            status, headers = fault.status, {"Location": fault.location}
            content = self._fault_content(fault, headers)
        self._send(status, content, headers, fault)

    def _fault_content(self, fault: Fault, headers: dict[str, str]) -> bytes:
        if isinstance(fault.body, str):
            headers["Content-Type"] = "text/html; charset=UTF-8"
            return fault.body.encode()
        text = "An Internal Error Has Occurred."
        default = {"name": text, "message": text, "url": self.path}
        return json.dumps(fault.body or default).encode()

    def _answer(self, body: Json) -> tuple[int, bytes, dict[str, str]]:
        key = self.headers.get("X-MISP-AUTH") or self.headers.get("Authorization") or ""
        misp = self.server.misp
        misp.authorizations.append(self.headers.get("Authorization") or "")
        try:
            answer, headers = misp.answer(self.command, self.path, key, body)
        except Refused as refused:
            text = refused.message
            refusal = {"name": text, "message": text, "url": self.path}
            return refused.status, json.dumps(refusal).encode(), {}
        return 200, json.dumps(answer).encode(), headers

    def _send(
        self, status: int, content: bytes, headers: dict[str, str], fault: Fault | None = None
    ) -> None:
        self.send_response(status)
        if "Content-Type" not in headers:
            self.send_header("Content-Type", "application/json; charset=UTF-8")
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name, value)
        if fault is not None and fault.cut_after == 0:  # not even a status line
            self._headers_buffer: list[bytes] = []
            self.close_connection = True
            return
        self.end_headers()
        if fault is not None and fault.cut_after:
            self.wfile.write(content[: fault.cut_after])
            self.close_connection = True
        elif fault is not None and fault.drip:
            for each in content:
                self.wfile.write(bytes((each,)))
                fault.over.wait(fault.drip)
        else:
            self.wfile.write(content)
