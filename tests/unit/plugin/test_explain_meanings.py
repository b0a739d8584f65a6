"""Whatever can be reported has an explanation: each closed list of the product is compared with the plugin's."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from sheetanchor.policy.gap_rules import GAP_DETECTION_RULES
from sheetanchor.policy.soundness import REASON_KINDS
from sheetanchor_operator.names import Component, Condition, Reason
from sheetanchor_operator.plugin.explain.meanings import (
    CHECKS,
    DOUBTS,
    MEANINGS,
    NOTHING_WRONG,
    PROBLEM_STATUSES,
    RULES,
    THROTTLED,
)
from sheetanchor_operator.status.problems import ORDER, POD_REMEDIES
from sheetanchor_operator.status.refusal_causes import REMEDIES

ROOT = Path(__file__).resolve().parents[3]
WORKLOADS = ROOT / "workloads" / "sheetanchor"
RUNBOOKS = {page.stem for page in (ROOT / "docs" / "runbooks").glob("*.md")}


def first_arguments(name: str, *files: Path) -> Iterator[str]:
    """Give the first argument of each call of a function, where it is written out."""
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
                first = node.args[0]
                if isinstance(first, ast.Constant):
                    yield str(first.value)


def test_every_reason_of_a_condition_has_a_meaning() -> None:
    """Or is one of those that report nothing wrong; none is both."""
    assert set(Reason) == set(MEANINGS) | NOTHING_WRONG
    assert set() == set(MEANINGS) & NOTHING_WRONG


def test_of_every_condition_it_is_said_when_it_reports_a_problem() -> None:
    """By its statuses: one that the operator adds may be bad when it is True, or not bad when it is Unknown."""
    assert set(Condition) == set(PROBLEM_STATUSES)


def test_every_kind_of_doubt_has_a_meaning() -> None:
    """Those that inference raises, and those that it takes over from the processor's judgement."""
    raised = set(first_arguments("Doubt", *(WORKLOADS / "infer").glob("*.py")))

    assert {"suspect", "stale", "model"} < raised
    assert raised | set(REASON_KINDS) == set(DOUBTS)


def test_every_gap_rule_has_its_advice() -> None:
    """Even if it is that there is nothing to do."""
    assert set(GAP_DETECTION_RULES) == set(RULES)


@pytest.mark.parametrize(("component", "folder"), [(Component.INGEST, "ingest"), (Component.INFER, "infer")])
def test_every_health_check_has_a_meaning(component: Component, folder: str) -> None:
    """Of the pods whose health is asked."""
    assert set(first_arguments("Check", WORKLOADS / folder / "command.py")) == set(CHECKS[component])


def test_what_blocks_comes_first_as_the_operator_has_it() -> None:
    """Of two problems the operator reports the more likely cause, and so does the plugin."""
    assert [reason for reason in MEANINGS if reason in ORDER] == list(ORDER)


def test_every_runbook_that_is_named_exists() -> None:
    """A name that leads nowhere costs time when there is none."""
    entries = [*MEANINGS.values(), *DOUBTS.values(), *(one for checks in CHECKS.values() for one in checks.values())]
    named = {one.runbook for one in entries} - {""}

    assert len(named) > 15
    assert set() == named - RUNBOOKS
    assert {THROTTLED} <= named


def test_every_reason_says_what_follows_and_what_to_do() -> None:
    """Each has a consequence, and a remedy in its message, a command or a runbook."""
    assert [] == [reason for reason, one in MEANINGS.items() if not one.consequence]
    assert [] == [reason for reason, one in MEANINGS.items() if not (one.carried or one.commands or one.runbook)]
    assert [] == [kind for kind, one in DOUBTS.items() if not (one.consequence and one.runbook)]


def test_every_command_can_be_filled_in() -> None:
    """With the names of the pipeline and its namespace, and nothing else."""
    commands = [one for entry in (*MEANINGS.values(), *DOUBTS.values()) for one in entry.commands]

    filled = {command.format(name="btc", namespace="trading") for command in commands}

    assert [] == [one for one in filled if not one.startswith("kubectl ") or "{name" in one or "trading" not in one]
    assert """kubectl -n trading patch pp btc --type=merge -p '{"spec":{"suspend":false}}'""" in filled


def test_a_remedy_is_in_one_piece() -> None:
    """The plugin takes what follows the last `; ` of a message for its remedy."""
    assert [] == [one for one in (*REMEDIES.values(), *POD_REMEDIES.values()) if "; " in one]
