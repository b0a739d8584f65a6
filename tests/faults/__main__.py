"""`make faults`: scenarios on a pipeline of this machine, one line each; reports in build/faults/.

Each run has a pipeline of its own. The exit code is 1 if an invariant was violated or predictions were not sound again.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from faults import history as log
from faults.chaos import ChaosEngineer, ChaosTestResult, ObservedMetrics
from faults.observers import Observers
from faults.places import Pipeline, running
from faults.scenarios import SCENARIOS, ChaosScenario
from faults.truth import Truth, shipped_truth
from support.repository import ROOT

SEED_MAX = 1_000_000


def run(scenario: ChaosScenario, seed: int, truth: Truth, out: Path) -> ChaosTestResult:
    """Run a scenario on a pipeline of its own, and keep its history."""
    with tempfile.TemporaryDirectory(prefix="sheetanchor-faults-") as folder:
        pipeline = Pipeline(Path(folder), seed=seed)
        with running(pipeline):
            observers = Observers(pipeline)
            observers.start()
            engineer = ChaosEngineer(pipeline, truth, ObservedMetrics(pipeline, observers))
            result = engineer.run_chaos_test(scenario, seed)
            log.write(out / f"{scenario.id}-{seed}.history.jsonl", observers.records)
            if not result.passed:
                (out / f"{scenario.id}-{seed}.log").write_text(pipeline.tails(400))
            return result


def report(results: Sequence[ChaosTestResult]) -> str:
    """Write the table: the worst of all runs of each scenario."""
    lines = [
        "| scenario | runs | missed in a row, at most | unsound in a row, at most | failed requests within "
        "| wrong sound predictions | sound again after | score, lowest | shown as kept, and lost | violations |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(result.scenario for result in results):
        runs = [result for result in results if result.scenario == name]
        back = [one.recovered_s for one in runs]
        wrong = sum(one.violations.get(what, 0) for one in runs for what in ("predictions_true", "predictions_fresh"))
        bad = sorted({what for one in runs for what in one.violations})
        lost = sum(sum(one.allowed.values()) for one in runs)
        score = min(one.resilience_score for one in runs)
        told = "never" if None in back else f"{max(one for one in back if one is not None):.1f} s"
        lines.append(
            f"| {SCENARIOS[name].text} | {len(runs)} | {max(one.whole.missed_in_a_row for one in runs)} "
            f"| {max(one.whole.unsound for one in runs)} | {max(one.whole.failed_us for one in runs) / 1e6:.1f} s "
            f"| {wrong} | {told} | {score:.2f} | {lost} | {', '.join(bad) or 'none'} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--list", action="store_true", help="list the scenarios")
    parser.add_argument("--only", action="append", choices=list(SCENARIOS), help="scenario to run; repeat for several")
    parser.add_argument("--runs", type=int, default=1, help="runs of each")
    parser.add_argument("--seed", type=int, default=random.randrange(SEED_MAX), help="seed of the first run")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "faults")
    options = parser.parse_args()
    if options.list:
        print("\n".join(f"{scenario.id:12} {scenario.text}" for scenario in SCENARIOS.values()))
        return 0
    # What undoes faults and ends processes runs on SIGTERM as it does on SIGINT.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options.out.mkdir(parents=True, exist_ok=True)
    print(f"seed {options.seed}", flush=True)
    truth = shipped_truth()
    results: list[ChaosTestResult] = []
    names = options.only or [name for name in SCENARIOS if name != "soak-long"]
    for number in range(options.runs):
        for name in names:
            results.append(run(SCENARIOS[name], options.seed + number, truth, options.out))
            print(results[-1].line(), flush=True)
            told = [result.to_json() for result in results]
            (options.out / "report.json").write_text(json.dumps(told, indent=1) + "\n")
            (options.out / "report.md").write_text(report(results))
    return 0 if all(result.passed for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
