"""What the documentation says is so: every key, with its default, where an operator looks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final, get_args

import msgspec
import pytest
from threatbus_inmem.plugin import InMemoryConfig
from threatbus_misp.config import FilterConfig, InstanceConfig
from threatbus_rabbitmq.config import RabbitMQConfig
from threatbus_web.config import WebConfig
from threatbus_zeek.config import ZeekConfig
from threatbus_zmq.config import ZmqConfig

from threatbus.config import CoreConfig, check_section, yaml12

ROOT: Final = Path(__file__).parents[2]
EXAMPLE: Final = "config.yaml.example"

# What the example recommends although it is not the default.
RECOMMENDED: Final = {("plugins.apps.misp", "published_only"): True}

# What it is by default, the machine decides.
COMPUTED: Final = ("", "state_directory")

Schema = type[msgspec.Struct]


def sections_of(schema: Schema, path: str = "") -> dict[str, Schema]:
    """A schema and those inside it, by where they stand."""
    found = {path: schema}
    for each in msgspec.structs.fields(schema):
        # A section that may be missing is a union with None.
        for kind in (each.type, *get_args(each.type)):
            if (
                isinstance(kind, type)
                and issubclass(kind, msgspec.Struct)
                and kind is not FilterConfig
            ):
                found |= sections_of(kind, f"{path}.{each.name}".removeprefix("."))
    return found


SECTIONS: Final[dict[str, Schema]] = {
    **sections_of(CoreConfig),
    "plugins.apps.web": WebConfig,
    **sections_of(ZmqConfig, "plugins.apps.zmq"),
    **sections_of(ZeekConfig, "plugins.apps.zeek"),
    # What MispConfig has besides is `instances`, which is a mapping of these.
    **sections_of(InstanceConfig, "plugins.apps.misp"),
    "plugins.backbones.inmem": InMemoryConfig,
    **sections_of(RabbitMQConfig, "plugins.backbones.rabbitmq"),
}


def settings_of(path: str) -> list[str]:
    """The keys of a section that are no sections themselves."""
    inner = {name.rpartition(".")[2] for name in SECTIONS if name.rpartition(".")[0] == path}
    return [name for name in SECTIONS[path].__struct_encode_fields__ if name not in inner]


def documented(path: str) -> dict[str, str]:
    """The keys of a section in docs/configuration.md, and what stands there as default."""
    text = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    heading = f"## `{path}`\n" if path else "## Top level\n"
    assert heading in text
    section = text.partition(heading)[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| `(\w+)` \|[^|]*\| ([^|]*) \|", section, re.MULTILINE))


def example() -> dict[str, Any]:
    """The example with everything switched on that is commented out in it."""
    text = (ROOT / EXAMPLE).read_text(encoding="utf-8")
    # Prose has one space after its #; a setting has none, or the two of its level.
    for _ in range(2):  # an alternative within what is commented out is commented out twice
        text = re.sub(r"(?m)^( *)#(?=\S|  )", r"\1", text)
    return yaml12.parse(text, EXAMPLE)


def in_example(path: str) -> dict[str, Any]:
    section = example()
    for name in filter(None, path.split(".")):
        section = section[name] or {}
    return section


def with_defaults(values: dict[str, Any], schema: Schema) -> msgspec.Struct | None:
    section, errors = check_section(values, schema, "section")
    assert errors == []
    return section


@pytest.mark.parametrize("path", SECTIONS)
def test_the_documentation_lists_exactly_the_keys_that_there_are(path: str) -> None:
    assert list(documented(path)) == settings_of(path)


@pytest.mark.parametrize("path", SECTIONS)
def test_the_defaults_in_the_documentation_are_the_real_ones(path: str) -> None:
    written = {
        name: yaml12.parse(f"default: {cell.strip('`')}", name)["default"]
        for name, cell in documented(path).items()
        if (path, name) != COMPUTED
    }
    assert None not in written.values()
    assert with_defaults(written, SECTIONS[path]) == SECTIONS[path]()


@pytest.mark.parametrize("path", SECTIONS)
def test_the_example_has_every_key(path: str) -> None:
    assert set(settings_of(path)) <= set(in_example(path))


@pytest.mark.parametrize("path", sorted(set(SECTIONS) - {"plugins"}))
def test_the_values_in_the_example_are_the_defaults(path: str) -> None:
    written = {
        name: in_example(path)[name] for name in settings_of(path) if (path, name) != COMPUTED
    }
    assert None not in written.values()
    for (section, name), value in RECOMMENDED.items():
        if section == path:
            assert written.pop(name) is value
    assert with_defaults(written, SECTIONS[path]) == SECTIONS[path]()


def test_the_example_says_nothing_that_is_unknown() -> None:
    assert with_defaults(example(), CoreConfig) is not None
    for group, plugins in example()["plugins"].items():
        for name, section in plugins.items():
            assert with_defaults(section, SECTIONS[f"plugins.{group}.{name}"]) is not None
