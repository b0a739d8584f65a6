"""Symbols of the exchange's whole alphabet: what is one, and what is made of it."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sheetanchor import sbe
from sheetanchor._decoder import Market
from sheetanchor.binance.websocket import stream_url
from sheetanchor.contract import SYMBOL_PATTERN, keys, line_stream, stream_symbol
from sheetanchor.errors import BadSettings
from sheetanchor.policy.reanchor_object import (
    Owner,
    ReAnchorRequest,
    labels_of,
    object_name,
    reanchor_object,
    symbol_label,
)
from sheetanchor.runtime.command_line import load
from sheetanchor.runtime.settings import IngestSettings, ReanchorSettings
from sheetanchor.simulator.control import is_stream_name
from sheetanchor_operator import names
from sheetanchor_operator.api.reanchor_spec import ReanchorSpec

ROOT = Path(__file__).resolve().parents[2]
FOREIGN = ["这是测试币456", "币安人生USDT", "ЙЦЖЩUSDT", "ÄÖÜ", "日本", "𠮷𠮷"]
REFUSED = [
    "",
    "A",
    "btcusdt",
    "BTC USDT",
    "BTC/USDT",
    "BTC{USDT}",
    "BTC}USDT",
    "BTC\\USDT",
    "BTC-USDT",
    "BTC@TRADE",
    "BTC?USDT",
    "BTC%55",
    "BTC\nUSDT",
    "BTC\x00",
    "BTC\x85",
    "BTC\u00a0USDT",
    "BTC\u200bUSDT",
    "BTC\u2028USDT",
    "BTC\u3000USDT",
    "BTC\ufeffUSDT",
    "BTC\u202eTDSU",
    "A" * 21,
    "币" * 21,
]
SYMBOLS = st.from_regex(SYMBOL_PATTERN, fullmatch=True)
LABEL_VALUE = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
OBJECT_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


def pattern_in(path: str, *place: str) -> str:
    """The pattern of a symbol in a definition."""
    node = yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for name in ("spec", *place):
        node = node["items"] if name == "*" else node["properties"][name]
    return str(node["pattern"])


@pytest.mark.parametrize("symbol", ["BTCUSDT", "1000SATSUSDT", *FOREIGN])
def test_symbols_of_any_script_are_settings(symbol: str) -> None:
    """Every role takes them, from flags and from variables."""
    assert [symbol] == load(IngestSettings, {"symbol": [symbol]}, {}).symbol
    assert [symbol, "BTCUSD"] == load(ReanchorSettings, {}, {"SHEETANCHOR_SYMBOL": f"{symbol},BTCUSD"}).symbol
    assert symbol == ReanchorSpec.model_validate({"pipeline": "p", "symbol": symbol}).symbol


@pytest.mark.parametrize("symbol", REFUSED)
def test_what_is_no_symbol_is_refused(symbol: str) -> None:
    """White space, what cannot be seen, what is part of keys and addresses, lower case: one clear error."""
    with pytest.raises(BadSettings, match="expected 2 to 20 capital letters or digits"):
        load(IngestSettings, {"symbol": [symbol]}, {})


@pytest.mark.parametrize(
    "pattern",
    [
        pattern_in("crds/predictionpipelines.yaml", "symbols", "*"),
        pattern_in("crds/reanchors.yaml", "symbol"),
    ],
)
def test_the_definitions_take_the_same(pattern: str) -> None:
    """What a role takes the API server takes too, and nothing else."""
    accepted = [symbol for symbol in ["BTCUSDT", *FOREIGN, *REFUSED] if re.search(pattern, symbol)]

    assert [symbol for symbol in ["BTCUSDT", *FOREIGN, *REFUSED] if SYMBOL_PATTERN.fullmatch(symbol)] == accepted
    assert f"^{SYMBOL_PATTERN.pattern}$" == pattern


@given(SYMBOLS)
def test_a_symbol_goes_into_every_name(symbol: str) -> None:
    """Redis keys, addresses, names and labels of objects: each is valid in its place, and distinguishes symbols."""
    url = stream_url("wss://host", [symbol], ["trade"])
    ask = ReAnchorRequest(symbol, "s1", "immediate_reanchor", "why", "manual", "test", 1)
    made = reanchor_object(Owner("pipeline", "space"), ask)

    assert f"ob:{{{symbol}}}" == keys(symbol).ob
    assert 1 == line_stream(symbol, "a").count("{") == line_stream(symbol, "a").count("}")
    assert url.isascii()
    assert f"streams={stream_symbol(symbol)}@trade" == unquote(urlsplit(url).query)
    assert is_stream_name(f"{stream_symbol(symbol)}@trade")
    assert OBJECT_NAME.fullmatch(made["metadata"]["name"])
    values = {*made["metadata"]["labels"].values(), *names.labels_of("pipeline", "reanchor", symbol=symbol).values()}
    assert [] == [value for value in values if not LABEL_VALUE.fullmatch(value)]
    assert symbol == made["spec"]["symbol"]


@given(st.lists(SYMBOLS, min_size=2, max_size=2, unique=True))
def test_two_symbols_have_two_names(symbols: list[str]) -> None:
    """Names and labels of different symbols are different; plain symbols stand in them as they are."""
    first, second = symbols

    assert symbol_label(first) != symbol_label(second)
    assert object_name("p", first, "s") != object_name("p", second, "s")
    assert symbol_label("BTCUSDT") == labels_of("p", "BTCUSDT")["sheetanchor.dev/symbol"] == "BTCUSDT"
    assert object_name("p", "BTCUSDT", "s") == "p-btcusdt-s"


@pytest.mark.parametrize(
    ("symbol", "expected"), [("BTCUSDT", "btcusdt"), ("币USDT", "币usdt"), ("ÄÖÜ", "ÄÖÜ"), ("İİ", "İİ"), ("ЙЦ", "ЙЦ")]
)
def test_only_a_to_z_have_a_lower_case(symbol: str, expected: str) -> None:
    """Stream names are lower-cased where that is the same everywhere, and keep their length."""
    assert expected == stream_symbol(symbol)


@pytest.mark.parametrize("symbol", FOREIGN)
def test_a_market_of_such_a_symbol_works(symbol: str) -> None:
    """Frames, the packed book and what is reported about it."""
    market = Market(symbol)
    market.load_snapshot(1, -2, -2, [(100, 1)], [(101, 1)], 1)
    market.feed(0, b"", 1)
    frame = sbe.encode(sbe.DepthDiff(5, symbol, -2, -2, 2, 2, ((99, 3),), ()))
    market.feed(0, len(frame).to_bytes(4, "little") + bytes(8) + frame, 5)
    other = Market(symbol)
    other.load_book(market.pack_book(1, {}))

    assert (2, [(100, 1), (99, 3)]) == (other.update_id, other.levels()[0])
