"""The files in which CURVE keys stand: what a client has, and what the bus knows of it.

Both are YAML. A client's own file is secret::

    public_key: "…"
    secret_key: "…"
    server_key: "…"     # the bus's public key

The bus has a directory with a file per client, NAME.yaml; they hold no secret::

    public_key: "…"
    read: [stix2/]      # prefixes of the topics it may subscribe to
    write: [stix2/]     # prefixes of the topics it may publish

Keys are those of CurveZMQ (rfc.zeromq.org/spec/26) in Z85 (rfc.zeromq.org/spec/32): 40 characters.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, TypeVar

import msgspec

from threatbus.config import Secret, check_section, rule
from threatbus.errors import ConfigError, InvalidConfig
from threatbus.messages import STIX_PREFIX

#: What the name of a client may be; it is the name of its files, too.
is_name: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}").fullmatch
#: Ending of the bus's files on its clients.
CLIENT_SUFFIX: Final = ".yaml"

_Z85: Final = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")

PublicKey = Annotated[
    str, msgspec.Meta(pattern=rf"^{_Z85.pattern}$", description="a key of 40 characters")
]
Topics = tuple[Annotated[str, msgspec.Meta(max_length=1024)], ...]
FileT = TypeVar("FileT", bound=msgspec.Struct)


class ClientKeys(msgspec.Struct, frozen=True, kw_only=True):
    """What a client has: who it is, and whom it trusts to be the bus."""

    public_key: PublicKey
    secret_key: Secret
    server_key: PublicKey

    @rule
    def secret_key_is_a_key(self) -> None:
        """Raise `ConfigError` for text that is none."""
        if not is_key(self.secret_key):
            raise ConfigError("secret_key", "no CURVE key", "a key of 40 characters")

    def __repr__(self) -> str:
        return f"<keys of client {self.public_key}>"


class ClientRights(msgspec.Struct, frozen=True, kw_only=True):
    """What the bus knows of a client: its key, and what it may do."""

    public_key: PublicKey
    read: Topics = (STIX_PREFIX,)
    """Prefixes of the topics that it may subscribe to."""
    write: Topics = (STIX_PREFIX,)
    """Prefixes of the topics that it may publish."""


def is_key(text: str) -> bool:
    """Say whether `text` has the form of a key."""
    return _Z85.fullmatch(text) is not None


def read_file(path: Path, schema: type[FileT]) -> FileT:
    """Read one of these files; raises `InvalidConfig` naming it, and `OSError`."""
    from threatbus.config import yaml12  # noqa: PLC0415 (30 ms, for those who have keys)

    try:
        content = yaml12.parse(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError:
        raise InvalidConfig([ConfigError(str(path), "not UTF-8", "YAML in UTF-8")]) from None
    found, errors = check_section(content, schema, str(path))
    if found is None:
        raise InvalidConfig(errors)
    return found


def write_secret(path: Path, text: str) -> None:
    """Write a new file that its owner alone may read; `FileExistsError` if there is one."""
    _write_new(path, text, 0o600)


def write_public(path: Path, text: str) -> None:
    """Write a new file that holds no secret; `FileExistsError` if there is one."""
    _write_new(path, text, 0o644)


def client_file(keys: ClientKeys, name: str) -> str:
    """Give the content of a client's own file."""
    return (
        f"# Secret: whoever has this file is the client {name} to the bus.\n"
        f'public_key: "{keys.public_key}"\n'
        f'secret_key: "{keys.secret_key}"\n'
        "# The bus's public key.\n"
        f'server_key: "{keys.server_key}"\n'
    )


def rights_file(rights: ClientRights, name: str) -> str:
    """Give the content of the bus's file on a client."""
    return (
        f"# The client {name}: its public key, and what it may read and write (prefixes of\n"
        "# topics; [] is nothing). Changes count at once; without this file the client is\n"
        "# refused.\n"
        f'public_key: "{rights.public_key}"\n'
        f"read: {_flow(rights.read)}\n"
        f"write: {_flow(rights.write)}\n"
    )


def _flow(topics: Sequence[str]) -> str:
    """Give a list as YAML in one line; JSON is YAML."""
    return msgspec.json.encode(topics).decode()


def _write_new(path: Path, text: str, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 (it is a descriptor)
        file.write(text)
