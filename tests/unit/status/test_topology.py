"""Which pod is replaced so that a component is spread over the zones again."""

from __future__ import annotations

import pytest

from sheetanchor_operator.names import ZoneHealth, ZoneReason
from sheetanchor_operator.observation import Observed
from sheetanchor_operator.status.topology import pod_to_move
from sheetanchor_operator.status.workload_health import workload_health_of
from support.pipeline_parts import pipeline, stands
from support.topology_parts import WELL, A, B, C, seen


def moved(observed: Observed) -> str:
    """Name the pod that is moved, "" for none."""
    found = pod_to_move(pipeline(), observed, workload_health_of(pipeline(), observed))
    return "" if found is None else str(found[0]["metadata"]["name"])


@pytest.mark.parametrize(
    ("name", "observed"),
    [
        ("", seen()),
        ("btc-infer-1", seen(infer=(A, A, B))),
        ("btc-infer-2", seen(infer=(A, A, A))),
        ("btc-process-1", seen(process=(A, A))),
        ("btc-infer-2", seen(infer=(A, B, B), process=(A, A))),
        ("", seen(infer=(A, A, B), zone_verdicts={**WELL, C: (ZoneHealth.UNKNOWN, ZoneReason.NO_WITNESSES)})),
        ("", seen(infer=(A, A, B), zone_verdicts={**WELL, C: (ZoneHealth.FAILED, ZoneReason.RETURNING)})),
        ("", seen(infer=(A, A, B), zone_verdicts=None)),
        ("", seen(infer=(A, A))),
        ("", seen(infer=(A, A, B), unanswered=frozenset({"btc-infer-2"}))),
        ("", seen(infer=(A, A, A), usable_zones=(A,))),
        ("", seen(infer=(A, A, B), usable_zones=(A, B))),
        ("", seen(infer=(A, A, B), usable_zones=None)),
    ],
)
def test_what_shares_a_zone_is_moved_when_there_is_a_place_to_go_to(name: str, observed: Observed) -> None:
    """The newest in the fullest zone, inference first; nothing while pods are missing or a zone does not answer."""
    assert name == moved(observed)


def test_a_processor_that_writes_is_left_alone() -> None:
    """Whichever it is: the other one of those that share a zone goes."""
    other = {"btc-process-0": stands(active=False), "btc-process-1": stands()}

    assert "btc-process-0" == moved(seen(process=(A, A), states=other))
