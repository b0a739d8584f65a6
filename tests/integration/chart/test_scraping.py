"""A real Prometheus with the shipped configuration and rules, scraping a real role."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cluster.bed.run import CannotHost
from conftest import wait_until
from sheetanchor_operator.children.pod_template import SCRAPED
from sheetanchor_operator.names import Component, labels_of
from support.inference_parts import Replica, promoted, replicas
from support.prometheus_parts import Prometheus, write_config


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
        running.process.wait(timeout=60)


def test_a_pod_is_scraped_under_the_labels_that_rules_ask_for(watched: Prometheus) -> None:
    """The pod is found by its annotation and its port's name, once, and every rule can be evaluated."""
    wait_until(lambda: watched.query("up == 1") != [], within_s=90, what=f"a scrape, see {watched.log_path}")
    wait_until(
        lambda: {rule["health"] for rule in watched.rules()} == {"ok"}, within_s=90, what="every rule is evaluated"
    )

    (labels,) = watched.query("up")
    known = {name: labels[name] for name in ("namespace", "pipeline", "pod", "service", "container")}

    assert known == {
        "namespace": "market",
        "pipeline": "btc",
        "pod": "btc-infer-0",
        "service": "sheetanchor-infer",
        "container": "infer",
    }
    assert [] != watched.query('sheetanchor_memory_limit_bytes{service="sheetanchor-infer"}')
    assert ["sheetanchor-infer"] == [
        one["service"] for one in watched.query('health_status{dependency="redis",pipeline="btc"}')
    ]


VICTIM = 'namespace="market",pod="btc-infer-0",pipeline="btc",service="sheetanchor-infer",container="infer"'
CLAIMS = f"""
sheetanchor_operator_leader{{{VICTIM}}} 1
sheetanchor_pipeline_phase{{namespace="market",name="btc",phase="Running"}} 1
sheetanchor_anchored{{{VICTIM},symbol="BTCUSDT"}} 1
health_status{{{VICTIM},dependency="redis"}} 0
"""
FLOOD = "\n".join(f'sheetanchor_anchored{{symbol="S{number}"}} 1' for number in range(25_000)) + "\n"


@contextmanager
def serving(text: str) -> Iterator[int]:
    """Serve a text as metrics, at a port."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            """Do not log requests."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def pod_at(port: int, namespace: str, name: str, component: str, pipeline: str = "") -> dict[str, Any]:
    """Give a pod labelled as one of ours."""
    labels = {"app.kubernetes.io/part-of": "sheetanchor", "app.kubernetes.io/component": component}
    if pipeline:
        labels["sheetanchor.dev/pipeline"] = pipeline
    return {
        "metadata": {"name": name, "namespace": namespace, "labels": labels, "annotations": SCRAPED},
        "spec": {
            "nodeName": "worker",
            "containers": [{"name": "any", "ports": [{"name": "http", "containerPort": port}]}],
        },
        "status": {"podIP": "127.0.0.1", "phase": "Running"},
    }


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Prometheus]:
    """A Prometheus of a cluster in which a tenant runs pods that are labelled like ours, beside the operator."""
    reported = 'sheetanchor_pipeline_phase{namespace="market",name="btc",phase="Failed"} 1\n'
    with serving(CLAIMS) as liar, serving(FLOOD) as flood, serving(reported) as operator:
        pods = [
            pod_at(operator, "sheetanchor-system", "operator", "operator"),
            pod_at(liar, "tenant", "liar", "infer", "btc"),
            pod_at(liar, "tenant", "false-operator", "operator"),
            pod_at(liar, "tenant", "false-operator-of-a-pipeline", "operator", "btc"),
            pod_at(flood, "tenant", "flood", "process", "btc"),
        ]
        try:
            running = Prometheus(tmp_path, write_config(tmp_path, pods))
        except CannotHost as reason:
            pytest.skip(str(reason))
        yield running
        running.process.terminate()
        running.process.wait(timeout=60)


def test_a_tenants_pod_speaks_for_itself_only(shared: Prometheus) -> None:
    """Metrics of a pod in another namespace keep that pod's labels; only the operator reports on other namespaces."""
    ours = ("operator", "liar", "flood")
    wait_until(
        lambda: {one["pod"] for one in shared.query("scrape_samples_scraped")} == set(ours),
        within_s=90,
        what=f"a scrape of each, see {shared.log_path}",
    )
    wait_until(
        lambda: bool(shared.query("health_status") and shared.query("sheetanchor_pipeline_phase")),
        within_s=60,
        what="what they say",
    )

    assert [("tenant", "liar")] == [(one["namespace"], one["pod"]) for one in shared.query("health_status")]
    assert [("tenant", "liar")] == [(one["namespace"], one["pod"]) for one in shared.query("sheetanchor_anchored")]
    assert ["Failed"] == [one["phase"] for one in shared.query('sheetanchor_pipeline_phase{namespace="market"}')]
    assert [] == shared.query("sheetanchor_operator_leader")
    assert ["flood"] == [one["pod"] for one in shared.query("up == 0")]
