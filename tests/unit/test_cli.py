"""The commands without a bus: reading documents, showing messages, options, exit codes."""

from __future__ import annotations

import io
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.documents import indicator, sighting

from threatbus.border import Border
from threatbus.cli import display, documents, main, outcome, progress, tail, text
from threatbus.errors import BusUnreachable, ConfigError, InvalidConfig, PluginError
from threatbus.messages import Message
from threatbus.summary import Summary

EXAMPLES = Path(__file__).parents[2] / "examples"


# Documents, one by one.


def read(content: bytes) -> list[tuple[int, bytes]]:
    lines = io.BytesIO(content)
    return [(found.line, found.data) for found in documents.DocumentReader(lines)]


def test_json_lines_are_read_line_by_line() -> None:
    assert read(b'{"a":1}\n\n {"b":2} \r\n{"c":3}') == [
        (1, b'{"a":1}'),
        (3, b'{"b":2}'),
        (4, b'{"c":3}'),
    ]


def test_a_document_of_many_lines_keeps_its_bytes() -> None:
    pretty = json.dumps({"a": ["{", {"b": '\\"}'}], "c": {}}, indent=2).encode()
    assert read(pretty) == [(1, pretty)]


def test_documents_of_many_lines_may_follow_each_other() -> None:
    first, second = (json.dumps({"n": n, "l": [{}, {}]}, indent=1).encode() for n in (1, 2))
    assert read(first + b"\n" + second) == [(1, first), (8, second)]
    assert [data for _, data in read(first + second)] == [first, second]


def test_several_documents_in_a_line_are_told_apart() -> None:
    assert read(b'{"a":1}{"b":2} {"c":3}\n') == [(1, b'{"a":1}'), (1, b'{"b":2}'), (1, b'{"c":3}')]


def test_a_byte_order_mark_is_no_part_of_the_document() -> None:
    assert read(b'\xef\xbb\xbf{"a":1}\n') == [(1, b'{"a":1}')]


@pytest.mark.parametrize(
    "cut_off", [b'{"a":"b', b'{"a":"b,', b'{"a":"[', b'{"a":1', b'{"a":[1', b'{"a":{"b":"c"}', b"{"]
)
def test_a_line_that_is_cut_off_costs_no_other_line(cut_off: bytes) -> None:
    assert read(cut_off + b'\n{"c":3}\n{"d":4}\n')[-2:] == [(2, b'{"c":3}'), (3, b'{"d":4}')]
    assert read(cut_off) == [(1, cut_off)]


def test_what_is_no_json_is_given_line_by_line() -> None:
    assert read(b'hello\n{"a":1}\n}\n"text\n') == [
        (1, b"hello"),
        (2, b'{"a":1}'),
        (3, b"}"),
        (4, b'"text'),
    ]


def test_only_one_document_is_held_at_a_time() -> None:
    class Lines:
        taken = 0

        def __iter__(self) -> Any:
            for _ in range(1000):
                self.taken += 1
                yield b'{"a":1}\n'

    lines = Lines()
    found = iter(documents.DocumentReader(lines))
    for number in range(1, 100):
        next(found)
        assert lines.taken == number


def test_nesting_beyond_all_measure_is_a_document_like_any_other() -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    assert [data for _, data in read(deep + b"\n{}")] == [deep, b"{}"]


# Lines for people.


def shown(document: dict[str, Any], topic: str | None = None) -> str:
    return display.line(
        Message(topic or f"stix2/{document['type']}", json.dumps(document).encode())
    )


@pytest.mark.parametrize(
    ("more", "operation"),
    [
        ({}, "ADD"),
        ({"x_threatbus_update": "EDIT"}, "EDIT"),
        ({"x_threatbus_update": "REMOVE"}, "REMOVE"),
        ({"revoked": True}, "REMOVE"),
        ({"revoked": False, "x_threatbus_update": 7}, "ADD"),
    ],
)
def test_an_indicator_is_shown_with_what_is_to_be_done(
    more: dict[str, Any], operation: str
) -> None:
    line = shown(indicator(name="Bad", x_threatbus_source="me", **more))
    assert re.match(rf"indicator  {operation} +\[domain-name:value = 'example.com'\]", line)
    assert '"Bad"  from me  indicator--' in line


def test_a_sighting_is_shown_with_what_was_seen() -> None:
    line = shown(sighting("indicator--1", count=3, x_threatbus_indicator={"pattern": "[a:b = 1]"}))
    assert re.search(r"\[a:b = 1\]  3 times  of indicator--1  sighting--", line)


def test_a_snapshot_request_is_shown_in_words() -> None:
    request = {
        "type": "snapshotrequest",
        "snapshot_type": 1,
        "snapshot_id": "x",
        "snapshot": 864000,
    }
    line = shown(request, "threatbus/snapshotrequest")
    assert line == "snapshot request x: indicators of the last 10 days"


HOSTILE = "\x1b]0;owned\x07\r\n\u202e\x9b31m\u2028"


def test_nothing_that_a_stranger_wrote_reaches_the_terminal_raw() -> None:
    keys = ("id", "pattern", "name", "description", "x_threatbus_source")
    lines = [shown(indicator() | dict.fromkeys(keys, HOSTILE))]
    lines += [shown(sighting() | {"sighting_of_ref": HOSTILE, "count": HOSTILE})]
    lines += [shown({"type": "x", "snapshot_id": HOSTILE}, f"threatbus/{HOSTILE}")]
    lines += [display.line(Message("stix2/indicator", HOSTILE.encode()))]
    for line in lines:
        assert line.isprintable()
    assert r"\x1b]0;owned\x07" in lines[0]


def test_a_document_of_unexpected_types_is_shown_all_the_same() -> None:
    odd = {key: [{"a": None}] for key in Summary.__struct_fields__}
    for kind in ("indicator", "sighting", "snapshotrequest", "other"):
        assert shown({**odd, "type": kind}).isprintable()
    assert "cannot be read" in display.line(Message("stix2/indicator", b"[" * 10_000))


def test_long_texts_are_cut() -> None:
    assert len(shown(indicator(name="n" * 5000, description="d" * 5000))) < 400


def test_json_lines_hold_the_very_bytes_without_raw_line_breaks() -> None:
    one, two = b'{"type": "indicator", "n": 1.10}', b'{\r\n  "a": "\\n"\n}'
    request = Message("threatbus/snapshotrequest", b"{}")
    lines = tail.json_lines(
        [Message("stix2/indicator", one), request, Message("stix2/sighting", two)]
    )
    assert lines == one + b'\n{    "a": "\\n" }\n'
    assert [json.loads(line) for line in lines.splitlines()] == [json.loads(one), json.loads(two)]


def test_a_table_is_aligned_and_printable() -> None:
    assert text.table([("A", "B"), ("long", "\x1b")]) == "A     B\nlong  \\x1b\n"


# A progress line.


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_shown_only_when_it_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    screen = Screen()
    shown = progress.Progress(screen, 1000)
    now += 0.9
    shown.show(10, 100)
    shown.clear()
    assert screen.getvalue() == ""
    now += 0.2
    shown.show(1100, 500)
    assert "[############            ]  50%  1,100 objects, 1,000/s" in screen.getvalue()
    shown.clear()
    assert screen.getvalue().endswith("\r\x1b[K")


def test_progress_says_nothing_to_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    file = io.StringIO()
    shown = progress.Progress(file, None)
    now += 60
    shown.show(1, 1)
    shown.clear()
    assert file.getvalue() == ""


# Keys.


def test_who_makes_a_client_is_told_commands_that_its_rights_allow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = ["--directory", str(tmp_path)]
    assert main(["keys", "server", *at]) == 0
    for rights, told in (
        ([], ["tail", "publish"]),
        (["--read", "stix2/indicator", "--write", ""], ["tail --topic stix2/indicator"]),
        (["--read", ""], ["publish"]),
    ):
        capsys.readouterr()
        assert main(["keys", "client", f"client{len(told)}{len(rights)}", *at, *rights]) == 0
        commands = re.findall(r"threatbus (\w+) --endpoint .*?\.key(.*)", capsys.readouterr().out)
        assert ["".join(each).removesuffix(" FILE") for each in commands] == told


def test_keys_that_cannot_be_made_say_what_comes_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["keys", "client", "app", "--directory", str(tmp_path)]) == 1
    assert f"`threatbus keys server --directory {tmp_path}` makes it" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["keys", "server", "--read", "stix2/", "--directory", str(tmp_path)])
    assert "rights of a client" in capsys.readouterr().err


# Exit codes and options.


def test_each_kind_of_failure_has_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ConfigError("a.b", "1", "2"), ConfigError("c", None, "there")
    assert outcome.failure(InvalidConfig(wrong)) == 2
    assert outcome.failure(wrong[0]) == 2
    assert outcome.failure(PluginError("x")) == 1
    assert outcome.failure(BusUnreachable("x")) == 3
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == [
        "threatbus: a.b: is 1, but it must be 2",
        "threatbus: c: is missing, but it must be there",
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ["tail", "--snapshot", "-1"],
        ["tail", "--snapshot", "nan"],
        ["tail", "--timeout", "0"],
        ["tail", "--endpoint", "http://x"],
        ["publish"],
        ["nonsense"],
    ],
)
def test_a_wrong_command_line_is_explained(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: threatbus" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], ["run"], ["check"], ["plugins"], ["tail"], ["publish"]])
def test_every_command_has_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert caught.value.code == 0
    assert len(capsys.readouterr().out) > 200


def test_the_option_for_the_configuration_counts_on_either_side_of_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(tmp_path / "missing.yaml")
    assert main(["-c", missing, "check"]) == 2
    assert main(["check", "-c", missing]) == 2
    assert capsys.readouterr().err.count("missing.yaml") == 2


# The examples.


def test_the_examples_are_what_a_bus_takes() -> None:
    border = Border()
    topics = {}
    for path in EXAMPLES.glob("*.json"):
        data = path.read_bytes()
        members = border.unpack(data) or [data]
        carried = [each for each in members if b'"identity"' not in each]
        topics[path.name] = {border.topic_of(each) for each in carried}
    assert topics == {
        "indicator.json": {"stix2/indicator"},
        "indicators.json": {"stix2/indicator"},
        "sighting.json": {"stix2/sighting"},
        "withdrawal.json": {"stix2/indicator"},
    }
