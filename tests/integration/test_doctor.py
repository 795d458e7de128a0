"""`threatbus doctor` says what works and what does not, and disturbs nothing."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from helpers.buses import Buses, TestPlugins
from helpers.keys import Keys
from helpers.old_plugins import APP
from helpers.waiting import eventually
from helpers.websocket_zeek import WebSocketZeek
from helpers.zeeks import OurScript, broker_module
from websockets.sync.client import ClientConnection

import threatbus
from integration.cli_helpers import run, write_config
from integration.doctor_helpers import Findings, MispPublisher, plain_server, tls_server
from integration.misp_helpers import KafkaStream
from integration.misp_server import MispServer
from testbed.ports import Doors, free_port
from threatbus.doctor import Check
from threatbus.errors import CheckFailed

#: Holds a port until its input ends.
HOLD = """
import socket, sys
with socket.create_server(("127.0.0.1", int(sys.argv[1]))):
    print("ready", flush=True)
    sys.stdin.read()
"""

# The bus itself.


def test_before_the_start_it_says_that_ports_are_free_and_state_can_be_kept(
    start_bus: Buses,
) -> None:
    found = Findings(start_bus.config({"zmq": Doors.free().section}))
    assert found.failed == []
    assert found.valid
    assert found("manage port").detail.endswith("is free")
    assert "none runs" in found("running bus").detail


def test_beside_a_bus_that_runs_it_sees_that_the_ports_are_the_buss_own(start_bus: Buses) -> None:
    config = start_bus.config({"zmq": Doors.free().section, "web": {"port": free_port()}})
    bus = threatbus.start(config)
    start_bus.running.append(bus)
    before = bus.status()["subscribers"]
    found = Findings(config)
    assert found.failed == []
    for port in ("manage port", "pub port", "sub port", "port"):
        (one,) = [each for each in found.all if each.check == port]
        assert "the bus that runs" in one.detail
    assert found("answer").detail.endswith("answers")
    assert bus.status()["subscribers"] == before
    assert bus.rejects.total == 0


def test_a_port_that_somebody_else_has_is_named_with_who_has_it(start_bus: Buses) -> None:
    doors = Doors.free()
    with socket.create_server(("127.0.0.1", doors.pub)):
        found = Findings(start_bus.config({"zmq": doors.section}))
    assert found.failed == ["pub port"]
    assert "taken by process" in found("pub port").detail
    assert "plugins.apps.zmq.pub" in found("pub port").next_step


def test_a_port_that_somebody_else_has_is_not_taken_for_that_of_the_bus_that_runs(
    start_bus: Buses,
) -> None:
    config = start_bus.config({"zmq": Doors.free().section})
    start_bus.running.append(threatbus.start(config))
    port = free_port()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        config["plugins"]["apps"]["web"] = {"port": port}
        found = Findings(config)
    finally:
        holder.communicate()
    assert found.failed == ["port"]
    assert f"process {holder.pid}" in found("port").detail


def test_an_address_of_another_machine_is_told_from_a_port_that_is_taken(start_bus: Buses) -> None:
    section = {**Doors.free().section, "host": "192.0.2.1", "allow_insecure": True}
    found = Findings(start_bus.config({"zmq": section}))
    assert "of another machine" in found("manage port").detail
    assert "plugins.apps.zmq.host" in found("manage port").next_step


def test_a_bus_that_lacks_a_part_is_no_healthy_one(start_bus: Buses) -> None:
    config = start_bus.config(
        {"zeek": {"broker": False, "websockets": [f"ws://127.0.0.1:{free_port()}"]}}
    )
    start_bus.running.append(threatbus.start(config))
    found = Findings(config)("running bus")
    assert "websocket" in found.detail
    assert found.next_step.startswith("threatbus status")


@pytest.mark.parametrize("place", ["/proc/threatbus", "{file}/state"])
def test_a_state_directory_that_cannot_be_written_is_said_to_be(
    place: str, start_bus: Buses, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    place = place.format(file=tmp_path / "file")
    found = Findings(start_bus.config(state_directory=place))
    assert found.failed == ["state directory"]
    assert "state_directory" in found("state directory").next_step


def test_a_log_file_that_cannot_be_written_is_said_to_be(start_bus: Buses) -> None:
    logging = {"file": True, "filename": "/proc/threatbus.log"}
    assert Findings(start_bus.config(logging=logging)).failed == ["log file"]


# The configuration and its plugins.


def test_what_is_wrong_in_one_section_keeps_no_other_from_being_looked_at(
    start_bus: Buses,
) -> None:
    apps = {"zmq": Doors.free().section, "kafka": None, "web": {"port": "none"}}
    found = Findings(start_bus.config(apps))
    assert not found.valid
    assert "not installed" in found("configuration", "kafka").detail
    assert "pip install" in found("configuration", "kafka").detail
    assert not found("configuration", "web.port").ok
    assert found("manage port").ok
    assert not [each for each in found.all if each.subject == "plugins.apps.web"]


def test_an_old_plugin_is_listed_with_no_check_of_its_own(
    start_bus: Buses, plugins: TestPlugins
) -> None:
    plugins.app("old", plugins.module(APP))
    found = Findings(start_bus.config({"old": {"port": 1}}))
    assert found("plugin", "apps.old").detail == "no check of its own"
    assert found.failed == []
    # What its validators object to is said, and no more.
    wrong = Findings(start_bus.config({"old": {}}))
    assert [each.check for each in wrong.all if "old" in each.subject] == ["configuration"]


class AilingConfig(msgspec.Struct, frozen=True):
    password: str = ""


class Ailing:
    """Its checks hang, raise, and tell secrets."""

    @threatbus.app
    def config_schema(self) -> type[msgspec.Struct]:
        return AilingConfig

    @threatbus.app
    def diagnose(self, section: AilingConfig) -> list[Check]:
        def tell() -> str:
            raise CheckFailed(f"login:{section.password}", f"not {section.password}")

        def fail() -> str:
            raise RuntimeError(section.password)

        def hang() -> str:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                listener.settimeout(5)
                listener.accept()
            return ""

        return [Check("hangs", hang, 0.1), Check("fails", fail), Check("tells", tell)]


def test_a_check_that_hangs_or_fails_costs_the_others_nothing_and_secrets_are_not_shown(
    start_bus: Buses, plugins: TestPlugins
) -> None:
    plugins.app("ailing", Ailing)
    found = Findings(
        start_bus.config({"ailing": {"password": "hunter2"}, "zmq": Doors.free().section})
    )
    assert found.failed == ["hangs", "fails", "tells"]
    assert found("manage port").ok
    assert "0.1 s" in found("hangs").detail
    assert "RuntimeError" in found("fails").detail
    assert "hunter2" not in repr(found.all)


def test_clients_files_that_let_nobody_in_are_found(start_bus: Buses, tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    keys.client("sensor")
    config = start_bus.config({"zmq": {**Doors.free().section, "curve": keys.section}})
    assert Findings(config)("keys").detail == "may take part: sensor"
    start_bus.running.append(threatbus.start(config))
    assert Findings(config)("answer").detail.endswith("asks for a key")
    keys.known("sensor").write_text("public_key: nonsense")
    assert "sensor" in Findings(config)("keys").detail
    secret = Path(keys.section["secret_key_file"]).read_text().strip()
    assert secret not in repr(Findings(config).all)


def test_a_token_file_that_holds_none_is_found(start_bus: Buses) -> None:
    config = start_bus.config({"web": {"port": free_port()}})
    assert "is made at the first start" in Findings(config)("token").detail
    token = Path(config["state_directory"], "web.token")
    token.parent.mkdir(parents=True, exist_ok=True)
    token.write_text("short")
    assert "no usable token" in Findings(config)("token").detail
    token.write_bytes(b"\xff")
    assert "cannot be read" in Findings(config)("token").detail


# Zeek.


def test_a_zeek_that_answers_and_one_that_does_not(start_bus: Buses) -> None:
    port, closed = free_port(), free_port()
    zeek = WebSocketZeek(port, OurScript)
    urls = [f"ws://127.0.0.1:{port}", f"ws://127.0.0.1:{closed}", "ws://nowhere.invalid"]
    try:
        found = Findings(start_bus.config({"zeek": {"broker": False, "websockets": urls}}))
        assert found(f"WebSocket ws://127.0.0.1:{port}").ok
        assert "nothing listens" in found(f"WebSocket ws://127.0.0.1:{closed}").detail
        assert "no host" in found("WebSocket ws://nowhere").detail
        # It was there under a name of its own, wanted none of the bus's topics, and left in order.
        assert zeek.applications == ["threatbus-doctor"]
        assert zeek.subscriptions == [["threatbus/doctor"]]
        eventually(lambda: zeek.close_codes == [1000])
    finally:
        zeek.close()


def test_what_is_no_zeek_and_what_shows_a_certificate_of_nobodys_are_told_apart(
    start_bus: Buses,
) -> None:
    with plain_server() as plain, tls_server() as tls:
        urls = [f"ws://127.0.0.1:{plain}", f"wss://127.0.0.1:{tls}", f"ws://127.0.0.1:{tls}"]
        found = Findings(start_bus.config({"zeek": {"broker": False, "websockets": urls}}))
    assert "no Zeek" in found(f"WebSocket ws://127.0.0.1:{plain}").detail
    assert "if it speaks TLS, it wants wss://" in found(f"WebSocket ws://127.0.0.1:{tls}").detail
    assert "certificate" in found("WebSocket wss:").detail
    assert "ca_file" in found("WebSocket wss:").next_step


def test_what_speaks_before_it_is_asked_is_no_zeek(
    start_bus: Buses, monkeypatch: pytest.MonkeyPatch
) -> None:
    handshake = ClientConnection.handshake
    spoken_first: list[bool] = []

    def late(connection: ClientConnection, *args: Any, **keywords: Any) -> None:
        # The peer's first bytes are read before those of the library are sent.
        eventually(lambda: connection.close_deadline is not None)
        spoken_first.append(connection.protocol.close_expected())
        handshake(connection, *args, **keywords)

    monkeypatch.setattr(ClientConnection, "handshake", late)
    with plain_server(stays=True) as plain:
        section = {"broker": False, "websockets": [f"ws://127.0.0.1:{plain}"]}
        found = Findings(start_bus.config({"zeek": section}))
    assert spoken_first == [True]
    assert "no Zeek: it speaks before it is asked" in found("WebSocket").detail


def test_brokers_module_is_missed_where_it_is_missing(
    start_bus: Buses, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker_module()
    config = start_bus.config({"zeek": {"port": free_port()}})
    assert Findings(config).failed == []
    monkeypatch.setitem(sys.modules, "broker", None)
    found = Findings(config)
    assert found.failed == ["Broker's module"]
    assert "python3-broker" in found("Broker's module").next_step


# MISP.


def misp(**section: Any) -> dict[str, Any]:
    return {"misp": section}


def test_misps_key_is_tried(start_bus: Buses) -> None:
    with MispServer() as server:
        api = {"host": server.url, "key": server.key}
        found = Findings(start_bus.config(misp(api=api)))
        assert found("REST").detail == f"MISP {server.version} answers and knows the key"
        wrong = Findings(start_bus.config(misp(api=api | {"key": "w" * 40})))
        assert "key is refused" in wrong("REST").detail
        assert "plugins.apps.misp.api.key" in wrong("REST").next_step
        assert "w" * 40 not in repr(wrong.all)
        posts = [path for method, path, _ in server.requests if method == "POST"]
        assert posts == []


def test_what_is_no_misp_is_said_to_be_none(start_bus: Buses) -> None:
    with plain_server() as plain, tls_server() as tls:
        instances = {
            "closed": {"api": {"host": f"http://127.0.0.1:{free_port()}", "key": "k" * 40}},
            "plain": {"api": {"host": f"http://127.0.0.1:{plain}", "key": "k" * 40}},
            "tls": {"api": {"host": f"https://127.0.0.1:{tls}", "key": "k" * 40}},
            "key": {"api": {"host": f"http://127.0.0.1:{plain}", "key": "k k"}},
        }
        found = Findings(start_bus.config(misp(instances=instances)))
    assert "nothing listens" in found("REST of closed").detail
    assert "plugins.apps.misp.instances.closed.api.host" in found("REST of closed").next_step
    assert not found("REST of plain").ok
    assert "certificate" in found("REST of tls").detail
    assert "instances.tls.api.ssl" in found("REST of tls").next_step
    assert found("REST of key").next_step == "correct plugins.apps.misp.instances.key.api.key"


def test_a_misp_behind_a_proxy_is_reached_through_it(
    start_bus: Buses, monkeypatch: pytest.MonkeyPatch
) -> None:
    with MispServer() as server:
        # To a proxy one says the whole address; the stand-in serves what is behind it, too.
        monkeypatch.setenv("HTTP_PROXY", server.url)
        monkeypatch.setenv("http_proxy", server.url)
        api = {"host": "http://misp.invalid", "key": server.key}
        found = Findings(start_bus.config(misp(api=api)))("REST")
    assert "no host" not in found.detail
    assert "http://misp.invalid" in server.paths()[0]


def test_misps_publisher_is_heard(start_bus: Buses) -> None:
    with MispPublisher().speaks() as publisher:
        found = Findings(start_bus.config(misp(zmq={"host": "127.0.0.1", "port": publisher.port})))
    assert found("ZeroMQ").detail == "MISP is heard (misp_json_self)"


def test_misps_publisher_that_is_silent_or_refuses_is_told_from_one_that_is_none(
    start_bus: Buses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("threatbus_misp.doctor.SIGN_OF_LIFE_SECS", 0.2)
    monkeypatch.setattr("threatbus_misp.doctor.HANDSHAKE_SECS", 1.0)
    with (
        MispPublisher() as silent,
        MispPublisher(password="right") as strict,
        plain_server() as plain,
    ):
        login = {"username": "misp", "password": "wrong"}
        ports = {"silent": silent.port, "wrong": strict.port, "nameless": strict.port}
        ports |= {"named": silent.port, "plain": plain}
        instances = {name: {"zmq": {"host": "127.0.0.1", "port": ports[name]}} for name in ports}
        for name in ("wrong", "named"):
            instances[name]["zmq"] |= login
        found = Findings(start_bus.config(misp(instances=instances)))
    assert "nothing was heard" in found("ZeroMQ of silent").detail
    assert "are refused" in found("ZeroMQ of wrong").detail
    assert "asks for a user name" in found("ZeroMQ of nameless").detail
    assert "does not want a user name" in found("ZeroMQ of named").detail
    assert "does not speak ZeroMQ" in found("ZeroMQ of plain").detail


def test_kafkas_brokers_and_topics_are_looked_for(
    start_bus: Buses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("threatbus_misp.doctor.METADATA_SECS", 1.0)
    stream = KafkaStream()
    there: dict[str, Any] = stream.section["kafka"]
    away = {"topics": ["a"], "config": {"bootstrap.servers": f"127.0.0.1:{free_port()}"}}
    instances = {
        "there": {"kafka": there},
        "topic": {"kafka": {**there, "topics": ["misp_nothing"]}},
        "away": {"kafka": away},
    }
    config = start_bus.config(misp(instances=instances))
    try:
        found = Findings(config)
        monkeypatch.setitem(sys.modules, "confluent_kafka", None)
        without = Findings(config)
    finally:
        stream.close()
    assert found("Kafka of there").detail == "5 topics are there"
    assert "no topic misp_nothing; there are: misp_attribute" in found("Kafka of topic").detail
    assert "no broker answers" in found("Kafka of away").detail
    assert without("Kafka of there").next_step == "pip install confluent-kafka"


# The command.


def test_the_command_prints_a_line_per_check_and_the_next_step(tmp_path: Path) -> None:
    doors = Doors.free()
    path = write_config(tmp_path, doors)
    with socket.create_server(("127.0.0.1", doors.sub)):
        failed = run("doctor", "-c", str(path))
    assert failed.returncode == 1
    assert b"FAIL  plugins.apps.zmq: sub port" in failed.stdout
    assert b"      -> " in failed.stdout
    done = run("doctor", "-c", str(path), "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["ok"] is True
    assert {each["subject"] for each in answer["findings"]} == {
        "bus",
        "plugins.apps.zmq",
        "plugins.backbones.inmem",
    }


def test_a_configuration_that_is_wrong_ends_the_command_with_2(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("plugins: {backbones: {inmem: }, apps: {nothing: }}")
    done = run("doctor", "-c", str(path))
    assert done.returncode == 2
    assert b"nothing" in done.stdout
