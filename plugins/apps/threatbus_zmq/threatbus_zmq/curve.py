"""CURVE, the mechanism of ZMTP that encrypts and asks for keys, as its server; no I/O.

Source: rfc.zeromq.org/spec/26 (CurveZMQ). The cryptography is libsodium's, by way of PyNaCl. Names
of keys as there: lower case is secret, capital public; C and S are the permanent keys of client and
server, and with a prime (here `_short`) those that are made anew for each connection.
"""

from __future__ import annotations

import hmac
import secrets
import struct
from collections.abc import Callable
from typing import Final

import nacl.bindings as sodium
from nacl.exceptions import CryptoError
from zmq.utils import z85

from threatbus_zmq.zmtp import (
    COMMAND,
    MORE,
    BrokenProtocol,
    Frames,
    Refused,
    Role,
    check_metadata,
    command_body,
    command_frame,
    header,
    metadata,
    split_command,
)

_KEY_BYTES: Final = 32
_BOX_BYTES: Final = 16  # what a box is longer than what is in it
_NONCE: Final = struct.Struct(">Q")
_LONG_NONCE_BYTES: Final = 16
_COOKIE_BYTES: Final = 96

_VERSION: Final = b"\x01\x00"
# HELLO: version, padding, the client's short-term key, nonce, box of 64 zeros.
_HELLO: Final = struct.Struct(f">2s72s{_KEY_BYTES}s{_NONCE.size}s{64 + _BOX_BYTES}s")
# INITIATE: cookie, nonce, and a box of at least: the client's key, the vouch and its nonce.
_INITIATE: Final = struct.Struct(f">{_COOKIE_BYTES}s{_NONCE.size}s")
_VOUCH: Final = struct.Struct(f">{_KEY_BYTES}s{_LONG_NONCE_BYTES}s{2 * _KEY_BYTES + _BOX_BYTES}s")

_MESSAGE: Final = command_body(b"MESSAGE", b"")
# The flags inside a MESSAGE.
_MORE: Final = 1
_COMMAND: Final = 2


class ServerKeys:
    """The keys of the bus, from the secret one as text (Z85)."""

    def __init__(self, secret_key: str) -> None:
        self.secret = z85.decode(secret_key.encode())
        self.public = sodium.crypto_scalarmult_base(self.secret)

    @property
    def public_text(self) -> str:
        """The public key as text (Z85)."""
        return z85.encode(self.public).decode()


class Curve:
    """The handshake with one client, and then its encryption.

    `objection` says why the client with a certain public key (Z85) is not let in; empty if it is.
    """

    name = b"CURVE"
    as_server = True
    #: Command, number, flags and box around what is sent.
    overhead = len(_MESSAGE) + _NONCE.size + 1 + _BOX_BYTES

    def __init__(self, keys: ServerKeys, role: Role, objection: Callable[[str], str]) -> None:
        self._secret = keys.secret
        self._public = keys.public
        self._role = role
        self._objection = objection
        #: The public key that the client has proved to have, as text (Z85).
        self.key: str | None = None
        self.ready = False
        self._short_secret = b""
        self._client_short = b""
        self._cookie = b""
        # The key of this connection, and the numbers of what was last sent and received.
        self._shared = b""
        self._sent = 0
        self._received = 0
        self._answer_next = self._on_hello

    def begin(self) -> bytes:
        """Give what is sent right after the greeting: nothing, the client comes first."""
        return b""

    def answer(self, command: bytes) -> bytes:
        """Take the client's next step, and give the answer; raises `BrokenProtocol`."""
        try:
            return self._answer_next(command)
        except (CryptoError, struct.error, ValueError):
            raise BrokenProtocol("its handshake was not made for the key of this bus") from None

    def unwrap(self, flags: int, body: bytes) -> tuple[int, bytes]:  # noqa: ARG002
        """Decrypt a frame that has come; raises `BrokenProtocol`."""
        start = len(_MESSAGE) + _NONCE.size
        number = body[len(_MESSAGE) : start]
        if not body.startswith(_MESSAGE) or len(number) < _NONCE.size:
            raise BrokenProtocol("it sends something that is not encrypted")
        self._check_number(number)
        try:
            plain = self._open(body[start:], b"CurveZMQMESSAGEC" + number)
        except (CryptoError, ValueError):
            raise BrokenProtocol("it sends something that cannot be decrypted") from None
        if not plain:
            raise BrokenProtocol("it sends an empty box")
        inner = plain[0]
        more, command = MORE if inner & _MORE else 0, COMMAND if inner & _COMMAND else 0
        return more | command, plain[1:]

    def message(self, body: bytes, *, more: bool = False) -> bytes:
        """Give a frame of a message as it is sent, encrypted."""
        return self._seal(bytes((_MORE if more else 0,)) + body)

    def command(self, body: bytes) -> bytes:
        """Give a command as it is sent, encrypted."""
        return self._seal(bytes((_COMMAND,)) + body)

    def messages(self, topic: bytes, frames: Frames) -> bytes:
        """Give all messages of `frames` as they are sent, each with `topic` in front, encrypted."""
        start = b"\0" + topic
        return b"".join([self._seal(start + body) for body in frames.bodies])

    # The handshake.

    def _on_hello(self, command: bytes) -> bytes:
        name, data = split_command(command)
        version, _, self._client_short, number, box = _HELLO.unpack(data)
        if name != b"HELLO" or version != _VERSION:
            raise BrokenProtocol("it does not begin with HELLO")
        # Whoever cannot know this bus's public key ends here.
        key = sodium.crypto_box_beforenm(self._client_short, self._secret)
        zeros = sodium.crypto_box_open_afternm(box, b"CurveZMQHELLO---" + number, key)
        if zeros != bytes(64):
            raise BrokenProtocol("its HELLO is not signed")
        short_public, self._short_secret = sodium.crypto_box_keypair()
        # Opaque to the client. This side remembers the connection, so it has nothing to say.
        self._cookie = secrets.token_bytes(_COOKIE_BYTES)
        nonce = secrets.token_bytes(_LONG_NONCE_BYTES)
        welcome = sodium.crypto_box_afternm(short_public + self._cookie, b"WELCOME-" + nonce, key)
        self._answer_next = self._on_initiate
        return command_frame(b"WELCOME", nonce + welcome)

    def _on_initiate(self, command: bytes) -> bytes:
        name, data = split_command(command)
        cookie, number = _INITIATE.unpack_from(data)
        if name != b"INITIATE" or not hmac.compare_digest(cookie, self._cookie):
            raise BrokenProtocol("it does not go on with INITIATE")
        self._check_number(number)
        self._shared = sodium.crypto_box_beforenm(self._client_short, self._short_secret)
        plain = self._open(data[_INITIATE.size :], b"CurveZMQINITIATE" + number)
        client, vouch_nonce, vouch = _VOUCH.unpack_from(plain)
        # Only who has the client's secret key can vouch for its short-term key, and to this server.
        vouched = sodium.crypto_box_open_afternm(
            vouch,
            b"VOUCH---" + vouch_nonce,
            sodium.crypto_box_beforenm(client, self._short_secret),
        )
        if not hmac.compare_digest(vouched, self._client_short + self._public):
            raise BrokenProtocol("its key is vouched for by nobody")
        check_metadata(plain[_VOUCH.size :], self._role)
        key = z85.encode(client).decode()
        if why := self._objection(key):
            raise Refused(why)
        self.key = key
        self.ready = True
        self._sent += 1
        number = _NONCE.pack(self._sent)
        ready = self._box(metadata(self._role), b"CurveZMQREADY---" + number)
        return command_frame(b"READY", number + ready)

    def _check_number(self, number: bytes) -> None:
        (found,) = _NONCE.unpack(number)
        if found <= self._received:
            raise BrokenProtocol("it sends something a second time")
        self._received = found

    # Boxes.

    def _seal(self, plain: bytes) -> bytes:
        self._sent += 1
        number = _NONCE.pack(self._sent)
        box = self._box(plain, b"CurveZMQMESSAGES" + number)
        return b"".join((header(0, len(_MESSAGE) + len(number) + len(box)), _MESSAGE, number, box))

    def _box(self, plain: bytes, nonce: bytes) -> bytes:
        return sodium.crypto_box_afternm(plain, nonce, self._shared)

    def _open(self, box: bytes, nonce: bytes) -> bytes:
        return sodium.crypto_box_open_afternm(box, nonce, self._shared)
