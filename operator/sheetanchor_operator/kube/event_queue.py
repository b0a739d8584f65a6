"""Events that wait to be published: a bounded number of each namespace, and the namespaces in turn. Pure."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Final

from sheetanchor_operator.events import Event

WAITING_MAX: Final = 200
"""Most Events of one namespace that wait. A reconcile in a flood makes nearly as many, published before the next."""


@dataclass(slots=True)
class EventQueue:
    """Events by namespace, first in first out; a namespace with many does not delay those of the others."""

    _waiting: OrderedDict[str, deque[Event]] = field(default_factory=OrderedDict)

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def put(self, namespace: str, event: Event) -> bool:
        """Add an Event; false if the bound of its namespace is reached."""
        mine = self._waiting.setdefault(namespace, deque())
        if len(mine) >= WAITING_MAX:
            return False
        mine.append(event)
        return True

    def take(self) -> tuple[str, Event] | None:
        """Give the next Event and its namespace, which then goes to the end of the turn; None if none waits."""
        if not self._waiting:
            return None
        namespace, mine = self._waiting.popitem(last=False)
        event = mine.popleft()
        if mine:
            self._waiting[namespace] = mine
        return namespace, event
