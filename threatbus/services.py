"""What the bus offers its plugins beyond queues and callbacks: the last argument of `run`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from threatbus.observe.report import PluginReport
from threatbus.queues import Bounds, MessageQueue, OverflowPolicy

if TYPE_CHECKING:
    import msgspec

    from threatbus.border import Border
    from threatbus.gate import Gate
    from threatbus.observe.view import BusView
    from threatbus.rejects import RejectStore


@dataclass(frozen=True)
class Services:
    """One per plugin and bus."""

    #: The plugin's own section, converted to its schema; None without a schema.
    section: msgspec.Struct | None
    #: Decides which documents are STIX that the bus carries.
    border: Border
    #: Keeps what was not let in.
    rejects: RejectStore
    #: Where the plugin may keep files of its own.
    state_directory: Path
    #: Bounds and policy that the configuration gives to every outq.
    outq_bounds: Bounds
    overflow: OverflowPolicy
    #: Shut while an outq is full whose policy is ``block``. A backbone that can let messages wait
    #: elsewhere delivers none meanwhile; app plugins see the same at inq.
    outq_gate: Gate
    #: Where the plugin says how its connections are, and offers numbers of its own.
    report: PluginReport = field(default_factory=PluginReport)
    #: The bus as seen from outside; None where there is none, as in a plugin's tests.
    view: BusView | None = None

    def outq(
        self,
        name: str,
        *,
        label: str | None = None,
        on_ready: Callable[[], None] | None = None,
        on_overflow: Callable[[], None] | None = None,
    ) -> MessageQueue:
        """Make a queue to subscribe with; see `MessageQueue` for the callbacks.

        `name` is the subscriber's own. `label` is what monitoring calls it: what it calls itself,
        without a number that changes when it comes back.
        """
        return MessageQueue(
            name,
            self.outq_bounds,
            self.overflow,
            label=label,
            gate=self.outq_gate if self.overflow is OverflowPolicy.BLOCK else None,
            on_ready=on_ready,
            on_overflow=on_overflow,
        )
