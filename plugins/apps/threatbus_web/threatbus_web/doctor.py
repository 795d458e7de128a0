"""What `threatbus doctor` looks at: the port and the token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from threatbus.doctor import Check, check_port
from threatbus.errors import CheckFailed
from threatbus_web.config import ALLOWED_TOKEN, SECTION, WebConfig, is_usable_token
from threatbus_web.tokens import FILE_NAME


def checks(config: WebConfig, state_directory: Path, bus_pid: int | None) -> Iterator[Check]:
    """Give the checks of this section."""
    yield Check("port", lambda: check_port(config.host, config.port, SECTION, bus_pid))
    if not config.token:
        yield Check("token", lambda: _check_token(state_directory / FILE_NAME))


def _check_token(path: Path) -> str:
    if not path.exists():
        return f"{path} is made at the first start"
    try:
        usable = is_usable_token(path.read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise CheckFailed(
            f"{path} cannot be read ({reason})",
            f"give the bus's user the right to read it, or set {SECTION}.token",
        ) from None
    if not usable:
        raise CheckFailed(f"{path} holds no usable token", f"write {ALLOWED_TOKEN} into it")
    return f"{path} holds one"
