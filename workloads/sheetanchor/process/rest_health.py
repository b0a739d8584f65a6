"""The health of the exchange's REST interface, from the newest re-anchors' receipts; makes no request of its own."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from sheetanchor.contract import EXIT_EXCHANGE, Receipt
from sheetanchor.runtime import metrics
from sheetanchor.runtime.reliability import CircuitState
from sheetanchor.web.server import CheckResult

DEPENDENCY: Final = "rest"


class RestHealth:
    """Takes receipts in; shows breaker and weight as metrics and as a health check."""

    def __init__(self) -> None:
        self._newest: dict[str, Receipt] = {}

    def take(self, receipt: Receipt) -> None:
        """Take in the newest receipt of a symbol; a run that made no request knows no weight."""
        self._newest[receipt.symbol] = receipt
        newest = max(self._newest.values(), key=lambda one: one.finished_at_us)
        metrics.CIRCUIT_STATE.labels(DEPENDENCY).set(newest.breaker)
        known = [one for one in self._newest.values() if one.weight_remaining >= 0]
        if known:
            metrics.REST_WEIGHT.set(max(known, key=lambda one: one.finished_at_us).weight_remaining)

    async def check(self) -> CheckResult:
        """Say whether the exchange answered the newest run of each symbol; healthy before there is one."""
        symbols = {
            symbol: {
                "breaker": CircuitState(receipt.breaker).name.lower(),
                "weight_remaining": receipt.weight_remaining if receipt.weight_remaining >= 0 else None,
                "asked_at": datetime.fromtimestamp(receipt.finished_at_us / 1e6, UTC).isoformat(timespec="seconds"),
                "last_error": receipt.message if receipt.exit_code == EXIT_EXCHANGE else None,
            }
            for symbol, receipt in sorted(self._newest.items())
        }
        good = all(one.exit_code != EXIT_EXCHANGE and one.breaker == 0 for one in self._newest.values())
        return CheckResult("healthy" if good else "degraded", {"symbols": symbols})
