"""The terminal view, drawn to consoles of fixed size."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
from rich.console import Console

from sheetanchor.local.dashboard.status import Status
from sheetanchor.local.dashboard.view import (
    age_text,
    duration_text,
    missed_line,
    outcome_mark,
    price_text,
    render,
    short_number,
    slot_line,
    sparkline,
)
from support.local_samples import FIRST_SLOT, full_status, prediction


def drawn(status: Status, width: int = 80, height: int = 24) -> list[str]:
    """Draw a status and give the screen's lines."""
    console = Console(width=width, height=height, force_terminal=True, color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(render(status, height), height=height, end="")
    return capture.get().splitlines()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (200, 60), (60, 16)])
def test_screen_is_filled_and_not_exceeded(width: int, height: int) -> None:
    """Whatever the size, no line is longer than the screen and there are no more lines than rows."""
    lines = drawn(full_status(), width, height)

    assert height == len(lines)
    assert {True} == {len(line) <= width for line in lines}


@pytest.mark.parametrize(
    "part",
    [
        "Sheet Anchor",
        "http://127.0.0.1:8080/",
        "BTCUSDT",
        "anchored",
        "epoch 3",
        "missed 1",
        "61,859.00",
        "frame to hot keys",
        "line a",
        "infer/2",
        "connection lost",
        "sequence_gap",
        "swapped start 1.2 s",
        "right 49 % of 53",
        "majority baseline 100 %",
        "the model was trained",
    ],
)
def test_smallest_screen_shows(part: str) -> None:
    """On 80 columns and 24 rows nothing that matters is missing."""
    assert part in "\n".join(drawn(full_status()))


def test_outcomes_are_ticked() -> None:
    """Right and wrong directions can be distinguished without colour."""
    screen = "\n".join(drawn(full_status(), 120, 40))

    assert ("✓" in screen, "✗" in screen) == (True, True)


def test_markup_in_a_message_is_shown_as_it_is() -> None:
    """A log line cannot change the screen."""
    screen = "\n".join(drawn(full_status(text="[bold]x[/bold] \x1b[2J"), 120, 40))

    assert "[bold]x[/bold]" in screen
    assert "\x1b[2J" not in screen


def evil(value: Any) -> Any:
    """Put control signs into every text of a tree of records, lists and maps."""
    if isinstance(value, str):
        return f"{value}{CONTROLS}"
    if isinstance(value, list | tuple):
        return type(value)(evil(one) for one in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{each.name: evil(getattr(value, each.name)) for each in fields(value)})
    return value


CONTROLS = "\x1b[2J\x1b]0;title\x07\r\x08\x9b31m\u202e\n"


def test_no_text_from_elsewhere_moves_the_cursor() -> None:
    """Whichever text of the status holds control characters, none of them reaches the terminal."""
    status = evil(full_status())

    screen = "".join(drawn(status, 200, 60))
    plain = slot_line(f"BTC{CONTROLS}", evil(prediction(FIRST_SLOT, degraded=True, reason="x")))

    assert set() == {sign for sign in screen + plain + missed_line(CONTROLS, FIRST_SLOT) if not sign.isprintable()}


def test_several_symbols_have_a_line_each() -> None:
    """Every symbol's anchor is shown, the first one's predictions in full."""
    lines = drawn(full_status(symbols=("BTCUSDT", "ETHUSDT", "SOLUSDT")))

    assert ["BTCUSDT", "ETHUSDT", "SOLUSDT"] == [line.split()[0] for line in lines[1:4]]


def test_empty_run_can_be_drawn() -> None:
    """Before anything is known the view says so instead of failing."""
    status = full_status(slots=1)
    bare = replace(status.symbols[0], predictions=[], missed_slots=[], gaps=[], receipts=[], lines=[])

    screen = "\n".join(drawn(replace(status, symbols=[bare], stages=[], roles=[], notices=[])))

    assert "nothing measured yet" in screen


@pytest.mark.parametrize(("age_ms", "text"), [(None, "-"), (41.6, "42 ms"), (1_800.0, "1.8 s"), (125_000.0, "02:05")])
def test_ages(age_ms: float | None, text: str) -> None:
    """An age has the unit that fits."""
    assert text == age_text(age_ms)


def test_numbers() -> None:
    """Short texts for numbers of any size."""
    assert ("-", "0.05", "12.3", "431") == tuple(short_number(value) for value in (None, 0.05, 12.34, 431.2))
    assert ("61,837.63", "0.000123", "-") == tuple(price_text(value) for value in (61_837.63, 0.000123, None))
    assert ("1:02:05", "00:57") == (duration_text(3_725), duration_text(57.9))


def test_sparkline_spans_its_values() -> None:
    """The lowest value is the lowest block, the highest the highest."""
    assert ("▁█", "▁▁", "") == (sparkline([1.0, 2.0]), sparkline([5.0, 5.0]), sparkline([]))


def test_open_outcome_has_its_own_mark() -> None:
    """A prediction whose ten seconds are not over is neither right nor wrong."""
    assert "…" == outcome_mark(prediction(FIRST_SLOT))[0]


def test_plain_lines() -> None:
    """One line per slot, with the reason if it is degraded."""
    sound = slot_line("BTCUSDT", prediction(FIRST_SLOT))
    degraded = slot_line("BTCUSDT", prediction(FIRST_SLOT, degraded=True, reason="state is suspect"))

    expected = "08:00:00 BTCUSDT 61,837.63 -> 61,838.00 up confidence 0.60  model epoch 1  8.0 ms"
    assert (expected, expected + "  degraded: state is suspect") == (sound, degraded)
    assert "08:00:02 BTCUSDT missed" == missed_line("BTCUSDT", FIRST_SLOT + 1)
