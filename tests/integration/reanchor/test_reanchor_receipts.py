"""What a re-anchor run reports to its coordinator, and how it releases the lock of a run that has died."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from conftest import RedisServer
from sheetanchor.contract import Receipt
from sheetanchor.store.hot_state import HotState
from sheetanchor.store.redis_client import redis_client
from support.reanchor_parts import KEYS, SHEETANCHOR, SYMBOL, ExchangeProcess, exchange_process, reanchor

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def venue() -> Iterator[ExchangeProcess]:
    with exchange_process() as running:
        yield running


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[Redis]:
    client = redis_client(redis_server.url)
    yield client
    await client.aclose()


async def run(*flags: str) -> tuple[int, str, str]:
    """Run the command; gives its exit code and what it printed."""
    process = await asyncio.create_subprocess_exec(
        *SHEETANCHOR, "reanchor", *flags, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, out.decode(), err.decode()


async def test_receipt_goes_to_a_file_too(redis_server: RedisServer, venue: ExchangeProcess, tmp_path: Path) -> None:
    """The file holds what is printed, whether the run succeeds or fails."""
    file = tmp_path / "log"
    flags = ["--rest-url", venue.rest_url, f"--receipt-file={file}", "--request-id=uid-1", "--dry-run"]

    good, printed, _ = await run("--redis-url", redis_server.url, *flags)
    reported = file.read_text()
    bad, _, _ = await run("--redis-url", "redis://127.0.0.1:1/0", *flags)
    failed = Receipt.from_json(file.read_text())

    assert (0, json.loads(printed)) == (good, json.loads(reported))
    assert ("dry_run", "uid-1") == (Receipt.from_json(reported).result, Receipt.from_json(reported).request_id)
    assert (5, "failed", 5) == (bad, failed.result, failed.exit_code)


async def test_receipt_file_is_for_one_symbol(tmp_path: Path) -> None:
    """Two symbols would overwrite each other's."""
    code, _, said = await run("--symbol=BTCUSDT", "--symbol=ETHUSDT", f"--receipt-file={tmp_path / 'log'}")

    assert 2 == code
    assert "receipt_file holds one receipt: expected a single symbol" in said


async def test_lock_of_a_dead_run_is_given_back_first(redis: Redis, venue: ExchangeProcess) -> None:
    """With the id of a run that has died it takes over its lock and clears its staging, but no other lock."""
    hot = HotState(redis, SYMBOL)
    assert await hot.lock("reanchor_BTCUSDT_1_ab:uid-1")
    await redis.hset(KEYS.ob_new, "left", "behind")

    other = await reanchor(redis, venue.rest_url, request_id="uid-9", unlock_for=("uid-7", "uid-8"))
    after = await reanchor(redis, venue.rest_url, request_id="uid-2", unlock_for=("uid-7", "uid-1"))

    assert ("lock_held", "swapped") == (other.result, after.result)
    assert ("", 0) == (await hot.lock_holder(), await redis.exists(KEYS.ob_new))


async def test_lock_without_request_is_nobodys_to_give_back(redis: Redis, venue: ExchangeProcess) -> None:
    """If the lock's owner has no request id, it cannot be a run that is known to have died."""
    hot = HotState(redis, SYMBOL)
    assert await hot.lock("reanchor_BTCUSDT_1_ab")

    receipt = await reanchor(redis, venue.rest_url, unlock_for=("uid-1",))

    assert ("lock_held", "reanchor_BTCUSDT_1_ab") == (receipt.result, await hot.lock_holder())
