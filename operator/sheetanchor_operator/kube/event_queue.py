"""Events that wait to be published: no more than a bound of each namespace, and each namespace in its turn. Pure."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Final

from sheetanchor_operator.events import Event

WAITING_MAX: Final = 200
"""Events of one namespace that wait. A reconcile in a flood makes nearly as many, and they are gone before the next."""


@dataclass(slots=True)
class EventQueue:
    """Events by namespace, first come first told; a namespace with many does not hold up the others'."""

    _waiting: OrderedDict[str, deque[Event]] = field(default_factory=OrderedDict)

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def put(self, namespace: str, event: Event) -> bool:
        """Have an Event wait; false if so many of its namespace do already that there is no room for it."""
        mine = self._waiting.setdefault(namespace, deque())
        if len(mine) >= WAITING_MAX:
            return False
        mine.append(event)
        return True

    def take(self) -> tuple[str, Event] | None:
        """Give the next Event and its namespace, which is then the last to have its turn again; None if none waits."""
        if not self._waiting:
            return None
        namespace, mine = self._waiting.popitem(last=False)
        event = mine.popleft()
        if mine:
            self._waiting[namespace] = mine
        return namespace, event
