"""Output of `kubectl reanchor` contains nothing that controls the reader's terminal, whatever its source."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sheetanchor_operator.plugin.command import _print
from sheetanchor_operator.plugin.words import history, overview, print_line, summary

AT = "2026-11-21T08:00:00Z"
NOW_US = 1_800_000_000_000_000
_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ["\x1b[2J", "\x1b]0;x\x07", "a\r\nb", "\x9b31m", "\u202eabc", "\u2028", "\x7f", "😀\x00"]
)


def reanchor(text: str) -> dict[str, Any]:
    status = {"phase": text, "result": text, "message": text, "epochBefore": 1, "epochAfter": 2}
    spec = {"trigger": text, "reason": text, "symbol": text, "requestedBy": text}
    return {"metadata": {"name": text, "creationTimestamp": AT}, "spec": spec, "status": status}


def pipeline(text: str) -> dict[str, Any]:
    condition = {"status": "False", "reason": text, "message": text, "lastTransitionTime": AT}
    status = {
        "phase": text,
        "ready": text,
        "activeZone": text,
        "model": text,
        "lastPredictionAt": AT,
        "lastReanchor": {"result": text, "startedAt": AT},
        "conditions": [{"type": "Anchored", **condition}, {"type": text, **condition}],
        "symbols": [{"name": text, "state": text, "reason": text, "suspectSince": AT}],
    }
    return {"metadata": {"name": text, "namespace": text}, "status": status}


@given(_TEXT)
def test_tables_are_plain_text(text: str) -> None:
    """In every cell; a table has as many lines as it has rows."""
    told = history([reanchor(text)] * 3, NOW_US), overview([pipeline(text)] * 3, NOW_US)

    assert [4, 4] == [table.count("\n") + 1 for table in told]
    assert set() == {sign for table in told for sign in table if not sign.isprintable()} - {"\n"}


@pytest.mark.parametrize("text", ["\x1b[2J", "a\r\nb", "\x9b31m", "\u202eabc"])
def test_what_is_printed_is_plain_text(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Summaries, messages, errors: line by line."""
    print_line(summary(pipeline(text), [reanchor(text)], NOW_US))
    print_line(f"kubectl reanchor: {text}")

    out = capsys.readouterr().out
    assert set() == {sign for sign in out if not sign.isprintable()} - {"\n"}


@pytest.mark.parametrize("output", ["json", "yaml"])
@pytest.mark.parametrize("text", ["\x1b[2J", "a\r\nb", "\x9b31m", "\u202eabc", "\u2028", "😀\x7f", "Zürich → 東京"])
def test_objects_are_printed_with_escapes(text: str, output: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What reads them gets what is there; a terminal gets nothing to act upon."""
    _print(reanchor(text), output)

    out = capsys.readouterr().out
    assert set() == {sign for sign in out if not sign.isprintable()} - {"\n"}
    assert reanchor(text) == (json.loads(out) if output == "json" else yaml.safe_load(out))
