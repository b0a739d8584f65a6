from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sheetanchor.web.answers import ADDRESSES_MAX, Admission, Allowance
from sheetanchor.web.listeners import Places

MOST, PER_ADDRESS = 12, 5

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("enter"), st.sampled_from("abcde")),
        st.tuples(st.sampled_from(["asks", "waits", "leave"]), st.integers(0, 80)),
    ),
    max_size=120,
)


@given(STEPS)
def test_places_are_bounded_and_a_newcomer_gets_in_unless_all_are_being_answered(
    steps: list[tuple[str, object]],
) -> None:
    """An idle connection is closed for a new one; if all are being answered, the new one is refused."""
    places: Places[int] = Places(MOST, PER_ADDRESS)
    there: dict[int, str] = {}
    busy: set[int] = set()
    for number, (what, value) in enumerate(steps):
        if what == "enter":
            address = str(value)
            held = [one for one, its in there.items() if its == address]
            crowded = len(held) >= PER_ADDRESS
            able = held if crowded else list(there)
            leaving = places.enter(number, address)
            if leaving == number:
                assert set(able) <= busy
                assert crowded or len(there) >= MOST
                continue
            if leaving is not None:
                assert leaving not in busy
                assert crowded or len(there) >= MOST
                assert there.pop(leaving) == address or not crowded
            there[number] = address
        else:
            one = int(str(value))
            if what == "asks" and one in there:
                busy.add(one)
            elif what == "waits":
                busy.discard(one)
            elif what == "leave":
                there.pop(one, None)
                busy.discard(one)
            getattr(places, what)(one)
        busy &= set(there)
        assert len(places) == len(there) <= MOST
        assert all(list(there.values()).count(address) <= PER_ADDRESS for address in there.values())


def test_one_address_does_not_crowd_out_another() -> None:
    """Who has most waiting connections gives one up, the oldest first."""
    places: Places[str] = Places(6, 5)
    assert [None] * 6 == [places.enter(one, one[0]) for one in ("a1", "b1", "b2", "b3", "b4", "b5")]

    assert ["b1", "b2", "b3"] == [places.enter(one, "c") for one in ("c1", "c2", "c3")]


@given(st.lists(st.floats(0, 2), max_size=60))
def test_an_allowance_gives_no_more_than_it_may(gaps: list[float]) -> None:
    """In any stretch of time: what it holds, and what has come since."""
    allowance, now, taken = Allowance(per_s=3, most=5), 1000.0, 0
    for gap in gaps:
        now += gap
        taken += allowance.take(now)

    assert min(len(gaps), 5) <= taken <= 5 + 3 * sum(gaps)


def test_a_clock_that_stands_still_or_goes_back_gives_nothing() -> None:
    """And takes nothing away."""
    allowance = Allowance(per_s=1, most=1)

    assert [True, False, False, True] == [allowance.take(now) for now in (10, 10, 5, 6)]


def test_addresses_are_distinguished_and_dropped() -> None:
    """A client over its limit does not use up another one's; a bounded number of addresses is remembered."""
    admission = Admission(per_s=1, burst=1)

    assert "" == admission.refusal("a", 0)
    assert "" != admission.refusal("a", 0)
    assert {""} == {admission.refusal(f"n{number}", 0) for number in range(ADDRESSES_MAX)}
    assert "" == admission.refusal("a", 0)
    assert len(admission._allowances) == ADDRESSES_MAX


def test_so_many_are_answered_at_a_time() -> None:
    """The next one is refused until one is done."""
    admission = Admission(at_once=1)

    with admission.answering():
        assert "" != admission.refusal("a", 0)
    assert "" == admission.refusal("a", 0)
