"""The health of zones in a pipeline's status. Pure.

The leader writes it with the rest of the status. While the Lease is not renewed any replica does, since the leader may
be in the very zone that is lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from sheetanchor_operator.api.timestamps import text_of
from sheetanchor_operator.names import EventReason, Phase, ZoneHealth, ZoneReason

Row = dict[str, Any]
Verdicts = Mapping[str, tuple[ZoneHealth, ZoneReason]]

LOST: Final = frozenset({ZoneHealth.SILENT, ZoneHealth.FAILED})
_SECOND_US: Final = 1_000_000


def with_health(row: Mapping[str, Any], before: Mapping[str, Any], verdicts: Verdicts | None, now_us: int) -> Row:
    """Add to a row of `status.zones` what its zone counts as.

    Args:
        row: The row without it.
        before: The row as it was written last; empty for none.
        verdicts: By zone; None where zones are not judged. A zone that is not named has not been judged yet.
        now_us: The moment.
    """
    if verdicts is None:
        return dict(row)
    health, reason = verdicts.get(row["name"], (None, None))
    if health is None or (health is ZoneHealth.UNKNOWN and before.get("health") in LOST):
        # A replica that has not heard the zone yet does not know better than the one that has seen it go.
        return {**row, **{name: before[name] for name in ("health", "reason", "since") if name in before}}
    same = before.get("health") == health and "since" in before
    since = before["since"] if same else text_of(now_us // _SECOND_US * _SECOND_US)
    return {**row, "health": str(health), "reason": str(reason), "since": since}


def lost_zones(rows: Iterable[Mapping[str, Any]], *, failed_only: bool = False) -> list[str]:
    """Name the zones that count as silent or failed, or as failed only."""
    lost = {ZoneHealth.FAILED} if failed_only else LOST
    return [str(row["name"]) for row in rows if row.get("health") in lost]


def report_of(status: Mapping[str, Any], verdicts: Verdicts, now_us: int) -> dict[str, Any]:
    """Give the fields of a status that a replica which does not lead changes; empty if nothing has changed.

    Args:
        status: The pipeline's, as it is.
        verdicts: The replica's own, by zone.
        now_us: The moment.
    """
    rows = list(status.get("zones") or ())
    # A line that is bound to no zone has no health.
    new = [with_health(row, row, verdicts, now_us) if row["name"] in verdicts else dict(row) for row in rows]
    changed: dict[str, Any] = {} if new == rows else {"zones": new}
    if lost_zones(new, failed_only=True) and status.get("phase") == Phase.RUNNING:
        changed["phase"] = str(Phase.DEGRADED)
    return changed


def zone_events(
    before: Iterable[Mapping[str, Any]], after: Iterable[Mapping[str, Any]]
) -> list[tuple[bool, EventReason, str]]:
    """Give the Events that a change of `status.zones` is worth: whether each is a warning, its reason and text."""
    known = {row["name"]: row.get("health") for row in before}
    report = []
    for row in after:
        zone, was, now = row["name"], known.get(row["name"]), row.get("health")
        if now == was:
            continue
        if now == ZoneHealth.FAILED:
            report.append((True, EventReason.ZONE_FAILED, f"zone {zone} has failed: {_UNREACHED}; check its nodes"))
        elif now == ZoneHealth.SILENT and was != ZoneHealth.FAILED:
            report.append((True, EventReason.ZONE_SILENT, f"zone {zone} is silent: {_UNREACHED}"))
        elif now == ZoneHealth.HEALTHY and was in LOST:
            report.append((False, EventReason.ZONE_RETURNED, f"zone {zone} has answered for long enough again"))
    return report


_UNREACHED: Final = "neither the operator nor a Sentinel of a third zone reaches any pod there"
