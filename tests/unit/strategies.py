"""Documents for the border's tests: ordinary ones of every kind, and mutations of them.

All randomness comes from a `random.Random`, so that a seed is a document: hypothesis draws the
seeds (`ordinary_documents`, `mutated_documents`), a longer hunt can simply count them up.
"""

from __future__ import annotations

import json
import random
import re
import uuid
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

Document = dict[str, Any]

#: One example or more of each kind of pattern that a sensor or a platform has use for.
PATTERNS = (
    "[domain-name:value = 'example.com']",
    "[domain-name:value='example.com']",
    "[domain-name:value = 'bücher.example' OR domain-name:value = '例え.テスト']",
    "[ipv4-addr:value = '198.51.100.17']",
    "[ipv4-addr:value = '198.51.100.0/24']",
    "[ipv6-addr:value = '2001:db8::17']",
    "[url:value = 'https://example.com/a?b=c&d=%20#e']",
    "[email-addr:value = 'mallory@example.com']",
    "[email-message:from_ref.value = 'mallory@example.com']",
    "[email-message:to_refs[*].value = 'alice@example.com']",
    "[email-message:body_multipart[0].body_raw_ref.name = 'invoice.pdf']",
    "[email-message:additional_header_fields.x_mailer = 'Mailer 3.1']",
    "[file:hashes.MD5 = '00112233445566778899aabbccddeeff']",
    "[file:hashes.'MD5' = '00112233445566778899aabbccddeeff']",
    "[file:hashes.'SHA-1' = '00112233445566778899aabbccddeeff00112233']",
    "[file:hashes.'SHA-256' = '%s']" % ("ab" * 32),
    "[file:hashes.'SHA-512' = '%s']" % ("AB" * 64),
    "[file:hashes.'SHA3-512' = '%s']" % ("0f" * 64),
    "[file:hashes.SHA224 = '%s']" % ("0f" * 28),
    "[file:hashes.TLSH = 'c325af62e8f4b5ab']",
    "[file:hashes.IMPHASH = '68f013d7437aa653a8a98a05807afeb1']",
    "[file:hashes.SSDEEP = '96:QRWkwoBevsL0JsIQ3pq8:QRWktBe80JsI']",
    "[file:name = 'invoice.pdf' AND file:hashes.MD5 = '00112233445566778899aabbccddeeff']",
    "[file:hashes.MD5 = '00112233445566778899aabbccddeeff' OR file:hashes.'SHA-256' = '%s']"
    % ("12" * 32),
    "[file:name = 'it\\'s a \\\\ path']",
    "[file:name = '']",
    "[file:name = 'FALSE AND [true] OR hashes \U0001f600']",
    "[file:size = 1234]",
    "[file:size = '1234']",
    "[file:size != -1]",
    "[file:content_ref.payload_bin = 'UEsDBAoACQAAAA==' AND file:name = 'oui']",
    "[windows-registry-key:key = 'HKLM\\\\Software\\\\mthjk']",
    "[windows-registry-key:values[0].data = '%DATA%' AND windows-registry-key:key = 'HKLM']",
    "[domain-name:value = 'example.com' AND domain-name:resolves_to_refs[*].value = '192.0.2.1']",
    "[domain-name:value = 'example.com' AND network-traffic:dst_port = '8443']",
    "[network-traffic:dst_ref.type = 'ipv4-addr' AND network-traffic:dst_ref.value = '192.0.2.7']",
    "[network-traffic:dst_ref.value = '192.0.2.7' AND network-traffic:dst_port = 443]",
    "[network-traffic:extensions.'http-request-ext'.request_header.'User-Agent' = 'Firefox']",
    "[autonomous-system:number = 174]",
    "[mutex:name = 'Global\\\\mutex']",
    "[mac-addr:value = '12:34:56:78:90:ab']",
    "[software:name = 'nginx']",
    "[user-account:user_id = '1000']",
    "[user-account:account_type = 'github' AND user-account:account_login = 'mallory']",
    "[user-account:is_privileged = true]",
    "[x509-certificate:hashes.'SHA-1' = '00112233445566778899aabbccddeeff00112233']",
    "[x509-certificate:issuer = 'CN=Example, C=XX']",
    "[process:image_ref.hashes.MD5 = '00112233445566778899aabbccddeeff']",
    "[ipv4-addr:value = '192.0.2.1'] OR [ipv4-addr:value = '192.0.2.2']",
    "[ipv4-addr:value = '192.0.2.1'] AND [domain-name:value = 'example.com']",
    " OR ".join(f"[ipv4-addr:value = '192.0.2.{n}']" for n in range(20)),
    "[" + " OR ".join(f"ipv4-addr:value = '192.0.2.{n}'" for n in range(40)) + "]",
    "[x-custom-object:x_score = 0.75]",
)

#: Patterns that only the grammar settles, some of them wrong.
HARD_PATTERNS = (
    "([ipv4-addr:value = '192.0.2.1'])",
    "[(file:size > 1 OR file:size < 9) AND file:name LIKE 'a%']",
    "[file:name MATCHES '^a.*']",
    "[file:name NOT = 'x']",
    "[file:name IN ('a', 'b')]",
    "[file:size >= 5]",
    "[file:name = 'a'] FOLLOWEDBY [file:name = 'b'] WITHIN 5 SECONDS",
    "[file:name = 'a'] REPEATS 2 TIMES",
    "[file:ctime = t'2020-01-01T00:00:00Z']",
    "[file:content = h'00ff' OR file:content = b'AA==']",
    "[EXISTS file:name]",
    "[file:name /* comment */ = 'a'] // rest",
    "[file:name = 'a'",
    "file:name = 'a'",
    "[file:name = a]",
    "[file:name = 'a' and file:size = 1]",
    "[file:LAST = 'a']",
    "[true:x = 1]",
    "[file:hashes.MD5 = 'short']",
    "[file:hashes[0] = 'short']",
    "[file:hashes.SHA-256 = 'x']",
    "[file:hashes.'SHA-256'.x = 'y']",
    "[file:'hashes'.md5 = 'zz']",
    "[file:hashes.MD5 = 1]",
    "[file:size = 01]",
    "[file:size = 1.]",
    "[file:size = .5]",
    "[file:size = 1.5.5]",
    "[]",
    "",
    " ",
)

OTHER_PATTERN_TYPES = (
    ("yara", 'rule a { strings: $b = "c" condition: $b }'),
    ("snort", 'alert tcp any any -> any any (msg:"x"; sid:1;)'),
    ("suricata", "alert dns any any -> any any (sid:2;)"),
    ("sigma", "title: x\ndetection: {}"),
    ("STIX", "not looked into"),
    ("yara", ""),
)

_TOKENS = re.compile(r"'(?:[^'\\]|\\.)*'|[A-Za-z_][\w-]*|\d+|\s+|.", re.DOTALL)
_EXTRA_TOKENS = (
    " ", "'", "\\", "\\'", "[", "]", "(", ")", ".", ":", "=", "==", "!=", "<", ">", "-", "+", "*",
    "/", "//", "/*", "*/", ",", "[0]", "[*]", "[00]", "[99999999999]", "0", "1", "01", "1.5", "1.",
    "h", "t", "b", "''", "'x'", "h'00'", "b'AA=='", "AND", "OR", "NOT", "IN", "LIKE", "LAST",
    "START", "EXISTS", "FOLLOWEDBY", "true", "false", "TRUE", "hashes", "hashes.MD5", ".hashes",
    ".'hashes'", "MD5", "'SHA-256'", "\u017fha1", "'\u017fha1'", "\n", "\t", "\x0b", "\u00a0",
    "\u2003", "\x00", "\u0130", "\u0665", "\U0001f600", "$", "\"", "#",
)  # fmt: skip

_STRANGE_NAMES = (
    "", "X_upper", "_under", "1digit", "x y", "x_misp_score", "x_opencti_id", "ünder", "ßharp",
    "self", "allow_custom", "interoperability", "version", "custom_properties", "cls", "args",
    "kwargs", "sighting_of_ref", "pattern", "granular_markings", "extensions", "data", "a\n",
    "x" * 300, "defanged", "hashes", "objects", "id", "type", "spec_version", "valid_from",
)  # fmt: skip

_STRANGE_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 100, 101, 2**31, 2**63, 2**64, 10**30, -(10**20), 0.0, 1.5, 1e300,
    "", "x", "2.1", "2.0", "true", "[]", "{}", "indicator", "sighting", [], {}, [None], [[]], [1],
    ["x"], {"x": 1}, [{}], {"": None}, [{"kill_chain_name": "a"}],
    [{"source_name": "a"}], [{"source_name": "a", "url": None}], [{"source_name": 1, "url": "b"}],
    [{"source_name": "a", "url": "b", "hashes": {"MD5": "x"}}],
    [{"selectors": ["pattern"], "lang": "en"}], [{"selectors": ["nothing"], "lang": "en"}],
    {"extension-definition--x": {}}, {"archive-ext": {}}, {"x-ext": {}}, {"tcp-ext": {"a": 1}},
    {"extension-definition--8e2e2d2b-17d4-4cbf-938f-98ee46b3cd3f": 1},
    {"extension-definition--8e2e2d2b-17d4-4cbf-938f-98ee46b3cd3f": {}},
    {"extension-definition--8e2e2d2b-17d4-4cbf-938f-98ee46b3cd3f": {
        "extension_type": "toplevel-property-extension"}},
    "2020-01-01T00:00:00Z", "identity--8e2e2d2b-17d4-4cbf-938f-98ee46b3cd3f",
    ["marking-definition--8e2e2d2b-17d4-4cbf-938f-98ee46b3cd3f"],
)  # fmt: skip

_TIMES = (
    "2016-04-06T20:03:48Z", "2016-04-06T20:03:48.0Z", "2016-04-06T20:03:48.000Z",
    "2016-04-06T20:03:48.123456Z", "2016-04-06T20:03:48.1234567Z", "2016-04-06T20:03:48+00:00",
    "2016-04-06t20:03:48z", "2016-04-06 20:03:48Z", "2016-4-6T20:03:48Z", "2016-04-06T20:03:60Z",
    "2016-04-06T24:00:00Z", "2016-02-29T00:00:00Z", "2015-02-29T00:00:00Z", "2016-04-31T00:00:00Z",
    "0000-01-01T00:00:00Z", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z", "2016-04-06",
    "2016-W14-3T20:03:48Z", "2016-04-06T200348.5Z", "2016-04-06T20:03:48,5Z",
    "2016-04-06T20:03:48.Z", "", " 2016-04-06T20:03:48Z", "2016-04-06T20:03:48Z\n",
    "\u0662016-04-06T20:03:48Z", "2o16-04-06T20:03:48Z", "2a16-04-06T20:03:48Z",
    "2016-04-06T20:03:48.a00Z", "2016-04-06T23:59:61Z", "2016-13-01T00:00:00Z",
)  # fmt: skip

_TIME_NAMES = ("created", "modified", "valid_from", "valid_until", "first_seen", "last_seen")


def ordinary_document(seed: int) -> bytes:
    """Give an indicator or a sighting as tools send them, valid and of plain shape."""
    rng = random.Random(seed)
    return _encode(_ordinary(rng), rng)


def mutated_document(seed: int) -> bytes:
    """Give an ordinary document after one to three changes, of which most break it."""
    rng = random.Random(seed)
    document = _ordinary(rng, PATTERNS + HARD_PATTERNS)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        rng.choice(_MUTATIONS)(document, rng)
    data = _encode(document, rng)
    if rng.random() < 0.15:
        data = rng.choice(_TEXT_MUTATIONS)(data, rng)
    return data


def ordinary_documents() -> st.SearchStrategy[list[bytes]]:
    """Draw a batch of valid documents of plain shape (a batch is cheaper to draw than each)."""
    return st.integers(0, 2**48).map(lambda seed: _batch(ordinary_document, seed))


def mutated_documents() -> st.SearchStrategy[list[bytes]]:
    """Draw a batch of documents near the edge of validity, on both sides of it."""
    return st.integers(0, 2**48).map(lambda seed: _batch(mutated_document, seed))


def broken_pattern(rng: random.Random) -> str:
    """Give a pattern after a few edits of characters or tokens; some are still valid."""
    every = PATTERNS + HARD_PATTERNS
    pattern = rng.choice(every)
    if rng.random() < 0.3:  # the head of one, the tail of another
        other = rng.choice(every)
        pattern = (
            pattern[: rng.randrange(len(pattern) + 1)] + other[rng.randrange(len(other) + 1) :]
        )
    for _ in range(rng.choice((1, 1, 2, 2, 3))):
        pattern = _edit_tokens(pattern, rng) if rng.random() < 0.75 else _edit(pattern, rng)
    return pattern


def indicator(**properties: Any) -> Document:
    """Give a minimal valid indicator with these properties instead or besides."""
    return {
        "type": "indicator",
        "spec_version": "2.1",
        "id": "indicator--8e2e2d2b-17d4-4cbf-938f-98ee46b3cd3f",
        "created": "2016-04-06T20:03:48.000Z",
        "modified": "2016-04-06T20:03:48.000Z",
        "pattern": "[ipv4-addr:value = '198.51.100.17']",
        "pattern_type": "stix",
        "valid_from": "2016-01-01T00:00:00Z",
        **properties,
    }


def sighting(**properties: Any) -> Document:
    """Give a minimal valid sighting with these properties instead or besides."""
    return {
        "type": "sighting",
        "spec_version": "2.1",
        "id": "sighting--ee20065d-2555-424f-ad9e-0f8428623c75",
        "created": "2016-04-06T20:08:31.000Z",
        "modified": "2016-04-06T20:08:31.000Z",
        "sighting_of_ref": "indicator--8e2e2d2b-17d4-4cbf-938f-98ee46b3cd3f",
        **properties,
    }


def _batch(make: Callable[[int], bytes], seed: int) -> list[bytes]:
    return [make(16 * seed + n) for n in range(16)]


def _id(kind: str, rng: random.Random) -> str:
    return f"{kind}--{uuid.UUID(int=rng.getrandbits(128), version=rng.choice((4, 4, 4, 5)))}"


def _moment(rng: random.Random) -> str:
    fraction = rng.choice(("", ".000", f".{rng.randrange(1000):03}", f".{rng.randrange(10**6):06}"))
    return (
        f"20{rng.randrange(10, 30)}-{rng.randrange(1, 13):02}-{rng.randrange(1, 29):02}"
        f"T{rng.randrange(24):02}:{rng.randrange(60):02}:{rng.randrange(60):02}{fraction}Z"
    )


def _ordinary(rng: random.Random, patterns: tuple[str, ...] = PATTERNS) -> Document:
    made = _moment(rng)
    common: Document = {"created": made, "modified": rng.choice((made, _moment(rng)))}
    own: Document
    if rng.random() < 0.7:
        document = {"type": "indicator", "spec_version": "2.1", "id": _id("indicator", rng)}
        common |= {
            "pattern": rng.choice(patterns),
            "pattern_type": "stix",
            "valid_from": rng.choice((made, "2012" + _moment(rng)[4:])),
        }
        if rng.random() < 0.1:
            common["pattern_type"], common["pattern"] = rng.choice(OTHER_PATTERN_TYPES)
        own = {
            "valid_until": "2031" + _moment(rng)[4:],
            "pattern_version": "2.1",
            "name": "Poison Ivy \u2013 \U0001f600",
            "description": 'This file\nis part of "Poison Ivy"',
            "indicator_types": ["malicious-activity", "my-own"],
            "kill_chain_phases": [{"kill_chain_name": "misp-category", "phase_name": "Other"}],
            "x_threatbus_update": rng.choice(("ADD", "REMOVE")),
            "x_threatbus_match_type": "ip",
        }
    else:
        document = {"type": "sighting", "spec_version": "2.1", "id": _id("sighting", rng)}
        common["sighting_of_ref"] = _id(rng.choice(("indicator", "indicator", "malware")), rng)
        own = {
            "first_seen": made,
            "last_seen": rng.choice((made, "2031" + _moment(rng)[4:])),
            "count": rng.randrange(1000),
            "summary": rng.random() < 0.5,
            "description": "seen",
            "observed_data_refs": [_id("observed-data", rng)],
            "where_sighted_refs": [_id("identity", rng), _id("location", rng)],
            "x_threatbus_sighting_context": {"noisy": True, "depth": [1, {"a": None}]},
            "x_threatbus_indicator_value": "192.0.2.1",
            "x_threatbus_indicator": indicator(),
        }
    own |= {
        "created_by_ref": _id("identity", rng),
        "revoked": rng.random() < 0.5,
        "labels": ['misp:type="AS"', "tlp:amber"],
        "confidence": rng.randrange(101),
        "lang": "en",
        "external_references": [
            {"source_name": "misp", "url": "https://example.com", "external_id": "1"}
        ],
        "object_marking_refs": [_id("marking-definition", rng)],
        "extensions": {
            _id("extension-definition", rng): {"extension_type": "property-extension", "score": 5}
        },
        "x_threatbus_source": "zeek",
        "x_misp_event": {"id": 5, "tags": ["a", "b"], "ratio": 0.5, "none": None},
        "x_opencti_score": 70,
    }
    document |= common
    names = rng.sample(sorted(own), rng.randrange(min(8, len(own))))
    document |= {name: own[name] for name in names}
    if rng.random() < 0.3:
        items = list(document.items())
        rng.shuffle(items)
        document = dict(items)
    return document


def _encode(document: Document, rng: random.Random) -> bytes:
    text = json.dumps(
        document,
        ensure_ascii=rng.random() < 0.5,
        indent=rng.choice((None, None, None, 2)),
        separators=rng.choice((None, (",", ":"))),
    )
    return text.encode("utf-8", "surrogatepass")


def _change_a_value(document: Document, rng: random.Random) -> None:
    name = rng.choice(sorted(document) or [""])
    if rng.random() < 0.3:
        name = rng.choice((*_TIME_NAMES, "confidence", "count", "revoked", "summary", "labels",
            "external_references", "kill_chain_phases", "object_marking_refs", "created_by_ref",
            "extensions", "pattern_version", "pattern_type", "sighting_of_ref"))  # fmt: skip
    document[name] = rng.choice(_STRANGE_VALUES)


def _drop_a_key(document: Document, rng: random.Random) -> None:
    if document:
        del document[rng.choice(sorted(document))]


def _add_a_key(document: Document, rng: random.Random) -> None:
    document[rng.choice(_STRANGE_NAMES)] = rng.choice(_STRANGE_VALUES)


def _change_a_time(document: Document, rng: random.Random) -> None:
    name = rng.choice(_TIME_NAMES)
    if rng.random() < 0.5 or not isinstance(document.get(name), str):
        document[name] = rng.choice(_TIMES)
    else:
        document[name] = _edit(document[name], rng)


def _swap_times(document: Document, rng: random.Random) -> None:
    one, other = rng.sample(_TIME_NAMES, 2)
    document[one], document[other] = document.get(other), document.get(one)


def _break_an_id(document: Document, rng: random.Random) -> None:
    names = [n for n, v in document.items() if n == "id" or n.endswith(("_ref", "_refs"))]
    for name in names and [rng.choice(names)]:
        value = document[name]
        if isinstance(value, str):
            document[name] = _edit(value, rng)
        elif isinstance(value, list) and value and isinstance(value[0], str):
            document[name] = [_edit(value[0], rng), *value[1:]]


def _edit_pattern(document: Document, rng: random.Random) -> None:
    pattern = document.get("pattern")
    if not isinstance(pattern, str):
        return
    for _ in range(rng.choice((1, 1, 2, 3))):
        pattern = _edit(pattern, rng) if rng.random() < 0.4 else _edit_tokens(pattern, rng)
    document["pattern"] = pattern


def _nest(document: Document, rng: random.Random) -> None:
    value: Any = 1
    for _ in range(rng.choice((5, 90, 99, 150))):
        value = [value] if rng.random() < 0.5 else {"a": value}
    name = rng.choice(("x_misp_event", "x_threatbus_sighting_context", "extensions", "labels"))
    if name == "extensions":
        value = {_id("extension-definition", rng): {"a": value}}
    document[name] = value


def _edit(text: str, rng: random.Random) -> str:
    """Delete, insert, replace, double or swap a character."""
    at = rng.randrange(len(text) + 1)
    char = rng.choice(("0", "9", "g", "F", "-", "Z", "T", ".", ":", "'", " ", "\n", "\u0660", "é"))
    return rng.choice(
        (
            text[:at] + text[at + 1 :],
            text[:at] + char + text[at:],
            text[:at] + char + text[at + 1 :],
            text[:at] + text[at : at + 1] + text[at:],
            text[:at] + text[at : at + 2][::-1] + text[at + 2 :],
            text[:at],
            text.upper(),
        )
    )


def _edit_tokens(pattern: str, rng: random.Random) -> str:
    tokens = _TOKENS.findall(pattern)
    at = rng.randrange(len(tokens) + 1)
    token = rng.choice(_EXTRA_TOKENS)
    return "".join(
        rng.choice(
            (
                tokens[:at] + tokens[at + 1 :],
                [*tokens[:at], token, *tokens[at:]],
                [*tokens[:at], token, *tokens[at + 1 :]],
                tokens[:at] + tokens[at : at + 1] + tokens[at:],
                tokens[:at] + tokens[at : at + 2][::-1] + tokens[at + 2 :],
            )
        )
    )


def _duplicate_a_key(data: bytes, rng: random.Random) -> bytes:
    name = rng.choice(("type", "spec_version", "id", "pattern", "created", "x_misp", "labels"))
    value = json.dumps(rng.choice(_STRANGE_VALUES))
    pair = f'"{name}":{value}'.encode()
    body = data.strip()
    if body.startswith(b"{") and rng.random() < 0.5:
        return b"{" + pair + b"," + body[1:]
    return body[:-1] + b"," + pair + b"}"


def _change_a_byte(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    byte = rng.choice((b"\x00", b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b'"', b"\\", b"{", b"}",
        b"[", b",", b":", b"\x01", b"\xef\xbb\xbf", b"\x7f", b"0", b"e"))  # fmt: skip
    return rng.choice((data[:at] + byte + data[at:], data[:at] + data[at + 1 :], data[:at]))


def _escape_a_letter(data: bytes, rng: random.Random) -> bytes:
    letters = [m.start() for m in re.finditer(rb"(?<=[a-z])[a-z](?=[a-z])", data)]
    if not letters:
        return data
    at = rng.choice(letters)
    return data[:at] + b"\\u%04x" % data[at] + data[at + 1 :]


def _insert_a_literal(data: bytes, rng: random.Random) -> bytes:
    literal = rng.choice((b"NaN", b"Infinity", b"-Infinity", b"1e400", b"-0", b"1E5", b"01", b"+1",
        b"9" * 100, b"9" * 4400, b'"\\ud800"', b'"\\ud83d\\ude00"', b'"\\x"', b"nul", b"'x'",
        b"[1,]", b"{}", b"1.", b".5", b"-", b"\"\\u00\"", b"[" * 2000, b"1e-400"))  # fmt: skip
    return data.rstrip()[:-1] + b',"x_literal":' + literal + b"}"


def _wrap(data: bytes, rng: random.Random) -> bytes:
    return rng.choice((b" \t\r\n" + data + b"\n ", data + b"x", b"[" + data + b"]", data * 2,
        b"\xef\xbb\xbf" + data, data.decode("utf-8", "replace").encode("utf-16")))  # fmt: skip


_MUTATIONS: tuple[Callable[[Document, random.Random], None], ...] = (
    _change_a_value,
    _change_a_value,
    _drop_a_key,
    _add_a_key,
    _change_a_time,
    _swap_times,
    _break_an_id,
    _edit_pattern,
    _edit_pattern,
    _edit_pattern,
    _nest,
)
_TEXT_MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _duplicate_a_key,
    _change_a_byte,
    _escape_a_letter,
    _insert_a_literal,
    _wrap,
)
