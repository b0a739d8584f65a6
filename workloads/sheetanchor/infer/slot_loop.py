"""One symbol's slot loop: every two seconds a consistent read, an answer, one commit.

No failure ends the loop: every call is bounded, a slot that cannot be read is answered from the last read, one that
cannot be committed is still answered over HTTP. Nothing is queued from one slot to the next.

One module, since reading, answering, committing and scoring share one slot's time and the same memory of what was read.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Final, TypeVar

from prometheus_client import Gauge
from redis.asyncio import Redis

from sheetanchor.contract import SLOT_MS, keys, slot_of, slot_start_us
from sheetanchor.errors import RedisError, RedisUnavailable, message_of
from sheetanchor.infer.accuracy import SLOTS_24H, AccuracyTracker, PredictionResult, RollingAccuracy, has_degraded
from sheetanchor.infer.dry_runs import WARM_BEFORE_S, DryRuns
from sheetanchor.infer.linear_trend import TREND_POINTS_MAX, linear_return
from sheetanchor.infer.model_fallback import ModelFallbackChain
from sheetanchor.infer.prediction import (
    NO_DATA_AFTER_US,
    Doubt,
    ModelAnswer,
    Prediction,
    SlotState,
    WriterHeartbeat,
    aged,
    build,
    doubts_of,
    nothing_read,
    without_model,
)
from sheetanchor.infer.slot_times import SlotTimes
from sheetanchor.infer.slots import COMMIT_UNTIL_US, OWN_DEGRADED_WAIT_US, first_served, next_turn, until_us
from sheetanchor.runtime import metrics
from sheetanchor.store.hot_records import CommitReply, CommitStatus, HotRead
from sheetanchor.store.hot_state import HotState
from sheetanchor.store.redis_connection import translate_errors
from sheetanchor.store.server_clock import RedisClock

log = logging.getLogger(__name__)

T = TypeVar("T")

CALL_TIMEOUT_S: Final = 0.4
"""Time-out of each call of Redis. Two of them and the wait of a degraded replica fit into a slot."""

READ_UNTIL_US: Final = 500_000
"""After this a slot is answered from the last read, so that time is left for its commit."""

RETRY_S: Final = 0.05
REFUSED_SLOT: Final = 0
"""The first two seconds of 1970, never the current slot: Redis refuses a commit for it and writes nothing."""

HISTORY_MAX: Final = 450
"""Records kept for HTTP: fifteen minutes, as long as raw frames are kept."""

RECENT_SLOTS: Final = 5
"""A replica whose last record of a symbol is older than this has stopped serving it."""

PAGE: Final = 500
"""Entries per read when the last day's predictions are scored at the start."""


class SlotLoop:
    """The predictions of one symbol.

    One class, since every step of a slot reads and changes what the next slot begins with.

    Args:
        redis: Client to use; its replies must not be decoded.
        symbol: Trading pair.
        replica: Name of this replica.
        chain: The symbol's chain of models.
        warm_runs: Dry runs just before a slot.
        heartbeat: Called in each turn of the loop.
    """

    def __init__(
        self,
        redis: Redis,
        symbol: str,
        replica: str,
        chain: ModelFallbackChain,
        *,
        warm_runs: int = 3,
        heartbeat: Callable[[], None] = lambda: None,
    ) -> None:
        self.symbol = symbol
        self.connected = False
        self.last_failure = ""
        self.state: SlotState | None = None
        self.last_slot: int | None = None
        self.times = SlotTimes()
        self._heard = WriterHeartbeat()
        self._redis = redis
        self._hot = HotState(redis, symbol)
        self._replica = replica
        self._chain = chain
        self._dry_runs = DryRuns(self._rehearse, warm_runs)
        self._heartbeat = heartbeat
        self._clock = RedisClock()
        self._records: deque[Prediction] = deque(maxlen=HISTORY_MAX)
        self._results_by_slot: dict[int, PredictionResult] = {}
        self._tracker = AccuracyTracker()
        self._mids: deque[tuple[int, float]] = deque(maxlen=TREND_POINTS_MAX)
        self._alerted = False

    @property
    def now_us(self) -> int:
        """Redis' clock; this machine's until Redis has answered once."""
        monotonic_us = time.monotonic_ns() // 1_000
        return self._clock.now_us(monotonic_us) if self._clock.known else time.time_ns() // 1_000

    @property
    def age_us(self) -> int | None:
        """Time since the last market event that this replica knows."""
        return None if self.state is None else aged(self.state, self.now_us, "").age_us

    @property
    def _windows(self) -> dict[str, RollingAccuracy]:
        return {"1h": self._tracker.last_1h, "24h": self._tracker.last_24h}

    def accuracy(self) -> dict[str, float | None]:
        """Give the directional accuracy over the last hour and day."""
        return {name: window.value for name, window in self._windows.items()}

    def decided(self) -> dict[str, int]:
        """Give the numbers of decided predictions behind these accuracies."""
        return {name: window.decided for name, window in self._windows.items()}

    @property
    def can_serve(self) -> bool:
        """Whether a reader over HTTP gets an answer here.

        The first slot has been served, recent ones were not left out, and there is Redis to read from, a model to
        answer with, or an earlier answer.
        """
        if not self._records or self._records[-1].slot + RECENT_SLOTS < slot_of(self.now_us):
            return False
        return self.connected or bool(self._chain.loaded) or self._records[-1].mode != "none"

    def latest(self, limit: int) -> list[tuple[Prediction, PredictionResult | None]]:
        """Give the last predictions, newest first, with their results where they are known."""
        records = list(self._records)[-limit:]
        return [(record, self._results_by_slot.get(record.slot)) for record in reversed(records)]

    async def run(self, stop: asyncio.Event) -> None:
        """Serve slot after slot until `stop` is set; the current slot is finished."""
        self._show_zeros()
        await self._load_recent()
        self.last_slot = first_served(self.now_us, self._records[-1].slot if self._records else None)
        while not stop.is_set():
            self._heartbeat()
            turn = next_turn(self.now_us, self.last_slot)
            if turn.skipped:
                log.warning("%s: %d slots were not served before slot %d", self.symbol, turn.skipped, turn.slot)
            if not await self._wait(turn.slot, stop):
                continue
            served = await self._serve(turn.slot)
            if served:
                self.last_slot = turn.slot

    async def _wait(self, slot: int, stop: asyncio.Event) -> bool:
        """Wait for a slot to begin; false when `stop` is set before."""
        early_s = self._left_s(slot) - WARM_BEFORE_S
        if early_s > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(early_s):
                    await stop.wait()
                return False
        await self._dry_runs.until(lambda: self._left_s(slot))
        return True

    def _left_s(self, slot: int) -> float:
        """Give the seconds until a slot begins, 0 when it has."""
        return until_us(slot, self.now_us, 0) / 1e6

    async def _rehearse(self) -> None:
        """Run through a slot's calls: nothing of it is stored, counted, logged or written.

        Redis refuses the commit. A failure here is not reported: the slot fails too, and reports it.
        """
        with suppress(RedisError, ValueError):
            state = self._state_of(*await self._observe())
            trend = linear_return(list(self._mids), state.now_us)
            answer = await self._chain.warm(1, state) or without_model(trend, ())
            prediction = build(REFUSED_SLOT, state, answer, self._replica)
            await self._timed(
                lambda: self._hot.commit_prediction(REFUSED_SLOT, prediction.fields()), lambda reply: reply.now_us
            )

    async def _observe(self) -> tuple[HotRead, WriterHeartbeat]:
        """Read the state, and since when its writer's last heartbeat has been known.

        Raises:
            RedisError: It could not be read.
            ValueError: What was read is no hot state.
        """
        read = await self._timed(self._hot.read, lambda read: read.now_us)
        return read, self._heard.again(int(read.anchor.get("beat_us", 0)), time.monotonic_ns() // 1_000)

    async def _serve(self, slot: int) -> bool:
        """Serve a slot; false when by Redis' clock it has not begun yet."""
        times = self.times = SlotTimes(self._clock.monotonic_us(slot_start_us(slot)) * 1_000)
        state = await self._read(slot)
        times.read_ns = time.monotonic_ns()
        if not state.failure and state.now_us < slot_start_us(slot):
            return False
        answer = await self._answer(slot, state)
        times.answered_ns = time.monotonic_ns()
        times.features_s, times.model_s = answer.features_s, answer.model_s
        prediction = build(slot, state, answer, self._replica)
        if state.failure:
            # Redis may be unreachable for the whole slot: readers over HTTP get an answer now.
            self._remember(prediction)
        record = await self._commit(prediction, answer.own_degraded or bool(state.failure)) or prediction
        self._remember(record)
        self._report(state, record)
        times.done_ns = time.monotonic_ns()
        return True

    async def _read(self, slot: int) -> SlotState:
        """Read the state, again if it fails and there is time; else give the last one that was read."""
        while True:
            self.times.begun_ns = time.monotonic_ns()
            try:
                read, self._heard = await self._observe()
                state = self._state_of(read, self._heard)
            except RedisError as error:
                failure = str(error)
                self._on_redis_lost(failure)
            except ValueError as error:
                # The keys hold no valid hot state; every replica sees the same, and the next rebuild replaces it.
                self._on_redis_back()
                before = self.state or nothing_read(self.now_us, "")
                unreadable = f"the hot state cannot be read: {message_of(error)}"
                return replace(aged(before, self.now_us, ""), incomplete=unreadable)
            else:
                self.times.read_s = (time.monotonic_ns() - self.times.begun_ns) / 1e9
                self._on_redis_back()
                self.state = state
                return state
            if until_us(slot, self.now_us, READ_UNTIL_US) <= 0:
                before = self.state or nothing_read(self.now_us, failure)
                return aged(before, self.now_us, failure)
            await asyncio.sleep(RETRY_S * (1 + random.random()))

    @staticmethod
    def _state_of(read: HotRead, heard: WriterHeartbeat) -> SlotState:
        anchor = read.anchor
        return SlotState(
            now_us=read.now_us,
            epoch=read.epoch,
            anchored=anchor.get("state") == "anchored",
            suspect_reason=anchor.get("reason", ""),
            incomplete=read.incomplete,
            stamp_us=int(anchor.get("stamp_us", 0)),
            hashes={"ob": read.ob, "tr_1s": read.tr_1s, "tr_5s": read.tr_5s, "feat": read.feat},
            heartbeat_us=heard.heartbeat_us,
            sound_until_us=int(anchor["sound_until_us"]) if "sound_until_us" in anchor else None,
            unsound=anchor.get("unsound", ""),
            unmoved_us=time.monotonic_ns() // 1_000 - heard.at_us,
            receipt=anchor.get("receipt", ""),
        )

    async def _answer(self, slot: int, state: SlotState) -> ModelAnswer:
        doubts = doubts_of(state)
        price = state.price
        if price is not None and not doubts:
            self._mids.append((state.now_us, price))
        age_us = state.age_us
        if price is None or age_us is None or age_us > NO_DATA_AFTER_US:
            return without_model(None, [] if doubts else [Doubt("features", "the book has no price")])
        trend = linear_return(list(self._mids), state.now_us)
        recover_s = until_us(slot, self.now_us, OWN_DEGRADED_WAIT_US) / 1e6
        return await self._chain.answer(state, trend, recover_s)

    async def _commit(self, prediction: Prediction, own_degraded: bool) -> Prediction | None:
        """Commit, again if it fails and there is time; gives the slot's record in Redis, None if that is unknown."""
        slot = prediction.slot
        if own_degraded:
            await asyncio.sleep(until_us(slot, self.now_us, OWN_DEGRADED_WAIT_US) / 1e6)
        while until_us(slot, self.now_us, COMMIT_UNTIL_US) > 0:
            self.times.recorded_ns = time.monotonic_ns()
            try:
                reply = await self._timed(
                    lambda: self._hot.commit_prediction(slot, prediction.fields(), own_degraded=own_degraded),
                    lambda reply: reply.now_us,
                )
            except RedisError as error:
                self._on_redis_lost(str(error))
                self._remember(prediction)
            else:
                self.times.committed_ns = time.monotonic_ns()
                metrics.STAGE_DURATION.labels("commit").observe(self.times.commit_s)
                self._on_redis_back()
                if reply.status != CommitStatus.EARLY:
                    return await self._committed(prediction, reply)
            await asyncio.sleep(RETRY_S * (1 + random.random()))
        metrics.PREDICTIONS.labels(self.symbol, prediction.mode, "UNREACHABLE").inc()
        return None

    def _on_redis_lost(self, failure: str) -> None:
        """Log once that Redis fails; predictions name it in their reason as long as it lasts."""
        if self.connected or self.last_failure == "":
            log.warning("%s: Redis fails, predictions are made from the last read: %s", self.symbol, failure)
        self.connected, self.last_failure = False, failure

    def _on_redis_back(self) -> None:
        if not self.connected and self.last_failure:
            log.info("%s: Redis answers again", self.symbol)
        self.connected, self.last_failure = True, ""

    async def _committed(self, prediction: Prediction, reply: CommitReply) -> Prediction | None:
        metrics.PREDICTIONS.labels(self.symbol, prediction.mode, str(reply.status)).inc()
        if reply.status == CommitStatus.COMMITTED:
            metrics.PREDICTION_LATENCY.labels(self.symbol).observe(reply.latency_ms / 1_000)
            return replace(prediction, latency_ms=reply.latency_ms, committed=True)
        if reply.status == CommitStatus.REFUSED:
            log.warning("%s: %s", self.symbol, reply.detail)
            return None
        try:
            return await self._timed(lambda: self._stored(prediction.slot), lambda _: 0)
        except RedisError as error:
            log.warning("%s: slot %d is committed, but cannot be read: %s", self.symbol, prediction.slot, error)
            return None

    async def _stored(self, slot: int) -> Prediction | None:
        """Read the record that another replica has committed for a slot."""
        with translate_errors(f"HGETALL {keys(self.symbol).pred}"):
            raw: Any = await self._redis.hgetall(keys(self.symbol).pred)
        stored = _parse(raw)
        return stored if stored is not None and stored.slot == slot else None

    async def _timed(self, call: Callable[[], Awaitable[T]], redis_us: Callable[[T], int]) -> T:
        """Make a bounded call and update Redis' clock from its reply.

        Raises:
            RedisError: It failed or timed out.
        """
        sent_us = time.monotonic_ns() // 1_000
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                result = await call()
        except TimeoutError:
            raise RedisUnavailable(f"Redis did not answer within {CALL_TIMEOUT_S * 1000:.0f} ms") from None
        if (redis_now_us := redis_us(result)) > 0:
            self._clock.learn(sent_us, time.monotonic_ns() // 1_000, redis_now_us)
        return result

    def _remember(self, prediction: Prediction) -> None:
        """Keep a record; a committed one replaces this replica's own."""
        if self._records and self._records[-1].slot == prediction.slot:
            self._records[-1] = prediction
        else:
            self._records.append(prediction)

    def _report(self, state: SlotState, prediction: Prediction) -> None:
        if self.times.read_s:
            metrics.STAGE_DURATION.labels("read").observe(self.times.read_s)
        self._score(prediction)
        self._show_accuracy()
        # An unknown age counts as older than any limit.
        metrics.FEATURE_AGE.labels(self.symbol).set(math.inf if state.age_us is None else state.age_us / 1e6)
        if prediction.degraded:
            kind = prediction.reason.partition(":")[0]
            metrics.DEGRADED_PREDICTIONS.labels(self.symbol, kind).inc()

    def _score(self, prediction: Prediction) -> None:
        result = self._tracker.add(prediction.slot, prediction.direction, prediction.sound_price, prediction.model)
        if result is None:
            return
        self._results_by_slot[result.slot] = result
        while len(self._results_by_slot) > HISTORY_MAX:
            del self._results_by_slot[next(iter(self._results_by_slot))]

    def _show_zeros(self) -> None:
        """Export every series from the start: otherwise the first event would not count as an increase."""
        metrics.PREDICTIONS.labels(self.symbol, "model", str(CommitStatus.COMMITTED))
        metrics.ALERTS.labels("MODEL_ACCURACY")

    def _show_accuracy(self) -> None:
        for window, known in self._windows.items():
            _show(metrics.ACCURACY, known.value, self.symbol, window)
            metrics.DECIDED.labels(self.symbol, window).set(known.decided)
        version, baseline = "".join(self._chain.loaded), self._chain.baseline_accuracy
        of_model = self._tracker.of_model(version)
        _show(metrics.MODEL_ACCURACY, of_model.value, self.symbol)
        metrics.MODEL_DECIDED.labels(self.symbol).set(of_model.decided)
        metrics.BASELINE_ACCURACY.labels(self.symbol).set(baseline or 0)  # 0 means that none was recorded
        degraded = has_degraded(of_model, baseline)
        if degraded and not self._alerted:
            metrics.ALERTS.labels("MODEL_ACCURACY").inc()
            log.error(
                "MODEL_ACCURACY: %s: %s was right in %.3f of %d decided predictions of one hour, in training in %.3f",
                self.symbol,
                version,
                of_model.value,
                of_model.decided,
                baseline,
            )
        self._alerted = degraded

    async def _load_recent(self) -> None:
        """Score what was committed within the last day, so that a restart does not forget it."""
        begin = f"{max(0, self.now_us // 1_000 - SLOTS_24H * SLOT_MS)}-0"
        try:
            while begin:
                begin = await self._timed(partial(self._load_page, begin), lambda _: 0)
        except RedisError as error:
            log.warning("%s: earlier predictions cannot be read and do not count: %s", self.symbol, error)

    async def _load_page(self, begin: str) -> str:
        """Score a page of the history; gives the id at which the next one begins, "" after the last."""
        stream = keys(self.symbol).preds
        with translate_errors(f"XRANGE {stream}"):
            page: Any = await self._redis.xrange(stream, min=begin, count=PAGE)
        for _, fields in page:
            record = _parse(fields)
            if record is not None and (not self._records or record.slot > self._records[-1].slot):
                self._remember(record)
                self._score(record)
                if (price := record.sound_price) is not None:
                    self._mids.append((record.ts, price))
        return f"({page[-1][0].decode()}" if len(page) == PAGE else ""


def _show(gauge: Gauge, value: float | None, *labels: str) -> None:
    """Export a value; without one remove the series, since an old value would look like a present one."""
    if value is None:
        with suppress(KeyError):  # the series does not exist
            gauge.remove(*labels)
    else:
        gauge.labels(*labels).set(value)


def _parse(raw: dict[bytes, bytes]) -> Prediction | None:
    try:
        return Prediction.parse({name.decode(): value.decode() for name, value in raw.items()})
    except (KeyError, ValueError):
        return None  # written by another version, or not by this program
