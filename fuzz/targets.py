"""What is fuzzed: each target is one door, and what must hold for any bytes that come to it.

A target's `check` returns for an input that the door takes, and for one that it refuses with the
error that is meant for that. Whatever else it raises is a finding.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from threatbus.border import Border
from threatbus.config import load, read
from threatbus.errors import InvalidConfig, Rejected
from threatbus.hookspecs import APP_GROUP, BACKBONE_GROUP
from threatbus.plugins import installed

CORPUS: Final = Path(__file__).parent.parent / "tests" / "corpus"

Check = Callable[[bytes], None]


@dataclass(frozen=True)
class Target:
    """A door by its name; `make` imports what it needs and gives its `Check`."""

    name: str
    make: Callable[[], Check]

    def seeds(self) -> list[bytes]:
        """Give the inputs of its corpus, in the order of their names."""
        return [path.read_bytes() for path in sorted((CORPUS / self.name).iterdir())]


def _border() -> Check:
    """What the border takes, the library takes for the same; its fast path takes no more."""
    import stix2  # noqa: PLC0415

    border = Border()
    classes = {"stix2/indicator": stix2.v21.Indicator, "stix2/sighting": stix2.v21.Sighting}

    def check(data: bytes) -> None:
        fast = border.recognise((data,))
        try:
            topic = border.topic_of(data)
        except Rejected as error:
            _expect(not fast, "the fast path takes what the border rejects")
            _expect_a_line(error.reason)
            return
        _expect(not fast or fast == [topic], "the fast path takes it for something else")
        parsed = stix2.parse(data, allow_custom=True)
        _expect(isinstance(parsed, classes[topic]), "the library takes it for something else")

    return check


def _zmq_sub() -> Check:
    """What is published becomes messages or rejects with a reason; recognised means read alike."""
    from threatbus_zmq.mapping import FrameReader, written_topic  # noqa: PLC0415

    reader = FrameReader(Border())

    def check(data: bytes) -> None:
        recognised = reader.recognise([data])
        messages, rejected = reader.read(data)
        alike = [(m.topic, m.data) for m in recognised] == [(m.topic, m.data) for m in messages]
        _expect(not recognised or alike, "recognised and read differ")
        for message in messages:
            written_topic(message)
        for reason, _ in rejected:
            _expect_a_line(reason)

    return check


def _zmq_manage() -> Check:
    """A request is one of three, or is refused with a reply that can be written."""
    from threatbus_zmq.mapping import BadRequest, decode_request, encode_reply  # noqa: PLC0415

    def check(data: bytes) -> None:
        try:
            decode_request(data)
        except BadRequest as error:
            _expect(error.status in ("error", "unknown request"), "a status that nobody knows")
            encode_reply(error.status, reason=error.reason)

    return check


def _zmq_wire() -> Check:
    """What a peer sends is messages or ends its connection, however it is cut up, at each door."""
    from threatbus_zmq import publisher, requests, zmtp  # noqa: PLC0415
    from threatbus_zmq.curve import Curve, ServerKeys  # noqa: PLC0415

    keys = ServerKeys("JTKVSB%%)wK0E.X)V>+}o?pNmC{O&4W4b!Ni{Lh6")
    sub = zmtp.Role("SUB", ("PUB", "XPUB"), 1024, begins_with=zmtp.SUBSCRIBES)
    roles = (publisher.ROLE, sub, requests.ROLE)

    def said(
        mechanism: zmtp.Mechanism, role: zmtp.Role, pieces: Iterable[bytes]
    ) -> tuple[list[list[bytes]], str, bytes]:
        session = zmtp.Session(mechanism, role)
        found: list[list[bytes]] = []
        answers = b""
        reason = ""
        try:
            for piece in pieces:
                session.receive(piece)
                while session.unread:
                    found += session.read_messages(7)
                answers += session.take_replies()
        except zmtp.BrokenProtocol as error:
            reason = str(error)
            _expect_a_line(reason)
        return found, reason, answers + session.take_replies()

    def check_role(role: zmtp.Role, data: bytes) -> None:
        singly = (data[at : at + 1] for at in range(len(data)))
        whole, alone = said(zmtp.Null(role), role, [data]), said(zmtp.Null(role), role, singly)
        # Of pings that come together, the last alone is answered.
        _expect(whole[1] == alone[1], "bytes that come singly are refused for something else")
        _expect(whole[0] == alone[0], "bytes that come singly read differently")
        _expect(len(whole[2]) <= 200 + len(data), "the answers are longer than what is answered")
        let_in = said(Curve(keys, role, lambda _: ""), role, [data])[0]
        _expect(not let_in, "a peer without a key is let in")

    def check(data: bytes) -> None:
        for role in roles:
            check_role(role, data[:2000])

    return check


def _misp() -> Check:
    """Messages of MISP are read and mapped, or rejected; what is mapped passes the border."""
    from threatbus_misp.mapping import indicators, model, sightings  # noqa: PLC0415

    border = Border()
    decoders = (
        model.decode_attribute_message,
        model.decode_event_message,
        model.decode_tag_message,
        model.decode_sighting_message,
    )

    def follow(message: Any) -> None:
        match message:
            case model.AttributeMessage():
                attributes: list[Any] = [message.attribute]
            case model.EventMessage(event=model.Event() as event):
                attributes = list(model.members(event))
            case _:
                return
        for attribute in attributes:
            if isinstance(attribute, Rejected):
                _expect_a_line(attribute.reason)
                continue
            try:
                version = indicators.indicator_of(attribute)
            except Rejected as error:
                _expect_a_line(error.reason)
                continue
            # No `Rejected` is expected of it: what we make ourselves is sound.
            _expect_sound(border, version.data)

    def check(data: bytes) -> None:
        for decode in decoders:
            try:
                message = decode(data)
            except Rejected as error:
                _expect_a_line(error.reason)
                continue
            follow(message)
        try:
            sightings.request_of(data)
        except Rejected as error:
            _expect_a_line(error.reason)

    return check


def _zeek_websocket() -> Check:
    """A frame of Zeek's WebSocket is an event of ours, or is refused in words."""
    from threatbus_zeek import events, wire  # noqa: PLC0415
    from threatbus_zeek.mapping import sighting_document  # noqa: PLC0415

    protocol = events.Protocol("Tenzir")
    border = Border()
    now = datetime(2026, 11, 24, tzinfo=UTC)

    def check(data: bytes) -> None:
        try:
            frame = wire.decode_frame(data)
            if not isinstance(frame, wire.Data):
                return
            request = protocol.read(events.unpack(frame.value))
            if isinstance(request, events.Sighting):
                # What Zeek names may be no id of STIX: then the border has the word for it.
                border.topic_of(sighting_document(request, now))
        except Rejected as error:
            _expect_a_line(error.reason)
        except (wire.BadFrame, events.BadEvent) as error:
            _expect_a_line(str(error))

    return check


def _zeek_indicator() -> Check:
    """Whatever the border lets in can be told to a Zeek, or is rejected."""
    from threatbus_zeek.events import Protocol  # noqa: PLC0415
    from threatbus_zeek.mapping import IndicatorReader  # noqa: PLC0415
    from threatbus_zeek.wire import encode_event  # noqa: PLC0415

    border = Border()
    reader = IndicatorReader(reduce_ip_port=True)
    protocol = Protocol("Tenzir")
    now = datetime(2026, 11, 24, tzinfo=UTC)

    def check(data: bytes) -> None:
        try:
            if border.topic_of(data) != "stix2/indicator":
                return
            change = reader.read(data, now)
        except Rejected as error:
            _expect_a_line(error.reason)
            return
        encode_event("stix2/indicator", protocol.batch("stix2/indicatorabcdefghij", 1, [change]))

    return check


def _rabbitmq() -> Check:
    """A body that comes from RabbitMQ is a message or is rejected."""
    from threatbus_rabbitmq.mapping import BodyReader  # noqa: PLC0415

    reader = BodyReader(Border())

    def check(data: bytes) -> None:
        try:
            reader.read(data)
        except Rejected as error:
            _expect_a_line(error.reason)

    return check


def _config() -> Check:
    """A configuration file is read, or refused with one error per key; nothing else."""
    directory = tempfile.TemporaryDirectory(prefix="fuzz-config-")
    path = Path(directory.name, "config.yaml")
    apps, backbones = installed(APP_GROUP), installed(BACKBONE_GROUP)

    def check(data: bytes) -> None:
        assert directory
        path.write_bytes(data)
        try:
            read(load(path, environ={}), apps, backbones)
        except InvalidConfig as error:
            _expect(len(error.errors) > 0, "refused without an error")
            for each in error.errors:
                _expect_a_line(str(each))

    return check


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(what)


def _expect_sound(border: Border, document: bytes) -> None:
    """What a plugin makes itself must pass the border."""
    try:
        border.topic_of(document)
    except Rejected as error:
        raise AssertionError(f"a plugin made {document!r}: {error.reason}") from error


def _expect_a_line(reason: str) -> None:
    _expect(bool(reason) and "\n" not in reason, f"not one line: {reason!r}")
    reason.encode()


TARGETS: Final = {
    target.name: target
    for target in (
        Target("border", _border),
        Target("zmq-sub", _zmq_sub),
        Target("zmq-manage", _zmq_manage),
        Target("zmq-wire", _zmq_wire),
        Target("misp", _misp),
        Target("zeek-websocket", _zeek_websocket),
        Target("zeek-indicator", _zeek_indicator),
        Target("rabbitmq", _rabbitmq),
        Target("config", _config),
    )
}
