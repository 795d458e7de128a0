"""The code in the documentation runs as it stands there."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from helpers.buses import Buses, TestPlugins
from helpers.documents import encode, indicator, indicators, sighting
from helpers.waiting import eventually

from integration.cli_helpers import environment
from integration.doctor_helpers import Findings
from testbed.ports import Doors, free_ports
from threatbus.client import App, Endpoint, Message, Sighting, read
from threatbus.config import yaml12

DOCS: Final = Path(__file__).parents[2] / "docs"


def blocks(page: str, language: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def only(app: App) -> Message:
    (message,) = app.receive(timeout=10)
    return message


def test_the_app_in_the_documentation_reports_what_it_sees(
    start_bus: Buses, tmp_path: Path
) -> None:
    (code,) = blocks("writing-an-app.md", "python")
    script = tmp_path / "example_app.py"
    script.write_text(code)
    doors = Doors.free()
    start_bus({"zmq": doors.section})
    known = indicator("[domain-name:value = 'bad.example']")
    others = [indicator(), {**indicator("[url:value = 'x.example']"), "revoked": True}]
    endpoint = Endpoint("127.0.0.1", doors.manage)
    with App(
        endpoint, ["stix2/sighting"], answer=lambda _: map(encode, [*others, known])
    ) as platform:
        eventually(lambda: platform.connected)
        process = subprocess.Popen(
            [sys.executable, script, doors.address("manage")],
            stdout=subprocess.PIPE,
            env=environment(),
        )
        try:
            found = read(only(platform))
            assert isinstance(found, Sighting)
            assert found.sighting_of_ref == known["id"]
            assert process.stdout is not None
            assert process.stdout.readline() == b"seen: bad.example\n"
        finally:
            process.kill()
            process.communicate()


def test_the_plugin_in_the_documentation_takes_in_and_gives_out(
    start_bus: Buses, plugins: TestPlugins
) -> None:
    code, setup = blocks("writing-a-plugin.md", "python")
    (config,) = blocks("writing-a-plugin.md", "yaml")
    module = plugins.module(code)
    # The entry point of its setup.py, but for the name of the module.
    found = re.search(r'"(\w+) = threatbus_datagrams:(\w+)"', setup)
    assert found
    plugins.app(found[1], getattr(plugins.imported(module), found[2]))
    written: Any = yaml12.parse(config, "config.yaml")
    assert found[1] in written["plugins"]["apps"]
    doors = Doors.free()
    listen, send_to = free_ports(2)
    document, seen = encode(indicator()), encode(sighting())
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        peer.bind(("127.0.0.1", send_to))
        peer.settimeout(10)
        sections = {"zmq": doors.section, "datagrams": {"listen": listen, "send_to": send_to}}
        bus = start_bus(sections, queues={"outq_messages": 10})
        with App(Endpoint("127.0.0.1", doors.manage), ["stix2/indicator"]) as app:
            eventually(lambda: app.connected)

            def taken() -> list[Message]:
                # What is sent before the plugin has bound its socket, UDP drops.
                sender.sendto(document, ("127.0.0.1", listen))
                return app.receive(timeout=0.1)

            assert eventually(taken)[0].data == document
            app.publish_sighting(seen)
            assert peer.recv(65536) == seen
            sender.sendto(b"no STIX", ("127.0.0.1", listen))
            eventually(lambda: bus.rejects.total == 1)
            # More at once than an outq holds ends the subscription; the plugin makes another.
            (outq,) = (s.queue for s in bus.subscriptions.current() if s.name == "datagrams")
            outq.put_many(indicators(11))
            assert outq.closed
            eventually(
                lambda: any(
                    s.name == "datagrams" and not s.queue.closed
                    for s in bus.subscriptions.current()
                )
            )
            app.publish_sighting(seen)
            assert peer.recv(65536) == seen
        bus.stop()
        sections = {"datagrams": {"listen": listen, "send_to": send_to}}
        assert Findings(start_bus.config(sections))("listen").detail.endswith("is free")
        # The one that receives is taken by this test.
        other = Findings(start_bus.config({"datagrams": {"listen": send_to}}))("listen")
        assert other.next_step == "choose another `listen`"
