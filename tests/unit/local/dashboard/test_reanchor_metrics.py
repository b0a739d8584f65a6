"""What the supervisor counts of a re-anchor, from its receipt."""

from __future__ import annotations

from dataclasses import replace

from prometheus_client import REGISTRY

from sheetanchor.local.dashboard import reanchor_metrics
from support.local_samples import receipt


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_a_run_is_counted_once_from_its_receipt() -> None:
    """Requests, retries, time-outs, breaker, weight and alert are what the receipt says."""
    depth = {"endpoint": "/api/v3/depth"}
    names: list[tuple[str, dict[str, str]]] = [
        ("ingestor_rest_reanchors_total", {"symbol": "BTCUSDT", "result": "failed", "reason": "start"}),
        ("sheetanchor_reanchor_run_seconds_count", {"symbol": "BTCUSDT"}),
        ("ingestor_rest_api_calls_total", {**depth, "status": "200"}),
        ("ingestor_rest_api_calls_total", {**depth, "status": "timeout"}),
        ("ingestor_rest_api_latency_seconds_count", depth),
        ("operation_timeouts_total", {"operation": "rest"}),
        ("retry_attempts_total", {"operation": "rest"}),
        ("sheetanchor_alerts_total", {"code": "REANCHOR_FAILED"}),
    ]
    before = [value(name, **labels) for name, labels in names]
    calls = (("/api/v3/depth", "200", 0.1), ("/api/v3/depth", "timeout", 10.0))

    reanchor_metrics.count(
        replace(receipt("failed", 3), calls=calls, retries=4, breaker=2, weight_remaining=123, alert="REANCHOR_FAILED")
    )

    grown = [value(name, **labels) - was for (name, labels), was in zip(names, before, strict=True)]
    assert [1, 1, 1, 1, 2, 1, 4, 1] == grown
    assert (2, 123) == (
        value("circuit_breaker_state", dependency="rest"),
        value("sheetanchor_rest_weight_remaining"),
    )


def test_a_run_that_asked_nothing_says_nothing_of_the_weight() -> None:
    """The gauge keeps the value of the last run that reported one."""
    reanchor_metrics.count(replace(receipt(), weight_remaining=77))
    reanchor_metrics.count(receipt("lock_held", 6))

    assert 77 == value("sheetanchor_rest_weight_remaining")
