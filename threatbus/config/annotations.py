"""What a field of a schema takes, told from its annotation."""

from __future__ import annotations

import enum
import types
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

import msgspec

Shape = Literal["anything", "union", "section", "mapping", "sequence", "choice", "scalar"]
"""The kinds of annotation, each of which is checked and described in its own way."""

_SEQUENCES: Final = (list, tuple, set, frozenset)


def bare(annotation: Any) -> Any:
    """The type without what is annotated to it."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def metas(annotation: Any) -> Sequence[msgspec.Meta]:
    """The bounds, descriptions and marks that are annotated to a type."""
    extras = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
    return [extra for extra in extras if isinstance(extra, msgspec.Meta)]


def is_marked(annotation: Any, mark: str) -> bool:
    """Whether a type, or a member of a union, bears a mark of ours (`msgspec.Meta.extra`)."""
    if any((meta.extra or {}).get(mark) for meta in metas(annotation)):
        return True
    return shape(annotation) == "union" and any(is_marked(m, mark) for m in members(annotation))


def arguments(annotation: Any) -> tuple[Any, ...]:
    """What stands in the brackets of a type, or the members of a union."""
    return get_args(bare(annotation))


def kind(annotation: Any) -> Any:
    """The type without its brackets: `list` for ``list[int]``."""
    base = bare(annotation)
    return get_origin(base) or base


def shape(annotation: Any) -> Shape:
    """The kind of annotation that this is."""
    base, origin = bare(annotation), kind(annotation)
    if base in (object, Any):
        return "anything"
    if origin in (Union, types.UnionType):
        return "union"
    if isinstance(base, type) and issubclass(base, msgspec.Struct):
        return "section"
    if origin is dict:
        return "mapping"
    if origin in _SEQUENCES:
        return "sequence"
    if origin is Literal or (isinstance(base, type) and issubclass(base, enum.Enum)):
        return "choice"
    return "scalar"


def admits_null(annotation: Any) -> bool:
    """Whether null is one of the values of this type."""
    base = bare(annotation)
    return base in (object, Any, None) or type(None) in get_args(base)


def members(union: Any) -> list[Any]:
    """The members of a union that are more than null."""
    return [member for member in arguments(union) if member is not type(None)]


def fits(value: object, annotation: Any) -> bool:
    """Whether the value is of this type's shape without any conversion."""
    if isinstance(value, dict):
        return shape(annotation) in ("mapping", "section")
    if isinstance(value, list):
        return shape(annotation) == "sequence"
    return type(value) is bare(annotation)  # a boolean is no number here


def length_is_allowed(items: Sequence[object], annotation: Any) -> bool:
    """Whether there are as many items as the annotation wants."""
    return all(
        (meta.min_length or 0) <= len(items)
        and (meta.max_length is None or len(items) <= meta.max_length)
        for meta in metas(annotation)
    )


def choices(annotation: Any) -> dict[object, object]:
    """What may be written, and what it stands for."""
    base = bare(annotation)
    if get_origin(base) is Literal:
        return {choice: choice for choice in get_args(base)}
    return {member.value: member for member in base}


def keys(schema: type[msgspec.Struct]) -> list[str]:
    """The keys of a section."""
    return list(schema.__struct_encode_fields__)
