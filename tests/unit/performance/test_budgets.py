"""A budget of speed fails for a slow commit, for a measurement that is missing, and for nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.budgets import Budget, outcomes, read_budgets, table, widened
from support.repository import ROOT

BUDGETS = ROOT / "tests" / "performance" / "budgets.toml"
BOOK = Budget("book", "reading", usual=8.0, most=9.0)
READ = Budget("read", "bare", usual=1.1, most=1.2)


@given(ns=st.floats(1, 1e6), slower=st.floats(0.1, 100))
def test_a_slow_machine_fails_nothing(ns: float, slower: float) -> None:
    """Work and reference take longer by the same factor."""
    ratio = (8.5 * ns * slower) / (ns * slower)

    assert outcomes([BOOK], [{"book": ratio}])[0].kept


@pytest.mark.parametrize(("factor", "kept"), [(1.0, True), (1.1, True), (1.2, False), (3.0, False)])
def test_a_slow_commit_fails(factor: float, kept: bool) -> None:
    """Only the work takes longer."""
    (found,) = outcomes([BOOK], [{"book": 8.0 * factor}, {"book": 8.0 * factor * 1.01}])

    assert kept == found.kept
    assert ("over its budget" in table([found])) != kept


def test_what_was_slow_once_is_not_slow() -> None:
    """Other load can only add: of two runs the faster one counts, for each work by itself."""
    found = outcomes([BOOK, READ], [{"book": 20.0, "read": 1.1}, {"book": 8.1, "read": 5.0}])

    assert [8.1, 1.1] == [one.ratio for one in found]
    assert all(one.kept for one in found)


@pytest.mark.parametrize("run", [{}, {"book": 1.0}, {"book": 1.0, "read": 1.0, "other": 1.0}])
def test_what_was_not_measured_has_not_passed(run: dict[str, float]) -> None:
    """Nor has a work without a budget."""
    with pytest.raises(ValueError, match="expected a measurement for each budget"):
        outcomes([BOOK, READ], [run])


@pytest.mark.parametrize(("usual", "most"), [(8.0, 8.0), (8.0, 7.0), (0.0, 1.0)])
def test_a_budget_that_fails_by_chance_is_refused(tmp_path: Path, usual: float, most: float) -> None:
    """There has to be room for noise."""
    path = tmp_path / "budgets.toml"
    path.write_text(f'[[budget]]\nname = "x"\nreference = "y"\nusual = {usual}\nmost = {most}\n')

    with pytest.raises(ValueError, match="'x'"):
        read_budgets(path)


def test_slack_widens_and_never_narrows() -> None:
    """A machine on which budgets were not set may have other ratios."""
    assert [13.5] == [budget.most for budget in widened([BOOK], 1.5)]
    with pytest.raises(ValueError, match="slack"):
        widened([BOOK], 0.9)


def test_the_budgets_can_fail() -> None:
    """None of them is so wide that a commit which doubles the work passes."""
    budgets = read_budgets(BUDGETS)

    assert len(budgets) >= 10
    assert [] == [budget.name for budget in budgets if 2 * budget.usual <= budget.most]
