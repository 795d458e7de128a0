"""The RabbitMQ backbone, on a real RabbitMQ."""

from __future__ import annotations

import pytest
from threatbus_rabbitmq.plugin import RabbitMQBackbone

from contract.backbone_contract import BackboneContract
from testbed.rabbit import RabbitNode


class TestRabbitMQ(BackboneContract):
    name = "rabbitmq"
    connects_nodes = True
    persists = True

    @pytest.fixture(autouse=True)
    def _broker(self, broker: RabbitNode, request: pytest.FixtureRequest) -> None:
        self._port = broker.port
        # Nodes of one test meet at its exchange, each with a queue of its own.
        self._exchange = request.node.name[:150]

    def make(self) -> object:
        return RabbitMQBackbone()

    def section(self, node: int) -> dict[str, object]:
        return {
            "port": self._port,
            "exchange_name": self._exchange,
            "queue": {"name_suffix": f"{self._exchange}-{node}"},
        }
