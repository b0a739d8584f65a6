"""Zones in the status, with any leader; zones whose pods do not answer do not count."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sheetanchor_operator.api.pipeline_status import PipelineStatus
from sheetanchor_operator.api.timestamps import text_of
from sheetanchor_operator.names import Component, Condition, EventReason, ZoneHealth, ZoneReason
from sheetanchor_operator.status.summary import transitions
from sheetanchor_operator.status.zone_report import report_of, with_health, zone_events
from support.pipeline_parts import NOW_US, ZONES, judged, message, pipeline, pod, sound, told

FAILED = (ZoneHealth.FAILED, ZoneReason.UNREACHABLE)
SILENT = (ZoneHealth.SILENT, ZoneReason.UNREACHABLE)
HEALTHY = (ZoneHealth.HEALTHY, ZoneReason.ANSWERS)
UNKNOWN = (ZoneHealth.UNKNOWN, ZoneReason.NO_WITNESSES)
WELL = dict.fromkeys(ZONES, HEALTHY)
EARLIER = text_of(NOW_US - 60_000_000)


def row(health: str = "", since: str = EARLIER, **more: Any) -> dict[str, Any]:
    judged_row = {"health": health, "reason": "Answers", "since": since} if health else {}
    return {"name": "zone-c", "ready": True, "pods": 3, **judged_row, **more}


def test_a_pipeline_is_not_running_while_a_zone_has_failed() -> None:
    """Though everything else were as it should be: what is lost next may cost slots."""
    running = judged(sound(zone_verdicts=WELL))
    lost = judged(sound(zone_verdicts={**WELL, "zone-c": FAILED}))

    assert ["Running", "Degraded"] == [running["phase"], lost["phase"]]
    assert ("False", "ZoneLost") == told(lost, Condition.TOPOLOGY_SATISFIED)
    assert "zone-c" in message(lost, Condition.TOPOLOGY_SATISFIED)
    assert ["healthy", "healthy", "failed"] == [one["health"] for one in lost["zones"]]
    assert PipelineStatus.model_validate(lost)


def test_where_zones_are_not_judged_nothing_is_said_of_them() -> None:
    """And a line that is bound to no zone has no health."""
    unbound = sound(zones=(), node_zones={}, zone_verdicts=WELL)

    assert all("health" not in one for one in judged(sound())["zones"])
    assert all("health" not in one for one in judged(unbound)["zones"])


def test_pods_that_do_not_answer_are_not_counted() -> None:
    """Their kubelets reported them as ready, but may have been lost since."""
    status = judged(sound(unanswered=frozenset({"btc-infer-1", "btc-ingest-zone-c-0", "btc-redis-2"})))

    assert "8/11" == status["ready"]
    assert [2, 2] == [status["inference"]["ready"], status["redis"]["ready"]]
    assert [True, True, False] == [one["ready"] for one in status["zones"]]
    assert "Degraded" == status["phase"]


@pytest.mark.parametrize(
    ("expected", "nodes"),
    [
        (("True", "AsExpected"), {"node-0": "zone-a", "node-1": "zone-b", "node-2": "zone-c"}),
        (("False", "NotSpread"), {"node-0": "zone-a", "node-1": "zone-a", "node-2": "zone-c"}),
    ],
)
def test_the_spread_of_pods(expected: tuple[str, str], nodes: dict[str, str]) -> None:
    """Two replicas in one zone are one loss; where nodes show no zones there is nothing to spread over."""
    zones = {**{f"node-{zone}": zone for zone in ZONES}, **nodes}
    status = judged(sound(node_zones=zones, usable_zones=ZONES, zone_verdicts=WELL))

    assert expected == told(status, Condition.TOPOLOGY_SATISFIED)
    assert "Running" == status["phase"]
    if expected[0] == "False":
        assert "infer: only in zone-a" in message(status, Condition.TOPOLOGY_SATISFIED)


def test_an_evacuated_zone_is_nothing_to_spread_over() -> None:
    """Three replicas in the two zones that are left are spread; all in one of them are not."""
    zones = {f"node-{zone}": zone for zone in ZONES}
    both = {**zones, "node-0": "zone-a", "node-1": "zone-b", "node-2": "zone-b"}
    one = {**zones, "node-0": "zone-a", "node-1": "zone-a", "node-2": "zone-a"}
    for nodes, expected in ((both, "AsExpected"), (one, "NotSpread")):
        seen = sound(node_zones=nodes, usable_zones=ZONES, zone_verdicts=WELL)
        status = judged(seen, status={"evacuatedZone": "zone-c"})
        assert expected == told(status, Condition.TOPOLOGY_SATISFIED)[1]


def test_pods_that_are_missing_do_not_share_a_zone() -> None:
    """While a component is not complete it is not decided where its pods will be."""
    one = (pod(Component.INFER, 0),)
    others = tuple(found for found in sound().pods if "infer" not in found["metadata"]["name"])
    nodes = {"node-0": "zone-a", "node-1": "zone-b", "node-2": "zone-c"}
    status = judged(sound(pods=(*others, *one), node_zones=nodes, usable_zones=ZONES))

    assert ("True", "AsExpected") == told(status, Condition.TOPOLOGY_SATISFIED)


def test_since_is_the_moment_of_the_last_change() -> None:
    """Another reason for the same verdict changes nothing about it."""
    kept = with_health(row(), row("failed"), {"zone-c": (ZoneHealth.FAILED, ZoneReason.RETURNING)}, NOW_US)
    changed = with_health(row(), row("healthy"), {"zone-c": SILENT}, NOW_US)

    assert (EARLIER, "Returning") == (kept["since"], kept["reason"])
    assert text_of(NOW_US) == changed["since"]


def test_what_a_replica_does_not_know_is_not_forgotten() -> None:
    """A new leader that has never reached the zone does not withdraw the verdict that it failed."""
    assert row("failed") == with_health(row(), row("failed"), {"zone-c": UNKNOWN}, NOW_US)
    assert "unknown" == with_health(row(), row("healthy"), {"zone-c": UNKNOWN}, NOW_US)["health"]
    assert ["failed", "healthy"] == [
        with_health(row(), row(was), {}, NOW_US)["health"] for was in ("failed", "healthy")
    ]
    assert "health" not in with_health(row(), row(), {}, NOW_US)


HEALTHS = st.sampled_from([FAILED, SILENT, HEALTHY, UNKNOWN])


@given(st.lists(HEALTHS, min_size=3, max_size=3), st.sampled_from(["Running", "Degraded", "Maintenance", "Paused"]))
def test_a_replica_that_does_not_lead_writes_what_the_leader_would(verdicts: list[Any], phase: str) -> None:
    """The same rows; and of a running pipeline that it is degraded. A second report changes nothing."""
    of_zone = dict(zip(ZONES, verdicts, strict=True))
    status = {**judged(sound(zone_verdicts=WELL)), "phase": phase}
    changed = report_of(status, of_zone, NOW_US)
    after = {**status, **changed}

    leader = judged(sound(zone_verdicts=of_zone), status=status)
    assert leader["zones"] == after["zones"]
    assert ("Degraded" if phase == "Running" and FAILED in verdicts else phase) == after["phase"]
    assert {} == report_of(after, of_zone, NOW_US + 5_000_000)


def test_a_report_speaks_of_bound_lines_only() -> None:
    """Lines a and b are no zones."""
    rows = [{"name": "a", "ready": True, "pods": 1}, {"name": "b", "ready": True, "pods": 1}]

    assert {} == report_of({"phase": "Running", "zones": rows}, {"zone-a": FAILED}, NOW_US)


def test_events_say_what_becomes_of_zones() -> None:
    """A loss when it begins and when it is final, and the return; nothing for what was never known."""

    def reasons(before: str, after: str) -> list[EventReason]:
        return [reason for _, reason, _ in zone_events([row(before)], [row(after)])]

    assert [EventReason.ZONE_SILENT] == reasons("healthy", "silent")
    assert [EventReason.ZONE_FAILED] == reasons("silent", "failed")
    assert [EventReason.ZONE_FAILED] == reasons("", "failed")
    assert [EventReason.ZONE_RETURNED] == reasons("failed", "healthy")
    assert [] == reasons("unknown", "healthy") + reasons("failed", "failed") + reasons("healthy", "unknown")


def test_the_leaders_events_are_the_same() -> None:
    """They come with the rest of what a change of status is worth."""
    before = judged(sound(zone_verdicts=WELL))
    after = judged(replace(sound(), zone_verdicts={**WELL, "zone-c": FAILED}), status=before)

    events = transitions(before, after, pipeline().name, pipeline().uid)
    assert {EventReason.ZONE_FAILED, EventReason.DEGRADED} == {one.reason for one in events}
