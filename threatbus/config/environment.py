"""The environment over the file: which variables are settings, and where each belongs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from threatbus.config.values import EnvText, as_mapping, is_null, plain, same_key

PREFIX: Final = "THREATBUS"
"""What the names of variables begin with; two underscores stand between the levels."""

Place = tuple[str, ...]


def variables(environ: Mapping[str, str], prefixes: Iterable[str]) -> list[tuple[Place, EnvText]]:
    """The variables under the prefixes with their places, the shallow ones first."""
    found = []
    for prefix in prefixes:
        start = f"{prefix.upper()}_" if prefix else ""
        for variable, text in environ.items():
            place = tuple(variable.removeprefix(start).split("__"))
            if variable.startswith(start) and all(place):
                found.append((place, EnvText(text, variable)))
    return sorted(found, key=lambda item: (len(item[0]), item[0]))


def merged(content: Mapping[str, object], environ: Mapping[str, str]) -> dict[str, object]:
    """A copy of the file's content, with the variables under our prefix put over it."""
    tree: dict[str, object] = plain(content)
    for place, text in variables(environ, [PREFIX]):
        _put(tree, place, text)
    return tree


def _put(tree: dict[str, object], place: Place, text: EnvText) -> None:
    node = tree
    for part in place[:-1]:
        key = same_key(node, part)
        child = as_mapping(node.get(key))
        node[key] = child = {} if child is None else child
        node = child
    key = same_key(node, place[-1])
    # An empty variable switches a section on, it does not empty one that the file fills.
    if not (is_null(text) and isinstance(node.get(key), dict)):
        node[key] = text


def summed_up(warnings: Iterable[str]) -> Iterator[str]:
    """One line for all that Kubernetes sets of its own accord, the others one by one."""
    kubernetes = rf"{PREFIX}_(?!\w*__)(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT\w*|PORT(?:_\d+_\w+)?):"
    service = []
    for warning in warnings:
        if re.match(kubernetes, warning):
            service.append(warning.partition(":")[0])
        else:
            yield warning
    if service:
        names = ", ".join(service)
        yield f"variables of a Kubernetes service that are no settings have no effect: {names}"
