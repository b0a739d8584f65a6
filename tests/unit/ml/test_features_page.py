"""The page about features and the code agree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sheetanchor.ml.feature_vector import FEATURES

PAGE = Path(__file__).parents[3] / "docs" / "features.md"
LEVEL = re.compile(r"(?:bid|ask)\d+_[pq]")


@pytest.mark.parametrize("group", ["ob", "tr_1s", "tr_5s", "feat"])
def test_every_feature_is_described(group: str) -> None:
    """Each field that a manifest may name stands in the section of its hash; levels stand there as ranges."""
    section = next(
        part for part in PAGE.read_text(encoding="utf-8").split("\n## ") if f"`{group}`" in part.split("\n")[0]
    )
    described = set(re.findall(r"`([a-z0-9_]+)`", section))

    wanted = {name.partition(".")[2] for name in FEATURES if name.startswith(f"{group}.")}

    assert not {name for name in wanted if not LEVEL.fullmatch(name)} - described
    assert {name for name in wanted if LEVEL.fullmatch(name)} <= {
        f"{side}{level}_{part}" for side in ("bid", "ask") for level in range(1, 11) for part in "pq"
    }


def test_the_page_says_what_a_return_compares_with_when_history_is_short() -> None:
    """The last trade's price first, 0 only without that: what test_market_windows shows of the code."""
    text = " ".join(PAGE.read_text(encoding="utf-8").split())

    assert (
        "the price of the last trade at or before x replaces it; without such a trade either, the return is 0" in text
    )
