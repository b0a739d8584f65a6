"""Runs and the loss of a zone: what was there is replaced, what begins is kept off."""

from __future__ import annotations

import pytest

from sheetanchor_operator.names import ZoneHealth
from support.reanchor_world import World, args_of


def _lost_in(zone: str, health: ZoneHealth) -> World:
    """A run that holds the lock on the node of a zone that counts as something."""
    world = World()
    world.suspect()
    world.add("one")
    world.settle()
    world.bound("one-1", zone)
    world.says(lock_holder="reanchor_BTCUSDT_1_ab:uid-one-1", lock_held=True)
    world.settle()
    world.passes(1)
    world.zones = {**dict.fromkeys("abc", ZoneHealth.HEALTHY), zone: health}
    world.settle()
    return world


def _kept_off(world: World, job: str) -> list[str]:
    affinity = world.jobs[job]["spec"]["template"]["spec"].get("affinity", {})
    if not affinity:
        return []
    [term] = affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    [expression] = term["matchExpressions"]
    assert ("topology.kubernetes.io/zone", "NotIn") == (expression["key"], expression["operator"])
    return list(expression["values"])


def test_run_whose_zone_has_failed_is_replaced_at_once() -> None:
    """Its kubelet will not report its end, and its lock lasts minutes: the next run takes the lock, elsewhere."""
    world = _lost_in("a", ZoneHealth.HEALTHY)
    world.zones["a"] = ZoneHealth.FAILED

    made = world.step()

    assert ["one-1", "one-2"] == [job for _, job in world.started]
    assert "--unlock-for=uid-one-1" in args_of(world, "one-2")
    assert ["a"] == _kept_off(world, "one-2")
    reported = "run 1 failed: zone a has failed, and with it node node-a, on which the run was"
    assert any(event.message.startswith(reported) for event in made.events)


def test_late_end_of_a_run_that_was_replaced_changes_nothing() -> None:
    """The zone returns and the kubelet reports: the run that replaced it is the one that counts."""
    world = _lost_in("a", ZoneHealth.FAILED)
    world.bound("one-2", "b")
    world.settle()

    world.dies("one-1", 7)
    world.zones = dict.fromkeys("abc", ZoneHealth.HEALTHY)
    world.settle()
    assert ("Running", 2) == (world.of("one")["phase"], world.of("one")["attempts"])
    world.says(lock_holder="", lock_held=False)
    world.ends("one-2")
    world.settle()

    assert ("Succeeded", 2) == (world.of("one")["phase"], world.of("one")["attempts"])


@pytest.mark.parametrize("health", [ZoneHealth.SILENT, ZoneHealth.UNKNOWN, ZoneHealth.HEALTHY])
def test_run_in_a_zone_that_has_not_failed_goes_on(health: ZoneHealth) -> None:
    """Silence may be short, and a run takes seconds."""
    world = _lost_in("a", health)

    assert ["one-1"] == world.at_work()
    assert "Running" == world.of("one")["phase"]


def test_end_that_was_reported_counts_although_the_zone_has_failed_since() -> None:
    """What the kubelet said of a finished run is true whatever became of the node."""
    world = World()
    world.suspect()
    world.add("one")
    world.settle()
    world.bound("one-1", "a")
    world.ends("one-1")
    world.zones = {"a": ZoneHealth.FAILED}
    world.settle()

    assert ("Succeeded", 1) == (world.of("one")["phase"], world.of("one")["attempts"])


@pytest.mark.parametrize("health", list(ZoneHealth))
def test_runs_are_kept_off_zones_that_do_not_answer(health: ZoneHealth) -> None:
    """The scheduler learns of a lost node only after most of a minute, and would bind the pod to it."""
    world = World()
    world.zones = {"a": ZoneHealth.HEALTHY, "b": ZoneHealth.HEALTHY, "c": health}
    world.suspect()
    world.add("one")
    world.settle()

    lost = health in {ZoneHealth.SILENT, ZoneHealth.FAILED}
    assert (["c"] if lost else []) == _kept_off(world, "one-1")
