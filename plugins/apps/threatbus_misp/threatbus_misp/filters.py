"""Which attributes come onto the bus: the filters of the configuration; no I/O."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from threatbus_misp.config import FilterConfig, InstanceConfig


class Context(msgspec.Struct, frozen=True):
    """What is remembered of an event beyond what its attributes' messages say."""

    uuid: str
    id: str = ""
    info: str = ""
    threat_level: int = 4
    #: Id, UUID and name of the organisation that created it, as far as known.
    org: tuple[str, str, str] = ("", "", "")
    #: Its tags (name, exportable); None: nobody has asked yet.
    tags: tuple[tuple[str, bool], ...] | None = None
    #: Whether MISP has deleted it: over Kafka messages of its attributes may come later than that.
    deleted: bool = False
    #: Whether REST has shown it: messages tell of events that the API's user may not see, and of
    #: such a one REST says that it is not there.
    visible: bool = False


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

    def let_pass(self, kind: str, tags: Iterable[str], event: Context | None) -> bool:
        """Say whether an attribute of type `kind` with these tags (the event's included) passes."""
        names = _folded(tags)
        if not names.isdisjoint(self._excluded):
            return False
        # 4 is "undefined", so it is below every other level.
        if event is not None and event.threat_level > self._threat_level:
            return False
        return not self._filters or any(each.matches(kind, names, event) for each in self._filters)


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


def _folded(names: Iterable[str]) -> frozenset[str]:
    return frozenset(name.casefold() for name in names if name)
