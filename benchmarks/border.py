"""Measure the border: what a document costs by the way it takes, and against ``stix2.parse``.

Run it from the root of the repository on an otherwise idle machine::

    python -m benchmarks.border
"""

from __future__ import annotations

import json
import timeit
from collections.abc import Callable
from typing import Any

import msgspec
import stix2

from threatbus.border import Border

INDICATOR: dict[str, Any] = {
    "type": "indicator",
    "spec_version": "2.1",
    "id": "indicator--8e2e2d2b-17d4-4cbf-938f-98ee46b3cd3f",
    "created_by_ref": "identity--f431f809-377b-45e0-aa1c-6a4751cae5ff",
    "created": "2016-04-06T20:03:48.000Z",
    "modified": "2016-04-06T20:03:48.000Z",
    "name": "Poison Ivy Malware",
    "description": "This file is part of Poison Ivy",
    "indicator_types": ["malicious-activity"],
    "pattern": "[ipv4-addr:value = '198.51.100.17']",
    "pattern_type": "stix",
    "pattern_version": "2.1",
    "valid_from": "2016-01-01T00:00:00Z",
}
SIGHTING: dict[str, Any] = {
    "type": "sighting",
    "spec_version": "2.1",
    "id": "sighting--ee20065d-2555-424f-ad9e-0f8428623c75",
    "created": "2016-04-06T20:08:31.000Z",
    "modified": "2016-04-06T20:08:31.000Z",
    "first_seen": "2016-04-06T20:08:31Z",
    "last_seen": "2016-04-06T20:08:31Z",
    "count": 1,
    "sighting_of_ref": "indicator--8e2e2d2b-17d4-4cbf-938f-98ee46b3cd3f",
    "x_threatbus_sighting_context": {"noisy": False},
}
#: Documents of one kind that come together.
MANY = 200
EXTENSION = "extension-definition--ea279b3e-5c71-4632-ac08-831c66a786ba"
SHA256 = "ab" * 32
DOCUMENTS: dict[str, dict[str, Any]] = {
    "indicator, one comparison": INDICATOR,
    "indicator, SHA-256": {**INDICATOR, "pattern": f"[file:hashes.'SHA-256' = '{SHA256}']"},
    "indicator, name and hash": {
        **INDICATOR,
        "pattern": f"[file:name = 'a.exe' AND file:hashes.'SHA-256' = '{SHA256}']",
    },
    "indicator, ten joined by OR": {
        **INDICATOR,
        "pattern": " OR ".join(f"[ipv4-addr:value = '192.0.2.{n}']" for n in range(10)),
    },
    "indicator, extension": {
        **INDICATOR,
        "extensions": {EXTENSION: {"extension_type": "property-extension", "score": 50}},
    },
    "indicator, custom property": {**INDICATOR, "x_misp_event": {"id": 5}},
    "sighting with context": SIGHTING,
    "library: LIKE": {**INDICATOR, "pattern": "[file:name LIKE 'a%']"},
    "library: granular marking": {
        **INDICATOR,
        "granular_markings": [{"selectors": ["pattern"], "lang": "en"}],
    },
}


def per_second(call: Callable[[], object]) -> float:
    """Give how often `call` runs in a second, at the best of five attempts."""
    timer = timeit.Timer(call)
    number, _ = timer.autorange()
    return number / min(timer.repeat(5, number))


def main() -> None:
    """Print the table: µs for a document alone and among many, by what decoding it costs."""
    border = Border()
    print(
        f"{'document':30} {'bytes':>5} {'alone':>7} {'of decoding':>11}"
        f" {'many':>7} {'of decoding':>11} {'x stix2':>8}"
    )
    for name, document in DOCUMENTS.items():
        data = json.dumps(document).encode()
        text, many = data.decode(), [data] * MANY
        certain = not name.startswith("library")
        assert bool(border.recognise((data,))) == certain
        alone = per_second(lambda data=data: border.topic_of(data))  # type: ignore[misc]
        among = MANY * per_second(lambda many=many: border.recognise(many)) if certain else alone  # type: ignore[misc]
        decoding = per_second(lambda data=data: msgspec.json.decode(data))  # type: ignore[misc]
        theirs = per_second(lambda text=text: stix2.parse(text, allow_custom=True))  # type: ignore[misc]
        print(
            f"{name:30} {len(data):5} {1e6 / alone:7.2f} {decoding / alone:11.1f}"
            f" {1e6 / among:7.2f} {decoding / among:11.1f} {among / theirs:8.1f}"
        )


if __name__ == "__main__":
    main()
