"""The coordinator of re-anchors: every decision from values, no clock and no network."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sheetanchor.contract import Gap
from sheetanchor.policy.reanchor_scheduler import (
    EMERGENCY,
    IMMEDIATE,
    SCHEDULED,
    VALIDATION,
    Policy,
    Request,
    Seen,
    Skip,
    Start,
    State,
    Wait,
    ask,
    backoff_us,
    decide,
    ended,
    started,
)

SECOND = 1_000_000
NOW = 1_700_000_000 * SECOND
SOUND = Seen("anchored", epoch=3, fresh=True, lock_held=False)
SUSPECT = Seen("suspect", epoch=3, fresh=True, lock_held=False, suspect_since_us=NOW)
TRIGGERS = {
    EMERGENCY: "connection_loss",
    IMMEDIATE: "price_discontinuity",
    SCHEDULED: "time_gap",
    VALIDATION: "volume_anomaly",
}


def wish(action: str = IMMEDIATE, at_us: int = NOW, **more: object) -> Request:
    return replace(Request(action, f"because of {action}", TRIGGERS[action], at_us), **more)  # type: ignore[arg-type]


def asked(state: State, *requests: Request, policy: Policy | None = None) -> State:
    for request in requests:
        state, skipped = ask(state, request, policy or Policy())
        assert None is skipped
    return state


def start_of(state: State, seen: Seen, now_us: int) -> Start:
    _, decision = decide(state, seen, now_us)
    assert isinstance(decision, Start), decision
    return decision


def after_rebuild(now_us: int, *, started_us: int | None = None) -> State:
    state = asked(State(), wish(at_us=now_us - 5 * SECOND))
    state = started(state, start_of(state, SOUND, now_us - 4 * SECOND), started_us or now_us - 4 * SECOND)
    return ended(state, 0, rebuilt=True, now_us=now_us, jitter=0.5)


def test_immediate_request_starts_a_rebuild_at_once() -> None:
    """An immediate request starts without any wait and carries its reason and rule."""
    state = asked(State(), wish())

    start = start_of(state, SOUND, NOW)

    assert ("rebuild", "because of immediate_reanchor", "price_discontinuity") == (
        start.kind,
        start.reason,
        start.trigger,
    )


def test_nothing_asked_nothing_done() -> None:
    """A sound state without requests starts nothing."""
    assert Wait(None, "no re-anchor is requested") == decide(State(), SOUND, NOW)[1]


def test_gap_record_becomes_a_request() -> None:
    """A gap record keeps its action, rule, reason, time and epoch."""
    gap = Gap("BTCUSDT", "sequence_gap", "high", IMMEDIATE, "depth: expected 124, found 131", "process", NOW, 3)

    request = Request.of_gap(gap)

    assert Request(IMMEDIATE, "depth: expected 124, found 131", "sequence_gap", NOW, 3) == request


def test_unknown_action_is_refused() -> None:
    """An action outside the four is one clear error."""
    with pytest.raises(ValueError, match=r"action = 'restart': expected one of emergency_reanchor"):
        ask(State(), replace(wish(), action="restart"))


def test_emergency_goes_before_everything_that_waits() -> None:
    """An emergency is taken first whatever was asked earlier."""
    state = asked(State(), wish(VALIDATION), wish(SCHEDULED), wish(IMMEDIATE), wish(EMERGENCY))

    start = start_of(state, replace(SOUND, fresh=False), NOW)

    assert "connection_loss" == start.trigger


def test_lost_line_beside_a_live_one_changes_nothing() -> None:
    """Losing a line while the state is anchored and fresh is skipped, and the reason says so."""
    state = asked(State(), wish(EMERGENCY))

    state, decision = decide(state, SOUND, NOW)

    assert isinstance(decision, Skip)
    assert "another line is live: the state is anchored and fresh" == decision.reason
    assert () == state.pending


@pytest.mark.parametrize("seen", [replace(SOUND, fresh=False), SUSPECT])
def test_lost_line_without_a_live_one_starts(seen: Seen) -> None:
    """Losing the last line rebuilds at once."""
    assert "rebuild" == start_of(asked(State(), wish(EMERGENCY)), seen, NOW).kind


def test_scheduled_requests_wait_for_others() -> None:
    """Two scheduled requests within the debounce lead to one run when the first one's wait is over."""
    state = asked(State(), wish(SCHEDULED), wish(SCHEDULED, NOW + SECOND))

    _, early = decide(state, SOUND, NOW + 2 * SECOND - 1)
    start = start_of(state, SOUND, NOW + 2 * SECOND)
    state = started(state, start, NOW + 2 * SECOND)

    assert Wait(NOW + 2 * SECOND, "a scheduled re-anchor waits for others") == early
    assert "because of scheduled_reanchor (and 1 more)" == start.reason
    assert () == state.pending


def test_ten_triggers_make_one_run_and_at_most_one_more() -> None:
    """Ten triggers within a second lead to one run; those during the run to exactly one more."""
    state = asked(State(), wish())
    state = started(state, start_of(state, SUSPECT, NOW), NOW)
    for i in range(1, 10):
        state = asked(state, wish(at_us=NOW + i * SECOND // 10))
        assert Wait(None, "a run is in progress") == decide(state, SUSPECT, NOW + i)[1]
    state = ended(state, 0, rebuilt=True, now_us=NOW + 2 * SECOND, jitter=0)

    follow_up = start_of(state, SUSPECT, NOW + 2 * SECOND)
    state = started(state, follow_up, NOW + 2 * SECOND)
    state = ended(state, 0, rebuilt=True, now_us=NOW + 4 * SECOND, jitter=0)

    assert 9 == follow_up.request.asked
    assert Wait(None, "no re-anchor is requested") == decide(state, SOUND, NOW + 5 * SECOND)[1]


def test_trigger_older_than_the_snapshot_is_answered_by_the_run() -> None:
    """A trigger that is older than what the run was built from leads to no second run."""
    state = asked(State(), wish())
    state = started(state, start_of(state, SOUND, NOW), NOW)
    state = asked(state, wish(at_us=NOW + SECOND))
    state = ended(state, 0, rebuilt=True, now_us=NOW + 3 * SECOND, jitter=0, snapshot_us=NOW + SECOND)

    _, decision = decide(state, SOUND, NOW + 3 * SECOND)

    assert isinstance(decision, Skip)
    assert "the last run is newer than what it is about" == decision.reason


def test_doubt_about_an_older_epoch_is_settled() -> None:
    """A gap in a state that has been rebuilt since changes nothing."""
    _, decision = decide(asked(State(), wish(epoch=2)), SOUND, NOW)

    assert isinstance(decision, Skip)
    assert "the state that it is about, epoch 2, has been rebuilt since" == decision.reason


def test_merged_request_of_unknown_epoch_is_not_settled() -> None:
    """Coalescing never makes a request look older than one of those it stands for."""
    state = asked(State(), wish(epoch=2), wish(epoch=0))

    assert "rebuild" == start_of(state, SOUND, NOW).kind


def test_cool_down_holds_requests_while_the_state_is_sound() -> None:
    """Soon after a rebuild a sound state waits, a suspect one does not."""
    state = asked(after_rebuild(NOW), wish(at_us=NOW + SECOND))

    _, decision = decide(state, SOUND, NOW + SECOND)

    assert Wait(NOW + 10 * SECOND, "cooling down after the last rebuild") == decision
    assert "rebuild" == start_of(state, SUSPECT, NOW + SECOND).kind


def test_budget_of_an_hour() -> None:
    """No more rebuilds within an hour than the budget, and the wait ends when the oldest is an hour old."""
    policy = Policy(rebuilds_per_hour=2)
    state = State(rebuilt_us=(NOW - 600 * SECOND, NOW - 300 * SECOND))
    state, _ = ask(state, wish(), policy)

    _, decision = decide(state, SOUND, NOW, policy)
    _, later = decide(state, SOUND, NOW + 3000 * SECOND, policy)

    assert Wait(NOW + 3000 * SECOND, "the budget of 2 rebuilds an hour is used up") == decision
    assert isinstance(later, Start)


def test_other_symbols_spend_of_the_same_budget() -> None:
    """All symbols share the budget: a sound state waits; a suspect one is rebuilt at once unless it just was."""
    policy = Policy(rebuilds_per_hour=2)
    state = State(rebuilt_us=(NOW - 600 * SECOND,), others_us=(NOW - 3000 * SECOND, NOW - 5 * SECOND))
    state, _ = ask(state, wish(), policy)

    _, decision = decide(state, SOUND, NOW, policy)

    assert Wait(NOW + 3000 * SECOND, "the budget of 2 rebuilds an hour is used up") == decision
    _, at_once = decide(State(others_us=state.others_us), SUSPECT, NOW + SECOND, policy)
    assert isinstance(at_once, Start)


def test_suspect_state_is_rebuilt_once_a_minute_without_budget() -> None:
    """A used-up budget slows the repair of a suspect state down to once a minute, and no further."""
    policy = Policy(rebuilds_per_hour=2)
    state = State(rebuilt_us=(NOW - 30 * SECOND, NOW - 20 * SECOND))

    _, decision = decide(state, SUSPECT, NOW + SECOND, policy)
    _, later = decide(state, SUSPECT, NOW + 40 * SECOND, policy)

    assert Wait(NOW + 40 * SECOND, "the budget of 2 rebuilds an hour is used up") == decision
    assert isinstance(later, Start)


def test_a_person_can_insist() -> None:
    """A forced request ignores cool-down, budget, suppression and the switch."""
    policy = Policy(rebuilds_per_hour=1, enabled=False, suppressed=frozenset({"price_discontinuity"}))
    state, skipped = ask(after_rebuild(NOW), wish(force=True), policy)

    _, decision = decide(state, SOUND, NOW + 1, policy)

    assert None is skipped
    assert isinstance(decision, Start)


def test_forced_validation_rebuilds() -> None:
    """What a person insists on is a rebuild."""
    assert "rebuild" == start_of(asked(State(), wish(VALIDATION, force=True)), SOUND, NOW).kind


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (
            Policy(suppressed=frozenset({"price_discontinuity"})),
            "rule price_discontinuity is suppressed by the settings",
        ),
        (Policy(enabled=False), "re-anchoring is disabled by the settings"),
    ],
)
def test_settings_can_silence_a_rule_or_all(policy: Policy, reason: str) -> None:
    """A suppressed rule and a switched-off coordinator skip and say so."""
    state, skipped = ask(State(), wish(), policy)

    assert skipped is not None
    assert reason == skipped.reason
    assert () == state.pending


def test_switched_off_leaves_a_suspect_state_alone() -> None:
    """If re-anchoring is disabled, a suspect state alone starts nothing."""
    assert isinstance(decide(State(), SUSPECT, NOW + SECOND, Policy(enabled=False))[1], Wait)


def test_same_request_id_counts_once_in_a_day() -> None:
    """A request id is answered once; after 24 hours it is new again."""
    state = asked(State(), wish(id="r-1"))

    again, skipped = ask(state, wish(id="r-1", at_us=NOW + SECOND))
    _, other = ask(state, wish(id="r-2", at_us=NOW + SECOND))
    next_day = asked(state, wish(id="r-3", at_us=NOW + 86_400 * SECOND + 1))

    assert skipped is not None
    assert "request r-1 was made before" == skipped.reason
    assert state == again
    assert None is other
    assert ["r-3"] == [known for known, _ in next_day.ids]


def test_suspect_state_without_a_request_is_rebuilt_after_a_moment() -> None:
    """A suspect state is rebuilt without a request, once its request had time to arrive."""
    _, early = decide(State(), SUSPECT, NOW + SECOND // 2 - 1)

    start = start_of(State(), SUSPECT, NOW + SECOND // 2)

    assert isinstance(early, Wait)
    assert ("the state is suspect", "suspect") == (start.reason, start.trigger)


def test_suspicion_of_unknown_age_is_acted_upon_at_once() -> None:
    """Without the time of the suspicion there is no grace that could last for ever."""
    assert "suspect" == start_of(State(), replace(SUSPECT, suspect_since_us=0), NOW).trigger


def test_first_anchor_of_all() -> None:
    """Epoch 0 starts at once with the reason start."""
    start = start_of(State(), Seen("suspect", 0, fresh=False, lock_held=False), NOW)

    assert ("rebuild", "start") == (start.kind, start.trigger)


def test_foreign_lock_is_waited_for() -> None:
    """No run starts while another one holds the lock."""
    _, decision = decide(asked(State(), wish()), replace(SUSPECT, lock_held=True), NOW)

    assert Wait(NOW + SECOND, "another run holds the lock") == decision


def test_validation_only_when_idle_and_not_often() -> None:
    """A validation waits a minute after any run, and starts as a validation."""
    state = asked(after_rebuild(NOW), wish(VALIDATION, NOW + SECOND))

    _, early = decide(state, SOUND, NOW + 60 * SECOND - 1)
    start = start_of(state, SOUND, NOW + 60 * SECOND)

    assert isinstance(early, Wait)
    assert "validate" == start.kind


def test_validation_of_a_suspect_state_is_pointless() -> None:
    """A suspect state is rebuilt, not validated."""
    state, decision = decide(asked(State(), wish(VALIDATION)), SUSPECT, NOW)

    assert isinstance(decision, Skip)
    assert "a rebuild is due anyway" == decision.reason
    assert "rebuild" == start_of(state, SUSPECT, NOW + SECOND).kind


def test_validation_leaves_rebuilds_waiting() -> None:
    """A validation takes only its own request along; one for a rebuild stays."""
    state = asked(State(), wish(VALIDATION))
    start = start_of(state, SOUND, NOW)
    state = started(asked(state, wish(SCHEDULED)), start, NOW)

    assert [SCHEDULED] == [request.action for request in state.pending]


def test_failed_run_is_retried_with_backoff() -> None:
    """A failed run is tried again after a growing delay, and a success ends that."""
    state = asked(State(), wish())
    for failures, delay_s in enumerate([1, 2, 4, 8], start=1):
        state = started(state, start_of(state, SUSPECT, NOW), NOW)
        state = ended(state, 3, rebuilt=False, now_us=NOW, jitter=0.5)

        _, decision = decide(state, SUSPECT, NOW)
        assert Wait(NOW + delay_s * SECOND, f"{failures} runs in a row failed: backing off") == decision
        state = replace(state, retry_us=NOW)

    state = started(state, start_of(state, SUSPECT, NOW), NOW)
    state = ended(state, 0, rebuilt=True, now_us=NOW, jitter=0.5)

    assert (0, 0) == (state.failures, state.retry_us)


def test_request_is_given_up_but_suspicion_is_not() -> None:
    """After five failed runs a request is dropped; a suspect state goes on being tried."""
    state = asked(State(), wish())
    for _ in range(5):
        state = started(state, start_of(replace(state, retry_us=0), SUSPECT, NOW), NOW)
        state = ended(state, -9, rebuilt=False, now_us=NOW, jitter=0)

    assert () == state.pending
    assert "suspect" == start_of(state, SUSPECT, NOW + 40 * SECOND).trigger


def test_forced_run_that_failed_backs_off_too() -> None:
    """Insisting skips the first wait, not those after failures."""
    state = asked(State(), wish(force=True))
    state = started(state, start_of(state, SOUND, NOW), NOW)
    state = ended(state, 3, rebuilt=False, now_us=NOW, jitter=0.5)

    assert Wait(NOW + SECOND, "1 runs in a row failed: backing off") == decide(state, SOUND, NOW)[1]


def test_lock_held_elsewhere_is_no_failure() -> None:
    """A run that found the lock held is tried again soon and counts as no failure."""
    state = asked(State(), wish())
    state = started(state, start_of(state, SUSPECT, NOW), NOW)

    state = ended(state, 6, rebuilt=False, now_us=NOW, jitter=0)

    assert (0, NOW + SECOND, 1) == (state.failures, state.retry_us, len(state.pending))


def test_superseded_run_is_not_repeated_when_the_state_is_sound() -> None:
    """Another run has rebuilt the state, so there is nothing left to do."""
    state = asked(State(), wish(epoch=3))
    state = started(state, start_of(state, SUSPECT, NOW), NOW)

    state = ended(state, 7, rebuilt=False, now_us=NOW, jitter=0)

    assert Wait(None, "no re-anchor is requested") == decide(state, replace(SOUND, epoch=4), NOW)[1]


@pytest.mark.parametrize(
    ("failures", "jitter", "expected_us"),
    [(1, 0.5, SECOND), (1, 0.0, 800_000), (3, 0.5, 4 * SECOND), (6, 0.5, 30 * SECOND), (500, 0.5, 30 * SECOND)],
)
def test_backoff_doubles_and_is_bounded(failures: int, jitter: float, expected_us: int) -> None:
    """Delays double up to the longest and spread by a fifth."""
    assert expected_us == backoff_us(failures, jitter)


def test_end_without_a_run_changes_nothing() -> None:
    """The end of a run that was not noted leaves the state as it is."""
    assert State() == ended(State(), 0, rebuilt=True, now_us=NOW, jitter=0)
