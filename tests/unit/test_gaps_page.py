"""The page about gaps and the code have the same rules."""

from __future__ import annotations

import re

import pytest

from sheetanchor.policy.gap_rules import GAP_DETECTION_RULES
from support.repository import ROOT

TEXT = (ROOT / "docs" / "gaps.md").read_text(encoding="utf-8")


def table_under(heading: str) -> list[list[str]]:
    """Give the cells of the rows of the first table of a section, without its head."""
    section = TEXT.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    return rows[2:]


def test_the_table_of_rules_is_that_of_the_code() -> None:
    """Each rule has one row with its severity, its action and whether it makes the state suspect, and no others are."""
    on_page = [
        (name.strip("`"), severity, f"{action}_reanchor", suspect == "yes")
        for name, _, severity, action, suspect in table_under("The rules")
    ]
    in_code = {(name, rule.severity, rule.action, rule.suspects) for name, rule in GAP_DETECTION_RULES.items()}

    assert in_code == set(on_page)
    assert len(in_code) == len(on_page)


@pytest.mark.parametrize("rule", GAP_DETECTION_RULES)
def test_the_page_says_what_to_do_about_a_gap(rule: str) -> None:
    """Who sees a rule's name in a log finds what it means and what to do."""
    assert [row for row in table_under("What you see") if f"`{rule}`" in row[0]]


def test_the_page_advises_about_no_rule_that_does_not_exist() -> None:
    """After a rename the row of the old name would mislead."""
    named = {name for row in table_under("What you see") for name in re.findall(r"`([a-z]+_[a-z]+)`", row[0])}

    assert named <= GAP_DETECTION_RULES.keys()
