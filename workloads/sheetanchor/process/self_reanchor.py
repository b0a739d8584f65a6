"""Runs a re-anchor as a child process when it is requested and no coordinator begins it in time.

A doubt about the state is a request until the state is anchored again. Other requests are judged by the rules that
every coordinator applies (`reanchor_scheduler`), so that budget and cool-downs hold here too.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from redis.asyncio import Redis

from sheetanchor.contract import EXIT_LOCK_HELD, EXIT_SUPERSEDED, Gap, Receipt, keys
from sheetanchor.errors import RedisError
from sheetanchor.policy import reanchor_scheduler
from sheetanchor.policy.gap_rules import GAP_DETECTION_RULES, VALIDATION
from sheetanchor.runtime.command_line import VARIABLE_PREFIX, variable_of
from sheetanchor.runtime.settings import ProcessSettings, ReanchorSettings
from sheetanchor.store.hot_state import HotState
from sheetanchor.store.redis_connection import translate_errors

log = logging.getLogger(__name__)

POLL_S: Final = 1.0
VALIDATE_AFTER_S: Final = 10.0
"""A restated state is compared with the exchange within 15 s; until then a coordinator may have begun that."""

GAPS_READ: Final = 100
RECEIPTS_READ: Final = 20
OWN_FILES: Final = (VARIABLE_PREFIX + "CONFIG", "CONFIG_FILE")
"""Name the settings file of this role, which a re-anchor does not understand."""


@dataclass(slots=True)
class RebuildRequest:
    """A requested rebuild and since when.

    Attributes:
        trigger: Gap rule, `start` or `suspect`; "" while nothing is requested.
        since_s: Monotonic seconds.
        validation_since_s: Since when a validation is requested; None while none is.
    """

    trigger: str = ""
    reason: str = ""
    since_s: float = 0.0
    validation_since_s: float | None = None

    def set(self, trigger: str, reason: str) -> None:
        """Request a rebuild, or with "" withdraw the request; one that is open keeps its time."""
        if trigger and not self.trigger:
            self.since_s = time.monotonic()
        self.trigger, self.reason = trigger, reason

    def set_validation(self, wanted: bool) -> None:
        """Request a comparison of a restated state with the exchange, or withdraw the request."""
        if not wanted:
            self.validation_since_s = None
        elif self.validation_since_s is None:
            self.validation_since_s = time.monotonic()


@dataclass(slots=True)
class UnansweredRequests:
    """Requests about a state that is not in doubt, which no coordinator has begun. Pure; times are Redis'.

    Attributes:
        after_us: How long a coordinator has to begin one.
    """

    after_us: int
    policy: reanchor_scheduler.Policy = reanchor_scheduler.DEFAULT_POLICY
    _state: reanchor_scheduler.State = field(default_factory=reanchor_scheduler.State)
    _due_since_us: int = 0

    def take_gap(self, gap: Gap) -> None:
        """Take in a gap of this process or of an ingestor; validations and doubts are dealt with elsewhere."""
        rule = GAP_DETECTION_RULES.get(gap.rule)
        if (
            gap.action == VALIDATION
            or gap.action not in reanchor_scheduler.URGENCY
            or (rule is not None and rule.suspects)
        ):
            return
        self._state, _ = reanchor_scheduler.ask(self._state, reanchor_scheduler.Request.of_gap(gap), self.policy)

    def take_receipt(self, receipt: Receipt) -> None:
        """Take in a finished run: what was requested before it began is answered, if it did not fail."""
        self._due_since_us = 0
        state = replace(self._state, ended_us=max(self._state.ended_us, receipt.finished_at_us))
        # A restatement answers nothing: the exchange was not asked.
        if receipt.exit_code == 0 and receipt.result not in {"dry_run", "restated"}:
            state = replace(state, covered_us=max(state.covered_us, receipt.started_at_us))
        if receipt.result == "swapped":
            state = replace(
                state, rebuilt_us=(*state.rebuilt_us, receipt.finished_at_us)[-self.policy.rebuilds_per_hour :]
            )
        self._state = state

    def due(self, seen: reanchor_scheduler.Seen, now_us: int) -> reanchor_scheduler.Start | None:
        """Give what to begin here, because no coordinator has begun it within `after_us`."""
        while self._state.pending:
            self._state, decision = reanchor_scheduler.decide(self._state, seen, now_us, self.policy)
            if isinstance(decision, reanchor_scheduler.Skip):
                continue
            if not isinstance(decision, reanchor_scheduler.Start):
                break
            self._due_since_us = self._due_since_us or now_us
            if now_us - self._due_since_us < self.after_us:
                return None
            self._state = replace(self._state, pending=())
            self._due_since_us = 0
            return decision
        self._due_since_us = 0
        return None


def reanchor_environment(settings: ProcessSettings, environ: Mapping[str, str]) -> dict[str, str]:
    """Give a re-anchor child the settings that this process has, those named `reanchor_…` first."""
    shared = {name: value for name, value in environ.items() if name not in OWN_FILES}
    for name, info in ReanchorSettings.model_fields.items():
        value = getattr(settings, f"reanchor_{name}", getattr(settings, name, None))
        if value is not None and name != "symbol":
            shared[variable_of(name, info)] = str(value)
    return shared


async def reanchor_as_child(
    settings: ProcessSettings, hot: HotState, symbol: str, trigger: str, reason: str, *, validate_only: bool = False
) -> int:
    """Run a re-anchor and wait for it; release its lock if it was killed.

    Returns:
        Its exit code.

    Raises:
        RedisError: If the state could not be read, or the lock of a killed run not be released.
    """
    request_id = f"process-{uuid.uuid4().hex[:12]}"
    command = [sys.executable, "-m", "sheetanchor", "reanchor", "--symbol", symbol, "--reason", reason]
    # A coordinator may be slow to start its run: what that has rebuilt by then is not to be rebuilt again.
    doubted_epoch = (await hot.anchor()).epoch
    command += ["--trigger", trigger, "--request-id", request_id, "--doubted-epoch", str(doubted_epoch)]
    command += ["--validate-only"] * validate_only
    environment = reanchor_environment(settings, dict(os.environ))
    child = await asyncio.create_subprocess_exec(*command, env=environment, stdout=asyncio.subprocess.DEVNULL)
    try:
        code = await child.wait()
    finally:
        if child.returncode is None:
            child.terminate()
            await child.wait()
    holder = await hot.lock_holder()
    if request_id in holder:
        await hot.unlock(holder)
    return code


async def newest_receipt(redis: Redis, symbol: str) -> tuple[str, Receipt | None]:
    """Give the newest receipt of any re-anchor of a symbol with its stream id, "" and None if there is none.

    Raises:
        RedisError: If Redis does not answer.
    """
    stream = keys(symbol).receipts
    with translate_errors(f"XREVRANGE {stream}"):
        newest: Any = await redis.xrevrange(stream, count=1)
    return (newest[0][0].decode(), receipt_in(newest[0][1])) if newest else ("", None)


def receipt_in(fields: Mapping[bytes, bytes]) -> Receipt | None:
    """Read a receipt from an entry; None if it is of another version."""
    try:
        return Receipt.from_json(fields.get(b"receipt", b"").decode())
    except ValueError:
        return None


class SelfReanchor:
    """Starts what is due for one symbol while this processor is the active one.

    Args:
        settings: Of the processor.
        redis: Client of the pipeline's Redis.
        symbol: Trading pair.
        request: The rebuild that the processor requests because of a doubt.
        seen: The state of the symbol, and Redis' clock; None while that is not known or another processor is active.
    """

    def __init__(
        self,
        settings: ProcessSettings,
        redis: Redis,
        symbol: str,
        request: RebuildRequest,
        seen: Callable[[bool], tuple[reanchor_scheduler.Seen, int] | None],
    ) -> None:
        self._settings = settings
        self._redis = redis
        self._symbol = symbol
        self._request = request
        self._seen = seen
        self._hot = HotState(redis, symbol)
        self._unanswered = UnansweredRequests(round(settings.self_reanchor_after_s * 1e6))
        self._receipt_id = self._gap_id = ""

    async def run(self) -> None:
        """Run requested re-anchors that no coordinator has begun in time; until cancelled."""
        if self._settings.self_reanchor_after_s <= 0:
            await asyncio.Event().wait()
        while True:
            await asyncio.sleep(POLL_S)
            try:
                await self._poll()
            except RedisError as error:
                log.warning("%s: the re-anchor cannot be started yet: %s", self._symbol, error)

    async def _poll(self) -> None:
        request = self._request
        news = await self._read_receipts()
        await self._read_gaps()
        held = bool(await self._hot.lock_holder())
        # A run may begin and end between two polls; its receipt shows that a coordinator is at work.
        if request.trigger and (news or held):
            request.since_s = time.monotonic()
        if request.trigger:
            if time.monotonic() - request.since_s >= self._settings.self_reanchor_after_s:
                # The doubt may be over although that has not been seen here: then there is only something to compare.
                is_anchored = (await self._hot.anchor()).state == "anchored"
                await self._begin(request.trigger, request.reason, validate_only=is_anchored)
                request.since_s = time.monotonic()
            return
        if request.validation_since_s is not None:
            after_s = min(VALIDATE_AFTER_S, self._settings.self_reanchor_after_s)
            if not held and time.monotonic() - request.validation_since_s >= after_s:
                request.validation_since_s = time.monotonic()
                await self._begin("redis_failover", "restated after a failover of Redis", validate_only=True)
            return
        seen = self._seen(held)
        due = None if seen is None else self._unanswered.due(*seen)
        if due is not None:
            await self._begin(due.trigger, due.reason)

    async def _begin(self, trigger: str, reason: str, *, validate_only: bool = False) -> None:
        log.warning("%s: no coordinator has started the re-anchor for %s: running it here", self._symbol, trigger)
        code = await reanchor_as_child(
            self._settings, self._hot, self._symbol, trigger, reason, validate_only=validate_only
        )
        if code not in (0, EXIT_LOCK_HELD, EXIT_SUPERSEDED):
            log.error("%s: the re-anchor failed with exit code %d; see its log", self._symbol, code)

    async def _read_receipts(self) -> bool:
        """Take in new receipts; true if there are any of runs, among them those that only a later version can read."""
        before, runs = self._receipt_id, 0
        entries = await self._after(keys(self._symbol).receipts, before, RECEIPTS_READ)
        for entry_id, fields in entries:
            self._receipt_id = entry_id
            receipt = receipt_in(fields)
            if receipt is not None:
                self._unanswered.take_receipt(receipt)
            runs += receipt is None or receipt.result != "restated"
        return bool(runs)

    async def _read_gaps(self) -> None:
        for entry_id, raw in await self._after(keys(self._symbol).gaps, self._gap_id, GAPS_READ):
            self._gap_id = entry_id
            try:
                self._unanswered.take_gap(Gap.parse({name.decode(): value.decode() for name, value in raw.items()}))
            except (KeyError, ValueError) as error:
                log.warning("%s: entry %s of the stream of gaps is not a gap record: %r", self._symbol, entry_id, error)

    async def _after(self, stream: str, entry_id: str, count: int) -> list[tuple[str, dict[bytes, bytes]]]:
        """Read a stream on; the first time only its last entry, since older ones were dealt with before this start."""
        with translate_errors(f"XRANGE {stream}"):
            if entry_id:
                found: Any = await self._redis.xrange(stream, min=f"({entry_id}", count=count)
            else:
                found = await self._redis.xrevrange(stream, count=1)
        return [(one.decode(), fields) for one, fields in found]
