"""Reads JSON documents from a stream one by one: JSON lines, or documents of many lines.

Only one document is in memory at a time. A document that is cut off costs itself, not those
that follow it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import msgspec

_BOM: Final = b"\xef\xbb\xbf"
# A string, a bracket, or the quote of a string that does not end.
_tokens = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{}]|"').finditer
_OPENING: Final = (b"{", b"[")
_CLOSING: Final = (b"}", b"]")
# What may stand before an object or a list within a document.
_EXPECTING: Final = (b",", b":", b"[")


@dataclass(frozen=True)
class Document:
    """One JSON text, not yet known to be valid, and the line at which it begins."""

    line: int
    data: bytes


class DocumentReader:
    """Gives the documents of a stream of lines; `bytes_read` says how far it has come."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines = lines
        self.bytes_read = 0
        # A document that is not complete yet: its lines, where it began, how deep they end.
        self._pending: list[bytes] = []
        self._began = 0
        self._depth = 0

    def __iter__(self) -> Iterator[Document]:
        for number, read in enumerate(self._lines, 1):
            self.bytes_read += len(read)
            line = read.removeprefix(_BOM) if number == 1 else read
            text = line.strip()
            if not text:
                continue
            if self._pending and text.startswith(_OPENING) and not self._expects_value():
                yield self._pending_as_it_is()
            if not self._pending and _is_complete(text):
                yield Document(number, text)
            else:
                yield from self._continue(number, line)
        if self._pending:
            yield self._pending_as_it_is()

    def _expects_value(self) -> bool:
        return self._pending[-1].rstrip().endswith(_EXPECTING)

    def _continue(self, number: int, line: bytes) -> Iterator[Document]:
        """Add a line to what is pending; gives what ends in it."""
        start = 0
        for token in _tokens(line):
            sign = token.group()
            if sign == b'"':
                # No string of JSON goes on in the next line: this is cut off.
                self._add(number, line[start:])
                yield self._pending_as_it_is()
                return
            if sign in _OPENING:
                self._depth += 1
            elif sign in _CLOSING:
                self._depth -= 1
                if self._depth <= 0:
                    self._add(number, line[start : token.end()])
                    start = token.end()
                    yield self._pending_as_it_is()
        if line[start:].strip():
            self._add(number, line[start:])
            if self._depth == 0:
                # Neither object nor list, so nothing that could end later.
                yield self._pending_as_it_is()

    def _add(self, number: int, text: bytes) -> None:
        if not self._pending:
            self._began = number
        self._pending.append(text)

    def _pending_as_it_is(self) -> Document:
        document = Document(self._began, b"".join(self._pending).strip())
        self._pending.clear()
        self._depth = 0
        return document


def _is_complete(text: bytes) -> bool:
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
    except RecursionError:
        return True
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False
    return True
