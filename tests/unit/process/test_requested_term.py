"""The request that a processor take a term: when it may, and how the request is answered."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from sheetanchor.process.ownership.requested_term import RequestedTerm, refusal_of
from sheetanchor.process.ownership.take_action import take_action
from sheetanchor.store.hot_records import Anchor
from sheetanchor.web.control import ControlRefused

STORED = replace(Anchor(), epoch=3, receipt="r3", term=4)


@pytest.mark.parametrize(
    ("epoch", "receipt", "caught_up", "expected"),
    [
        (3, "r3", True, ""),
        (3, "r3", False, "it has not read the lines to their end"),
        (2, "r2", True, "it holds epoch 2, and epoch 3 is stored"),
        (3, "another", True, "it holds epoch 3, and epoch 3 is stored"),
    ],
)
def test_only_what_is_stored_is_built_on(epoch: int, receipt: str, caught_up: bool, expected: str) -> None:
    """A processor that lags, or holds another epoch or receipt, does not take over."""
    assert expected == refusal_of(STORED, epoch, receipt, caught_up=caught_up)


class Symbol:
    """A symbol whose loop answers as a test says."""

    def __init__(self, symbol: str, answer: str) -> None:
        self.symbol, self.requested, self.says = symbol, RequestedTerm(), answer
        self.taken: list[int] = []

    async def turn(self) -> None:
        """A turn of the loop, for ever."""
        while True:
            if self.requested.term:
                self.taken.append(self.requested.term)
                self.requested.answer(self.requested.term, self.says)
            await asyncio.sleep(0)


async def asked(body: dict[str, object], *symbols: Symbol) -> dict[str, object]:
    """Request a term from them while their loops run."""
    turning = [asyncio.create_task(one.turn()) for one in symbols]
    try:
        return await take_action("btc-process-1", symbols)(body)
    finally:
        for task in turning:
            task.cancel()
        await asyncio.gather(*turning, return_exceptions=True)


BODY: dict[str, object] = {"replica": "btc-process-1", "term": 7, "symbols": ["BTCUSDT"]}


async def test_the_loop_takes_the_term_that_is_asked_for() -> None:
    """Of the symbols that are named, and of no others."""
    btc, eth = Symbol("BTCUSDT", ""), Symbol("ETHUSDT", "")
    assert {"replica": "btc-process-1", "term": 7, "symbols": ["BTCUSDT"]} == await asked(BODY, btc, eth)
    assert ({7}, set()) == (set(btc.taken), set(eth.taken))


async def test_a_refusal_names_the_symbol_and_the_reason() -> None:
    """One symbol that does not take is a refusal of the whole request, which names it."""
    both = {**BODY, "symbols": ["BTCUSDT", "ETHUSDT"]}
    with pytest.raises(ControlRefused, match=r"^ETHUSDT: it lags$"):
        await asked(both, Symbol("BTCUSDT", ""), Symbol("ETHUSDT", "it lags"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("replica", "btc-process-0"),
        ("term", 0),
        ("term", True),
        ("term", 2**53),
        ("term", "7"),
        ("symbols", []),
        ("symbols", ["DOGEUSDT"]),
        ("symbols", "BTCUSDT"),
    ],
)
async def test_a_bad_request_is_refused_with_field_and_value(field: str, value: object) -> None:
    """Then no loop receives a request."""
    btc = Symbol("BTCUSDT", "")
    with pytest.raises(ControlRefused) as refused:
        await asked({**BODY, field: value}, btc)
    assert str(refused.value).startswith(f"{field} = {value!r}: expected ")
    assert not btc.taken


async def test_a_request_that_nobody_answers_is_given_up() -> None:
    """It leaves nothing behind: an answer that comes late is dropped, and the next request is made."""
    requested = RequestedTerm()
    assert "not done within" in await requested.request(7, within_s=0.01)
    assert 0 == requested.term
    requested.answer(7, "")

    second = asyncio.create_task(requested.request(8, within_s=60))
    await asyncio.sleep(0)
    assert "another request is being carried out" == await requested.request(9)
    requested.answer(7, "an answer to the one before")
    requested.answer(8, "")
    assert "" == await second
