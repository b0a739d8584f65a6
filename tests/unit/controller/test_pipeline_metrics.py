"""What is counted of re-anchors: each run that ends, and each re-anchor that does."""

from __future__ import annotations

from typing import Any

import pytest

from sheetanchor.contract import Receipt
from sheetanchor_operator.controller.pipeline_metrics import OTHER, TRIGGERS, PipelineMetrics
from sheetanchor_operator.metrics import REGISTRY
from support.reanchor_world import World

PIPELINE = {"namespace": "default", "name": "btc"}


class Counted:
    """How the counters have moved since this was made."""

    def __init__(self) -> None:
        self._before = self._now()

    def _now(self) -> dict[str, float]:
        names = [("success", "recovery_attempts_total"), ("failure", "recovery_attempts_total")]
        found = {
            result: REGISTRY.get_sample_value(name, {**PIPELINE, "mechanism": "reanchor", "result": result}) or 0.0
            for result, name in names
        }
        for result in ("failed", "swapped", "coalesced"):
            labels = {**PIPELINE, "trigger": "sequence_gap", "result": result}
            found[result] = REGISTRY.get_sample_value("sheetanchor_reanchors_total", labels) or 0.0
            seconds = REGISTRY.get_sample_value("sheetanchor_reanchor_duration_seconds_count", {"result": result})
            found[f"{result} timed"] = seconds or 0.0
        return found

    def moved(self, world: World) -> dict[str, float]:
        """Take in what has happened; gives what has moved."""
        pipeline_metrics = PipelineMetrics()
        for before, after in world.changes:
            pipeline_metrics.changed(before, after)
        now = self._now()
        return {name: now[name] - count for name, count in self._before.items() if now[name] != count}


@pytest.fixture
def world() -> World:
    """A suspect state, for which a re-anchor is requested."""
    world = World()
    world.suspect()
    world.add("one")
    return world


def next_run(world: World) -> None:
    """Go on until a run is at work."""
    while not world.at_work():
        world.now_us = max(world.now_us, world.settle().wake_at_us or 0)


def test_each_failed_run_counts(world: World) -> None:
    """Three runs that fail and one that swaps are three failures, one success, and one re-anchor that has ended."""
    counted = Counted()
    for attempt in (1, 2, 3):
        next_run(world)
        world.ends(f"one-{attempt}", result="failed")
        world.settle()
    next_run(world)
    world.ends("one-4")
    world.settle()

    assert {"failure": 3, "success": 1, "swapped": 1, "swapped timed": 1} == counted.moved(world)


def test_one_given_up_counts_its_last_run_once(world: World) -> None:
    """The run after which no other is tried is a failure like the others, and ends the re-anchor."""
    counted = Counted()
    while world.of("one").get("phase") != "Failed":
        next_run(world)
        (job,) = world.at_work()
        world.ends(job, result="failed")
        world.settle()

    tries = world.of("one")["attempts"]
    assert {"failure": tries, "failed": 1, "failed timed": 1} == counted.moved(world)


def test_one_that_anothers_run_answers_counts_no_run(world: World) -> None:
    """Two requests and one run are one attempt."""
    counted = Counted()
    world.add("two")
    world.settle()
    world.ends("one-1")
    world.settle()

    assert "Succeeded" == world.of("two")["phase"]
    assert {"success": 1, "swapped": 1, "swapped timed": 1, "coalesced": 1} == counted.moved(world)


def series_of(namespace: str) -> set[tuple[str, str]]:
    """Give name and trigger of all series of a namespace."""
    return {
        (sample.name, sample.labels.get("trigger", ""))
        for metric in REGISTRY.collect()
        for sample in metric.samples
        if sample.labels.get("namespace") == namespace
    }


def ended(namespace: str, trigger: str, result: str = "swapped") -> dict[str, Any]:
    """Give a ReAnchor that has ended."""
    return {
        "metadata": {"name": "one", "namespace": namespace},
        "spec": {"pipeline": "btc", "trigger": trigger},
        "status": {"phase": "Succeeded", "result": result, "finishedAt": "2026-01-01T00:00:00Z"},
    }


def test_a_pipeline_that_is_gone_leaves_no_series() -> None:
    """Namespaces come and go; an operator that runs for months must not keep a series of each."""
    pipeline_metrics, key = PipelineMetrics(), ("gone", "btc")
    pipeline_metrics.take(
        key, {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}, [], announced=False
    )
    for trigger, result in (("manual", "swapped"), ("time_gap", "validated"), ("odd", "swapped")):
        pipeline_metrics.changed({}, ended("gone", trigger, result))
    known = series_of("gone")

    pipeline_metrics.forget(key)

    assert {("sheetanchor_reanchors_total", trigger) for trigger in ("manual", "time_gap", OTHER)} <= known
    assert set() == series_of("gone")
    assert [] == pipeline_metrics.pipelines()


def test_what_people_invent_as_a_trigger_is_one_series() -> None:
    """A user who may create ReAnchors cannot fill Prometheus with triggers."""
    pipeline_metrics = PipelineMetrics()
    for number in range(5):
        pipeline_metrics.changed({}, ended("inventive", f"my_{number}"))
    for trigger in TRIGGERS:
        pipeline_metrics.changed({}, ended("inventive", trigger))

    labels = {"namespace": "inventive", "name": "btc", "trigger": OTHER, "result": "swapped"}
    assert 5.0 == REGISTRY.get_sample_value("sheetanchor_reanchors_total", labels)
    found = {trigger for name, trigger in series_of("inventive") if name == "sheetanchor_reanchors_total"}
    assert {*TRIGGERS, OTHER} == found
    pipeline_metrics.forget(("inventive", "btc"))
    assert set() == series_of("inventive")


def receipt(**fields: Any) -> Receipt:
    """Give the receipt of a run."""
    plain = {
        "id": "r",
        "symbol": "BTCUSDT",
        "reason": "",
        "trigger": "manual",
        "result": "failed",
        "started_at_us": 1,
        "finished_at_us": 2,
        "epoch_before": 1,
        "epoch_after": 1,
        "snapshot_id": 1,
        "update_id": 1,
        "exit_code": 3,
        "message": "",
    }
    return Receipt(**{**plain, **fields})


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, {"namespace": "receipts", "name": "btc", **labels}) or 0.0


def test_what_a_run_says_is_counted() -> None:
    """Requests, retries, time-outs and the alert: a run's own process ends before it can be scraped."""
    pipeline_metrics, key = PipelineMetrics(), ("receipts", "btc")
    pipeline_metrics.take(key, {"phase": "Running"}, [], announced=False)
    assert 0.0 == REGISTRY.get_sample_value(
        "sheetanchor_alerts_total", {"namespace": "receipts", "name": "btc", "code": "REANCHOR_FAILED"}
    )
    calls = (("/api/v3/depth", "200", 0.2), ("/api/v3/depth", "timeout", 10.0), ("/api/v3/trades", "429", 0.1))

    pipeline_metrics.count(key, receipt(calls=calls, retries=2, alert="REANCHOR_FAILED"))
    pipeline_metrics.count(key, receipt(calls=calls[:1], result="swapped"))

    assert 2.0 == value("ingestor_rest_api_calls_total", endpoint="/api/v3/depth", status="200")
    assert 1.0 == value("ingestor_rest_api_calls_total", endpoint="/api/v3/trades", status="429")
    assert 1.0 == value("operation_timeouts_total", operation="rest")
    assert 2.0 == value("retry_attempts_total", operation="rest")
    assert 1.0 == value("sheetanchor_alerts_total", code="REANCHOR_FAILED")
    assert 1.0 == value("ingestor_rest_reanchors_total", result="swapped", reason="manual")
    pipeline_metrics.forget(key)
    assert set() == series_of("receipts")


def test_what_a_foreign_run_invents_fills_nothing() -> None:
    """A Job may run any image: its receipt adds a bounded number of series, and its numbers do no harm."""
    pipeline_metrics, key = PipelineMetrics(), ("receipts", "btc")
    for number in range(50):
        calls = ((f"/odd/{number}", f"x{number}", float("inf")), ("/api/v3/depth", "999999", -1.0))
        pipeline_metrics.count(key, receipt(calls=calls, retries=-5, trigger=f"t_{number}", alert=f"A{number}"))

    found = {name for name, _ in series_of("receipts")}
    assert 50.0 == value("ingestor_rest_api_calls_total", endpoint=OTHER, status=OTHER)
    assert 0.0 == value("retry_attempts_total", operation="rest")
    assert len(series_of("receipts")) == len(found)
    pipeline_metrics.forget(key)


def test_each_receipt_is_counted_once(world: World) -> None:
    """It belongs to the patch that writes the end of its run down, and to no other reconcile."""
    next_run(world)
    world.ends("one-1", result="failed")
    first, second = world.step(), world.step()
    next_run(world)
    world.ends("one-2")
    third, fourth = world.step(), world.step()

    assert [["one"], [], ["one"], []] == [list(made.receipts) for made in (first, second, third, fourth)]
    assert {patch.name for patch in first.patch} >= {"one"}


def test_a_move_that_ends_is_counted_once_with_its_steps() -> None:
    """From what the status said before: a leader that has taken over in between counts it too."""
    key = ("moves", "btc")
    fence = {"name": "Fence", "startedAt": "2026-01-01T00:00:00Z"}
    going = {"failover": {"kind": "Evacuation", "phase": "Running", "steps": [fence]}}
    ended = {**fence, "finishedAt": "2026-01-01T00:00:02Z"}
    given_up = {"failover": {"kind": "Evacuation", "phase": "Aborted", "steps": [ended]}}

    def counts() -> tuple[float, float]:
        labels = {"namespace": "moves", "name": "btc", "kind": "Evacuation", "result": "Aborted"}
        steps = REGISTRY.get_sample_value("sheetanchor_failover_duration_seconds_sum", {"step": "Fence"})
        return REGISTRY.get_sample_value("sheetanchor_failovers_total", labels) or 0.0, steps or 0.0

    measures = PipelineMetrics()
    measures.take(key, going, [], announced=False)
    before = counts()
    for was, now in ((going, going), (going, given_up), (given_up, given_up)):
        measures.moved(key, was, now)
    assert (0.0, before[1]) == before
    assert (1.0, before[1] + 2.0) == counts()
    measures.forget(key)
