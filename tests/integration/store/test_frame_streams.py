"""The streams of raw frames on a real server: trimming, seeking, discovery, and what is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from prometheus_client import REGISTRY
from redis.asyncio import Redis

from conftest import RedisServer
from sheetanchor import errors
from sheetanchor.contract import line_stream, unpack_frames
from sheetanchor.store.frame_streams import LineReader, LineWriter
from sheetanchor.store.redis_client import redis_client, server_identity
from support.bad_entries import BAD_IDS, MALFORMED, spoil, spoil_lines
from support.patience import patience

STREAM = line_stream("BTCUSDT", "a")
DECODE_ERRORS = "sheetanchor_processor_decode_errors_total"
ENVELOPE = {"symbol": "BTCUSDT", "kind": "envelope"}


async def _fill(redis: Redis, entries: int, *, first_ms: int = 1_000_000, size: int = 10, line: str = "a") -> list[str]:
    """Append entries with ids one second apart and register the line."""
    pipeline = redis.pipeline(transaction=False)
    ids = [f"{first_ms + 1000 * n}-0" for n in range(entries)]
    for n, entry_id in enumerate(ids):
        pipeline.xadd(line_stream("BTCUSDT", line), {"n": 1, "t": n, "f": b"x" * size}, id=entry_id)
    pipeline.sadd("lines:{BTCUSDT}", line)
    await pipeline.execute()
    return ids


async def test_a_batch_arrives_as_it_was_sent(redis: Redis) -> None:
    """Frames, receive times, count and line survive; the stamp is Redis' time of the append."""
    frames = [(5, b"one"), (6, b""), (7, b"three")]

    entry_id = await LineWriter(redis, "BTCUSDT", "zone-1").append(frames)

    [batch] = await LineReader(redis, "BTCUSDT").read(0)
    assert (batch.line, batch.entry_id, batch.frame_count, batch.first_received_us) == ("zone-1", entry_id, 3, 5)
    assert list(unpack_frames(batch.frames)) == frames
    assert batch.stamp_us == int(entry_id.split("-")[0]) * 1000
    assert abs(batch.stamp_us / 1e6 - (await redis.time())[0]) < 60


async def test_each_line_is_read_in_order_and_once(redis: Redis) -> None:
    """Two lines, more entries than one read gives: every entry comes once, in its line's order."""
    expected = {"a": await _fill(redis, 25, line="a"), "b": await _fill(redis, 40, line="b")}
    reader = LineReader(redis, "BTCUSDT")

    found: dict[str, list[str]] = {"a": [], "b": []}
    while batches := await reader.read(0, count=10):
        for batch in batches:
            found[batch.line].append(batch.entry_id)

    assert expected == found
    assert reader.ids == {"a": expected["a"][-1], "b": expected["b"][-1]}


async def test_a_new_line_is_found_within_two_seconds_of_the_clock(redis: Redis) -> None:
    """A line that appears later is read from its beginning, without a new reader."""
    await _fill(redis, 1, line="a")
    reader = LineReader(redis, "BTCUSDT")
    await reader.read(0, now_us=0)
    await _fill(redis, 2, line="b")

    early = await reader.read(0, now_us=1_999_999)
    later = await reader.read(0, now_us=2_000_000)

    assert early == []
    assert [(batch.line, batch.first_received_us) for batch in later] == [("b", 0), ("b", 1)]


async def test_named_lines_are_read_whether_registered_or_not(redis: Redis) -> None:
    """A reader of named lines reads those only."""
    await _fill(redis, 1, line="a")
    await _fill(redis, 1, line="b")

    batches = await LineReader(redis, "BTCUSDT", ["b"]).read(0)

    assert [batch.line for batch in batches] == ["b"]


async def test_without_lines_reading_gives_nothing(redis: Redis) -> None:
    """Before the first ingestor there is nothing to read and nothing to wait for."""
    assert await LineReader(redis, "BTCUSDT").read(100) == []


async def test_reading_waits_for_the_next_entry(redis: Redis, each_server: RedisServer) -> None:
    """A read that blocks returns as soon as an entry is appended."""
    await _fill(redis, 1)
    reader = LineReader(redis, "BTCUSDT")
    await reader.read(0)
    waiting = asyncio.create_task(reader.read(60_000))
    await asyncio.sleep(0.05)

    await LineWriter(redis, "BTCUSDT", "a").append([(9, b"next")])

    [batch] = await waiting
    assert batch.first_received_us == 9


async def test_seek_by_id_continues_after_it(redis: Redis) -> None:
    """What was consumed is not read again."""
    ids = await _fill(redis, 5)
    reader = LineReader(redis, "BTCUSDT")

    reader.seek({"a": ids[2]})

    assert [batch.entry_id for batch in await reader.read(0)] == ids[3:]


async def test_seek_by_time_begins_at_the_moment(redis: Redis) -> None:
    """Entries of the very millisecond are included, on known lines and on lines found later."""
    ids = await _fill(redis, 5, line="a")
    reader = LineReader(redis, "BTCUSDT")
    await reader.discover()
    await _fill(redis, 5, line="b")

    reader.seek_time(1_003_000)

    batches = await reader.read(0)
    assert [(batch.line, batch.entry_id) for batch in batches] == [(line, entry) for line in "ab" for entry in ids[3:]]


@pytest.mark.parametrize(
    ("seek", "kept", "lost"),
    [
        (lambda reader, ids: reader.seek({"a": ids[10]}), 100, False),
        (lambda reader, ids: reader.seek({"a": ids[60]}), 50, False),
        (lambda reader, ids: reader.seek({"a": ids[10]}), 50, True),
        (lambda reader, ids: reader.seek({"a": ids[10]}), 0, True),
        (lambda reader, ids: reader.seek_time(1_060_000), 50, False),
        (lambda reader, ids: reader.seek_time(1_010_000), 50, True),
        (lambda reader, ids: reader.seek_time(500_000), 100, False),
        (lambda reader, ids: reader.seek_time(9_000_000), 100, False),
        (lambda reader, ids: None, 50, False),
        (lambda reader, ids: reader.seek({"a": "9000000-0"}), 100, True),
    ],
)
async def test_trimmed_entries_are_noticed(
    redis: Redis, seek: Callable[[LineReader, list[str]], None], kept: int, lost: bool
) -> None:
    """A place whose successors were cut off, or that the data set never had, is named with the oldest id there is."""
    ids = await _fill(redis, 100)
    await redis.xtrim(STREAM, maxlen=kept, approximate=False)
    reader = LineReader(redis, "BTCUSDT")
    await reader.discover()
    seek(reader, ids)

    trimmed = await reader.check_trimmed()

    assert [item.line for item in trimmed] == (["a"] if lost else [])
    assert [item.first_id for item in trimmed] == ([ids[100 - kept] if kept else ""] if lost else [])


async def test_a_line_that_is_gone_is_noticed(redis: Redis) -> None:
    """After a loss of all data the place of the last run does not exist."""
    reader = LineReader(redis, "BTCUSDT")
    reader.seek({"a": "5-0"})

    [trimmed] = await reader.check_trimmed()

    assert (trimmed.line, trimmed.asked_id, trimmed.first_id) == ("a", "5-0", "")


async def test_a_line_that_has_gone_for_good_is_forgotten(redis: Redis) -> None:
    """The stream of a line that has ended expires; then it is not read, and a seek by time misses nothing."""
    await LineWriter(redis, "BTCUSDT", "a").append([(1, b"x")])
    life_ms = await redis.pttl(STREAM)
    reader = LineReader(redis, "BTCUSDT")
    await reader.discover()
    await redis.delete(STREAM)
    reader.seek_time(1_000_000)

    assert 1_700_000 < life_ms <= 1_800_000
    assert await reader.check_trimmed() == []
    assert await LineReader(redis, "BTCUSDT").discover() == ()


async def test_old_entries_go(redis: Redis) -> None:
    """What is older than the line keeps is cut off at the first append."""
    await _fill(redis, 1000)

    await LineWriter(redis, "BTCUSDT", "a", age_max_ms=60_000).append([(1, b"now")])

    assert await redis.xlen(STREAM) < 150


async def test_the_stream_stays_within_its_size(redis: Redis) -> None:
    """Small batches, then large ones, then small ones: the memory used stays near the bound and is made use of."""
    writer = LineWriter(redis, "BTCUSDT", "a", bytes_max=1_000_000)
    sizes = []

    for size in (50, 4000, 50):
        for _ in range(3_000_000 // (size + 96) // 4):
            await writer.append_packed(1, 1, b"x" * size)
        sizes.append(await redis.memory_usage(STREAM, samples=0))

    assert all(100_000 < size < 1_600_000 for size in sizes), sizes


async def test_what_an_earlier_run_left_counts(redis: Redis) -> None:
    """A restarted ingestor keeps the bound although it did not append the old entries, and does not drop them all."""
    first = LineWriter(redis, "BTCUSDT", "a", bytes_max=1_000_000)
    for _ in range(220):
        await first.append_packed(1, 1, b"x" * 4000)

    second = LineWriter(redis, "BTCUSDT", "a", bytes_max=1_000_000)
    for _ in range(100):
        await second.append_packed(1, 1, b"y" * 4000)

    assert 600_000 < await redis.memory_usage(STREAM, samples=0) < 1_500_000


async def test_a_line_registers_again_after_a_loss_of_data(redis: Redis) -> None:
    """The next second's append puts the line back into the set, so that readers find it."""
    writer = LineWriter(redis, "BTCUSDT", "a")
    await writer.append([(1, b"x")])
    await redis.flushall()

    async with patience():
        while not await redis.smembers("lines:{BTCUSDT}"):
            await writer.append([(2, b"y")])
            await asyncio.sleep(0.05)

    assert await redis.smembers("lines:{BTCUSDT}") == {b"a"}


async def test_a_read_cancelled_in_the_middle_leaves_the_client_usable(redis: Redis) -> None:
    """A blocked read that is given up neither loses entries nor hands its answer to the next caller."""
    await _fill(redis, 1)
    reader = LineReader(redis, "BTCUSDT")
    await reader.read(0)

    for n in range(20):
        waiting = asyncio.create_task(reader.read(1000))
        await asyncio.sleep(0.002)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        entry_id = await LineWriter(redis, "BTCUSDT", "a").append([(n, b"x")])
        assert await redis.get("nothing") is None
        assert [batch.entry_id for batch in await reader.read(1000)] == [entry_id]


async def test_a_failed_append_is_one_clear_error(redis: Redis) -> None:
    """A stream's name taken by something else is refused for good, named."""
    await redis.set(STREAM, "foreign")

    with pytest.raises(errors.RedisRefused, match=r"XADD sbe:\{BTCUSDT\}:a"):
        await LineWriter(redis, "BTCUSDT", "a").append([(1, b"x")])


async def test_the_identity_of_a_data_set_is_stable(redis: Redis, each_server: RedisServer) -> None:
    """Two connections to one server see the same identity."""
    other = redis_client(each_server.url)

    identities = [await server_identity(redis), await server_identity(other)]

    assert identities[0] == identities[1]
    assert (len(identities[0].replication_id), identities[0].role) == (40, "master")
    await other.aclose()


async def test_malformed_entries_are_skipped_and_counted(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    """Every malformed entry between two sound ones is skipped, counted, and all are logged once."""
    writer, reader = LineWriter(redis, "BTCUSDT", "a"), LineReader(redis, "BTCUSDT")
    await writer.append([(1, b"before")])
    count = await spoil(redis, "BTCUSDT", "a")
    await writer.append([(2, b"after")])
    last = (await redis.xinfo_stream(STREAM))["last-generated-id"].decode()
    before = REGISTRY.get_sample_value(DECODE_ERRORS, ENVELOPE) or 0

    batches = await reader.read(0, count=1_000)

    assert [1, 2] == [batch.first_received_us for batch in batches]
    assert (len(MALFORMED), last) == (count, reader.ids["a"])
    assert (count, count) == (reader.skipped, REGISTRY.get_sample_value(DECODE_ERRORS, ENVELOPE) - before)
    assert 1 == sum("skipped" in record.message for record in caplog.records)


async def test_nothing_but_malformed_entries_is_passed_too(redis: Redis) -> None:
    """A read that finds only malformed entries goes on after them, also after those that claim to be of far times."""
    await LineWriter(redis, "BTCUSDT", "a").append([(1, b"x")])
    reader = LineReader(redis, "BTCUSDT")
    await reader.read(0)
    await spoil(redis, "BTCUSDT", "a")
    for entry_id in BAD_IDS:
        await redis.xadd(STREAM, {"n": 1, "t": 1, "f": b""}, id=entry_id.decode())

    assert [] == await reader.read(0, count=1_000)
    assert BAD_IDS[-1].decode() == reader.ids["a"]
    assert [] == await reader.read(0)


async def test_registered_lines_that_are_none_are_left_out(redis: Redis) -> None:
    """Names that are none, keys of other types and hundreds of lines: the known line is read, and sixteen in all."""
    writer, reader = LineWriter(redis, "BTCUSDT", "a"), LineReader(redis, "BTCUSDT")
    await writer.append([(1, b"x")])
    await reader.read(0)
    await spoil_lines(redis, "BTCUSDT")

    named = await reader.discover()
    await writer.append([(2, b"y")])
    batches = await reader.read(0)

    assert ("a" in named, 16) == (True, len(named))
    assert [] == [name for name in named if name.startswith("strange")]
    assert 2 in [batch.first_received_us for batch in batches]


async def test_a_line_that_is_no_stream_any_more_stops_no_other(redis: Redis) -> None:
    """A key that turns into another type while it is read costs one empty read; so does the set of lines."""
    for line in ("a", "b"):
        await LineWriter(redis, "BTCUSDT", line).append([(1, b"x")])
    reader = LineReader(redis, "BTCUSDT")
    await reader.read(0)
    await redis.set(STREAM, "text")
    await redis.set("lines:{BTCUSDT}", "text")
    await redis.xadd(line_stream("BTCUSDT", "b"), {"n": 1, "t": 7, "f": b""})

    batches = await reader.read(0) or await reader.read(0, now_us=10_000_000)

    assert [("b", 7)] == [(batch.line, batch.first_received_us) for batch in batches]


async def test_lines_that_have_gone_make_room(redis: Redis) -> None:
    """Over the years lines may have many names: those whose streams have ended do not count."""
    reader = LineReader(redis, "BTCUSDT")
    for number in range(40):
        await redis.delete(line_stream("BTCUSDT", f"zone-{number - 1}"))
        await LineWriter(redis, "BTCUSDT", f"zone-{number}").append([(number, b"x")])
        assert f"zone-{number}" in await reader.discover()
