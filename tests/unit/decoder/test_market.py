"""Lines of frames to a book, on the native market and on the plain Python one."""

from __future__ import annotations

from typing import Any

import pytest

from sheetanchor import sbe
from support.market_parts import ASKS, BIDS, T0, Market, batch, best, counted, diff, hot, native_market, trades

# --- depth


def test_levels_are_set_and_removed(market: Market) -> None:
    """A diff sets new quantities, adds levels and removes those of quantity 0."""
    market.feed(0, batch(diff(101, 103, [(5978655, 0), (5978600, 7), (5978500, 9)], [(5978650, 4)])), 1000)

    assert ([(5978600, 7), (5978500, 9)], [(5978650, 4), *ASKS]) == market.levels()
    assert 103 == market.update_id


def test_removing_an_unknown_level_changes_nothing(market: Market) -> None:
    """Quantity 0 for a price that the book does not hold is no error."""
    market.feed(0, batch(diff(101, 101, [(1, 0)], [(9999999, 0)])), 1000)

    assert (BIDS, ASKS) == market.levels()


@pytest.mark.parametrize(("first", "last", "applied"), [(90, 100, 0), (100, 101, 1), (101, 101, 1), (50, 200, 1)])
def test_first_diff_after_a_snapshot(market: Market, first: int, last: int, applied: int) -> None:
    """The first diff applied after snapshot L is one with U <= L + 1 <= u; what ends before is left out."""
    market.feed(0, batch(diff(first, last)), 1000)

    assert applied == market.counters()["diffs_applied"]
    assert 1 - applied == market.counters()["diffs_duplicate"]
    assert market.depth_gap is None


def test_a_gap_in_the_diffs(market: Market) -> None:
    """A diff beyond the next id waits, and the gap says what is missing, since when, and which lines have passed it."""
    market.feed(3, batch(diff(105, 106)), 1000)
    market.feed(1, batch(diff(107, 108)), 2000)

    assert (101, 105, 1000, 0b1010) == market.depth_gap
    assert 100 == market.update_id
    assert 108 == market.last_seen_update_id


def test_any_line_fills_the_gap(market: Market) -> None:
    """Waiting diffs are applied as soon as another line brings what is missing."""
    market.feed(0, batch(diff(105, 106, [(5978655, 5)])), 1000)

    market.feed(1, batch(diff(101, 104, [(5978655, 4)])), 1100)

    assert (106, None) == (market.update_id, market.depth_gap)
    assert (5978655, 5) == market.top(1)[0][0]


def test_the_second_line_repeats(market: Market) -> None:
    """Every diff counts once, however many lines bring it, also while it waits."""
    frames = batch(diff(101, 102, [(5978655, 1)]), diff(105, 106))

    for line in (0, 1, 2):
        market.feed(line, frames, 1000)

    assert (101 + 2, 105, 1000, 0b111) == market.depth_gap
    assert {"frames": 6, "diffs_applied": 1, "diffs_duplicate": 4} == counted(market)


def test_a_later_gap_keeps_its_own_lines(market: Market) -> None:
    """When the first of two gaps is filled, the second one's time and lines are those of its own frames."""
    market.feed(0, batch(diff(103, 103)), 1000)
    market.feed(1, batch(diff(106, 106)), 2000)

    market.feed(2, batch(diff(101, 102)), 3000)

    assert (104, 106, 2000, 0b10) == market.depth_gap


def test_giving_up_on_a_gap(market: Market) -> None:
    """After a declared gap the market goes on with what waits."""
    market.feed(0, batch(diff(105, 106, [(5978655, 5)]), diff(109, 110)), 1000)

    market.skip_depth_gap()

    assert (106, (107, 109, 1000, 1)) == (market.update_id, market.depth_gap)


def test_waiting_diffs_are_bounded(market: Market) -> None:
    """At most 4,096 diffs wait; the rest are counted, and their lines still count as past the gap."""
    frames = [diff(200 + 2 * n, 200 + 2 * n) for n in range(4097)]

    market.feed(0, batch(*frames[:4096]), 1000)
    market.feed(1, batch(frames[4096]), 1000)

    assert 1 == market.counters()["pending_overflow"]
    assert (101, 200, 1000, 0b11) == market.depth_gap


def test_waiting_levels_are_bounded() -> None:
    """However long the diffs that wait, they hold about a million levels at most."""
    market = native_market()
    side = [(price, 1) for price in range(1, 65001)]
    frames = [batch(diff(200 + 2 * n, 200 + 2 * n, side, side)) for n in range(9)]

    for frame in frames:
        market.feed(0, frame, 1000)

    assert 1 == market.counters()["pending_overflow"]
    market.skip_depth_gap()
    assert (200, 214) == (market.update_id, market.last_seen_update_id - 2)


def test_stopping_at_an_update(market: Market) -> None:
    """Feeding stops right after the diff that reaches the given id, and goes on from there later."""
    frames = [diff(101, 102), diff(103, 104), diff(105, 106)]

    consumed = market.feed(0, batch(*frames), 1000, 104)

    assert (2, 104) == (consumed, market.update_id)
    market.feed(0, batch(*frames[consumed:]), 1000)
    assert 106 == market.update_id


def test_stopping_among_waiting_diffs(market: Market) -> None:
    """The stop also holds while waiting diffs are applied."""
    market.feed(0, batch(diff(103, 104), diff(105, 106)), 1000)

    market.feed(1, batch(diff(101, 102)), 1000, 104)

    assert (104, None) == (market.update_id, market.depth_gap)
    market.feed(1, b"", 1000)
    assert 106 == market.update_id


def test_giving_up_never_goes_back(market: Market) -> None:
    """Skipping while a stop left overlapping diffs waiting applies them and keeps the update id rising."""
    market.feed(0, batch(diff(103, 110), diff(104, 112)), 1000)
    market.feed(1, batch(diff(101, 102)), 1000, 110)

    market.skip_depth_gap()

    assert (112, None) == (market.update_id, market.depth_gap)


def test_before_the_book(make: Any) -> None:
    """Without a book diffs are only remembered by id; trades and best prices work."""
    market = make("BTCUSDT")

    market.feed(0, batch(diff(101, 102), best(50, 100, 102), trades((1, 5, 6, True))), 1000)

    assert (False, 102, 1) == (market.has_book, market.last_seen_update_id, market.trade_id)
    assert (1.01, 0.05) == (market.mid, market.last_trade_price)
    with pytest.raises(ValueError, match="Empty order book data"):
        market.hot_state(1000)


def test_depth20_agrees_or_not(market: Market) -> None:
    """A depth20 frame of the book's own update is compared with it; of any other update it is left out."""

    def shown(update: int, bids: list[tuple[int, int]]) -> sbe.DepthSnapshot:
        return sbe.DepthSnapshot(T0, "BTCUSDT", -2, -5, update, tuple(bids), tuple(ASKS))

    market.feed(0, batch(shown(100, BIDS), shown(99, BIDS), shown(100, BIDS[:1]), shown(100, [(1, 1), *BIDS])), 1)

    expected = {"frames": 4, "depth20_checked": 3, "depth20_mismatches": 2, "depth20_ignored": 1}
    assert expected == counted(market)


def test_depth20_shows_the_best_twenty(make: Any) -> None:
    """Against a deeper book only the levels shown are compared."""
    market = make("BTCUSDT")
    bids = [(1000 - n, 5) for n in range(40)]
    asks = [(1001 + n, 5) for n in range(40)]
    market.load_snapshot(100, -2, -5, bids, asks, 0)

    market.feed(0, batch(sbe.DepthSnapshot(T0, "BTCUSDT", -2, -5, 100, tuple(bids[:20]), tuple(asks[:20]))), 1)

    assert {"frames": 1, "depth20_checked": 1} == counted(market)


def test_crossed_book(market: Market) -> None:
    """A bid at or above the best ask makes the book crossed."""
    before = market.crossed

    market.feed(0, batch(diff(101, 101, [(5978700, 1)])), 1000)

    assert (False, True) == (before, market.crossed)


# --- trades


def test_a_frame_may_be_half_known(market: Market) -> None:
    """Trades count once each, not once per frame."""
    market.feed(0, batch(trades((1, 5, 6, True), (2, 5, 6, True))), 1000)

    market.feed(1, batch(trades((2, 5, 6, True), (3, 5, 6, True))), 1000)

    assert {"frames": 2, "trades_applied": 3, "trades_duplicate": 1} == counted(market)


def test_a_gap_in_the_trades(market: Market) -> None:
    """Trades beyond the next id wait until another line brings what is missing."""
    market.feed(0, batch(trades((1, 5, 6, True))), 1000)
    market.feed(0, batch(trades((4, 5, 6, True))), 1100)
    market.feed(1, batch(trades((5, 5, 6, True))), 1200)
    gap = market.trade_gap

    market.feed(1, batch(trades((2, 5, 6, True), (3, 5, 6, True))), 1300)

    assert (2, 4, 1100, 0b11) == gap
    assert (5, None) == (market.trade_id, market.trade_gap)


def test_late_trades_still_enter_the_windows(market: Market) -> None:
    """A trade that comes after its gap was given up counts in the windows, once."""
    market.feed(0, batch(trades((1, 5, 1, True)), trades((3, 5, 4, True))), 1000)
    market.skip_trade_gap()

    market.feed(1, batch(trades((2, 5, 2, True)), trades((2, 5, 2, True))), 1000)

    assert 7e-5 == market.volume_between(T0 - 1, T0)
    assert {"frames": 4, "trades_applied": 2, "trades_late": 1, "trades_duplicate": 1} == counted(market)


def test_trades_from_elsewhere(market: Market) -> None:
    """REST trades are merged by id with those of the lines, whichever come first."""
    market.feed(0, batch(trades((5, 10, 100, False), (6, 10, 100, True))), 1000)

    market.seed_trades([(n, 1000, 1000, T0 + n, n % 2 == 0) for n in (7, 3, 4, 5, 6)], -4, -6)

    assert (7, None) == (market.trade_id, market.trade_gap)
    assert 5e-3 == market.volume_between(0, T0 + 10)


def test_volume_between_excludes_the_start(market: Market) -> None:
    """A period's volume has trades after its start up to and including its end."""
    for n in range(4):
        market.feed(0, batch(trades((n + 1, 5, 10**n, True), at=T0 + n)), 1000)

    assert 110e-5 == market.volume_between(T0, T0 + 2)


def test_old_trades_are_forgotten(market: Market) -> None:
    """Two minutes of trades are kept; a forgotten trade that comes again is a duplicate."""
    market.feed(0, batch(trades((1, 5, 1, True)), trades((2, 5, 1, True), at=T0 + 120_000_001)), 1000)

    market.feed(1, batch(trades((1, 5, 1, True))), 1000)

    assert 1e-5 == market.volume_between(0, T0 + 2**40)
    assert 1 == market.counters()["trades_duplicate"]


# --- best bid and ask


def test_newer_best_prices_win(market: Market) -> None:
    """best_* come from bestBidAsk when its id is above the book's, with price, spread and time together."""
    market.feed(0, batch(best(101, 5978660, 5978690, T0 + 5)), 1000)

    ob = hot(market)[0]

    assert ("59786.60", "59786.90", "0.3") == (ob["best_bid"], ob["best_ask"], ob["spread"])
    assert ("101", "100", str(T0 + 5)) == (ob["bba_id"], ob["update_id"], ob["ts_us"])
    assert "59786.55" == ob["bid1_p"]


def test_older_best_prices_do_not_revert_newer_depth(market: Market) -> None:
    """A bestBidAsk below the book's update leaves best_* and ts_us as the depth has them."""
    market.feed(0, batch(diff(101, 110, at=T0 + 9)), 1000)

    market.feed(0, batch(best(105, 5978660, 5978690, T0 + 8)), 1000)

    ob = hot(market)[0]
    assert ("59786.55", str(T0 + 9)) == (ob["best_bid"], ob["ts_us"])


def test_stale_best_prices(market: Market) -> None:
    """A bestBidAsk that is not newer than the last one is counted and left out."""
    market.feed(0, batch(best(102, 5978660, 5978690), best(102, 1, 2), best(101, 1, 2)), 1000)

    assert {"frames": 3, "bba_applied": 1, "bba_stale": 2} == counted(market)
    assert 59786.75 == market.mid


@pytest.mark.parametrize("gone", [0, 1])
def test_best_prices_of_an_empty_side(market: Market, gone: int) -> None:
    """A side without orders is sent as zeros: nothing can be said until a newer bestBidAsk has both sides again."""
    sides = [(5978660, 1000), (5978690, 2000)]
    sides[gone] = (0, 0)

    market.feed(0, batch(sbe.BestBidAsk(T0, "BTCUSDT", -2, -5, 101, *sides[0], *sides[1])), 1000)

    assert (101, tuple(price for price, _ in sides)) == (market.bba_id, market.quoted_best)
    assert market.mid is None
    with pytest.raises(ValueError, match="Empty order book data"):
        market.hot_state(1000)
    market.feed(0, batch(best(102, 5978660, 5978690)), 2000)
    assert "59786.60" == hot(market)[0]["best_bid"]


def test_an_empty_side_is_not_packed(market: Market, make: Any) -> None:
    """Who takes the book over has it from the book itself, or from the next bestBidAsk."""
    market.feed(0, batch(sbe.BestBidAsk(T0, "BTCUSDT", -2, -5, 101, 0, 0, 5978690, 2000)), 1000)
    other = make("BTCUSDT")

    other.load_book(market.pack_book(7, {}))

    assert (-1, None) == (other.bba_id, other.quoted_best)
    assert 59786.775 == other.mid


# --- bad input


def test_poison_stops_nothing(market: Market) -> None:
    """Bad frames are counted by kind, and what follows is applied."""
    foreign = diff(101, 101, symbol="ETHUSDT")
    wrong_schema = b"\x12\x00\x10\x27\x02\x00\x00\x00"

    market.feed(0, batch(b"", b"xx", wrong_schema, foreign, sbe.encode(diff(101, 101)) + b"!", diff(102, 102)), 1000)

    expected = {
        "frames": 6,
        "diffs_applied": 2,
        "foreign_symbol": 1,
        "trailing_bytes": 1,
        "decode_error.truncated": 2,
        "decode_error.schema_mismatch": 1,
    }
    assert expected == counted(market)


@pytest.mark.parametrize(
    "message",
    [
        diff(101, 101, [(5978655, 0), (0, 5)]),
        diff(101, 101, [(5978655, 0), (5978600, -5)]),
        diff(101, 101, [(5978655, 0), (2**62, 5)]),
        diff(101, 101, [(2**60, 2**60)]),
        diff(101, 100),
        diff(101, 2**62),
        diff(-5, 101),
        diff(101, 101, at=-1),
        diff(101, 101, at=2**52),
        best(101, -1, 5),
        best(2**62, 4, 5),
        sbe.BestBidAsk(T0, "BTCUSDT", -2, -5, 101, 5, 0, 6, 1),
        trades((1, 0, 1, True)),
        trades((1, 1, 0, True)),
        trades((-1, 1, 1, True)),
        trades((1, 1, 1, True), (2, -1, 1, True)),
        sbe.Trades(T0, "BTCUSDT", -2, -5, -(2**63), ((1, 1, 1, True),)),
        sbe.DepthDiff(T0, "BTCUSDT", -19, -5, 101, 101, (), ()),
        sbe.DepthDiff(T0, "BTCUSDT", -18, -5, 101, 101, (), ()),
        sbe.DepthDiff(T0, "BTCUSDT", 18, -5, 101, 101, ((1, 1),), ()),
    ],
)
def test_values_beyond_use(market: Market, message: sbe.Message) -> None:
    """A sound frame with impossible values is counted, and nothing of it is applied."""
    market.feed(0, batch(message), 1000)

    assert {"frames": 1, "bad_value": 1} == counted(market)
    assert ((BIDS, ASKS), 100, -1, -1) == (market.levels(), market.update_id, market.trade_id, market.event_us)


@pytest.mark.parametrize("cut", [1, 11, 12, 40])
def test_broken_framing(market: Market, cut: int) -> None:
    """A batch that does not add up is refused before anything of it is applied."""
    good = batch(diff(101, 101))

    with pytest.raises(ValueError, match="offset"):
        market.feed(0, good + good[:cut], 1000)

    assert (100, {}) == (market.update_id, counted(market))


@pytest.mark.parametrize(("line", "stamp_us"), [(-1, 0), (16, 0), (0, -1), (0, 2**52)])
def test_bad_arguments(market: Market, line: int, stamp_us: int) -> None:
    """A line or stamp out of range is refused by name."""
    with pytest.raises(ValueError, match=r"line|stamp_us"):
        market.feed(line, b"", stamp_us)


@pytest.mark.parametrize(
    ("bids", "asks"),
    [
        ([(1, 0)], []),
        ([(0, 1)], []),
        ([(1, 1), (1, 2)], []),
        ([], [(5, 1), (5, 1)]),
        ([], [(-5, 1)]),
        ([(2**62, 1)], []),
    ],
)
def test_bad_snapshot(market: Market, bids: list[tuple[int, int]], asks: list[tuple[int, int]]) -> None:
    """A snapshot with a level that is none, or a price twice, is refused and changes nothing."""
    with pytest.raises(ValueError, match=r"bids|asks|snapshot"):
        market.load_snapshot(200, -2, -5, bids, asks, 0)

    assert ((BIDS, ASKS), 100) == (market.levels(), market.update_id)


# --- exponents


def test_coarser_and_finer_frames(market: Market) -> None:
    """Frames of other exponents are brought to the finest one met, exactly."""
    market.feed(0, batch(trades((1, 5978655, 3, True))), 1000)
    coarse = sbe.DepthDiff(T0, "BTCUSDT", 0, -3, 101, 101, ((59780, 7),), ())
    fine = sbe.DepthDiff(T0, "BTCUSDT", -4, -8, 102, 102, ((597800001, 70000001),), ())

    market.feed(0, batch(coarse, fine), 1000)

    assert (-4, -8) == (market.price_exponent, market.qty_exponent)
    expected = [(597865500, 150000000), (597860000, 220000000), (597800001, 70000001), (597800000, 700000)]
    assert expected == market.levels()[0]
    assert (59786.55, 3e-5) == (market.last_trade_price, market.volume_between(0, T0))
    assert "0.70000001" == hot(market)[0]["bid3_q"]


def test_waiting_frames_follow_the_exponents(market: Market) -> None:
    """What waits beyond a gap is brought to finer exponents too."""
    market.feed(0, batch(diff(103, 103, [(5978655, 9)]), trades((1, 5, 6, True)), trades((3, 7, 8, True))), 1000)

    market.feed(1, batch(sbe.DepthDiff(T0, "BTCUSDT", -3, -6, 101, 102, (), ()), trades((2, 5, 6, True))), 1000)

    assert (59786550, 90) == market.top(1)[0][0]
    assert 20e-5 == market.volume_between(0, T0)


def test_positive_exponents(make: Any) -> None:
    """A positive exponent adds zeros, not a point."""
    market = make("X")
    market.load_snapshot(1, 2, 0, [(5, 3)], [(6, 4)], 0)

    ob = hot(market)[0]

    assert ("500", "600", "3", "100.0") == (ob["best_bid"], ob["best_ask"], ob["bid1_q"], ob["spread"])
