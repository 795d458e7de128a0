"""The border: which documents come in, and on which topic they travel.

The verdict is that of ``stix2.parse(document, allow_custom=True)``: what comes out as an
Indicator or a Sighting of STIX 2.1 is carried, everything else is rejected with one line that
says why. Most documents never meet the library, since `threatbus.fastpath` is certain of them.
`DIFFERENCES` lists where the border deliberately says something else than the library.
"""

from __future__ import annotations

import errno
import re
import threading
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from threatbus.errors import NotCarried, Rejected, Undecided
from threatbus.fastpath import (
    INDICATOR_TOPIC,
    MAX_DEPTH,
    SIGHTING_TOPIC,
    FastPath,
    depth_is_at_most,
)

#: Largest pattern that is handed to the library's grammar, in the weight that `_pattern_weight`
#: gives it: roughly the microseconds it costs at worst.
MAX_PATTERN = 500_000
#: Most steps that the check of granular markings may need, see `_marking_steps`.
MAX_MARKING_STEPS = 500_000
#: Longest reason in characters; the rest of a longer one is cut off.
MAX_REASON = 300

#: Where the border says no although the library says yes, each with its reason.
DIFFERENCES = {
    "encoding": "bytes that are not UTF-8: the library guesses UTF-16 and UTF-32, apps do not",
    "numbers": "NaN, Infinity and numbers beyond a double's range: not JSON, or not portable",
    "surrogates": "half of a surrogate pair: no text, and no decoder but Python's takes it",
    "depth": f"more than {MAX_DEPTH} levels: the library's limit is whatever stack is left",
    "pattern": "a pattern that is too much for the grammar and would stop the bus for seconds",
    "markings": "granular markings whose check takes the library quadratic time",
}

# What the process or the machine has none left of; no document brings these about.
_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})

_TOPICS = {"indicator": INDICATOR_TOPIC, "sighting": SIGHTING_TOPIC}

# The library's grammar keeps tables that all its users in a process share and that nothing
# guards. Hence one lock for all borders of the process; it is held for a parse and no longer.
_library_lock = threading.Lock()

# What counts as a token here is what costs the grammar time: a bit finer than its own lexer.
# A quote or a comment that nothing closes matches as its first character only.
_tokens = re.compile(
    r"(?P<skip>\s++|/\*.*?\*/|//[^\r\n]*+)"
    r"|'(?:[^'\\]++|\\['\\])*+'|[A-Za-z0-9_]++|(?P<stray>['/])|.",
    re.DOTALL,
).finditer
_TOKEN_WEIGHT = 100
_FOREIGN_WEIGHT = 40  # of each UTF-8 byte beyond a character's first: the lexer caches ASCII only


class _Type(msgspec.Struct, gc=False):
    type: Any = None


class _Bundle(msgspec.Struct, gc=False):
    objects: list[msgspec.Raw] | None = None


class Border:
    """Decide about documents, one at a time; any number of threads may share a border.

    `max_pattern` (weight, see `MAX_PATTERN`) and `max_marking_steps` bound what one document may
    cost where the library has to be asked: with the defaults about a second at worst. What the
    fast path is certain of is not bounded by them, for its cost grows with the size alone.
    """

    def __init__(
        self,
        *,
        max_pattern: int = MAX_PATTERN,
        max_marking_steps: int = MAX_MARKING_STEPS,
    ) -> None:
        self.max_pattern = max_pattern
        self.max_marking_steps = max_marking_steps
        #: The fast path alone: the topics of documents, up to the first that it is unsure of.
        #: Raises nothing. Call it first where speed counts, `unpack` and `topic_of` for the rest.
        self.recognise: Callable[[Sequence[bytes]], list[str]] = FastPath().recognise

    def topic_of(self, data: bytes) -> str:
        """Give the topic of one document, ``stix2/indicator`` or ``stix2/sighting``.

        Raises `NotCarried` for a document of another STIX type and `Rejected` for everything
        else; both hold a reason of one line that quotes no more than a few words of the document.
        Raises `Undecided` while the library cannot be loaded for want of descriptors or memory.
        """
        recognised = self.recognise((data,))
        return recognised[0] if recognised else self._ask_library(data)

    def unpack(self, data: bytes) -> list[bytes] | None:
        """Give the members of a STIX bundle, byte for byte as they came; None if it is none.

        Nothing is said about the members: each has to pass `topic_of`, and a bundle among them
        is not unpacked but rejected there. Raises `Rejected` for a bundle that is broken. What
        is no JSON object gives None as well, and `topic_of` says what is wrong with it.
        """
        try:
            if msgspec.json.decode(data, type=_Type).type != "bundle":
                return None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        try:
            objects = msgspec.json.decode(data, type=_Bundle).objects
        except msgspec.ValidationError as error:
            raise Rejected(_line(f"bundle: {_plain(error, data)}")) from None
        return [bytes(member) for member in objects or ()]

    def _ask_library(self, data: bytes) -> str:
        document = _decode(data)
        topic = _topic_by_type(document)
        self._check_cost(document)
        with _library_lock:
            try:
                # It takes a quarter of a second; a bus of ordinary documents never pays for it.
                import stix2  # noqa: PLC0415
            except OSError as error:
                if error.errno not in _SHORTAGES:
                    raise
                raise Undecided(f"the STIX library cannot be loaded: {error.strerror}") from error
            expected = {INDICATOR_TOPIC: stix2.v21.Indicator, SIGHTING_TOPIC: stix2.v21.Sighting}
            try:
                parsed = stix2.parse(document, allow_custom=True)
            except RecursionError:
                raise Rejected("nested too deeply, or too many terms in the pattern") from None
            # The library fails in any way on input it does not expect: besides its own errors
            # come AttributeError, TypeError, KeyError, UnboundLocalError and others.
            except Exception as error:
                # It imports some of its parts when it first needs them.
                if isinstance(error, OSError) and error.errno in _SHORTAGES:
                    raise Undecided(f"the STIX library fails: {error.strerror}") from error
                raise Rejected(_line(_reason(error))) from None
        if not isinstance(parsed, expected[topic]):
            raise Rejected(f"the library takes it for {type(parsed).__name__}")
        return topic

    def _check_cost(self, document: dict[str, Any]) -> None:
        """Reject what would keep the library busy for more than about a second."""
        if document["type"] == "indicator" and document.get("pattern_type") == "stix":
            # The library turns whatever stands there into a string.
            pattern = document.get("pattern")
            text = pattern if isinstance(pattern, str) else str(pattern)
            # The length alone is a lower bound, and spares weighing what is megabytes too long.
            weight = len(text) if len(text) > self.max_pattern else _pattern_weight(text)
            if weight > self.max_pattern:
                raise Rejected(f"pattern: too large (weight {weight}, {self.max_pattern} at most)")
        markings = document.get("granular_markings")
        if markings and _marking_steps(document, markings) > self.max_marking_steps:
            raise Rejected("granular_markings: too large a document to check them")


def _decode(data: bytes) -> dict[str, Any]:
    """Read a JSON object as RFC 8259 has it, with the reason where it is none."""
    try:
        document = msgspec.json.decode(data)
    except UnicodeDecodeError:
        raise Rejected("not JSON: not UTF-8") from None
    except RecursionError:
        raise Rejected(f"nested more than {MAX_DEPTH} levels deep") from None
    except msgspec.MsgspecError as error:
        raise Rejected(_line(f"not JSON: {_plain(error, data)}")) from None
    if not isinstance(document, dict):
        raise Rejected("not a JSON object")
    if not depth_is_at_most(MAX_DEPTH, data):
        raise Rejected(f"nested more than {MAX_DEPTH} levels deep")
    return document


def _topic_by_type(document: dict[str, Any]) -> str:
    """Give the topic that a document's type asks for; the library has the last word on it."""
    if "type" not in document:
        raise Rejected("no type")
    kind = document["type"]
    if not isinstance(kind, str):
        raise Rejected("type is not a string")
    if kind == "bundle":
        raise Rejected("a bundle where a single object is expected")
    if kind not in _TOPICS:
        raise NotCarried(_line(f"type {_quote(kind)} is neither indicator nor sighting"))
    if "spec_version" not in document:
        raise Rejected("STIX 2.0, but 2.1 is needed (no spec_version)")
    version = document["spec_version"]
    if version != "2.1":
        raise Rejected(_line(f"spec_version {_quote(version)}, but 2.1 is needed"))
    return _TOPICS[kind]


def _pattern_weight(pattern: str) -> int:
    """Weigh a pattern by what the grammar needs for it; raise Rejected for a stray quote.

    A quote or comment that nothing closes is in no valid pattern, and the library's lexer would
    look for its other end over and over: quadratic time, which no limit on the size can bound.
    """
    foreign = len(pattern.encode("utf-8", "surrogatepass")) - len(pattern)
    weight = len(pattern) + _FOREIGN_WEIGHT * foreign
    for token in _tokens(pattern):
        if token["stray"]:
            raise Rejected(f"pattern: stray {token['stray']} at character {token.start()}")
        if token["skip"] is None:
            weight += _TOKEN_WEIGHT
    return weight


def _marking_steps(document: dict[str, Any], markings: Any) -> int:
    """Bound the steps the library takes to look every selector up.

    For each selector it walks the whole document, and at each item of a list it searches that
    list for the item, comparing all those before.
    """
    selectors = 0
    for marking in markings if isinstance(markings, list) else [markings]:
        chosen = marking.get("selectors") if isinstance(marking, dict) else None
        selectors += len(chosen) if isinstance(chosen, list | dict) else 1
    return selectors * _walk_steps(document)


def _walk_steps(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + sum(map(_walk_steps, value.values()))
    if isinstance(value, list):
        below = sum(map(_walk_steps, value))
        # Comparing two items may go through all of one of them: n searches of up to all below.
        return 1 + below + len(value) * below // 50
    return 1


def _reason(error: Exception) -> str:
    """Put an error of the library into words that name the property and quote little."""
    text = str(error) or type(error).__name__
    prop = getattr(error, "prop_name", None)
    if prop and isinstance(prop, str):
        text = f"{prop}: {getattr(error, 'reason', text)}"
    elif not isinstance(error, ValueError) and type(error).__module__ == "builtins":
        text = f"the library fails with {type(error).__name__}: {text}"
    return text.replace("FAIL: ", "")


def _plain(error: Exception, data: bytes) -> str:
    text = str(error).removeprefix("JSON is malformed: ")
    if "truncated" in text and data.rstrip().endswith((b"}", b"]")):
        return "a string without an end, or half of a surrogate pair"
    return re.sub(r"\(byte (\d+)\)$", r"at byte \1", text)


def _quote(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _line(text: str) -> str:
    """Make one printable line of a text that may quote a hostile document."""
    text = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode()
        for char in text[:MAX_REASON]
    )
    return text if len(text) <= MAX_REASON else f"{text[: MAX_REASON - 1]}…"
