"""What the API server refused a moment ago, so that it is told again without being asked again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from sheetanchor_operator.kube.cache import Key
from sheetanchor_operator.observation import Refusal

REFUSED_AGAIN_S: Final = 20.0
"""What was refused is tried again after this time, or when it has changed."""

Place = tuple[str, str]


@dataclass(frozen=True, slots=True)
class _ActiveRefusal:
    digest: str
    refusal: Refusal
    until_s: float


@dataclass(slots=True)
class Refusals:
    """Refusals of each pipeline's objects, for as long as they are believed."""

    _active: dict[Key, dict[Place, _ActiveRefusal]] = field(default_factory=dict)

    def of(self, key: Key, place: Place, digest: str, now_s: float) -> Refusal | None:
        """Give the refusal that still stands, None if the object may be tried.

        Args:
            key: The pipeline.
            place: Kind and name of the object.
            digest: Tells whether it is the manifest that was refused.
            now_s: Time of a steady clock.
        """
        known = self._active.get(key, {}).get(place)
        return known.refusal if known is not None and known.digest == digest and now_s < known.until_s else None

    def add(self, key: Key, place: Place, digest: str, refusal: Refusal, now_s: float) -> Refusal:
        """Keep a refusal in mind; gives it."""
        # What nobody asks for again, as a ReAnchor that was refused for good, must not be kept for ever.
        unexpired = {at: one for at, one in self._active.get(key, {}).items() if now_s < one.until_s}
        self._active[key] = {**unexpired, place: _ActiveRefusal(digest, refusal, now_s + REFUSED_AGAIN_S)}
        return refusal

    def forget(self, key: Key) -> None:
        """Drop those of a pipeline that is no more."""
        self._active.pop(key, None)
