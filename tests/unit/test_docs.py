"""What the documentation says is so: every key, with its default, where an operator looks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from threatbus_misp.config import InstanceConfig

from scripts.reference import PAGE, sections, table, written
from threatbus.config import check_section, yaml12
from threatbus.hookspecs import AppSpec, BackboneSpec

ROOT: Final = Path(__file__).parents[2]
EXAMPLE: Final = "config.yaml.example"

# What the example recommends although it is not the default.
RECOMMENDED: Final = {("plugins.apps.misp", "published_only"): True}

# What a section does not work without, and the example leaves to whoever switches it on.
NEEDED: Final[dict[str, tuple[str, Any]]] = {
    "plugins.apps.misp": ("kafka", {"topics": ["some"]}),
    "plugins.apps.misp.kafka": ("topics", ["some"]),
}

# What it is by default, the machine decides.
COMPUTED: Final = ("", "state_directory")

Schema = type[msgspec.Struct]


SECTIONS: Final[dict[str, Schema]] = sections()
#: Those that have a place of their own in the example: filters are a list in it, and there is one
#: MISP, without `instances`.
IN_EXAMPLE: Final[dict[str, Schema]] = {
    path: schema for path, schema in SECTIONS.items() if path != "plugins.apps.misp.filter"
} | {"plugins.apps.misp": InstanceConfig}


def settings_of(path: str) -> list[str]:
    """The keys of a section that are no sections themselves."""
    inner = {name.rpartition(".")[2] for name in IN_EXAMPLE if name.rpartition(".")[0] == path}
    return [name for name in IN_EXAMPLE[path].__struct_encode_fields__ if name not in inner]


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


def with_defaults(values: dict[str, Any], path: str) -> msgspec.Struct | None:
    if path in NEEDED:
        key, needed = NEEDED[path]
        more = isinstance(needed, dict)
        values = {**values, key: {**values.get(key, {}), **needed} if more else needed}
    section, errors = check_section(values, IN_EXAMPLE[path], path)
    assert errors == []
    return section


def test_the_reference_of_keys_is_that_of_the_code() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == written(page), "`make reference` writes it anew"


def test_a_section_without_a_place_in_the_reference_is_said() -> None:
    page = PAGE.read_text(encoding="utf-8").replace("<!-- keys of queues -->", "")
    with pytest.raises(LookupError, match=r"keys of queues(.|\n)*outq_messages"):
        written(page)


@pytest.mark.parametrize("path", SECTIONS)
def test_every_key_has_a_heading_and_a_meaning(path: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert f"\n## {f'`{path}`' if path else 'Top level'}\n" in page
    for row in table(SECTIONS[path]).splitlines()[2:]:
        *_, meaning, _ = re.split(r"(?<!\\)\|", row)
        assert len(meaning.strip()) > 5, row


@pytest.mark.parametrize("spec", [AppSpec, BackboneSpec])
def test_every_hook_is_documented_for_authors_of_plugins(spec: type) -> None:
    page = (ROOT / "docs/writing-a-plugin.md").read_text(encoding="utf-8")
    for hook in (name for name in vars(spec) if not name.startswith("_")):
        assert re.search(rf"^\| `{hook}` \|", page, re.MULTILINE), hook


@pytest.mark.parametrize("path", IN_EXAMPLE)
def test_the_example_has_every_key(path: str) -> None:
    assert set(settings_of(path)) <= set(in_example(path))


@pytest.mark.parametrize("path", sorted(set(IN_EXAMPLE) - {"plugins"}))
def test_the_values_in_the_example_are_the_defaults(path: str) -> None:
    written = {
        name: in_example(path)[name] for name in settings_of(path) if (path, name) != COMPUTED
    }
    assert None not in written.values()
    for (section, name), value in RECOMMENDED.items():
        if section == path:
            assert written.pop(name) is value
    assert with_defaults(written, path) == with_defaults({}, path)


def test_the_example_says_nothing_that_is_unknown() -> None:
    assert with_defaults(example(), "") is not None
    for group, plugins in example()["plugins"].items():
        for name, section in plugins.items():
            assert with_defaults(section, f"plugins.{group}.{name}") is not None
