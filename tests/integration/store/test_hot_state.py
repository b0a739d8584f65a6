"""Rebuilding and reading the hot state: lock, stage, swap and read, on a real server."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from sheetanchor.contract import Gap, Receipt
from sheetanchor.store.hot_records import Anchor
from sheetanchor.store.hot_state import HotState
from support.hot_state_cases import (
    BOOK,
    anchored,
    apply,
    ends_s,
    feat,
    fingerprint,
    ob,
    rebuild,
    redis_us,
    stage,
    window,
)
from support.patience import patience

# --- lock, stage, unlock ------------------------------------------------------------------------------------------


async def test_one_owner_holds_the_lock(hot: HotState, redis: Redis) -> None:
    """The second run is refused, the first may ask again, and the lock ends by itself."""
    began_us = await redis_us(redis)
    taken = [await hot.lock("one"), await hot.lock("two"), await hot.lock("one")]
    ended_us = await redis_us(redis)

    assert taken == [True, False, True]
    assert await hot.lock_holder() == "one"
    assert 299 < await ends_s(redis, "reanchor:{BTCUSDT}", began_us)
    assert await ends_s(redis, "reanchor:{BTCUSDT}", ended_us) < 301


async def test_a_lock_that_ran_out_can_be_taken(hot: HotState, redis: Redis) -> None:
    """A crashed holder does not block rebuilds for ever."""
    await hot.lock("crashed", ttl_s=1)
    await redis.pexpire("reanchor:{BTCUSDT}", 1)
    async with patience():
        while await hot.lock_holder():
            await asyncio.sleep(0.01)

    assert await hot.lock("next")


async def test_only_the_owner_unlocks(hot: HotState, redis: Redis) -> None:
    """A foreign unlock removes neither the lock nor the owner's staging."""
    await hot.lock("one")
    await stage(hot, "one", 100)
    before = await fingerprint(redis)

    assert not await hot.unlock("two")

    assert before == await fingerprint(redis)


async def test_unlock_removes_the_owners_staging(hot: HotState, redis: Redis) -> None:
    """After a failed run nothing is left of it."""
    await anchored(hot)
    before = await fingerprint(redis)
    await hot.lock("one")
    await stage(hot, "one", 110)

    assert await hot.unlock("one")

    assert before == await fingerprint(redis)


async def test_staging_carries_its_own_life(hot: HotState, redis: Redis) -> None:
    """What a killed run leaves behind goes by itself within ten minutes."""
    await hot.lock("one")

    began_us = await redis_us(redis)
    assert await stage(hot, "one", 100)
    ended_us = await redis_us(redis)

    staging = (
        "ob:new:{BTCUSDT}",
        "book:new:{BTCUSDT}",
        "tr:new:{BTCUSDT}:1s",
        "tr:new:{BTCUSDT}:5s",
        "feat:new:{BTCUSDT}",
    )
    assert all([599 < await ends_s(redis, key, began_us) for key in staging])
    assert all([await ends_s(redis, key, ended_us) < 601 for key in staging])


@pytest.mark.parametrize("holder", ["", "other"])
async def test_staging_is_refused_without_the_lock(hot: HotState, redis: Redis, holder: str) -> None:
    """Only the lock's owner stages."""
    if holder:
        await hot.lock(holder)
    before = await fingerprint(redis)

    assert not await stage(hot, "one", 100)

    assert before == await fingerprint(redis)


async def test_staging_must_be_whole(hot: HotState, redis: Redis) -> None:
    """A rebuild without one of its parts is refused before anything is written."""
    await hot.lock("one")
    before = await fingerprint(redis)

    with pytest.raises(Exception, match="list 2 is empty"):
        await hot.stage("one", ob(1), [], window(1), feat(1), BOOK)
    with pytest.raises(Exception, match="book is empty"):
        await hot.stage("one", ob(1), window(1), window(1), feat(1), b"")

    assert before == await fingerprint(redis)


async def test_a_new_owner_never_swaps_a_dead_owners_staging(hot: HotState, redis: Redis) -> None:
    """Taking the lock clears what a run that lost it had staged."""
    await anchored(hot)
    await hot.lock("dead")
    await stage(hot, "dead", 110)
    await redis.delete("reanchor:{BTCUSDT}")

    await hot.lock("next")

    reply = await hot.swap("next", 1, 110, 110, "r")
    assert reply.status == "MISSING"


# --- swap ---------------------------------------------------------------------------------------------------------


async def test_swap_makes_the_staging_the_hot_state(hot: HotState, redis: Redis) -> None:
    """All keys are the rebuild's, of the next epoch, with the lives of hot keys; staging and lock are gone."""
    await anchored(hot, update_id=100)
    await hot.suspect(1, "a", 1, 105, "gap")

    reply = await rebuild(hot, "second", 1, 110)

    read, anchor = await hot.read(), await hot.anchor()
    assert (reply.status, reply.epoch, reply.state) == ("SWAPPED", 2, "anchored")
    assert (read.incomplete, read.rebuilding, read.epoch) == ("", False, 2)
    assert [read.ob["update_id"], read.tr_1s["count"], read.tr_5s["count"], read.feat["ret_1s"]] == ["110"] * 4
    assert await hot.book() == BOOK + b"110"
    assert [await redis.ttl("ob:{BTCUSDT}"), await redis.ttl("book:{BTCUSDT}")] == [-1, -1]
    assert pytest.approx(300, abs=1) == await ends_s(redis, "tr:{BTCUSDT}:5s", reply.now_us)
    assert pytest.approx(120, abs=1) == await ends_s(redis, "feat:{BTCUSDT}", reply.now_us)
    assert not [key async for key in redis.scan_iter("*new*")]
    assert await hot.lock_holder() == ""
    written = Anchor(2, 1, "a", anchor.heartbeat_us, 110, reply.now_us, 110, "receipt-second", "anchored")
    assert anchor == replace(written, root="receipt-second")


@pytest.mark.parametrize(
    "missing",
    ["ob:new:{BTCUSDT}", "book:new:{BTCUSDT}", "tr:new:{BTCUSDT}:1s", "tr:new:{BTCUSDT}:5s", "feat:new:{BTCUSDT}"],
)
@pytest.mark.parametrize("instead", ["nothing", "another type"])
async def test_swap_without_one_staging_key_changes_nothing(
    hot: HotState, redis: Redis, missing: str, instead: str
) -> None:
    """One staging key that expired or is not of its type: no hot key moves, and the reply names it."""
    await anchored(hot)
    await hot.lock("one")
    await stage(hot, "one", 110)
    await redis.delete(missing)
    if instead == "another type":
        await redis.rpush(missing, "foreign")
    before = await fingerprint(redis)

    reply = await hot.swap("one", 1, 110, 110, "r")

    assert reply.status == "MISSING"
    assert missing in reply.detail
    assert before == await fingerprint(redis)


async def test_swap_of_another_staging_than_was_validated_is_refused(hot: HotState) -> None:
    """The staged update id must be the one that the run validated."""
    await anchored(hot)
    await hot.lock("one")
    await stage(hot, "one", 110)

    reply = await hot.swap("one", 1, 111, 111, "r")

    assert (reply.status, reply.detail) == ("MISSING", "ob:new:{BTCUSDT}: expected update_id 111, found 110")


async def test_a_late_swap_after_the_lock_was_lost_is_refused(hot: HotState, redis: Redis) -> None:
    """A run that slept past its lock while another rebuilt the state changes nothing when it wakes."""
    await anchored(hot)
    await hot.lock("sleeper")
    await stage(hot, "sleeper", 110)
    await redis.delete("reanchor:{BTCUSDT}")
    await rebuild(hot, "other", 1, 120)
    before = await fingerprint(redis)

    reply = await hot.swap("sleeper", 1, 110, 110, "r")

    assert (reply.status, reply.epoch) == ("LOCK_LOST", 2)
    assert before == await fingerprint(redis)


async def test_a_late_swap_does_not_harm_a_foreign_lock(hot: HotState, redis: Redis) -> None:
    """The lock and staging of the run that came after stay as they are."""
    await anchored(hot)
    await hot.lock("sleeper")
    await stage(hot, "sleeper", 110)
    await redis.delete("reanchor:{BTCUSDT}")
    await hot.lock("other")
    await stage(hot, "other", 120)
    before = await fingerprint(redis)

    replies = [await hot.swap("sleeper", 1, 120, 120, "r"), await hot.unlock("sleeper")]

    assert (replies[0].status, replies[1]) == ("LOCK_LOST", False)
    assert before == await fingerprint(redis)
    assert (await hot.swap("other", 1, 120, 120, "r2")).ok


async def test_swap_expects_the_epoch_it_began_at(hot: HotState, redis: Redis) -> None:
    """When the epoch moved during the rebuild, the rebuild belongs to a past one and is refused."""
    await anchored(hot)
    await hot.lock("one")
    await stage(hot, "one", 110)
    await hot.suspect(1, "a", 3, 0, "rolled back")
    before = await fingerprint(redis)

    reply = await hot.swap("one", 1, 110, 110, "r")

    assert (reply.status, reply.epoch) == ("EPOCH", 3)
    assert before == await fingerprint(redis)


async def test_swap_behind_a_sound_state_must_catch_up(hot: HotState, redis: Redis) -> None:
    """A staging that is older than the sound live book would step back in time: refused, lock and staging stay."""
    await anchored(hot)
    await hot.lock("one")
    await stage(hot, "one", 110)
    await apply(hot, 115)
    before = await fingerprint(redis)

    reply = await hot.swap("one", 1, 110, 110, "r")

    assert reply.status == "BEHIND"
    assert before == await fingerprint(redis)
    assert await stage(hot, "one", 115)
    assert (await hot.swap("one", 1, 115, 115, "r")).ok


async def test_swap_over_a_suspect_state_may_step_back(hot: HotState) -> None:
    """A suspect book's id is no reason to wait, as long as the rebuild reaches the id that the gap is at."""
    await anchored(hot)
    await hot.suspect(1, "a", 1, 105, "gap")
    await apply(hot, 150)

    reply = await rebuild(hot, "second", 1, 110)

    assert (reply.status, reply.state) == ("SWAPPED", "anchored")
    assert (await hot.read()).ob["update_id"] == "110"


async def test_a_rebuild_below_the_id_in_doubt_does_not_cure(hot: HotState) -> None:
    """A snapshot from before the gap is swapped in but stays suspect, with the same reason; a later one is anchored."""
    await anchored(hot)
    await hot.suspect(1, "a", 1, 120, "gap")

    early = await rebuild(hot, "second", 1, 110)
    anchor = await hot.anchor()
    late = await rebuild(hot, "third", 2, 125)

    assert (early.status, early.state, early.epoch) == ("SWAPPED", "suspect", 2)
    assert (anchor.reason, anchor.suspect_id) == ("gap", 120)
    assert (late.status, late.state, late.epoch) == ("SWAPPED", "anchored", 3)
    assert (await hot.anchor()).reason == ""


@pytest.mark.parametrize(("answered", "state"), [(120, "anchored"), (119, "suspect"), (121, "suspect"), (0, "suspect")])
async def test_a_doubt_that_was_answered_does_not_stay(hot: HotState, answered: int, state: str) -> None:
    """A rebuild that has read past the gap resolves it whatever its ids; a gap that it has not reached still counts."""
    await anchored(hot)
    await hot.suspect(1, "a", 1, 120, "gap")
    assert await hot.lock("second")
    assert await stage(hot, "second", 7)

    reply = await hot.swap("second", 1, 7, 7, "r", answered=answered)

    assert ("SWAPPED", state) == (reply.status, reply.state)
    assert (120 if state == "suspect" else 0) == (await hot.anchor()).suspect_id


async def test_another_writer_lifts_what_a_rebuild_must_reach(hot: HotState) -> None:
    """The state stays suspect, but the update that a rebuild must reach is dropped: one of lower ids resolves it."""
    await anchored(hot)
    await hot.suspect(1, "a", 1, 10**12, "gap")

    await hot.take(2, "b", 1, "a", force=True)
    between = await hot.anchor()
    reply = await rebuild(hot, "second", 1, 7)

    assert ("suspect", "gap", 0) == (between.state, between.reason, between.suspect_id)
    assert ("SWAPPED", "anchored") == (reply.status, reply.state)


async def test_swap_whose_reply_was_lost_can_be_asked_again(hot: HotState, redis: Redis) -> None:
    """The same run's second swap says SWAPPED and changes nothing, also when another run holds the lock by then."""
    await anchored(hot)
    first = await rebuild(hot, "second", 1, 110)
    await hot.lock("third")
    before = await fingerprint(redis)

    again = await hot.swap("second", 1, 110, 110, "receipt-second")

    assert (again.status, again.epoch) == (first.status, first.epoch)
    assert before == await fingerprint(redis)


async def test_a_writer_of_the_epoch_before_is_told_to_load(hot: HotState, redis: Redis) -> None:
    """After a swap the writer keeps its term, but its next write is refused until it belongs to the new epoch."""
    await anchored(hot)
    await rebuild(hot, "second", 1, 110)
    before = await fingerprint(redis)

    stale = await apply(hot, 111, epoch=1)

    assert (stale.status, stale.epoch, stale.term, stale.writer) == ("EPOCH", 2, 1, "a")
    assert before == await fingerprint(redis)
    assert (await apply(hot, 111, epoch=2)).ok


# --- read ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "name"),
    [("ob:{BTCUSDT}", "ob"), ("tr:{BTCUSDT}:1s", "tr:1s"), ("tr:{BTCUSDT}:5s", "tr:5s"), ("feat:{BTCUSDT}", "feat")],
)
async def test_read_names_what_is_missing(hot: HotState, redis: Redis, key: str, name: str) -> None:
    """One missing key is named; the others are still served."""
    await anchored(hot)
    await redis.delete(key)

    read = await hot.read()

    assert read.incomplete == f"{name} missing"
    assert sum(map(bool, (read.ob, read.tr_1s, read.tr_5s, read.feat))) == 3


async def test_read_gives_no_mixture(hot: HotState, redis: Redis) -> None:
    """A key of another epoch is named and not handed out."""
    await anchored(hot)
    await redis.hset("feat:{BTCUSDT}", "epoch", "9")

    read = await hot.read()

    assert (read.incomplete, read.feat) == ("feat of epoch 9", {})
    assert read.ob


async def test_read_of_an_empty_server_names_everything(hot: HotState) -> None:
    """Nothing there is incomplete, not an error."""
    read = await hot.read()

    assert read.incomplete == "anchor missing, ob missing, tr:1s missing, tr:5s missing, feat missing"
    assert Anchor.parse(read.anchor) == Anchor(state="suspect")


async def test_a_rebuild_shows_but_does_not_disturb(hot: HotState) -> None:
    """While the lock is held reads say so and stay complete."""
    await anchored(hot)
    await hot.lock("one")

    read = await hot.read()

    assert (read.rebuilding, read.incomplete, read.anchor["state"]) == (True, "", "anchored")


# --- histories ----------------------------------------------------------------------------------------------------


async def test_gaps_and_receipts_are_kept_and_bounded(hot: HotState, redis: Redis) -> None:
    """Both histories hold what was added, readable back, and forget the oldest."""
    gap = Gap("BTCUSDT", "sequence_gap", "high", "immediate_reanchor", "expected 1, found 3", "process", 7, 1)
    receipt = Receipt("r", "BTCUSDT", "gap", "rule", "swapped", 1, 2, 0, 1, 5, 6, 0, "done", {"lock": 0.1}, ("a",))

    await hot.add_gap(gap)
    for _ in range(500):
        await hot.add_receipt(receipt)

    [(_, entry)] = await redis.xrange(hot.keys.gaps)
    assert Gap.parse({name.decode(): value.decode() for name, value in entry.items()}) == gap
    [(_, last)] = await redis.xrevrange(hot.keys.receipts, count=1)
    assert Receipt.from_json(last[b"receipt"].decode()) == receipt
    assert await redis.xlen(hot.keys.receipts) < 300
