"""From `helm install` and `kubectl apply` to predictions: what a newcomer sees on a real cluster."""

from __future__ import annotations

import json
import time

import pytest

from support.cluster_parts import Running, reading, ready

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(420)]

READY_WITHIN_S = 90


def test_a_sample_becomes_ready(applied: tuple[Running, float]) -> None:
    """The README's sample becomes Ready and anchored, and predicts soundly; the test prints how long it took."""
    btc, applied_s = applied

    btc.wait(lambda: btc.holds("Ready"), READY_WITHIN_S, "the sample is Ready")

    took_s = time.monotonic() - applied_s
    print(f"Ready {took_s:.0f} s after kubectl apply")
    btc.until_sound()
    assert "True" == btc.condition("Anchored")["status"]


def test_predictions_flow(btc: Running) -> None:
    """Each slot of twenty seconds has a committed prediction of the model that is in the image, none degraded."""
    with reading(btc.api, btc.namespace, btc.name) as reader:
        time.sleep(20)

    records = [reader.seen[slot] for slot in sorted(reader.seen) if slot >= reader.first]
    assert len(records) >= 9
    assert [] == [record for record in records if record["degraded"] or not record["committed"]]
    assert {"model"} == {record["mode"] for record in records}


def test_kubectl_get_tells_the_truth(btc: Running) -> None:
    """What the columns say is what the workloads say: phase, pods, anchor, epoch, term, model."""
    state = btc.state()
    header, line = btc.kubectl("get", "pp", btc.name, "-o", "wide").strip().splitlines()
    status = btc.status
    pods = [pod for pod in btc.pods() if pod["metadata"]["labels"]["app.kubernetes.io/component"] != "reanchor"]

    for column in ("PHASE", "READY", "ZONE", "ANCHORED", "PREDICTION", "REANCHOR", "EPOCH", "TERM", "MODEL"):
        assert column in header, header
    assert "Running" in line
    assert f"{sum(map(ready, pods))}/{len(pods)}" in line
    assert (state["epoch"], state["term"]) == (status["epoch"], status["term"])
    assert "anchored" == state["state"]
    assert "swapped" == status["lastReanchor"]["result"]
    assert status["observedGeneration"] == btc.resource["metadata"]["generation"]


def test_prediction_age_follows(btc: Running) -> None:
    """The column of the last prediction does not stand still while predictions flow."""
    before = btc.status["lastPredictionAt"]

    btc.wait(lambda: btc.status["lastPredictionAt"] > before, 30, "lastPredictionAt moves on")


def test_explain_reads_like_documentation(btc: Running) -> None:
    """`kubectl explain` says of each top-level field of the spec what it means."""
    told = btc.kubectl("explain", "pp.spec")

    for field in ("symbols", "exchange", "inference", "redis", "reanchor", "suspend"):
        assert field in told
    assert "<no description>" not in btc.kubectl("explain", "pp.spec.reanchor")
    assert "<no description>" not in told


def test_every_pod_is_restricted(btc: Running) -> None:
    """The namespace enforces Pod Security "restricted", no pod was refused, and none has an API token without need."""
    labels = json.loads(btc.kubectl("get", "namespace", btc.namespace, "-o", "json"))["metadata"]["labels"]
    assert "restricted" == labels["pod-security.kubernetes.io/enforce"]
    pods = btc.pods()
    assert {"ingest", "process", "infer", "redis"} <= {
        pod["metadata"]["labels"]["app.kubernetes.io/component"] for pod in pods
    }
    for pod in pods:
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False, pod["metadata"]["name"]
        tokens = [
            v
            for v in spec["volumes"]
            if any("serviceAccountToken" in s for s in v.get("projected", {}).get("sources", []))
        ]
        assert bool(tokens) == (pod["metadata"]["labels"]["app.kubernetes.io/component"] == "process")
        assert spec["serviceAccountName"] != "default"


def test_zones_are_used(btc: Running) -> None:
    """Three lines run in three zones, and neither processors, replicas nor Redis nodes share one."""
    zone_of_node = {
        node["metadata"]["name"]: node["metadata"]["labels"].get("topology.kubernetes.io/zone", "")
        for node in btc.api.ask("/api/v1/nodes")["items"]
    }
    zones = {
        component: sorted(zone_of_node[pod["spec"]["nodeName"]] for pod in btc.pods(component) if ready(pod))
        for component in ("ingest", "process", "infer", "redis")
    }
    assert ["a", "b", "c"] == zones["ingest"] == zones["redis"] == zones["infer"]
    assert 2 == len(set(zones["process"]))
    assert {"a", "b", "c"} == {zone["name"] for zone in btc.status["zones"]}
    assert (
        btc.status["activeZone"]
        == zone_of_node[
            next(pod for pod in btc.pods("process") if pod["metadata"]["name"] == btc.active())["spec"]["nodeName"]
        ]
    )
