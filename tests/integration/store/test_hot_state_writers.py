"""Who may write the hot state: apply, take and suspect, on a real server."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from sheetanchor.store.hot_state import HotState
from support.hot_state_cases import anchored, apply, ends_s, fingerprint, ob, rebuild, wait_for_beat_to_age, window

SECOND = 1_000_000

# --- apply --------------------------------------------------------------------------------------------------------


async def test_apply_writes_every_hot_key_with_the_epoch_and_its_life(hot: HotState, redis: Redis) -> None:
    """A processor's write carries the epoch into each hash; windows and features expire, book and levels do not."""
    await anchored(hot)

    reply = await apply(hot, 101, book=b"packed")

    assert reply.ok
    read = await hot.read()
    assert [read.ob["epoch"], read.tr_1s["epoch"], read.tr_5s["epoch"], read.feat["epoch"]] == ["1"] * 4
    lives = [await redis.ttl(key) for key in ("ob:{BTCUSDT}", "book:{BTCUSDT}", "anchor:{BTCUSDT}")]
    assert lives == [-1, -1, -1]
    names = ("tr:{BTCUSDT}:1s", "tr:{BTCUSDT}:5s", "feat:{BTCUSDT}")
    ends = [await ends_s(redis, name, reply.now_us) for name in names]
    assert ends == [pytest.approx(seconds, abs=1) for seconds in (300, 300, 120)]
    assert await hot.book() == b"packed"


async def test_apply_replaces_a_hash_as_a_whole(hot: HotState) -> None:
    """Levels that the book no longer has do not outlive it."""
    await anchored(hot)
    await apply(hot, 101)

    await hot.apply(1, "a", 1, 102, 102, ob(102, levels=3))

    read = await hot.read()
    assert "bid3_p" in read.ob
    assert "bid4_p" not in read.ob
    assert read.tr_1s["count"] == "101"


async def test_the_callers_own_epoch_field_cannot_win(hot: HotState) -> None:
    """The epoch in a hash is the stored one, whatever the caller's fields say."""
    await anchored(hot)

    await hot.apply(1, "a", 1, 101, 101, [*ob(101), "epoch", "99"])

    assert (await hot.read()).ob["epoch"] == "1"


@pytest.mark.parametrize(
    ("term", "writer", "epoch", "update_id", "status"),
    [
        (2, "a", 1, 101, "FENCED"),
        (1, "b", 1, 101, "FENCED"),
        (0, "", 1, 101, "FENCED"),
        (1, "a", 0, 101, "EPOCH"),
        (1, "a", 2, 101, "EPOCH"),
        (1, "a", 1, 99, "BEHIND"),
    ],
)
async def test_apply_refused_changes_nothing(
    hot: HotState, redis: Redis, term: int, writer: str, epoch: int, update_id: int, status: str
) -> None:
    """A writer without the term, of another epoch, or whose update id would go back leaves every key byte-identical."""
    await anchored(hot)
    before = await fingerprint(redis)

    reply = await apply(hot, update_id, term=term, writer=writer, epoch=epoch, book=b"packed")

    assert (reply.status, reply.epoch, reply.term, reply.writer) == (status, 1, 1, "a")
    assert before == await fingerprint(redis)


async def test_apply_on_an_empty_server_is_fenced(hot: HotState, redis: Redis) -> None:
    """No writer may write before it has taken ownership, not even under term 0."""
    reply = await apply(hot, 1, term=0, writer="", epoch=0)

    assert (reply.status, reply.state) == ("FENCED", "suspect")
    assert await redis.dbsize() == 0


async def test_an_empty_apply_is_a_sign_of_life(hot: HotState, redis: Redis) -> None:
    """Without lists only the heartbeat and the stamp change."""
    await anchored(hot)
    await apply(hot, 105)
    await wait_for_beat_to_age(hot, redis)
    before = await hot.anchor()

    reply = await hot.apply(1, "a", 1, 106, 777)

    after = await hot.anchor()
    assert reply.now_us == after.heartbeat_us > before.heartbeat_us
    assert (after.stamp_us, after.update_id) == (777, 105)


async def test_while_suspect_apply_goes_on_but_leaves_the_book(hot: HotState) -> None:
    """A start must not load a book that may be wrong, so a suspect writer does not replace it."""
    await anchored(hot)
    await apply(hot, 101, book=b"sound")
    await hot.suspect(1, "a", 1, 105, "gap")

    reply = await apply(hot, 106, book=b"doubtful")

    assert (reply.ok, reply.state) == (True, "suspect")
    assert (await hot.read()).ob["update_id"] == "106"
    assert await hot.book() == b"sound"


async def test_apply_with_a_malformed_list_changes_nothing(hot: HotState, redis: Redis) -> None:
    """A field without a value is refused before the first write, with the reason."""
    await anchored(hot)
    before = await fingerprint(redis)

    with pytest.raises(Exception, match="length of list 4: expected an even number"):
        await hot.apply(1, "a", 1, 101, 101, ob(101), window(101), window(101), ["ts"])

    assert before == await fingerprint(redis)


async def test_apply_replaces_a_key_of_another_type(hot: HotState, redis: Redis) -> None:
    """If another client has stored another type in place of a hash, the key is replaced as a whole."""
    await anchored(hot)
    await redis.delete("feat:{BTCUSDT}")
    await redis.set("feat:{BTCUSDT}", "foreign")
    damaged = await hot.read()

    reply = await apply(hot, 101)

    read = await hot.read()
    assert (True, "", "101") == (reply.ok, read.incomplete, read.feat["ret_1s"])
    assert "feat: WRONGTYPE" in damaged.incomplete


async def test_apply_on_an_anchor_of_another_type_changes_nothing(hot: HotState, redis: Redis) -> None:
    """Without its fences the write stops before it begins."""
    await anchored(hot)
    await redis.delete("anchor:{BTCUSDT}")
    await redis.set("anchor:{BTCUSDT}", "foreign")
    before = await fingerprint(redis)

    with pytest.raises(Exception, match=r"anchor:\{BTCUSDT\}: expected a hash, found a string"):
        await apply(hot, 101)

    assert before == await fingerprint(redis)


# --- take ---------------------------------------------------------------------------------------------------------


async def test_the_first_writer_takes_an_empty_server(hot: HotState) -> None:
    """An absent anchor is epoch 0 and suspect, and every processor may take it."""
    reply = await hot.take(1, "a", 0, "")

    assert (reply.ok, reply.epoch, reply.term, reply.writer, reply.state) == (True, 0, 1, "a", "suspect")


async def test_a_live_writer_is_not_taken_from(hot: HotState, redis: Redis) -> None:
    """Within a second of its last heartbeat no other processor becomes the writer."""
    while True:
        await anchored(hot)
        heartbeat_us = (await hot.anchor()).heartbeat_us
        reply = await hot.take(2, "b", 1, "a")
        if reply.now_us - heartbeat_us < SECOND:
            break
        await redis.flushall()  # the second had passed before it came

    assert (reply.status, reply.term, reply.writer) == ("ALIVE", 1, "a")


async def test_a_silent_writer_is_replaced_and_then_fenced(hot: HotState, redis: Redis) -> None:
    """After a second of silence a warm one takes over; what the old one still writes is refused."""
    await anchored(hot)
    await wait_for_beat_to_age(hot, redis)

    taken = await hot.take(2, "b", 1, "a")

    late = await apply(hot, 101)
    assert (taken.ok, taken.epoch, taken.state) == (True, 1, "anchored")
    assert (late.status, late.term, late.writer) == ("FENCED", 2, "b")
    assert (await apply(hot, 101, term=2, writer="b")).ok


@pytest.mark.parametrize(("seen_term", "seen_writer"), [(0, ""), (1, "b"), (2, "a")])
async def test_take_compares_what_was_seen(hot: HotState, redis: Redis, seen_term: int, seen_writer: str) -> None:
    """Two that saw the same silent writer cannot both succeed: the stored pair must be the one seen."""
    await anchored(hot)
    await wait_for_beat_to_age(hot, redis)

    reply = await hot.take(3, "c", seen_term, seen_writer)

    assert reply.status == "SEEN"


async def test_of_many_that_take_at_once_one_wins(hot: HotState, redis: Redis) -> None:
    """Ten standbys that saw the same silence: exactly one becomes the writer."""
    await anchored(hot)
    await wait_for_beat_to_age(hot, redis)

    replies = await asyncio.gather(*(hot.take(2, f"standby-{n}", 1, "a") for n in range(10)))

    assert sum(reply.ok for reply in replies) == 1
    assert {reply.writer for reply in replies} == {(await hot.anchor()).writer}


@pytest.mark.parametrize("force", [False, True])
async def test_a_term_never_goes_back(hot: HotState, redis: Redis, force: bool) -> None:
    """A term at or below the stored one is refused, forced or not."""
    await hot.take(5, "a", 0, "")
    await wait_for_beat_to_age(hot, redis)

    replies = [await hot.take(term, "b", 5, "a", force=force) for term in (4, 5)]

    assert [reply.status for reply in replies] == ["TERM", "TERM"]


async def test_a_forced_take_wins_over_a_live_writer(hot: HotState) -> None:
    """Moving the writer on purpose does not wait for its silence."""
    await anchored(hot)

    reply = await hot.take(7, "b", 0, "", force=True)

    assert (reply.ok, reply.term, reply.writer) == (True, 7, "b")


async def test_the_writer_may_take_again_and_repeat_itself(hot: HotState) -> None:
    """The rightful writer takes a higher term at once; the same take twice is the same take."""
    await anchored(hot)

    again = await hot.take(2, "a", 1, "a")
    repeated = await hot.take(2, "a", 1, "a")

    assert (again.ok, repeated.ok, repeated.term) == (True, True, 2)


async def test_a_beat_from_the_future_does_not_block_a_takeover(hot: HotState, redis: Redis) -> None:
    """After the server's clock was set back an hour the old heartbeat counts as old, not as fresh."""
    await anchored(hot)
    heartbeat_us = (await hot.anchor()).heartbeat_us
    await redis.hset("anchor:{BTCUSDT}", "beat_us", str(heartbeat_us + 3_600_000_000))

    assert (await hot.take(2, "b", 1, "a")).ok


# --- suspect ------------------------------------------------------------------------------------------------------


async def test_suspect_marks_the_state_and_keeps_the_rest(hot: HotState) -> None:
    """It changes state and reason, not the writer or what was anchored."""
    await anchored(hot)
    before = await hot.anchor()

    reply = await hot.suspect(1, "a", 1, 105, "depth: expected 101, found 105")

    after = await hot.anchor()
    assert (reply.ok, after.state, after.reason) == (True, "suspect", "depth: expected 101, found 105")
    assert (after.epoch, after.term, after.writer, after.receipt) == (1, 1, "a", before.receipt)
    assert (after.suspect_id, after.suspect_at) == (105, reply.now_us)


@pytest.mark.parametrize(("given", "expected"), [(0, 1), (1, 1), (7, 7)])
async def test_an_epoch_never_goes_back(hot: HotState, given: int, expected: int) -> None:
    """Suspect raises the epoch to the one given and never lowers it."""
    await anchored(hot)

    reply = await hot.suspect(1, "a", given, 0, "rolled back")

    assert (reply.epoch, (await hot.anchor()).epoch) == (expected, expected)


async def test_a_raised_epoch_makes_older_keys_incomplete(hot: HotState) -> None:
    """After a roll-back the hot keys of the lost epoch are not served as if they were current."""
    await anchored(hot)

    await hot.suspect(1, "a", 7, 0, "rolled back")

    read = await hot.read()
    assert read.incomplete == "ob of epoch 1, tr:1s of epoch 1, tr:5s of epoch 1, feat of epoch 1"
    assert [read.ob, read.tr_1s, read.tr_5s, read.feat] == [{}, {}, {}, {}]


async def test_a_fenced_writer_cannot_cast_doubt(hot: HotState, redis: Redis) -> None:
    """A late `suspect` of a replaced writer does not degrade the state of its successor."""
    await anchored(hot)
    before = await fingerprint(redis)

    reply = await hot.suspect(1, "b", 1, 105, "late")

    assert reply.status == "FENCED"
    assert before == await fingerprint(redis)


async def test_an_observer_may_doubt_the_present_rebuild_only(hot: HotState) -> None:
    """A client that only reads may mark a state as suspect, unless it has observed an older rebuild."""
    await anchored(hot)
    await rebuild(hot, "second", 1, 110)

    late = await hot.suspect(0, "", 1, 0, "stale view")
    timely = await hot.suspect(0, "", 2, 0, "replication id changed")

    assert (late.status, late.state) == ("EPOCH", "anchored")
    assert (timely.status, timely.state) == ("OK", "suspect")


async def test_an_observer_may_doubt_an_empty_server(hot: HotState) -> None:
    """After a loss of all data the highest known epoch is stored again."""
    reply = await hot.suspect(0, "", 4, 0, "anchor missing")

    assert (reply.epoch, reply.term, reply.state) == (4, 0, "suspect")
    assert (await hot.anchor()).epoch == 4


async def test_repeated_doubt_keeps_its_beginning_and_highest_id(hot: HotState) -> None:
    """Within one epoch the id that a rebuild must reach only rises, and the state is suspect since the first cause."""
    await anchored(hot)
    first = await hot.suspect(1, "a", 1, 120, "one")

    await hot.suspect(1, "a", 1, 110, "two")

    anchor = await hot.anchor()
    assert (anchor.suspect_id, anchor.suspect_at, anchor.reason) == (120, first.now_us, "two")


async def test_a_new_writer_sets_the_id_to_reach_afresh(hot: HotState) -> None:
    """Ids left by an earlier exchange do not keep a new writer's state suspect for ever."""
    await anchored(hot, update_id=10**12)
    await hot.suspect(1, "a", 1, 10**12 + 5, "gap")
    await hot.take(2, "b", 1, "a", force=True)

    await hot.suspect(2, "b", 1, 50, "ids went back")

    reply = await rebuild(hot, "second", 1, 60)
    assert (reply.status, reply.state) == ("SWAPPED", "anchored")
