"""What is counted of re-anchors: each run that ends, and each re-anchor that does."""

from __future__ import annotations

from typing import Any

import pytest

from reanchor_world import World
from sheetanchor_operator.measures import OTHER, TRIGGERS, Measures
from sheetanchor_operator.metrics import REGISTRY

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
        measures = Measures()
        for before, after in world.changes:
            measures.changed(before, after)
        now = self._now()
        return {name: now[name] - count for name, count in self._before.items() if now[name] != count}


@pytest.fixture
def world() -> World:
    """A state in doubt, for which a re-anchor has been asked."""
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
    """Two wishes and one run are one attempt."""
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
    measures, key = Measures(), ("gone", "btc")
    measures.take(key, {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}, [], announced=False)
    for trigger, result in (("manual", "swapped"), ("time_gap", "validated"), ("odd", "swapped")):
        measures.changed({}, ended("gone", trigger, result))
    known = series_of("gone")

    measures.forget(key)

    assert {("sheetanchor_reanchors_total", trigger) for trigger in ("manual", "time_gap", OTHER)} <= known
    assert set() == series_of("gone")
    assert [] == measures.pipelines()


def test_what_people_invent_as_a_trigger_is_one_series() -> None:
    """Whoever may create ReAnchors cannot fill Prometheus with them."""
    measures = Measures()
    for number in range(5):
        measures.changed({}, ended("inventive", f"my_{number}"))
    for trigger in TRIGGERS:
        measures.changed({}, ended("inventive", trigger))

    labels = {"namespace": "inventive", "name": "btc", "trigger": OTHER, "result": "swapped"}
    assert 5.0 == REGISTRY.get_sample_value("sheetanchor_reanchors_total", labels)
    found = {trigger for name, trigger in series_of("inventive") if name == "sheetanchor_reanchors_total"}
    assert {*TRIGGERS, OTHER} == found
    measures.forget(("inventive", "btc"))
    assert set() == series_of("inventive")
