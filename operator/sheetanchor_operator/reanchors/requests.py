"""Which ReAnchors the operator itself creates: for the annotation, for the schedule, and for a state in doubt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from croniter import croniter

from sheetanchor.policy.reanchor_object import ReAnchorRequest, digest
from sheetanchor.policy.reanchor_scheduler import IMMEDIATE, SCHEDULED
from sheetanchor.runtime.plain_text import one_line
from sheetanchor_operator.api.pipeline import Pipeline
from sheetanchor_operator.reanchors.runs import ReAnchor

MINUTE_US: Final = 60_000_000
LATE_MAX_US: Final = 60 * MINUTE_US
"""A scheduled time that was missed by more than this is skipped."""

KEY_LENGTH_MAX: Final = 253
BY_LENGTH_MAX: Final = 253
SHOWN_LENGTH_MAX: Final = 80
"""Characters of an invalid value that a message shows: an annotation may hold 256 KiB."""

OPERATOR: Final = "sheetanchor-operator"


class BadRequest(ValueError):
    """An invalid value of the annotation; says what was expected."""


@dataclass(frozen=True, slots=True)
class RebuildRequest:
    """The request in an annotation.

    Attributes:
        request_id: Its id, or the whole value; the same twice for a symbol is one request.
        symbols: Trading pairs that it is about.
    """

    request_id: str
    symbols: tuple[str, ...]
    reason: str
    requested_by: str
    dry_run: bool = False
    force: bool = False


def key_of(value: str) -> str:
    """Give a key that identifies a value of the annotation, short enough for a status.

    The same id for one symbol and then for another is two requests.
    """
    tree = _tree(value)
    symbol = tree.get("symbol")
    named = symbol and _is_plain(symbol) and _id_in(tree)
    return _bounded(f"{_id_in(tree)} {symbol}") if named else _request_id_of(value)


def _request_id_of(value: str) -> str:
    return _bounded(_id_in(_tree(value)) or value)


def _id_in(tree: dict[str, Any]) -> str:
    given = tree.get("id")
    return str(given) if given and _is_plain(given) else ""


def _bounded(key: str) -> str:
    return key if len(key) <= KEY_LENGTH_MAX else f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def _tree(value: str) -> dict[str, Any]:
    """Read a value that is a JSON object; {} for any other, also for one nested too deeply or with invalid Unicode."""
    if not value.lstrip().startswith("{"):
        return {}
    try:
        tree = json.loads(value)
        # Half a surrogate pair is valid JSON, but can neither be hashed nor sent to the API server.
        json.dumps(tree, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _is_plain(entry: Any) -> bool:
    return entry is None or isinstance(entry, str | int | float)


def _shown(entry: object) -> str:
    text = repr(entry)
    return text if len(text) <= SHOWN_LENGTH_MAX else f"{text[: SHOWN_LENGTH_MAX - 1]}…"


def read_request(value: str, symbols: tuple[str, ...]) -> RebuildRequest:
    """Read a value of the annotation.

    Args:
        value: Any text, which means all symbols, or a JSON object with id, symbol, reason, by, dryRun and force.
        symbols: The pipeline's.

    Raises:
        BadRequest: It names an unknown entry or symbol, an entry is no text, or it is broken JSON.
    """
    tree = _tree(value)
    if not tree:
        if value.lstrip().startswith("{"):
            raise BadRequest(f"{_shown(value)} is not a JSON object with entries: expected one, or plain text")
        return RebuildRequest(
            one_line(_request_id_of(value), KEY_LENGTH_MAX), symbols, f"annotation {one_line(value, 100)}", "annotation"
        )
    unknown = sorted(set(tree) - {"id", "symbol", "reason", "by", "dryRun", "force"})
    if unknown:
        raise BadRequest(f"unknown entry {_shown(unknown[0])}: expected id, symbol, reason, by, dryRun, force")
    for name, entry in tree.items():
        if not _is_plain(entry):
            raise BadRequest(f"{name} is a list or an object: expected text")
    for name in ("dryRun", "force"):
        if not isinstance(tree.get(name, False), bool):
            raise BadRequest(f"{name} = {_shown(tree[name])}: expected true or false")
    symbol = tree.get("symbol") or ""
    if symbol and symbol not in symbols:
        raise BadRequest(f"symbol = {_shown(symbol)}: expected one of {', '.join(symbols)}")
    return RebuildRequest(
        request_id=one_line(_request_id_of(value), KEY_LENGTH_MAX),
        symbols=(symbol,) if symbol else symbols,
        reason=one_line(str(tree.get("reason") or "requested by hand"), 500),
        requested_by=one_line(str(tree.get("by") or "annotation"), BY_LENGTH_MAX),
        dry_run=bool(tree.get("dryRun")),
        force=bool(tree.get("force")),
    )


def requests_of_annotation(request: RebuildRequest, now_us: int) -> list[ReAnchorRequest]:
    """Make one request per symbol from a value of the annotation."""
    return [
        ReAnchorRequest(
            symbol=symbol,
            suffix=f"a{digest(request.request_id, symbol)}",
            action=IMMEDIATE,
            reason=request.reason,
            trigger="annotation",
            requested_by=request.requested_by,
            at_us=now_us,
            request_id=request.request_id,
            dry_run=request.dry_run,
            force=request.force,
        )
        for symbol in request.symbols
    ]


def due_time_us(schedule: str, now_us: int) -> tuple[int, int]:
    """Give the last scheduled time up to now and the next one, in µs.

    Args:
        schedule: Cron expression of five fields, in UTC.
        now_us: The time.
    """
    now = datetime.fromtimestamp(now_us / 1e6, UTC)
    last = croniter(schedule, now).get_prev(datetime)
    following = croniter(schedule, now).get_next(datetime)
    if croniter.match(schedule, now):
        last = now.replace(second=0, microsecond=0)
    return round(last.timestamp() * 1e6), round(following.timestamp() * 1e6)


def requests_of_schedule(
    pipeline: Pipeline, created_us: int, known: Iterable[ReAnchor], now_us: int
) -> tuple[list[ReAnchorRequest], int | None]:
    """Make the requests of the last scheduled time, unless they exist; several missed times give one.

    Args:
        pipeline: The pipeline.
        created_us: When it was created: earlier times do not count.
        known: Its ReAnchors; the newest scheduled one of a symbol is never deleted.
        now_us: The time.

    Returns:
        The requests, and the next scheduled time in µs; None without a schedule.
    """
    schedule = pipeline.spec.reanchor.schedule
    if not schedule:
        return [], None
    last_us, next_us = due_time_us(schedule, now_us)
    if last_us < created_us or now_us - last_us > LATE_MAX_US:
        return [], next_us
    done = {one.symbol for one in known if one.trigger == "schedule" and one.at_us >= last_us}
    asks = [
        ReAnchorRequest(
            symbol=symbol,
            suffix=f"s{last_us // MINUTE_US}",
            action=SCHEDULED,
            reason=f"schedule {schedule}",
            trigger="schedule",
            requested_by=OPERATOR,
            at_us=now_us,
        )
        for symbol in pipeline.spec.symbols
        if symbol not in done
    ]
    return asks, next_us
