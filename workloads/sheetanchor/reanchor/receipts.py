"""The order of a run, its progress, and the receipts of it and of earlier runs."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from redis.asyncio import Redis

from sheetanchor.contract import LOCK_TTL_S, RECEIPTS_LENGTH_MAX, Receipt, keys
from sheetanchor.reanchor.outcome import ALERT_FAILED, Outcome
from sheetanchor.store.redis_connection import translate_errors
from sheetanchor.venue import EndpointCalls

log = logging.getLogger(__name__)

RECEIPT_BYTES_MAX: Final = 4096
"""Bytes of a container's termination message that Kubernetes keeps."""


@dataclass(frozen=True, slots=True)
class RunOrder:
    """The parameters of one run; the fields are those of the settings."""

    symbol: str
    reason: str = "manual"
    trigger: str = "manual"
    request_id: str = ""
    unlock_for: tuple[str, ...] = ()
    doubted_epoch: int = -1
    validate_only: bool = False
    dry_run: bool = False
    depth_limit: int = 5000
    timeout_s: float = 120.0
    price_deviation_max: float = 0.1
    catch_up_s: float = 10.0
    lock_ttl_s: int = LOCK_TTL_S


@dataclass(slots=True)
class RunProgress:
    """The progress of a run, from which the receipt is made."""

    id: str
    started_us: int
    exchange: str
    phase: str = "lock"
    phases: dict[str, float] = field(default_factory=dict)
    checks: tuple[str, ...] = ()
    epoch_before: int = 0
    epoch_after: int = 0
    snapshot_id: int = 0
    update_id: int = 0
    locked: bool = False
    notes: list[str] = field(default_factory=list)
    warnings: tuple[str, ...] = ()
    breaker: int = 0
    weight_remaining: int = -1


def new_id(symbol: str, request_id: str, now_us: int) -> str:
    """Make the id of a run: unique even within a second, and ending in the request's id if there is one."""
    suffix = f":{request_id}" if request_id else ""
    return f"reanchor_{symbol}_{now_us // 1_000_000}_{uuid4().hex[:12]}{suffix}"


def receipt_of(order: RunOrder, progress: RunProgress, outcome: Outcome, now_us: int, asked: EndpointCalls) -> Receipt:
    """Make the receipt of a run that has ended.

    Args:
        order: Parameters of the run.
        progress: Its progress.
        outcome: How it ended.
        now_us: When it ended.
        asked: Requests that were sent to the exchange for it.
    """
    return Receipt(
        id=progress.id,
        symbol=order.symbol,
        reason=order.reason,
        trigger=order.trigger,
        result=outcome.result,
        started_at_us=progress.started_us,
        finished_at_us=now_us,
        epoch_before=progress.epoch_before,
        epoch_after=progress.epoch_after or progress.epoch_before,
        snapshot_id=progress.snapshot_id,
        update_id=progress.update_id,
        exit_code=outcome.exit_code,
        message="; ".join([outcome.message, *progress.notes]),
        phases=progress.phases,
        checks=progress.checks,
        request_id=order.request_id,
        retry_at_us=outcome.retry_at_us,
        exchange=progress.exchange,
        warnings=progress.warnings,
        calls=tuple(asked.calls),
        retries=asked.retries,
        breaker=progress.breaker,
        weight_remaining=progress.weight_remaining if asked.calls else -1,
        alert=ALERT_FAILED if outcome.result == "failed" else "",
    )


async def redis_now_us(redis: Redis) -> int:
    """Read Redis' clock in µs.

    Raises:
        RedisError: If Redis does not answer.
    """
    with translate_errors("TIME"):
        seconds, microseconds = await redis.time()
    return int(seconds) * 1_000_000 + int(microseconds)


async def earlier_receipts(redis: Redis, symbol: str) -> list[Receipt]:
    """Read the receipts of a symbol, newest first; those that cannot be read are left out.

    Raises:
        RedisError: If Redis does not answer.
    """
    stream = keys(symbol).receipts
    with translate_errors(f"XREVRANGE {stream}"):
        entries: Any = await redis.xrevrange(stream, count=RECEIPTS_LENGTH_MAX)
    receipts = []
    for _, fields in entries:
        try:
            receipts.append(Receipt.from_json(fields.get(b"receipt", b"").decode()))
        except ValueError:
            continue  # written by another version
    return receipts


def short_json(receipt: Receipt, bytes_max: int = RECEIPT_BYTES_MAX) -> str:
    """Render a receipt in a limited number of bytes: long texts are shortened, and it stays valid JSON.

    Args:
        receipt: The receipt.
        bytes_max: At least a thousand; ids, symbol and origin are short by their own rules.
    """
    text = receipt.to_json()
    for length in (1_000, 300, 100, 20):
        if len(text) <= bytes_max:  # our JSON is ASCII: characters are bytes
            return text
        receipt = replace(
            receipt,
            reason=_cut(receipt.reason, length),
            trigger=_cut(receipt.trigger, length),
            message=_cut(receipt.message, length),
            request_id=_cut(receipt.request_id, length),
            exchange=_cut(receipt.exchange, length),
            id=_cut(receipt.id, length + 100),
            checks=tuple(_cut(check, length) for check in receipt.checks[: length // 5]),
            warnings=tuple(_cut(warning, length) for warning in receipt.warnings[: length // 20]),
            calls=receipt.calls[: length // 20],
        )
        text = receipt.to_json()
    return text


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def write_receipt(receipt: Receipt, path: Path) -> None:
    """Write a receipt to a file in one write; failing to write it does not fail the run.

    The file is opened and filled, not replaced: Kubernetes mounts a container's termination log as a single file.
    """
    try:
        with path.open("wb", buffering=0) as file:
            file.write(short_json(receipt).encode())
    except OSError as error:
        log.warning("receipt_file = %r: cannot be written: %s", str(path), error.strerror)
