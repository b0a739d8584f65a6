"""The whole hot path on a replicated Redis, each role as its own user: no slot is missed when the master goes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sheetanchor.contract import keys
from sheetanchor.store.redis_client import redis_client
from support.patience import PATIENT
from support.replicated_path import SYMBOL, HotPath, hot_path

pytestmark = pytest.mark.slow

PREDS = keys(SYMBOL).preds


def missing(slots: list[int]) -> list[int]:
    """Name the slots that are missing between the first and the last."""
    return sorted(set(range(min(slots), max(slots) + 1)) - set(slots))


@pytest.fixture
def path(tmp_path: Path) -> Iterator[HotPath]:
    """A running hot path on a replicated Redis."""
    with hot_path(tmp_path) as running:
        yield running


async def test_no_slot_is_missed_when_the_master_goes(path: HotPath) -> None:
    """Asked to end, it hands over and every slot is committed; killed, every slot is answered over HTTP meanwhile."""
    members = path.members
    [first] = members.masters()
    began = path.last_slot

    members.servers[first].terminate()
    handed_over = path.last_slot
    path.sound_for(2, "sound predictions after the hand-over", after=handed_over + 1)
    uncommitted = [slot for slot, record in path.records.items() if slot > began and not record["committed"]]
    assert ([], []) == (missing(list(path.records)), uncommitted)

    members.servers[first].start()
    members.wait(members.whole, 40, "the set is whole again")
    [second] = members.masters()
    path.look()
    killed = path.last_slot
    members.servers[second].kill()
    path.sound_for(2, "sound predictions after the loss", after=killed + 2)

    assert second != first
    assert [] == missing(list(path.records))
    away = [record for slot, record in path.records.items() if slot > killed and not record["committed"]]
    assert all(record["degraded"] and record["reason"].startswith("redis: ") for record in away)
    client = redis_client(members.url("infer"), members.password_file("infer"), **PATIENT)
    committed = [int(fields[b"slot"]) for _, fields in await client.xrange(PREDS)]
    await client.aclose()
    assert set(missing(committed)) <= {record["slot"] for record in away}
