"""The local exchange's rules, without a network and without waiting: time is an argument everywhere."""

from __future__ import annotations

import json
import random
from itertools import islice

import pytest

from sheetanchor import recording, sbe
from sheetanchor.errors import BadRecording, BadSettings
from sheetanchor.exchange import answers
from sheetanchor.exchange.book import Book, changes
from sheetanchor.exchange.clock import Burst, Pace, RecordedPace, SteadyPace, parse_burst
from sheetanchor.exchange.control import STREAMS_MAX, Subscriptions, answer
from sheetanchor.exchange.faults import RECIPES, Client, Fault, FaultBoard, check, garbage, parse
from sheetanchor.exchange.limits import BAN_AFTER, MessageBudget, WeightBudget
from sheetanchor.exchange.market import Event, Market
from sheetanchor.exchange.script import SEAM_US, Script, passes, prepare
from sheetanchor.exchange.tape import Tape, Trade
from sheetanchor.exchange.wire import BINARY, wire_frame

START_US = 1_700_000_000_000_000
SECOND_US = 1_000_000


@pytest.fixture(scope="module")
def script() -> Script:
    return prepare(recording.load(recording.default_path()))


def diff(first: int, last: int, bids: list[tuple[int, int]], asks: list[tuple[int, int]], at_us: int) -> bytes:
    return sbe.encode(sbe.DepthDiff(at_us, "BTCUSDT", -8, -8, first, last, tuple(bids), tuple(asks)))


def trades(first: int, count: int, at_us: int) -> bytes:
    group = tuple((first + place, 1050, 7, place % 2 == 0) for place in range(count))
    return sbe.encode(sbe.Trades(at_us, "BTCUSDT", -8, -8, at_us - 300, group))


def small() -> recording.Recording:
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
    return recording.Recording("BTCUSDT", snapshot, 1_000_000, events)


def small_market(*, loop: bool = False, warmup_us: int = 0, pace: Pace | None = None) -> Market:
    return Market(prepare(small()), pace or RecordedPace(START_US), loop=loop, warmup_us=warmup_us)


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
def test_a_bad_burst_is_told(text: str) -> None:
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


def test_a_top_20_message_follows_each_diff_when_asked() -> None:
    """It holds the best levels at exactly the diff's update and event time."""
    events = small_market().advance(START_US, count_max=1, top=True)

    top = sbe.decode(events[1].frame)

    assert ["btcusdt@depth", "btcusdt@depth20"] == [event.stream for event in events]
    assert isinstance(top, sbe.DepthSnapshot)
    assert (103, START_US, ((1010, 2), (1000, 5), (990, 6))) == (top.book_update_id, top.event_time_us, top.bids)


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
    market = Market(script, RecordedPace(START_US), loop=True)
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


def test_at_the_seam_best_prices_come_with_the_book(script: Script) -> None:
    """The seam's best bid and ask are those of the starting book, at the seam's own update."""
    last = [step for number, step in islice(passes(script, loop=True), len(script.steps) + 2)][-2:]

    seam_diff, seam_best = (sbe.decode(step.frame) for step in last)

    assert isinstance(seam_diff, sbe.DepthDiff)
    assert isinstance(seam_best, sbe.BestBidAsk)
    assert seam_diff.last_update_id == seam_best.book_update_id
    assert (max(script.start.bids), min(script.start.asks)) == (seam_best.bid_price, seam_best.ask_price)


def test_a_price_jump_is_in_streams_and_tape_alike() -> None:
    """The next trade message prints off the market, and REST tells the same price."""
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
        tape.add(Trade(number, price, qty, START_US + time_ms * 1000, maker))
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


# -- limits -----------------------------------------------------------------------------------------------------------


def test_weight_is_refused_then_banned() -> None:
    """Over the limit 429 until the minute ends; going on brings 418 with a ban that outlasts it."""
    budget = WeightBudget(100)
    inside = budget.charge("a", 100, 60.0)

    over = budget.charge("a", 5, 90.5)
    for _ in range(BAN_AFTER):
        last = budget.charge("a", 1, 91.0)

    assert (200, 100) == (inside.status, inside.used)
    assert (429, 30) == (over.status, over.retry_after_s)
    assert (418, 120) == (last.status, last.retry_after_s)
    assert 418 == budget.charge("a", 1, 91.0 + 119).status
    assert 200 == budget.charge("a", 1, 91.0 + 121).status
    assert 200 == budget.charge("b", 1, 92.0).status


def test_a_second_ban_lasts_longer() -> None:
    """Repeat offenders wait twice as long."""
    budget = WeightBudget(1)

    first = [budget.charge("a", 2, 60.0) for _ in range(BAN_AFTER + 1)][-1]
    second = [budget.charge("a", 2, 600.0) for _ in range(BAN_AFTER + 1)][-1]

    assert (120, 240) == (first.retry_after_s, second.retry_after_s)


def test_the_weight_is_forgotten_when_the_minute_ends() -> None:
    """Each clock minute begins with the whole limit."""
    budget = WeightBudget(10)

    used = [budget.charge("a", 10, at_s).used for at_s in (60.0, 119.9, 120.0)]

    assert [10, 20, 10] == used


def test_five_messages_a_second_are_allowed() -> None:
    """The sixth within a second is one too many; a second later there is room again."""
    budget = MessageBudget(5)

    allowed = [budget.spend(10 + number * 0.1) for number in range(6)]

    assert [True] * 5 + [False] == allowed
    assert budget.spend(11.6)


# -- control messages -------------------------------------------------------------------------------------------------


def test_subscriptions_come_and_go() -> None:
    """SUBSCRIBE, LIST and UNSUBSCRIBE answer as documented and keep the order of asking."""
    mine = Subscriptions()
    subscribe = '{"method":"SUBSCRIBE","params":["btcusdt@trade","btcusdt@depth"],"id":1}'

    assert '{"result":null,"id":1}' == answer(subscribe, mine)
    assert '{"result":null,"id":"x1"}' == answer('{"method":"UNSUBSCRIBE","params":["btcusdt@trade"],"id":"x1"}', mine)
    assert '{"result":["btcusdt@depth"],"id":null}' == answer('{"method":"LIST_SUBSCRIPTIONS"}', mine)


def test_the_property_combined_can_be_set() -> None:
    """SET_PROPERTY answers null and GET_PROPERTY tells the value."""
    mine = Subscriptions()

    assert '{"result":null,"id":5}' == answer('{"method":"SET_PROPERTY","params":["combined",true],"id":5}', mine)
    assert '{"result":true,"id":2}' == answer('{"method":"GET_PROPERTY","params":["combined"],"id":2}', mine)


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("{nonsense", 3, "Invalid JSON"),
        ('{"method":"SUBSCRIBE","params":["btcusdt@trade"],"id":1.5}', 2, "request ID"),
        ('{"method":"SUBSCRIBE","params":["btcusdt@trade"],"id":"' + "x" * 37 + '"}', 2, "request ID"),
        ('{"params":[],"id":1}', 2, "missing field `method`"),
        ('{"method":"BUY","id":1}', 2, "unknown variant `BUY`, expected one of SUBSCRIBE, UNSUBSCRIBE"),
        ('{"method":"SUBSCRIBE","id":1}', 2, "params"),
        ('{"method":"SUBSCRIBE","params":"btcusdt@trade","id":1}', 2, "array"),
        ('{"method":"SUBSCRIBE","params":["BTCUSDT@trade"],"id":1}', 2, "invalid stream name"),
        ('{"method":"LIST_SUBSCRIPTIONS","params":["a"],"id":1}', 2, "too many parameters"),
        ('{"method":"GET_PROPERTY","params":[1],"id":1}', 2, "property name must be a string"),
        ('{"method":"GET_PROPERTY","params":["combined",true],"id":1}', 2, "too many parameters"),
        ('{"method":"GET_PROPERTY","params":["colour"],"id":1}', 0, "Unknown property"),
        ('{"method":"SET_PROPERTY","params":["combined","yes"],"id":1}', 1, "expected Boolean"),
        ("[]", 2, "expected an object"),
    ],
)
def test_wrong_requests_get_the_documented_errors(text: str, code: int, words: str) -> None:
    """Each mistake has its code and says what is wrong, and changes no subscription."""
    mine = Subscriptions()

    error = json.loads(answer(text, mine))

    assert code == error["code"]
    assert words in error["msg"]
    assert not mine.streams


def test_a_connection_takes_1024_streams_and_no_more() -> None:
    """The stream beyond the bound is refused, and those before stay."""
    mine = Subscriptions()
    names = [f"s{number}@trade" for number in range(STREAMS_MAX)]

    full = answer(json.dumps({"method": "SUBSCRIBE", "params": names, "id": 1}), mine)
    over = answer('{"method":"SUBSCRIBE","params":["one@more"],"id":2}', mine)

    assert '{"result":null,"id":1}' == full
    assert 2 == json.loads(over)["code"]
    assert STREAMS_MAX == len(mine.streams)


# -- faults -----------------------------------------------------------------------------------------------------------

LINE_A = Client(1, "sheetanchor (line=a)")
LINE_B = Client(2, "sheetanchor (line=b)")


def event(kind: str = "depth", number: int = 1) -> Event:
    return Event(kind, "BTCUSDT", f"btcusdt@{kind}", number, number, 0, b"frame%d--------" % number)  # type: ignore[arg-type]  # any kind


def board_with(spec: str) -> tuple[FaultBoard, Fault]:
    board = FaultBoard(START_US)
    fault = board.add(*parse(spec), START_US)
    board.tick(START_US)
    return board, fault


def payloads(board: FaultBoard, events: list[Event], *clients: Client) -> dict[int, list[list[bytes]]]:
    """Give what each client gets in place of each event."""
    streams = {item.stream: list(clients) for item in events}
    edits = board.edits(events, streams)
    return {
        client.number: [
            list(edits.get(client.number, {})[place].payloads)
            if place in edits.get(client.number, {})
            else [item.frame]
            for place, item in enumerate(events)
        ]
        for client in clients
    }


def test_a_drop_takes_the_same_messages_from_all_lines() -> None:
    """Two diffs are lost on both lines, others arrive, and the fault is done."""
    board, fault = board_with("drop:n=2")
    events = [event("trade", 1), event("depth", 2), event("depth", 3), event("depth", 4)]

    got = payloads(board, events, LINE_A, LINE_B)

    assert [[events[0].frame], [], [], [events[3].frame]] == got[1] == got[2]
    assert ("done", 2) == (fault.state, fault.applied)


def test_a_fault_for_one_line_leaves_the_other_alone() -> None:
    """Only the line that is named loses its message."""
    board, _ = board_with("drop:n=1,line=a")

    got = payloads(board, [event()], LINE_A, LINE_B)

    assert ([[]], [[event().frame]]) == (got[1], got[2])


@pytest.mark.parametrize(
    ("agent", "picked"),
    [("x (line=a)", True), ("line=a; x", True), ("line=ab", False), ("line=a-2", False), ("", False)],
)
def test_a_line_is_known_by_its_user_agent(agent: str, picked: bool) -> None:
    """The whole name has to agree."""
    _, fault = board_with("drop:line=a")

    assert picked == fault.picks(Client(1, agent))


def test_a_fault_waits_for_somebody_to_meet() -> None:
    """While the named line is not there nothing is counted."""
    board, fault = board_with("drop:n=1,line=c")

    payloads(board, [event()], LINE_A)

    assert ("active", 0) == (fault.state, fault.applied)


def test_trades_can_be_dropped_too() -> None:
    """`what` chooses the kind of message."""
    board, _ = board_with("drop:n=1,what=trade")

    got = payloads(board, [event("depth"), event("trade")], LINE_A)

    assert [[event("depth").frame], []] == got[1]


def test_duplicates_and_garbage_add_to_what_is_sent() -> None:
    """A duplicate is sent twice; garbage goes before a message that still arrives."""
    twice, _ = board_with("duplicate:n=1")
    spoiled, _ = board_with("garbage:n=1")

    assert [[event().frame] * 2] == payloads(twice, [event()], LINE_A)[1]
    junk = payloads(spoiled, [event()], LINE_A)[1][0]
    assert (2, event().frame) == (len(junk), junk[1])


def test_no_garbage_decodes() -> None:
    """Every kind of garbage made from every kind of message is refused by the decoder."""
    frames = [frame for _, frame in small().events]

    for number in range(12):
        for frame in frames:
            with pytest.raises(sbe.DecodeError):
                sbe.decode(garbage(random.Random(number), number, frame))


def test_silence_lasts_its_seconds() -> None:
    """Everything is lost while it lasts, and nothing after."""
    board, fault = board_with("silence:seconds=8")

    during = payloads(board, [event("depth"), event("trade")], LINE_A)
    board.tick(START_US + 8 * SECOND_US)
    after = payloads(board, [event()], LINE_A)

    assert ([[], []], [[event().frame]]) == (during[1], after[1])
    assert ("done", 2) == (fault.state, fault.applied)


def test_a_fault_begins_at_its_time() -> None:
    """`at` counts from the start of playing, or from the moment of asking when that is later."""
    board = FaultBoard(START_US)
    early = board.add(*parse("drop:at=30"), START_US)
    late = board.add(*parse("drop:at=30"), START_US + 10 * SECOND_US)

    begun = [[item.id for item in board.tick(START_US + second * SECOND_US)] for second in (29, 30, 39, 40)]

    assert [[], [early.id], [], [late.id]] == begun


def test_a_rest_fault_meets_its_path_so_many_times() -> None:
    """Two requests for the depth are met, others are not, and then it is done."""
    board, fault = board_with("rest_status:code=429,retry_after=2,n=2,path=depth")

    met = [board.request("rest_status", path) is fault for path in ("trades", "depth", "depth", "depth")]

    assert [False, True, True, False] == met
    assert "done" == fault.state


def test_a_rest_fault_can_last_for_a_time() -> None:
    """With `for` it meets every request until then."""
    board, fault = board_with("slow_rest:seconds=1,for=5")

    assert all(board.request("slow_rest", "time") is fault for _ in range(10))
    board.tick(START_US + 5 * SECOND_US)
    assert board.request("slow_rest", "time") is None


def test_a_deleted_fault_is_over() -> None:
    """It acts no more and is kept among the done ones with a note."""
    board, fault = board_with("silence:seconds=100")

    removed = board.remove(fault.id)

    assert fault is removed
    assert ("done", "deleted") == (fault.report()["state"], fault.report()["note"])
    assert board.remove(fault.id) is None


def test_new_connections_are_refused_for_some_seconds() -> None:
    """Only the line that is named is turned away, and only while it lasts."""
    board, fault = board_with("refuse:seconds=40,line=a")

    assert [True, False] == [board.refuses(client) for client in (LINE_A, LINE_B)]
    board.tick(START_US + 40 * SECOND_US)
    assert not board.refuses(LINE_A)
    assert 1 == fault.applied


def test_flag_and_call_mean_the_same() -> None:
    """A flag's text and an HTTP call's numbers give the same fault."""
    assert parse("drop:n=3,at=30,line=a") == check("drop", {"n": 3, "at": 30, "line": "a"})


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("dorp", "expected one of drop, duplicate"),
        ("drop:n", "expected name=value, found 'n'"),
        ("drop:m=1", "unknown parameter 'm'; it takes at, connection, line, n, symbol, what"),
        ("drop:n=many", "n = 'many': expected a whole number from 1"),
        ("drop:n=0", "n = '0'"),
        ("drop:n=1.5", "n = '1.5'"),
        ("drop:at=-1", "at = '-1'"),
        ("drop:at=nan", "at = 'nan'"),
        ("drop:what=kline", "what = 'kline': expected one of trade, bestBidAsk, depth, depth20, all"),
        ("rest_status:code=200", "expected a status from 400 to 599"),
        ("rest_body:form=odd", "expected one of truncated, html, empty, wrong"),
    ],
)
def test_a_bad_fault_is_told(spec: str, words: str) -> None:
    """The error names the fault, the part that is wrong and what was expected."""
    with pytest.raises(BadSettings) as caught:
        parse(spec)

    assert words in str(caught.value)


def test_every_kind_of_fault_can_be_asked_for_by_its_name_alone() -> None:
    """All parameters have defaults."""
    assert set(RECIPES) == {parse(kind)[0] for kind in RECIPES}


# -- wire -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "header"), [(5, b"\x82\x05"), (126, b"\x82\x7e\x00\x7e"), (65_536, b"\x82\x7f" + b"\0" * 5 + b"\x01\0\0")]
)
def test_frames_have_the_shortest_header(size: int, header: bytes) -> None:
    """Lengths below 126, below 65,536 and above have headers of 2, 4 and 10 bytes."""
    frame = wire_frame(BINARY, bytes(size))

    assert header + bytes(size) == frame
