"""Somebody looks at the bus once a second: a scraper, and the page with its stream."""

from __future__ import annotations

import http.client
import multiprocessing as mp
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

from benchmarks.systems import spawn

TOKEN = "a-token-for-benchmarks"
#: What the page and Prometheus ask for.
PATHS = ("/metrics", "/api/status", "/api/history", "/api/rejected")
#: Seconds between two looks.
INTERVAL_SECS = 1.0


def section(port: int) -> str:
    """Give the section of the web plugin."""
    return f"web: {{port: {port}, token: {TOKEN}}}"


def _look(port: int, control: Connection) -> None:
    """Ask for everything once a second, over one connection, and follow the stream."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    stream = http.client.HTTPConnection("127.0.0.1", port)
    stream.request("GET", "/api/stream?text=no+such+thing", headers=headers)
    stream.getresponse()
    scraper = http.client.HTTPConnection("127.0.0.1", port)
    looks = 0
    spent = 0.0
    control.send("looking")
    while not control.poll(INTERVAL_SECS):
        began = time.monotonic()
        for path in PATHS:
            scraper.request("GET", path, headers=headers)
            answer = scraper.getresponse()
            assert answer.status == 200
            answer.read()
        looks += 1
        spent += time.monotonic() - began
    control.send((looks, spent / max(1, looks)))


@contextmanager
def looked_at(port: int, looks: list[tuple[int, float]]) -> Iterator[None]:
    """Have a process look at the bus meanwhile; notes how often, and the seconds a look took."""
    ours, theirs = mp.Pipe()
    process = spawn.Process(target=_look, args=(port, theirs), daemon=True)
    process.start()
    ours.recv()
    try:
        yield
        ours.send("enough")
        looks.append(ours.recv())
    finally:
        process.kill()
        process.join()
