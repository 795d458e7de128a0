"""How vast-threatbus deals with the processes it starts: programs that stand in for tenzir."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.waiting import eventually, finished
from vast_threatbus import engine as engine_module
from vast_threatbus import retro as retro_module
from vast_threatbus.counters import Counters
from vast_threatbus.engine import Engine, EngineClosed, EngineError, EngineTimeout, encoded
from vast_threatbus.registry import Registry
from vast_threatbus.reporting import Hits
from vast_threatbus.retro import Backlog, RetroMatching

from integration.vast_helpers import domain, host, processes_with, script
from threatbus.client import Endpoint, read
from threatbus.client.connection import Deadline
from threatbus.client.documents import Indicator
from threatbus.messages import INDICATOR, Message


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Where the node should be: something that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


class Fake:
    """An engine whose program runs the code that a test gives it."""

    def __init__(self, directory: Path, listener: socket.socket, code: str) -> None:
        self.program = script(directory / "fake-tenzir", code)
        self.engine = Engine(self.program, Endpoint("127.0.0.1", listener.getsockname()[1]))


def test_rows_reach_a_pipeline_on_its_standard_input_and_never_in_its_arguments(
    tmp_path: Path, listener: socket.socket
) -> None:
    fake = Fake(
        tmp_path,
        listener,
        "import json, pathlib, sys\n"
        f"path = pathlib.Path({str(tmp_path / 'given')!r})\n"
        "path.write_text(json.dumps([sys.argv[1:], sys.stdin.read()]))\n",
    )
    rows = [{"key": 'a\' || "b"\n$(c)\x00\\'}, {"key": "--help"}]
    fake.engine.run("context_update", [encoded(rows)])
    arguments, given = json.loads((tmp_path / "given").read_text())
    assert arguments[-1] == "context_update"
    assert [json.loads(line) for line in given.splitlines()] == rows
    assert not any(row["key"] in argument for row in rows for argument in arguments)


def test_an_error_of_the_pipeline_is_passed_on(tmp_path: Path, listener: socket.socket) -> None:
    code = "import sys; sys.exit('warning: x\\nerror: no such operator\\n --> here')"
    with pytest.raises(EngineError, match=r"^no such operator$"):
        Fake(tmp_path, listener, code).engine.run("x")


def test_a_missing_node_is_said_to_be_missing(tmp_path: Path, listener: socket.socket) -> None:
    fake = Fake(tmp_path, listener, "")
    listener.close()
    with pytest.raises(EngineError, match="no node at tcp"):
        fake.engine.run("x")
    assert fake.engine.started == 0, "no process is started in vain"


def test_a_query_gives_lines_as_they_come_and_ends_when_its_time_is_over(
    tmp_path: Path, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadline = Deadline(None)
    monkeypatch.setattr(engine_module, "Deadline", lambda _: deadline)
    fake = Fake(tmp_path, listener, "import time; print('one', flush=True); time.sleep(3600)")
    lines = fake.engine.query("x", timeout=1.0)
    assert next(lines) == b"one"
    # Its time is over when the test says so, however long two programs took to start.
    monkeypatch.setattr(deadline, "remaining", lambda: 0.0)
    with pytest.raises(EngineTimeout):
        next(lines)
    assert processes_with(fake.program) == []


def test_a_pipeline_that_does_not_notice_that_its_node_has_left_is_ended(
    tmp_path: Path, listener: socket.socket
) -> None:
    fake = Fake(tmp_path, listener, "import time; print('one', flush=True); time.sleep(3600)")
    lines = fake.engine.follow("x")
    assert next(lines) == b"one"
    lifeline, _ = listener.accept()
    # What a node says of its own accord is of no interest.
    lifeline.send(b"hello")
    lifeline.close()
    with pytest.raises(EngineError, match="the node has left"):
        next(lines)
    assert processes_with(fake.program) == []


def test_closing_ends_what_waits_at_once(tmp_path: Path, listener: socket.socket) -> None:
    fake = Fake(tmp_path, listener, "import time; time.sleep(3600)")
    raised: list[BaseException] = []

    def follow() -> None:
        try:
            list(fake.engine.follow("x"))
        except EngineClosed as error:
            raised.append(error)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    eventually(lambda: processes_with(fake.program))
    fake.engine.close()
    finished(thread)
    assert raised
    assert processes_with(fake.program) == []
    with pytest.raises(EngineClosed):
        fake.engine.run("x")


def test_a_pipeline_may_say_much_about_itself(tmp_path: Path, listener: socket.socket) -> None:
    code = "import sys\nfor _ in range(20000): print('warning: much', file=sys.stderr)\nprint('x')"
    assert list(Fake(tmp_path, listener, code).engine.query("x", timeout=30)) == [b"x"]
    code = "import sys; print('warning: much\\n' * 20000, file=sys.stderr); sys.exit('error: last')"
    with pytest.raises(EngineError, match=r"^last$"):
        Fake(tmp_path, listener, code).engine.run("x")


@pytest.fixture
def slow(tmp_path: Path, listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Queries that take for ever; all else is done at once."""
    monkeypatch.setattr(retro_module, "BATCH", 2)
    return Fake(
        tmp_path, listener, "import sys, time; time.sleep(3600 * sys.argv[-1].startswith('slow'))"
    )


def matchers(fake: Fake, count: int, timeout: float) -> tuple[Backlog, list[RetroMatching]]:
    backlog, counters, registry = Backlog(), Counters(), Registry(100)
    hits = Hits(counters)
    for _ in range(7):
        indicator = read(Message(INDICATOR, json.dumps(domain(host())).encode()))
        assert isinstance(indicator, Indicator)
        registry.learn(indicator)
        backlog.add([indicator.id])
    return backlog, [
        RetroMatching(
            number,
            backlog,
            fake.engine,
            registry,
            hits,
            counters,
            source="slow",
            table="t",
            max_events=0,
            timeout=timeout,
        )
        for number in range(count)
    ]


def end(fake: Fake, backlog: Backlog, workers: list[RetroMatching]) -> None:
    for worker in workers:
        worker.stop()
    backlog.close()
    fake.engine.close()
    for worker in workers:
        finished(worker)


def test_no_more_queries_run_at_once_than_are_allowed_and_the_rest_is_visible(
    slow: Fake,
) -> None:
    backlog, workers = matchers(slow, 2, timeout=3600)
    for worker in workers:
        worker.start()
    eventually(lambda: len(processes_with("slow\nthis")) == 2)
    assert [worker.looking_for for worker in workers] == [2, 2]
    assert len(backlog) == 3
    # A process that is just becoming another program has no command line.
    eventually(lambda: len(processes_with(slow.program)) == 2)
    end(slow, backlog, workers)
    assert processes_with(slow.program) == []


def test_a_query_that_takes_too_long_makes_way_for_the_next(slow: Fake) -> None:
    backlog, (worker,) = matchers(slow, 1, timeout=0.1)
    worker.start()
    eventually(lambda: worker._counters["retro_timeouts"] == 4)
    assert len(backlog) == 0
    assert worker._counters["retro_queries"] == 4
    end(slow, backlog, [worker])


def test_what_could_not_be_searched_waits_for_the_node(slow: Fake, listener: socket.socket) -> None:
    listener.close()
    backlog, (worker,) = matchers(slow, 1, timeout=1)
    worker.start()
    eventually(lambda: worker._counters["retro_queries"] >= 2)
    began = time.monotonic()
    end(slow, backlog, [worker])
    assert time.monotonic() - began < 5
    assert len(backlog) == 7


def test_a_program_that_cannot_be_run_is_named(listener: socket.socket) -> None:
    engine = Engine("/nowhere/tenzir", Endpoint("127.0.0.1", listener.getsockname()[1]))
    with pytest.raises(EngineError, match="/nowhere/tenzir cannot be run"):
        engine.run("x")


def test_a_pipeline_that_takes_too_long_for_a_small_thing_is_given_up(
    tmp_path: Path, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "SHORT_SECS", 0.1)
    with pytest.raises(EngineTimeout):
        Fake(tmp_path, listener, "import time; time.sleep(3600)").engine.run("x")
