"""Questions that plugins ask of patterns."""

from __future__ import annotations

import time

import pytest

from threatbus.stix2_helpers import is_point_equality_ioc, split_object_path_and_value


@pytest.mark.parametrize(
    ("pattern", "path", "value"),
    [
        ("[domain-name:value = 'example.com']", "domain-name:value", "example.com"),
        ("[ipv4-addr:value='192.0.2.1']", "ipv4-addr:value", "192.0.2.1"),
        (" [ url:value  =  'https://a/?b=c' ] ", "url:value", "https://a/?b=c"),
        ("[file:hashes.'SHA-256' = 'ab']", "file:hashes.'SHA-256'", "ab"),
        ("[email-message:to_refs[*].value = 'a@b']", "email-message:to_refs[*].value", "a@b"),
        (r"[file:name = 'it\'s']", "file:name", "it's"),
        (r"[file:name = 'a\\b']", "file:name", r"a\b"),
        (r"[file:name = '\\\'']", "file:name", r"\'"),
        ("[file:name = '']", "file:name", ""),
        ("[file:name = 'a = \\'b\\'] ']", "file:name", "a = 'b'] "),
        ("[file:name = 'bücher']", "file:name", "bücher"),
    ],
)
def test_one_comparison_for_equality_is_split(pattern: str, path: str, value: str) -> None:
    assert is_point_equality_ioc(pattern)
    assert split_object_path_and_value(pattern) == (path, value)


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "[]",
        "[domain-name:value != 'example.com']",
        "[domain-name:value LIKE 'example.%']",
        "[domain-name:value NOT = 'example.com']",
        "[file:size = 12]",
        "[a:b = 'x' OR a:b = 'y']",
        "[a:b = 'x'] AND [a:b = 'y']",
        "[a:b = 'x'] FOLLOWEDBY [a:b = 'y']",
        "[a:b = 'x'] WITHIN 5 SECONDS",
        "([a:b = 'x'])",
        "[a:b = 'x",
        "a:b = 'x'",
        r"[a:b = 'x\']",
        r"[a:b = 'x\n']",
        "[value = 'x']",
    ],
)
def test_every_other_pattern_is_not(pattern: str) -> None:
    assert not is_point_equality_ioc(pattern)
    assert split_object_path_and_value(pattern) is None


def test_a_long_pattern_takes_no_longer_than_its_length() -> None:
    began = time.thread_time()
    assert not is_point_equality_ioc("[a:" + "b" * 200_000 + "'" * 3 + "[")
    assert not is_point_equality_ioc("[a:b = '" + "\\'" * 200_000)
    assert time.thread_time() - began < 2
