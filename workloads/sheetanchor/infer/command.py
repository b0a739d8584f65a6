"""`sheetanchor infer`: one prediction per two-second slot and symbol, from the hot keys in Redis.

Any number of replicas run at the same time; the first to commit a slot wins. This process reads nothing but Redis and
its model registry, and writes nothing but predictions. While Redis cannot be reached it still answers over HTTP from
what it last read, marked as degraded.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Final

from fastapi import FastAPI, HTTPException, Query

from sheetanchor.contract import SLOT_MS, STALE_AFTER_US
from sheetanchor.errors import RedisUnavailable
from sheetanchor.infer.accuracy import PredictionResult
from sheetanchor.infer.model_fallback import FallbackChains, ModelFallbackChain
from sheetanchor.infer.prediction import Prediction
from sheetanchor.infer.slot_loop import CALL_TIMEOUT_S, HISTORY_MAX, SlotLoop
from sheetanchor.ml.registry import ModelRegistry, default_root
from sheetanchor.runtime.settings import InferSettings
from sheetanchor.runtime.stop_signals import stop_event
from sheetanchor.store.redis_client import check_connection, redis_client
from sheetanchor.web.server import Check, CheckResult, Health, create_app, serve

log = logging.getLogger(__name__)

REFRESH_AT_MS: Final = 1_200
"""The registry is polled this long after a slot, when nothing else is due."""

REPLICA_LENGTH_MAX: Final = 100


def replica_name(given: str) -> str:
    """Name this replica: as given, else by host and process id."""
    return (given or f"{socket.gethostname()}-{os.getpid()}")[:REPLICA_LENGTH_MAX]


def record_json(record: Prediction, result: PredictionResult | None) -> dict[str, Any]:
    """Render a record with its result, null while that is unknown."""
    known = {
        "actual_price": result and result.price,
        "actual_return": result and result.actual_return,
        "actual_direction": result and result.direction,
        "correct": result and result.hit,
    }
    return {**record.to_json(), **known}


def add_routes(app: FastAPI, slot_loops: Sequence[SlotLoop]) -> None:
    """Add the HTTP routes for predictions."""
    by_symbol = {slot_loop.symbol: slot_loop for slot_loop in slot_loops}

    async def symbols() -> dict[str, Any]:
        return {"symbols": sorted(by_symbol)}

    async def latest(symbol: str, limit: Annotated[int, Query(ge=1, le=HISTORY_MAX)] = 1) -> dict[str, Any]:
        if symbol not in by_symbol:
            raise HTTPException(404, f"symbol = {symbol[:40]!r}: expected one of {', '.join(sorted(by_symbol))}")
        records = [record_json(*item) for item in by_symbol[symbol].latest(limit)]
        if not records:
            raise HTTPException(503, f"{symbol}: the first slot has not been served yet; try again in two seconds")
        return {
            "symbol": symbol,
            **records[0],
            "directional_accuracy": by_symbol[symbol].accuracy(),
            "decided": by_symbol[symbol].decided(),
            "predictions": records,
        }

    app.add_api_route("/predictions", symbols)
    app.add_api_route("/predictions/{symbol}", latest)


def checks_of(slot_loops: Sequence[SlotLoop], fallbacks: FallbackChains) -> list[Check]:
    """Make the health checks; they read cached state only."""

    async def redis() -> CheckResult:
        connected = all(slot_loop.connected for slot_loop in slot_loops)
        return CheckResult("healthy" if connected else "unhealthy", {"connected": connected})

    async def models() -> CheckResult:
        chains = fallbacks.chains.values()
        sound = all(chain.mode == "model" and not chain.problem for chain in chains)
        details: dict[str, Any] = {
            "loaded_models": fallbacks.loaded,
            "symbols": {chain.symbol: {"mode": chain.mode, "model": "".join(chain.loaded)} for chain in chains},
        }
        if any(chain.problem for chain in chains):
            details["message"] = "the registry's current model cannot be used, a fallback serves; see the log"
        return CheckResult("healthy" if sound else "degraded", details)

    async def features() -> CheckResult:
        ages = {slot_loop.symbol: slot_loop.age_us for slot_loop in slot_loops}
        fresh = all(age is not None and age <= STALE_AFTER_US for age in ages.values())
        return CheckResult(
            "healthy" if fresh else "degraded",
            {"last_event_age_ms": {symbol: None if age is None else age // 1_000 for symbol, age in ages.items()}},
        )

    async def predictions() -> CheckResult:
        last = {
            slot_loop.symbol: records[0][0] if (records := slot_loop.latest(1)) else None for slot_loop in slot_loops
        }
        sound = all(record is not None and record.committed and not record.degraded for record in last.values())
        detail = {
            symbol: None if record is None else {"slot": record.slot, "mode": record.mode, "degraded": record.degraded}
            for symbol, record in last.items()
        }
        return CheckResult("healthy" if sound else "degraded", {"symbols": detail})

    return [
        # Without new predictions answers are old; the replica stays reachable all the same, see `SlotLoop.can_serve`.
        Check("redis", redis),
        Check("models", models, critical=False),
        Check("features", features, critical=False),
        Check("predictions", predictions, critical=False),
    ]


async def keep_model(chain: ModelFallbackChain, clock: SlotLoop, stop: asyncio.Event) -> None:
    """Poll the registry between a symbol's slots until `stop` is set."""
    while not stop.is_set():
        left_ms = (REFRESH_AT_MS - clock.now_us // 1_000) % SLOT_MS
        try:
            async with asyncio.timeout(max(left_ms, 1) / 1_000):
                await stop.wait()
        except TimeoutError:
            await chain.refresh()
            await asyncio.sleep(0.05)  # past this moment, even if the clock was set back


async def run(settings: InferSettings) -> int:
    """Predict until SIGTERM or SIGINT; the current slot is finished.

    Returns:
        0 after a clean end.

    Raises:
        BadSettings: If a setting cannot be used.
        RedisRefused: Redis refuses the password.
    """
    stop = stop_event()
    redis = redis_client(
        settings.redis_url,
        settings.redis_password_file,
        ca_file=settings.redis_ca_file,
        socket_timeout_s=CALL_TIMEOUT_S,
        connect_timeout_s=CALL_TIMEOUT_S,
    )
    health = Health(settings.service_name or "sheetanchor-infer", [], settings.health_check_interval_seconds)
    fallbacks = FallbackChains(ModelRegistry(settings.models or default_root()), settings.symbol)
    name = replica_name(settings.replica)
    slot_loops = [
        SlotLoop(redis, symbol, name, chain, warm_runs=settings.warm_runs, heartbeat=partial(health.heartbeat, symbol))
        for symbol, chain in fallbacks.chains.items()
    ]
    health.checks = checks_of(slot_loops, fallbacks)
    health.admits = lambda: all(slot_loop.can_serve for slot_loop in slot_loops)
    app = create_app(health)
    add_routes(app, slot_loops)
    try:
        await _check_if_reachable(redis)
        await fallbacks.start()
        # Objects of the start-up stay: the garbage collector need not scan them in the middle of a slot.
        gc.freeze()
        async with serve(app, health, settings.http_host, settings.http_port, settings.probe_port):
            async with asyncio.TaskGroup() as group:
                for slot_loop in slot_loops:
                    health.heartbeat(slot_loop.symbol)
                    group.create_task(keep_model(fallbacks.chains[slot_loop.symbol], slot_loop, stop))
                    group.create_task(slot_loop.run(stop))
            health.draining = True
    finally:
        await fallbacks.close()
        await redis.aclose()
    log.info("Shutdown complete")
    return 0


async def _check_if_reachable(redis: Any) -> None:
    """Fail now on a wrong password; a server that is not up yet is waited for later."""
    try:
        await check_connection(redis)
    except RedisUnavailable as error:
        log.warning("Redis does not answer yet, predictions wait for it: %s", error)
