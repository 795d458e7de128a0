"""Threat Bus: a pub/sub bus that connects security tools by STIX-2 messages.

This module is the public face for plugins: ``threatbus.app`` and ``threatbus.backbone`` mark
hook implementations (`threatbus.hookspecs` is their manual), ``threatbus.start`` runs a bus.
"""

from threatbus import data, errors, logger, stix2_helpers
from threatbus.bus import ThreatBus, start
from threatbus.hookspecs import app, backbone
from threatbus.workers import StoppableWorker

__all__ = [
    "StoppableWorker",
    "ThreatBus",
    "app",
    "backbone",
    "data",
    "errors",
    "logger",
    "start",
    "stix2_helpers",
]
