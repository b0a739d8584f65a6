"""What a switched-off re-anchoring says of itself: that it is the cause, wherever it is, and only there."""

from __future__ import annotations

from typing import Any

import pytest

from sheetanchor_operator.names import Condition, Reason
from sheetanchor_operator.reanchors.plan import ReanchorPlan, SymbolFacts
from support.pipeline_parts import judged, message, sound, stands, told

FORCE = "; kubectl reanchor btc -n market --force does not wait"

OFF = {"reanchor": {"enabled": False}, "processor": {"selfReanchorAfterSeconds": 0}}
SUSPECT = {"states": {"btc-process-0": stands(state="suspect", reason="a hole")}}
FORCED = {"reanchors": ({"metadata": {"name": "hard"}, "spec": {"force": True}},)}
ASKED = {"reanchors": ({"metadata": {"name": "soft"}, "spec": {}},)}


def throttled(facts: SymbolFacts, spec: dict[str, Any], **seen: Any) -> dict[str, Any]:
    """Give the status of a pipeline whose re-anchors stand so."""
    return judged(sound(**seen), spec, plan=ReanchorPlan(symbols={"BTCUSDT": facts}))


@pytest.mark.parametrize(
    ("facts", "seen"),
    [
        (SymbolFacts(), SUSPECT),
        (SymbolFacts(pending=("hard",)), SUSPECT | FORCED),
        (SymbolFacts(pending=("hard",), throttled=Reason.LOCK_HELD, message="held"), SUSPECT | FORCED),
        (SymbolFacts(pending=("soft",)), ASKED),
        (SymbolFacts(pending=("hard", "unseen")), FORCED),
    ],
)
def test_what_the_switch_holds_up_is_reported(facts: SymbolFacts, seen: dict[str, Any]) -> None:
    """A suspect state is reported as suspect, although its request was skipped and nothing waits."""
    status = throttled(facts, OFF, **seen)

    assert ("True", "Disabled") == told(status, Condition.REANCHOR_THROTTLED)
    expected = (
        "reanchor.enabled is false and BTCUSDT would be rebuilt: set it to true, or "
        "kubectl reanchor btc -n market --force"
    )
    assert expected == message(status, Condition.REANCHOR_THROTTLED)


@pytest.mark.parametrize(
    ("facts", "spec", "seen", "expected"),
    [
        (SymbolFacts(), OFF, {}, ("False", "NotThrottled")),
        (SymbolFacts(pending=("hard",)), OFF, FORCED, ("False", "NotThrottled")),
        (
            SymbolFacts(pending=("hard",), throttled=Reason.LOCK_HELD, message="held"),
            OFF,
            FORCED,
            ("True", "LockHeld"),
        ),
        (SymbolFacts(pending=("soft",)), {}, SUSPECT | ASKED, ("False", "NotThrottled")),
    ],
)
def test_what_it_does_not_hold_up_is_not_its_fault(
    facts: SymbolFacts, spec: dict[str, Any], seen: dict[str, Any], expected: tuple[str, str]
) -> None:
    """A forced request starts whatever the switch says, and waits only for what it waits for."""
    assert expected == told(throttled(facts, spec, **seen), Condition.REANCHOR_THROTTLED)


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        (Reason.BACKING_OFF, FORCE),
        (Reason.COOLDOWN, FORCE),
        (Reason.BUDGET_USED_UP, FORCE),
        (Reason.LOCK_HELD, ""),
        (Reason.EXCHANGE_LIMIT, "; wait: the exchange bans an address that does not"),
    ],
)
def test_a_forced_run_is_offered_where_it_helps(reason: Reason, advice: str) -> None:
    """It waits for another one's lock all the same, and keeps to the exchange's ban."""
    status = throttled(SymbolFacts(pending=("y",), throttled=reason, message="why"), {})

    assert f"BTCUSDT: why{advice}" == message(status, Condition.REANCHOR_THROTTLED)
