"""Logging: one `setup` for the bus, its plugins and apps, on the standard library's logging.

What a stranger sent may end up in a message, so in text output a line is one line whatever the
message holds. A handler that cannot write (disk full, stream closed) never raises into the
thread that logs and never ends it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO, cast

import msgspec

from threatbus.config import LogFormat, LoggingConfig, check_section
from threatbus.errors import ConfigError, InvalidConfig

_COLOURS: Final[Mapping[int, str]] = {
    logging.DEBUG: "\x1b[2m",
    logging.INFO: "\x1b[32m",
    logging.WARNING: "\x1b[33m",
    logging.ERROR: "\x1b[31m",
    logging.CRITICAL: "\x1b[1;31m",
}
_RESET: Final = "\x1b[0m"

# Control characters would let a message forge lines or command the operator's terminal.
_VISIBLE: Final = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))} | {
    ord("\n"): "\\n",
    ord("\r"): "\\r",
    ord("\t"): "\t",
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}
_VISIBLE_LINES: Final = {**_VISIBLE, ord("\n"): "\n    "}


def setup(config: Any, name: str) -> logging.Logger:
    """Give the logger `name` its handlers, as the section `logging` says, and return it.

    `config` is that section as a mapping, a Struct or any object with attributes; what is
    missing or null has its default, and None is all defaults. Calling it again for the same
    name replaces the handlers of the first call. If a logger above (``threatbus`` for
    ``threatbus.zmq``) was set up, its handlers serve this one too, and no line appears twice.

    Raises InvalidConfig for a wrong value and ConfigError for a file that cannot be opened.
    """
    options = _options(config)
    logger = logging.getLogger(name)
    above = _set_up_above(logger)
    handlers = [] if above else list(_handlers(options))
    # Only now that nothing can fail any more: a failed call leaves things as they were.
    _remove_handlers(logger)
    for below in _below(name):
        _remove_handlers(below)
        below.setLevel(logging.NOTSET)
    for handler in handlers:
        logger.addHandler(handler)
    logger.setLevel(logging.NOTSET if above else min(handler.level for handler in handlers))
    return logger


def _options(config: Any) -> LoggingConfig:
    if isinstance(config, LoggingConfig):
        return config
    names = LoggingConfig.__struct_fields__
    given = config if isinstance(config, Mapping) else None
    values = {
        name: getattr(config, name, None) if given is None else given.get(name) for name in names
    }
    options, errors = check_section(values, LoggingConfig, "logging")
    if errors:
        raise InvalidConfig(errors)
    return cast("LoggingConfig", options)


def _handlers(options: LoggingConfig) -> Iterator[logging.Handler]:
    if options.file:
        yield _ready(_File(options.filename), options.file_verbosity, options.file_format)
    if options.console:
        yield _ready(_Console(), options.console_verbosity, options.console_format)
    if not (options.file or options.console):
        yield _Nowhere(logging.WARNING)


def _ready(handler: _Handler, verbosity: str, form: LogFormat) -> logging.Handler:
    handler.setLevel(verbosity)
    handler.setFormatter(_Json() if form == "json" else _Text(colour=handler.has_colour()))
    return handler


def _set_up_above(logger: logging.Logger) -> bool:
    while logger.propagate and logger.parent is not None:
        logger = logger.parent
        if any(isinstance(handler, _Ours) for handler in logger.handlers):
            return True
    return False


def _below(name: str) -> list[logging.Logger]:
    known = list(logging.Logger.manager.loggerDict.items())
    return [
        logger
        for key, logger in known
        if key.startswith(f"{name}.") and isinstance(logger, logging.Logger) and _has_ours(logger)
    ]


def _has_ours(logger: logging.Logger) -> bool:
    return any(isinstance(handler, _Ours) for handler in logger.handlers)


def _remove_handlers(logger: logging.Logger) -> None:
    for handler in list(logger.handlers):
        if isinstance(handler, _Ours):
            logger.removeHandler(handler)
            # What a full disk did not take yet is lost now, and that must not stop anybody.
            with contextlib.suppress(OSError, ValueError):
                handler.close()


class _Ours:
    """Marks the handlers that `setup` made, the only ones that it removes."""


class _Nowhere(_Ours, logging.NullHandler):
    """Keeps the standard library from printing what is to go nowhere."""


class _Handler(_Ours, logging.Handler, ABC):
    """Writes lines to a stream; a failure to write is told once, until writing works again."""

    def __init__(self) -> None:
        super().__init__()
        self._failing = False  # guarded by the handler's own lock, which `handle` holds

    def has_colour(self) -> bool:
        """Whether the formatter may use colours."""
        return False

    @abstractmethod
    def stream(self) -> TextIO | None:
        """Where to write; None: nowhere just now. May raise OSError."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record. Never raises for the stream's failures or a bad format string."""
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 (a wrong log call is the caller's bug, not his end)
            self.handleError(record)
            return
        try:
            stream = self.stream()
            if stream is not None:
                stream.write(line + "\n")
                stream.flush()
            self._failing = False
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            if not self._failing:
                self._failing = True
                self.report(error)

    def report(self, error: Exception) -> None:
        """Say once that nothing can be written."""


class _Console(_Handler):
    """Standard error, whatever stream that is at the time."""

    def stream(self) -> TextIO | None:
        return cast("TextIO | None", sys.stderr)

    def has_colour(self) -> bool:
        # https://no-color.org: any value but the empty one
        if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
            return False
        stream = self.stream()
        try:
            return stream is not None and stream.isatty()
        except ValueError:  # closed
            return False


class _File(_Handler):
    """A file, opened anew when logrotate has moved it away."""

    def __init__(self, filename: str) -> None:
        self._path = Path(filename).expanduser().absolute()
        try:
            self._stream = self._open()
            self._identity = self._of(os.fstat(self._stream.fileno()))
        except OSError as error:
            found = f"{filename!r}, which cannot be opened ({error.strerror})"
            allowed = "a file that this user may write"
            raise ConfigError("logging.filename", found, allowed) from None
        # Last: the standard library closes at the end whatever handler was made, even in part.
        super().__init__()

    def _open(self) -> TextIO:
        # Half a surrogate pair in a message must not cost the line.
        return self._path.open("a", encoding="utf-8", errors="backslashreplace")

    @staticmethod
    def _of(status: os.stat_result) -> tuple[int, int]:
        return status.st_dev, status.st_ino

    def stream(self) -> TextIO:
        try:
            moved = self._of(self._path.stat()) != self._identity
        except FileNotFoundError:
            moved = True
        if moved:
            opened = self._open()
            with contextlib.suppress(OSError, ValueError):
                self._stream.close()
            self._stream = opened
            self._identity = self._of(os.fstat(opened.fileno()))
        return self._stream

    def report(self, error: Exception) -> None:
        # Standard error is all that is left; if it is gone too, so be it.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stderr.write(f"threatbus: cannot write to {self._path}: {error}\n")

    def close(self) -> None:
        try:
            with self.lock or contextlib.nullcontext():
                self._stream.close()
        finally:
            super().close()


def _timestamp(record: logging.LogRecord) -> str:
    """ISO 8601, UTC, milliseconds."""
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


class _Text(logging.Formatter):
    """One line for people; a traceback follows, indented."""

    def __init__(self, *, colour: bool) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage().translate(_VISIBLE)
        level = f"{record.levelname:<8}"
        if self._colour:
            level = f"{_COLOURS.get(record.levelno, '')}{level}{_RESET}"
        line = f"{_timestamp(record)} {level} [{record.name}] {message}"
        for more in _tracebacks(self, record):
            line += "\n    " + more.translate(_VISIBLE_LINES)
        return line


class _Json(logging.Formatter):
    """One JSON object per line: time, level, logger, thread, message and, if any, exception."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": _timestamp(record),
            "level": record.levelname,
            "logger": record.name,
            "thread": record.threadName,
            "message": _encodable(record.getMessage()),
        }
        if more := _tracebacks(self, record):
            entry["exception"] = _encodable("\n".join(more))
        return msgspec.json.encode(entry).decode()


def _tracebacks(formatter: logging.Formatter, record: logging.LogRecord) -> list[str]:
    found = []
    if record.exc_info and record.exc_info[0] is not None:
        found.append(formatter.formatException(record.exc_info))
    if record.stack_info:
        found.append(formatter.formatStack(record.stack_info))
    return found


def _encodable(text: str) -> str:
    """The text without halves of surrogate pairs, which JSON encoders refuse."""
    return text.encode("utf-8", "backslashreplace").decode()


@dataclass
class _Window:
    """What `RateLimited` remembers of one key."""

    since: float
    """When the last line was written, by the clock."""

    level: int
    line: str
    """The line that was written, cut short."""

    left_out: int = 0


class RateLimited:
    """Logs at most one line per key and interval; the next line says how many were left out.

    For messages that a peer can cause at will. At most `max_keys` keys are told apart; while
    as many are busy, all further ones share one window, so neither memory nor the number of
    lines grows with what peers send. Safe to use from several threads.
    """

    def __init__(
        self,
        logger: logging.Logger,
        interval: float = 10.0,
        *,
        max_keys: int = 1000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._logger = logger
        # Seconds between two lines of one key.
        self._interval = interval
        self._max_keys = max_keys
        self._clock = clock
        # By the time of their last line, the oldest first; guarded by the lock.
        self._windows: OrderedDict[Hashable, _Window] = OrderedDict()
        # Guards the windows only: lines are written outside it.
        self._lock = threading.Lock()

    def log(
        self, key: Hashable, level: int, message: str, *args: object, exc_info: Any = None
    ) -> bool:
        """Log the message unless its key had its line within the interval; True if it was."""
        if not self._logger.isEnabledFor(level):
            return False
        line = None
        with self._lock:
            now = self._clock()
            over = self._make_room(key, now)
            if len(self._windows) >= self._max_keys and key not in self._windows:
                key = _SHARED
            window = self._windows.get(key)
            if window is not None and now - window.since < self._interval:
                window.left_out += 1
            else:
                line = _formatted(message, args)
                left_out = window.left_out if window else 0
                seconds = now - window.since if window else 0.0
                self._windows[key] = _Window(now, level, line[:_LONGEST_KEPT])
                self._windows.move_to_end(key)
        self._report(over)
        if line is None:
            return False
        if left_out:
            line += f" ({left_out} more like this left out in the last {seconds:.0f} s)"
        self._logger.log(level, "%s", line, exc_info=exc_info, stacklevel=2)
        return True

    def flush(self) -> None:
        """Say what has been left out so far, and start afresh; for the end of a run."""
        with self._lock:
            windows = list(self._windows.values())
            self._windows.clear()
        self._report(windows)

    def _make_room(self, key: Hashable, now: float) -> list[_Window]:
        """Forget keys whose interval is over, if a new one needs room; returns what to report."""
        gone = []
        while key not in self._windows and len(self._windows) >= self._max_keys:
            oldest = next(iter(self._windows.values()))
            if now - oldest.since < self._interval:
                break
            gone.append(self._windows.popitem(last=False)[1])
        return gone

    def _report(self, windows: list[_Window]) -> None:
        for window in windows:
            if window.left_out:
                self._logger.log(
                    window.level, "%d more left out like: %s", window.left_out, window.line
                )


_SHARED: Final = object()  # the key of all that found no room
_LONGEST_KEPT: Final = 200  # characters


def _formatted(message: str, args: tuple[object, ...]) -> str:
    try:
        return message % args if args else message
    except (TypeError, ValueError):  # a wrong log call still says something
        return f"{message} {args}"
