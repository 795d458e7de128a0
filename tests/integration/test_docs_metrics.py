"""The list of metrics in the documentation is the list that there is."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast

from helpers.buses import Buses
from threatbus_rabbitmq.plugin import report_to

from testbed.ports import Doors, free_port
from threatbus.observe.metrics import METRICS, families
from threatbus.observe.report import PluginReport

PAGE: Final = Path(__file__).parents[2] / "docs" / "metrics.md"


def documented(heading: str) -> list[list[str]]:
    """The rows of the table under a heading, cell by cell."""
    section = PAGE.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2]
    rows = re.findall(r"^\| (`threatbus_.*) \|$", section.partition("\n## ")[0], re.MULTILINE)
    return [[cell.strip(" `") for cell in row.split("|")] for row in rows]


def test_every_metric_of_the_bus_is_documented_as_it_is() -> None:
    real = [
        [each.full_name, each.kind, ", ".join(each.labels) or "-", each.help]
        for each in METRICS.values()
    ]
    written = [[cell.replace("`", "") for cell in row] for row in documented("Of the bus")]
    assert written == [[cell.replace("`", "") for cell in row] for row in real]


def test_every_metric_of_a_plugin_is_documented_as_it_is(start_bus: Buses) -> None:
    bus = start_bus(
        {
            "zmq": Doors.free().section,
            "web": {"port": free_port()},
            "zeek": {"broker": False, "websockets": [f"ws://127.0.0.1:{free_port()}"]},
            "misp": {"zmq": {"port": free_port()}},
        }
    )
    core = {each.name for each in METRICS.values()}
    real = [
        [found.metric.full_name, found.metric.kind, found.metric.help]
        for found in families(bus.view)
        if found.metric.name not in core
    ]
    # It would want a RabbitMQ; what it offers does not depend on one.
    report = PluginReport("rabbitmq")
    worker: Any = SimpleNamespace(failures=0, **dict.fromkeys(RABBITMQ, 0))
    report_to(report, worker, cast(Any, worker))
    for each in report.numbers():
        name = f"threatbus_rabbitmq_{each.name}" + ("_total" if each.kind == "counter" else "")
        real.append([name, each.kind, each.help])
    assert sorted(documented("Of plugins")) == sorted(real)


#: What the numbers of the RabbitMQ backbone are read from.
RABBITMQ: Final = ("received", "duplicates", "confirmed", "repeated", "unconfirmed")


def test_names_follow_the_conventions_of_prometheus() -> None:
    for each in METRICS.values():
        assert re.fullmatch(r"threatbus_[a-z_]+", each.name)
        assert not each.name.endswith(("_total", "_count", "_sum", "_bucket"))
        assert "milliseconds" not in each.name
        assert each.help.endswith(".")
