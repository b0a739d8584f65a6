"""Who of several operators acts: the rule, with every clock as an argument."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sheetanchor_operator.kube.leader_election import DURATION_S, RENEW_WITHIN_S, View, decide, seen


def lease(holder: str, version: str, *, duration_s: int = int(DURATION_S), transitions: int = 0) -> dict[str, Any]:
    spec = {"holderIdentity": holder, "leaseDurationSeconds": duration_s, "leaseTransitions": transitions}
    return {"metadata": {"resourceVersion": version}, "spec": spec}


def test_nobody_s_lease_is_taken_at_once() -> None:
    """If there is no Lease, or it was released, no candidate waits."""
    absent = seen(View(), None, 100.0)
    given_back = seen(View(), lease("", "7", duration_s=1), 100.0)

    assert ("take", "take") == (decide(absent, "me", 100.0), decide(given_back, "me", 100.0))


def test_a_held_lease_is_left_to_its_holder() -> None:
    """For its whole duration after its last observed change no other candidate takes it."""
    view = seen(View(), lease("other", "7"), 100.0)

    assert ("wait", "wait") == (decide(view, "me", 100.0), decide(view, "me", 100.0 + DURATION_S))


def test_a_lease_that_is_not_renewed_is_taken() -> None:
    """Once it has been seen unchanged for longer than its duration, it is taken."""
    view = seen(View(), lease("other", "7"), 100.0)
    view = seen(view, lease("other", "7"), 110.0)

    assert "take" == decide(view, "me", 100.0 + DURATION_S + 0.1)


def test_a_renewal_starts_the_wait_anew() -> None:
    """A Lease of a new version was renewed, whatever times it contains."""
    view = seen(View(), lease("other", "7"), 100.0)
    view = seen(view, lease("other", "8"), 114.0)

    assert "wait" == decide(view, "me", 114.0 + DURATION_S)


def test_the_holder_s_own_duration_counts() -> None:
    """Who holds it for longer is waited for longer."""
    view = seen(View(), lease("other", "7", duration_s=60), 100.0)

    assert ("wait", "take") == (decide(view, "me", 159.0), decide(view, "me", 161.0))


def test_one_s_own_lease_is_renewed() -> None:
    """The holder continues, also if it has not renewed it for long, as long as no other candidate has taken it."""
    view = seen(View(), lease("me", "7"), 100.0)

    assert ("renew", "renew") == (decide(view, "me", 101.0), decide(view, "me", 1000.0))


def test_a_holder_stops_before_another_may_begin() -> None:
    """Who cannot renew gives up acting well before the Lease can be taken."""
    assert RENEW_WITHIN_S <= DURATION_S - 4


@given(st.lists(st.tuples(st.floats(0.1, 5.0), st.booleans()), min_size=1, max_size=60))
def test_there_are_never_two(steps: list[tuple[float, bool]]) -> None:
    """Whenever another takes the Lease, its last holder has stopped acting, whatever answers were lost."""
    now_s, version, holder = 0.0, 1, "a"
    renewed_s = 0.0
    view = seen(View(), lease("a", "1"), 0.0)
    for step_s, reaches in steps:
        now_s += step_s
        if holder == "a" and reaches and now_s - renewed_s <= RENEW_WITHIN_S:
            version, renewed_s = version + 1, now_s
        view = seen(view, lease(holder, str(version)), now_s)
        if decide(view, "b", now_s) == "take":
            holder = "b"
            break

    assert holder == "a" or now_s - renewed_s > RENEW_WITHIN_S
