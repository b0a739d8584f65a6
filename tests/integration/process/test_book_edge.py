"""A processor whose market leaves what the last snapshot held."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from conftest import RedisServer
from support.process_parts import PRICE, Stage, staged

LEVELS = 50


@pytest.fixture
async def stage(redis_server: RedisServer, tmp_path: Path) -> AsyncIterator[Stage]:
    """An empty server, and whatever is started on it is ended."""
    async with staged(redis_server.url, tmp_path) as made:
        yield made


async def falls(stage: Stage, best: int) -> None:
    """Let the best bid be so many levels below the first, with new bids far down in place of those above."""
    gone = tuple((PRICE - at, 0) for at in range(best))
    new = tuple((PRICE - 1_000 - at, 5) for at in range(best))
    await stage.lines.carry([stage.feed.diff((*gone, *new))])


async def test_it_asks_before_it_doubts_and_a_new_snapshot_ends_it(stage: Stage) -> None:
    """A new snapshot is asked for while the state is right; it is suspect once hot levels may be missing."""
    await stage.anchored(stage.feed.starting_market(LEVELS))
    first = stage.start()
    await stage.holds(stage.feed.update_id, 30)

    await falls(stage, LEVELS - 19)
    near = await stage.told("book_edge")
    assert ("medium", "immediate_reanchor", "anchored") == (
        near.severity,
        near.action,
        (await stage.hot.anchor()).state,
    )

    # The next writer has no snapshot of its own: the packed book has the edges.
    assert 0 == first.stop()
    stage.start()
    await stage.has_writer()
    await falls(stage, LEVELS - 9)
    beyond = await stage.told("book_beyond", within_s=30)
    await stage.is_state("suspect")
    assert "only 9 are within" in beyond.reason

    await stage.rebuild(stage.feed.starting_market(LEVELS), epoch=1)
    await stage.follows()
    await stage.is_state("anchored")
    assert {"book_edge", "book_beyond"} == set(await stage.rules())
