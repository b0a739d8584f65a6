"""Requests that change something: what the gate lets in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sheetanchor.web.control import NONCE_GIVEN_S, NONCE_LIFE_S, ControlGate, password_in, signature

PATH, BODY, PASSWORD = "/control/take", b'{"term": 3}', "secret"


class Clock:
    """Seconds that a test moves."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def gate_of(password: Callable[[], str] = lambda: PASSWORD) -> tuple[ControlGate, Clock]:
    """A gate and its clock."""
    clock = Clock()
    return ControlGate(password, clock), clock


def test_a_signed_request_is_let_in_once() -> None:
    """The nonce is used up by it: the same request, sent again, is refused, and the next one has another nonce."""
    gate, _ = gate_of()
    nonce = gate.nonce()
    signed = signature(PASSWORD, nonce, PATH, BODY)

    assert gate.admits(signed, PATH, BODY)
    assert not gate.admits(signed, PATH, BODY)
    assert nonce != gate.nonce()
    assert not gate.admits(signed, PATH, BODY)


@pytest.mark.parametrize(
    ("password", "path", "body"),
    [("other", PATH, BODY), (PASSWORD, "/control/hand-over", BODY), (PASSWORD, PATH, b'{"term": 4}')],
)
def test_what_was_signed_otherwise_is_refused(password: str, path: str, body: bytes) -> None:
    """Password, path and body belong to the signature; a refused request leaves the nonce as it is."""
    gate, _ = gate_of()
    nonce = gate.nonce()

    assert not gate.admits(signature(password, nonce, path, body), PATH, BODY)
    assert not gate.admits("", PATH, BODY)
    assert not gate.admits("ä", PATH, BODY)
    assert gate.admits(signature(PASSWORD, nonce, PATH, BODY), PATH, BODY)


def test_a_nonce_is_good_for_half_a_minute() -> None:
    """A request signed with an old one is refused."""
    gate, clock = gate_of()
    first, second = gate.nonce(), ControlGate(lambda: PASSWORD, clock)
    same = second.nonce()
    clock.now_s += NONCE_LIFE_S
    assert gate.admits(signature(PASSWORD, first, PATH, BODY), PATH, BODY)
    clock.now_s += 0.001

    assert not second.admits(signature(PASSWORD, same, PATH, BODY), PATH, BODY)
    assert same != second.nonce()


@given(st.lists(st.floats(0, 2 * NONCE_LIFE_S), max_size=20))
def test_a_nonce_that_is_given_is_good_for_a_quarter_of_a_minute(pauses_s: list[float]) -> None:
    """Whenever clients request it: none is given one that is about to expire, and few are good at a time."""
    gate, clock = gate_of()
    nonces: dict[str, float] = {}
    for pause_s in pauses_s:
        clock.now_s += pause_s
        nonces[gate.nonce()] = clock.now_s
        assert len([one for one, at_s in nonces.items() if clock.now_s - at_s <= NONCE_GIVEN_S]) <= 2
    clock.now_s += NONCE_LIFE_S - NONCE_GIVEN_S

    if nonces:
        assert gate.admits(signature(PASSWORD, list(nonces)[-1], PATH, BODY), PATH, BODY)


def test_nothing_is_let_in_before_anybody_has_asked_for_a_nonce() -> None:
    """The empty nonce of a new gate signs nothing."""
    gate, _ = gate_of()
    assert not gate.admits(signature(PASSWORD, "", PATH, BODY), PATH, BODY)


def test_without_a_password_nothing_is_let_in(tmp_path: Path) -> None:
    """A file that is missing or empty is no password; one that is written later is, without a new start."""
    file = tmp_path / "password"
    gate, _ = gate_of(lambda: password_in(file))
    nonce = gate.nonce()
    assert not gate.admits(signature("", nonce, PATH, BODY), PATH, BODY)

    file.write_text(f"{PASSWORD}\n", encoding="utf-8")
    assert gate.admits(signature(PASSWORD, nonce, PATH, BODY), PATH, BODY)


def test_two_processes_have_different_nonces() -> None:
    """What was signed for one of them is no request to the other."""
    first, second = gate_of()[0], gate_of()[0]
    second.nonce()
    assert not second.admits(signature(PASSWORD, first.nonce(), PATH, BODY), PATH, BODY)
