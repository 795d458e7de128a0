"""``threatbus`` without a command, or ``threatbus run``: runs the bus until a signal ends it."""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import os
import queue
import resource
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import threatbus
from threatbus import config
from threatbus.cli.options import add_command, add_config
from threatbus.cli.outcome import FAILED, OK, failure
from threatbus.cli.text import printable
from threatbus.client import DEFAULT_PORT, Endpoint
from threatbus.errors import ThreatBusError
from threatbus.notify import notify
from threatbus.watchdog import Watchdog

if TYPE_CHECKING:
    from threatbus.bus import ThreatBus
    from threatbus.cli.options import Commands

logger = logging.getLogger("threatbus.cli")

DETAILS = """\
SIGTERM or Ctrl-C stops it: it takes nothing more in, delivers what is under way (drain_timeout
seconds at most) and exits with 0. A second signal exits at once. SIGHUP reopens log files and reads
log levels anew from the configuration; a configuration that is wrong is logged and refused. Exit
codes: 2 the configuration is wrong, 1 the bus does not start.

examples:
  threatbus -c config.yaml
  kill -HUP PID          after logging.console_verbosity was changed in config.yaml
"""


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "run", "run the bus, as without any command", DETAILS)
    add_config(parser)
    parser.set_defaults(command=command)


def command(arguments: argparse.Namespace) -> NoReturn:
    """Run the bus, and end the process."""
    signals = Signals()
    signals.install()
    _raise_file_limit()
    try:
        _leave(_run(arguments.config, signals))
    except ThreatBusError as error:
        _leave(failure(error))
    except SystemExit:  # a plugin's, which is logged
        _leave(FAILED)
    # A plugin that fails in a way of its own must end the process all the same.
    except Exception:
        logger.exception("the bus fails")
        _leave(FAILED)


class Signals:
    """SIGTERM and SIGINT: the first asks the bus to stop, a second one ends the process.

    SIGHUP asks it to reload, unless it says that the terminal on which the bus runs is gone: then
    it stops it, as for any program.

    Installed in the main thread before anything starts. The handler only leaves a note; a queue
    is used, since `threading.Event` may deadlock when a handler sets it while its thread waits.
    """

    def __init__(self) -> None:
        self._notes: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._asked = False
        self._on_terminal = _on_terminal()

    def install(self) -> None:
        """Take the signals."""
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, self._on_signal)

    def wait(self) -> signal.Signals:
        """Block until the next signal; at once if it has already come."""
        return signal.Signals(self._notes.get())

    def wait_for(self, timeout: float | None) -> signal.Signals | None:
        """Do as `wait`, but give None if none comes within `timeout` seconds."""
        with contextlib.suppress(queue.Empty):
            return signal.Signals(self._notes.get(timeout=timeout))
        return None

    def _on_signal(self, signum: int, _: FrameType | None) -> None:
        if signum == signal.SIGHUP and not (self._on_terminal and not _on_terminal()):
            self._notes.put(signum)
            return
        if self._asked:
            os._exit(128 + signum)
        self._asked = True
        # The number of one that stops it, whichever came.
        self._notes.put(signal.SIGTERM if signum == signal.SIGHUP else signum)


def _on_terminal() -> bool:
    """Say whether any of the standard streams is a terminal that is still there."""
    return any(os.isatty(descriptor) for descriptor in range(3))


def _run(path: str | None, signals: Signals) -> int:
    bus = threatbus.start(config.load(path))
    # What lives now lives until the end: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    notify("READY=1")
    _announce(bus)
    caught = _serve(bus, path, signals)
    logger.info("%s: stopping", caught.name)
    notify("STOPPING=1")
    bus.stop()
    return OK


def _serve(bus: ThreatBus, path: str | None, signals: Signals) -> signal.Signals:
    """Stay until a signal that ends the bus, and give it."""
    watchdog = Watchdog(bus)
    while True:
        watchdog.look()
        caught = signals.wait_for(watchdog.interval)
        if caught == signal.SIGHUP:
            _reload(bus, path)
        elif caught is not None:
            return caught


def _reload(bus: ThreatBus, path: str | None) -> None:
    """Read the configuration again; one that is wrong changes nothing."""
    logger.info("SIGHUP: reloading")
    try:
        bus.reload(config.load(path))
    except ThreatBusError as error:
        for line in str(error).splitlines():
            logger.error("not reloaded, the old configuration goes on: %s", line)  # noqa: TRY400
    else:
        logger.info("reloaded: log files are open anew, log levels as configured")


def _raise_file_limit() -> None:
    """Allow as many connections as the system lets this user have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _announce(bus: ThreatBus) -> None:
    """Say what runs, and to a person who started it also how to try it."""
    checked = bus.checked
    apps, backbones = (
        [name for name in names if name not in bus.lost_parts]
        for names in (checked.apps, checked.backbones)
    )
    logger.info("running: backbones %s; apps %s", ", ".join(backbones), ", ".join(apps) or "none")
    zmq = checked.apps["zmq"] if "zmq" in apps else None
    # A service manager reads the log, and tries nothing.
    if zmq is None or "NOTIFY_SOCKET" in os.environ:
        return
    with contextlib.suppress(OSError):
        sys.stdout.write("\n".join(map(printable, _how_to_try(zmq))) + "\n")
        sys.stdout.flush()


def _how_to_try(zmq: Any) -> list[str]:
    """Tell a person what to do next, in words that can be pasted."""
    endpoint = Endpoint.of_bound(zmq.host, zmq.manage)
    option = "" if endpoint == Endpoint("127.0.0.1", DEFAULT_PORT) else f" --endpoint {endpoint}"
    if zmq.curve.secret_key:
        option += " --key-file KEY"
    example = Path("examples/indicators.json")
    command = sys.argv[0] if Path(sys.argv[0]).name == "threatbus" else "threatbus"
    return [
        f"Apps subscribe at {endpoint}, receive from port {zmq.pub}, publish to port {zmq.sub}.",
        "Try, in other terminals:",
        f"  {command} tail{option}",
        f"  {command} publish{option} {example if example.is_file() else 'FILE'}",
        "Ctrl-C stops the bus.",
    ]


def _leave(code: int) -> NoReturn:
    """End the process whatever a plugin has left behind.

    A thread that is no daemon, or the feeder of a multiprocessing queue that nobody reads, would
    hold the interpreter's own way out for ever. Everything of the bus is down by now.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)
