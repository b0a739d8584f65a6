"""The local exchange's limits, control messages and faults, without a network and without waiting."""

from __future__ import annotations

import json
import random

import pytest

from sheetanchor import sbe
from sheetanchor.errors import BadSettings
from sheetanchor.recording import recording_file
from sheetanchor.simulator.control import STREAMS_MAX, Subscriptions, answer
from sheetanchor.simulator.faults import RECIPES, Client, Fault, FaultBoard, check, garbage, parse
from sheetanchor.simulator.limits import BAN_AFTER, MessageBudget, WeightBudget
from sheetanchor.simulator.playback.market import MarketEvent
from sheetanchor.simulator.wire import BINARY, wire_frame

START_US = 1_700_000_000_000_000
SECOND_US = 1_000_000


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
    """SET_PROPERTY answers null and GET_PROPERTY gives the value."""
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
        *(
            (
                f'{{"method":"SUBSCRIBE","params":["btcusdt@{kind}"],"id":1}}',
                2,
                f"no stream of type '{kind}' is served here",
            )
            for kind in ("aggTrade", "kline_1m", "depth@100ms", "depth10", "ticker", "avgPrice", "kline_1d@+08:00")
        ),
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


def event(kind: str = "depth", number: int = 1) -> MarketEvent:
    return MarketEvent(kind, "BTCUSDT", f"btcusdt@{kind}", number, number, 0, b"frame%d--------" % number)  # type: ignore[arg-type]  # any kind


def board_with(spec: str) -> tuple[FaultBoard, Fault]:
    board = FaultBoard(START_US)
    fault = board.add(*parse(spec), START_US)
    board.tick(START_US)
    return board, fault


def payloads(board: FaultBoard, events: list[MarketEvent], *clients: Client) -> dict[int, list[list[bytes]]]:
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
    frames = [frame for _, frame in recording_file.load(recording_file.default_path()).events[:40]]

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
def test_a_bad_fault_is_reported(spec: str, words: str) -> None:
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
