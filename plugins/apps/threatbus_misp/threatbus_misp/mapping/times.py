"""Moments as the index keeps them, milliseconds since 1970 (UTC), and as STIX writes them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

#: The last moment that STIX can write: the end of the year 9999.
MAX_MOMENT_MS: Final = 253_402_300_799_999

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)


# What is published in one go shares its timestamps.
@lru_cache(maxsize=1024)
def to_stix(moment_ms: int) -> str:
    """Write a moment as ``2026-11-24T02:16:53.000Z``; ValueError before 1970 and after 9999."""
    if not 0 <= moment_ms <= MAX_MOMENT_MS:
        raise ValueError(f"no moment that can be written: {moment_ms} ms")
    seconds, milliseconds = divmod(moment_ms, 1000)
    return f"{datetime.fromtimestamp(seconds, UTC).isoformat()[:19]}.{milliseconds:03}Z"


def from_stix(text: str) -> int:
    """Read a STIX timestamp; what is finer than a millisecond is cut. ValueError if it is none."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"a timestamp without time zone: {text[:40]}")
    return (moment - _EPOCH) // _MILLISECOND
