"""ZMTP, the protocol of ZeroMQ's connections, as the bus speaks it at its doors; no I/O.

Source: rfc.zeromq.org/spec/37 (ZMTP 3.1); peers of version 3.0 are served, too. A `Session` is one
connection: bytes that have come go in, messages and bytes to be sent come out.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Sequence
from functools import lru_cache
from itertools import compress
from operator import add
from typing import Final, NamedTuple, Protocol

from threatbus_zmq.mapping import P2P_LENGTH

#: Bytes of the greeting with which both sides begin.
GREETING_BYTES: Final = 64
#: Bytes of a step of a handshake, or of a command; a longer one ends the connection.
MAX_COMMAND_BYTES: Final = 1024
#: Frames of one message; more end the connection.
MAX_PARTS: Final = 16

_SIGNATURE: Final = b"\xff" + bytes(8) + b"\x7f"
_VERSION: Final = b"\x03\x01"
_OLDEST_MAJOR: Final = 3
#: Bytes that a peer's ping may hold for its pong.
_MAX_CONTEXT_BYTES: Final = 16
_MECHANISM: Final = slice(12, 32)

# The flags of a frame.
MORE: Final = 1
_LONG: Final = 2
COMMAND: Final = 4
_SHORT_FRAME: Final = struct.Struct(">BB")
_LONG_FRAME: Final = struct.Struct(">BQ")
#: The longest body of which one byte can tell the length.
_SHORT_BYTES: Final = 255

_PROPERTY_LENGTH: Final = struct.Struct(">I")
#: What a message begins with that subscribes, or cancels a subscription; version 3.1 has commands
#: for it, too.
SUBSCRIBES: Final = b"\x01"
CANCELS: Final = b"\x00"
_OF_COMMAND: Final = {b"SUBSCRIBE": SUBSCRIBES, b"CANCEL": CANCELS}
# The reason in an ERROR command, with its length in front: ZAP's status for who may not come in.
_REFUSAL: Final = b"\x03400"


class BrokenProtocol(Exception):
    """The peer does not speak as it should; says in what."""


class Refused(BrokenProtocol):
    """The peer has proved who it is, and may not come in."""


class FrameTooLarge(BrokenProtocol):
    """The peer sends a frame that is larger than what is taken."""


class Role(NamedTuple):
    """What the bus is at one of its doors, and for whom."""

    kind: str
    """The type of its socket."""
    peers: tuple[str, ...]
    """Types of the sockets that may connect; the first is the usual one."""
    max_frame: int
    """Bytes of the largest frame that is taken."""
    begins_with: bytes = b""
    """The message that a peer is sent as soon as both have come to terms; empty for none."""
    takes_subscriptions: bool = False
    """Whether peers subscribe."""


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
    overhead: int
    """Bytes by which a frame is longer than what is wrapped in it."""

    def begin(self) -> bytes:
        """Give what is sent right after the greeting."""

    def answer(self, command: bytes) -> bytes:
        """Take the next command of the handshake, and give what is sent upon it.

        Raises `BrokenProtocol` if the peer is not let in.
        """

    def unwrap(self, flags: int, body: bytes) -> tuple[int, bytes]:
        """Give what is in a frame that has come: its flags (`MORE`, `COMMAND`) and bytes."""

    def message(self, body: bytes, *, more: bool = False) -> bytes:
        """Give a frame of a message as it is sent; `more` of them follow, or it is the last."""

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
        sizes = map(add, map(len, self._kinds), map(len, self._documents))
        headers = list(map(_header_of_delivery, sizes))
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


def header(flags: int, size: int) -> bytes:
    """Give what stands before the `size` bytes of a frame."""
    if size <= _SHORT_BYTES:
        return _SHORT_FRAME.pack(flags, size)
    return _LONG_FRAME.pack(flags | _LONG, size)


@lru_cache(maxsize=4096)
def _header_of_delivery(size: int) -> bytes:
    """Give what stands before a P2P topic and `size` bytes."""
    return header(0, P2P_LENGTH + size)


def command_frame(name: bytes, data: bytes) -> bytes:
    """Give the frame of a command."""
    body = command_body(name, data)
    return header(COMMAND, len(body)) + body


def command_body(name: bytes, data: bytes) -> bytes:
    """Give what the frame of a command holds."""
    return bytes((len(name),)) + name + data


def split_command(body: bytes) -> tuple[bytes, bytes]:
    """Give name and data of a command."""
    length = body[0] if body else 0
    return body[1 : 1 + length], body[1 + length :]


def metadata(role: Role) -> bytes:
    """Give what this side says of itself when the handshake ends."""
    kind, name = role.kind.encode(), b"Socket-Type"
    return bytes((len(name),)) + name + _PROPERTY_LENGTH.pack(len(kind)) + kind


def check_metadata(data: bytes, role: Role) -> None:
    """Raise `BrokenProtocol` if what the peer says of itself is no partner for `role`."""
    kind = _properties(data).get(b"socket-type", b"")
    if kind.decode("latin-1") not in role.peers:
        raise BrokenProtocol(
            f"a socket of type {_shown(kind)} connects where a {role.peers[0]} should"
        )


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
    overhead = 0

    def __init__(self, role: Role) -> None:
        self._role = role
        self.key: str | None = None
        self.ready = False

    def begin(self) -> bytes:
        """Give what is sent right after the greeting."""
        return command_frame(b"READY", metadata(self._role))

    def answer(self, command: bytes) -> bytes:
        """Take the peer's READY; raises `BrokenProtocol`."""
        name, data = split_command(command)
        if name != b"READY":
            raise BrokenProtocol("it sends something else than READY")
        check_metadata(data, self._role)
        self.ready = True
        return b""

    def unwrap(self, flags: int, body: bytes) -> tuple[int, bytes]:
        """Give what is in a frame that has come: its flags and its bytes."""
        return flags, body

    def message(self, body: bytes, *, more: bool = False) -> bytes:
        """Give a frame of a message as it is sent."""
        return header(MORE if more else 0, len(body)) + body

    def command(self, body: bytes) -> bytes:
        """Give a command as it is sent."""
        return header(COMMAND, len(body)) + body

    def messages(self, topic: bytes, frames: Frames) -> bytes:
        """Give all messages of `frames` as they are sent, each with `topic` in front."""
        return frames.around(topic)


class Session:
    """One connection, from the greeting on, at a door where the bus has a certain `role`.

    Take in what has come with `receive`, then `read` until nothing is left `unread`.
    """

    def __init__(self, mechanism: Mechanism, role: Role) -> None:
        self._mechanism = mechanism
        self._role = role
        self._greeted = False
        # What has come and is being read, and up to where it has been.
        self._received = b""
        self._at = 0
        # The beginning of a frame, and how much of it is needed before there is more to be read.
        self._begun = bytearray()
        self._needed = 0
        # The first frames of a message that is not complete.
        self._parts: list[bytes] = []
        self._parts_bytes = 0
        # What was wrong behind what has been read.
        self._broken: BrokenProtocol | None = None
        # What the handshake wants sent, and what is in the peer's last ping that has no answer yet.
        self._handshake = bytearray(_greeting(mechanism))
        self._ping: bytes | None = None
        # Bytes of the largest frame that may come now, and whether the mechanism is to see all.
        self._largest = MAX_COMMAND_BYTES
        self._wrapped = True

    @property
    def ready(self) -> bool:
        """Whether both sides have come to terms."""
        return self._mechanism.ready

    @property
    def key(self) -> str | None:
        """The public key of the peer; None if it was asked for none."""
        return self._mechanism.key

    @property
    def unread(self) -> bool:
        """Whether there may be more to `read` before anything further is to be received."""
        return bool(self._received) or self._broken is not None

    @property
    def begun(self) -> int:
        """Bytes of a message that has not come whole."""
        return len(self._begun) + self._parts_bytes

    def receive(self, data: bytes | memoryview) -> None:
        """Take in what has come; only while nothing is `unread`."""
        if len(self._begun) + len(data) < self._needed:
            self._begun += data
        else:
            self._received = b"".join((self._begun, data))
            self._begun, self._needed = bytearray(), 0

    def read(self, limit: int) -> list[bytes]:
        """Give messages' frames among the next `limit` ones; raises `BrokenProtocol`.

        None with a limit of 0, which goes no further than the handshake. A subscription that came
        as a command looks like one that came as a message. What came before the peer broke the
        protocol is given first, then that is raised.
        """
        return self._read(limit)[0]

    def read_messages(self, limit: int) -> list[list[bytes]]:
        """Give the next messages, each with its frames, of at most `limit` frames; as `read`."""
        found = []
        for body, continued in zip(*self._read(limit), strict=True):
            self._parts.append(body)
            self._parts_bytes += len(body)
            if not continued:
                found.append(self._parts)
                self._parts, self._parts_bytes = [], 0
            elif len(self._parts) >= MAX_PARTS or self._parts_bytes > self._role.max_frame:
                self._broken = BrokenProtocol("it sends a message of too many frames or bytes")
                break
        return found

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

    def message(self, *parts: bytes) -> bytes:
        """Give a message as it is sent."""
        last = len(parts) - 1
        return b"".join(
            self._mechanism.message(part, more=number < last) for number, part in enumerate(parts)
        )

    def messages(self, topic: bytes, frames: Frames) -> bytes:
        """Give all messages of `frames` as they are sent, each with `topic` in front."""
        return self._mechanism.messages(topic, frames)

    # Inside.

    def _read(self, limit: int) -> tuple[list[bytes], list[bool]]:
        """Give frames of messages, and of each whether its message goes on with the next."""
        if self._broken is not None:
            raise self._broken
        bodies: list[bytes] = []
        continued: list[bool] = []
        if not self._received:
            return bodies, continued
        try:
            if self._greeted or self._greet():
                self._split(limit, bodies, continued)
        except BrokenProtocol as error:
            self._received = b""
            self._broken = error
            if not bodies:
                raise
        return bodies, continued

    def _split(self, limit: int, bodies: list[bytes], continued: list[bool]) -> None:
        """Take frames off what has been received, and act on those that are no messages."""
        data, at, end = self._received, self._at, len(self._received)
        needed, left = 0, limit
        while at < end and (left > 0 or not self.ready):
            if not self._wrapped:
                found, at = self._whole_messages(left)
                if found:
                    bodies += found
                    continued += [False] * len(found)
                    left -= len(found)
                    self._at = at
                    continue
            left -= 1
            flags = data[at]
            start = at + (_LONG_FRAME.size if flags & _LONG else _SHORT_FRAME.size)
            if start > end:
                needed = start
                break
            size = _LONG_FRAME.unpack_from(data, at)[1] if flags & _LONG else data[at + 1]
            if size > self._largest or (flags & COMMAND and size > MAX_COMMAND_BYTES):
                raise FrameTooLarge(f"it sends a frame of {size} bytes")
            stop = start + size
            if stop > end:
                needed = stop
                break
            self._at = at = stop
            if (part := self._unwrap(flags, data[start:stop])) is not None:
                bodies.append(part[1])
                continued.append(bool(part[0] & MORE))
        if needed:
            self._begun, self._needed = bytearray(data[at:]), needed - at
        if needed or at == end:
            self._received, self._at = b"", 0

    def _whole_messages(self, limit: int) -> tuple[list[bytes], int]:
        """Give the messages of one frame that come next, and where they end.

        Nearly all that is published passes here, so this does no more than that.
        """
        data, at, end, largest = self._received, self._at, len(self._received), self._largest
        unpack = _LONG_FRAME.unpack_from
        found: list[bytes] = []
        while at < end and len(found) < limit:
            flags = data[at]
            if flags == _LONG and at + _LONG_FRAME.size <= end:
                size = unpack(data, at)[1]
                start = at + _LONG_FRAME.size
            elif flags == 0 and at + 1 < end:
                size = data[at + 1]
                start = at + _SHORT_FRAME.size
            else:
                break
            stop = start + size
            if stop > end or size > largest:
                break
            found.append(data[start:stop])
            at = stop
        return found, at

    def _greet(self) -> bool:
        """Read the peer's greeting; False if it is not complete yet."""
        received, mechanism = self._received, self._mechanism
        begins = received[:1] in (b"", _SIGNATURE[:1])
        if not begins or received[9:10] not in (b"", _SIGNATURE[9:]):
            raise BrokenProtocol("it does not speak ZeroMQ's protocol")
        if received[10:11] and received[10] < _OLDEST_MAJOR:
            raise BrokenProtocol("its ZeroMQ is older than version 4")
        if len(received) < GREETING_BYTES:
            # What is wrong shows early: each further byte is looked at.
            self._begun, self._needed = bytearray(received), len(received) + 1
            self._received = b""
            return False
        name = received[_MECHANISM].rstrip(b"\0")
        if name != mechanism.name:
            theirs, ours = _shown(name), mechanism.name.decode()
            raise BrokenProtocol(f"its security mechanism is {theirs}, the bus's {ours}")
        self._at = GREETING_BYTES
        self._greeted = True
        self._handshake += mechanism.begin()
        return True

    def _unwrap(self, flags: int, body: bytes) -> tuple[int, bytes] | None:
        """Give flags and bytes of what is in a frame, if it is part of a message."""
        if not self._mechanism.ready:
            if not flags & COMMAND:
                raise BrokenProtocol("it sends messages before the handshake is over")
            self._shake_hands(body)
            return None
        flags, body = self._mechanism.unwrap(flags, body)
        if flags & COMMAND:
            message = self._on_command(body)
            return None if message is None else (0, message)
        return flags, body

    def _shake_hands(self, command: bytes) -> None:
        try:
            self._handshake += self._mechanism.answer(command)
        except Refused:
            self._handshake += command_frame(b"ERROR", _REFUSAL)
            raise
        if self._mechanism.ready:
            self._largest = self._role.max_frame + self._mechanism.overhead
            self._wrapped = bool(self._mechanism.overhead)
            if self._role.begins_with:
                self._handshake += self.message(self._role.begins_with)

    def _on_command(self, body: bytes) -> bytes | None:
        """Act on a command; gives the message that a subscription would be."""
        name, data = split_command(body)
        if name == b"PING":
            # Two bytes say for how long the peer is content without a ping.
            if len(data) > 2 + _MAX_CONTEXT_BYTES:
                raise BrokenProtocol("it sends a ping that is too long")
            self._ping = data[2:]
            return None
        if name == b"PONG":
            return None
        if self._role.takes_subscriptions and name in _OF_COMMAND:
            return _OF_COMMAND[name] + data
        raise BrokenProtocol(f"it sends a command that has no place here: {_shown(name)}")


def _greeting(mechanism: Mechanism) -> bytes:
    named = mechanism.name.ljust(_MECHANISM.stop - _MECHANISM.start, b"\0")
    known = _SIGNATURE + _VERSION + named + bytes((mechanism.as_server,))
    return known.ljust(GREETING_BYTES, b"\0")


def _shown(name: bytes) -> str:
    """Give what a peer calls something as it may stand in a log: letters, and not many."""
    return repr(name[:20])[2:-1]
