"""Logging: handlers, formats, failures to write, and the rate limit."""

from __future__ import annotations

import io
import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dynaconf.nodes import DataDict
from helpers.descriptors import descriptors_of

from threatbus.config import LoggingConfig
from threatbus.errors import ConfigError, InvalidConfig
from threatbus.logger import RateLimited, setup

NAMES = ("threatbus_test", "threatbus_test.zmq", "threatbus_test_other")


@pytest.fixture(autouse=True)
def _as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    yield
    for name in NAMES:
        logger = logging.getLogger(name)
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
            handler.close()
        logger.setLevel(logging.NOTSET)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Full(io.StringIO):
    """A stream on a full disk, until it is told otherwise."""

    full = True

    def write(self, text: str) -> int:
        if self.full:
            raise OSError(28, "No space left on device")
        return super().write(text)


class Printed:
    """What has gone to standard error so far."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._text = ""

    def getvalue(self) -> str:
        self._text += self._capsys.readouterr().err
        return self._text


@pytest.fixture
def stderr(capsys: pytest.CaptureFixture[str]) -> Printed:
    return Printed(capsys)


def lines(stream: Printed | io.StringIO) -> list[str]:
    return stream.getvalue().splitlines()


# What `config` may be


@pytest.mark.parametrize(
    "config",
    [
        None,
        {},
        {"console": None},
        {"console_verbosity": "info"},
        {"console_verbosity": "INFO", "unknown": 1},
        DataDict({"CONSOLE_VERBOSITY": "Info"}),
        LoggingConfig(),
        SimpleNamespace(console=True),
        SimpleNamespace(),
    ],
)
def test_any_form_of_the_section_will_do(config: Any, stderr: Printed) -> None:
    logger = setup(config, "threatbus_test")
    logger.debug("hidden")
    logger.info("shown")
    assert [line.rpartition(" ")[2] for line in lines(stderr)] == ["shown"]


@pytest.mark.parametrize("name", ["debug", "DEBUG", "Debug"])
def test_the_verbosity_may_be_in_any_case(name: str, stderr: Printed) -> None:
    setup({"console_verbosity": name}, "threatbus_test").debug("shown")
    assert len(lines(stderr)) == 1


def test_wrong_values_are_told_all_at_once() -> None:
    with pytest.raises(InvalidConfig) as caught:
        setup({"console_verbosity": "loud", "file_format": "xml"}, "threatbus_test")
    keys = [error.key for error in caught.value.errors]
    assert sorted(keys) == ["logging.console_verbosity", "logging.file_format"]


def test_the_result_is_the_logger_of_that_name() -> None:
    assert setup(None, "threatbus_test") is logging.getLogger("threatbus_test")


# Where lines go


def test_console_and_file_have_verbosities_of_their_own(stderr: Printed) -> None:
    config = {"console_verbosity": "ERROR", "file": True, "file_verbosity": "DEBUG"}
    logger = setup(config, "threatbus_test")
    logger.debug("detail")
    logger.error("trouble")
    assert len(lines(stderr)) == 1
    assert len(Path("threatbus.log").read_text().splitlines()) == 2


def test_a_log_file_is_continued_and_not_emptied(stderr: Printed) -> None:
    Path("threatbus.log").write_text("before\n")
    setup({"file": True}, "threatbus_test").info("after")
    assert Path("threatbus.log").read_text().startswith("before\n")


def test_with_console_and_file_off_nothing_is_printed(stderr: Printed) -> None:
    setup({"console": False}, "threatbus_test").critical("unheard")
    assert stderr.getvalue() == ""


def test_a_level_that_nobody_shows_costs_nothing() -> None:
    config = {"console_verbosity": "WARNING", "file": True, "file_verbosity": "ERROR"}
    logger = setup(config, "threatbus_test")
    assert not logger.isEnabledFor(logging.INFO)
    assert logger.isEnabledFor(logging.WARNING)


def test_a_second_setup_neither_doubles_lines_nor_keeps_files_open(stderr: Printed) -> None:
    kept = list(setup({"file": True}, "threatbus_test").handlers)
    for _ in range(5):
        logger = setup({"file": True}, "threatbus_test")
        kept += logger.handlers  # so that nothing is closed for being forgotten
    logger.info("once")
    assert len(lines(stderr)) == 1
    assert len(Path("threatbus.log").read_text().splitlines()) == 1
    assert descriptors_of(Path("threatbus.log")) == 1


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (1, 0, 1)])
def test_a_child_shares_its_parents_handlers_in_any_order_of_setup(
    order: tuple[int, ...], stderr: Printed
) -> None:
    for index in order:
        setup({"file": True, "console_verbosity": "DEBUG"}, NAMES[index])
    logging.getLogger("threatbus_test.zmq").debug("from below")
    logging.getLogger("threatbus_test").info("from above")
    assert len(lines(stderr)) == 2
    assert len(Path("threatbus.log").read_text().splitlines()) == 1


def test_a_name_that_only_begins_alike_has_handlers_of_its_own(stderr: Printed) -> None:
    setup(None, "threatbus_test")
    setup(None, "threatbus_test_other").info("once")
    assert len(lines(stderr)) == 1


def test_handlers_that_others_added_are_left_alone(stderr: Printed) -> None:
    other = logging.StreamHandler(io.StringIO())
    logging.getLogger("threatbus_test").addHandler(other)
    setup(None, "threatbus_test")
    setup(None, "threatbus_test")
    assert other in logging.getLogger("threatbus_test").handlers


def test_records_still_reach_the_root(caplog: pytest.LogCaptureFixture, stderr: Printed) -> None:
    setup({"console_verbosity": "DEBUG"}, "threatbus_test").debug("seen")
    assert caplog.messages == ["seen"]


# A log file that cannot be used


def test_a_file_that_cannot_be_opened_is_a_config_error(stderr: Printed) -> None:
    with pytest.raises(ConfigError) as caught:
        setup({"file": True, "filename": "missing/threatbus.log"}, "threatbus_test")
    assert caught.value.key == "logging.filename"
    assert "missing/threatbus.log" in str(caught.value)


def test_a_setup_that_fails_leaves_the_earlier_one_in_place(stderr: Printed) -> None:
    logger = setup(None, "threatbus_test")
    with pytest.raises(ConfigError):
        setup({"file": True, "filename": "."}, "threatbus_test")
    logger.info("still here")
    assert len(lines(stderr)) == 1


def test_a_file_that_logrotate_moved_is_opened_anew(stderr: Printed) -> None:
    logger = setup({"file": True}, "threatbus_test")
    logger.info("first")
    Path("threatbus.log").rename("threatbus.log.1")
    logger.info("second")
    assert "first" in Path("threatbus.log.1").read_text()
    assert "second" in Path("threatbus.log").read_text()
    assert descriptors_of(Path("threatbus.log.1")) == 0
    assert descriptors_of(Path("threatbus.log")) == 1


def test_a_directory_that_vanished_is_reported_once_and_raises_nothing(
    tmp_path: Path, stderr: Printed
) -> None:
    (tmp_path / "logs").mkdir()
    config = {"console": False, "file": True, "filename": "logs/threatbus.log"}
    logger = setup(config, "threatbus_test")
    Path("logs/threatbus.log").unlink()
    Path("logs").rmdir()
    logger.info("lost")
    logger.info("lost")
    assert len(lines(stderr)) == 1
    assert "cannot write to" in stderr.getvalue()
    Path("logs").mkdir()
    logger.info("back")
    assert "back" in Path("logs/threatbus.log").read_text()


def test_a_full_disk_is_reported_once_per_spell_and_raises_nothing(
    stderr: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = setup({"console": False, "file": True}, "threatbus_test")
    disk = Full()
    [handler] = logger.handlers
    monkeypatch.setattr(handler, "stream", lambda: disk)
    for _ in range(3):
        logger.info("lost")
    disk.full = False
    logger.info("kept")
    disk.full = True
    logger.info("lost")
    assert len(lines(stderr)) == 2
    assert lines(disk)[0].endswith("kept")


def test_a_full_device_raises_nothing(stderr: Printed) -> None:
    config = {"console": False, "file": True, "filename": "/dev/full"}
    logger = setup(config, "threatbus_test")
    logger.info("lost")
    logger.info("lost")
    assert "No space left" in stderr.getvalue()
    setup(None, "threatbus_test")


@pytest.mark.parametrize("state", ["closed", "none", "full"])
def test_a_console_that_is_gone_raises_nothing(state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = setup(None, "threatbus_test")
    stream = Full() if state == "full" else io.StringIO()
    stream.close() if state == "closed" else None
    monkeypatch.setattr("sys.stderr", None if state == "none" else stream)
    logger.critical("unheard")
    setup(None, "threatbus_test").critical("unheard")


def test_a_wrong_log_call_raises_nothing(stderr: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = setup(None, "threatbus_test")
    monkeypatch.setattr(logger, "propagate", False)  # pytest's own handler does raise
    logger.info("%d", "no number")
    assert "Logging error" in stderr.getvalue()


# Formats


def test_text_has_time_level_name_and_message(stderr: Printed) -> None:
    setup(None, "threatbus_test").warning("a %s", "message")
    [line] = lines(stderr)
    time, level, name, *message = line.split()
    assert time.endswith("Z")
    assert len(time) == len("2026-01-02T03:04:05.678Z")
    assert (level, name, message) == ("WARNING", "[threatbus_test]", ["a", "message"])


def test_a_message_cannot_forge_a_line_or_command_the_terminal(stderr: Printed) -> None:
    setup(None, "threatbus_test").info("x\r\n2026 CRITICAL forged\x1b[2J\x9b\u2028\x00")
    text = stderr.getvalue()
    assert text.count("\n") == 1
    assert r"x\r\n2026 CRITICAL forged\x1b[2J\x9b\u2028\x00" in text


def test_an_exception_cannot_forge_a_line(stderr: Printed) -> None:
    logger = setup(None, "threatbus_test")
    try:
        raise ValueError("bad\n2026 CRITICAL forged\x1b[2J")
    except ValueError:
        logger.exception("failed")
    first, *more = lines(stderr)
    assert first.endswith("failed")
    assert more[-1] == r"    2026 CRITICAL forged\x1b[2J"
    assert all(line.startswith("    ") for line in more)


def test_a_terminal_gets_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    setup(None, "threatbus_test").error("red")
    assert "\x1b[31mERROR" in terminal.getvalue()


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_colours_can_be_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv(name, value)
    setup(None, "threatbus_test").error("plain")
    assert "\x1b" not in terminal.getvalue()


def test_an_empty_no_color_refuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("NO_COLOR", "")
    setup(None, "threatbus_test").error("red")
    assert "\x1b" in terminal.getvalue()


def test_a_file_gets_no_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", Terminal())
    setup({"file": True}, "threatbus_test").error("plain")
    assert "\x1b" not in Path("threatbus.log").read_text()


def test_json_is_one_object_per_line(stderr: Printed) -> None:
    logger = setup({"console_format": "json"}, "threatbus_test")
    logger.info("two\nlines")
    try:
        raise ValueError("why")
    except ValueError:
        logger.exception("failed")
    first, second = (json.loads(line) for line in lines(stderr))
    assert first.pop("time").endswith("Z")
    assert first == {
        "level": "INFO",
        "logger": "threatbus_test",
        "thread": threading.current_thread().name,
        "message": "two\nlines",
    }
    assert second["exception"].endswith("ValueError: why")


def test_half_a_surrogate_pair_costs_no_line(
    stderr: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = setup({"console_format": "json", "file": True}, "threatbus_test")
    monkeypatch.setattr(logger, "propagate", False)  # a report of pytest's cannot hold it
    logger.info("\ud800")
    assert json.loads(stderr.getvalue())["message"] == r"\ud800"
    assert r"\ud800" in Path("threatbus.log").read_text()


# The rate limit


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limited(clock: Clock) -> RateLimited:
    return RateLimited(logging.getLogger("threatbus_test"), 10.0, max_keys=3, clock=clock)


def test_a_key_has_one_line_per_interval(
    limited: RateLimited, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    assert limited.log("k", logging.WARNING, "bad %s", 1)
    clock.now += 9.9
    assert not limited.log("k", logging.WARNING, "bad %s", 2)
    assert caplog.messages == ["bad 1"]


def test_the_next_line_says_how_many_were_left_out(
    limited: RateLimited, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(4):
        limited.log("k", logging.WARNING, "bad %d", number)
    clock.now += 12
    limited.log("k", logging.WARNING, "bad 100%", exc_info=None)
    clock.now += 10
    limited.log("k", logging.WARNING, "bad again")
    assert caplog.messages == [
        "bad 0",
        "bad 100% (3 more like this left out in the last 12 s)",
        "bad again",
    ]


def test_keys_do_not_silence_each_other(
    limited: RateLimited, caplog: pytest.LogCaptureFixture
) -> None:
    limited.log("a", logging.WARNING, "a")
    limited.log("b", logging.WARNING, "b")
    assert caplog.messages == ["a", "b"]


def test_flush_says_what_was_left_out_and_starts_afresh(
    limited: RateLimited, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        limited.log("a", logging.WARNING, "bad %s", "thing")
    limited.log("b", logging.WARNING, "single")
    limited.flush()
    limited.flush()
    assert caplog.messages == ["bad thing", "single", "2 more left out like: bad thing"]
    assert limited.log("a", logging.WARNING, "new")


def test_more_keys_than_there_is_room_for_share_one_line(
    limited: RateLimited, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(1000):
        limited.log(number, logging.WARNING, "from %d", number)
    assert caplog.messages == ["from 0", "from 1", "from 2", "from 3"]
    limited.flush()
    assert caplog.messages[-1] == "996 more left out like: from 3"


def test_a_forgotten_key_first_tells_what_it_left_out(
    limited: RateLimited, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    limited.log("old", logging.WARNING, "old")
    limited.log("old", logging.WARNING, "old")
    clock.now += 11
    for key in ("a", "b", "c"):
        limited.log(key, logging.WARNING, key)
    assert caplog.messages == ["old", "a", "b", "1 more left out like: old", "c"]


def test_a_busy_key_does_not_keep_room_from_idle_ones_to_be_had(
    limited: RateLimited, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    limited.log("busy", logging.WARNING, "busy")
    clock.now += 5
    limited.log("b", logging.WARNING, "b")
    limited.log("c", logging.WARNING, "c")
    clock.now += 6
    limited.log("busy", logging.WARNING, "busy")
    clock.now += 5
    limited.log("d", logging.WARNING, "d")
    limited.log("e", logging.WARNING, "e")
    assert caplog.messages == ["busy", "b", "c", "busy", "d", "e"]


def test_what_no_handler_shows_is_not_counted(
    limited: RateLimited, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "threatbus_test"):
        assert not limited.log("k", logging.INFO, "hidden")
        assert not limited.log("k", logging.INFO, "hidden")
        limited.flush()
    assert caplog.messages == []


def test_arguments_that_do_not_fit_raise_nothing(
    limited: RateLimited, caplog: pytest.LogCaptureFixture
) -> None:
    limited.log("k", logging.WARNING, "%d", "x")
    assert caplog.messages == ["%d ('x',)"]


def test_a_line_names_the_place_that_called(
    limited: RateLimited, caplog: pytest.LogCaptureFixture
) -> None:
    limited.log("k", logging.WARNING, "here")
    assert caplog.records[0].filename == Path(__file__).name


def test_no_message_is_miscounted_when_threads_meet(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    limited = RateLimited(logging.getLogger("threatbus_test"), 10.0, clock=clock)
    start = threading.Barrier(8)

    def work() -> None:
        start.wait()
        for _ in range(500):
            limited.log("k", logging.WARNING, "bad")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    limited.flush()
    assert caplog.messages == ["bad", "3999 more left out like: bad"]
