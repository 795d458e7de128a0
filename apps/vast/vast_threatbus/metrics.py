"""A file of measurements, one line after the other, in InfluxDB's line protocol."""

from __future__ import annotations

import logging
import re
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from threatbus.logger import RateLimited
from threatbus.workers import StoppableWorker
from vast_threatbus.config import MetricsConfig

logger = logging.getLogger("threatbus.vast.metrics")


def line(host: str, values: Mapping[str, int], now_ns: int) -> str:
    """Give one line: ``vast-threatbus,host=HOST name=1i,… TIME``, the time in nanoseconds."""
    # What has a meaning in a tag is escaped.
    tag = re.sub(r"([,= \\])", r"\\\1", host)
    fields = ",".join(f"{name}={value}i" for name, value in values.items())
    return f"vast-threatbus,host={tag} {fields} {now_ns}"


class Metrics(StoppableWorker):
    """Appends a line every `interval` seconds, and a last one in the end.

    The file is opened for each line, so it may be moved away. Blocks in a wait that `stop` ends.
    """

    def __init__(self, config: MetricsConfig, values: Callable[[], Mapping[str, int]]) -> None:
        super().__init__(name="metrics")
        self._interval = config.interval
        self._path = Path(config.filename)
        self._values = values
        self._host = socket.gethostname()
        self._log = RateLimited(logger, 600.0)

    def run(self) -> None:
        """Write until asked to stop."""
        while not self._stop_asked.wait(self._interval):
            self._write()
        self._write()

    def _write(self) -> None:
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line(self._host, self._values(), time.time_ns()) + "\n")
        except OSError as error:
            self._log.log("write", logging.ERROR, "metrics cannot be written: %s", error)
