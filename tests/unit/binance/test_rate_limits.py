"""Rate limits and bans of the exchange in all their forms, and the request weight that is counted in advance."""

from __future__ import annotations

import json
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sheetanchor.binance.rate_limits import WAIT_MAX_S, asks_for_silence, silence_s
from sheetanchor.binance.rest_client import WEIGHT_SHARE, Weight

NOW_S = 1_700_000_000.0  # twenty seconds into a minute
DATE = formatdate(NOW_S, usegmt=True)
BANNED = "Way too much request weight used; IP banned until {}. Please use WebSocket Streams to avoid bans."


def complaint(text: str, code: int = -1003) -> str:
    return json.dumps({"code": code, "msg": text})


@pytest.mark.parametrize(
    ("retry_after", "text", "wait_s"),
    [
        ("7", "", 7.0),
        (" 7 ", "", 7.0),
        (None, "", 10.0),
        ("soon", "", 10.0),
        ("-1", "", 10.0),
        ("\u0667", "", 10.0),
        ("9" * 30, "", WAIT_MAX_S),
        (formatdate(NOW_S + 90, usegmt=True), "", 90.0),
        (None, complaint(BANNED.format(int(NOW_S + 120) * 1_000)), 120.0),
        (None, complaint(BANNED.format(int(NOW_S + 120) * 1_000_000)), 120.0),
        (None, complaint(BANNED.format(int(NOW_S + 120))), 120.0),
        (None, complaint(f"Way too many requests; IP(1.2.3.4) banned until {int(NOW_S + 60) * 1_000}."), 60.0),
        (None, f"<html>IP Banned Until {int(NOW_S + 60) * 1_000}</html>", 60.0),
        ("30", complaint(BANNED.format(int(NOW_S + 120) * 1_000)), 120.0),
        ("300", complaint(BANNED.format(int(NOW_S + 120) * 1_000)), 300.0),
        (None, complaint(BANNED.format(int(NOW_S - 5) * 1_000)), 10.0),
        (None, complaint("Too much request weight used; current limit is 6000 request weight per 1 MINUTE."), 40.0),
        (None, complaint("Too many requests; current limit is 300 requests per 5 MINUTES."), 100.0),
        (None, complaint("Too many requests queued."), 10.0),
    ],
)
def test_a_pause_is_requested_in_many_forms(retry_after: str | None, text: str, wait_s: float) -> None:
    """The longest time in header and text counts; without either, a default."""
    assert wait_s == silence_s(retry_after, DATE, text, NOW_S + 1_000, 10.0)


def test_ends_are_measured_by_the_exchanges_clock() -> None:
    """Our clock, an hour off, neither shortens nor lengthens a ban; without a date it is all there is."""
    text = BANNED.format(int(NOW_S + 120) * 1_000)

    assert 120.0 == silence_s(None, DATE, text, NOW_S - 3_600, 10.0)
    assert 60.0 == silence_s(None, None, text, NOW_S + 60, 10.0)
    assert 60.0 == silence_s(None, "yesterday", text, NOW_S + 60, 10.0)


@given(
    st.none() | st.text(max_size=50),
    st.none() | st.text(max_size=50),
    st.text(max_size=300),
    st.floats(0, 2**40),
)
def test_any_words_give_a_wait(retry_after: str | None, date: str | None, text: str, now_s: float) -> None:
    """Whatever is answered, the wait is a number within the bounds."""
    assert 0 <= silence_s(retry_after, date, text, now_s, 10.0) <= WAIT_MAX_S


@pytest.mark.parametrize(
    ("status", "text", "asks"),
    [
        (418, "", True),
        (429, "", True),
        (403, complaint(BANNED.format(1), -1), False),
        (403, complaint(BANNED.format(int(NOW_S) * 1_000), -1), True),
        (400, complaint("Too many requests."), True),
        (400, complaint("Illegal characters found.", -1100), False),
        (503, complaint("Too many requests."), True),
        (503, "<html>", False),
        (200, complaint("Too many requests."), False),
    ],
)
def test_what_asks_for_silence(status: int, text: str, asks: bool) -> None:
    """A status, the code of too many requests, or a ban in the text of any error."""
    assert asks == asks_for_silence(status, text)


def test_weight_of_a_minute() -> None:
    """Nine tenths of the allowed weight may be used; beyond that the next minute is waited for."""
    weight = Weight(1000)
    weight.take(1, 60.0)
    weight.settle(1, "895", 60.0)

    assert 5 == weight.remaining(61.0)
    assert 59.0 == weight.take(6, 61.0)
    assert 0.0 == weight.take(5, 61.0)
    assert 0 == weight.remaining(61.0)
    assert 895 == weight.remaining(120.0), "what is under way may count in the new minute"


def test_parallel_requests_do_not_take_the_same_rest() -> None:
    """Four requests that are allowed at once each count before any is answered."""
    weight = Weight(1000)

    waits = [weight.take(250, 60.0) for _ in range(4)]

    assert [0.0, 0.0, 0.0, 60.0] == waits


@pytest.mark.parametrize("header", [None, "", "many", "-5", "\u0665"])
def test_an_exchange_without_the_header_is_limited(header: str | None) -> None:
    """Weight that the exchange does not report is counted by the client."""
    weight = Weight(1000)
    for _ in range(3):
        assert 0.0 == weight.take(300, 60.0)
        weight.settle(300, header, 60.5)

    assert 58.0 == weight.take(1, 62.0)


def test_answers_in_another_order_do_not_free_weight() -> None:
    """The used weight in an answer that arrives out of order is lower than what is already known."""
    weight = Weight(1000)
    weight.take(250, 60.0)
    weight.take(2, 60.0)
    weight.settle(2, "252", 60.2)
    weight.settle(250, "250", 60.3)

    assert 900 - 252 == weight.remaining(61.0)


def test_what_an_earlier_process_had_left() -> None:
    """A new process starts with the weight that the last one reported in the same minute."""
    weight = Weight(1000)
    weight.recall(40, 60.0)

    assert 40 == weight.remaining(61.0)
    assert 900 == weight.remaining(121.0)


@given(
    st.lists(st.tuples(st.integers(1, 300), st.floats(0, 5), st.booleans(), st.integers(0, 400)), max_size=60),
    st.booleans(),
)
def test_never_more_than_the_share(requests: list[tuple[int, float, bool, int]], tells: bool) -> None:
    """However requests overlap, the exchange counts no more than our share, whether it reports its count or not."""
    limit = 1_000
    weight, now_s, used = Weight(limit), 60.0, 0
    in_flight: list[int] = []
    for cost, step_s, answered, others in requests:
        now_s = min(now_s + step_s / 10, 119.0)
        if weight.take(cost, now_s) == 0.0:
            in_flight.append(cost)
            used += cost
            assert used <= limit * WEIGHT_SHARE or others
        if answered and in_flight:
            weight.settle(in_flight.pop(0), str(used) if tells else None, now_s)
        if not others:
            assert used <= limit * WEIGHT_SHARE
