"""YAML 1.2, as Dynaconf reads it: `yes` and `0123` are text. A key stands once.

Imported when there is a file to read: PyYAML takes 30 ms.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from threatbus.config.values import plain
from threatbus.config.wording import describe, invalid


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's own shape)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise _DuplicateKeyError(key)
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: Any) -> Any:
        text = super().construct_scalar(node)
        if isinstance(text, str) and _unusable.search(text):
            raise _UnusableTextError(node)
        return text


# No file name, host or password can hold these; an escape ("\ud800", "\0") can bring them in.
_unusable = re.compile("[\x00\ud800-\udfff]")


class _UnusableTextError(Exception):
    def __init__(self, node: yaml.ScalarNode) -> None:
        mark = node.start_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}"
        super().__init__(f"not usable: the text at {place} holds a null or half a surrogate pair")


class _DuplicateKeyError(Exception):
    def __init__(self, key: yaml.ScalarNode) -> None:
        mark = key.start_mark
        super().__init__(
            f"ambiguous: {key.value!r} stands twice, the second time at line {mark.line + 1}, "
            f"column {mark.column + 1}"
        )


for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?(?:0|[1-9][0-9]{0,17})$", list("-+0123456789")),
    (
        "float",
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        list("-+.0123456789"),
    ),
    ("merge", r"^<<$", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


def parse(text: str, name: str) -> dict[str, object]:
    """The mapping that `text` is, with no part shared; InvalidConfig, by `name`, if it is none."""
    try:
        content = plain(yaml.load(text, _Loader))
    except _DuplicateKeyError as error:
        raise invalid(name, str(error), "a mapping in which a key stands once") from None
    except _UnusableTextError as error:
        raise invalid(name, str(error), "text that can be written in UTF-8") from None
    except yaml.YAMLError as error:
        valid = "valid YAML; text that begins with one of @ ` % & * ! | > [ { needs quotes"
        raise invalid(name, f"broken YAML{_where(error)}", valid) from None
    except (RecursionError, ValueError) as error:
        found = f"not usable ({type(error).__name__})"
        raise invalid(name, found, "YAML of moderate depth and plain values") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise invalid(name, describe(content), "a mapping of settings")
    return content


def _where(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "unreadable"
    problem = str(problem).replace(r"character '\t'", "a tab")
    # An unquoted password may be what the parser stumbled over.
    problem = re.sub(r"'[^']{2,}'", "'…'", problem)
    return f"{place} ({problem})"
