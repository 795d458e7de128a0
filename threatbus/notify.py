"""Tells systemd how the service is doing (sd_notify(3)); does nothing elsewhere."""

from __future__ import annotations

import os
import socket


def notify(state: str) -> None:
    """Send `state` (``READY=1``, ``STOPPING=1``, …) to the service manager, if there is one."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.connect(address)
            channel.sendall(state.encode())
    except OSError:
        # Without its manager the service still works; systemd itself reports the missing READY.
        return
