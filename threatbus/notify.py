"""Tells systemd how the service is doing (sd_notify(3)); does nothing elsewhere."""

from __future__ import annotations

import os
import socket

#: Seconds that one message to the service manager may take.
TIMEOUT_SECS = 1.0


def notify(state: str) -> None:
    """Send `state` (``READY=1``, ``STOPPING=1``, …) to the service manager, if there is one."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            # A manager that does not read must not hold up the service.
            channel.settimeout(TIMEOUT_SECS)
            channel.connect(address)
            channel.sendall(state.encode())
    except OSError:
        # Without its manager the service still works; systemd itself reports the missing READY.
        return
