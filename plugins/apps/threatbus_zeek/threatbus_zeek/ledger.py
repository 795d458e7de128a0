"""Which items a Zeek has been told of, and for which indicators; no I/O.

The Intel framework, as the script of Threat Bus 2022.5.16 uses it, keeps one entry per item. So
it is here that an item stays as long as one indicator wants it, and that an indicator which
changes its pattern takes its old items along. (Our own script keeps an entry per indicator and
item, and needs none of this.)
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from threatbus_zeek.mapping import Change
from threatbus_zeek.patterns import Item

ADD: Final = "ADD"
REMOVE: Final = "REMOVE"


class Operation(NamedTuple):
    """What Zeek is to do with an item; `id` is the indicator that it is to name at a hit."""

    kind: Literal["ADD", "REMOVE"]
    id: str
    item: Item


class Ledger:
    """The items of up to `capacity` indicators; the least recently changed are forgotten first.

    An indicator that has been forgotten, or that a bus before this one told Zeek of, is removed
    by what its own pattern says.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        # Indicator -> its items, the least recently changed first.
        self._items: dict[str, tuple[Item, ...]] = {}
        # Item as Zeek compares it -> the indicators that want it; Zeek names the last one.
        self._wanted_by: dict[Item, tuple[str, ...]] = {}
        # How many indicators have been forgotten.
        self.forgotten = 0

    def __len__(self) -> int:
        return len(self._items)

    def apply(self, change: Change) -> list[Operation]:
        """Note a change; give what Zeek is to do about it, in this order."""
        known = self._items.pop(change.id, None)
        stay = {_compared(item) for item in change.items}
        gone = change.withdrawn_items if known is None else known
        operations = [
            operation
            for item in gone
            if _compared(item) not in stay
            for operation in self._release(change.id, item)
        ]
        for item in change.items:
            key = _compared(item)
            others = [each for each in self._wanted_by.get(key, ()) if each != change.id]
            self._wanted_by[key] = (*others, change.id)
            operations.append(Operation(ADD, change.id, item))
        if change.items:
            self._items[change.id] = change.items
            self._make_room()
        return operations

    def _release(self, indicator: str, item: Item) -> list[Operation]:
        """Let an indicator go of an item, which stays if another one wants it."""
        key = _compared(item)
        before = self._wanted_by.get(key, ())
        left = tuple(each for each in before if each != indicator)
        if not left:
            self._wanted_by.pop(key, None)
            return [Operation(REMOVE, indicator, item)]
        self._wanted_by[key] = left
        # Zeek knows the item by the indicator that goes: it is to name one that stays.
        return [Operation(ADD, left[-1], item)] if before[-1] == indicator else []

    def _make_room(self) -> None:
        while len(self._items) > self._capacity:
            oldest = next(iter(self._items))
            for item in self._items.pop(oldest):
                key = _compared(item)
                left = tuple(each for each in self._wanted_by.get(key, ()) if each != oldest)
                if left:
                    self._wanted_by[key] = left
                else:
                    self._wanted_by.pop(key, None)
            self.forgotten += 1


def _compared(item: Item) -> Item:
    """Give an item as Zeek compares it: case does not matter."""
    return Item(item.intel_type, item.value.lower())
