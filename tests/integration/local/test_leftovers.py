"""A Redis that earlier runs have left in any state is made ready for a run of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from conftest import RedisServer
from sheetanchor.contract import keys
from sheetanchor.errors import BadSettings, RedisUnavailable
from sheetanchor.local import leftovers
from sheetanchor.local.leftovers import clear, refuse_if_alive
from sheetanchor.local.redis_server import check_external
from sheetanchor.store.frame_streams import LineWriter
from sheetanchor.store.hot_state import HotState
from sheetanchor.store.redis_client import redis_client
from support.local_samples import receipt

KEY = keys("BTCUSDT")


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[Redis]:
    """A client of a server of its own."""
    client = redis_client(redis_server.url)
    yield client
    await client.aclose()


async def leave_a_run(redis: Redis) -> HotState:
    """Leave what a run that was killed in a rebuild leaves: frames, a writer, hot keys, staging and a lock."""
    hot = HotState(redis, "BTCUSDT")
    await LineWriter(redis, "BTCUSDT", "a").append([(1, b"frame")])
    await hot.take(7, "dead-writer", 0, "")
    await hot.suspect(7, "dead-writer", 4, 10**12, "a hole at an id that the next market never reaches")
    await hot.lock("reanchor_BTCUSDT_1_dead")
    ob = ["best_bid", "1", "update_id", "5"]
    await hot.stage("reanchor_BTCUSDT_1_dead", ob, ["count", "0"], ["count", "0"], ["ret_1s", "0"], b"book")
    return hot


async def test_old_market_is_gone_and_epoch_and_term_stay(redis: Redis) -> None:
    """Frames, hot keys, staging and lock are removed; what must never go back does not."""
    hot = await leave_a_run(redis)

    await clear(redis, "BTCUSDT", same_market=False)

    assert [KEY.anchor.encode()] == await redis.keys("*")
    anchor = await hot.anchor()
    assert (4, 7, "suspect", 0) == (anchor.epoch, anchor.term, anchor.state, anchor.suspect_id)


async def test_first_anchor_of_the_new_run_cures(redis: Redis) -> None:
    """An id of the old market that the new one never reaches does not keep the state suspect."""
    hot = await leave_a_run(redis)
    await clear(redis, "BTCUSDT", same_market=False)

    await hot.lock("new")
    await hot.stage(
        "new", ["best_bid", "1", "update_id", "5"], ["count", "0"], ["count", "0"], ["ret_1s", "0"], b"book"
    )
    reply = await hot.swap("new", 4, 5, 1, "new")

    assert ("SWAPPED", 5, "anchored") == (reply.status, reply.epoch, reply.state)


async def test_empty_server_is_ready_as_it_is(redis: Redis) -> None:
    """There is nothing to remove, and the state is suspect from the start."""
    await clear(redis, "BTCUSDT", same_market=False)

    assert "suspect" == (await HotState(redis, "BTCUSDT").anchor()).state


@pytest.mark.parametrize("same_market", [True, False])
async def test_receipts_stay_while_they_speak_of_the_same_exchange(redis: Redis, same_market: bool) -> None:
    """A ban by the real exchange outlives the run that earned it; one by a local exchange means nothing to the next."""
    await HotState(redis, "BTCUSDT").add_receipt(receipt("failed", exit_code=3))

    await clear(redis, "BTCUSDT", same_market=same_market)

    assert int(same_market) == await redis.exists(KEY.receipts)


async def test_keys_of_others_are_left_alone(redis: Redis) -> None:
    """Only this symbol's keys are touched."""
    await redis.set("mine", "1")
    await LineWriter(redis, "ETHUSDT", "a").append([(1, b"frame")])

    await clear(redis, "BTCUSDT", same_market=False)

    assert {b"mine", b"sbe:{ETHUSDT}:a", b"lines:{ETHUSDT}"} < set(await redis.keys("*"))


async def test_living_pipeline_is_not_disturbed(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that goes on writing is a reason to refuse."""
    # Its heart beats in this process, which may not get to it for some seconds.
    monkeypatch.setattr(leftovers, "WRITER_GONE_AFTER_US", 3_600_000_000)
    hot = HotState(redis, "BTCUSDT")
    await hot.take(1, "somebody", 0, "")

    async def beat() -> None:
        while True:
            await hot.apply(1, "somebody", 0, 0, 0)
            await asyncio.sleep(0.1)

    beating = asyncio.create_task(beat())
    with pytest.raises(BadSettings, match="another pipeline is writing BTCUSDT"):
        await refuse_if_alive(redis, hot)
    beating.cancel()


async def test_writer_that_has_just_died_is_waited_out(redis: Redis) -> None:
    """After two seconds without a heartbeat the symbol is free."""
    hot = HotState(redis, "BTCUSDT")
    await hot.take(1, "somebody", 0, "")

    await refuse_if_alive(redis, hot)

    assert "somebody" == (await hot.anchor()).writer


async def test_wrong_password_is_a_bad_setting(redis: Redis) -> None:
    """The message has the setting's name and not the password."""
    await redis.config_set("requirepass", "right")
    wrong = redis_client(_url(redis, "wrong"))

    with pytest.raises(BadSettings, match="redis_url") as error:
        await check_external(wrong, _url(redis, "wrong"))

    assert "wrong@" not in str(error.value)
    await wrong.aclose()


def _url(redis: Redis, password: str) -> str:
    return f"redis://:{password}@127.0.0.1:{redis.connection_pool.connection_kwargs['port']}/0"


async def test_server_that_is_not_there_is_named(free_port: int) -> None:
    """After a few seconds one line says which server does not answer."""
    absent = redis_client(f"redis://127.0.0.1:{free_port}/0")

    with pytest.raises(RedisUnavailable, match=f"redis://127.0.0.1:{free_port}/0"):
        await check_external(absent, f"redis://127.0.0.1:{free_port}/0")
    await absent.aclose()


async def test_doubtful_settings_of_the_server_are_reported(redis: Redis) -> None:
    """A server that may evict keys, or may hold next to nothing, is used but warned about."""
    await redis.config_set("maxmemory", "20mb")
    await redis.config_set("maxmemory-policy", "allkeys-lru")

    warnings = await check_external(redis, "redis://x")

    assert 2 == len(warnings)
