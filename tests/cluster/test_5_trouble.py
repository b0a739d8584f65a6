"""Pipelines that cannot run say so, and what to do, without a hot loop."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import yaml

from support.cluster_parts import GROUP, Running

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

Make = Callable[[str], str]


@contextmanager
def applied(cluster: Any, namespace: str, name: str, **spec: Any) -> Iterator[Running]:
    """Create a pipeline and give a view on it; it goes with the block, so that the next one has the machine."""
    body = {
        "apiVersion": f"{GROUP}/v1alpha1",
        "kind": "PredictionPipeline",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "symbols": ["BTCUSDT"],
            "exchange": {"websocketURL": "ws://exchange:8090", "restURL": "http://exchange:8090"},
            **spec,
        },
    }
    cluster.kubectl("apply", "-f", "-", input=yaml.safe_dump(body))
    try:
        yield Running(cluster, namespace, name)
    finally:
        cluster.kubectl("-n", namespace, "delete", "pp", name, "--wait=false")


def told(trouble: Running) -> str:
    """All that its conditions that are not True say."""
    return " ".join(
        f"{c['type']}={c['status']} {c['reason']}: {c['message']}"
        for c in trouble.status.get("conditions", [])
        if c["status"] != "True"
    )


CASES: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "wrong image": ({"image": "localhost/nosuch:v0"}, "ImageUnavailable", ("localhost/nosuch:v0",)),
    "missing secret": (
        {
            "exchange": {
                "websocketURL": "ws://exchange:8090",
                "restURL": "http://exchange:8090",
                "apiKeySecret": {"name": "nosuch"},
            }
        },
        "SecretMissing",
        ("nosuch", "kubectl"),
    ),
    "unreachable redis": (
        {"redis": {"external": {"url": "redis://nosuch.example:6379"}}},
        "RedisUnreachable",
        ("nosuch.example",),
    ),
}


QUIET_S = 10
QUIET_WITHIN_S = 150
"""A re-anchor that fails is tried again after 1, 2, 4, 8, 16 s, and its runs take some ten; then a pause is longer."""


def assert_no_hot_loop(trouble: Running) -> None:
    """A pipeline with a problem is written only for changes, not at each reconcile; so are its children.

    Pods that start and crash, and runs that fail and are retried, are changes. It is reconciled every three seconds at
    least, so an object that is written at each reconcile is never unchanged for ten. A Deployment that is created only
    now is no change of the others: the condition can be set before the last of them exists.
    """

    def generations() -> dict[str, int]:
        items = json.loads(trouble.kubectl("get", "deployment", "-o", "json"))["items"]
        return {item["metadata"]["name"]: item["metadata"]["generation"] for item in items}

    before = generations()
    seen_s: dict[str, float] = {}

    def rests() -> bool:
        """Say whether it was written once at most in the last ten seconds."""
        seen_s.setdefault(trouble.resource["metadata"]["resourceVersion"], time.monotonic())
        return time.monotonic() - list(seen_s.values())[-2:][0] > QUIET_S

    trouble.wait(rests, QUIET_WITHIN_S, f"{QUIET_S} s in which it is written once at most")

    events = trouble.api.ask(f"/apis/events.k8s.io/v1/namespaces/{trouble.namespace}/events")["items"]
    now = generations()
    assert before == {name: now.get(name) for name in before}
    assert len([event for event in events if event["regarding"]["kind"] == "PredictionPipeline"]) < 20


@pytest.mark.parametrize("case", CASES)
def test_trouble_is_told(cluster: Any, installed: Any, namespace: Make, case: str) -> None:
    """A condition names what is wrong and what to do, and the resource is not written again and again."""
    spec, reason, words = CASES[case]
    with applied(cluster, namespace("trouble"), "lame", **spec) as trouble:
        trouble.wait(lambda: reason in told(trouble), 90, f"a condition with the reason {reason}")

        assert [] == [word for word in words if word not in told(trouble)], told(trouble)
        assert "False" == trouble.condition("Ready")["status"]
        assert_no_hot_loop(trouble)


def test_a_quota_is_told(cluster: Any, installed: Any, namespace: Make) -> None:
    """A namespace that may hold two pods only: the condition says that its quota is used up."""
    place = namespace("quota")
    cluster.kubectl("-n", place, "create", "quota", "small", "--hard=pods=2")
    with applied(cluster, place, "lame") as trouble:
        trouble.wait(lambda: "QuotaExceeded" in told(trouble), 90, "a condition with the reason QuotaExceeded")

        assert "small" in told(trouble)
        assert_no_hot_loop(trouble)


def test_repair_heals(cluster: Any, installed: Any, namespace: Make) -> None:
    """Once the missing Secret exists the pipeline recovers by itself."""
    spec, reason, _ = CASES["missing secret"]
    with applied(cluster, namespace("heals"), "lame", **spec) as trouble:
        trouble.wait(lambda: reason in told(trouble), 60, f"a condition with the reason {reason}")

        trouble.kubectl("create", "secret", "generic", "nosuch", "--from-literal=api-key=k")

        trouble.wait(lambda: reason not in told(trouble), 60, "the trouble is gone from the conditions")
