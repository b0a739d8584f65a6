"""A real Prometheus beside the cluster, with the configuration and the rules that ship."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.cluster_bed import Installed
from support.cluster_parts import Running
from support.prometheus_parts import Prometheus, write_config

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

PAGE = Path(__file__).parents[2] / "docs" / "monitoring.md"

TARGETS = {
    "sheetanchor-operator": 2,
    "sheetanchor-ingest": 3,
    "sheetanchor-process": 2,
    "sheetanchor-infer": 3,
    "sheetanchor-redis": 6,
}
"""Pods of each service; a Redis pod has a server and a Sentinel."""

TOLD = (
    "sheetanchor_operator_leader == 1",
    'sheetanchor_pipeline_phase{phase="Running"} == 1',
    'sheetanchor_pipeline_condition{condition="Anchored"} == 1',
    'sheetanchor_pipeline_ready_replicas{component="infer"} == 3',
    'sheetanchor_reanchors_total{result="swapped"} >= 1',
    "reanchor_success_rate",
    "ingestor_sbe_connection_status == 1",
    "ingestor_sbe_messages_total > 0",
)


@pytest.fixture(scope="module")
def prometheus(installed: Installed, btc: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus whose targets are the cluster's pods."""
    btc.until_sound()
    folder: Path = tmp_path_factory.mktemp("prometheus")
    pods: list[dict[str, Any]] = []
    for namespace in (btc.namespace, installed.namespace):
        pods += btc.api.ask(f"/api/v1/namespaces/{namespace}/pods")["items"]
    running = Prometheus(folder, write_config(folder, pods))
    yield running
    running.process.terminate()
    running.process.wait(timeout=20)


def test_every_pod_is_scraped(prometheus: Prometheus, btc: Running) -> None:
    """Operators, workloads and Redis nodes are found by annotations alone, and all of them answer."""

    def up() -> dict[str, int]:
        found = [one["service"] for one in prometheus.query("up == 1")]
        return {service: found.count(service) for service in set(found)}

    btc.wait(lambda: up() == TARGETS, 60, f"targets are up: {up()}")

    assert [] == prometheus.query("up == 0")


def test_what_is_scraped_is_what_the_page_lists(prometheus: Prometheus, btc: Running) -> None:
    """Each metric of the page comes from a pod, with the type that stands there, and no other of ours does."""
    listed = dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))

    def scraped() -> dict[str, str]:
        known = prometheus.ask("metadata") or {}
        of_libraries = ("python_", "process_", "scrape_", "up")
        names = {name for name in known if not name.endswith("_created") and not name.startswith(of_libraries)}
        return {name: known[name][0]["type"] for name in names}

    btc.wait(lambda: listed.keys() <= scraped().keys(), 60, f"{listed.keys() - scraped().keys()} are scraped")

    assert listed == scraped()


LOCAL_ONLY = "local"
"""Who shows a metric that there is none of on a cluster."""

QUIET = {
    "http_request_errors_total",
    "ingestor_foreign_frames_total",
    "ingestor_frames_shed_total",
    "ingestor_sbe_decode_errors_total",
    "ingestor_sbe_sequence_gaps_total",
    "operation_timeouts_total",
    "reconnection_attempts_total",
    "recovery_attempts_total",
    "redis_library_repairs_total",
    "retry_attempts_total",
    "sheetanchor_alerts_total",
    "sheetanchor_clock_jumps_total",
    "sheetanchor_degraded_predictions_total",
    "sheetanchor_failover_duration_seconds_count",
    "sheetanchor_failovers_total",
    "sheetanchor_gaps_total",
    "sheetanchor_model_failures_total",
    "sheetanchor_operator_api_errors_total",
    "sheetanchor_pipeline_phase_seconds_count",  # an operator that has just taken over has seen no change yet
    "sheetanchor_operator_queue_retries_total",
    "sheetanchor_operator_events_left_out_total",
    "sheetanchor_processor_decode_errors_total",
    "sheetanchor_readers_withdrawn_total",
    "sheetanchor_reanchor_requests_total",
    "sheetanchor_restatements_total",
    "sheetanchor_task_faults_total",
}
"""Counters of what need not have happened in a healthy pipeline; every other one has moved."""


LATER = {
    "ingestor_sbe_stream_lacking",
    "sheetanchor_directional_accuracy",
    "sheetanchor_model_directional_accuracy",
    "sheetanchor_operator_kept_off",
}
"""Gauges of shares, none while nothing is decided, and of what is wrong somewhere, none while all is well."""


def rows_of_the_page() -> set[tuple[str, str]]:
    """Give name and type of each metric that a cluster's pods show by themselves."""
    text = PAGE.read_text(encoding="utf-8")
    workloads = text.partition("\n### Workloads\n")[2].partition("\n### ")[0]
    operator = text.partition("\n### Operator\n")[2].partition("\n## ")[0]
    found = re.findall(r"^\| `(\w+)` \| (\w+) \| [^|]* \| ([^|]*) \|", workloads, re.MULTILINE)
    rows = {(name, kind) for name, kind, who in found if who.strip() != LOCAL_ONLY}
    return rows | set(re.findall(r"^\| `(\w+)` \| (\w+) \|", operator, re.MULTILINE))


def test_every_counter_counts(prometheus: Prometheus, btc: Running) -> None:
    """A metric that nothing moves has a name and no use: what a healthy pipeline does shows in a value of each."""
    counting = {
        name + ("_count" if kind == "histogram" else "") for name, kind in rows_of_the_page() if kind != "gauge"
    }

    def still() -> set[str]:
        moved = {
            one["__name__"] for one in prometheus.query('group by (__name__) ({__name__=~".+_(total|count)"} > 0)')
        }
        return counting - moved - QUIET

    btc.wait(lambda: not still(), 60, f"they have counted something: {still()}")


def test_every_gauge_has_a_value(prometheus: Prometheus, btc: Running) -> None:
    """A name in the exposition's help lines is no series."""
    gauges = {name for name, kind in rows_of_the_page() if kind == "gauge"}

    def missing() -> set[str]:
        return gauges - LATER - {one["__name__"] for one in prometheus.query('group by (__name__) ({__name__=~".+"})')}

    btc.wait(lambda: not missing(), 60, f"they have a series: {missing()}")


@pytest.mark.parametrize("expression", TOLD)
def test_what_rules_speak_of_is_there(prometheus: Prometheus, btc: Running, expression: str) -> None:
    """A healthy pipeline shows as one."""
    btc.wait(lambda: prometheus.query(expression) != [], 60, f"{expression} has a series")


def test_every_rule_is_evaluated(prometheus: Prometheus, btc: Running) -> None:
    """No rule fails, and nothing critical fires about a healthy pipeline."""
    btc.wait(lambda: {rule["health"] for rule in prometheus.rules()} == {"ok"}, 60, "every rule is evaluated")

    assert [] == prometheus.query('ALERTS{alertstate="firing",severity="critical"}')
