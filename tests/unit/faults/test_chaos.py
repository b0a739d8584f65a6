"""The chaos runner: its score, its steps, and that no fault is left whatever happens."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faults.chaos import ChaosEngineer, calculate_resilience_score
from faults.checker import History, Losses
from faults.history import Answer, Levels, Request
from faults.injectors import INJECTORS, FaultSpec, UnknownFaultError, find_injector_for_failure, inject_failures
from faults.scenarios import SCENARIOS, SOAK, ChaosScenario, Step

SECOND = 1_000_000
BEGIN_S = 1_700_000_000
NOTHING: Any = None
WHOLE = Losses(10, 0, 0, 0, 0, 0, 0, 80)
OUT = Losses(10, 10, 10, 10, 0, 80, 20 * SECOND, 80)


@dataclass
class Noted:
    """An injector that notes what is active."""

    active: list[str] = field(default_factory=list)
    begun: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def inject_failure(self, pipeline: Any, spec: FaultSpec) -> Iterator[None]:
        self.active.append(spec.target)
        self.begun.append(spec.target)
        try:
            yield
        finally:
            self.active.remove(spec.target)


def faults(*names: str) -> tuple[FaultSpec, ...]:
    return tuple(FaultSpec("note", name) for name in names)


def test_no_degradation_is_1_and_an_outage_is_low() -> None:
    """A pipeline that answers nothing scores 0, one that answers unsoundly keeps what it answered."""
    assert calculate_resilience_score(WHOLE, WHOLE, WHOLE) == 1.0
    assert calculate_resilience_score(WHOLE, OUT, OUT) == 0.0
    assert calculate_resilience_score(WHOLE, replace(WHOLE, degraded=10), replace(WHOLE, slots=0, asked=0)) == 0.6


@given(st.integers(0, 10), st.integers(0, 10), st.integers(0, 80))
def test_a_score_is_from_0_to_1_and_falls_with_each_loss(missed: int, degraded: int, failed: int) -> None:
    """Whatever is lost lowers it."""
    degraded = min(degraded, 10 - missed)
    lost = replace(WHOLE, missed=missed, degraded=degraded, failed=failed)
    score = calculate_resilience_score(WHOLE, lost, replace(WHOLE, slots=0, asked=0))

    assert 0 <= score <= 1
    assert (score == 1) == (missed + degraded + failed == 0)


def test_an_unknown_fault_undoes_those_that_are_active() -> None:
    """Nothing stays wrong because something else could not be made wrong."""
    noted = Noted()
    known = {"note": noted}

    with (
        pytest.raises(UnknownFaultError, match="kind = 'fire': expected one of note"),
        inject_failures(NOTHING, "x", (*faults("a", "b"), FaultSpec("fire")), known),
    ):
        pass

    assert (["a", "b"], []) == (noted.begun, noted.active)


def test_active_injections_are_those_that_are_active() -> None:
    """While a block runs all of its faults are, and none after."""
    noted = Noted()
    with inject_failures(NOTHING, "x", faults("a", "b"), {"note": noted}, clock=lambda: 7.0) as injection:
        assert ("x", 7.0, faults("a", "b")) == (
            injection.scenario_id,
            injection.start_time,
            tuple(injection.active_injections),
        )
        assert ["a", "b"] == noted.active
    assert ([], []) == (injection.active_injections, noted.active)


class Rule:
    """An exchange with one price."""

    def best(self, update_id: int) -> set[tuple[float, float]]:
        return {(1.0, 3.0)}

    def levels(self, update_id: int) -> tuple[Levels, Levels] | None:
        return None


@dataclass
class Simulated:
    """A pipeline in simulated time that is unsound while a fault is active, and a while after."""

    noted: Noted
    now_s: float = float(BEGIN_S)
    wrong_until_s: float = 0.0
    after_s: float = 5.0
    price: float = 2.0
    fails: bool = False
    sound: set[int] = field(default_factory=set)
    answers: list[Answer] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)

    def now_us(self) -> int:
        return round(self.now_s * 1e6)

    def pause(self, seconds: float) -> None:
        if self.fails and self.noted.active:
            raise RuntimeError("monitoring has failed")
        for _ in range(round(seconds * 10)):
            self.now_s = round(self.now_s + 0.1, 1)
            if self.noted.active:
                self.wrong_until_s = self.now_s + self.after_s
            slot = int(self.now_s // 2)
            degraded = self.now_s < self.wrong_until_s
            if all(answer.slot != slot for answer in self.answers):
                self.answers.append(Answer(self.now_us(), "a#1", slot, True, degraded, self.price, 1))
            self.requests.append(Request(self.now_us(), 1_000, "a"))

    def collect_baseline(self) -> tuple[int, int]:
        begin_us = self.now_us()
        self.pause(20)
        return begin_us, self.now_us()

    def is_recovered(self, since_us: int) -> bool:
        sound = [one.slot for one in self.answers if not one.degraded and one.slot * 2 * SECOND >= since_us]
        return len(sound) >= 3

    def history(self) -> History:
        return History.of([*self.answers, *self.requests])


def engineer(simulated: Simulated) -> ChaosEngineer:
    return ChaosEngineer(
        NOTHING,
        Rule(),
        simulated,
        {"note": simulated.noted},
        now_us=simulated.now_us,
        clock=lambda: simulated.now_s,
        pause=simulated.pause,
    )


def scenario(**changes: Any) -> ChaosScenario:
    made = ChaosScenario("x", "two faults", lambda _: [Step(faults("a"), 4.0), Step((), 2.0), Step(faults("b"), 4.0)])
    return replace(made, **changes)


def test_a_scenario_goes_from_baseline_to_recovery() -> None:
    """What was lost is counted for each part, and the recovery is timed from the last fault."""
    simulated = Simulated(Noted())
    result = engineer(simulated).run_chaos_test(scenario(), 3)

    assert (["a", "b"], []) == (simulated.noted.begun, simulated.noted.active)
    assert (0, 10) == (result.baseline_metrics.degraded, result.baseline_metrics.slots)
    assert (0, 0) == (result.whole.missed_in_a_row, result.whole.failed)
    assert result.whole.unsound >= 5
    assert 4 <= (result.recovered_s or 0) <= 8
    assert 0.6 <= result.resilience_score < 1
    assert result.passed
    assert "seed 3" in result.line()
    assert {"scenario", "baseline_metrics", "chaos_metrics", "recovery_metrics", "resilience_score"} <= set(
        result.to_json()
    )


def test_a_scenario_without_recovery_fails() -> None:
    """Not sound in time is a failure, whatever the score."""
    result = engineer(Simulated(Noted(), after_s=100)).run_chaos_test(scenario(sound_within_s=10), 3)

    assert (None, False) == (result.recovered_s, result.passed)
    assert "not sound in time" in result.line()


def test_a_violated_invariant_scores_0_unless_the_scenario_allows_it() -> None:
    """A wrong price that is reported as sound outweighs everything."""
    wrong = Simulated(Noted(), price=77.0)
    result = engineer(wrong).run_chaos_test(scenario(), 3)
    allowed = engineer(Simulated(Noted(), price=77.0)).run_chaos_test(scenario(allows={"predictions_true": "so"}), 3)

    assert (0.0, False, {"predictions_true"}) == (result.resilience_score, result.passed, set(result.violations))
    assert (True, {"predictions_true"}) == (allowed.passed, set(allowed.allowed))


def test_no_fault_is_left_when_monitoring_fails() -> None:
    """Faults are undone even if an observer raises."""
    simulated = Simulated(Noted(), fails=True)
    with pytest.raises(RuntimeError, match="monitoring has failed"):
        engineer(simulated).run_chaos_test(scenario(), 3)

    assert (["a"], []) == (simulated.noted.begun, simulated.noted.active)


@given(st.sampled_from(sorted(SCENARIOS)), st.integers(0, 1_000))
def test_every_fault_of_every_scenario_has_an_injector(name: str, seed: int) -> None:
    """The same seed gives the same steps."""
    plans = [list(SCENARIOS[name].plan(random.Random(seed))) for _ in range(2)]

    assert plans[0] == plans[1]
    for step in plans[0]:
        for spec in step.failures:
            assert find_injector_for_failure(spec, INJECTORS)
    assert all(find_injector_for_failure(spec, INJECTORS) for spec in SOAK)
