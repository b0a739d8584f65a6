"""A second venue under the whole pipeline: a line, a processor and re-anchors that know nothing of its formats."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from conftest import RedisServer
from sheetanchor._decoder import Market
from sheetanchor.reanchor.command import run_on
from sheetanchor.runtime.settings import ReanchorSettings
from sheetanchor.venue import TradingVenue
from support.line import Line, line
from support.process_parts import SYMBOL, Stage, staged, until
from support.toy_exchange import TOY_KEY, ToyExchange, moving, toy_exchange
from support.toy_venue import ToyVenue

VENUE: TradingVenue = ToyVenue()


@pytest.fixture
async def stage(redis_server: RedisServer, tmp_path: Path) -> AsyncIterator[Stage]:
    """An empty server, and whatever is started on it is ended."""
    async with staged(redis_server.url, tmp_path) as made:
        yield made


@pytest.fixture
async def exchange() -> AsyncIterator[ToyExchange]:
    """A running toy exchange."""
    async with toy_exchange() as running:
        yield running


@pytest.fixture
async def feed(stage: Stage, exchange: ToyExchange) -> AsyncIterator[Line]:
    """A line that is connected to the toy exchange."""
    async with line(stage.url, f"ws://{exchange.origin}", VENUE, api_key=SecretStr(TOY_KEY)) as running:

        async def listens() -> bool:
            return exchange.listeners == 1

        await until(listens, 10, "the line listens")
        yield running


async def reanchor(stage: Stage, exchange: ToyExchange) -> int:
    """Run a re-anchor on the toy venue; gives its exit code."""
    settings = ReanchorSettings(
        symbol=[SYMBOL], redis_url=stage.url, rest_url=f"http://{exchange.origin}", timeout_s=30.0
    )
    return await run_on(settings, VENUE)


async def equals(stage: Stage, exchange: ToyExchange) -> None:
    """Wait until the stored book is the exchange's, level by level, and the hot levels are its best ones."""
    await stage.holds(exchange.seq)
    market = Market(SYMBOL)

    async def is_stored() -> bool:
        packed = await stage.hot.book()
        if packed is not None:
            market.load_book(packed)
        return market.update_id == exchange.seq

    await until(is_stored, 10, f"the book of update {exchange.seq}")
    assert exchange.levels == market.levels()
    ob = (await stage.hot.read()).ob
    for side, levels in zip(("bid", "ask"), exchange.levels, strict=True):
        shown = [(float(ob[f"{side}{at}_p"]), float(ob[f"{side}{at}_q"])) for at in range(1, 11)]
        assert [(price / 1e8, qty / 1e8) for price, qty in levels[:10]] == shown


async def test_the_pipeline_anchors_on_another_venue_and_follows_it(
    stage: Stage, exchange: ToyExchange, feed: Line
) -> None:
    """The first anchor comes from its REST answers, what follows from its stream; every level is the exchange's."""
    stage.start()
    async with moving(exchange):
        assert 0 == await reanchor(stage, exchange)
        await stage.has_writer()
    await exchange.move()

    await equals(stage, exchange)
    read = await stage.hot.read()
    assert ("anchored", 1, "") == (read.anchor["state"], read.epoch, read.incomplete)
    assert {"book", "fills", "bars", "quote"} == set(exchange.asked)
    assert int(read.tr_5s["count"]) > 0
    assert [] == await stage.gaps()
    assert 0 == (await feed.stats())["sbe_decoder"]["decode_errors"]


async def test_a_message_that_it_loses_is_a_gap_and_a_reanchor_heals_it(
    stage: Stage, exchange: ToyExchange, feed: Line
) -> None:
    """A change that was never sent is found by the ids alone, and the book is right again after the re-anchor."""
    stage.start()
    async with moving(exchange):
        assert 0 == await reanchor(stage, exchange)
        await stage.has_writer()
    await exchange.move(lost=True)
    async with moving(exchange):
        await stage.told("sequence_gap")
        await stage.is_state("suspect")
        assert 0 == await reanchor(stage, exchange)
        await stage.is_state("anchored")
    await exchange.move()

    await equals(stage, exchange)
    assert 2 == (await stage.hot.read()).epoch
    assert 1 == (await feed.stats())["frames"]["sequence_gaps"]


async def test_a_message_that_cannot_be_translated_is_counted_and_kept(
    stage: Stage, exchange: ToyExchange, feed: Line
) -> None:
    """It is stored unchanged, so that a new kind of message does not look like silence."""
    await exchange.move()
    await exchange.say([{"k": "fill", "no": "not a number", "px": "1", "sz": "1", "taker": "buy"}])
    await exchange.move()

    await feed.shows("sbe_decoder", "decode_errors", lambda count: count == 1)

    async def is_kept() -> bool:
        return any(b'"not a number"' in frame for frame in await feed.frames())

    await until(is_kept, 10, "the message in the stream")
