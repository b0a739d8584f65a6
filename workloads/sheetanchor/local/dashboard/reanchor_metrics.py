"""Metrics of re-anchors, counted from their receipts: their own processes end before they can be scraped."""

from __future__ import annotations

from typing import Final

from sheetanchor.contract import Receipt
from sheetanchor.runtime import metrics

OPERATION: Final = "rest"


def count(receipt: Receipt) -> None:
    """Count a run that has ended."""
    symbol = receipt.symbol
    metrics.REANCHORS.labels(symbol, receipt.result, receipt.trigger).inc()
    metrics.REANCHOR_DURATION.labels(symbol).observe((receipt.finished_at_us - receipt.started_at_us) / 1e6)
    for endpoint, status, seconds in receipt.calls:
        metrics.REST_CALLS.labels(endpoint, status).inc()
        metrics.REST_LATENCY.labels(endpoint).observe(seconds)
        if status == "timeout":
            metrics.TIMEOUTS.labels(OPERATION).inc()
    metrics.RETRIES.labels(OPERATION).inc(receipt.retries)
    metrics.CIRCUIT_STATE.labels(OPERATION).set(receipt.breaker)
    if receipt.weight_remaining >= 0:
        metrics.REST_WEIGHT.set(receipt.weight_remaining)
    if receipt.alert:
        metrics.ALERTS.labels(receipt.alert).inc()
