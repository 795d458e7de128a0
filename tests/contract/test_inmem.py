"""The in-memory backbone."""

from __future__ import annotations

from backbone_contract import BackboneContract
from threatbus_inmem.plugin import InMemoryBackbone


class TestInMemory(BackboneContract):
    name = "inmem"

    def make(self) -> object:
        return InMemoryBackbone()
