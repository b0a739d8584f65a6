"""When a processor runs a re-anchor itself although the state is not suspect, and the arguments of that run."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sheetanchor.contract import Gap
from sheetanchor.policy.gap_rules import GAP_DETECTION_RULES, VALIDATION
from sheetanchor.policy.reanchor_scheduler import Seen, Start
from sheetanchor.process.self_reanchor import UnansweredRequests, reanchor_environment
from sheetanchor.runtime.settings import ProcessSettings
from support.local_samples import receipt

SECOND = 1_000_000
NOW = 1_700_000_000 * SECOND
AFTER_S = 15
ANCHORED = Seen("anchored", 3, fresh=True, lock_held=False)
STALE = replace(ANCHORED, fresh=False)


def gap(rule: str, at_us: int = NOW, epoch: int = 3) -> Gap:
    meaning = GAP_DETECTION_RULES[rule]
    return Gap("BTCUSDT", rule, meaning.severity, meaning.action, "because", "process", at_us, epoch)


def begins_at(unmet: UnansweredRequests, seen: Seen, until_s: int = 120) -> tuple[int, Start] | None:
    """Look once a second; give when a run is begun."""
    for second in range(until_s):
        start = unmet.due(seen, NOW + second * SECOND)
        if start is not None:
            return second, start
    return None


ASKING = sorted(name for name, rule in GAP_DETECTION_RULES.items() if not rule.suspects and rule.action != VALIDATION)


@pytest.mark.parametrize("rule", ASKING)
def test_what_only_asks_is_begun_when_nobody_comes(rule: str) -> None:
    """It starts 15 s after it could have been started, for gaps of any source, also an ingestor's `connection_loss`."""
    unmet = UnansweredRequests(AFTER_S * SECOND)
    unmet.take_gap(gap(rule))

    begun = begins_at(unmet, STALE)

    assert begun is not None
    assert AFTER_S <= begun[0] <= AFTER_S + 3
    assert rule == begun[1].trigger
    assert begins_at(unmet, STALE) is None, "once"


@pytest.mark.parametrize("rule", sorted(set(GAP_DETECTION_RULES) - set(ASKING)))
def test_doubts_and_validations_are_for_others(rule: str) -> None:
    """A suspect state has a request of its own, and a validation that no coordinator has started is not needed."""
    unmet = UnansweredRequests(AFTER_S * SECOND)
    unmet.take_gap(gap(rule))

    assert begins_at(unmet, STALE) is None


def test_a_run_of_somebody_else_answers() -> None:
    """A later successful run answers the request; a failed run shows that a coordinator is at work."""
    answered, failed = UnansweredRequests(AFTER_S * SECOND), UnansweredRequests(AFTER_S * SECOND)
    for unmet in (answered, failed):
        unmet.take_gap(gap("time_gap"))
        assert unmet.due(STALE, NOW + 10 * SECOND) is None
    answered.take_receipt(receipt("validated", at_us=NOW + 11 * SECOND + 1_300_000))
    failed.take_receipt(receipt("failed", 3, at_us=NOW + 11 * SECOND))

    assert begins_at(answered, STALE) is None
    assert failed.due(STALE, NOW + 12 * SECOND) is None
    assert failed.due(STALE, NOW + 26 * SECOND) is None
    assert failed.due(STALE, NOW + 28 * SECOND) is not None


def test_a_lost_line_beside_a_living_one_asks_for_nothing() -> None:
    """The state is anchored and fresh: no coordinator would begin a run for it, and neither is one begun here."""
    unmet = UnansweredRequests(AFTER_S * SECOND)
    unmet.take_gap(gap("connection_loss"))

    assert begins_at(unmet, ANCHORED) is None


@given(st.lists(st.tuples(st.sampled_from(ASKING), st.integers(0, 3_000)), max_size=400))
def test_the_budget_holds_here_too(asked: list[tuple[str, int]]) -> None:
    """However often something is asked for, an hour sees no more runs than the budget allows."""
    unmet, runs = UnansweredRequests(AFTER_S * SECOND), 0
    wanted = sorted(asked, key=lambda one: one[1])
    for second in range(0, 3_000, 5):
        now_us = NOW + second * SECOND
        while wanted and wanted[0][1] <= second:
            unmet.take_gap(gap(wanted.pop(0)[0], now_us, epoch=0))
        if unmet.due(STALE, now_us) is not None:
            runs += 1
            unmet.take_receipt(receipt("swapped", at_us=now_us))

    assert runs <= unmet.policy.rebuilds_per_hour


def test_a_run_of_its_own_is_told_what_the_pipeline_asks_for() -> None:
    """Depth, time-out, retries and breaker are the pipeline's; the processor's own settings file is not handed on."""
    settings = ProcessSettings(
        reanchor_depth_limit=500, reanchor_timeout_s=30, retry_max_attempts=7, circuit_breaker_threshold=9
    )

    environ = reanchor_environment(settings, {"PATH": "/bin", "SHEETANCHOR_CONFIG": "process.yaml", "CONFIG_FILE": "x"})

    assert ("500", "30.0", "7", "9", "/bin") == tuple(
        environ[name]
        for name in (
            "SHEETANCHOR_DEPTH_LIMIT",
            "SHEETANCHOR_TIMEOUT_S",
            "SHEETANCHOR_RETRY_MAX_ATTEMPTS",
            "SHEETANCHOR_CIRCUIT_BREAKER_THRESHOLD",
            "PATH",
        )
    )
    assert not {"SHEETANCHOR_CONFIG", "CONFIG_FILE"} & set(environ)
