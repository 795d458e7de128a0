"""Writes the tables of keys in docs/configuration.md from the schemas: `make reference`.

A table stands between two comments, of which the first names its section::

    <!-- keys of plugins.apps.zmq -->
    …
    <!-- end of keys -->

What a key means is the docstring below its field, what it may be is its type, and the sections are
those of the core and of every plugin that is installed. A section without a place in the page is
said, with where it belongs.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from threatbus.config import CoreConfig
from threatbus.config.annotations import arguments, bare, is_marked, members, shape
from threatbus.config.wording import allowed
from threatbus.hookspecs import APP_GROUP, BACKBONE_GROUP
from threatbus.plugins import installed

PAGE: Final = Path(__file__).parents[1] / "docs" / "configuration.md"
HEADING: Final = "| key | allowed | default | what it does |\n|---|---|---|---|\n"
#: The distributions of this repository; others that are installed have pages of their own.
OURS: Final = re.compile(r"threatbus-(?:inmem|rabbitmq|zmq|zeek|misp|web)")

Schema = type[msgspec.Struct]


def sections() -> dict[str, Schema]:
    """Give every section of the configuration by where it stands; "" is the top level."""
    found = dict(_with_inner(CoreConfig, ""))
    for group, entry_points in (("apps", APP_GROUP), ("backbones", BACKBONE_GROUP)):
        for name, plugin in sorted(installed(entry_points).items()):
            if OURS.match(plugin.distribution):
                found |= _with_inner(plugin.schema, f"plugins.{group}.{name}")
    return found


def _with_inner(schema: Schema, path: str) -> Iterator[tuple[str, Schema]]:
    yield path, schema
    for each in msgspec.structs.fields(schema):
        inner = section_in(each.type)
        if inner is not None:
            yield from _with_inner(inner, f"{path}.{each.encode_name}".removeprefix("."))


def section_in(annotation: Any) -> Schema | None:
    """Give the schema of a field that is a section, or a list of sections."""
    match shape(annotation):
        case "section":
            found: Schema = bare(annotation)
            return found
        case "sequence":
            return section_in(arguments(annotation)[0]) if arguments(annotation) else None
        case "union":
            inner = [section_in(member) for member in members(annotation)]
            return next((each for each in inner if each is not None), None)
    return None


def table(schema: Schema) -> str:
    """Give the table of a section: its keys, but for those that are sections themselves."""
    meanings = _meanings(schema)
    rows = [
        f"| `{each.encode_name}` | {_allowed(each.type)} | {_default(each)} | "
        f"{meanings.get(each.name, '')} |\n"
        for each in msgspec.structs.fields(schema)
        if shape(each.type) == "sequence" or section_in(each.type) is None
    ]
    return HEADING + "".join(rows) if rows else ""


def _meanings(schema: Schema) -> Mapping[str, str]:
    """Give the docstrings of a schema's fields, inherited ones included."""
    found: dict[str, str] = {}
    for base in reversed(schema.__mro__):
        if not issubclass(base, msgspec.Struct) or base is msgspec.Struct:
            continue
        (definition,) = ast.parse(inspect.cleandoc("\n" + inspect.getsource(base))).body
        assert isinstance(definition, ast.ClassDef)
        for field, text in zip(definition.body, definition.body[1:], strict=False):
            match field, text:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str() as written)),
                ):
                    found[name] = _cell(written)
    return found


def _cell(docstring: str) -> str:
    """Put a docstring into a cell of a table."""
    text = " ".join(docstring.split()).replace("``", "`").replace("|", "\\|").removesuffix(".")
    # Names keep their capitals.
    return text[:1].lower() + text[1:] if re.match(r"[A-Z][a-z]*\b(?!')", text) else text


def _allowed(annotation: Any) -> str:
    text = allowed(annotation).replace("|", "\\|")
    text = "a list of sections" if section_in(annotation) is not None else text
    if is_marked(annotation, "unit"):
        return "a [size](#values)"
    if is_marked(annotation, "secret"):
        return f"{text}; a [secret](#secrets)"
    if is_marked(annotation, "secret_files"):
        return f"{text}; passwords in it are [secrets](#secrets)"
    return text


def _default(field: Any) -> str:
    if field.required:
        return "(must be given)"
    if field.default is not msgspec.NODEFAULT:
        value = field.default
    else:
        value = field.default_factory()
        if not isinstance(value, list | dict):
            # The machine decides.
            return "see below"
    return f"`{_yaml(value, is_size=is_marked(field.type, 'unit'))}`"


def _yaml(value: object, *, is_size: bool) -> str:
    match value:
        case int() if is_size:
            sizes = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))
            return next((f"{value // n} {unit}" for unit, n in sizes if value % n == 0), str(value))
        case bool() | None:
            return {True: "true", False: "false", None: "null"}[value]
        case float() if value.is_integer():
            return str(int(value))
        case str():
            return value or '""'
    return str(value)


def written(page: str) -> str:
    """Give the page with its tables as they are to be; `LookupError` names what has no place."""
    found = sections()
    for path, schema in found.items():
        start = f"<!-- keys of {path or 'the top level'} -->\n"
        if (keys := table(schema)) and start not in page:
            raise LookupError(f"{PAGE.name}: no {start.strip()} for this table:\n{keys}")
        before, start, rest = page.partition(start)
        _, end, after = rest.partition("<!-- end of keys -->\n")
        page = f"{before}{start}\n{keys}\n{end}{after}" if start else page
    return page


def main() -> int:
    """Write the page anew."""
    try:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    except LookupError as error:
        sys.stderr.write(f"{error.args[0]}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
