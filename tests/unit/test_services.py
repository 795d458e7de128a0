"""What plugins get from the bus besides queues and callbacks."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.documents import indicators

from threatbus.border import Border
from threatbus.gate import Gate
from threatbus.queues import Bounds, OverflowPolicy
from threatbus.rejects import RejectStore
from threatbus.services import Services


def services(policy: OverflowPolicy) -> Services:
    return Services(
        section=None,
        border=Border(),
        rejects=RejectStore(Path("/nowhere"), 10, 1000),
        state_directory=Path("/nowhere"),
        outq_bounds=Bounds(2),
        overflow=policy,
        outq_gate=Gate(),
    )


@pytest.mark.parametrize("policy", list(OverflowPolicy))
def test_an_outq_has_the_bounds_and_the_policy_of_the_configuration(policy: OverflowPolicy) -> None:
    found = services(policy)
    ready: list[int] = []
    overflowed: list[int] = []
    outq = found.outq(
        "name", on_ready=lambda: ready.append(1), on_overflow=lambda: overflowed.append(1)
    )
    outq.put_many(indicators(3))
    assert outq.name == "name"
    assert outq.closed is (policy is OverflowPolicy.DISCONNECT)
    assert found.outq_gate.is_open is not (policy is OverflowPolicy.BLOCK)
    assert bool(overflowed) is (policy is OverflowPolicy.DISCONNECT)
    assert bool(ready) is not bool(overflowed)
