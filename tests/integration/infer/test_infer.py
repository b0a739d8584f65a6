"""Replicas as their users run them: real processes, a real Redis server, real models."""

from __future__ import annotations

import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from conftest import RedisServer, wait_until
from sheetanchor.contract import HORIZON_SLOTS, keys, slot_of
from sheetanchor.store.hot_state import HotState
from support.inference_parts import RETURN, Market, Replica, committed, holes, promoted, rebuild, replicas

KEYS = keys("BTCUSDT")
TRIES = 5


def check_of(replica: Replica, name: str) -> str:
    """The state of one dependency in a replica's health."""
    return str(replica.get("/health")[1]["checks"][name]["status"])


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A registry with one sound model."""
    promoted(tmp_path / "models")
    return tmp_path / "models"


@pytest.fixture
def market(redis_server: RedisServer) -> Iterator[Market]:
    with Market(redis_server.url) as running:
        yield running


def _sound(record: dict[str, Any]) -> bool:
    return bool(record["committed"]) and not record["degraded"]


def _at_once(record: dict[str, Any]) -> bool:
    """Whether it is degraded and did not wait: no replica could know better. If the machine is busy, a later slot."""
    return record["degraded"] and record["committed"] and record["latency_ms"] < 500


def test_a_sound_state_gives_a_sound_prediction(
    redis_server: RedisServer, market: Market, models: Path, tmp_path: Path
) -> None:
    """The record over HTTP is the one in Redis; health, metrics and unknown symbols are answered."""
    with replicas(redis_server.url, models, tmp_path, "a") as [replica]:
        record = replica.wait_for(_sound, "a sound prediction")

        stored = next(fields for fields in committed(redis_server.url) if int(fields["slot"]) == record["slot"])
        assert ("model", "up", "a", market.epoch) == tuple(
            record[name] for name in ("mode", "direction", "replica", "epoch")
        )
        assert pytest.approx(RETURN) == record["predicted_return"]
        assert (record["price_now"], record["feature_ts"], record["latency_ms"]) == (
            float(stored["price_now"]),
            int(stored["feature_ts"]),
            float(stored["latency_ms"]),
        )
        assert (record["slot"], 0) == (slot_of(record["ts"]), record["ts"] % 2_000_000)
        wait_until(lambda: check_of(replica, "models") == "healthy", within_s=5, what="the models are healthy")
        assert [record["model"]] == replica.get("/health")[1]["checks"]["models"]["loaded_models"]
        status, body = replica.get("/predictions/ETHUSDT")
        assert (404, "NOT_FOUND") == (status, body["error"]["code"])
        assert "ETHUSDT" in body["error"]["message"]
        assert 422 == replica.get("/predictions/BTCUSDT?limit=0")[0]
        assert {"symbols": ["BTCUSDT"]} == replica.get("/predictions")[1]

        assert 0 == replica.end()
        assert '"Shutdown complete"' in replica.log_path.read_text()


async def _doubt(hot: HotState, redis: Redis) -> None:
    anchor = await hot.anchor()
    assert (await hot.suspect(anchor.term, "market", anchor.epoch, 0, "depth: expected 124, found 131")).ok


async def _cure(hot: HotState, redis: Redis) -> None:
    await rebuild(hot)


def test_every_doubt_about_the_state_is_reported_and_a_rebuild_is_none(
    redis_server: RedisServer, market: Market, models: Path, tmp_path: Path
) -> None:
    """Suspect, old and garbled states degrade with their reason; a rebuild in progress does not; slots go on."""
    with replicas(redis_server.url, models, tmp_path, "a") as [replica]:
        replica.wait_for(_sound, "a sound prediction")

        market.do(_doubt)
        told = "suspect: depth: expected 124, found 131"
        record = replica.wait_for(lambda found: _at_once(found) and found["reason"] == told, "a degraded prediction")
        assert "model" == record["mode"]

        market.do(_lock_and_cure)
        record = replica.wait_for(lambda found: _sound(found) and found["epoch"] == 2, "a sound one after the rebuild")
        market.do(_lock)
        slot = record["slot"]
        replica.wait_for(lambda found: found["slot"] > slot and _sound(found), "a prediction while rebuilding")

        market.stamps = False
        old = "stale: last market event "
        record = replica.wait_for(lambda found: found["reason"].startswith(old), "an old state")
        assert record["ts"] - record["feature_ts"] > 4_900_000

        market.stamps = True
        market.do(_garble)
        record = replica.wait_for(lambda found: "of epoch" in found["reason"], "an anchor that cannot be trusted")
        assert not holes(committed(redis_server.url))


async def _lock_and_cure(hot: HotState, redis: Redis) -> None:
    await rebuild(hot)


async def _lock(hot: HotState, redis: Redis) -> None:
    assert await hot.lock("somebody")


async def _garble(hot: HotState, redis: Redis) -> None:
    await redis.hset(KEYS.anchor, "epoch", "many")


def test_an_incomplete_state_is_reported(
    redis_server: RedisServer, market: Market, models: Path, tmp_path: Path
) -> None:
    """A missing key gives a prediction that says which one, at once, and by whatever is left."""

    async def wipe(hot: HotState, redis: Redis) -> None:
        # The processor is gone, and with it the features; the order book stays.
        market.epoch = -1
        await redis.delete(KEYS.feat)

    with replicas(redis_server.url, models, tmp_path, "a") as [replica]:
        replica.wait_for(_sound, "a sound prediction")

        market.do(_forever(wipe))
        record = replica.wait_for(
            lambda found: _at_once(found) and found["reason"].startswith("incomplete: "), "a degraded prediction"
        )

        assert "feat" in record["reason"]
        assert record["mode"] in ("linear_trend", "none")


def _forever(wish: Callable[[HotState, Redis], Awaitable[None]]) -> Callable[[HotState, Redis], Awaitable[None]]:
    """Keep another writer's term, so that the market's writes are fenced off from now on."""

    async def done(hot: HotState, redis: Redis) -> None:
        anchor = await hot.anchor()
        await hot.take(anchor.term + 1, "other", anchor.term, anchor.writer, force=True)
        await wish(hot, redis)

    return done


def test_two_replicas_make_one_record_a_slot_and_one_may_die(
    redis_server: RedisServer, market: Market, models: Path, tmp_path: Path
) -> None:
    """Both show the same records; SIGKILL of one in the middle leaves no slot out; its successor comes back."""
    with replicas(redis_server.url, models, tmp_path, "a", "b") as [first, second]:
        for replica in (first, second):
            replica.wait_for(_sound, "a sound prediction")
        slot = second.latest()["slot"]
        second.wait_for(lambda found: found["slot"] > slot + 1 and found["committed"], "two more slots")
        # Of a slot that has gone by, whatever the phase of the present one.
        wait_until(lambda: _of(first, slot + 1) == _of(second, slot + 1), within_s=10, what="both show the same record")
        assert _of(first, slot + 1)["committed"]

        first.end(signal.SIGKILL)
        second.wait_for(lambda found: found["slot"] > slot + 3 and found["committed"], "slots after the death")

        records = committed(redis_server.url)
        assert [] == holes(records)
        assert len(records) == len({fields["slot"] for fields in records})


def _of(replica: Replica, slot: int) -> dict[str, Any]:
    """A slot's record of a replica, whatever became of it since; empty if it has none."""
    records = replica.get("/predictions/BTCUSDT?limit=20")[1]["predictions"]
    return next((dict(record) for record in records if record["slot"] == slot), {})


@pytest.mark.slow
def test_a_replica_without_a_model_leaves_the_slot_to_a_sound_one(
    redis_server: RedisServer, market: Market, models: Path, tmp_path: Path
) -> None:
    """Alone it commits late and degraded; beside a sound replica its records never win."""
    with replicas(redis_server.url, tmp_path / "none", tmp_path, "poor") as [poor]:
        record = poor.wait_for(lambda found: found["mode"] == "linear_trend", "a trend, once there are prices")
        assert record["reason"].startswith("model: ")
        assert (0.1, True) == (record["confidence"], record["degraded"])
        poor.wait_for(lambda found: found["committed"] and found["latency_ms"] >= 500, "a late commit")
        wait_until(lambda: check_of(poor, "models") == "degraded", within_s=5, what="the want of a model shows")

        with replicas(redis_server.url, models, tmp_path, "rich") as [rich]:
            slot = rich.wait_for(_sound, "a sound prediction")["slot"]
            poor.wait_for(lambda found: found["slot"] > slot + 2 and found["committed"], "three slots together")

        together = [fields for fields in committed(redis_server.url) if int(fields["slot"]) > slot]
        # The sound one wins, unless a busy machine keeps it from answering until the other one's wait is over.
        assert "rich" in {fields["replica"] for fields in together}
        assert [] == [one for one in together if one["replica"] == "poor" and float(one["latency_ms"]) < 500]


def test_readers_are_sent_to_a_replica_from_its_first_slot_on(
    redis_server: RedisServer, market: Market, models: Path, tmp_path: Path
) -> None:
    """Until then it is not ready, with either of its symbols; from then on it answers clients."""
    both = ("--symbol", "BTCUSDT", "--symbol", "ETHUSDT")
    statuses: list[int] = []
    for _ in range(TRIES):  # on a busy machine the question may not fall between its first answer and its first slot
        statuses.clear()
        with replicas(redis_server.url, models, tmp_path, "a", flags=both) as [one]:

            def is_ready(one: Replica = one) -> bool:
                statuses.append(one.get("/health/ready")[0])
                return statuses[-1] == 200

            wait_until(is_ready, within_s=20, what="it is ready")
            answered = [one.get(f"/predictions/{symbol}")[0] for symbol in ("BTCUSDT", "ETHUSDT")]
        assert [200, 200] == answered
        if 503 in statuses:
            break

    assert 503 in statuses


def test_a_replica_with_nothing_to_answer_from_gets_no_readers(free_port: int, tmp_path: Path) -> None:
    """No Redis, no model, nothing from before: it lives, serves its slots and is not ready."""
    with replicas(f"redis://127.0.0.1:{free_port}/0", tmp_path / "none", tmp_path, "a") as [replica]:
        record = replica.wait_for(lambda found: found["mode"] == "none", "an answer of nothing")
        replica.wait_for(lambda found: found["slot"] > record["slot"], "the next one")

        assert (503, 503, 200) == tuple(replica.get(f"/health{path}")[0] for path in ("", "/ready", "/live"))


def test_an_empty_redis_and_no_model_still_give_predictions(redis_server: RedisServer, tmp_path: Path) -> None:
    """Confidence 0, no price, committed, and an HTTP status of 200."""
    with replicas(redis_server.url, tmp_path / "none", tmp_path, "a") as [replica]:
        record = replica.wait_for(lambda found: found["committed"], "a committed prediction")

        assert ("none", "flat", 0.0, True) == tuple(
            record[name] for name in ("mode", "direction", "confidence", "degraded")
        )
        assert (None, None) == (record["price_now"], record["feature_ts"])
        assert "" == committed(redis_server.url)[0]["price_now"]


@pytest.mark.slow
def test_a_redis_that_hangs_dies_and_comes_back_empty(redis_server: RedisServer, models: Path, tmp_path: Path) -> None:
    """Meanwhile every slot is answered over HTTP as not committed; afterwards everything goes on by itself."""
    with Market(redis_server.url) as market, replicas(redis_server.url, models, tmp_path, "a") as [replica]:
        replica.wait_for(_sound, "a sound prediction")
        assert redis_server.process is not None

        redis_server.process.send_signal(signal.SIGSTOP)
        record = replica.wait_for(lambda found: not found["committed"] and found["degraded"], "an answer from memory")
        slot = record["slot"]
        record = replica.wait_for(lambda found: found["slot"] > slot + 1, "two more slots, in time")
        assert (False, 100.0) == (record["committed"], record["price_now"])
        assert record["reason"].startswith("redis: ")
        redis_server.process.send_signal(signal.SIGCONT)
        replica.wait_for(_sound, "a sound prediction after the pause")

        redis_server.stop()
        replica.wait_for(lambda found: not found["committed"] and found["degraded"], "an answer without Redis")
        wait_until(lambda: check_of(replica, "redis") == "unhealthy", within_s=8, what="the loss of Redis shows")
        assert (503, 200) == (replica.get("/health")[0], replica.get("/health/ready")[0])
        redis_server.start()
        record = replica.wait_for(_sound, "a sound prediction from the new server")
        assert 1 == record["epoch"] == market.epoch
        body = replica.get("/predictions/BTCUSDT?limit=450")[1]
        slots = [record["slot"] for record in body["predictions"]]
        assert list(range(slots[0], slots[-1] - 1, -1)) == slots


@pytest.mark.slow
def test_outcomes_follow_ten_seconds_later(
    redis_server: RedisServer, market: Market, models: Path, tmp_path: Path
) -> None:
    """A rising price makes `up` true; a replica that starts later scores what others have committed."""
    with replicas(redis_server.url, models, tmp_path, "a") as [replica]:
        slot = replica.wait_for(_sound, "a sound prediction")["slot"]
        market.price = 101.0
        replica.wait_for(lambda found: found["slot"] > slot + HORIZON_SLOTS, "ten seconds pass")

        scored = _record(replica, slot)
        assert pytest.approx(0.01) == scored["actual_return"]
        assert (True, 101.0) == (scored["correct"], scored["actual_price"])
        assert 1.0 == replica.latest()["directional_accuracy"]["24h"]

        with replicas(redis_server.url, models, tmp_path, "b") as [late]:
            late.wait_for(lambda found: found["committed"], "a prediction of the newcomer")
            assert scored == _record(late, slot)


def _record(replica: Replica, slot: int) -> dict[str, Any]:
    records = replica.get("/predictions/BTCUSDT?limit=450")[1]["predictions"]
    return next(dict(record) for record in records if record["slot"] == slot)


def test_a_promotion_reaches_a_running_replica(
    redis_server: RedisServer, market: Market, models: Path, tmp_path: Path
) -> None:
    """A new model answers within a slot or two of its promotion, and no slot is lost over it."""
    with replicas(redis_server.url, models, tmp_path, "a") as [replica]:
        replica.wait_for(_sound, "a sound prediction")

        promoted(models, -RETURN, "later")
        record = replica.wait_for(lambda found: found["model"].startswith("later@"), "the new model", within_s=8)

        assert "down" == record["direction"]
        assert [] == holes(committed(redis_server.url))


def test_a_wrong_password_is_one_clear_error(tmp_path: Path) -> None:
    """The process ends at once and says what Redis refused."""
    server = RedisServer(tmp_path, "--requirepass", "secret").start()
    try:
        with replicas(server.url, tmp_path / "none", tmp_path, "a") as [replica]:
            wait_until(lambda: replica.process.poll() is not None, within_s=20, what="the process ends")

            assert 1 == replica.process.returncode
            assert "Redis refused PING" in replica.log_path.read_text()
    finally:
        server.stop()


def test_the_current_slot_is_finished_at_the_end(redis_server: RedisServer, market: Market, tmp_path: Path) -> None:
    """A replica that waits with its degraded answer still commits it before it ends."""
    slot = last = 0
    for _ in range(TRIES):  # on a busy machine it may not have begun the slot yet when it is asked to end
        with replicas(redis_server.url, tmp_path / "none", tmp_path, "a") as [replica]:
            replica.wait_for(lambda found: found["committed"], "a committed prediction")
            slot = slot_of(time.time_ns() // 1_000) + 1
            begun_us = slot * 2_000_000 + 200_000
            wait_until(lambda at=begun_us: time.time_ns() // 1_000 > at, within_s=5, what="the slot begins")

            assert 0 == replica.end()

            last = int(committed(redis_server.url)[-1]["slot"])
            if last == slot:
                break

    assert slot == last
