"""Plugins that are not there, and short ways to read a configuration for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from threatbus.config import Checked, Host, PluginInfo, Port, Text, load, read
from threatbus.errors import InvalidConfig, PluginError


class ZmqConfig(msgspec.Struct, frozen=True, kw_only=True):
    host: Host = "127.0.0.1"
    manage: Port = 13370
    pub: Port = 13371
    sub: Port = 13372
    password: str | None = None
    topics: list[Text] = []


class QueueConfig(msgspec.Struct, frozen=True, kw_only=True):
    name_suffix: str = "a-host"
    durable: bool = True
    max_items: int = 0


class RabbitConfig(msgspec.Struct, frozen=True, kw_only=True):
    host: Host
    port: Port = 5672
    password: str = "guest"
    queue: QueueConfig = QueueConfig()


@dataclass
class Plugin:
    name: str
    schema: type[msgspec.Struct] | None = None
    validators: list[Any] = field(default_factory=list)


@dataclass
class BrokenPlugin:
    name: str
    validators: tuple[()] = ()

    @property
    def schema(self) -> None:
        raise PluginError(f"plugin {self.name} cannot be loaded:\nthere is no kafka")


def named(*plugins: PluginInfo) -> dict[str, PluginInfo]:
    return {plugin.name: plugin for plugin in plugins}


APPS = named(Plugin("zmq", ZmqConfig), Plugin("zeek"))
BACKBONES = named(Plugin("inmem"), Plugin("rabbitmq", RabbitConfig))


MINIMAL = "plugins: {backbones: {inmem: }, apps: {zmq: }}\n"
ZEEK = "plugins: {backbones: {inmem: }, apps: {zeek: {port: 47761, secret_key: hunter2}}}\n"


def from_yaml(
    text: str,
    environ: Mapping[str, str] | None = None,
    apps: Mapping[str, PluginInfo] = APPS,
    backbones: Mapping[str, PluginInfo] = BACKBONES,
) -> Checked:
    file = Path("given.yaml")
    file.write_text(text, encoding="utf-8")
    return read(load(file, environ=dict(environ or {})), apps, backbones)


def from_environment(environ: Mapping[str, str], **installed: Any) -> Checked:
    return read(load(environ=dict(environ)), installed.get("apps", APPS), BACKBONES)


def errors_of(text: str, environ: Mapping[str, str] | None = None, **more: Any) -> list[str]:
    with pytest.raises(InvalidConfig) as caught:
        from_yaml(text, environ, **more)
    return [str(error) for error in caught.value.errors]


def zeek_with(*validators: Any) -> dict[str, PluginInfo]:
    return named(Plugin("zeek", None, list(validators)))
