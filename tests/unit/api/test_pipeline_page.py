"""The reference of the resource names everything that there is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from sheetanchor_operator.names import Condition, EventReason, Phase, Reason

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "pipeline.md").read_text()
EXPLAINED_ELSEWHERE = {"requests", "limits", "key", "operator", "value", "effect", "tolerationSeconds"}
"""Fields that every pod has."""


def fields(node: dict[str, Any]) -> Iterator[str]:
    for name, below in (node.get("properties") or {}).items():
        yield name
        yield from fields(below)
        yield from fields(below.get("items") or {})


def test_every_field_is_in_the_reference() -> None:
    """Every field of the specification is explained on the page."""
    crd = yaml.safe_load((ROOT / "crds" / "predictionpipelines.yaml").read_text())
    spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]

    assert set() == {name for name in fields(spec) if not re.search(rf"\b{name}\b", PAGE)} - EXPLAINED_ELSEWHERE


def test_every_word_is_in_the_reference() -> None:
    """Phases, conditions, their reasons and the reasons of Events."""
    for words in (Phase, Condition, Reason, EventReason):
        assert set() == {str(word) for word in words if not re.search(rf"\b{word}\b", PAGE)}
