"""The local exchange's rules, without a network and without waiting: time is an argument everywhere."""

from __future__ import annotations

import random
from itertools import islice, pairwise

import pytest

from sheetanchor import sbe
from sheetanchor.errors import BadRecording, BadSettings
from sheetanchor.recording import recording_file
from sheetanchor.simulator import answers
from sheetanchor.simulator.playback.book import Book, changes
from sheetanchor.simulator.playback.market import PlaybackMarket
from sheetanchor.simulator.playback.playback_clock import Burst, Pace, RecordedPace, SteadyPace, parse_burst
from sheetanchor.simulator.playback.script import SEAM_US, Script, begin_at, passes, prepare
from sheetanchor.simulator.playback.tape import Tape, TapeTrade

START_US = 1_700_000_000_000_000
SECOND_US = 1_000_000


@pytest.fixture(scope="module")
def script() -> Script:
    return prepare(recording_file.load(recording_file.default_path()))


def diff(first: int, last: int, bids: list[tuple[int, int]], asks: list[tuple[int, int]], at_us: int) -> bytes:
    return sbe.encode(sbe.DepthDiff(at_us, "BTCUSDT", -8, -8, first, last, tuple(bids), tuple(asks)))


def trades(first: int, count: int, at_us: int) -> bytes:
    group = tuple((first + place, 1050, 7, place % 2 == 0) for place in range(count))
    return sbe.encode(sbe.Trades(at_us, "BTCUSDT", -8, -8, at_us - 300, group))


def small() -> recording_file.Recording:
    """Five messages within four seconds; the recorder's clock is 10 s behind the exchange's."""
    snapshot = sbe.DepthSnapshot(0, "BTCUSDT", -8, -8, 100, ((1000, 5), (990, 6)), ((1100, 5), (1110, 6)))
    best = sbe.BestBidAsk(12_500_000, "BTCUSDT", -8, -8, 106, 1010, 2, 1100, 5)
    events = [
        (1_000_000, diff(99, 103, [(1010, 2)], [], 11_000_000)),
        (2_000_000, trades(7, 2, 11_900_000)),
        (2_500_000, sbe.encode(best)),
        (3_000_000, diff(104, 105, [(990, 0)], [(1105, 9)], 13_000_000)),
        (5_000_000, trades(9, 1, 15_000_000)),
    ]
    return recording_file.Recording("BTCUSDT", snapshot, 1_000_000, events)


def small_market(*, loop: bool = False, warmup_us: int = 0, pace: Pace | None = None) -> PlaybackMarket:
    return PlaybackMarket(prepare(small()), pace or RecordedPace(START_US), loop=loop, warmup_us=warmup_us)


# -- clock ------------------------------------------------------------------------------------------------------------


def test_recorded_distances_are_kept_and_shortened_by_the_speed() -> None:
    """At speed 4 a message recorded eight seconds in is due after two, and its event time moves with it."""
    assert (START_US + 2 * SECOND_US, START_US + SECOND_US) == RecordedPace(START_US, 4).times(9, 8_000_000, 4_000_000)


def test_a_steady_pace_counts_messages_only() -> None:
    """At 500 a second message 1,000 is due after two seconds, whenever it was recorded."""
    assert (START_US + 2 * SECOND_US,) * 2 == SteadyPace(START_US, 500).times(1000, 77, 66)


def test_before_the_start_a_steady_pace_keeps_recorded_times() -> None:
    """What warms the market up lies in the past at its recorded distance."""
    assert (START_US - 70, START_US - 90) == SteadyPace(START_US, 500).times(-3, -70, -90)


def test_bursts_come_at_the_end_of_every_period() -> None:
    """With 100 a second and a burst of 1,000 a second for 500 ms every 2 s, a period holds 150 + 500 messages."""
    pace = SteadyPace(START_US, 100, Burst(1000, 500_000, 2 * SECOND_US))

    elapsed = [pace.times(count, 0, 0)[0] - START_US for count in (0, 150, 151, 400, 650, 651, 800)]

    assert [0, 1_500_000, 1_501_000, 1_750_000, 2_000_000, 2_010_000, 3_500_000] == elapsed


def test_message_times_never_go_back() -> None:
    """Due times rise with the count at any mix of rate and burst."""
    source = random.Random(5)

    for _ in range(20):
        burst = Burst(source.uniform(1, 20_000), source.randrange(1, 999_999), SECOND_US)
        pace = SteadyPace(0, source.uniform(1, 9_000), burst)
        due = [pace.times(count, 0, 0)[0] for count in range(500)]

        assert sorted(due) == due


def test_a_burst_is_read_from_text() -> None:
    """`11000:100:10` is 11,000 a second for 100 ms every 10 s; a rate may be marked as such."""
    assert Burst(11_000, 100_000, 10 * SECOND_US) == parse_burst("11000:100:10") == parse_burst("11000/s:100:10")
    assert parse_burst("") is None


@pytest.mark.parametrize("text", ["1", "1:2", "a:b:c", "100:2000:2", "0:1:1", "-5:1:1", "1:2:3:4", "nan:1:1"])
def test_a_bad_burst_is_reported(text: str) -> None:
    """The error shows the value and the form expected."""
    with pytest.raises(BadSettings, match="MESSAGES_PER_S:DURATION_MS:EVERY_S"):
        parse_burst(text)


# -- script and market ------------------------------------------------------------------------------------------------


def test_nothing_is_sent_before_it_has_happened(script: Script) -> None:
    """Every step is due at or after its event time, and soon after: the recorder's clock error is gone."""
    delays = [step.due_us - step.event_us for step in script.steps]

    assert min(delays) == 0
    assert max(delays) < 50_000
    assert script.steps[0].due_us == 0


def test_exactly_what_is_due_is_given() -> None:
    """A message is given at its time and not before, once."""
    market = small_market()

    given = [len(market.advance(START_US + at_us, count_max=10)) for at_us in (-1, 0, 999_999, 1_000_000, 1_500_000)]

    assert [0, 1, 0, 1, 1] == given


def test_one_step_at_a_time_when_asked() -> None:
    """No more messages are given at once than the caller can take; the rest comes next."""
    market = small_market()

    events = [market.advance(START_US + 60 * SECOND_US, count_max=2) for _ in range(4)]

    assert [2, 2, 1, 0] == [len(part) for part in events]
    assert market.next_due_us is None


def test_times_are_moved_to_now() -> None:
    """Event and transact times keep their distances and begin at the start."""
    events = small_market().advance(START_US + 60 * SECOND_US, count_max=10)

    messages = [sbe.decode(event.frame) for event in events]

    assert [0, 900_000, 1_500_000, 2_000_000, 4_000_000] == [message.event_time_us - START_US for message in messages]
    assert isinstance(messages[1], sbe.Trades)
    assert START_US + 900_000 - 300 == messages[1].transact_time_us


def test_the_book_follows_every_diff_given() -> None:
    """After each message the book is what that message leads to."""
    market = small_market()

    market.advance(START_US, count_max=1)
    first = market.book.update_id, market.book.top(5)
    market.advance(START_US + 2 * SECOND_US, count_max=9)

    assert (103, ([(1010, 2), (1000, 5), (990, 6)], [(1100, 5), (1110, 6)])) == first
    assert ([(1010, 2), (1000, 5)], [(1100, 5), (1105, 9), (1110, 6)]) == market.book.top(5)


def test_a_warm_up_is_silent_and_leaves_trades() -> None:
    """What lies before the start is never given, but book and tape know it, with times in the past."""
    market = small_market(warmup_us=1_600_000)

    events = market.advance(START_US, count_max=9)
    later = market.advance(START_US + 400_000, count_max=9)

    assert [] == events
    assert [(7, START_US - 700_300), (8, START_US - 700_300)] == [
        (item.id, item.time_us) for item in market.tape.trades
    ]
    assert [(104, 105)] == [(event.first_id, event.last_id) for event in later]


def test_a_top_20_message_comes_every_50_ms_when_asked() -> None:
    """It has the best levels of the diffs before it, and their update; without a subscription it is not sent."""
    market = PlaybackMarket(prepare(recording_file.load(recording_file.default_path())), RecordedPace(START_US))
    book, times, compared = market.book.copy(), [], 0

    silent = market.advance(START_US + 1_000_000, count_max=10_000)
    events = market.advance(START_US + 1_000_000, count_max=10_000, top=True)
    events += [
        one for ms in range(1_010, 3_000, 10) for one in market.advance(START_US + ms * 1_000, count_max=500, top=True)
    ]

    for event in [*silent, *events]:
        if event.kind == "depth":
            book.apply(event.frame, event.last_id)
        elif event.kind == "depth20":
            top = sbe.decode(event.frame)
            assert isinstance(top, sbe.DepthSnapshot)
            assert (book.update_id, event.event_us) == (top.book_update_id, top.event_time_us)
            assert book.top(20) == (list(top.bids), list(top.asks))
            times.append(event.event_us)
            compared += 1
    assert "depth20" not in {event.kind for event in silent}
    assert compared >= 39
    assert {50_000} == {later - earlier for earlier, later in pairwise(times)}


def follow(frames: list[bytes], book: Book) -> tuple[Book, list[int]]:
    """Keep a book as a client does; fails at a gap. Gives the trade ids too."""
    trade_ids = []
    for frame in frames:
        message = sbe.decode(frame)
        if isinstance(message, sbe.Trades):
            trade_ids += [trade[0] for trade in message.trades]
        if isinstance(message, sbe.DepthDiff):
            assert message.first_update_id == book.update_id + 1 or book.update_id <= 100
            set_levels(book.bids, message.bids)
            set_levels(book.asks, message.asks)
            book.update_id = message.last_update_id
    return book, trade_ids


def set_levels(side: dict[int, int], levels: tuple[tuple[int, int], ...]) -> None:
    for price, qty in levels:
        side[price] = qty
        if not qty:
            del side[price]


def test_three_rounds_have_no_seam_that_a_client_could_see() -> None:
    """Ids rise by one across every seam and the client's book equals the exchange's at the end of each round."""
    market = small_market(loop=True)
    book = Book(small().snapshot.bids, small().snapshot.asks, 100)
    trade_ids: list[int] = []

    for number in range(1, 4):
        now_us = START_US + number * market.script.duration_us - SEAM_US
        events = market.advance(now_us, count_max=100)
        book, found = follow([event.frame for event in events], book)
        trade_ids += found

        assert (market.book.bids, market.book.asks) == (book.bids, book.asks)
        assert market.book.update_id == book.update_id
        assert market.script.start.bids == book.bids

    assert list(range(7, 7 + 9)) == trade_ids


def test_the_shipped_recording_goes_round_without_a_gap(script: Script) -> None:
    """Two rounds and a bit: every diff follows the one before, trades too, best prices' ids never go back."""
    market = PlaybackMarket(script, RecordedPace(START_US), loop=True)
    end_us = START_US + round(2.1 * script.duration_us)
    update_id, trade_id, best_id = 0, 0, 0

    while events := market.advance(end_us, count_max=10_000):
        for event in events:
            if event.kind == "depth":
                assert event.first_id == update_id + 1 or not update_id
                update_id = event.last_id
            elif event.kind == "trade":
                assert event.first_id == trade_id + 1 or not trade_id
                trade_id = event.last_id
            else:
                assert event.last_id > best_id
                best_id = event.last_id
        assert max(market.book.bids) < min(market.book.asks)

    assert market.book.update_id == update_id
    assert market.tape.last_id == trade_id


@pytest.mark.parametrize(
    "pace",
    [RecordedPace(START_US, speed) for speed in (0.5, 1.0, 5.0, 48.0)]
    + [SteadyPace(START_US, 5_000, Burst(11_000, 100_000, 5 * SECOND_US))],
    ids=["speed 0.5", "speed 1", "speed 5", "speed 48", "5,000 a second"],
)
def test_trades_happen_in_the_order_of_their_ids_at_any_pace(script: Script, pace: Pace) -> None:
    """As at the exchange. Some were announced 200 ms late, which at 48 times the speed put them before ten seconds of
    others: windows lacked them, and one slot in each round was degraded.
    """
    market = PlaybackMarket(script, pace, loop=True)
    made: list[tuple[int, int]] = []
    while len(made) < 4_500:  # more than once round
        for event in market.advance(START_US + 10**12, count_max=1_000):
            if event.kind == "trade":
                message = sbe.decode(event.frame)
                assert isinstance(message, sbe.Trades)
                made += [(trade[0], message.transact_time_us) for trade in message.trades]

    assert all(later[0] == earlier[0] + 1 and later[1] >= earlier[1] for earlier, later in pairwise(made))


def test_at_the_seam_best_prices_come_with_the_book(script: Script) -> None:
    """The seam's best bid and ask are those of the starting book, at the seam's own update."""
    last = [step for number, step in islice(passes(script, loop=True), len(script.steps) + 2)][-2:]

    seam_diff, seam_best = (sbe.decode(step.frame) for step in last)

    assert isinstance(seam_diff, sbe.DepthDiff)
    assert isinstance(seam_best, sbe.BestBidAsk)
    assert seam_diff.last_update_id == seam_best.book_update_id
    assert (max(script.start.bids), min(script.start.asks)) == (seam_best.bid_price, seam_best.ask_price)


def test_a_price_jump_is_in_streams_and_tape_alike() -> None:
    """The next trade message is off the market, and REST has the same price."""
    market = small_market()
    market.jump(1, 10.0)

    events = market.advance(START_US + 60 * SECOND_US, count_max=10)

    printed = [sbe.decode(event.frame) for event in events if event.kind == "trade"]
    prices = [trade[1] for message in printed if isinstance(message, sbe.Trades) for trade in message.trades]
    assert [1155, 1155, 1050] == prices == [item.price for item in market.tape.trades]


def test_old_books_stay_as_they_were() -> None:
    """A book of some seconds ago is the newest kept one of at least that age."""
    market = small_market()
    for second in range(6):
        market.advance(START_US + second * SECOND_US, count_max=10)

    old = market.past_book(START_US + 5 * SECOND_US, 4 * SECOND_US)

    assert 103 == old.update_id
    assert 105 == market.past_book(START_US + 5 * SECOND_US, 2 * SECOND_US).update_id


def test_mixed_exponents_are_refused() -> None:
    """A book cannot be kept in integers when frames disagree about what they count."""
    source = small()
    source.events.append((6_000_000, sbe.encode(sbe.BestBidAsk(0, "BTCUSDT", -2, -8, 107, 1, 1, 2, 1))))

    with pytest.raises(BadRecording, match=r"expected exponents \(-8, -8\)"):
        prepare(source)


def test_changes_turn_one_side_into_another() -> None:
    """Applying the changes to one side gives the other, whatever they hold."""
    source = random.Random(3)
    before = {source.randrange(50): source.randrange(1, 9) for _ in range(30)}
    after = {source.randrange(50): source.randrange(1, 9) for _ in range(30)}

    book = Book(before.items(), (), 1)
    book.apply(diff(2, 2, changes(before, after), [], 0), 2)

    assert after == book.bids


def test_the_best_levels_are_the_same_however_they_are_found() -> None:
    """A small part of a side and a large part begin alike."""
    book = Book(((price, 1) for price in range(1000)), ((price, 1) for price in range(1000, 2000)), 1)

    for few, many in zip(book.top(10), book.top(900), strict=True):
        assert many[:10] == few


# -- tape and answers -------------------------------------------------------------------------------------------------


def tape_of(*items: tuple[int, int, int, bool]) -> Tape:
    """Make a tape of `(time in ms, price, qty, is_buyer_maker)`."""
    tape = Tape()
    for number, (time_ms, price, qty, maker) in enumerate(items):
        tape.add(TapeTrade(number, price, qty, START_US + time_ms * 1000, maker))
    return tape


def test_trades_in_a_row_of_one_moment_price_and_side_are_one_aggregate() -> None:
    """Another moment, price or side begins the next aggregate."""
    tape = tape_of((0, 5, 1, True), (0, 5, 2, True), (0, 5, 1, False), (0, 6, 1, False), (1, 6, 1, False))

    found = [(item.first_trade_id, item.last_trade_id, item.qty) for item in tape.aggregates]

    assert [(0, 1, 3), (2, 2, 1), (3, 3, 1), (4, 4, 1)] == found
    assert [0, 1, 2, 3] == [item.id for item in tape.aggregates]


def test_candles_hold_what_was_traded_and_stay_flat_between() -> None:
    """A second without a trade repeats the last price with no volume."""
    tape = tape_of((0, 5, 1, True), (500, 7, 2, False), (2_000, 6, 3, True))

    found = [
        (item.open, item.high, item.low, item.close, item.volume, item.count)
        for item in tape.candles("1s", START_US + 3_999_999)
    ]

    assert [(5, 7, 5, 7, 3, 2), (7, 7, 7, 7, 0, 0), (6, 6, 6, 6, 3, 1), (6, 6, 6, 6, 0, 0)] == found


def test_longer_candles_add_up() -> None:
    """All trades of the candles of any interval are all trades of the tape."""
    source = random.Random(1)
    tape = tape_of(*((number * 900, source.randrange(50, 60), 2, number % 3 == 0) for number in range(3_000)))

    for interval in ("1s", "1m", "3m", "15m", "1h", "1d", "1w", "1M"):
        found = tape.candles(interval, START_US + 3_000 * 900_000)

        assert (3_000, 6_000) == (sum(item.count for item in found), sum(item.volume for item in found))
        assert max(item.price for item in tape.trades) == max(item.high for item in found)


@pytest.mark.parametrize(
    ("mantissa", "exponent", "text"),
    [
        (6173763000000, -8, "61737.63000000"),
        (5, -2, "0.05000000"),
        (-1, -8, "-0.00000001"),
        (123456789, -16, "0.00000001"),
        (7, 1, "70.00000000"),
        (0, -8, "0.00000000"),
    ],
)
def test_numbers_are_written_with_eight_decimals(mantissa: int, exponent: int, text: str) -> None:
    """Numbers in REST bodies are exact decimal strings."""
    assert text == answers.decimal(mantissa, exponent)


def test_the_day_is_zero_before_the_first_trade() -> None:
    """A ticker without trades is an answer all the same."""
    ticker = answers.ticker_24hr(small_market(), START_US, lambda us: us // 1000, full=True)

    assert 21 == len(ticker)
    assert ("0.00000000", 0) == (ticker["lastPrice"], ticker["count"])


@pytest.mark.parametrize("share", [0.01, 0.77, 0.999])
def test_the_end_of_a_recording_is_the_same_market(share: float) -> None:
    """From any moment on: the starting book is what the whole had then, and the same book stands at the end."""
    whole = recording_file.load(recording_file.default_path())
    at_us = whole.snapshot_us + round(share * (whole.events[-1][0] - whole.snapshot_us))

    part = begin_at(whole, at_us)

    book = Book(whole.snapshot.bids, whole.snapshot.asks, whole.snapshot.book_update_id)
    then = None
    for received_us, frame in whole.events:
        if then is None and received_us >= at_us:
            then = book.copy()
        message = sbe.decode(frame)
        if isinstance(message, sbe.DepthDiff):
            book.apply(frame, message.last_update_id)
    played = Book(part.snapshot.bids, part.snapshot.asks, part.snapshot.book_update_id)
    assert then is not None
    assert (then.bids, then.asks, then.update_id) == (played.bids, played.asks, played.update_id)
    for _, frame in part.events:
        message = sbe.decode(frame)
        if isinstance(message, sbe.DepthDiff):
            played.apply(frame, message.last_update_id)
    assert (book.bids, book.asks, book.update_id) == (played.bids, played.asks, played.update_id)
    assert min(received_us for received_us, _ in part.events) >= at_us
    assert prepare(part).duration_us > 0


def test_a_beginning_after_the_end_is_refused() -> None:
    """Nothing would be played."""
    whole = recording_file.load(recording_file.default_path())

    with pytest.raises(BadRecording, match=r"begin_at = \d+\.\d+: expected a moment within the recording of BTCUSDT"):
        begin_at(whole, whole.events[-1][0] + 1)
