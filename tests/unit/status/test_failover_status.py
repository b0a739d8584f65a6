"""A pipeline's move in its status: what annotations ask for, what is written, and what a new leader reads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sheetanchor_operator.api.pipeline_status import PipelineStatus
from sheetanchor_operator.names import EVACUATE_ANNOTATION, PAUSED_ANNOTATION, SWITCHOVER_ANNOTATION, Condition
from sheetanchor_operator.observation import Observed, PodResponse
from sheetanchor_operator.status.failover import FailoverPlan, failover_events, finished_steps, plan_failover
from sheetanchor_operator.status.summary import status_of
from sheetanchor_operator.status.workload_health import workload_health_of
from sheetanchor_operator.zones.failover_record import Failed, Take
from support.pipeline_parts import pipeline, predicts, stands, told
from support.topology_parts import A, B, C, seen

SECOND = 1_000_000
Status = dict[str, Any]


def state(replica: str, **fields: Any) -> PodResponse:
    """What a processor says, and what it calls itself."""
    return PodResponse({**(stands(**fields).body or {}), "replica": replica})


def world(writer: str = "btc-process-0", term: int = 2, slot: int = 7, **changes: Any) -> Observed:
    """Processors in zones a and b; the master is in zone a."""
    names = ("btc-process-0", "btc-process-1")
    states = {name: state(f"r{name[-1]}", active=name == writer, term=term) for name in names}
    master = PodResponse({"checks": {"server": {"role": "master", "replicas": 2}}})
    fields = {
        "states": states,
        "predictions": {("btc-infer-0", "BTCUSDT"): predicts(slot=slot)},
        "health": {"btc-redis-0": master},
        **changes,
    }
    return seen(**fields)


def next_of(
    status: Status, observed: Observed, failed: Failed | None = None, **notes: str
) -> tuple[Status, FailoverPlan]:
    """Reconcile once; gives the status that is written, and the plan."""
    annotations = {"switchover": SWITCHOVER_ANNOTATION, "evacuate": EVACUATE_ANNOTATION, "paused": PAUSED_ANNOTATION}
    found = pipeline(status=status, annotations={annotations[name]: value for name, value in notes.items()})
    moves = plan_failover(found, observed, workload_health_of(found, observed), failed)
    written = status_of(found, observed, moves=moves)
    PipelineStatus.model_validate(written)
    return written, moves


def test_a_switchover_is_written_before_anybody_is_asked() -> None:
    """The term stands in the status, above all before; then the standby there is asked, again and again."""
    status, plan = next_of({"term": 9}, world(), switchover=f"{B}/1")
    assert ("Running", "Intent", A, B, None) == (
        *(status["failover"][name] for name in ("phase", "step", "fromZone", "toZone")),
        plan.action,
    )
    status, plan = next_of(status, world(), switchover=f"{B}/1")
    assert (10, 10, "Fence", "btc-process-1", None) == (
        status["term"],
        status["failover"]["term"],
        status["failover"]["step"],
        status["failover"]["target"],
        plan.action,
    )
    for _ in range(2):
        status, plan = next_of(status, world(), switchover=f"{B}/1")
        assert Take("btc-process-1", "r1", 10, ("BTCUSDT",)) == plan.action
    assert ("True", "FailoverRunning") == told(status, Condition.FAILOVER_IN_PROGRESS)


def test_a_switchover_ends_with_a_sound_prediction_and_is_not_begun_again() -> None:
    """Its steps and their times are in the status; the same value of the annotation asks for nothing more."""
    before: Status = {}
    status: Status = {}
    events: list[str] = []
    elsewhere = {"btc-redis-1": PodResponse({"checks": {"server": {"role": "master", "replicas": 2}}})}
    moved = world("btc-process-1", 3, health=elsewhere)
    steps = [world(), world(), world(), moved, moved, moved, world("btc-process-1", 3, 9, health=elsewhere)]
    for number, observed in enumerate(steps):
        before, status = (
            status,
            next_of(status, replace(observed, now_us=observed.now_us + number * SECOND), switchover=B)[0],
        )
        events += [reason for _, reason, _ in failover_events(before, status)]
    assert ("Done", ["Intent", "Fence", "Redis", "Verify"]) == (
        status["failover"]["phase"],
        [one["name"] for one in status["failover"]["steps"]],
    )
    assert [("Verify", 2.0)] == finished_steps(before, status)
    assert ("False", "Idle") == told(status, Condition.FAILOVER_IN_PROGRESS)
    assert ["FailoverStarted", *["FailoverStep"] * 4, "FailoverDone"] == events
    again, _ = next_of(status, steps[-1], switchover=B)
    assert status["failover"] == again["failover"]
    other, _ = next_of(status, steps[-1], switchover=f"{A}/2")
    assert ("Running", A) == (other["failover"]["phase"], other["failover"]["toZone"])


def test_a_refusal_is_written_once_with_its_message() -> None:
    """An Event says it; asked for by the same value it is neither repeated nor begun later."""
    status, plan = next_of({}, world(), switchover="nowhere")
    assert plan.action is None
    assert ("False", "FailoverRefused") == told(status, Condition.FAILOVER_IN_PROGRESS)
    assert ["FailoverRefused"] == [reason for _, reason, _ in failover_events({}, status)]
    again, _ = next_of(status, world(), switchover="nowhere")
    assert [] == failover_events(status, again)


def test_an_evacuation_that_is_refused_begins_once_it_can() -> None:
    """The request stays: without a standby it is refused, with one Event, and starts once there is one."""
    alone = world(states={"btc-process-0": state("r0")})
    first, _ = next_of({}, alone, evacuate=A)
    assert f"no standby outside of zone {A} answers" in first["failover"]["message"]
    second, _ = next_of(first, alone, evacuate=A)
    assert [] == failover_events(first, second)
    assert "Running" == next_of(second, world(), evacuate=A)[0]["failover"]["phase"]


def evacuated(**changes: Any) -> Status:
    """The status of a pipeline that is out of zone a, some minutes ago."""
    steps = [{"name": "Verify", "startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:00:01Z"}]
    done = {"request": A, "kind": "Evacuation", "phase": "Done", "step": "Verify", "fromZone": A, "steps": steps}
    return {"evacuatedZone": A, "failover": {**done, **changes}}


def test_pods_are_kept_out_while_the_annotation_stands() -> None:
    """It holds as long, under any leader; without the annotation, or with another zone, pods may return."""
    out = world("btc-process-1", health={})
    assert A == next_of(evacuated(), out, evacuate=A)[0]["evacuatedZone"]
    free, _ = next_of(evacuated(), out)
    assert "evacuatedZone" not in free
    assert ["ZoneReadmitted"] == [reason for _, reason, _ in failover_events(evacuated(), free)]
    assert "Running" == next_of(evacuated(), out, evacuate=f"{C}")[0]["failover"]["phase"]


def test_a_master_that_goes_back_into_an_evacuated_zone_is_moved_again() -> None:
    """A Sentinel may promote the replica there; once a minute at most, and not after it was given up."""
    back = world("btc-process-1")
    assert "Running" == next_of(evacuated(), back, evacuate=A)[0]["failover"]["phase"]
    assert "Aborted" == next_of(evacuated(phase="Aborted"), back, evacuate=A)[0]["failover"]["phase"]


def test_an_evacuation_ends_with_its_annotation() -> None:
    """At whatever step it is, and its zone is readmitted; so it is when it is given up because pods find no place."""
    step = {"name": "Readers", "startedAt": "2026-01-01T00:00:00Z"}
    going = evacuated(phase="Running", step="Readers", steps=[step])
    ended, plan = next_of(going, world("btc-process-1", health={}))
    assert ("Aborted", None, None) == (ended["failover"]["phase"], ended.get("evacuatedZone"), plan.action)
    late, _ = next_of(going, world("btc-process-1", health={}), evacuate=A)
    assert ("Aborted", None) == (late["failover"]["phase"], late.get("evacuatedZone"))


def test_a_paused_pipeline_is_left_alone() -> None:
    """No move is begun, and one that goes on waits as it is."""
    assert "failover" not in next_of({}, world(), switchover=B, paused="true")[0]
    going, _ = next_of({}, world(), switchover=B)
    later, plan = next_of(going, world(), switchover=B, paused="true")
    assert (going["failover"], None) == (later["failover"], plan.action)


@pytest.mark.parametrize("damage", [{"phase": "Unheard"}, {"steps": []}, {"kind": None}, {"steps": [{}]}])
def test_a_record_that_cannot_be_read_counts_as_none(damage: dict[str, Any]) -> None:
    """It is of another version: nothing is concluded from it, and the next request is served."""
    going, _ = next_of({}, world(), switchover=B)
    odd = {**going, "failover": {**going["failover"], **damage}}
    assert "Running" == next_of(odd, world(), switchover=f"{B}/2")[0]["failover"]["phase"]
