"""The most telling scenarios on a whole pipeline of this machine: every invariant holds, and predictions come back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from faults.chaos import ChaosEngineer, ObservedMetrics
from faults.injectors import FaultSpec
from faults.observers import Observers
from faults.places import Pipeline, running
from faults.scenarios import SCENARIOS, Step
from faults.truth import shipped_truth

pytestmark = [pytest.mark.slow, pytest.mark.quiet_machine, pytest.mark.timeout(300)]

SOUND_WITHIN_S = 90.0


def steps(_: Random) -> Sequence[Step]:
    """A writer that is killed, then the place with Redis' master cut off, and healed."""
    return [
        Step((FaultSpec("kill", "writer"),), 3.0),
        Step((), 6.0),
        Step((FaultSpec("partition", "a"),), 15.0),
        Step((), 2.0),
        Step((FaultSpec("kill", "master"),), 8.0),
    ]


def test_what_must_never_be_seen_is_not_seen(tmp_path: Path) -> None:
    """Writer killed, place of writer and master cut off and healed, new master killed: no invariant is violated."""
    scenario = replace(SCENARIOS["master"], plan=steps, sound_within_s=SOUND_WITHIN_S)
    pipeline = Pipeline(tmp_path, seed=1)
    with running(pipeline):
        observers = Observers(pipeline)
        observers.start()
        metrics = ObservedMetrics(pipeline, observers, baseline_s=2.0)
        result = ChaosEngineer(pipeline, shipped_truth(), metrics).run_chaos_test(scenario, 1)
        print(result.line())

        assert {} == result.violations, f"{result.texts}\n{pipeline.tails()}"
        assert result.passed, pipeline.tails()
    assert result.whole.slots > 10


BLIND = """
from sheetanchor.infer import prediction

prediction.doubts_of = lambda state: []
"""


def test_readers_that_do_not_doubt_are_found_out(tmp_path: Path) -> None:
    """Negative control: replicas that check neither heartbeat nor age show a stopped state as sound: it is found."""
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(BLIND)
    hooks = {"infer": {"PYTHONPATH": str(tmp_path / "hook")}}
    stopped = [Step((FaultSpec("freeze", "process"),), 14.0)]
    scenario = replace(SCENARIOS["freeze"], plan=lambda _: stopped, sound_within_s=SOUND_WITHIN_S)
    pipeline = Pipeline(tmp_path, seed=1, hooks=hooks)
    with running(pipeline):
        observers = Observers(pipeline)
        observers.start()
        metrics = ObservedMetrics(pipeline, observers, baseline_s=2.0)
        result = ChaosEngineer(pipeline, shipped_truth(), metrics).run_chaos_test(scenario, 1)

    assert "predictions_fresh" in result.violations
    assert 0.0 == result.resilience_score
