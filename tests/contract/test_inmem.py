"""The in-memory backbone."""

from __future__ import annotations

from threatbus_inmem.plugin import InMemoryBackbone

from contract.backbone_contract import BackboneContract


class TestInMemory(BackboneContract):
    name = "inmem"

    def make(self) -> object:
        return InMemoryBackbone()
