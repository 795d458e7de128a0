"""``threatbus publish``: publishes STIX objects from a file or from standard input."""

from __future__ import annotations

import argparse
import contextlib
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from threatbus.border import Border
from threatbus.cli.documents import Document, DocumentReader
from threatbus.cli.options import add_command, add_endpoint, bus_endpoint
from threatbus.cli.outcome import FAILED, INTERRUPTED, OK, WRONG_USAGE, ended_by_sigterm, say
from threatbus.cli.progress import Progress
from threatbus.client import Publisher
from threatbus.errors import NotCarried, Rejected, Undelivered

if TYPE_CHECKING:
    from threatbus.cli.options import Commands

DETAILS = """\
FILE holds a STIX-2.1 object, a bundle, a list of objects, or several of these one after the other
(JSON lines, for instance). Indicators and sightings are published byte for byte as they stand
there; other types are skipped. What the bus would not accept is not sent, and reported with its
line and, within a bundle or list, its number.

Exit codes: 0 all reached the bus, 1 something was rejected or may not have arrived, 2 FILE cannot
be read, 3 no bus answers.

examples:
  threatbus publish examples/indicators.json
  zcat dump.jsonl.gz | threatbus publish -
"""


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "publish", "publish STIX objects to a running bus", DETAILS)
    parser.add_argument("file", metavar="FILE", help="the file to read, - for standard input")
    add_endpoint(parser)
    parser.set_defaults(command=command)


def command(arguments: argparse.Namespace) -> int:
    """Publish the file."""
    try:
        opened = _open(arguments.file)
    except OSError as error:
        say(f"{arguments.file} cannot be read: {error.strerror or error}")
        return WRONG_USAGE
    with (
        opened as stream,
        ended_by_sigterm(),
        Publisher(
            bus_endpoint(arguments), name="threatbus publish", timeout=arguments.timeout
        ) as publisher,
    ):
        return Publishing(publisher, stream, str(arguments.endpoint)).run()


def _open(name: str) -> contextlib.AbstractContextManager[BinaryIO]:
    if name == "-":
        return contextlib.nullcontext(sys.stdin.buffer)
    return Path(name).open("rb")


class Publishing:
    """One stream on its way to the bus, and the counts of what became of it."""

    def __init__(self, publisher: Publisher, stream: BinaryIO, destination: str) -> None:
        self._publisher = publisher
        self._reader = DocumentReader(stream)
        self._destination = destination
        self._border = Border()
        self._progress = Progress(sys.stderr, _size(stream))
        self._skipped = 0
        self._rejected = 0

    def run(self) -> int:
        """Publish everything; gives the exit code, after a summary."""
        code = OK
        try:
            for document in self._reader:
                self._publish_document(document)
            self._publisher.finish()
        except Undelivered as error:
            self._say(str(error))
            code = FAILED
        except OSError as error:
            self._say(f"reading fails: {error.strerror or error}")
            code = FAILED
        except KeyboardInterrupt:
            self._say("interrupted")
            code = INTERRUPTED
        self._say(self._summary(complete=code == OK))
        return code or (FAILED if self._rejected else OK)

    def _publish_document(self, document: Document) -> None:
        place = f"line {document.line}"
        if recognised := self._border.recognise((document.data,)):
            self._hand_over(recognised[0], document.data, place)
            return
        try:
            members = self._members(document.data)
        except Rejected as error:
            self._reject(place, error)
            return
        if members is None:
            self._publish(document.data, place)
            return
        for number, member in enumerate(members, 1):
            self._publish(member, f"{place}, object {number}")

    def _members(self, data: bytes) -> Iterator[bytes] | None:
        """Give the objects in a list or bundle, or in a list of bundles; None for anything else."""
        if data.startswith(b"["):
            with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                return self._flattened(msgspec.json.decode(data, type=list[msgspec.Raw]))
        members = self._border.unpack(data)
        return None if members is None else iter(members)

    def _flattened(self, items: list[msgspec.Raw]) -> Iterator[bytes]:
        for item in items:
            data = bytes(item)
            try:
                members = self._border.unpack(data)
            except Rejected:
                # Given as it is, it is rejected with its number.
                members = None
            yield from [data] if members is None else members

    def _publish(self, data: bytes, place: str) -> None:
        try:
            topic = self._border.topic_of(data)
        except NotCarried:
            self._skipped += 1
        except Rejected as error:
            self._reject(place, error)
        else:
            self._hand_over(topic, data, place)

    def _hand_over(self, topic: str, data: bytes, place: str) -> None:
        if not self._publisher.may_write(topic):
            self._reject(place, Rejected(f"the bus takes no {topic} from this key"))
            return
        self._publisher.publish(topic, data)
        self._progress.show(self._publisher.handed_over, self._reader.bytes_read)

    def _reject(self, place: str, error: Rejected) -> None:
        self._rejected += 1
        self._say(f"{place}: rejected: {error.reason}")

    def _say(self, text: str) -> None:
        self._progress.clear()
        say(text)

    def _summary(self, *, complete: bool) -> str:
        count = self._publisher.handed_over
        verb = "published" if complete else "handed over"
        summary = f"{verb} {count:,} {'object' if count == 1 else 'objects'} to {self._destination}"
        if self._skipped:
            summary += f", skipped {self._skipped:,} of other types"
        if self._rejected:
            summary += f", rejected {self._rejected:,}"
        return summary


def _size(stream: BinaryIO) -> int | None:
    """Give the length of a file; None for a pipe or a terminal."""
    with contextlib.suppress(OSError, ValueError):
        status = os.fstat(stream.fileno())
        if stat.S_ISREG(status.st_mode):
            return status.st_size
    return None
