"""Patterns of MISP's attribute types, held against the reference parser and the library."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import pytest
import stix2
import stix2patterns.v21.pattern
from hypothesis import given, settings
from hypothesis import strategies as st
from stix2.pattern_visitor import create_pattern_object
from threatbus_misp.mapping.indicators import indicator_of
from threatbus_misp.mapping.model import Attribute
from threatbus_misp.mapping.patterns import (
    MISP_TYPES,
    RULES,
    MispValue,
    Pattern,
    pattern_of,
    value_of,
    why_no_pattern,
)

from threatbus.fastpath import FastPath

MD5: Final = "b2a5abfeef9e36964281a31e17b57c97"
SHA1: Final = "2920d5e6c579fce772e5506caf03af65579088bd"
SSDEEP: Final = "96:QRWkwoBevsL0JsIQ3pq8dxbuTet7eU/uEzAfue9atn0JbIi:QRWktBe80JsIIq8dxKyPew0JbIi"
TLSH: Final = "c325af62e2f15cf7c32316389d1b57a46827be703d3879866bf52c385f396813829297"
VHASH: Final = "115056655d15151138z66hz1021z55z66z3"
YARA: Final = 'rule a { strings: $x = "it\'s \\\\" condition: $x }'
SIGMA: Final = "title: Renamed tool\nlogsource:\n  product: windows\n"
SNORT: Final = 'alert tcp any any -> 8.8.8.8 any (msg:"x|00|"; sid:1;)'


def digits(count: int) -> str:
    return ("0123456789abcdef" * 8)[:count]


# An example of every type: MISP's value, and the pattern it has to become.
EXAMPLES: Final[dict[str, tuple[str, str]]] = {
    "AS": ("174", "[autonomous-system:number = 174]"),
    "attachment": ("attachment.test", "[file:name = 'attachment.test']"),
    "authentihash": (digits(64), f"[file:hashes.AUTHENTIHASH = '{digits(64)}']"),
    "bro": ("event zeek_init() {}", "event zeek_init() {}"),
    "cdhash": (SHA1, f"[file:hashes.CDHASH = '{SHA1}']"),
    "community-id": ("1:abc=", "[x-misp-community-id:value = '1:abc=']"),
    "cookie": (
        "PHPSESSID=1; a='b'",
        "[network-traffic:extensions.'http-request-ext'.request_header.Cookie"
        r" = 'PHPSESSID=1; a=\'b\'']",
    ),
    "domain": ("circl.lu", "[domain-name:value = 'circl.lu']"),
    "domain|ip": (
        "circl.lu|149.13.33.14",
        "[domain-name:value = 'circl.lu'"
        " AND domain-name:resolves_to_refs[*].value = '149.13.33.14']",
    ),
    "email": ("address@email.test", "[email-addr:value = 'address@email.test']"),
    "email-attachment": (
        "a.test",
        "[email-message:body_multipart[*].body_raw_ref.name = 'a.test']",
    ),
    "email-body": ("Two\nlines", "[email-message:body = 'Two\nlines']"),
    "email-dst": ("dst@email.test", "[email-message:to_refs[*].value = 'dst@email.test']"),
    "email-dst-display-name": ("D", "[email-message:to_refs[*].display_name = 'D']"),
    "email-header": (
        "from mail.example.com ([198.51.100.3]) by x",
        "[email-message:received_lines[*] = 'from mail.example.com ([198.51.100.3]) by x']",
    ),
    "email-message-id": ("1234", "[email-message:message_id = '1234']"),
    "email-reply-to": (
        "r@e.test",
        "[email-message:additional_header_fields.reply_to = 'r@e.test']",
    ),
    "email-src": ("src@email.test", "[email-message:from_ref.value = 'src@email.test']"),
    "email-src-display-name": ("D", "[email-message:from_ref.display_name = 'D']"),
    "email-subject": ("Test Subject", "[email-message:subject = 'Test Subject']"),
    "email-x-mailer": ("M 1", "[email-message:additional_header_fields.x_mailer = 'M 1']"),
    "favicon-mmh3": ("-1588080585", "[x-misp-favicon-mmh3:value = '-1588080585']"),
    "filename": (r"C:\it's", r"[file:name = 'C:\\it\'s']"),
    "filename|authentihash": (
        f"f|{digits(64)}",
        f"[file:name = 'f' AND file:hashes.AUTHENTIHASH = '{digits(64)}']",
    ),
    "filename|imphash": (f"f|{MD5}", f"[file:name = 'f' AND file:hashes.IMPHASH = '{MD5}']"),
    "filename|impfuzzy": ("f|3:a:b", "[file:name = 'f' AND file:hashes.IMPFUZZY = '3:a:b']"),
    "filename|md5": (f"a|b|{MD5}", f"[file:name = 'a|b' AND file:hashes.MD5 = '{MD5}']"),
    "filename|pehash": (f"f|{SHA1}", f"[file:name = 'f' AND file:hashes.PEHASH = '{SHA1}']"),
    "filename|sha1": (f"f|{SHA1}", f"[file:name = 'f' AND file:hashes.'SHA-1' = '{SHA1}']"),
    "filename|ssdeep": (
        f"f|{SSDEEP}",
        f"[file:name = 'f' AND file:hashes.SSDEEP = '{SSDEEP}']",
    ),
    "filename|tlsh": (f"f|{TLSH}", f"[file:name = 'f' AND file:hashes.TLSH = '{TLSH}']"),
    "filename|vhash": (f"f|{VHASH}", f"[file:name = 'f' AND file:hashes.VHASH = '{VHASH}']"),
    "github-username": (
        "chrisr3d",
        "[user-account:account_type = 'github' AND user-account:account_login = 'chrisr3d']",
    ),
    "hassh-md5": (MD5, f"[x-misp-hassh-md5:value = '{MD5}']"),
    "hasshserver-md5": (MD5, f"[x-misp-hasshserver-md5:value = '{MD5}']"),
    "hostname": ("www.circl.lu", "[domain-name:value = 'www.circl.lu']"),
    "hostname|port": (
        "circl.lu|8443",
        "[network-traffic:dst_ref.value = 'circl.lu' AND network-traffic:dst_port = 8443]",
    ),
    "http-method": (
        "POST",
        "[network-traffic:extensions.'http-request-ext'.request_method = 'POST']",
    ),
    "imphash": (MD5, f"[file:hashes.IMPHASH = '{MD5}']"),
    "impfuzzy": ("3:a:b", "[file:hashes.IMPFUZZY = '3:a:b']"),
    "ip-dst": ("5.6.7.8", "[ipv4-addr:value = '5.6.7.8']"),
    "ip-dst|port": (
        "5.6.7.8|5678",
        "[network-traffic:dst_ref.value = '5.6.7.8' AND network-traffic:dst_port = 5678]",
    ),
    "ip-src": ("2001:db8::/32", "[ipv6-addr:value = '2001:db8::/32']"),
    "ip-src|port": (
        "2001:db8::1|1234",
        "[network-traffic:src_ref.value = '2001:db8::1' AND network-traffic:src_port = 1234]",
    ),
    "ja3-fingerprint-md5": (MD5, f"[x-misp-ja3-fingerprint-md5:value = '{MD5}']"),
    "jarm-fingerprint": (digits(62), f"[x-misp-jarm-fingerprint:value = '{digits(62)}']"),
    "link": ("https://a.test/", "[url:value = 'https://a.test/']"),
    "mac-address": ("12:34:56:78:90:ab", "[mac-addr:value = '12:34:56:78:90:ab']"),
    "malware-sample": (f"oui|{MD5}", f"[file:name = 'oui' AND file:hashes.MD5 = '{MD5}']"),
    "md5": (MD5, f"[file:hashes.MD5 = '{MD5}']"),
    "mutex": ("MutexTest", "[mutex:name = 'MutexTest']"),
    "pehash": (SHA1, f"[file:hashes.PEHASH = '{SHA1}']"),
    "port": ("8443", "[network-traffic:dst_port = 8443]"),
    "regkey": (r"HKLM\Software", r"[windows-registry-key:key = 'HKLM\\Software']"),
    "regkey|value": (
        r"HKLM\Software\m|%DATA%\1|2",
        r"[windows-registry-key:key = 'HKLM\\Software\\m'"
        r" AND windows-registry-key:values[*].data = '%DATA%\\1|2']",
    ),
    "sha1": (SHA1, f"[file:hashes.'SHA-1' = '{SHA1}']"),
    "sigma": (SIGMA, SIGMA),
    "size-in-bytes": ("1234", "[file:size = 1234]"),
    "snort": (SNORT, SNORT),
    "ssdeep": (SSDEEP, f"[file:hashes.SSDEEP = '{SSDEEP}']"),
    "suricata": (SNORT, SNORT),
    "telfhash": (TLSH, f"[file:hashes.TELFHASH = '{TLSH}']"),
    "tlsh": (f"T1{TLSH}", f"[file:hashes.TLSH = 'T1{TLSH}']"),
    "uri": ("/a?b='", r"[url:value = '/a?b=\'']"),
    "url": ("https://a.test/%20?x=1", "[url:value = 'https://a.test/%20?x=1']"),
    "user-agent": (
        "Mozilla Firefox",
        "[network-traffic:extensions.'http-request-ext'.request_header.'User-Agent'"
        " = 'Mozilla Firefox']",
    ),
    "vhash": (VHASH, f"[file:hashes.VHASH = '{VHASH}']"),
    "x509-fingerprint-md5": (MD5, f"[x509-certificate:hashes.MD5 = '{MD5}']"),
    "x509-fingerprint-sha1": (SHA1, f"[x509-certificate:hashes.'SHA-1' = '{SHA1}']"),
    "x509-fingerprint-sha256": (
        digits(64),
        f"[x509-certificate:hashes.'SHA-256' = '{digits(64)}']",
    ),
    "yara": (YARA, YARA),
    "zeek": ("event zeek_init() {}", "event zeek_init() {}"),
}
for _type, _name, _count in (
    ("sha224", "SHA-224", 56),
    ("sha256", "SHA-256", 64),
    ("sha384", "SHA-384", 96),
    ("sha512", "SHA-512", 128),
    ("sha512/224", "SHA-512-224", 56),
    ("sha512/256", "SHA-512-256", 64),
    ("sha3-224", "SHA3-224", 56),
    ("sha3-256", "SHA3-256", 64),
    ("sha3-384", "SHA3-384", 96),
    ("sha3-512", "SHA3-512", 128),
):
    _hash = digits(_count)
    EXAMPLES[_type] = (_hash, f"[file:hashes.'{_name}' = '{_hash}']")
    EXAMPLES[f"filename|{_type}"] = (
        f"f|{_hash}",
        f"[file:name = 'f' AND file:hashes.'{_name}' = '{_hash}']",
    )

# What misp-stix has no indicator for; it has one for each of the 78 others.
OURS_ALONE: Final = {
    "bro",
    "cdhash",
    "community-id",
    "cookie",
    "email-dst-display-name",
    "email-src-display-name",
    "favicon-mmh3",
    "filename|impfuzzy",
    "hassh-md5",
    "hasshserver-md5",
    "impfuzzy",
    "ja3-fingerprint-md5",
    "jarm-fingerprint",
    "zeek",
}

recognise = FastPath().recognise


def document(misp_type: str, value: str) -> bytes:
    uuid = "1fe4ade4-d727-450f-88c1-552f5f68c7fa"
    return indicator_of(Attribute(uuid, misp_type, value, timestamp=1795486613)).data


def must_hold(misp_type: str, value: str) -> None:
    """What is promised of every pattern."""
    pattern = pattern_of(misp_type, value)
    assert pattern is not None, why_no_pattern(misp_type, value)
    if pattern.pattern_type == "stix":
        stix2patterns.v21.pattern.Pattern(pattern.text)
        create_pattern_object(pattern.text, version="2.1")
    parsed = stix2.parse(document(misp_type, value), allow_custom=True)
    assert parsed.pattern == pattern.text
    split = value_of(*pattern)
    assert split is not None
    assert misp_type in split.types
    assert split.value == value


def test_every_type_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs/mapping-misp.md").read_text(encoding="utf-8")
    table = text.partition("## Attribute types")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?`) \| ", table, re.MULTILINE)
    documented = [found.replace("\\|", "|") for row in rows for found in re.findall("`(.*?)`", row)]
    assert sorted(documented) == sorted(MISP_TYPES)


def test_there_is_an_example_of_every_type() -> None:
    assert set(EXAMPLES) == MISP_TYPES
    assert len(MISP_TYPES - OURS_ALONE) == 78


@pytest.mark.parametrize("misp_type", ["ip-src", "ip-dst"])
def test_an_address_is_of_the_kind_that_it_is(misp_type: str) -> None:
    """IPv6 addresses became `ipv4-addr`."""
    for value, kind in (
        ("2001:db8::1", "ipv6-addr"),
        ("2001:db8::/32", "ipv6-addr"),
        ("192.0.2.1", "ipv4-addr"),
        ("192.0.2.0/24", "ipv4-addr"),
    ):
        pattern = pattern_of(misp_type, value)
        assert pattern is not None
        assert pattern.text == f"[{kind}:value = '{value}']"


@pytest.mark.parametrize("misp_type", sorted(EXAMPLES))
def test_each_type_becomes_its_pattern_and_takes_the_fast_path(misp_type: str) -> None:
    """No hash, no file name, no composite, no rule had a mapping."""
    value, expected = EXAMPLES[misp_type]
    assert pattern_of(misp_type, value) == Pattern(expected, RULES.get(misp_type, "stix"))
    must_hold(misp_type, value)
    assert recognise([document(misp_type, value)]) == ["stix2/indicator"]


# Any value.

text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
hard_text = st.text(st.sampled_from("'\\|[]= \n\0:aé\U0001f600"), min_size=1, max_size=12)
texts = text | hard_text
words = texts.filter(lambda found: "|" not in found)
addresses = st.ip_addresses().map(str) | st.builds(
    lambda address, prefix: f"{address}/{prefix % (address.max_prefixlen + 1)}",
    st.ip_addresses(),
    st.integers(0, 128),
)
ports = st.integers(0, 65535).map(str)
HASH_DIGITS: Final = {
    "md5": 32,
    "sha1": 40,
    "sha224": 56,
    "sha256": 64,
    "sha384": 96,
    "sha512": 128,
    "sha512/224": 56,
    "sha512/256": 64,
    "sha3-224": 56,
    "sha3-256": 64,
    "sha3-384": 96,
    "sha3-512": 128,
}


def hex_text(count: int) -> st.SearchStrategy[str]:
    return st.text(st.sampled_from("0123456789abcdefABCDEF"), min_size=count, max_size=count)


def hashes_of(misp_type: str) -> st.SearchStrategy[str]:
    if misp_type in HASH_DIGITS:
        return hex_text(HASH_DIGITS[misp_type])
    if misp_type == "ssdeep":
        return st.text(st.sampled_from("abcXYZ019/+:."), min_size=1, max_size=128)
    return words


def pairs(first: st.SearchStrategy[str], second: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.builds("{}|{}".format, first, second)


def values_of(misp_type: str) -> st.SearchStrategy[str]:
    """Give the values that MISP takes for a type, and harder ones."""
    special: dict[str, Any] = {
        "AS": st.integers(0, 2**32 - 1).map(str),
        "size-in-bytes": st.integers(0, 2**64 - 1).map(str),
        "port": ports,
        "ip-src": addresses,
        "ip-dst": addresses,
        "ip-src|port": pairs(addresses, ports),
        "ip-dst|port": pairs(addresses, ports),
        "hostname|port": pairs(texts | addresses, ports),
        "domain|ip": pairs(texts, addresses),
        "regkey|value": pairs(words, texts),
        "malware-sample": pairs(texts, hex_text(32)),
    }
    if misp_type in special:
        return special[misp_type]  # type: ignore[no-any-return]
    if misp_type in RULES:
        return texts.filter(lambda found: found.strip() != "" and found[0] != "[")
    if misp_type.startswith("filename|"):
        return pairs(texts, hashes_of(misp_type.removeprefix("filename|")))
    if misp_type.startswith("x509-fingerprint-"):
        return hashes_of(misp_type.removeprefix("x509-fingerprint-"))
    if misp_type in HASH_DIGITS or misp_type == "ssdeep":
        return hashes_of(misp_type)
    return texts


@pytest.mark.parametrize("misp_type", sorted(MISP_TYPES))
def test_any_value_makes_a_valid_pattern_and_comes_back(misp_type: str) -> None:
    @settings(derandomize=True, database=None, deadline=None, max_examples=20)
    @given(values_of(misp_type))
    def check(value: str) -> None:
        must_hold(misp_type, value)

    check()


@settings(derandomize=True, database=None, deadline=None, max_examples=300)
@given(st.sampled_from(sorted(MISP_TYPES)), texts)
def test_any_text_makes_a_valid_pattern_or_none_with_a_reason(misp_type: str, value: str) -> None:
    pattern = pattern_of(misp_type, value)
    if pattern is None:
        assert why_no_pattern(misp_type, value) not in ("", "there is a pattern")
    elif pattern.pattern_type == "stix":
        stix2patterns.v21.pattern.Pattern(pattern.text)
        assert value_of(*pattern) is not None


@settings(derandomize=True, database=None, deadline=None)
@given(texts | st.builds("[{}]".format, texts))
def test_any_text_can_be_asked_for_its_value(pattern: str) -> None:
    assert value_of(pattern) is None or pattern.strip()[0] == "["


# Values that are none of their type.


@pytest.mark.parametrize(
    ("misp_type", "value", "why"),
    [
        ("md5", MD5[1:], "32 hexadecimal digits"),
        ("md5", "g" * 32, "32 hexadecimal digits"),
        ("sha256", MD5, "64 hexadecimal digits"),
        ("md5", MD5[1:] + "\n", "32 hexadecimal digits"),
        ("filename|md5", f"f|{SHA1}", "32 hexadecimal digits"),
        ("filename|md5", MD5, "without |"),
        ("filename|md5", f"|{MD5}", "empty"),
        ("ssdeep", "a" * 129, "ssdeep"),
        ("ssdeep", "3:a,b", "ssdeep"),
        ("ssdeep", "", "empty"),
        ("imphash", "", "empty"),
        ("ip-dst", "1.2.3", "IP address"),
        ("ip-dst", "1.2.3.4.", "IP address"),
        ("ip-dst", "example.com", "IP address"),
        ("ip-dst", "1.2.3.4' OR x", "IP address"),
        ("ip-dst", "1.2.3.4/33", "CIDR"),
        ("ip-dst", "1.2.3.4/", "CIDR"),
        ("ip-dst", "1.2.3.4/٣", "CIDR"),
        ("ip-src", "2001:db8::/129", "CIDR"),
        ("ip-src", "fe80::1%e'", "zone"),
        ("ip-dst|port", "1.2.3.4|65536", "65535"),
        ("ip-dst|port", "1.2.3.4|-1", "65535"),
        ("ip-dst|port", "1.2.3.4|²", "65535"),
        ("ip-dst|port", "1.2.3.4", "without |"),
        ("hostname|port", "a|http", "65535"),
        ("port", "9" * 5000, "65535"),
        ("AS", "ASX", "whole number"),
        ("AS", "4294967296", "whole number"),
        ("size-in-bytes", "1.5", "whole number"),
        ("regkey|value", "HKLM", "without |"),
        ("domain", "", "empty"),
        ("yara", " \n", "empty"),
        ("snort", "[alert]", "not a snort rule"),
        ("comment", "deleted", "no pattern for this type"),
        ("md5", MD5, "there is a pattern"),
    ],
)
def test_a_value_that_is_none_of_its_type_has_no_pattern_and_a_reason(
    misp_type: str, value: str, why: str
) -> None:
    assert (pattern_of(misp_type, value) is None) == (why != "there is a pattern")
    assert why in why_no_pattern(misp_type, value)


def test_what_misp_writes_in_more_than_one_way_becomes_one() -> None:
    assert pattern_of("AS", "AS174") == pattern_of("AS", "174")
    assert pattern_of("ip-dst|port", "1.2.3.4|0443") == pattern_of("ip-dst|port", "1.2.3.4|443")


# Dialects of others.


@pytest.mark.parametrize(
    ("pattern", "types", "value"),
    [
        ("[autonomous-system:number = '174']", ("AS",), "174"),
        (
            "[network-traffic:dst_ref.type = 'ipv4-addr' AND network-traffic:dst_ref.value"
            " = '5.6.7.8']",
            ("ip-dst", "hostname", "domain"),
            "5.6.7.8",
        ),
        ("[network-traffic:dst_ref.value = 'x.test']", ("hostname", "domain"), "x.test"),
        ("[network-traffic:src_ref.value='5.6.7.8']", ("ip-src",), "5.6.7.8"),
        (
            "[network-traffic:src_ref.type = 'ipv4-addr' AND network-traffic:src_ref.value"
            " = '1.2.3.4' AND network-traffic:src_port = '1234']",
            ("ip-src|port",),
            "1.2.3.4|1234",
        ),
        (
            "[ipv4-addr:value = '1.2.3.4' AND network-traffic:dst_port = 443]",
            ("ip-dst|port",),
            "1.2.3.4|443",
        ),
        (
            "[network-traffic:dst_port = 443 AND network-traffic:dst_ref.value = '1.2.3.4']",
            ("ip-dst|port", "hostname|port"),
            "1.2.3.4|443",
        ),
        (
            "[domain-name:value = 'circl.lu' AND network-traffic:dst_port = '8443']",
            ("hostname|port",),
            "circl.lu|8443",
        ),
        ("[domain-name:value = 'x' AND ipv6-addr:value = '::1']", ("domain|ip",), "x|::1"),
        ("[file:hashes.SHA256 = 'ab']", ("sha256",), "ab"),
        ("[file:hashes.'SHA-256'='ab']", ("sha256",), "ab"),
        ("[file:hashes.'sha-256' = 'ab']", ("sha256",), "ab"),
        ("[file:size = '1234']", ("size-in-bytes",), "1234"),
        ("[email-message:received_lines = 'x']", ("email-header",), "x"),
        (
            "[email-message:additional_header_fields.'Reply-To' = 'x']",
            ("email-reply-to",),
            "x",
        ),
        (
            "[windows-registry-key:key = 'k' AND windows-registry-key:values.data = 'd']",
            ("regkey|value",),
            "k|d",
        ),
        (
            "[file:content_ref.payload_bin = 'UEs=' AND file:name = 'oui' AND file:hashes.MD5 = "
            "'876460' AND file:content_ref.mime_type = 'application/zip']",
            ("filename|md5", "malware-sample"),
            "oui|876460",
        ),
        (
            "[file:name = 'a' AND file:content_ref.payload_bin = 'ZWNobw==']",
            ("filename", "attachment"),
            "a",
        ),
        (" [ ipv4-addr:value\t=\n'1.2.3.4' ] ", ("ip-dst", "ip-src"), "1.2.3.4"),
    ],
)
def test_patterns_in_other_dialects_give_the_same_value(
    pattern: str, types: tuple[str, ...], value: str
) -> None:
    stix2patterns.v21.pattern.Pattern(pattern)
    assert value_of(pattern) == MispValue(types, value)


def test_a_rule_in_square_brackets_is_the_rule() -> None:
    assert value_of(f"[{YARA}]", "yara") == value_of(YARA, "yara") == MispValue(("yara",), YARA)
    assert value_of("x", "pcre") is None


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "[",
        "[]",
        "[ipv4-addr:value = '1.2.3.4'",
        "[ipv4-addr:value = '1.2.3.4' OR ipv4-addr:value = '1.2.3.5']",
        "[ipv4-addr:value = '1.2.3.4' AND ipv4-addr:value = '1.2.3.5']",
        "[ipv4-addr:value = '1.2.3.4'] AND [domain-name:value = 'x']",
        "[ipv4-addr:value != '1.2.3.4']",
        "[ipv4-addr:value LIKE '1.2.3.%']",
        "[file:name = 'a'] START t'2026-01-01T00:00:00Z' STOP t'2026-01-02T00:00:00Z'",
        "[software:name = 'x']",
        "[user-account:account_type = 'unix' AND user-account:account_login = 'root']",
        "[user-account:account_login = 'root']",
        "[domain-name:value = 'x' AND user-account:account_type = 'github']",
        "[" + " AND ".join(f"file:x{n} = 'a'" for n in range(99)) + "]",
    ],
)
def test_what_no_attribute_can_say_has_no_value(pattern: str) -> None:
    assert value_of(pattern) is None
