"""A bus, a node, the wrapper between them, and a platform that publishes indicators."""

from __future__ import annotations

import contextlib
import os
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from helpers.buses import Buses
from helpers.documents import encode, indicator
from helpers.waiting import SCALE, eventually
from vast_threatbus.config import VastConfig
from vast_threatbus.wrapper import Wrapper

from testbed.ports import Doors
from testbed.tenzir import TenzirNode
from threatbus.client import App, Endpoint, Sighting, SnapshotRequest, read
from threatbus.config import check_section

#: Seconds in which a chain of several processes does its work on a busy machine.
SECONDS = 60.0 * SCALE

Answer = Callable[[SnapshotRequest], Sequence[bytes]]


def config(node: TenzirNode, doors: Doors, **more: Any) -> VastConfig:
    """Give a configuration that names node and bus; checked as a file's content is."""
    given = {
        "vast": node.endpoint,
        "vast_binary": node.program,
        "threatbus": doors.address("manage"),
        "snapshot": 0,
        "table": f"t{uuid.uuid4().hex[:12]}",
        **more,
    }
    found, errors = check_section(given, VastConfig, "")
    assert found is not None, errors
    return found


class Platform:
    """Publishes indicators and collects sightings."""

    def __init__(self, doors: Doors, answer: Answer | None = None) -> None:
        endpoint = Endpoint("127.0.0.1", doors.manage)
        self.app = App(endpoint, ["stix2/sighting"], answer=answer, timeout=1.0)
        self.sightings: list[Sighting] = []
        eventually(lambda: self.app.connected, what="the platform is subscribed")

    def publish(self, *documents: dict[str, Any]) -> None:
        for document in documents:
            self.app.publish_indicator(encode(document))

    def withdraw(self, *documents: dict[str, Any]) -> None:
        self.publish(*({**document, "x_threatbus_update": "REMOVE"} for document in documents))

    def seen(self, document: dict[str, Any], match_type: str | None = None) -> list[Sighting]:
        """The sightings of an indicator that have come so far."""
        for message in self.app.receive(timeout=0.01):
            sighting = read(message)
            assert isinstance(sighting, Sighting)
            self.sightings.append(sighting)
        return [
            sighting
            for sighting in self.sightings
            if sighting.sighting_of_ref == document["id"]
            and match_type in (None, sighting.x_threatbus_match_type)
        ]

    def awaits(
        self, document: dict[str, Any], match_type: str | None = None, count: int = 1
    ) -> list[Sighting]:
        """Wait for so many sightings of an indicator, and give them."""
        eventually(
            lambda: len(self.seen(document, match_type)) >= count,
            SECONDS,
            f"{count} {match_type or ''} sighting(s) of {document['pattern']}",
        )
        return self.seen(document, match_type)

    def close(self) -> None:
        self.app.close(1.0)


class Stage:
    """All of them; the wrapper is in this process, and can be started again."""

    def __init__(
        self, node: TenzirNode, doors: Doors, answer: Answer | None = None, **settings: Any
    ) -> None:
        self.node = node
        self.doors = doors
        self.config = config(node, doors, **settings)
        self.platform = Platform(doors, answer)
        self.start()

    def start(self) -> None:
        """Start the wrapper, once more if it was stopped."""
        self.wrapper = Wrapper(self.config)
        eventually(lambda: self.wrapper.app.connected, SECONDS)

    def matches_live(self) -> None:
        """Wait until what is imported is matched: nothing else says that the pipeline stands."""
        probe = host()
        document = domain(probe)
        self.platform.publish(document)
        self.written(probe)

        def matched() -> bool:
            self.node.import_events([{"probe": probe}])
            return bool(self.platform.seen(document, "LIVE"))

        eventually(matched, SECONDS, "live matching works")
        self.platform.withdraw(document)

    def written(self, *keys: str) -> None:
        """Wait until these keys are in the lookup table."""

        def is_written() -> bool:
            assert set(keys) <= set(self.wrapper.registry.keys())
            return self.wrapper.table.kept.is_set() and self.wrapper.table.waiting == 0

        eventually(is_written, SECONDS, "the lookup table is written")

    def forgotten(self, *documents: dict[str, Any]) -> None:
        """Wait until the lookup table holds nothing for these any more."""
        ids = [document["id"] for document in documents]
        eventually(lambda: not self.wrapper.registry.known(ids), SECONDS)
        self.written()

    def table(self) -> dict[str, Any]:
        """Give what is in the lookup table, by key."""
        return self.node.table(self.config.table)

    def searched(self) -> None:
        """Wait until no query is to be made."""
        eventually(
            lambda: (
                self.wrapper.values()["retro_backlog"] == 0
                and self.wrapper.values()["retro_looking_for"] == 0
                and self.wrapper.hits.waiting == 0
            ),
            SECONDS,
            "all stored events are searched",
        )

    def close(self) -> None:
        self.wrapper.stop()
        self.platform.close()


@contextlib.contextmanager
def stage(
    directory: Path, node: TenzirNode, answer: Answer | None = None, **settings: Any
) -> Iterator[Stage]:
    """Give a stage with a bus of its own."""
    buses = Buses(directory)
    doors = Doors.free()
    try:
        buses({"zmq": doors.section})
        with contextlib.closing(Stage(node, doors, answer, **settings)) as found:
            yield found
    finally:
        buses.close()


def host() -> str:
    """Give a host name that nobody else has."""
    return f"{uuid.uuid4().hex}.example"


def domain(name: str, **more: Any) -> dict[str, Any]:
    return indicator(f"[domain-name:value = '{name}']", **more)


def url(text: str) -> dict[str, Any]:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return indicator(f"[url:value = '{escaped}']")


def write_wrapper_config(path: Path, settings: VastConfig) -> Path:
    """Write a configuration file; gives its path."""
    # JSON is YAML.
    path.write_bytes(msgspec.json.encode(settings))
    return path


def script(path: Path, code: str) -> str:
    """Write a program in Python; gives the command that runs it."""
    path.write_text(f"#!{sys.executable}\n{code}")
    path.chmod(0o755)
    return str(path)


def processes_with(text: str) -> list[int]:
    """Give the processes whose command line holds `text`."""
    found = []
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit() and int(directory.name) != os.getpid():
            with contextlib.suppress(OSError):
                if text.encode() in (directory / "cmdline").read_bytes():
                    found.append(int(directory.name))
    return found
