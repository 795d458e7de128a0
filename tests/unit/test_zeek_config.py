"""The section of the Zeek plugin."""

from __future__ import annotations

from typing import Any

import pytest
from threatbus_zeek.config import ZeekConfig, checked_url

from threatbus.config import check_section

SECTION = "plugins.apps.zeek"


def errors(**values: Any) -> list[str]:
    _, found = check_section(values, ZeekConfig, SECTION)
    return [str(error) for error in found]


def test_a_section_of_2022_5_16_is_in_order() -> None:
    section, found = check_section(
        {"host": "127.0.0.1", "port": 47761, "module_namespace": "Tenzir"}, ZeekConfig, SECTION
    )
    assert found == []
    assert section == ZeekConfig()


@pytest.mark.parametrize(
    ("url", "whole"),
    [
        ("ws://127.0.0.1:27759", "ws://127.0.0.1:27759/v1/messages/json"),
        ("wss://zeek.example/", "wss://zeek.example/v1/messages/json"),
        ("ws://[::1]:27759", "ws://[::1]:27759/v1/messages/json"),
        ("wss://proxy.example/zeek/v1/messages/json",) * 2,
    ],
)
def test_an_address_needs_no_path(url: str, whole: str) -> None:
    assert errors(websockets=[url]) == []
    assert checked_url(url) == whole


@pytest.mark.parametrize(
    "url", ["127.0.0.1:27759", "http://127.0.0.1", "ws://", "ws://host:99999", "ws://[::1", ""]
)
def test_what_is_no_address_is_named_with_its_key(url: str) -> None:
    (error,) = errors(websockets=[url])
    assert error.startswith("plugins.apps.zeek.websockets: is")
    assert repr(url) in error
    assert "wss://" in error


def test_without_broker_there_must_be_a_websocket() -> None:
    (error,) = errors(broker=False)
    assert "plugins.apps.zeek.websockets" in error


@pytest.mark.parametrize("name", ["", "1st", "A B", "A::", "A.b"])
def test_a_namespace_is_a_name_of_zeeks(name: str) -> None:
    (error,) = errors(module_namespace=name)
    assert "plugins.apps.zeek.module_namespace" in error
    assert errors(module_namespace="Site::Intel_2") == []
