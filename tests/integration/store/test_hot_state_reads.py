"""Reads while the state is swapped and written as fast as it goes: never a mixture, never backwards."""

from __future__ import annotations

import asyncio
import os
import socket
from dataclasses import dataclass, field

import hiredis
import pytest
from redis.asyncio import Redis

from conftest import RedisServer
from sheetanchor.store.hot_state import HotState
from support.hot_state_cases import anchored, apply, rebuild

READS = int(os.environ.get("SHEETANCHOR_TEST_READS", "100000"))
"""Reads in all; `SHEETANCHOR_TEST_READS=1000000` for the long run."""

READERS = 2
BATCH = 25


@dataclass
class History:
    """What one reader saw, in order."""

    reads: int = 0
    epochs: set[bytes] = field(default_factory=set)
    places: list[tuple[int, int]] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)


def _check(reply: list, history: History) -> None:
    """Record one reply: four hashes of the anchor's epoch, all written by the same call."""
    anchor = dict(zip(reply[3][::2], reply[3][1::2], strict=True))
    ob, tr_1s, tr_5s, feat = (dict(zip(flat[::2], flat[1::2], strict=True)) for flat in reply[4:8])
    epochs = {anchor[b"epoch"], ob[b"epoch"], tr_1s[b"epoch"], tr_5s[b"epoch"], feat[b"epoch"]}
    written = {ob[b"update_id"], tr_1s[b"count"], tr_5s[b"count"], feat[b"ret_1s"]}
    if reply[1] or len(epochs) != 1 or len(written) != 1:
        history.violations.append(f"{reply[1]!r} epochs {epochs} written {written}")
    history.reads += 1
    history.epochs |= epochs
    place = (int(anchor[b"epoch"]), int(ob[b"update_id"]))
    if history.places and history.places[-1] == place:
        return
    history.places.append(place)


def _read_many(port: int, hot: HotState, reads: int) -> History:
    """Read in pipelined batches on one connection, so that a million reads take a minute and not an hour."""
    history = History()
    keys = hot.keys
    words = ("FCALL_RO", "sheetanchor_read", "6", keys.anchor, keys.ob, keys.tr_1s, keys.tr_5s, keys.feat, keys.lock)
    request = hiredis.pack_command(words) * BATCH
    parser = hiredis.Reader()
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        while history.reads < reads:
            connection.sendall(request)
            left = BATCH
            while left:
                reply = parser.gets()
                if reply is False:
                    parser.feed(connection.recv(1 << 17))
                    continue
                _check(reply, history)
                left -= 1
    return history


async def _swap_and_write(hot: HotState, stop: asyncio.Event) -> int:
    """Rebuild and write in turn, as fast as replies come, until stopped; ids go back at every second swap."""
    epoch, swaps = 1, 0
    while not stop.is_set():
        update_id = 1000 + 10 * (swaps % 2)
        assert (await hot.suspect(1, "a", epoch, 0, "test")).ok
        reply = await rebuild(hot, f"run-{swaps}", epoch, update_id)
        assert reply.ok, reply
        epoch, swaps = reply.epoch, swaps + 1
        for step in range(1, 4):
            assert (await apply(hot, update_id + step, epoch=epoch, book=b"packed")).ok
    return swaps


@pytest.mark.timeout(900)
async def test_no_read_mixes_epochs(each_server: RedisServer, hot: HotState, redis: Redis) -> None:
    """All keys of every read are of one epoch and one write, and neither epoch nor update id goes back for a reader."""
    await anchored(hot)
    await hot.read()
    stop = asyncio.Event()
    swapper = asyncio.create_task(_swap_and_write(hot, stop))

    readers = [asyncio.to_thread(_read_many, each_server.port, hot, READS // READERS) for _ in range(READERS)]
    histories = await asyncio.gather(*readers)
    stop.set()
    swaps = await swapper

    assert [history.violations[:3] for history in histories] == [[]] * READERS
    assert sum(history.reads for history in histories) >= READS
    assert swaps > 10
    assert all(len(history.epochs) > 5 for history in histories)
    assert all(history.places == sorted(set(history.places)) for history in histories)
