"""Which attributes come onto the bus, and which REST is asked for: as the configuration says."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from threatbus_misp.config import FilterConfig, InstanceConfig
from threatbus_misp.mapping.model import Attribute
from threatbus_misp.rest import AttributeFilter

if TYPE_CHECKING:
    from threatbus_misp.contexts import Context

#: The lowest level of MISP's: "undefined".
_ANY_LEVEL = 4


class Filters:
    """The filters of one instance.

    Within a list any value will do, each list of a filter has to match, and one filter is enough.
    `exclude_tags` and `threat_level` hold beside them.
    """

    def __init__(self, config: InstanceConfig) -> None:
        self._filters = [_Filter(each) for each in config.filter]
        self._excluded = _folded(config.exclude_tags)
        self._threat_level = config.threat_level
        #: Whether the event's tags have to be known.
        self.needs_tags = bool(self._excluded) or any(each.tags for each in self._filters)
        #: Whether everything passes.
        self.open = not self._filters and not self._excluded and config.threat_level == _ANY_LEVEL

    def let_pass(self, attribute: Attribute, event: Context | None) -> bool:
        """Say whether an attribute of this event passes; its tags and the event's count."""
        if self.open:
            return True
        names = [tag.name for tag in attribute.tags or ()]
        if event is not None:
            names += [name for name, _ in event.tags or ()]
        tags = _folded(names)
        if not tags.isdisjoint(self._excluded):
            return False
        if event is not None and event.threat_level > self._threat_level:
            return False
        return not self._filters or any(
            each.matches(attribute.type, tags, event) for each in self._filters
        )


class _Filter:
    def __init__(self, config: FilterConfig) -> None:
        self.orgs = _folded(map(str, config.orgs))
        self.types = frozenset(config.types)
        self.tags = _folded(config.tags)

    def matches(self, kind: str, tags: frozenset[str], event: Context | None) -> bool:
        if self.types and kind not in self.types:
            return False
        if self.tags and self.tags.isdisjoint(tags):
            return False
        return not self.orgs or (event is not None and not self.orgs.isdisjoint(_folded(event.org)))


def asked_for(config: InstanceConfig) -> AttributeFilter:
    """Give which attributes REST is asked for; what else keeps one off the bus is looked at here.

    MISP knows an attribute's warninglists, and a message does not say.
    """
    return AttributeFilter(
        to_ids=True,
        published=True if config.published_only else None,
        enforce_warninglist=config.warninglists,
    )


def _folded(names: Iterable[str]) -> frozenset[str]:
    return frozenset(name.casefold() for name in names if name)
