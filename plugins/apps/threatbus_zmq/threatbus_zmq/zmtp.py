"""ZMTP, the protocol of ZeroMQ's connections, as the side that publishes speaks it; no I/O.

Source: rfc.zeromq.org/spec/37 (ZMTP 3.1); peers of version 3.0 are served, too. A `Session` is one
connection: bytes that have come go in, subscriptions and bytes to be sent come out.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from itertools import compress
from typing import Final, NamedTuple, Protocol

from threatbus_zmq.mapping import P2P_LENGTH

#: Bytes of the greeting with which both sides begin.
GREETING_BYTES: Final = 64
#: Bytes of a frame that a subscriber sends: a topic of a few letters, or a step of a handshake. A
#: longer one ends the connection.
MAX_UPSTREAM_BYTES: Final = 1024

_SIGNATURE: Final = b"\xff" + bytes(8) + b"\x7f"
_VERSION: Final = b"\x03\x01"
_OLDEST_MAJOR: Final = 3
#: Bytes that a peer's ping may hold for its pong.
_MAX_CONTEXT_BYTES: Final = 16
_MECHANISM: Final = slice(12, 32)

# The flags of a frame.
_MORE: Final = 1
_LONG: Final = 2
_COMMAND: Final = 4
_SHORT_FRAME: Final = struct.Struct(">BB")
_LONG_FRAME: Final = struct.Struct(">BQ")
#: The longest body of which one byte can tell the length.
_SHORT_BYTES: Final = 255

_PROPERTY_LENGTH: Final = struct.Struct(">I")
_SUBSCRIBES: Final = b"\x01"
_CANCELS: Final = b"\x00"
# The reason in an ERROR command, with its length in front: ZAP's status for who may not come in.
_REFUSAL: Final = b"\x03400"
#: What may connect to a socket that publishes.
_SUBSCRIBERS: Final = (b"SUB", b"XSUB")


class BrokenProtocol(Exception):
    """The peer does not speak as it should; says in what."""


class Refused(BrokenProtocol):
    """The peer has proved who it is, and may not come in."""


class Change(NamedTuple):
    """A subscriber wants what begins with `prefix`, or no longer does."""

    wanted: bool
    prefix: bytes


class Mechanism(Protocol):
    """How two peers come to terms after the greeting, and how they wrap what follows."""

    name: bytes
    """As the greeting has it."""
    as_server: bool
    """Whether the greeting says that this side is the server."""
    key: str | None
    """The public key (Z85) that the peer has proved to have; None if it was asked for none."""
    ready: bool
    """Whether the handshake is over."""

    def begin(self) -> bytes:
        """Give what is sent right after the greeting."""

    def answer(self, command: bytes) -> bytes:
        """Take the next command of the handshake, and give what is sent upon it.

        Raises `BrokenProtocol` if the peer is not let in.
        """

    def unwrap(self, flags: int, body: bytes) -> tuple[bool, bytes]:
        """Give what is in a frame that has come: whether it is a command, and its bytes."""

    def command(self, body: bytes) -> bytes:
        """Give a command as it is sent."""

    def messages(self, topic: bytes, frames: Frames) -> bytes:
        """Give all messages of `frames` as they are sent, each with `topic` in front."""


class Frames:
    """Messages for several subscribers at once: what each frame holds after its P2P topic.

    That is a kind (type and blank) and a document.
    """

    def __init__(self, kinds: Sequence[bytes], documents: Sequence[bytes]) -> None:
        self._kinds = kinds
        self._documents = documents
        self._between: list[bytes] | None = None

    def __len__(self) -> int:
        return len(self._documents)

    def around(self, topic: bytes) -> bytes:
        """Give all frames in one piece, each with `topic` in front: a copy, and no other work."""
        if self._between is None:
            self._between = self._pieces()
        return topic.join(self._between)

    def _pieces(self) -> list[bytes]:
        """Give what stands before, between and after the topics."""
        pairs = zip(self._kinds, self._documents, strict=True)
        headers = [header(0, P2P_LENGTH + len(kind) + len(document)) for kind, document in pairs]
        headers.append(b"")
        after = headers[1:]
        between = [headers[0]]
        between += map(b"".join, zip(self._kinds, self._documents, after, strict=True))
        return between

    @property
    def bodies(self) -> list[bytes]:
        """What each frame holds after its topic."""
        return list(map(b"".join, zip(self._kinds, self._documents, strict=True)))

    def beginning_with(self, prefixes: Collection[bytes]) -> Frames:
        """Give those of which the body begins with one of `prefixes`."""
        beginnings = tuple(prefixes)
        wanted = [body.startswith(beginnings) for body in self.bodies]
        return Frames(list(compress(self._kinds, wanted)), list(compress(self._documents, wanted)))


@lru_cache(maxsize=4096)
def header(flags: int, size: int) -> bytes:
    """Give what stands before the `size` bytes of a frame."""
    if size <= _SHORT_BYTES:
        return _SHORT_FRAME.pack(flags, size)
    return _LONG_FRAME.pack(flags | _LONG, size)


def command_frame(name: bytes, data: bytes) -> bytes:
    """Give the frame of a command."""
    body = command_body(name, data)
    return header(_COMMAND, len(body)) + body


def command_body(name: bytes, data: bytes) -> bytes:
    """Give what the frame of a command holds."""
    return bytes((len(name),)) + name + data


def split_command(body: bytes) -> tuple[bytes, bytes]:
    """Give name and data of a command."""
    length = body[0] if body else 0
    return body[1 : 1 + length], body[1 + length :]


def metadata() -> bytes:
    """Give what this side says of itself when the handshake ends."""
    kind = b"XPUB"
    name = b"Socket-Type"
    return bytes((len(name),)) + name + _PROPERTY_LENGTH.pack(len(kind)) + kind


def check_metadata(data: bytes) -> None:
    """Raise `BrokenProtocol` if what the peer says of itself is no subscriber's."""
    kind = _properties(data).get(b"socket-type", b"")
    if kind not in _SUBSCRIBERS:
        raise BrokenProtocol(f"a socket of type {_shown(kind)} connects where a SUB should")


def _properties(data: bytes) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    while data:
        name, data = split_command(data)
        if len(data) < _PROPERTY_LENGTH.size:
            raise BrokenProtocol("its properties are cut short")
        (length,) = _PROPERTY_LENGTH.unpack_from(data)
        end = _PROPERTY_LENGTH.size + length
        found[name.lower()], data = data[_PROPERTY_LENGTH.size : end], data[end:]
    return found


def count_unsent(sent_whole: bytes, sent: int) -> int:
    """Count the frames in `sent_whole` of which the last byte is not among the first `sent`."""
    unsent = start = 0
    while start < len(sent_whole):
        flags = sent_whole[start]
        if flags & _LONG:
            _, size = _LONG_FRAME.unpack_from(sent_whole, start)
            start += _LONG_FRAME.size + size
        else:
            start += _SHORT_FRAME.size + sent_whole[start + 1]
        unsent += start > sent
    return unsent


class Null:
    """The mechanism that asks for nothing: each side says what it is, and that is all."""

    name = b"NULL"
    as_server = False

    def __init__(self) -> None:
        self.key: str | None = None
        self.ready = False

    def begin(self) -> bytes:
        """Give what is sent right after the greeting."""
        return command_frame(b"READY", metadata())

    def answer(self, command: bytes) -> bytes:
        """Take the peer's READY; raises `BrokenProtocol`."""
        name, data = split_command(command)
        if name != b"READY":
            raise BrokenProtocol("it sends something else than READY")
        check_metadata(data)
        self.ready = True
        return b""

    def unwrap(self, flags: int, body: bytes) -> tuple[bool, bytes]:
        """Give what is in a frame that has come: whether it is a command, and its bytes."""
        return bool(flags & _COMMAND), body

    def command(self, body: bytes) -> bytes:
        """Give a command as it is sent."""
        return header(_COMMAND, len(body)) + body

    def messages(self, topic: bytes, frames: Frames) -> bytes:
        """Give all messages of `frames` as they are sent, each with `topic` in front."""
        return frames.around(topic)


class Session:
    """One connection of a subscriber, from the greeting on."""

    def __init__(self, mechanism: Mechanism) -> None:
        self._mechanism = mechanism
        self._greeted = False
        self._received = bytearray()
        # What the handshake wants sent, and what is in the peer's last ping that has no answer yet.
        self._handshake = bytearray(_greeting(mechanism))
        self._ping: bytes | None = None

    @property
    def ready(self) -> bool:
        """Whether both sides have come to terms."""
        return self._mechanism.ready

    @property
    def key(self) -> str | None:
        """The public key of the peer; None if it was asked for none."""
        return self._mechanism.key

    def receive(self, data: bytes) -> Iterator[Change]:
        """Take what has come; gives the changes of subscriptions. Raises `BrokenProtocol`."""
        self._received += data
        if not self._greeted and not self._greet():
            return
        for flags, body in self._frames():
            if not self._mechanism.ready:
                if not flags & _COMMAND:
                    raise BrokenProtocol("it sends messages before the handshake is over")
                self._handshake += self._answer(body)
                continue
            is_command, inner = self._mechanism.unwrap(flags, body)
            change = self._on_command(inner) if is_command else _change_of_message(inner)
            if change is not None:
                yield change

    def take_replies(self) -> bytes:
        """Give what is to be sent to the peer, besides messages, once.

        Of several pings that have come since, the last has an answer: so answers never pile up.
        """
        replies = bytes(self._handshake)
        self._handshake.clear()
        if self._ping is not None:
            replies += self._mechanism.command(command_body(b"PONG", self._ping))
            self._ping = None
        return replies

    def messages(self, topic: bytes, frames: Frames) -> bytes:
        """Give all messages of `frames` as they are sent, each with `topic` in front."""
        return self._mechanism.messages(topic, frames)

    def _answer(self, command: bytes) -> bytes:
        try:
            return self._mechanism.answer(command)
        except Refused:
            self._handshake += command_frame(b"ERROR", _REFUSAL)
            raise

    def _greet(self) -> bool:
        """Read the peer's greeting; False if it is not complete yet."""
        received, mechanism = self._received, self._mechanism
        begins = received[:1] in (b"", _SIGNATURE[:1])
        if not begins or received[9:10] not in (b"", _SIGNATURE[9:]):
            raise BrokenProtocol("it does not speak ZeroMQ's protocol")
        if received[10:11] and received[10] < _OLDEST_MAJOR:
            raise BrokenProtocol("its ZeroMQ is older than version 4")
        if len(received) < GREETING_BYTES:
            return False
        name = bytes(received[_MECHANISM]).rstrip(b"\0")
        if name != mechanism.name:
            theirs, ours = _shown(name), mechanism.name.decode()
            raise BrokenProtocol(f"its security mechanism is {theirs}, the bus's {ours}")
        del received[:GREETING_BYTES]
        self._greeted = True
        self._handshake += mechanism.begin()
        return True

    def _frames(self) -> Iterator[tuple[int, bytes]]:
        received = self._received
        while len(received) >= _SHORT_FRAME.size:
            flags = received[0]
            form = _LONG_FRAME if flags & _LONG else _SHORT_FRAME
            if len(received) < form.size:
                return
            _, size = form.unpack_from(received)
            if size > MAX_UPSTREAM_BYTES:
                raise BrokenProtocol(f"it sends a frame of {size} bytes")
            end = form.size + size
            if len(received) < end:
                return
            body = bytes(received[form.size : end])
            del received[:end]
            yield flags, body

    def _on_command(self, body: bytes) -> Change | None:
        name, data = split_command(body)
        if name == b"PING":
            # Two bytes say for how long the peer is content without a ping.
            if len(data) > 2 + _MAX_CONTEXT_BYTES:
                raise BrokenProtocol("it sends a ping that is too long")
            self._ping = data[2:]
            return None
        if name == b"PONG":
            return None
        if name in (b"SUBSCRIBE", b"CANCEL"):
            return Change(name == b"SUBSCRIBE", data)
        raise BrokenProtocol("it sends something else than subscriptions")


def _greeting(mechanism: Mechanism) -> bytes:
    named = mechanism.name.ljust(_MECHANISM.stop - _MECHANISM.start, b"\0")
    known = _SIGNATURE + _VERSION + named + bytes((mechanism.as_server,))
    return known.ljust(GREETING_BYTES, b"\0")


def _shown(name: bytes) -> str:
    """Give what a peer calls something as it may stand in a log: letters, and not many."""
    return repr(name[:20])[2:-1]


def _change_of_message(body: bytes) -> Change:
    """Read a subscription as version 3.0 sends it."""
    kind, prefix = body[:1], body[1:]
    if kind not in (_SUBSCRIBES, _CANCELS):
        raise BrokenProtocol("it sends something else than subscriptions")
    return Change(kind == _SUBSCRIBES, prefix)
