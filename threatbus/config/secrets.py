"""Files that secrets are read from: ``password_file`` in the place of ``password``.

A schema marks a secret as `Secret`; the key with ``_file`` after it is then known as well.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from threatbus.config.annotations import is_marked

FILE_SUFFIX: Final = "_file"
#: Bytes of a secret; what is larger was named by mistake.
MAX_BYTES: Final = 64 * 1024


class SecretFileError(ValueError):
    """A file that no secret can be read from; says in words what it is.

    It does not say which: who puts the secret itself where its file belongs would read it in logs.
    """


def files_of(schema: type[msgspec.Struct]) -> Mapping[str, str]:
    """Give the keys that name a file, each with the key of the secret that is in it."""
    return {
        each.encode_name + FILE_SUFFIX: each.encode_name
        for each in msgspec.structs.fields(schema)
        if is_marked(each.type, "secret")
    }


def read(path: str) -> str:
    """Read a secret, without the line break at its end; raises `SecretFileError`."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode()
    except FileNotFoundError:
        raise SecretFileError("the path of a file that is not there") from None
    except UnicodeDecodeError:
        raise SecretFileError("the path of a file that is not UTF-8") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no path"
        raise SecretFileError(f"the path of a file that cannot be read ({reason})") from None
    if len(content) > MAX_BYTES:
        raise SecretFileError("the path of a file that is too large for a secret")
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise SecretFileError("the path of a file that is empty")
    return text


def is_readable_by_all(path: str) -> bool:
    """Say whether every user of the machine may read a file."""
    try:
        return bool(Path(path).stat().st_mode & stat.S_IROTH)
    except OSError:
        return False
