"""Where the message path spends its time: a profile of the endpoint's loop under full load.

Run it from the root of the repository::

    python -m benchmarks.profile [SUBSCRIBERS]

The profiler makes calls dearer than they are, those of Python more than those of C; the order
is what counts. Time is that of the loop's thread alone.
"""

from __future__ import annotations

import cProfile
import os
import pstats
import sys
import tempfile
import time
from pathlib import Path
from typing import ClassVar, Final

import threatbus_zmq.endpoint
import zmq

import threatbus
from benchmarks.load import run
from benchmarks.systems import EVERYTHING, System, request
from testbed.ports import Doors
from threatbus import config

#: Messages that pass.
COUNT: Final = 100_000
#: Lines that are printed.
LINES: Final = 15


class ProfiledEndpoint(threatbus_zmq.endpoint.Endpoint):
    """An endpoint whose loop is watched."""

    profiles: ClassVar[list[cProfile.Profile]] = []

    def run(self) -> None:
        """Serve as ever, and keep what was seen."""
        profile = cProfile.Profile(time.thread_time)
        self.profiles.append(profile)
        profile.runcall(super().run)


def main() -> None:
    """Run a bus in this process, load it, and print the profile."""
    subscribers = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    threatbus_zmq.endpoint.Endpoint = ProfiledEndpoint  # type: ignore[misc]
    doors = Doors.free()
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "config.yaml")
        file.write_text(
            f"state_directory: {directory}/state\n"
            "logging: {console_verbosity: ERROR}\n"
            "plugins:\n"
            "  backbones: {inmem: }\n"
            f"  apps: {{zmq: {{manage: {doors.manage}, pub: {doors.pub}, sub: {doors.sub}}}}}\n"
        )
        bus = threatbus.start(config.load(str(file)))
        try:
            context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
            replies = [
                request(context, doors.address("manage"), action="subscribe", topic=EVERYTHING)
                for _ in range(subscribers)
            ]
            context.destroy(linger=0)
            topics = [str(reply["topic"]).encode() for reply in replies]
            sub, pub = doors.address("sub"), doors.address("pub")
            run(System("threatbus", sub, pub, topics, os.getpid()), COUNT)
        finally:
            bus.stop()
    for profile in ProfiledEndpoint.profiles:
        pstats.Stats(profile).strip_dirs().sort_stats("tottime").print_stats(LINES)


if __name__ == "__main__":
    main()
