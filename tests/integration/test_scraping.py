"""A real Prometheus with the shipped configuration and rules, scraping a real role."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.bed.run import CannotHost
from conftest import wait_until
from inference_parts import Replica, promoted, replicas
from prometheus_parts import Prometheus, write_config
from sheetanchor_operator.children.pods import SCRAPED
from sheetanchor_operator.names import Component, labels_of


def pod_of(replica: Replica) -> dict[str, Any]:
    """Give a replica as the pod that it would be, at the address where it is."""
    ports = [{"name": "http", "containerPort": replica.port}, {"name": "other", "containerPort": 1}]
    metadata = {"name": "btc-infer-0", "namespace": "market"}
    return {
        "metadata": {**metadata, "labels": labels_of("btc", Component.INFER), "annotations": SCRAPED},
        "spec": {"nodeName": "worker", "containers": [{"name": "infer", "ports": ports}]},
        "status": {"podIP": "127.0.0.1", "phase": "Running"},
    }


@pytest.fixture
def watched(tmp_path: Path, redis_url: str) -> Iterator[Prometheus]:
    """A Prometheus that scrapes one inference replica."""
    promoted(tmp_path / "models")
    with replicas(redis_url, tmp_path / "models", tmp_path, "one") as (replica,):
        folder = tmp_path / "prometheus"
        folder.mkdir()
        try:
            running = Prometheus(folder, write_config(folder, [pod_of(replica)]))
        except CannotHost as reason:
            pytest.skip(str(reason))
        yield running
        running.process.terminate()
        running.process.wait(timeout=20)


def test_a_pod_is_scraped_under_the_labels_that_rules_ask_for(watched: Prometheus) -> None:
    """The pod is found by its annotation and its port's name, once, and every rule can be evaluated."""
    wait_until(lambda: watched.query("up == 1") != [], within_s=90, what=f"a scrape, see {watched.log_path}")
    wait_until(
        lambda: {rule["health"] for rule in watched.rules()} == {"ok"}, within_s=90, what="every rule is evaluated"
    )

    (labels,) = watched.query("up")
    known = {name: labels[name] for name in ("namespace", "pipeline", "pod", "service", "node", "container")}

    assert known == {
        "namespace": "market",
        "pipeline": "btc",
        "pod": "btc-infer-0",
        "service": "sheetanchor-infer",
        "node": "worker",
        "container": "infer",
    }
    assert [] != watched.query('sheetanchor_memory_limit_bytes{service="sheetanchor-infer"}')
    assert ["sheetanchor-infer"] == [
        one["service"] for one in watched.query('health_status{dependency="redis",pipeline="btc"}')
    ]
