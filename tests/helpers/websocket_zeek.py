"""A stand-in for Zeek's WebSocket API, after its manual, on a port of the loopback interface.

It knows nothing of the plugin's code: what it takes and sends is checked and written here.
"""

from __future__ import annotations

import contextlib
import json
import queue
import re
import ssl
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from threatbus_zeek.values import Count
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import Server, ServerConnection, serve

from helpers.waiting import eventually, finished

#: Events of one client that wait to be dealt with; with more, the client is not read from.
MAX_EVENT_QUEUE_SIZE = 32
#: How long the stand-in looks the other way before it looks whether it is to end.
TICK = 0.05


def typed(value: Any) -> dict[str, Any]:
    """Write a value as Zeek does."""
    match value:
        case bool():
            return {"@data-type": "boolean", "data": value}
        case Count():
            return {"@data-type": "count", "data": int(value)}
        case int():
            return {"@data-type": "integer", "data": value}
        case float():
            return {"@data-type": "real", "data": value}
        case str():
            return {"@data-type": "string", "data": value}
        case datetime():
            text = value.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="milliseconds")
            return {"@data-type": "timestamp", "data": text}
        case timedelta():
            return {"@data-type": "timespan", "data": f"{round(value.total_seconds() * 1000)}ms"}
        case tuple() | list():
            return {"@data-type": "vector", "data": [typed(each) for each in value]}
        case dict():
            pairs = [{"key": typed(key), "value": typed(each)} for key, each in value.items()]
            return {"@data-type": "table", "data": pairs}
    raise TypeError(value)


def untyped(found: dict[str, Any]) -> Any:
    """Read a value as strictly as Zeek does; KeyError, TypeError or ValueError if it is none."""
    kind, data = found["@data-type"], found["data"]
    match kind:
        case "none" if data == {}:
            return None
        case "boolean" if isinstance(data, bool):
            return data
        case "count" if isinstance(data, int) and data >= 0:
            return Count(data)
        case "integer" if isinstance(data, int):
            return data
        case "real" if isinstance(data, float):
            return data
        case "string" if isinstance(data, str):
            return data
        case "timestamp" if re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?", data):
            return datetime.fromisoformat(data).replace(tzinfo=UTC)
        case "timespan" if re.fullmatch(r"-?\d+(ns|us|ms|s|min|h)", data):
            return data
        case "vector" if isinstance(data, list):
            return tuple(untyped(each) for each in data)
        case "table" if isinstance(data, list):
            return {untyped(each["key"]): untyped(each["value"]) for each in data}
    raise ValueError(f"no {kind}: {data!r}")


class Client:
    """One connected client; its events wait in a queue of Zeek's size."""

    def __init__(self, connection: ServerConnection, topics: list[str]) -> None:
        self.connection = connection
        self.topics = topics
        self.events: queue.Queue[tuple[str, Any, Any]] = queue.Queue(MAX_EVENT_QUEUE_SIZE)
        self.gone = threading.Event()


class WebSocketZeek:
    """A Zeek that runs a script and listens for WebSocket clients."""

    def __init__(
        self,
        port: int,
        make_script: Callable[..., Any],
        *,
        tls: ssl.SSLContext | None = None,
        seconds_per_event: float = 0.0,
        acknowledges: bool = True,
    ) -> None:
        self.port = port
        self.script = make_script(self.publish)
        self.seconds_per_event = seconds_per_event
        self._acknowledges = acknowledges
        # Set by a test: events are not dealt with until it is set again.
        self.going = threading.Event()
        self.going.set()
        self.clients: list[Client] = []
        # Headers and topics of every client there was.
        self.applications: list[str | None] = []
        self.subscriptions: list[list[str]] = []
        # How connections ended: 1000 in order, 1006 without a word.
        self.close_codes: list[int | None] = []
        # What the stand-in found wrong with what it was sent.
        self.errors: list[str] = []
        self._server: Server = serve(self._serve, "127.0.0.1", port, ssl=tls, compression=None)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def client(self) -> Client:
        """The client, when there is one."""
        return eventually(lambda: self.clients[-1:])[0]

    def publish(self, topic: str, name: str, *args: Any) -> None:
        """Send an event to the clients that subscribed to its topic."""
        event = typed((Count(1), Count(1), (name, args)))
        self.send({"type": "data-message", "topic": topic, **event})

    def send(self, message: dict[str, Any] | str | bytes) -> None:
        """Send a message of any kind; bytes go into a text frame as they are."""
        topic = message.get("topic") if isinstance(message, dict) else None
        frame = json.dumps(message) if isinstance(message, dict) else message
        for client in list(self.clients):
            if topic is None or str(topic).startswith(tuple(client.topics)):
                with contextlib.suppress(ConnectionClosed):
                    client.connection.send(frame, text=True)

    def sight(self, intel_id: str, context: dict[str, Any] | None = None) -> None:
        """Report a sighting."""
        self.publish(
            "stix2/sighting", "Tenzir::sighting", datetime.now(UTC), intel_id, context or {}
        )

    def drop(self) -> None:
        """Break all connections without a word."""
        for client in list(self.clients):
            with contextlib.suppress(OSError):
                client.connection.socket.shutdown(2)

    def close(self) -> None:
        """Stop listening, and break all connections."""
        self.going.set()
        self._server.shutdown()
        self.drop()
        finished(self._thread)
        for client in list(self.clients):
            client.gone.wait(5)

    def _serve(self, connection: ServerConnection) -> None:
        request = connection.request
        if request is None or request.path != "/v1/messages/json":
            self._refuse(connection, "invalid_uri", "Invalid URI - use /v1/messages/json")
            return
        application = request.headers.get("X-Application-Name")
        if application is not None and not re.fullmatch(r"[-/_.=:*@a-zA-Z0-9]+", application):
            reason = "Invalid X-Application-Name"
            self._refuse(connection, "invalid_application_name", reason)
            return
        self.applications.append(application)
        topics = json.loads(connection.recv())
        self.subscriptions.append(topics)
        if not self._acknowledges:
            connection.recv()
        ack = {"type": "ack", "endpoint": "5782518a-websocket-0", "version": "9.1.0-dev"}
        connection.send(json.dumps(ack))
        client = Client(connection, topics)
        self.clients.append(client)
        worker = threading.Thread(target=self._deal, args=(client,), daemon=True)
        worker.start()
        self.script.begin()
        try:
            for frame in connection:
                self._take(client, frame)
        except ConnectionClosed:
            pass
        finally:
            self.close_codes.append(connection.close_code)
            self.clients.remove(client)
            client.gone.set()

    def _take(self, client: Client, frame: str | bytes) -> None:
        try:
            message = json.loads(frame)
            assert message["type"] == "data-message"
            version, kind, (name, args) = untyped(message)
            assert (version, kind) == (Count(1), Count(1))
        except (KeyError, TypeError, ValueError, AssertionError) as error:
            self.errors.append(f"{error}: {frame!r}")
            context = "failed to decode JSON object"
            self._error(client.connection, "deserialization_failed", context)
            return
        event = (message["topic"], name, args)
        while not client.gone.is_set():
            # While the queue is full the client is not read from: Zeek stalls it.
            with contextlib.suppress(queue.Full):
                client.events.put(event, timeout=TICK)
                return

    def _deal(self, client: Client) -> None:
        """Run the script, as Zeek's main loop does."""
        while not client.gone.is_set():
            self.going.wait()
            try:
                topic, name, args = client.events.get(timeout=TICK)
            except queue.Empty:
                continue
            time.sleep(self.seconds_per_event)
            if topic.startswith(tuple(self.script.topics())):
                self.script.handle(name, args)

    def _refuse(self, connection: ServerConnection, code: str, reason: str) -> None:
        self._error(connection, code, reason)
        connection.close(1008, reason)

    def _error(self, connection: ServerConnection, code: str, context: str) -> None:
        with contextlib.suppress(ConnectionClosed):
            connection.send(json.dumps({"type": "error", "code": code, "context": context}))
