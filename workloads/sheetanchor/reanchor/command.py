"""`sheetanchor reanchor`: rebuild the hot state of a symbol from the exchange's REST interface and swap it in.

Nothing but Redis and the exchange is needed. Each run prints its receipt as one line of JSON on stdout, and why it
failed as one line on stderr.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

from redis.asyncio import Redis

from sheetanchor.contract import EXIT_STOPPED, Receipt
from sheetanchor.reanchor.outcome import worst
from sheetanchor.reanchor.phases import ReanchorRun
from sheetanchor.reanchor.receipts import RunOrder, write_receipt
from sheetanchor.runtime.reliability import Backoff, CircuitBreaker, RetryPolicy
from sheetanchor.runtime.settings import ReanchorSettings
from sheetanchor.runtime.stop_signals import STOP_SIGNALS
from sheetanchor.store.redis_client import redis_client
from sheetanchor.venue import TradingVenue, VenueRestClient, counts_as_failure
from sheetanchor.venue_lookup import venue_of

__all__ = ["ReanchorRun", "RunOrder", "run"]


async def run(settings: ReanchorSettings) -> int:
    """Re-anchor every symbol of the settings at the same time; gives the worst exit code.

    Raises:
        BadSettings: The Redis URL or password file cannot be used.
    """
    return await run_on(settings, venue_of(settings))


async def run_on(settings: ReanchorSettings, venue: TradingVenue) -> int:
    """Like `run`, on a given venue.

    Raises:
        BadSettings: The Redis URL or password file cannot be used.
    """
    redis = redis_client(settings.redis_url, settings.redis_password_file, ca_file=settings.redis_ca_file)
    try:
        async with _exchange(settings, venue) as exchange:
            return await _stoppable(_all(settings, redis, exchange))
    finally:
        await redis.aclose()


def _exchange(settings: ReanchorSettings, venue: TradingVenue) -> AbstractAsyncContextManager[VenueRestClient]:
    return venue.rest_client(
        settings.rest_url,
        timeout_s=settings.fetch_timeout_s,
        retry_policy=RetryPolicy(
            retries=settings.retry_max_attempts, backoff=Backoff(settings.retry_initial_delay_ms / 1000)
        ),
        breaker=CircuitBreaker(
            "rest",
            settings.circuit_breaker_threshold,
            settings.circuit_breaker_timeout_seconds,
            counts=counts_as_failure,
        ),
    )


def order_of(settings: ReanchorSettings, symbol: str) -> RunOrder:
    """Make the order for one symbol from the settings."""
    return RunOrder(
        symbol=symbol,
        reason=settings.reason,
        trigger=settings.trigger,
        request_id=settings.request_id,
        unlock_for=tuple(settings.unlock_for),
        doubted_epoch=settings.doubted_epoch,
        validate_only=settings.validate_only,
        dry_run=settings.dry_run,
        depth_limit=settings.depth_limit,
        timeout_s=settings.timeout_s,
        price_deviation_max=settings.price_deviation_max,
        catch_up_s=settings.catch_up_s,
    )


async def _all(settings: ReanchorSettings, redis: Redis, exchange: VenueRestClient) -> int:
    publish = partial(report, receipt_file=settings.receipt_file)
    runs = (ReanchorRun(order_of(settings, symbol), redis, exchange).run(publish) for symbol in settings.symbol)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one) for one in runs]
    return worst([task.result().exit_code for task in tasks])


async def _stoppable(work: Coroutine[None, None, int]) -> int:
    """Run the work until it is done or SIGTERM or SIGINT is received; both clean everything up."""
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        return EXIT_STOPPED
    finally:
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)


def report(receipt: Receipt, receipt_file: Path | None = None) -> None:
    """Print a receipt; a failure is also printed on stderr as a sentence."""
    print(receipt.to_json(), flush=True)
    if receipt_file is not None:
        write_receipt(receipt, receipt_file)
    if receipt.exit_code != 0:
        print(f"sheetanchor reanchor: Re-anchor failed for {receipt.symbol}: {receipt.message}", file=sys.stderr)
