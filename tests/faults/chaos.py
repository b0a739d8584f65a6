"""A chaos test: baseline, injection, observation, recovery, and what it says about the pipeline."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Protocol

from faults.checker import History, Losses, Violation, by_invariant, check, counted, losses
from faults.injectors import INJECTORS, FailureInjector, inject_failures
from faults.observers import Observers, now_us
from faults.places import Pipeline
from faults.scenarios import SCENARIOS, ChaosScenario
from faults.truth import Truth

BASELINE_S: Final = 8.0
SOUND_SLOTS: Final = 3
"""So many in a row are a recovery."""

START_WITHIN_S: Final = 90.0
POLL_S: Final = 0.1

WEIGHTS: Final = {"answered": 0.4, "sound": 0.4, "asked": 0.2}


def calculate_resilience_score(baseline: Losses, chaos: Losses, recovery: Losses) -> float:
    """Compute how well a pipeline has held, from 0 to 1.

    Over the slots from the first fault to the recovery: 0.4 times the share of slots that were answered, 0.4 times that
    of slots with a sound answer, and 0.2 times that of questions with an answer, each relative to the baseline's share.
    """
    shares = [_shares(chaos, recovery), _shares(baseline)]
    kept = {name: min(1.0, shares[0][name] / shares[1][name]) if shares[1][name] else 0.0 for name in WEIGHTS}
    return round(sum(weight * kept[name] for name, weight in WEIGHTS.items()), 4)


def _shares(*parts: Losses) -> dict[str, float]:
    slots, asked = sum(part.slots for part in parts), sum(part.asked for part in parts)
    missed, degraded = sum(part.missed for part in parts), sum(part.degraded for part in parts)
    failed = sum(part.failed for part in parts)
    return {
        "answered": (slots - missed) / slots if slots else 1.0,
        "sound": (slots - missed - degraded) / slots if slots else 1.0,
        "asked": (asked - failed) / asked if asked else 1.0,
    }


@dataclass(frozen=True, slots=True)
class ChaosTestResult:
    """What came of a scenario.

    Attributes:
        scenario: Its name.
        seed: Of everything that was chosen by chance.
        baseline_metrics: What readers lost before.
        chaos_metrics: While faults were active.
        recovery_metrics: From the last fault to the recovery.
        whole: From the first fault to the recovery: what no border between the two cuts in halves.
        resilience_score: See `calculate_resilience_score`; 0 if an invariant was violated.
        recovered_s: From the last fault to the first of three sound slots; None if that was not seen in time.
        violations: Violated invariants and how often, but for those that the scenario allows.
        allowed: Those that it allows.
        texts: First violations of each.
    """

    scenario: str
    seed: int
    baseline_metrics: Losses
    chaos_metrics: Losses
    recovery_metrics: Losses
    whole: Losses
    resilience_score: float
    recovered_s: float | None
    violations: dict[str, int] = field(default_factory=dict)
    allowed: dict[str, int] = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether nothing was seen that must not be, and predictions were sound again in time."""
        return not self.violations and self.recovered_s is not None

    def line(self) -> str:
        """One line for the screen."""
        lost = self.whole
        back = "never" if self.recovered_s is None else f"{self.recovered_s:.1f} s"
        verdict = "ok" if self.passed else f"FAILED {self.violations or 'not sound in time'}"
        return (
            f"{self.scenario:12} seed {self.seed}: of {lost.slots} slots in a row {lost.missed_in_a_row} missed, "
            f"{lost.unsound} unsound, {lost.failed} of {lost.asked} requests failed within "
            f"{lost.failed_us / 1e6:.1f} s, sound again after {back}, score {self.resilience_score:.2f}: {verdict}"
        )

    def to_json(self) -> dict[str, Any]:
        """Render, without each single latency."""
        told = asdict(self)
        for part in ("baseline_metrics", "chaos_metrics", "recovery_metrics", "whole"):
            told[part].pop("latencies_ms")
            told[part]["p99_ms"] = getattr(self, part).p99_ms
        return {**told, "passed": self.passed}


class MetricsCollector(Protocol):
    """What a chaos test asks about the pipeline."""

    def collect_baseline(self) -> tuple[int, int]:
        """Observe the pipeline without faults; gives begin and end in µs."""

    def is_recovered(self, since_us: int) -> bool:
        """Say whether predictions are sound again since a moment."""

    def history(self) -> History:
        """Give everything that was seen, for the last time."""


@dataclass
class ObservedMetrics:
    """Metrics as readers outside have them."""

    pipeline: Pipeline
    observers: Observers
    baseline_s: float = BASELINE_S

    def collect_baseline(self) -> tuple[int, int]:
        """Wait until predictions are sound, and observe them for a while."""
        self.pipeline.wait(lambda: self.observers.is_sound(SOUND_SLOTS), START_WITHIN_S, "sound predictions at first")
        begin_us = now_us()
        time.sleep(self.baseline_s)
        return begin_us, now_us()

    def is_recovered(self, since_us: int) -> bool:
        """Say whether the newest slots are sound, and of after a moment."""
        return self.observers.is_sound(SOUND_SLOTS, since_us)

    def history(self) -> History:
        """Observe until all of Redis agrees again on the master, then stop."""
        members = self.pipeline.members
        self.pipeline.wait(lambda: len(members.masters()) == 1, START_WITHIN_S, "one master")
        self.observers.stop()
        return History.of(self.observers.records)


@dataclass
class ChaosEngineer:
    """Runs scenarios on a pipeline that runs.

    Attributes:
        pipeline: The pipeline.
        truth: What the exchange's book was.
        metrics_collector: The observer of the pipeline.
        failure_injectors: By kind of fault.
        test_scenarios: By name.
        now_us: Wall-clock time.
        clock: Monotonic seconds.
        pause: Waits.
    """

    pipeline: Pipeline
    truth: Truth
    metrics_collector: MetricsCollector
    failure_injectors: Mapping[str, FailureInjector] = field(default_factory=lambda: INJECTORS)
    test_scenarios: Mapping[str, ChaosScenario] = field(default_factory=lambda: SCENARIOS)
    now_us: Callable[[], int] = now_us
    clock: Callable[[], float] = time.monotonic
    pause: Callable[[float], None] = time.sleep

    def run_chaos_test(self, scenario: ChaosScenario, seed: int) -> ChaosTestResult:
        """Run a scenario; whatever happens, no fault is left.

        Raises:
            UnknownFaultError: If no injector knows one of its faults.
        """
        baseline = self.metrics_collector.collect_baseline()
        begun_us = self.now_us()
        self.monitor_during_chaos(scenario, seed)
        ended_us = self.now_us()
        recovered_us = self.monitor_recovery(scenario, ended_us)
        end_us = recovered_us or self.now_us()
        history = self.metrics_collector.history()
        return judge(scenario, seed, history, self.truth, baseline, (begun_us, ended_us, end_us), recovered_us)

    def monitor_during_chaos(self, scenario: ChaosScenario, seed: int) -> None:
        """Go through the steps while the observers run."""
        for step in scenario.plan(random.Random(seed)):
            with inject_failures(self.pipeline, scenario.id, step.failures, dict(self.failure_injectors), self.clock):
                self.pause(step.for_s)

    def monitor_recovery(self, scenario: ChaosScenario, since_us: int) -> int | None:
        """Wait until predictions are sound again; gives when that was seen, None if not in time."""
        deadline_s = self.clock() + scenario.sound_within_s
        while self.clock() < deadline_s:
            if self.metrics_collector.is_recovered(since_us):
                return self.now_us()
            self.pause(POLL_S)
        return None


def judge(
    scenario: ChaosScenario,
    seed: int,
    history: History,
    truth: Truth,
    baseline: tuple[int, int],
    moments: tuple[int, int, int],
    recovered_us: int | None,
) -> ChaosTestResult:
    """Say what a history means.

    Args:
        scenario: What was done.
        seed: With which chance.
        history: What was seen.
        truth: What the exchange's book was.
        baseline: When it began and ended.
        moments: When the first fault began, when the last one ended, and when observation did.
        recovered_us: When predictions were sound again; None if that was not seen.
    """
    begun_us, ended_us, end_us = moments
    parts = [
        losses(history, *span) for span in (baseline, (begun_us, ended_us), (ended_us, end_us), (begun_us, end_us))
    ]
    found: list[Violation] = check(history, truth)
    counts = counted(found)
    bad = {name: count for name, count in counts.items() if name not in scenario.allows}
    slots_us = SOUND_SLOTS * 2_000_000
    return ChaosTestResult(
        scenario=scenario.id,
        seed=seed,
        baseline_metrics=parts[0],
        chaos_metrics=parts[1],
        recovery_metrics=parts[2],
        whole=parts[3],
        resilience_score=0.0 if bad else calculate_resilience_score(*parts[:3]),
        recovered_s=None if recovered_us is None else max(0.0, (recovered_us - slots_us - ended_us) / 1e6),
        violations=bad,
        allowed={name: count for name, count in counts.items() if name in scenario.allows},
        texts=by_invariant(found),
    )
