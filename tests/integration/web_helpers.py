"""A bus with the web plugin, and clients of it."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from helpers.buses import Buses

from testbed.ports import free_port
from threatbus import ThreatBus

TOKEN = "a-token-for-tests-0123456789"


class WebBus:
    """A bus in this process whose web endpoint is on a free port."""

    def __init__(self, start_bus: Buses, apps: dict[str, Any] | None = None, **options: Any):
        """Start it; `options` go into the plugin's section."""
        core = {key: options.pop(key) for key in ("trace", "queues", "backbones") if key in options}
        self.port = free_port()
        section = {"port": self.port, "token": TOKEN, **options}
        self.bus: ThreatBus = start_bus(apps={"web": section, **(apps or {})}, **core)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def state_directory(self) -> Path:
        return Path(self.bus.checked.core.state_directory)

    def ask(
        self,
        path: str,
        method: str = "GET",
        body: bytes | None = None,
        token: str = TOKEN,
        more: dict[str, str] | None = None,
    ) -> Answer:
        """Send one request, with `more` headers, and give the answer."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        with self.connection() as connection:
            connection.request(method, path, body, {**headers, **(more or {})})
            return Answer(connection.getresponse())

    def json(self, path: str) -> Any:
        answer = self.ask(path)
        assert answer.status == 200, answer.text
        return json.loads(answer.body)

    @contextmanager
    def connection(self) -> Iterator[http.client.HTTPConnection]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            yield connection
        finally:
            connection.close()

    @contextmanager
    def stream(self, query: str = "") -> Iterator[Events]:
        """Open a stream of what passes."""
        with self.connection() as connection:
            connection.request(
                "GET", f"/api/stream?{query}", headers={"Authorization": f"Bearer {TOKEN}"}
            )
            events = Events(connection.getresponse())
            assert events.next() == ("open", {})
            yield events


class Answer:
    """What came back."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Events:
    """Server-sent events, one by one."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        assert response.status == 200, response.read()
        self._response = response

    def next(self) -> tuple[str, Any]:
        """Wait for the next event: its kind and its data."""
        fields: dict[str, str] = {}
        for line in iter(lambda: self._response.readline().decode().rstrip("\n"), None):
            if not line and "event" in fields:
                return fields["event"], json.loads(fields["data"])
            name, _, text = line.partition(": ")
            if name:
                fields[name] = text
        raise AssertionError("no event")

    def ended(self) -> bool:
        """Wait for the end of the stream."""
        return self._response.read() is not None
