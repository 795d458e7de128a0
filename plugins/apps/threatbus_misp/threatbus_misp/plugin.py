"""Hooks of the MISP app plugin."""

from __future__ import annotations


class MispPlugin:
    """Brings what happens in MISP onto the bus, and sightings back."""
