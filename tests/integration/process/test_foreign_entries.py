"""What a foreign or broken-in program writes beside the ingestors, and readers of lines that meet it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from conftest import RedisServer
from sheetanchor.contract import line_stream
from support.bad_entries import BROKEN_FRAMES, spoil, spoil_lines
from support.process_parts import SYMBOL, Stage, staged, until
from support.reanchor_parts import exchange_process, fed_line, reanchor

pytestmark = pytest.mark.slow


@pytest.fixture
async def stage(redis_server: RedisServer, tmp_path: Path) -> AsyncIterator[Stage]:
    """An empty server, and whatever is started on it is ended."""
    async with staged(redis_server.url, tmp_path) as made:
        yield made


async def test_whatever_ingestors_write_stops_no_processor(stage: Stage) -> None:
    """Malformed entries, broken frames, lines that are none: skipped, counted, and passed again by a start's replay."""
    first = await stage.started()
    count = await spoil(stage.redis, SYMBOL, "a")
    for packed in BROKEN_FRAMES.values():
        await stage.redis.xadd(line_stream(SYMBOL, "a"), {"n": 1, "t": 1, "f": packed})
    await spoil_lines(stage.redis, SYMBOL)
    await stage.redis.set("gaps:{BTCUSDT}", "no stream")

    await stage.follows()
    first.kill()
    second = stage.start()
    await stage.has_writer((await stage.hot.anchor()).writer)
    await stage.follows()
    stage.feed.diff()
    await stage.lines.carry([stage.feed.diff()])

    async def is_stream() -> bool:
        return bool(await stage.redis.type("gaps:{BTCUSDT}") == b"stream")

    await until(is_stream, 10, "a stream of gaps")
    await stage.told("sequence_gap")
    page = (await asyncio.to_thread(second.get, "/metrics")).decode()
    counted = re.search(
        rf'^sheetanchor_processor_decode_errors_total{{kind="envelope",symbol="{SYMBOL}"}} ([0-9.]+)$',
        page,
        re.MULTILINE,
    )
    assert counted
    assert float(counted[1]) >= count + len(BROKEN_FRAMES)  # more where a start goes back on the lines more than once
    assert 0 == second.stop()


async def test_whatever_ingestors_write_stops_no_rebuild(stage: Stage) -> None:
    """Malformed entries before and among the frames that lead up to the snapshot are skipped."""
    redis = stage.redis
    await spoil_lines(redis, SYMBOL)
    with exchange_process("--weight-limit", "1000000") as exchange:
        async with fed_line(redis, exchange.ws_url):
            await spoil(redis, SYMBOL, "a")
            for packed in BROKEN_FRAMES.values():
                await redis.xadd(line_stream(SYMBOL, "a"), {"n": 1, "t": 1, "f": packed})
            receipt = await reanchor(redis, exchange.rest_url)

    assert ("swapped", 0) == (receipt.result, receipt.exit_code)
