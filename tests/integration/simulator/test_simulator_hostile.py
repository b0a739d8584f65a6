"""Requests that hold anything at all: each is answered in JSON with a code, and the exchange goes on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sheetanchor.errors import BadSettings
from sheetanchor.simulator.control import Subscriptions, answer
from sheetanchor.simulator.faults import RECIPES, check
from support.exchange_client import client
from support.exchange_fixture import LocalExchange

NESTED = "[" * 100_000
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just(10**400)
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(NESTED, id="nested"),
        pytest.param('{"kind":' * 5_000, id="nested objects"),
        pytest.param('{"kind": "drop", "n": 1e999}', id="infinite"),
        pytest.param('{"kind": "drop", "n": ' + "9" * 400 + "}", id="beyond a float"),
        pytest.param('{"kind": "drop", "n": ' + "9" * 5_000 + "}", id="beyond a number"),
        pytest.param('{"kind": "' + "x" * 50_000 + '"}', id="long"),
        pytest.param("\xff", id="no text"),
        pytest.param("null", id="null"),
        pytest.param("7", id="a number"),
        pytest.param('{"kind": []}', id="no kind"),
    ],
)
async def test_a_bad_fault_is_refused_in_a_line(fast_exchange: LocalExchange, body: str) -> None:
    """Whatever is posted."""
    url = fast_exchange.rest_url + "/faults"

    sent = {"data": body.encode("latin-1"), "headers": {"Content-Type": "application/json"}}
    async with fast_exchange.http.post(url, **sent) as response:
        found = await response.json()

    assert 400 == response.status
    assert found["code"] in (-1100, -1102)
    assert len(found["msg"]) <= 1_200


@pytest.mark.parametrize("fault_id", ["9" * 6_000, "٣", "-1", "x"])
async def test_a_bad_id_of_a_fault_is_none(fast_exchange: LocalExchange, fault_id: str) -> None:
    """Longer than any number that can be read, of other digits, of none."""
    async with fast_exchange.http.delete(f"{fast_exchange.rest_url}/faults/{fault_id}") as response:
        assert (404, -1100) == (response.status, (await response.json())["code"])


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([*RECIPES, "nonsense"]),
    st.dictionaries(st.sampled_from(["n", "at", "seconds", "what", "x"]), JSON, max_size=3),
)
def test_any_fault_is_sound_or_refused(kind: str, given_: dict[str, Any]) -> None:
    """One kind of error, in a line."""
    try:
        check(kind, given_)
    except BadSettings as error:
        said = str(error)
    else:
        said = ""

    assert len(said) <= 600


METHODS = ["SUBSCRIBE", "UNSUBSCRIBE", "SET_PROPERTY", "GET_PROPERTY", "LIST_SUBSCRIPTIONS"]
REQUESTS = st.builds(
    lambda method, params, number: json.dumps({"method": method, "params": params, "id": number}),
    st.sampled_from(METHODS) | JSON,
    JSON,
    JSON,
)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=50) | JSON.map(json.dumps) | REQUESTS)
def test_any_text_message_is_answered(text: str) -> None:
    """With a result or one of the four codes."""
    found = json.loads(answer(text, Subscriptions()))

    assert "result" in found or found["code"] in (0, 1, 2, 3)


async def test_a_nested_message_costs_its_answer_only(fast_exchange: LocalExchange) -> None:
    """The connection stays."""
    async with client(fast_exchange, "/ws") as socket:
        await socket.send("[" * 60_000)
        refused = json.loads(await socket.recv())
        await socket.send('{"method":"LIST_SUBSCRIPTIONS","id":1}')

        assert 3 == refused["code"]
        assert {"result": [], "id": 1} == json.loads(await socket.recv())


@pytest.mark.parametrize("symbols", ["[" * 2_000, '["BTCUSDT"' + ',"BTCUSDT"' * 200 + "]", "[7]", "{}", "\x00"])
async def test_a_bad_list_of_symbols_is_refused(fast_exchange: LocalExchange, symbols: str) -> None:
    """Nested, long, of other things."""
    url = fast_exchange.rest_url + "/api/v3/ticker/24hr"

    async with fast_exchange.http.get(url, params={"symbols": symbols}) as response:
        assert (400, True) == (response.status, (await response.json())["code"] in (-1100, -1151))
