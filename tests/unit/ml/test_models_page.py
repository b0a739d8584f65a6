"""What the page about models says holds."""

from __future__ import annotations

import json
import re
from pathlib import Path

from sheetanchor.ml.registry import default_root, parse_manifest

PAGE = Path(__file__).parents[3] / "docs" / "models.md"


def test_the_manifest_on_the_page_is_sound() -> None:
    """A copy of it is a manifest that a registry accepts, once its hash is filled in."""
    [block] = re.findall(r"```json\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)

    manifest = parse_manifest(Path("manifest.json"), {**json.loads(block), "sha256": "0" * 64})

    assert ("mine", 3, ("BTCUSDT",)) == (manifest.name, len(manifest.features), manifest.symbols)


def test_the_page_reports_the_shipped_models_numbers() -> None:
    """How many outcomes judged it, how often it was right, and how much worse than no change it is."""
    [path] = default_root().glob("mlp/*/manifest.json")
    manifest = json.loads(path.read_text())
    test, naive = manifest["metrics"]["test"], manifest["metrics"]["baselines"]["no_change"]
    text = " ".join(PAGE.read_text(encoding="utf-8").split())

    worse = round(100 * (test["mse"] / naive["mse"] - 1))
    assert f"judged on {manifest['data']['examples']['test']} overlapping outcomes" in text
    assert f"squared error {worse} % *larger* than predicting no change" in text
    assert (0.5, True) == (test["directional_accuracy"], "the right direction half of the time" in text)
