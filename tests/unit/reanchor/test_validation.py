"""Every check that a rebuilt state has to pass, at its edges."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sheetanchor.reanchor.validation import (
    COMPARED_LEVELS,
    Candidate,
    Limits,
    References,
    book_differences,
    check_consistency,
    check_features,
    check_levels,
    check_order_book,
    check_prices,
    check_trade_window,
    check_windows,
    number,
    validate,
)

BIDS = [(4522950000000 - 1000000 * rank, 10**8) for rank in range(12)]
ASKS = [(4523100000000 + 1000000 * rank, 10**8) for rank in range(12)]
OB = {
    "best_bid": "45229.50000000",
    "best_ask": "45231.00000000",
    "spread": "1.5",
    "spread_bp": "0.3316",
    "ob_imbalance": "0.25",
    "update_id": "100",
    **{f"bid{i}_p": f"{45229.5 - 0.01 * (i - 1):.8f}" for i in range(1, 11)},
    **{f"ask{i}_p": f"{45231 + 0.01 * (i - 1):.8f}" for i in range(1, 11)},
    **{f"{side}{i}_q": "1.00000000" for i in range(1, 11) for side in ("bid", "ask")},
}
TRADES = {
    "count": "2",
    "vol": "3",
    "signed_vol": "1",
    "vwap": "45230",
    "vwap_minus_mid": "-0.25",
    "interarr_mean": "0.1",
    "interarr_var": "0",
}
QUIET = {name: "0" for name in TRADES}
FEAT = {
    "ret_1s": "0.0001",
    "ret_5s": "-0.0002",
    "vol_imbalance": "0.33",
    "spread_bp": "0.3316",
    "ob_imbalance": "0.25",
    "trade_intensity": "0.4",
    "ts": "1700000000",
}
REFERENCES = References(
    {"last trades": (45230.0, 45230.0), "kline": (45200.0, 45230.0), "ticker": (45231.0, 45231.0)}, 45229.0, 45231.0
)
CANDIDATE = Candidate(OB, TRADES, TRADES, FEAT, BIDS, ASKS)


def test_sound_state_passes_every_check() -> None:
    """A sound state passes all checks, and the result lists their names."""
    verdict = validate(CANDIDATE, REFERENCES, Limits())

    assert () == verdict.failures
    assert (
        "order_book",
        "levels",
        "trades_1s",
        "trades_5s",
        "windows",
        "features",
        "consistency",
        "prices",
    ) == verdict.passed


@pytest.mark.parametrize(
    ("changed", "failure"),
    [
        ({"best_bid": "-1"}, "Order book validation failed: Invalid prices: bid/ask must be positive"),
        ({"best_bid": "45231.5"}, "Order book validation failed: Invalid spread: ask must be greater than bid"),
        ({"spread": "1.52"}, "Order book validation failed: Spread calculation mismatch"),
        ({"best_ask": "abc"}, "Order book validation failed: best_ask = 'abc': expected a finite number"),
        ({"best_ask": "inf"}, "Order book validation failed: best_ask = 'inf': expected a finite number"),
        ({"bid3_p": "45229.5"}, "Order book validation failed: bid levels: expected strictly falling prices"),
        ({"ask2_q": "0"}, "Order book validation failed: ask levels: expected prices and quantities above 0"),
    ],
)
def test_bad_order_book_is_named(changed: dict[str, str], failure: str) -> None:
    """Each rule of the order book has its own words."""
    verdict = validate(replace(CANDIDATE, ob={**OB, **changed}), REFERENCES, Limits())

    assert "order_book" not in verdict.passed
    assert any(found.startswith(failure) for found in verdict.failures), verdict.failures


@pytest.mark.parametrize("field", ["best_bid", "best_ask", "spread", "bid1_p", "ask1_p", "update_id"])
def test_missing_field_of_the_book_is_named(field: str) -> None:
    """A missing field is named."""
    ob = {name: value for name, value in OB.items() if name != field}

    assert [f"Missing required field: {field}"] == check_order_book(ob, None, 0.1)


@pytest.mark.parametrize(("estimate", "valid"), [(45229.5 / 0.9, True), (45229.5 / 0.899, False), (None, True)])
def test_price_deviation_at_its_edge(estimate: float | None, valid: bool) -> None:
    """Ten percent from the estimate is allowed, more is not; without an estimate nothing can be said."""
    failures = check_order_book(OB, estimate, 0.1 + 1e-12)

    assert valid == (failures == [])


def test_spread_mismatch_up_to_a_cent_is_allowed() -> None:
    """A spread field may be off by rounding, not by more than a cent."""
    assert [] == check_order_book({**OB, "spread": "1.509"}, None, 0.1)


def test_estimate_comes_from_the_exchange_only() -> None:
    """The estimate is the middle of what the exchange says now, unusable prices left out."""
    assert 45230.0 == REFERENCES.estimate
    assert 101.0 == References({"ticker": (100.0, 102.0), "kline": (float("nan"),) * 2, "trades": (0.0, 0.0)}).estimate
    assert None is References({}).estimate


@pytest.mark.parametrize(
    ("bids", "asks", "failure"),
    [
        ([], ASKS, "bids: expected at least 10 levels, found 0"),
        (BIDS, [], "asks: expected at least 10 levels, found 0"),
        (BIDS[:9], ASKS, "bids: expected at least 10 levels, found 9"),
        (BIDS[::-1], ASKS, "bids: expected strictly ordered prices, found level 1 out of order"),
        (BIDS, [*ASKS[:5], ASKS[4], *ASKS[5:]], "asks: expected strictly ordered prices, found level 5 out of order"),
        ([(p, 0) for p, _ in BIDS], ASKS, "bids: expected prices and quantities above 0"),
        (
            [(ASKS[0][0], 1), *BIDS],
            ASKS,
            "book is crossed: best bid 4523100000000, best ask 4523100000000 (mantissas)",
        ),
    ],
)
def test_bad_depth_is_named(bids: list[tuple[int, int]], asks: list[tuple[int, int]], failure: str) -> None:
    """An empty, truncated, unordered or crossed book is refused in words."""
    assert failure in check_levels(bids, asks, 10)


def test_quiet_window_is_valid_and_zero() -> None:
    """A window without trades is valid when everything in it is zero, whatever was traded earlier."""
    assert [] == check_trade_window(QUIET, 45229.0, 45231.0)
    assert ["vol = 1: expected 0 in a window without trades"] == check_trade_window({**QUIET, "vol": "1"}, None, None)


@pytest.mark.parametrize(
    ("changed", "failure"),
    [
        ({"count": "-1"}, "count = -1: expected a whole number of at least 0"),
        ({"count": "1.5"}, "count = 1.5: expected a whole number of at least 0"),
        ({"vol": "nan"}, "vol = 'nan': expected a finite number"),
        ({"vol": "0"}, "vol = 0: expected above 0 with 2 trades"),
        ({"signed_vol": "-3.1"}, "signed_vol = -3.1: expected at most vol = 3 either way"),
        ({"vwap": "45228.9"}, "vwap = 45228.9: expected within the traded prices 45229 to 45231"),
        ({"interarr_var": "-0.1"}, "interarr_var = -0.1: expected at least 0"),
    ],
)
def test_impossible_window_is_named(changed: dict[str, str], failure: str) -> None:
    """Each impossible statistic has its own words."""
    assert failure in check_trade_window({**TRADES, **changed}, 45229.0, 45231.0)


def test_missing_statistic_is_named() -> None:
    """A missing statistic is named."""
    window = {name: value for name, value in TRADES.items() if name != "vwap"}

    assert ["Missing required field: vwap"] == check_trade_window(window, None, None)


def test_short_window_lies_in_the_long_one() -> None:
    """One second cannot hold more than five."""
    failures = check_windows({**TRADES, "count": "3"}, TRADES)

    assert ["count of 1 s = 3: expected at most that of 5 s = 2"] == failures


@pytest.mark.parametrize(
    ("changed", "failure"),
    [
        ({"ret_1s": "inf"}, "ret_1s = 'inf': expected a finite number"),
        ({"vol_imbalance": "1.01"}, "vol_imbalance = 1.01: expected within -1 and 1"),
        ({"ob_imbalance": "-1.5"}, "ob_imbalance = -1.5: expected within -1 and 1"),
    ],
)
def test_bad_feature_is_named(changed: dict[str, str], failure: str) -> None:
    """A feature that is not finite or out of range is named."""
    assert failure in check_features({**FEAT, **changed})


def test_features_repeat_the_book() -> None:
    """What features repeat of the book must be the same."""
    failures = check_consistency(OB, {**FEAT, "ob_imbalance": "0.26"})

    assert ["ob_imbalance: expected the same in ob and feat, found 0.25 and 0.26"] == failures


@pytest.mark.parametrize(
    ("low", "high", "valid"),
    [
        (45230.25 / 1.019, 45230.25 / 1.019, True),
        (45230.25 / 1.021, 45230.25 / 1.021, False),
        (45230.25 / 1.1, 45230.25 * 1.1, True),
        (45230.25 / 0.979, 45230.25 * 1.1, False),
    ],
)
def test_book_agrees_with_the_other_prices(low: float, high: float, valid: bool) -> None:
    """A kline or ticker two percent away refuses the book; an odd print that widens the range does not."""
    assert valid == (check_prices(OB, {"kline": (low, high)}, 0.02) == [])


def test_price_of_zero_refuses() -> None:
    """A reference price of zero is reported."""
    assert ["ticker = 0: expected prices above 0"] == check_prices(OB, {"ticker": (0.0, 0.0)}, 0.02)


def test_what_is_no_number_reads_as_nan() -> None:
    """No comparison with something that is no number can succeed."""
    assert not number("abc") <= 0
    assert not number(None) <= 0
    assert 1.5 == number("1.5")


def test_equal_books_have_no_differences() -> None:
    """A live book may know more levels than the snapshot."""
    assert [] == book_differences((BIDS, ASKS), (BIDS[:11], ASKS))


def test_differences_of_books_are_reported_best_first() -> None:
    """A changed quantity, a ghost level and a missing one are reported."""
    ghost = [BIDS[0], (BIDS[0][0] - 1, 5), *BIDS[1:]]
    changed = [(ASKS[0][0], 7), *ASKS[1:]]

    reported = book_differences((BIDS, changed), (BIDS, ASKS))

    assert ["ask 1: expected 4523100000000 x 100000000, found 4523100000000 x 7 (mantissas)"] == reported
    assert 6 == len(book_differences((ghost, ASKS), (BIDS, ASKS)))
    assert ["bids: expected 12 levels, found 11"] == book_differences((BIDS[:11], ASKS), (BIDS, ASKS))


def test_only_the_nearest_levels_are_compared() -> None:
    """What lies beyond the compared depth may differ: no snapshot knows it for ever."""
    deep = [(10**12 - rank, 1) for rank in range(COMPARED_LEVELS + 1)]

    assert [] == book_differences((deep[:-1], ASKS), (deep, ASKS))
