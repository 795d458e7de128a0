"""MISP's tags to marking references, labels and confidence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from threatbus_misp.mapping.model import Tag

#: Marking definitions of TLP 2.0 by level, the strictest last. Source: the extension definition
#: "TLP 2.0" in OASIS' common object repository.
TLP_MARKINGS: Final = {
    "clear": "marking-definition--94868c89-83c2-464b-929b-a1a8aa3c8487",
    "green": "marking-definition--bab4a63c-aed9-4cf5-a766-dfca5abac2bb",
    "amber": "marking-definition--55d920b0-5e8b-4f79-9ee9-91f868d9b421",
    "amber+strict": "marking-definition--939a9414-2ddd-4d32-a0cd-375ea402b003",
    "red": "marking-definition--e828b379-4e03-4974-9ac4-e53a884c97c1",
}
_STRICTNESS: Final = {level: rank for rank, level in enumerate(TLP_MARKINGS)}

# Lower-case tag to level. TLP 1.0 said white.
_TLP_TAGS: Final = {f"tlp:{level}": level for level in TLP_MARKINGS} | {"tlp:white": "clear"}

#: Confidence by lower-case tag: the numbers of MISP's taxonomy ``misp``. What "cannot be
#: evaluated" has none and stays a label.
CONFIDENCE: Final = {
    'misp:confidence-level="completely-confident"': 100,
    'misp:confidence-level="usually-confident"': 75,
    'misp:confidence-level="fairly-confident"': 50,
    'misp:confidence-level="rarely-confident"': 25,
    'misp:confidence-level="unconfident"': 0,
}


class Marks(NamedTuple):
    """What the tags of an attribute and of its event come to."""

    marking_refs: Sequence[str] = ()
    labels: Sequence[str] = ()
    confidence: int | None = None


_NO_MARKS: Final = Marks()


def marks_of(attribute_tags: Iterable[Tag], event_tags: Iterable[Tag] = ()) -> Marks:
    """Merge the tags of an attribute with those of its event.

    Of several TLP tags the strictest counts, of several confidences the lowest. All other tags
    (PAP too) become labels, once each, the attribute's own first. A tag that is not exportable
    becomes no label, for that is what the flag says; its TLP counts all the same.
    """
    tags = [*attribute_tags, *event_tags]
    if not tags:
        return _NO_MARKS
    level: str | None = None
    confidence: int | None = None
    labels: dict[str, None] = {}
    for tag in tags:
        name = tag.name.lower()
        if name in _TLP_TAGS:
            found = _TLP_TAGS[name]
            if level is None or _STRICTNESS[found] > _STRICTNESS[level]:
                level = found
        elif name in CONFIDENCE:
            score = CONFIDENCE[name]
            confidence = score if confidence is None else min(confidence, score)
        elif name and tag.exportable is not False:
            labels[tag.name] = None
    refs = () if level is None else (TLP_MARKINGS[level],)
    return Marks(refs, tuple(labels), confidence)
