"""Which installation of the operator manages a pipeline. Pure.

Two installations that manage the same objects undo each other's work. So the one that manages a pipeline claims it in
the status and renews the claim every two minutes. Another one leaves the pipeline alone, and takes over when it has
seen no renewal for three times as long, by its own clock: clocks of different machines are never compared. The
annotation `sheetanchor.dev/operator` on a pipeline names the installation that is to manage it, and takes effect at
once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from sheetanchor_operator.api.timestamps import micros_of

RENEW_CLAIM_US: Final = 120 * 1_000_000
TAKE_OVER_AFTER_S: Final = 360.0
"""Three times the interval of renewals; an upgrade or a change of leader takes some seconds only."""

Decision = Literal["act", "claim", "keep-off"]


@dataclass(frozen=True, slots=True)
class ObservedClaim:
    """The claim of another installation as it was last seen.

    Attributes:
        name: The installation.
        seen_at: Time of the last renewal, as it wrote it.
        since_s: When, by our own steady clock, this renewal was first seen.
    """

    name: str
    seen_at: str
    since_s: float


def observe_claim(before: ObservedClaim | None, status: Mapping[str, Any], now_s: float) -> ObservedClaim:
    """Update what is known of a claim from a status."""
    claim = status.get("operator") or {}
    name, seen_at = str(claim.get("name") or ""), str(claim.get("seenAt") or "")
    if before is not None and (before.name, before.seen_at) == (name, seen_at):
        return before
    return ObservedClaim(name, seen_at, now_s)


def decide(own: str, wanted: str, claim: ObservedClaim, now_us: int, now_s: float) -> Decision:
    """Decide what an installation does about a pipeline.

    Args:
        own: Its name.
        wanted: The installation that the pipeline's annotation names, "" if it names none.
        claim: The other installation's claim, as it was last seen.
        now_us: The time.
        now_s: The same by the steady clock.
    """
    if wanted and wanted != own:
        return "keep-off"
    if claim.name == own:
        return "claim" if abs(now_us - micros_of(claim.seen_at)) >= RENEW_CLAIM_US else "act"
    if wanted == own or not claim.name or now_s - claim.since_s > TAKE_OVER_AFTER_S:
        return "claim"
    return "keep-off"
