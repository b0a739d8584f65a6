"""Recent refusals of the API server, so that they are reported again without another request."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from sheetanchor_operator.kube.cache import Key
from sheetanchor_operator.observation import Refusal

REFUSED_AGAIN_S: Final = 20.0
"""A refused object is tried again after this time, or when its manifest has changed."""

Place = tuple[str, str]


@dataclass(frozen=True, slots=True)
class _ActiveRefusal:
    digest: str
    refusal: Refusal
    until_s: float


@dataclass(slots=True)
class Refusals:
    """Recent refusals of each pipeline's objects."""

    _active: dict[Key, dict[Place, _ActiveRefusal]] = field(default_factory=dict)

    def of(self, key: Key, place: Place, digest: str, now_s: float) -> Refusal | None:
        """Give the refusal that still applies, None if the object may be tried.

        Args:
            key: The pipeline.
            place: Kind and name of the object.
            digest: Digest of the manifest, to compare with the refused one.
            now_s: Time of a steady clock.
        """
        known = self._active.get(key, {}).get(place)
        return known.refusal if known is not None and known.digest == digest and now_s < known.until_s else None

    def add(self, key: Key, place: Place, digest: str, refusal: Refusal, now_s: float) -> Refusal:
        """Remember a refusal; gives it."""
        # Refusals that are not asked for again, as of a deleted ReAnchor, would otherwise be kept for ever.
        unexpired = {at: one for at, one in self._active.get(key, {}).items() if now_s < one.until_s}
        self._active[key] = {**unexpired, place: _ActiveRefusal(digest, refusal, now_s + REFUSED_AGAIN_S)}
        return refusal

    def forget(self, key: Key) -> None:
        """Drop those of a deleted pipeline."""
        self._active.pop(key, None)
