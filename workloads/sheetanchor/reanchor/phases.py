"""One re-anchor from lock to receipt.

The phases are lock, fetch, build, catch_up, stage, validate, swap and verify. After a failure in any of them the hot
keys are either unchanged or entirely new, this run's staging keys are removed, and only its own lock is released.

One module and one class, since each phase depends on what the one before holds, above all the lock, and they share one
clean-up.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from redis.asyncio import Redis

from sheetanchor._decoder import Market
from sheetanchor.contract import CHECK_OF_TRADES, STALE_AFTER_US, Receipt
from sheetanchor.errors import (
    CircuitOpen,
    ExchangeError,
    LockHeld,
    RedisError,
    RedisRefused,
    RedisUnavailable,
    SheetAnchorError,
    Superseded,
    ValidationFailed,
)
from sheetanchor.reanchor.comparison import compare
from sheetanchor.reanchor.outcome import Outcome, outcome_of
from sheetanchor.reanchor.recall import breaker_of, weight_of
from sheetanchor.reanchor.receipts import RunOrder, RunProgress, earlier_receipts, new_id, receipt_of, redis_now_us
from sheetanchor.reanchor.replay import Reached, Replay
from sheetanchor.reanchor.snapshot import Snapshot, build, fetch, learn_time, limits_of, references
from sheetanchor.reanchor.validation import Candidate, validate
from sheetanchor.runtime.reliability import CircuitState
from sheetanchor.store.hot_records import Anchor, SwapReply, SwapStatus
from sheetanchor.store.hot_state import HotState
from sheetanchor.venue import VenueRestClient

log = logging.getLogger(__name__)

FETCHES_MAX: Final = 3
"""Most snapshots of one run; each of the default depth costs 279 of 6,000 units of request weight a minute."""

REFETCH_DELAY_S: Final = 0.5
SWAPS_MAX: Final = 50
"""Tries to be newer than a live state; each takes some milliseconds, and diffs come at most every 50 ms."""

BEHIND_DELAY_S: Final = 0.005
SWAP_REPLIES_MAX: Final = 3
"""Tries of the swap when its reply is lost; repeating it is safe."""

REPLY_DELAY_S: Final = 0.5
CLEAN_UP_S: Final = 5.0
COMPARISONS: Final = 2
"""A live state is replaced only if it differs from the exchange this many times in a row."""

Hook = Callable[[str], Awaitable[None]]
"""Called as `before:PHASE` and `after:PHASE`; tests break runs in it."""


async def _no_hook(_: str) -> None:
    return


class ReanchorRun:
    """One run.

    One class, since the phases share the lock, the deadline and the clean-up.

    Args:
        order: Parameters of the run.
        redis: Client of the server that holds the hot state.
        exchange: Open client of the exchange.
        hook: Called before and after each phase.
    """

    def __init__(self, order: RunOrder, redis: Redis, exchange: VenueRestClient, hook: Hook = _no_hook) -> None:
        now_us = time.time_ns() // 1000
        self.order = order
        self.progress = RunProgress(new_id(order.symbol, order.request_id, now_us), now_us, exchange.url)
        self._began_s = time.monotonic()
        self._redis = redis
        self._hot = HotState(redis, order.symbol)
        self._exchange = exchange
        self._hook = hook
        self._anchor = Anchor()
        self._found = ("", "")

    async def run(self, report: Callable[[Receipt], None]) -> Receipt:
        """Carry the run out.

        Args:
            report: Called with the receipt at the end, after a failure too.

        Raises:
            CancelledError: The run was cancelled; it has cleaned up and reported.
        """
        order, progress = self.order, self.progress
        log.info("re-anchor %s of %s begins: %s (%s)", progress.id, order.symbol, order.reason, order.trigger)
        cancelled: asyncio.CancelledError | None = None
        try:
            async with asyncio.timeout(order.timeout_s):
                outcome = await self._phases()
        except (SheetAnchorError, TimeoutError) as error:
            outcome = outcome_of(error, progress.phase, order.timeout_s, self._now_us())
        except asyncio.CancelledError as error:
            outcome = outcome_of(error, progress.phase, order.timeout_s, self._now_us())
            cancelled = error
        finally:
            await self._clean_up()
        if outcome.exit_code != 0 and self._found[0]:
            await self._leave_doubt()
        asked = self._exchange.asked(order.symbol)
        progress.weight_remaining = max(0, self._exchange.weight_remaining)
        progress.breaker = max(progress.breaker, self._exchange.breaker.state.value)
        receipt = receipt_of(order, progress, outcome, self._now_us(), asked)
        await self._leave(receipt)
        report(receipt)
        if cancelled is not None:
            raise cancelled
        return receipt

    def _now_us(self) -> int:
        """Give Redis' clock as last read: receipts are compared with its stamps."""
        return self.progress.started_us + int((time.monotonic() - self._began_s) * 1e6)

    async def _phases(self) -> Outcome:
        progress = self.progress
        progress.started_us = await redis_now_us(self._redis) - int((time.monotonic() - self._began_s) * 1e6)
        async with self._phase("lock"):
            anchor = await self._lock()
        self._check_later_anchor(anchor)
        answered = await self._check_earlier_runs(anchor)
        if answered is not None:
            return answered
        if self.order.validate_only:
            differences = await self._differences()
            if not differences:
                progress.epoch_after = progress.epoch_before
                await self._hot.validated(anchor.epoch, anchor.receipt)
                return Outcome("validated", 0, "the live state agrees with the exchange: nothing to do")
            progress.notes.append(f"the live state was wrong: {'; '.join(differences)}")
            await self._doubt(f"it differs from the exchange: {'; '.join(differences)}")
        replay, snapshot = await self._rebuild()
        reply = await self._finish(replay, snapshot)
        if reply is None:
            progress.epoch_after = progress.epoch_before
            return Outcome("dry_run", 0, "dry run: everything was done but the swap")
        progress.epoch_after = reply.epoch
        async with self._phase("verify"):
            await self._verify(reply)
        if reply.state != "anchored":
            progress.notes.append("the state stays suspect: the doubt is about a later update than this one")
        return Outcome("swapped", 0, f"epoch {reply.epoch} at update {progress.update_id}")

    @asynccontextmanager
    async def _phase(self, name: str) -> AsyncIterator[None]:
        """Run a phase between its two hooks and add up its time."""
        self.progress.phase = name
        started_s = time.monotonic()
        await self._hook(f"before:{name}")
        try:
            yield
        finally:
            spent_s = time.monotonic() - started_s
            self.progress.phases[name] = round(self.progress.phases.get(name, 0.0) + spent_s, 6)
        await self._hook(f"after:{name}")

    async def _lock(self) -> Anchor:
        """Take the lock and read the anchor.

        Raises:
            LockHeld: Another run holds it.
        """
        await self._release_stale_lock()
        if not await self._hot.lock(self.progress.id, self.order.lock_ttl_s):
            holder = await self._hot.lock_holder()
            raise LockHeld(f"Re-anchor already in progress for {self.order.symbol}: the lock is held by {holder}")
        self.progress.locked = True
        anchor = self._anchor = await self._hot.anchor()
        self.progress.epoch_before = anchor.epoch
        return anchor

    def _check_later_anchor(self, anchor: Anchor) -> None:
        """Refuse to rebuild a state that another run has rebuilt while this one was being started."""
        doubted = self.order.doubted_epoch
        if doubted >= 0 and anchor.state == "anchored" and anchor.epoch > doubted:
            raise Superseded(f"the state of epoch {anchor.epoch} is anchored; the doubt was about epoch {doubted}")

    async def _release_stale_lock(self) -> None:
        """Release the lock of a run that was killed before it could; the caller of this run knows that it has ended."""
        if not self.order.unlock_for:
            return
        holder = await self._hot.lock_holder()
        if holder.partition(":")[2] in self.order.unlock_for:
            log.warning("run %s has ended without releasing its lock: it is released now", holder)
            await self._hot.unlock(holder)

    async def _check_earlier_runs(self, anchor: Anchor) -> Outcome | None:
        """Do not repeat an answered request, and keep to a Retry-After that an earlier run received."""
        receipts = await earlier_receipts(self._redis, self.order.symbol)
        now_us = await redis_now_us(self._redis)
        here = [receipt.retry_at_us for receipt in receipts if receipt.exchange == self._exchange.url]
        retry_at_us = max(here, default=0)
        if retry_at_us > now_us:
            self._exchange.honour_retry_after((retry_at_us - now_us) / 1e6)
        remaining, known_us = weight_of(receipts, self._exchange.url)
        if remaining >= 0 and known_us <= now_us:
            self._exchange.recall_weight(remaining, (now_us - known_us) / 1e6)
        request_id = self.order.request_id
        if not request_id:
            await self._check_breaker(receipts, now_us)
            return None
        same = [receipt for receipt in receipts if receipt.request_id == request_id and receipt.result != "lock_held"]
        if not same and anchor.receipt.partition(":")[2] != request_id:
            await self._check_breaker(receipts, now_us)
            return None
        self.progress.epoch_after = self.progress.epoch_before
        earlier_result = f": {same[0].result}, {same[0].message}" if same else ""
        return Outcome(
            "repeated", same[0].exit_code if same else 0, f"request {request_id} was answered before{earlier_result}"
        )

    async def _check_breaker(self, receipts: list[Receipt], now_us: int) -> None:
        """Send no requests to an exchange that has failed too often in a row, over all runs; then probe it once.

        Raises:
            CircuitOpen: The breaker is open.
            ExchangeError: It does not answer the probe either.
        """
        breaker = self._exchange.breaker
        open_us = int(breaker.recovery_timeout_s * 1e6)
        found = breaker_of(receipts, self._exchange.url, breaker.failure_threshold, open_us, now_us)
        self.progress.breaker = found.state.value
        if found.state is CircuitState.OPEN:
            wait_s = (found.until_us - now_us) / 1e6
            raise CircuitOpen(
                f"{self._exchange.url} has failed {found.failures} times in a row: the next try is in {wait_s:.0f} s",
                retry_after_s=wait_s,
            )
        if found.state is CircuitState.HALF_OPEN:
            async with self._phase("probe"):
                await self._exchange.probe(self.order.symbol)
            self.progress.breaker = CircuitState.CLOSED.value
        elif found.failures:
            breaker.recall(found.failures)

    async def _fetch(self) -> Snapshot:
        async with self._phase("fetch"):
            asked_us = await redis_now_us(self._redis)
            snapshot = await fetch(self._exchange, self.order.symbol, self.order.depth_limit, asked_us, time.monotonic)
        self.progress.snapshot_id = snapshot.depth.last_update_id
        return snapshot

    async def _differences(self) -> list[str]:
        """Compare the live state with the exchange; a difference counts only if a second comparison finds one too."""
        differences: list[str] = []
        for _ in range(COMPARISONS):
            snapshot = await self._fetch()
            async with self._phase("compare"):
                differences = await compare(
                    self._hot,
                    self._redis,
                    snapshot,
                    limits_of(snapshot, self.order.price_deviation_max),
                    depth_limit=self.order.depth_limit,
                    wait_s=self.order.catch_up_s,
                )
            if not differences:
                self.progress.checks = ("live_state", "live_book", CHECK_OF_TRADES)
                return []
            log.warning("the live state of %s differs from the exchange: %s", self.order.symbol, "; ".join(differences))
        return differences

    async def _doubt(self, reason: str) -> None:
        """Say at once what was found, not only by the rebuild: until then predictions would go by a wrong state."""
        if self.order.dry_run or (await self._hot.anchor()).state != "anchored":
            return  # what is in doubt already is known by its own doubt
        self._found = (reason, self._anchor.root or self._anchor.receipt)
        await self._repeat_doubt()

    async def _repeat_doubt(self) -> None:
        """Say it again while the same rebuild stands: Redis may have lost it, or a processor have restated it since."""
        reason, root = self._found
        anchor = await self._hot.anchor()
        if (anchor.root or anchor.receipt) == root:
            await self._hot.suspect(0, "", anchor.epoch, 0, reason, doubt=self.progress.id)

    async def _leave_doubt(self) -> None:
        """Let a run that found the state wrong, and has not replaced it, not end with the state passing for right."""
        try:
            async with asyncio.timeout(CLEAN_UP_S):
                await self._repeat_doubt()
        except (RedisError, TimeoutError) as error:
            self.progress.notes.append("the state differs from the exchange, and could not be marked as suspect")
            log.error(
                "the state of %s differs from the exchange and cannot be marked as suspect: %s",
                self.order.symbol,
                error,
            )

    async def _rebuild(self) -> tuple[Replay, Snapshot]:
        """Fetch, build and catch up; with a newer snapshot when the lines do not join this one.

        Raises:
            ExchangeError: No snapshot joined the lines.
        """
        for attempt in range(1, FETCHES_MAX + 1):
            snapshot = await self._fetch()
            async with self._phase("build"):
                market = build(snapshot)
                replay = Replay(self._redis, market, snapshot.asked_us, self.order.catch_up_s, snapshot.known_us)
                log.debug("Temporary state built for %s", self.order.symbol)
            async with self._phase("catch_up"):
                reached = await replay.catch_up()
                if reached is Reached.MISSING_RANGE and attempt == FETCHES_MAX and replay.market.depth_gap is None:
                    self.progress.notes.append(f"some trades are missing: {_missing_range(replay.market)}")
                    reached = await replay.catch_up(forgive_trades=True)
            if reached is not Reached.MISSING_RANGE:
                if reached is not Reached.LIVE:
                    learn_time(replay.market, snapshot)
                    self.progress.notes.append(reached.value)
                return replay, snapshot
            snapshot_id = snapshot.depth.last_update_id
            missing = f"snapshot {snapshot_id} does not join the lines: {_missing_range(replay.market)}"
            log.info("%s", missing)
            if attempt < FETCHES_MAX:
                await asyncio.sleep(REFETCH_DELAY_S * attempt * (0.8 + 0.4 * random.random()))
        raise ExchangeError(f"no snapshot joined the lines in {FETCHES_MAX} tries; {missing}")

    async def _finish(self, replay: Replay, snapshot: Snapshot) -> SwapReply | None:
        """Stage, validate and swap; as often as the live state was newer than what was staged.

        Raises:
            ValidationFailed: Nothing was swapped.
            LockHeld, Superseded: As `_refusal` says.
            ExchangeError: The live state was always newer.
        """
        for attempt in range(SWAPS_MAX):
            if attempt:
                await asyncio.sleep(BEHIND_DELAY_S * (0.5 + random.random()))
                await self._catch_up_or_doubt(replay)
            answered = await self._answer_doubt(replay)
            async with self._phase("stage"):
                candidate = await self._stage(replay.market, replay.line_ids)
            async with self._phase("validate"):
                self._validate(candidate, replay, snapshot)
            if self.order.dry_run:
                return None
            async with self._phase("swap"):
                reply = await self._swap(replay.market, answered)
            if reply.ok:
                log.info("Atomic swap completed successfully for %s", self.order.symbol)
                return reply
            if reply.status is not SwapStatus.BEHIND:
                log.warning("Atomic swap failed: %s %s", reply.status, reply.detail)
                raise await self._refusal(reply.status, reply.epoch, reply.detail)
        raise Superseded(f"the live state was newer than the rebuilt one {SWAPS_MAX} times: {reply.detail}")

    async def _answer_doubt(self, replay: Replay) -> int:
        """Read on past the message that raised the doubt, and give the doubt: the id that a rebuild must reach, or 0.

        That message was in the lines before the doubt was written. A rebuild that has read the lines to their end
        since, without a missing range, contains it, whatever its ids: a doubt that is not reached then is of an earlier
        history of ids.
        """
        doubt = (await self._hot.anchor()).suspect_id
        if doubt <= replay.market.update_id:
            return 0
        reached = await self._catch_up_again(replay)
        if reached is not Reached.LIVE:
            return 0
        if replay.market.update_id < doubt:
            note = f"the doubt about update {doubt} is cleared: the lines end below it, its ids are no longer in use"
            self.progress.notes.append(note)
        return doubt

    async def _catch_up_or_doubt(self, replay: Replay) -> None:
        """Become newer than the live state, or find that its update id must not prevent a rebuild.

        Ids may go back from one epoch to the next, for instance when an earlier run used another exchange or when the
        exchange has restarted them. All that the live state is made of was in the lines before: a state that the lines
        no longer lead to is of an earlier history of ids, and one without new frames is old.
        """
        anchor = await self._hot.anchor()
        reached = await self._catch_up_again(replay)
        if anchor.epoch != self.progress.epoch_before:
            return
        age_us = await redis_now_us(self._redis) - anchor.stamp_us
        if age_us > STALE_AFTER_US:
            await self._hot.suspect(0, "", anchor.epoch, 0, f"no market event for {age_us / 1e6:.0f} s")
        elif reached is Reached.LIVE and replay.market.update_id < anchor.update_id:
            reason = f"the lines end at update {replay.market.update_id}, below the state's {anchor.update_id}"
            await self._hot.suspect(0, "", anchor.epoch, 0, reason)

    async def _catch_up_again(self, replay: Replay) -> Reached:
        async with self._phase("catch_up"):
            reached = await replay.catch_up(forgive_trades=True)
            if reached is Reached.MISSING_RANGE:
                raise ExchangeError(f"the lines lack messages after the snapshot: {_missing_range(replay.market)}")
            return reached

    async def _stage(self, market: Market, line_ids: dict[str, str]) -> Candidate:
        now_us = await redis_now_us(self._redis)
        try:
            ob, tr_1s, tr_5s, feat = market.hot_state(now_us)
        except ValueError as error:
            raise ValidationFailed(f"Order book validation failed: {error}") from error
        ob = [*ob, "source", "rest"]
        book = market.pack_book(self.progress.epoch_before + 1, line_ids)
        self.progress.update_id = market.update_id
        if not await self._hot.stage(self.progress.id, ob, tr_1s, tr_5s, feat, book):
            raise await self._refusal(SwapStatus.LOCK_LOST, (await self._hot.anchor()).epoch, "")
        bids, asks = market.levels()
        return Candidate(_pairs(ob), _pairs(tr_1s), _pairs(tr_5s), _pairs(feat), bids, asks)

    def _validate(self, candidate: Candidate, replay: Replay, snapshot: Snapshot) -> None:
        reference = references(snapshot, replay.traded.low, replay.traded.high)
        verdict = validate(candidate, reference, limits_of(snapshot, self.order.price_deviation_max))
        self.progress.checks = verdict.passed
        self.progress.warnings = verdict.warnings if snapshot.trades else (*verdict.warnings, "no trade yet")
        if not verdict.valid:
            raise ValidationFailed("; ".join(verdict.failures))

    async def _swap(self, market: Market, answered: int) -> SwapReply:
        """Swap the state in; again if the reply is lost."""
        progress = self.progress
        for attempt in range(SWAP_REPLIES_MAX):
            try:
                return await self._hot.swap(
                    progress.id,
                    progress.epoch_before,
                    progress.update_id,
                    market.stamp_us,
                    progress.id,
                    answered=answered,
                    expected_receipt=self._anchor.receipt,
                    trade_id=max(0, market.trade_id),
                )
            except RedisUnavailable:
                if attempt == SWAP_REPLIES_MAX - 1:
                    raise
                await asyncio.sleep(REPLY_DELAY_S * (0.8 + 0.4 * random.random()))
        raise AssertionError("the last try returns or raises")

    async def _refusal(self, status: SwapStatus, epoch: int, detail: str) -> SheetAnchorError:
        """Make the error for a refused swap."""
        if epoch != self.progress.epoch_before or status is SwapStatus.EPOCH:
            return Superseded(f"the state is at epoch {epoch} now; this run began at {self.progress.epoch_before}")
        if status is SwapStatus.MISSING:
            return RedisRefused(f"Temporary key missing: {detail}")
        holder = await self._hot.lock_holder()
        if holder:
            return LockHeld(f"the lock was lost to {holder}")
        return Superseded("the lock ran out before this run was done")

    async def _verify(self, reply: SwapReply) -> None:
        """Read back what was swapped in.

        Raises:
            RedisRefused: It is incomplete.
        """
        read = await self._hot.read()
        if read.epoch < reply.epoch:
            raise RedisRefused(f"after the swap: expected epoch {reply.epoch}, found {read.epoch}")
        if read.incomplete:
            raise RedisRefused(f"after the swap: {read.incomplete}")
        packed = await self._hot.book()
        try:
            epoch, _ = Market(self.order.symbol).load_book(packed or b"")
        except ValueError as error:
            raise RedisRefused(f"after the swap: the packed book cannot be read: {error}") from error
        if epoch < reply.epoch:
            raise RedisRefused(f"after the swap: expected the packed book of epoch {reply.epoch}, found {epoch}")

    async def _clean_up(self) -> None:
        """Remove the own staging keys and release the own lock; after a swap neither exists."""
        if not self.progress.locked:
            return
        try:
            async with asyncio.timeout(CLEAN_UP_S):
                await self._hot.unlock(self.progress.id)
        except (RedisError, TimeoutError) as error:
            self.progress.notes.append("lock and staging keys could not be removed, they expire by themselves")
            log.warning("the lock of %s cannot be released, it expires by itself: %s", self.order.symbol, error)

    async def _leave(self, receipt: Receipt) -> None:
        """Write the receipt, from which the run is counted; failing to write it does not fail the run."""
        duration_s = (receipt.finished_at_us - receipt.started_at_us) / 1e6
        if receipt.exit_code == 0:
            log.info("Re-anchor completed for %s in %.2fs: %s", receipt.symbol, duration_s, receipt.message)
        if receipt.result == "repeated":
            return
        try:
            async with asyncio.timeout(CLEAN_UP_S):
                await self._hot.add_receipt(receipt)
        except (RedisError, TimeoutError) as error:
            log.warning("the receipt of %s could not be written to Redis: %s", receipt.symbol, error)


def _missing_range(market: Market) -> str:
    found = market.depth_gap or market.trade_gap
    what = "update" if market.depth_gap else "trade"
    return f"expected {what} {found[0]}, found {found[1]}" if found else "none is missing any more"


def _pairs(flat: list[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
