"""Restating a writer's memory, on a real server: each fence keeps out what it is for, and without it that gets in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from conftest import RedisServer
from sheetanchor.errors import RedisRefused
from sheetanchor.store.function_library import library_source
from sheetanchor.store.hot_records import Anchor, RestateStatus
from sheetanchor.store.hot_state import HotState
from support.hot_state_cases import BOOK, ends_s, fingerprint, stage
from support.restate_world import FENCES, KEYS, Prepared, World, library_without, prepare, send

HELD = (1, "r1", "r1")
SECOND = 1_000_000


@pytest.fixture
async def world(redis: Redis, each_server: RedisServer) -> AsyncIterator[World]:
    """Anchored by writer a, then gone back to where update 100 was; a's memory is at 105."""
    await redis.function_load(library_source(), replace=True)
    made = World(redis)
    await made.begin()
    assert "OK" == await made.apply(105)
    await made.go_back()
    yield made
    await redis.function_load(library_source(), replace=True)


async def ready(world: World) -> Prepared:
    """What a restates with."""
    return await prepare(world, "a", 105, HELD)


def anchor_without_times(anchor: Anchor) -> Anchor:
    """An anchor as far as it does not depend on the clock."""
    return replace(anchor, heartbeat_us=0, anchored_at=0, stamp_us=0)


async def test_the_memory_becomes_the_hot_state(world: World, redis: Redis) -> None:
    """All five keys at once, of the next epoch, anchored, with the root of before and the pipeline's id."""
    await redis.set(KEYS.lock, "a run that died with its zone")
    reply = await send(world, await ready(world))

    read, anchor = await world.hot.read(), await world.hot.anchor()
    assert (RestateStatus.RESTATED, 2, "anchored") == (reply.status, reply.epoch, reply.state)
    expected = Anchor(2, 1, "a", 0, 105, 0, 0, reply.receipt, "anchored", root="r1", dataset="mine", unvalidated=1)
    assert expected == anchor_without_times(anchor)
    assert ["105"] * 3 == [read.ob["update_id"], read.tr_1s["count"], read.feat["ret_1s"]]
    assert ("", True, BOOK + b"105") == (read.incomplete, read.rebuilding, await world.hot.book())
    assert abs(anchor.heartbeat_us - reply.now_us) < 1_000
    assert [-1, -1] == [await redis.ttl(KEYS.ob), await redis.ttl(KEYS.book)]
    ends = [await ends_s(redis, key, reply.now_us) for key in (KEYS.tr_5s, KEYS.feat)]
    assert ends == [pytest.approx(seconds, abs=1) for seconds in (300, 120)]


async def test_it_is_written_where_nothing_is_left(world: World, redis: Redis) -> None:
    """An empty server is not suspect: the memory is stored above the epoch that the writer knows of."""
    names = [name async for name in redis.scan_iter()]
    await redis.delete(*names)
    assert (await world.hot.take(7, "a", 0, "", known_term=6, dataset="mine")).ok
    prepared = await prepare(world, "a", 105, (5, "r5", "r3"))

    reply = await send(world, replace(prepared, term=7))

    assert (RestateStatus.RESTATED, 6, "r3") == (reply.status, reply.epoch, reply.root)


async def test_a_swap_that_began_before_is_refused(world: World) -> None:
    """The lock does not keep a restatement out; the restatement keeps the run out that holds it."""
    assert await world.hot.lock("run")
    prepared = await ready(world)
    assert (await send(world, prepared)).ok

    reply = await world.hot.swap("run", 1, 110, 110, "r2", expected_receipt="r1")

    assert "EPOCH" == reply.status


async def test_a_validation_ends_the_count(world: World) -> None:
    """Of restatements without one; of another state it says nothing."""
    reply = await send(world, await ready(world))

    other = await world.hot.validated(2, "r1")
    counts = [(await world.hot.anchor()).unvalidated]
    this = await world.hot.validated(2, reply.receipt)
    counts.append((await world.hot.anchor()).unvalidated)

    assert ("EPOCH", "OK", [1, 0]) == (other.status, this.status, counts)


@pytest.mark.parametrize("part", range(5))
async def test_nothing_may_be_left_out(world: World, redis: Redis, part: int) -> None:
    """A list or a book that is empty is an error of the caller, and changes nothing."""
    prepared = await ready(world)
    lists = [["count", "1"] for _ in range(4)]
    book = b"book"
    if part < 4:
        lists[part] = []
    else:
        book = b""
    before = await fingerprint(redis)

    with pytest.raises(RedisRefused, match="restate"):
        await world.hot.restate(1, "a", prepared.order, (lists[0], lists[1], lists[2], lists[3]), book, None)

    assert before == await fingerprint(redis)


Happens = Callable[[World, Prepared], Awaitable[Prepared]]
IsWrong = Callable[[World, Prepared], Awaitable[str]]


async def _reply_is_lost(world: World, prepared: Prepared) -> Prepared:
    assert (await send(world, prepared)).ok
    return prepared


async def _another_pipeline(world: World, prepared: Prepared) -> Prepared:
    await world.redis.hset(KEYS.anchor, "dataset", "other")
    return prepared


async def _another_takes(world: World, prepared: Prepared) -> Prepared:
    await world.take("b")
    return prepared


async def _second_failover(world: World, prepared: Prepared) -> Prepared:
    await world.change_history()
    return prepared


async def _rebuilt(world: World, prepared: Prepared) -> Prepared:
    await world.swap(110)
    return replace(prepared, order=replace(prepared.order, update_id=111))


async def _same_number(world: World, prepared: Prepared) -> Prepared:
    await world.swap(110)
    order = prepared.order  # it knows an epoch 2 too, which is lost
    return replace(prepared, order=replace(order, seen_epoch=2, seen_receipt="r2'", known_epoch=2, update_id=111))


async def _same_number_seen(world: World, prepared: Prepared) -> Prepared:
    await world.swap(110)
    order = replace(prepared.order, seen_epoch=2, seen_receipt="r2", known_epoch=2, held_receipt="r2'", update_id=111)
    return replace(prepared, order=order)


async def _doubted(world: World, prepared: Prepared) -> Prepared:
    await world.doubt()
    return prepared


async def _doubted_first(world: World, prepared: Prepared) -> Prepared:
    await world.doubt()
    again = await prepare(world, "a", 105, HELD)  # its own reason does not replace the other
    return again


async def _frozen(world: World, prepared: Prepared) -> Prepared:
    return replace(prepared, order=replace(prepared.order, read_us=prepared.order.read_us - 1_100_000))


async def _from_the_future(world: World, prepared: Prepared) -> Prepared:
    return replace(prepared, order=replace(prepared.order, stamp_us=prepared.order.stamp_us + 60_000_000))


async def _stale(world: World, prepared: Prepared) -> Prepared:
    return replace(prepared, order=replace(prepared.order, stamp_us=prepared.order.stamp_us - 5_100_000))


async def _went_on(world: World, prepared: Prepared) -> Prepared:
    assert "OK" == await world.apply(120)
    return prepared


async def _trades_went_on(world: World, prepared: Prepared) -> Prepared:
    await world.redis.hset(KEYS.anchor, "trade_id", "106")
    return prepared


ATTEMPTS: dict[str, tuple[str, Happens]] = {
    "the reply was lost": ("DONE", _reply_is_lost),
    "the data set is another pipeline's": ("FOREIGN", _another_pipeline),
    "another processor took": ("FENCED", _another_takes),
    "a second failover came between": ("REPLID", _second_failover),
    "a rebuild came between": ("EPOCH", _rebuilt),
    "the number is the same, the rebuild another": ("EPOCH", _same_number),
    "it was seen, and is newer than the memory": ("EPOCH", _same_number_seen),
    "somebody else doubts the state": ("DOUBT", _doubted),
    "somebody else doubted it before": ("DOUBT", _doubted_first),
    "the process was stopped": ("LATE", _frozen),
    "the market is ahead of the clock": ("LATE", _from_the_future),
    "the market is old": ("LATE", _stale),
    "what is stored has gone on": ("BEHIND", _went_on),
    "its trades have gone on": ("BEHIND", _trades_went_on),
}


@pytest.mark.parametrize("what", ATTEMPTS)
async def test_a_fence_refuses(world: World, redis: Redis, what: str) -> None:
    """It answers with its name and leaves every key as it was."""
    fence, happens = ATTEMPTS[what]
    prepared = await happens(world, await ready(world))
    before = await fingerprint(redis)

    reply = await send(world, prepared)

    assert (fence, before) == (reply.status, await fingerprint(redis))


@pytest.mark.parametrize("what", ATTEMPTS)
async def test_without_the_fence_it_gets_in(world: World, redis: Redis, what: str) -> None:
    """No other fence stands for it: each is needed. Without DONE what is stored is said to have failed."""
    fence, happens = ATTEMPTS[what]
    prepared = await happens(world, await ready(world))
    await redis.function_load(library_without(fence), replace=True)

    reply = await send(world, prepared)

    assert ("EPOCH" if fence == "DONE" else "RESTATED") == reply.status


def test_every_fence_has_an_attempt() -> None:
    """And the library has these fences, in this order."""
    source = library_source()
    places = [source.index(f"{{'{fence}', ") for fence in FENCES]

    assert set(FENCES) == {fence for fence, _ in ATTEMPTS.values()}
    assert (sorted(places), list(FENCES)) == (places, [s for s in RestateStatus if s != RestateStatus.RESTATED])


# --- what surrounds it ---------------------------------------------------------------------------------------------


async def test_a_lost_write_is_found_by_the_next_one(world: World) -> None:
    """The chain of acknowledged heartbeats is whole after a hand-over, and broken after a loss."""
    anchor = await world.hot.anchor()
    whole = await world.hot.apply(1, "a", 1, 100, 1, receipt="r1", acked_us=anchor.heartbeat_us)
    broken = await world.hot.apply(1, "a", 1, 105, 1, receipt="r1", acked_us=whole.now_us + 1)

    assert ["OK", "ROLLED_BACK"] == [whole.status, broken.status]


async def test_a_doubt_is_a_link_of_the_chain(world: World) -> None:
    """If an acknowledged `suspect` of the writer is lost, the chain is broken."""
    await world.keep()
    reply = await world.hot.suspect(1, "a", 1, 0, "a gap", doubt="gap")
    await world.go_back()

    assert "ROLLED_BACK" == (await world.hot.apply(1, "a", 1, 105, 1, receipt="r1", acked_us=reply.now_us)).status


async def test_another_rebuild_of_the_same_number_is_another_epoch(world: World) -> None:
    """For the writer as for a swap."""
    applied = await world.hot.apply(1, "a", 1, 105, 1, receipt="r1'")
    assert await world.hot.lock("run")
    swapped = await world.hot.swap("run", 1, 105, 1, "r2", expected_receipt="r1'")

    assert ["EPOCH", "EPOCH"] == [applied.status, swapped.status]


TAKES = {
    "who knows a higher term": ("mine", 6, "OK"),
    "who knows of none": ("mine", 1, "ALIVE"),
    "who is of another pipeline": ("other", 6, "ALIVE"),
}


@pytest.mark.parametrize("who", TAKES)
async def test_a_living_writer_gives_way_only_to_a_term_that_was_lost(world: World, redis: Redis, who: str) -> None:
    """A term above the stored one shows that its owner wrote after the one that is stored."""
    dataset, known_term, expected = TAKES[who]
    while True:
        assert "OK" == await world.apply(100)
        heartbeat_us = (await world.hot.anchor()).heartbeat_us
        reply = await world.hot.take(7, "b", 1, "a", known_term=known_term, dataset=dataset)
        if reply.now_us - heartbeat_us < SECOND:
            break
        await redis.flushall()  # the writer had been silent for a second before it came
        await world.begin()

    assert expected == reply.status


DOUBTS = {
    "of a failover, over none": ("", "failover:1", "", "failover:1"),
    "of a failover, over a gap": ("gap", "failover:1", "", "gap"),
    "of a second failover, over the writer's own first": ("failover:1", "failover:2", "failover:1", "failover:2"),
    "of a second failover, over another's first": ("failover:1", "failover:2", "", "failover:1"),
    "of a gap, over a failover": ("failover:1", "gap", "", "gap"),
    "of an earlier version, over a failover": ("failover:1", "", "", ""),
}


@pytest.mark.parametrize("which", DOUBTS)
async def test_a_doubt_of_a_failover_hides_no_other(world: World, which: str) -> None:
    """A reason that is only about a failover replaces nothing but its writer's own."""
    first, second, replaces, expected = DOUBTS[which]
    if first:
        assert (await world.hot.suspect(1, "a", 1, 0, "first", doubt=first)).ok

    reply = await world.hot.suspect(1, "a", 1, 0, "second", doubt=second, replaces=replaces)

    assert (expected, expected) == (reply.doubt, (await world.hot.anchor()).doubt)


OLD_CALLS = {
    "sheetanchor_take": ((KEYS.anchor,), (2, "b", 1, "a", 1)),
    "sheetanchor_apply": (
        (KEYS.anchor, KEYS.ob, KEYS.tr_1s, KEYS.tr_5s, KEYS.feat, KEYS.book),
        (1, "a", 1, 106, 1, "vouch", 1, 1, "", 2, 0, 0, 0, "", "update_id", "106"),
    ),
    "sheetanchor_suspect": ((KEYS.anchor,), (1, "a", 1, 0, "a gap")),
}


@pytest.mark.parametrize("function", OLD_CALLS)
async def test_a_role_of_the_version_before_is_understood(world: World, function: str) -> None:
    """During a roll-out it calls the functions that it knows, with the arguments that they had."""
    names, arguments = OLD_CALLS[function]

    reply = await world.redis.execute_command("FCALL", function, len(names), *names, *arguments)

    assert b"OK" == reply[0]


async def test_a_swap_of_the_version_before_is_a_rebuild_from_the_exchange(world: World, hot: HotState) -> None:
    """Its receipt is the root from then on."""
    order = ("anchor", "lock", "ob", "book", "tr_1s", "tr_5s", "feat")
    staging = ("ob_new", "book_new", "tr_1s_new", "tr_5s_new", "feat_new")
    names = [getattr(KEYS, name) for name in (*order, *staging)]
    assert await hot.lock("run")
    assert await stage(hot, "run", 110)

    reply = await world.redis.execute_command(
        "FCALL", "sheetanchor_swap", len(names), *names, "run", 1, 110, 1, "old", 0
    )

    anchor = await hot.anchor()
    assert (b"SWAPPED", "old", "old", 2) == (reply[0], anchor.receipt, anchor.root, anchor.epoch)
