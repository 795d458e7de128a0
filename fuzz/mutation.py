"""Makes an input out of others: changes in the JSON tree most of the time, in the bytes else.

A mutation of bytes alone hardly ever gets past the JSON decoder, so most of them respect it.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

#: Values that decoders stumble over.
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**53 + 1,
    2**63,
    2**64,
    -(2**63) - 1,
    10**25,
    0.1,
    -0.0,
    1e308,
    float("inf"),
    float("nan"),
    "",
    " ",
    "\x00",
    "\u2028",
    "\ud800",
    "ß" * 50,
    "a" * 5000,
    "2.1",
    "2026-11-24T08:15:30.123Z",
    "2026-02-30T00:00:00Z",
    "2016-12-31T23:59:60Z",
    "0000-01-01T00:00:00Z",
    "9999-12-31T23:59:59.999999Z",
    "2026-11-24T08:15:30",
    "2026-11-24T08:15:30+14:00",
    "indicator--11111111-1111-4111-8111-111111111111",
    "identity--11111111-1111-4111-8111-11111111111G",
    "[domain-name:value = 'example.com']",
    "[a:b = 'c' OR",
    "[file:hashes.MD5 = 'x']",
    "1e400",
    "-0",
    "nan",
    "inf",
    [],
    {},
    [[]],
    {"": None},
)
_PIECES = (
    b"",
    b"\x00",
    b"\xff",
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b",",
    b":",
    b" ",
    b"\\ud800",
    b"1e9",
)


def mutate(data: bytes, dice: random.Random, others: Sequence[bytes]) -> bytes:
    """Change `data` in one to four places; `others` lend parts of theirs."""
    for _ in range(dice.choice((1, 1, 1, 2, 4))):
        data = (_tree if dice.random() < 0.75 else _bytes)(data, dice, others)
    return data


def _tree(data: bytes, dice: random.Random, others: Sequence[bytes]) -> bytes:
    head, text = _split(data)
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        return _bytes(data, dice, others)
    try:
        changed = _changed(tree, dice, others)
        escaped = dice.random() < 0.5
        return head + json.dumps(changed, ensure_ascii=escaped).encode(errors="surrogatepass")
    except RecursionError:
        return data


def _split(data: bytes) -> tuple[bytes, bytes]:
    """Give what stands before the JSON (the topic of a frame), and the JSON."""
    starts = [place for place in (data.find(b"{"), data.find(b"[")) if place >= 0]
    start = min(starts, default=0)
    return data[:start], data[start:]


def _changed(tree: Any, dice: random.Random, others: Sequence[bytes]) -> Any:
    """Change one place of the tree, in place where it has inner ones."""
    places: list[tuple[Any, Any]] = []
    _walk(tree, places)
    if not places:
        return _value(dice, others)
    holder, key = dice.choice(places)
    _CHANGES[dice.randrange(len(_CHANGES))](holder, key, dice, others)
    return tree


def _walk(node: Any, places: list[tuple[Any, Any]]) -> None:
    keys = node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    for key in keys:
        places.append((node, key))
        _walk(node[key], places)


def _value(dice: random.Random, others: Sequence[bytes]) -> Any:
    if dice.random() < 0.7:
        return copy.deepcopy(dice.choice(VALUES))
    try:
        tree = json.loads(_split(dice.choice(others))[1])
    except (ValueError, RecursionError, IndexError):
        return None
    places: list[tuple[Any, Any]] = []
    _walk(tree, places)
    if not places:
        return tree
    holder, key = dice.choice(places)
    return holder[key]


def _replace(holder: Any, key: Any, dice: random.Random, others: Sequence[bytes]) -> None:
    holder[key] = _value(dice, others)


def _remove(holder: Any, key: Any, _: random.Random, __: Sequence[bytes]) -> None:
    del holder[key]


def _wrap(holder: Any, key: Any, dice: random.Random, _: Sequence[bytes]) -> None:
    inner = holder[key]
    for _level in range(dice.choice((1, 1, 2, 60, 120, 400))):
        inner = [inner] if dice.random() < 0.5 else {"a": inner}
    holder[key] = inner


def _add(holder: Any, key: Any, dice: random.Random, others: Sequence[bytes]) -> None:
    value = _value(dice, others)
    if isinstance(holder, dict):
        name = dice.choice(("x_a", "", "type", "extensions", "granular_markings", "a b", key))
        holder[str(name)] = value
    else:
        holder.insert(key, value)


def _alter(holder: Any, key: Any, dice: random.Random, others: Sequence[bytes]) -> None:
    """Change a text in its characters and a number by a little."""
    found = holder[key]
    if isinstance(found, str):
        changed = _bytes(found.encode(errors="surrogatepass"), dice, others)
        holder[key] = changed.decode(errors="surrogateescape")
    elif isinstance(found, int | float):
        holder[key] = found * dice.choice((-1, 10, 0.5, 1)) + dice.choice((-1, 0, 1))
    else:
        holder[key] = _value(dice, others)


_CHANGES: tuple[Callable[[Any, Any, random.Random, Sequence[bytes]], None], ...] = (
    _replace,
    _replace,
    _remove,
    _wrap,
    _add,
    _alter,
    _alter,
)


def _bytes(data: bytes, dice: random.Random, others: Sequence[bytes]) -> bytes:
    start = dice.randrange(len(data) + 1)
    end = min(len(data), start + dice.choice((0, 0, 1, 1, 2, 8, 64)))
    kind = dice.random()
    if kind < 0.4:
        piece = dice.choice(_PIECES)
    elif kind < 0.6:
        piece = bytes([dice.randrange(256)])
    elif kind < 0.8 and others:
        other = dice.choice(others)
        cut = dice.randrange(len(other) + 1)
        piece = other[cut : cut + dice.choice((1, 4, 16, 64))]
    else:
        piece = data[start:end] * 2
    return data[:start] + piece + data[end:]
