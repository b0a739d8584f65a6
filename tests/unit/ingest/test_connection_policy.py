from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sheetanchor.binance.connection_limits import attempt_budget, message_budget
from sheetanchor.binance.websocket import stream_url, upgrade_error
from sheetanchor.contract import STREAM_TYPES
from sheetanchor.errors import ExchangeRefused, ExchangeUnavailable, RateLimited
from sheetanchor.ingest.connection_policy import (
    HEALTHY_WITHIN_S,
    LACKS_AFTER_S,
    LACKS_WHILE,
    OVERLAP_S,
    PONG_WITHIN_S,
    ConnectionAction,
    ConnectionPolicy,
    Outage,
    Replacing,
    SequenceWatch,
    Stage,
    StreamWatch,
    Tries,
    judge,
    pause_s,
)
from sheetanchor.runtime.reliability import Backoff
from sheetanchor.venue import ConnectionState

POLICY = ConnectionPolicy()
NOW_S = 10_000.0


class Clock:
    """Seconds that move when a test says so."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


# -- tries ------------------------------------------------------------------------------------------------------------


def test_three_tries_at_once_then_ten_with_growing_delays_then_for_ever() -> None:
    """The delays of an outage are 0, 0, 0, then 1 s doubling to 60 s, and go on at 60 s without end."""
    tries, delays, stages = Tries(), [], []

    for _ in range(20):
        delays.append(tries.delay_s(POLICY, 0.5))
        stages.append(tries.stage(POLICY))
        tries = tries.failed()

    assert [0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60, 60, 60, 60, 60, 60, 60] == delays
    assert [Stage.IMMEDIATE] * 3 + [Stage.BACKOFF] * 10 + [Stage.DEGRADED] * 7 == stages


def test_exhaustion_is_said_exactly_once() -> None:
    """Of a thousand failed tries one ends the tries with growing delays: the thirteenth."""
    counts = [count for count in range(1_000) if Tries(count).exhausted(POLICY)]

    assert [13] == counts
    assert Stage.DEGRADED is Tries(13).stage(POLICY)


@given(count=st.integers(0, 10**6), draw=st.floats(0, 1), asked_s=st.floats(0, 1000))
def test_a_pause_is_bounded_and_never_shorter_than_asked_for(count: int, draw: float, asked_s: float) -> None:
    """Whatever happened, the next try comes within the longest delay, or when the exchange wants it."""
    pause = pause_s(Tries(count), POLICY, draw, asked_s=asked_s)

    assert asked_s <= pause <= max(asked_s, POLICY.backoff.max_s)


@given(count=st.integers(1, 100), draw=st.floats(0, 1))
def test_who_is_refused_comes_back_slowly(count: int, draw: float) -> None:
    """A wrong key makes even the first pause about the longest one."""
    pause = pause_s(Tries(count), POLICY, draw, refused=True)

    assert 48 <= pause <= 60


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (401, ExchangeRefused, "API key"),
        (403, ExchangeRefused, "API key"),
        (400, ExchangeRefused, "400"),
        (404, ExchangeRefused, "404"),
        (429, RateLimited, "429"),
        (418, RateLimited, "418"),
        (500, ExchangeUnavailable, "500"),
        (503, ExchangeUnavailable, "503"),
    ],
)
def test_answers_to_an_upgrade_are_distinguished(status: int, kind: type[Exception], words: str) -> None:
    """A wrong key, a rate limit and a server that is down are three kinds of error, each with its status."""
    error = upgrade_error(status, "7")

    assert kind is type(error)
    assert words in str(error)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("7", 7.0),
        ("", 60.0),
        ("soon", 60.0),
        ("-1", 60.0),
        ("\u0667", 60.0),
        ("259201", 259_200.0),
        ("9" * 400, 259_200.0),
    ],
)
def test_a_rate_limit_says_when_to_come_back(header: str, expected: float) -> None:
    """A number counts up to the longest ban; otherwise a minute is waited, which all limits are counted by."""
    error = upgrade_error(429, header)

    assert isinstance(error, RateLimited)
    assert expected == error.retry_after_s


# -- outages ----------------------------------------------------------------------------------------------------------


def test_an_outage_is_reported_once_and_after_thirty_seconds() -> None:
    """Not at 30 s, at once beyond, and never again however long it lasts."""
    outage = Outage().begin(NOW_S)
    told_at = []

    for tenths in range(2_000):
        if outage.due(NOW_S + tenths / 10, POLICY):
            outage = outage.mark_reported()
            told_at.append(tenths / 10)

    assert [30.1] == told_at


def test_a_lasting_outage_keeps_its_beginning() -> None:
    """Connections that fail meanwhile do not restart it, whether it has been reported or not."""
    outage = Outage().begin(NOW_S)

    again = outage.begin(NOW_S + 29)
    reported = again.mark_reported().begin(NOW_S + 60)

    assert outage == again
    assert Outage(NOW_S, reported=True) == reported


def test_it_is_reported_while_the_tries_are_far_from_exhausted() -> None:
    """At 31 s of an outage fewer than ten delayed tries have been made."""
    tries, waited_s = Tries(), 0.0

    while waited_s < 31:
        tries = tries.failed()
        waited_s += tries.delay_s(POLICY, 0.5)

    assert Outage().begin(0.0).due(31, POLICY)
    assert tries.count - POLICY.immediate_tries < POLICY.backoff_tries


# -- verdicts ---------------------------------------------------------------------------------------------------------

HOUR_S = 3600.0


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        pytest.param(ConnectionState(), ConnectionAction.KEEP, id="still connecting"),
        pytest.param(
            ConnectionState(opened_s=NOW_S - HEALTHY_WITHIN_S),
            ConnectionAction.KEEP,
            id="ten seconds without a message",
        ),
        pytest.param(
            ConnectionState(opened_s=NOW_S - HEALTHY_WITHIN_S - 0.1),
            ConnectionAction.NO_FIRST_MESSAGE,
            id="never a message",
        ),
        pytest.param(ConnectionState(NOW_S - 60, NOW_S - 5), ConnectionAction.KEEP, id="five seconds of silence"),
        pytest.param(
            ConnectionState(NOW_S - 60, NOW_S - 5.1), ConnectionAction.IDLE, id="more than five seconds of silence"
        ),
        pytest.param(ConnectionState(NOW_S - 23 * HOUR_S, NOW_S), ConnectionAction.KEEP, id="23 hours old"),
        pytest.param(ConnectionState(NOW_S - 23 * HOUR_S - 1, NOW_S), ConnectionAction.REPLACE, id="older"),
        pytest.param(ConnectionState(NOW_S - 60, NOW_S, leaving=True), ConnectionAction.REPLACE, id="announced to end"),
        pytest.param(
            ConnectionState(NOW_S - 60, NOW_S - 6, leaving=True),
            ConnectionAction.IDLE,
            id="announced, but silent already",
        ),
        pytest.param(
            ConnectionState(NOW_S - 60, NOW_S, replaced_s=NOW_S - OVERLAP_S, leaving=True),
            ConnectionAction.KEEP,
            id="overlapping",
        ),
        pytest.param(
            ConnectionState(NOW_S - 60, NOW_S, replaced_s=NOW_S - OVERLAP_S - 0.1, leaving=True),
            ConnectionAction.RETIRE,
            id="replaced",
        ),
        pytest.param(
            ConnectionState(NOW_S - 60, NOW_S, unanswered_s=NOW_S - PONG_WITHIN_S),
            ConnectionAction.KEEP,
            id="pong not yet due",
        ),
        pytest.param(
            ConnectionState(NOW_S - 60, NOW_S, unanswered_s=NOW_S - PONG_WITHIN_S - 0.1),
            ConnectionAction.NO_PONG,
            id="no pong",
        ),
    ],
)
def test_a_connection_is_judged_by_its_state(state: ConnectionState, expected: ConnectionAction) -> None:
    """Each limit holds on its own side, to a tenth of a second."""
    verdict = judge(state, NOW_S, POLICY)

    assert expected is verdict


moments = st.none() | st.floats(0, NOW_S)


@given(
    state=st.builds(
        ConnectionState,
        opened_s=moments,
        last_message_s=moments,
        unanswered_s=moments,
        replaced_s=moments,
        leaving=st.booleans(),
    ),
    now_s=st.floats(NOW_S, 2 * NOW_S),
)
def test_nothing_silent_is_kept(state: ConnectionState, now_s: float) -> None:
    """An open connection that is kept has recently delivered a message, or is too young to have to."""
    verdict = judge(state, now_s, POLICY)

    if state.opened_s is not None and verdict in (ConnectionAction.KEEP, ConnectionAction.REPLACE):
        last_s = state.last_message_s
        limit_s = HEALTHY_WITHIN_S if last_s is None else POLICY.silence_s
        assert now_s - (state.opened_s if last_s is None else last_s) <= limit_s


class LifeOfAConnection(RuleBasedStateMachine):
    """A connection by its signs of life, and what is decided about it, whatever comes in whatever order."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = NOW_S
        self.state = ConnectionState(opened_s=NOW_S, answers=False)

    @rule(seconds=st.sampled_from([0.05, 1.0, 1.25, 2.5, 4.9, 20.0, 59.0]))
    def passes(self, seconds: float) -> None:
        self.now_s += seconds

    @rule()
    def message(self) -> None:
        self.state = replace(self.state, last_message_s=self.now_s, last_sign_s=self.now_s)

    @rule()
    def ping_of_the_exchange(self) -> None:
        self.state = replace(self.state, last_sign_s=self.now_s)

    @rule()
    def ping_of_ours(self) -> None:
        self.state = replace(self.state, unanswered_s=self.state.unanswered_s or self.now_s)

    @rule()
    def pong(self) -> None:
        self.state = replace(self.state, last_sign_s=self.now_s, unanswered_s=None, answers=True)

    @rule(quiet_s=st.integers(10, 600))
    def a_market_without_events(self, quiet_s: int) -> None:
        """Pongs only, as often as they are asked for."""
        began_s = self.now_s
        self.pong()
        while self.now_s < began_s + quiet_s:
            self.now_s += POLICY.ask_after_s
            assert ConnectionAction.KEEP is judge(self.state, self.now_s, POLICY)
            self.pong()

    @invariant()
    def lives_by_signs_of_any_kind(self) -> None:
        verdict, heard_s = judge(self.state, self.now_s, POLICY), self.state.heard_s
        silent_s = self.now_s - (NOW_S if heard_s is None else heard_s)
        longest_s = HEALTHY_WITHIN_S if heard_s is None else POLICY.silence_s if self.state.answers else 60.0
        waited_s = 0.0 if self.state.unanswered_s is None else self.now_s - self.state.unanswered_s
        if silent_s > longest_s:
            assert verdict is (ConnectionAction.NO_FIRST_MESSAGE if heard_s is None else ConnectionAction.IDLE)
        elif heard_s is not None and waited_s > PONG_WITHIN_S:
            assert verdict is ConnectionAction.NO_PONG
        else:
            assert verdict is ConnectionAction.KEEP


LifeOfAConnection.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_a_connection_lives_by_its_signs_of_life = LifeOfAConnection.TestCase


# -- streams that a living connection lacks ---------------------------------------------------------------------------

PAIRS = [(symbol, stream) for symbol in ("BTCUSDT", "ETHUSDT") for stream in STREAM_TYPES]


def watched(rates: dict[tuple[str, str], float], seconds: int, *, after_s: int = 60) -> StreamWatch:
    """A connection on which every stream has come ten times a second for a while, and then at these rates."""
    watch = StreamWatch(PAIRS, 0.0)
    for tenth in range(10 * (after_s + seconds)):
        for pair in PAIRS:
            rate = 10.0 if tenth < 10 * after_s else rates.get(pair, 0.0)
            if rate and tenth % round(10 / rate) == 0:
                watch.note(*pair, tenth / 10)
    return watch


@pytest.mark.parametrize("missing", PAIRS)
def test_a_missing_stream_is_noticed(missing: tuple[str, str]) -> None:
    """If one stream falls silent while the others go on, it is named, and nothing else is."""
    limit_s = LACKS_AFTER_S[missing[1]]
    watch = watched({pair: 10.0 for pair in PAIRS if pair != missing}, int(limit_s) + 1)

    assert [] == watch.lacking(60 + limit_s - 1)
    assert [missing] == watch.lacking(60 + limit_s + 1)


@pytest.mark.parametrize("missing", ["BTCUSDT", "ETHUSDT"])
def test_a_missing_symbol_is_noticed(missing: str) -> None:
    """If a whole symbol falls silent while another goes on, all its streams are named."""
    watch = watched({pair: 1.0 for pair in PAIRS if pair[0] != missing}, 301)

    assert [pair for pair in PAIRS if pair[0] == missing] == watch.lacking(361.0)


@given(quiet_s=st.integers(1, 10_000), late=st.lists(st.sampled_from(PAIRS), max_size=LACKS_WHILE - 6))
def test_a_quiet_market_lacks_nothing(quiet_s: int, late: list[tuple[str, str]]) -> None:
    """Silence of all streams, and a handful of messages after it, show nothing missing."""
    watch = watched({}, 0)
    for pair in late:
        watch.note(*pair, 60.0 + quiet_s)

    assert [] == watch.lacking(60.0 + quiet_s)


def test_a_stream_that_never_came_is_noticed() -> None:
    """Also on a connection that has never brought it."""
    watch = StreamWatch(PAIRS[:3], 0.0)
    for second in range(12):
        watch.note("BTCUSDT", "bestBidAsk", float(second))

    assert [("BTCUSDT", "depth")] == watch.lacking(12.0)


def test_replacing_for_a_missing_stream_has_growing_pauses() -> None:
    """At once, then after a minute, two, four and so on, at most once an hour."""
    replacing, tried_s = Replacing(), []
    for second in range(6 * 3600):
        if replacing.due(float(second)):
            replacing = replacing.done(float(second))
            tried_s.append(second)

    assert [0, 60, 180, 420, 900, 1860, 3780, 7380, 10980, 14580, 18180] == tried_s


# -- ids, budgets, address --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([(1, 3), (4, 4), (5, 9)], 0),
        ([(1, 3), (5, 9)], 1),
        ([(1, 3), (5, 9), (10, 11), (13, 13)], 2),
        ([(1, 3), (2, 3), (4, 5)], 0),
        ([(1, 9), (2, 5), (10, 11)], 0),
        ([(100, 120)], 0),
    ],
)
def test_jumps_of_ids_are_counted(messages: list[tuple[int, int]], expected: int) -> None:
    """A message that does not follow the highest id so far is a jump; the first one and repetitions are not."""
    watch = SequenceWatch()

    jumps = sum(watch.jumped("BTCUSDT", 10003, first, last) for first, last in messages)

    assert expected == jumps


def test_symbols_and_streams_have_ids_of_their_own() -> None:
    """Messages of another symbol or stream between two that follow each other make no jump."""
    watch = SequenceWatch()

    jumps = [
        watch.jumped(symbol, template, number, number)
        for number in (7, 8)
        for symbol in ("BTCUSDT", "ETHUSDT")
        for template in (10000, 10003)
    ]

    assert not any(jumps)


def test_a_connection_sends_five_messages_a_second_at_most() -> None:
    """However many are wished for, no six messages lie within a second, from the first one on."""
    clock = Clock()
    budget = message_budget(clock)
    times = []

    for tick in range(6_000):
        clock.now_s = tick / 100
        times += [clock.now_s] * budget.take()

    assert min(later - time for time, later in zip(times, times[5:], strict=False)) >= 1 - 1e-9
    assert len(times) >= 60


def test_two_lines_stay_below_the_exchange_s_limit_of_connections() -> None:
    """Two lines of one host that fail without end make at most 300 connections in any five minutes."""
    clock = Clock()
    budgets = [attempt_budget(clock), attempt_budget(clock)]

    made = 0
    for tick in range(300 * 20):
        clock.now_s = tick / 20
        made += sum(budget.take() for budget in budgets)

    assert made <= 300


def test_the_address_names_every_stream_of_every_symbol() -> None:
    """Symbols are in lower case, stream names are not."""
    url = stream_url("wss://host:9443", ["BTCUSDT", "ETHUSDT"], ["trade", "bestBidAsk"])

    streams = "btcusdt@trade/btcusdt@bestBidAsk/ethusdt@trade/ethusdt@bestBidAsk"
    assert f"wss://host:9443/stream?streams={streams}" == url


def test_the_delays_follow_their_settings() -> None:
    """A shorter longest delay is kept to."""
    policy = ConnectionPolicy(immediate_tries=0, backoff=Backoff(1.0, 30.0))

    delays = [Tries(count).delay_s(policy, 0.5) for count in range(7)]

    assert [1, 2, 4, 8, 16, 30, 30] == delays
