"""Values of the re-anchor annotation that were replaced before a reconcile acted on them, so that none is lost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from sheetanchor_operator.kube.cache import Key
from sheetanchor_operator.names import REANCHOR_ANNOTATION
from sheetanchor_operator.reanchors.requests import key_of

KEPT_MAX: Final = 20
"""More than users write between two reconciles; of a client that writes faster some values are lost."""


class SeenRequests:
    """Keeps what the watch has shown of each pipeline's annotation between two reconciles."""

    def __init__(self) -> None:
        self._values: dict[Key, list[str]] = {}

    def note(self, before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> None:
        """Compare two versions of a pipeline; the older one's value is kept if no reconcile has taken it."""
        value = _value_in(before)
        if before is None or not value or value == _value_in(after):
            return
        if key_of(value) == (before.get("status") or {}).get("lastReanchorRequest"):
            return
        metadata = after["metadata"]
        kept = self._values.setdefault((metadata["namespace"], metadata["name"]), [])
        if value not in kept:
            kept.append(value)
            del kept[:-KEPT_MAX]

    def of(self, key: Key) -> tuple[str, ...]:
        """Give the replaced values, oldest first."""
        return tuple(self._values.get(key, ()))

    def done(self, key: Key, values: Iterable[str]) -> None:
        """Drop the values that a reconcile has acted on."""
        taken = set(values)
        left = [value for value in self._values.get(key, ()) if value not in taken]
        if left:
            self._values[key] = left
        else:
            self._values.pop(key, None)

    def forget(self, key: Key) -> None:
        """Drop the values of a deleted pipeline."""
        self._values.pop(key, None)


def _value_in(body: Mapping[str, Any] | None) -> str:
    if body is None:
        return ""
    return str((body["metadata"].get("annotations") or {}).get(REANCHOR_ANNOTATION, ""))
