"""Budgets of speed: ratios of a work to a reference measured beside it, and what is over its budget. Pure.

A slow machine makes both slower, a slow commit only the work. So a budget says how many times its reference a work may
take at most; nothing here knows nanoseconds.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

SLACK_MIN = 1.05
"""A budget nearer than this to what is usual fails by chance."""


@dataclass(frozen=True, slots=True)
class Budget:
    """How long a work may take.

    Attributes:
        name: The work.
        reference: What it is a multiple of.
        usual: The ratio that was measured when the budget was set.
        most: The ratio that it may have.
    """

    name: str
    reference: str
    usual: float
    most: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """A budget and what was measured: the smallest ratio of all runs, since other load can only add to it."""

    budget: Budget
    ratio: float

    @property
    def kept(self) -> bool:
        """Whether the work is within its budget."""
        return self.ratio <= self.budget.most


def read_budgets(path: Path) -> list[Budget]:
    """Read budgets.

    Raises:
        ValueError: Names the budget and what is wrong with it.
    """
    found = [Budget(**entry) for entry in tomllib.loads(path.read_text(encoding="utf-8"))["budget"]]
    for budget in found:
        if not 0 < budget.usual * SLACK_MIN <= budget.most:
            least = f"{SLACK_MIN} times usual ({budget.usual}) or more"
            raise ValueError(f"budget {budget.name!r}: most = {budget.most}: expected {least}")
    if len({budget.name for budget in found}) < len(found):
        raise ValueError("budgets: expected each name once")
    return found


def widened(budgets: Sequence[Budget], slack: float) -> list[Budget]:
    """Give each budget so many times as much, for a machine on which they were not set.

    Raises:
        ValueError: It would narrow them.
    """
    if slack < 1:
        raise ValueError(f"slack = {slack}: expected 1 or more")
    return [replace(budget, most=budget.most * slack) for budget in budgets]


def outcomes(budgets: Sequence[Budget], runs: Sequence[Mapping[str, float]]) -> list[Outcome]:
    """Compare what was measured with the budgets.

    Args:
        budgets: All of them.
        runs: Of each run the ratio of each work.

    Raises:
        ValueError: A work was not measured, or one has no budget: a check that was not made has not passed.
    """
    names = {budget.name for budget in budgets}
    for run in runs:
        if unknown := run.keys() ^ names:
            raise ValueError(f"expected a measurement for each budget and none besides, not so for {sorted(unknown)}")
    return [Outcome(budget, min(run[budget.name] for run in runs)) for budget in budgets]


def table(found: Sequence[Outcome]) -> str:
    """Render outcomes as a Markdown table."""
    lines = ["| work | reference | usual | now | at most | |", "|---|---|---:|---:|---:|---|"]
    lines += [
        f"| {one.budget.name} | {one.budget.reference} | {one.budget.usual:.2f} | {one.ratio:.2f} | "
        f"{one.budget.most:.2f} | {'' if one.kept else '**over its budget**'} |"
        for one in found
    ]
    return "\n".join(lines)
