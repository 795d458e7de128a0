"""What a STIX pattern comes down to in Zeek's Intel framework."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from threatbus_misp.mapping.patterns import pattern_of
from threatbus_zeek.patterns import MAX_ITEMS, items_of

SHA256 = "ab" * 32


def reduced(pattern: str, *, reduce_ip_port: bool = False) -> list[tuple[str, str]]:
    return [(kind, value) for kind, value, *_ in items_of(pattern, reduce_ip_port=reduce_ip_port)]


@pytest.mark.parametrize(
    ("comparison", "intel_type", "value"),
    [
        ("domain-name:value = 'evil.example'", "DOMAIN", "evil.example"),
        ("ipv4-addr:value = '198.51.100.7'", "ADDR", "198.51.100.7"),
        ("ipv4-addr:value = '198.51.100.0/24'", "SUBNET", "198.51.100.0/24"),
        ("ipv4-addr:value = '198.51.100.7/24'", "SUBNET", "198.51.100.0/24"),
        ("ipv4-addr:value = '198.51.100.7/32'", "SUBNET", "198.51.100.7/32"),
        ("ipv6-addr:value = '2001:DB8::1'", "ADDR", "2001:db8::1"),
        ("ipv6-addr:value = '2001:db8::/32'", "SUBNET", "2001:db8::/32"),
        ("ipv4-addr:value = '2001:db8::1'", "ADDR", "2001:db8::1"),
        ("url:value = 'http://evil.example/a?b=c&d=e'", "URL", "evil.example/a?b=c&d=e"),
        ("url:value = 'https://evil.example:8443/a/b'", "URL", "evil.example:8443/a/b"),
        ("url:value = 'HTTP://evil.example'", "URL", "evil.example"),
        ("url:value = 'ftp://evil.example/x'", "URL", "evil.example/x"),
        ("url:value = 'evil.example/path'", "URL", "evil.example/path"),
        ("url:value = 'evil.example/?u=http://b/'", "URL", "evil.example/?u=http://b/"),
        ("email-addr:value = 'spam@evil.example'", "EMAIL", "spam@evil.example"),
        ("file:name = 'evil \\'x\\' \\\\ y.exe'", "FILE_NAME", "evil 'x' \\ y.exe"),
        ("file:hashes.MD5 = 'd41d'", "FILE_HASH", "d41d"),
        ("file:hashes.'SHA-1' = 'da39'", "FILE_HASH", "da39"),
        ("file:hashes.'SHA-256' = 'ab'", "FILE_HASH", "ab"),
        ("file:hashes.'SHA-512' = 'cd'", "FILE_HASH", "cd"),
        ("file:hashes.SSDEEP = '96:QRW'", "FILE_HASH", "96:QRW"),
        ("file:hashes.TLSH = 'c3'", "FILE_HASH", "c3"),
        ("x509-certificate:hashes.'SHA-1' = '46ab'", "CERT_HASH", "46ab"),
        ("x509-certificate:hashes.SHA1 = '46ab'", "CERT_HASH", "46ab"),
        ("software:name = 'nmap'", "SOFTWARE", "nmap"),
        ("user-account:user_id = 'root'", "USER_NAME", "root"),
        ("user-account:account_login = 'mallory'", "USER_NAME", "mallory"),
        ("network-traffic:dst_ref.value = '198.51.100.7'", "ADDR", "198.51.100.7"),
        ("network-traffic:dst_ref.value = 'evil.example'", "DOMAIN", "evil.example"),
        ("email-message:from_ref.value = 'spam@evil.example'", "EMAIL", "spam@evil.example"),
        ("email-message:to_refs[*].value = 'drop@evil.example'", "EMAIL", "drop@evil.example"),
        (
            "network-traffic:extensions.'http-request-ext'.request_header.'User-Agent' = 'Bot 1'",
            "SOFTWARE",
            "Bot 1",
        ),
    ],
)  # fmt: skip
def test_the_path_of_an_equality_decides_the_intel_type(
    comparison: str, intel_type: str, value: str
) -> None:
    assert reduced(f"[{comparison}]") == [(intel_type, value)]


@pytest.mark.parametrize(
    "pattern",
    [
        "[ipv4-addr:value='192.0.2.1']",
        "  [ ipv4-addr:value  =  '192.0.2.1' ] ",
        "([ipv4-addr:value = '192.0.2.1'])",
        "[(ipv4-addr:value = '192.0.2.1')]",
        "[ipv4-addr:value = '192.0.2.1'] OR [ipv4-addr:value = '192.0.2.1']",
        "[ipv4-addr:value = '192.0.2.1' OR process:name = 'x']",
        "[network-traffic:src_ref.type = 'ipv4-addr'"
        " AND network-traffic:src_ref.value = '192.0.2.1']",
    ],
)
def test_how_it_is_written_does_not_matter(pattern: str) -> None:
    assert reduced(pattern) == [("ADDR", "192.0.2.1")]


def test_alternatives_are_an_item_each() -> None:
    pattern = (
        "[ipv4-addr:value = '192.0.2.1' OR domain-name:value = 'a.example']"
        " OR [url:value = 'http://b.example/']"
    )
    assert reduced(pattern) == [
        ("ADDR", "192.0.2.1"),
        ("DOMAIN", "a.example"),
        ("URL", "b.example/"),
    ]


@pytest.mark.parametrize(
    "pattern",
    [
        f"[file:name = 'a.exe' AND file:hashes.'SHA-256' = '{SHA256}']",
        f"[file:hashes.'SHA-256' = '{SHA256}' AND file:name = 'a.exe' AND file:size = 5]",
    ],
)
def test_of_a_file_name_and_a_hash_the_hash_remains(pattern: str) -> None:
    assert reduced(pattern) == [("FILE_HASH", SHA256)]


def test_several_hashes_of_one_file_are_an_item_each() -> None:
    pattern = "[file:hashes.MD5 = 'aa' AND file:hashes.'SHA-1' = 'bb']"
    assert reduced(pattern) == [("FILE_HASH", "aa"), ("FILE_HASH", "bb")]


@pytest.mark.parametrize(
    "pattern",
    [
        "[domain-name:value = 'a.example' AND domain-name:resolves_to_refs[*].value = '192.0.2.1']",
        "[domain-name:value = 'a.example' AND ipv4-addr:value = '192.0.2.1']",
        "[domain-name:value = 'a.example'"
        " AND (ipv4-addr:value = '192.0.2.1' OR ipv4-addr:value = '192.0.2.2')]",
    ],
)
def test_of_a_domain_and_its_address_the_domain_remains(pattern: str) -> None:
    assert reduced(pattern) == [("DOMAIN", "a.example")]


@pytest.mark.parametrize(
    "pattern",
    [
        "[ipv4-addr:value = '192.0.2.1' AND network-traffic:dst_port = 443]",
        "[ipv4-addr:value = '192.0.2.1' AND network-traffic:dst_port = '443']",
        "[network-traffic:dst_ref.type = 'ipv4-addr'"
        " AND network-traffic:dst_ref.value = '192.0.2.1'"
        " AND network-traffic:dst_port = '443' AND network-traffic:protocols[0] = 'tcp']",
    ],
)
def test_an_address_with_a_port_is_reduced_by_option_only(pattern: str) -> None:
    assert reduced(pattern) == []
    assert reduced(pattern, reduce_ip_port=True) == [("ADDR", "192.0.2.1")]


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "[",
        "[ipv4-addr:value = '192.0.2.1'",
        "[ipv4-addr:value = '192.0.2.1'] nonsense",
        "[ipv4-addr:value = '192.0.2.1'] WITHIN 5 SECONDS",
        "[ipv4-addr:value = '192.0.2.1'] FOLLOWEDBY [ipv4-addr:value = '192.0.2.2']",
        "[ipv4-addr:value != '192.0.2.1']",
        "[NOT ipv4-addr:value = '192.0.2.1']",
        "[ipv4-addr:value LIKE '192.0.2.%']",
        "[ipv4-addr:value ISSUBSET '192.0.2.0/24']",
        "[ipv4-addr:value = 'not an address']",
        "[ipv6-addr:value = 'fe80::1%eth0']",
        "[ipv4-addr:value = '192.0.2.0/99']",
        "[process:name = 'x']",
        "[x509-certificate:hashes.MD5 = 'ab']",
        "[network-traffic:dst_port = 443]",
        "[file:name = 'a.exe' AND file:size = 5]",
        "[domain-name:value = 'a.example' AND url:value = 'http://a.example/']",
        "[ipv4-addr:value = '192.0.2.1' AND ipv4-addr:value = '192.0.2.2']",
        "[ipv4-addr:value = '192.0.2.1' AND network-traffic:dst_port = 1 AND file:name = 'x']",
        "[domain-name:value = '']",
    ],
)  # fmt: skip
def test_what_zeek_cannot_match_has_no_items(pattern: str) -> None:
    assert reduced(pattern, reduce_ip_port=True) == []


def test_a_pattern_of_too_many_alternatives_is_left_alone() -> None:
    many = " OR ".join(f"[domain-name:value = '{n}.example']" for n in range(MAX_ITEMS + 1))
    assert reduced(many) == []
    # It is not spelled out first: two to the power of fifty alternatives.
    either = " AND ".join("(domain-name:value = 'a' OR domain-name:value = 'b')" for _ in range(50))
    assert reduced(f"[{either}]") == []


def test_parentheses_without_end_are_left_alone() -> None:
    assert reduced("(" * 100_000 + "[domain-name:value = 'a']" + ")" * 100_000) == []


@given(st.text("[]()=' \\abOR AND:-.value0123*", max_size=60))
def test_no_text_makes_it_fail(pattern: str) -> None:
    reduced(pattern)


@given(st.text(min_size=1))
def test_any_value_comes_through_its_quotes(value: str) -> None:
    quoted = value.replace("\\", "\\\\").replace("'", "\\'")
    assert reduced(f"[file:name = '{quoted}']") == [("FILE_NAME", value)]


@pytest.mark.parametrize(
    ("misp_type", "value", "item"),
    [
        ("ip-dst", "198.51.100.7", ("ADDR", "198.51.100.7")),
        ("ip-src", "2001:db8::1", ("ADDR", "2001:db8::1")),
        ("ip-dst", "198.51.100.0/24", ("SUBNET", "198.51.100.0/24")),
        ("ip-dst|port", "198.51.100.7|443", ("ADDR", "198.51.100.7")),
        ("domain", "evil.example", ("DOMAIN", "evil.example")),
        ("hostname", "a.evil.example", ("DOMAIN", "a.evil.example")),
        ("hostname|port", "a.evil.example|443", ("DOMAIN", "a.evil.example")),
        ("domain|ip", "evil.example|198.51.100.7", ("DOMAIN", "evil.example")),
        ("url", "http://evil.example/a", ("URL", "evil.example/a")),
        ("email-src", "spam@evil.example", ("EMAIL", "spam@evil.example")),
        ("email-dst", "drop@evil.example", ("EMAIL", "drop@evil.example")),
        ("filename", "evil.exe", ("FILE_NAME", "evil.exe")),
        ("sha256", SHA256, ("FILE_HASH", SHA256)),
        ("filename|sha256", f"evil.exe|{SHA256}", ("FILE_HASH", SHA256)),
        ("x509-fingerprint-sha1", "ab" * 20, ("CERT_HASH", "ab" * 20)),
        ("user-agent", "Bot 1", ("SOFTWARE", "Bot 1")),
    ],
)
def test_what_misp_publishes_and_zeek_can_match_reaches_it(
    misp_type: str, value: str, item: tuple[str, str]
) -> None:
    pattern = pattern_of(misp_type, value)
    assert pattern is not None
    assert reduced(pattern.text, reduce_ip_port=True) == [item]
