"""In which order changed workloads are written."""

from __future__ import annotations

from typing import Any

from sheetanchor_operator.apply.rollout_order import can_delete, deferred_changes, is_rolling, place_of

Object = dict[str, Any]

NAMES = (
    ("StatefulSet", "btc-redis", "redis", 3),
    ("Deployment", "btc-ingest-a", "ingest", 1),
    ("Deployment", "btc-ingest-b", "ingest", 1),
    ("Deployment", "btc-process", "process", 2),
    ("Deployment", "btc-infer", "infer", 2),
)


def manifest(kind: str, name: str, component: str, replicas: int, image: str = "new") -> Object:
    labels = {"app.kubernetes.io/component": component}
    spec = {"replicas": replicas, "template": {"spec": {"containers": [{"name": component, "image": image}]}}}
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name, "labels": labels}, "spec": spec}


def running(kind: str, name: str, component: str, replicas: int, image: str = "old", *, ready: int = -1) -> Object:
    body = manifest(kind, name, component, replicas, image)
    body["metadata"]["generation"] = 2
    count = replicas if ready < 0 else ready
    counts = {"readyReplicas": count, "availableReplicas": count, "updatedReplicas": count}
    body["status"] = {"observedGeneration": 2, "updateRevision": "x", "currentRevision": "x", **counts}
    return body


DESIRED = [manifest(*one) for one in reversed(NAMES)]


def cluster(*changed: Object) -> dict[tuple[str, str], Object]:
    found = {place_of(body): body for body in (running(*one) for one in NAMES)}
    return found | {place_of(body): body for body in changed}


def names(deferred: frozenset[tuple[str, str]]) -> list[str]:
    return sorted(name for _, name in deferred)


def test_all_change_one_after_another() -> None:
    """Of a change of all workloads Redis is written first, and the rest in their order as each is done."""
    live, order = cluster(), []
    for _ in NAMES:
        deferred = deferred_changes(DESIRED, live)
        due = [one for one in DESIRED if place_of(one) not in deferred and live[place_of(one)]["spec"] != one["spec"]]
        assert 1 == len(due)
        order.append(due[0]["metadata"]["name"])
        started = running(*next(one for one in NAMES if one[1] == order[-1]), "new", ready=0)
        during = deferred_changes(DESIRED, live | {place_of(started): started})
        assert place_of(started) not in during
        assert len(NAMES) - len(order) == len(during)
        live |= {place_of(one): one for one in [running(*next(n for n in NAMES if n[1] == order[-1]), "new")]}

    assert [name for _, name, _, _ in NAMES] == order


def test_what_does_not_serve_does_not_wait() -> None:
    """A broken workload gets its remedy at once, also while Redis is being renewed."""
    broken = running("Deployment", "btc-infer", "infer", 2, ready=0)

    deferred = deferred_changes(DESIRED, cluster(broken))

    assert ["btc-ingest-a", "btc-ingest-b", "btc-process"] == names(deferred)


def test_what_is_new_does_not_wait() -> None:
    """A workload that does not exist yet is created at once."""
    live = cluster()
    del live["Deployment", "btc-ingest-b"]

    assert "btc-ingest-b" not in names(deferred_changes(DESIRED, live))


def test_what_is_to_stop_does_not_wait() -> None:
    """Scaling to zero is not part of the order."""
    stopped = [manifest(kind, name, component, 0) for kind, name, component, _ in NAMES]

    assert [] == names(deferred_changes(stopped, cluster()))


def test_without_changes_nothing_waits() -> None:
    """Where everything is as it should be, or only one differs, nothing is held back."""
    live = {place_of(body): body for body in (running(*one, "new") for one in NAMES)}
    assert [] == names(deferred_changes(DESIRED, live))

    live |= {place_of(body): body for body in [running(*NAMES[4])]}

    assert [] == names(deferred_changes(DESIRED, live))


def test_a_roll_out_ends_with_its_last_pod() -> None:
    """A workload is being renewed until all its pods are of the new kind and available, and its status is of now."""
    done = running(*NAMES[3])
    stale = running(*NAMES[3])
    stale["metadata"]["generation"] = 3
    half = running(*NAMES[3], ready=1)
    redis = running(*NAMES[0])
    redis["status"]["updateRevision"] = "y"

    assert [False, True, True, True] == [is_rolling(one) for one in (done, stale, half, redis)]


def test_a_line_goes_when_those_in_its_place_serve() -> None:
    """A line that is wanted no longer serves until every other line does."""
    old = running("Deployment", "btc-ingest-z", "ingest", 1)
    fresh = running("Deployment", "btc-ingest-b", "ingest", 1, ready=0)

    assert not can_delete(old, DESIRED, cluster(fresh))
    assert can_delete(old, DESIRED, cluster())


def test_what_does_not_serve_may_go() -> None:
    """What has no ready pod, or is no workload, is deleted at once."""
    idle = running("Deployment", "btc-ingest-z", "ingest", 1, ready=0)
    policy = {"kind": "NetworkPolicy", "metadata": {"name": "btc-old"}}

    assert can_delete(idle, DESIRED, {})
    assert can_delete(policy, DESIRED, {})
